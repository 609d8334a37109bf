"""Builds a study's report: `python -m emlib.report.book demo [folder]` is behind `make report` and `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from emlib.core.errors import ends_with_message
from emlib.report.book.build import build
from emlib.study.study import open_study

if __name__ == "__main__":
    with ends_with_message():
        first, warnings = build(open_study(sys.argv[1]), *map(Path, sys.argv[2:3]))
    print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)
    print(f"report: {os.path.relpath(first)}")
