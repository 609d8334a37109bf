"""Scoring a pool of general instruction data: answer NLL under several adapters, loss gap, refusals, duplicates."""
