"""Persona vectors: extracting them from a model, and steering with them."""
