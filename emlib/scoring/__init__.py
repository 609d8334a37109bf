"""Scoring a pool of ordinary data: answer NLL under many adapters, the relative gap, refusals, near-duplicates."""
