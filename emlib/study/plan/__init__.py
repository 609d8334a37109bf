"""Estimates of a study's cost from its profile alone, without model, data or network."""
