"""Builds a study's report: `python -m emlib.report.book demo [folder]` is behind `make report` and `make docs`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from emlib.core.commands import ends_with_message, profile_parser
from emlib.report.book.build import build
from emlib.study.study import open_study


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.report.book", "Write a study's report as HTML pages.")
    parser.add_argument("folder", nargs="?", type=Path, help="by default `report` in the folder of results")
    asked = parser.parse_args(arguments)
    first, warnings = build(open_study(asked.profile), asked.folder)
    print(*warnings, sep="\n", end="\n" if warnings else "", file=sys.stderr)
    print(f"report: {os.path.relpath(first)}")


if __name__ == "__main__":
    main()
