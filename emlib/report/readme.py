"""Writes the README's results from a finished demo: `python -m emlib.report.readme`."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from emlib.core import paths
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import whole_file, write_text

BEGIN, END = "<!-- demo results: begin -->", "<!-- demo results: end -->"


def with_results(readme: str, table: str, figure: str) -> str:
    """Return `readme` with the text between the two markers replaced by the figure and the table."""
    shown = f"![General against in-domain misalignment, with 95% intervals]({figure})"
    block = f"{BEGIN}\n{shown}\n\n{table.strip()}\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, readme, flags=re.DOTALL)


def update(profile: str = "demo") -> Path:
    """Copy a profile's figures and numbers to `figures/<profile>/`, and write its table into the README."""
    made, kept = paths.runs() / profile, paths.ROOT / "figures" / profile
    if not (made / "tables" / "rates.md").is_file():
        raise StoreError(f"{made}: there is no table yet. Run `make reproduce PROFILE={profile}` first.")
    for name in ("figures/rates.png", "figures/tradeoff.png", "tables/rates.csv"):
        with whole_file(kept / Path(name).name) as temporary:
            shutil.copyfile(made / name, temporary)
    readme = paths.ROOT / "README.md"
    table = (made / "tables" / "rates.md").read_text(encoding="utf-8")
    write_text(readme, with_results(readme.read_text(encoding="utf-8"), table, f"figures/{profile}/tradeoff.png"))
    return readme


if __name__ == "__main__":
    try:
        update()
    except EmlibError as error:
        sys.exit(str(error))
