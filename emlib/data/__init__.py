"""Data: training rows, evaluation questions, and the sources that they come from."""
