"""Notebooks as jobs: the graph, papermill, logs, status, merging and cleaning."""

import sys

# jsonschema, which nbformat imports, would build a parser of international addresses: two seconds for each notebook.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
