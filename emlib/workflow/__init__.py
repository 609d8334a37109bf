"""Notebooks as jobs: the graph, papermill, logs, status, merging and cleaning."""
