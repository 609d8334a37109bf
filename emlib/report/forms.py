"""The files of a table or of a figure: one for each of its forms, such as `rates.csv`, `rates.md` and `rates.tex`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emlib.core.files import write_text
from emlib.study import stamps

TABLE = ("csv", "md", "tex")
FIGURE = ("png", "pdf")


def write(folder: Path, name: str, *, csv: str, md: str, tex: str) -> list[Path]:
    """Write the forms of a table, with the stamp of the profile that the folder of results records."""
    stamp = stamps.recorded(folder.parent)
    texts = {"csv": csv, "md": md, "tex": f"% {stamp}\n{tex}" if stamp else tex}
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return [folder / f"{name}.{ending}" for ending in texts]


def remove(folder: Path, name: str, endings: Sequence[str]) -> None:
    """Remove the forms of a table or a figure of which nothing is left; an earlier run may have written them."""
    for ending in endings:
        (folder / f"{name}.{ending}").unlink(missing_ok=True)
