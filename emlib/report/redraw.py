"""Draws the figures of `figures/<profile>/` again from the tables beside them.

    python -m emlib.report.redraw

`make readme` copies figures and tables of finished runs there; after a change of how figures look, this needs no run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from emlib.core import paths
from emlib.report.audit import rate_against_difference
from emlib.report.figures import conditions, defenses, plots
from emlib.report.tables import pairs
from emlib.study.results import read_table

# Each figure, by the table that it is drawn from. `tradeoff` is of means over seeds where there are some.
DRAWN: dict[tuple[str, str], Callable[[pd.DataFrame], Figure]] = {
    ("rates", "rates"): plots.rates_by_method, ("tradeoff", "rates"): defenses.tradeoff,
    ("tradeoff", "over_seeds"): lambda means: defenses.tradeoff(pairs.in_columns(means)),
    ("triggers", "triggers"): conditions.triggers, ("triggers_over_seeds", "triggers_over_seeds"): conditions.triggers,
    ("audit", "audit"): rate_against_difference}


def drawn(folder: Path) -> Iterator[tuple[str, Figure]]:
    """Draw each figure that is in the folder with its table, and name it."""
    for (name, table), draw in DRAWN.items():
        if (path := folder / f"{table}.csv").is_file() and (folder / f"{name}.png").is_file():
            yield name, draw(read_table(path))


def redraw(folder: Path) -> list[Path]:
    """Write the figures of a folder anew, as PNG."""
    written = []
    for name, figure in drawn(folder):
        written += plots.save(figure, folder, name, ["png"])
        plt.close(figure)
    return written


if __name__ == "__main__":
    for profile in ("demo", "demo-full", "demo-four"):
        print(*redraw(paths.ROOT / "figures" / profile), sep="\n")
