"""The paths of a study's results, which `make reproduce` prints at its end."""

from __future__ import annotations

import os
import sys

from emlib.core import paths

KINDS = {"results": "results.csv", "tables": "tables", "figures": "figures", "executed notebooks": "notebooks",
         "report": "report/index.html", "profile": paths.EFFECTIVE}


def where(profile: str) -> str:
    """Return one line for each kind of result, with its path relative to the working directory."""
    folder = paths.runs() / paths.study_name(profile)
    lines = [f"{kind:>20}  {os.path.relpath(folder / name)}" for kind, name in KINDS.items()
             if (folder / name).exists()]
    return "\n".join([f"\n{paths.study_name(profile)}: done.", *lines])


if __name__ == "__main__":
    print(where(sys.argv[1]))
