"""The paper's tables and figures, drawn from its published numbers: `make figures`. It needs no run, model or network.

Figures 2 and 3 are missing: the paper has their curves only as pictures and prints no numbers
(`paper_figures.reward_curves` draws them from runs).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from emlib.core import paths
from emlib.report.figures import plots
from emlib.report.paper import overview, paper_figures, paper_tables, published
from emlib.report.paper.paper_figures import Sources
from emlib.report.tables.averages import over_datasets

FIGURES: dict[str, Callable[[Sources], Figure]] = {
    "figure1a": paper_figures.coherence, "figure1b": paper_figures.narrow, "pareto": paper_figures.pareto,
    "cost_against_effect": paper_figures.cost_against_effect}


def stated_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with the `cost` that section 5.3 states, in percent of plain training.

    Interleaved rows cost what they add; section 5.3 says that all other methods cost almost nothing. One-time costs of
    a persona vector or of scoring a pool (Appendix E) are left out.
    """
    interleaved = frame["method"].isin(published.INTERLEAVING)
    return frame.assign(cost=(100 * frame["setting"]).where(interleaved, 0.0))


def numbers(model: str = published.SMALL) -> pd.DataFrame:
    """Return one model's published shares, averaged over the four data sets: the points of Figure 1."""
    frame = published.rates()
    return stated_cost(over_datasets(frame[frame["model"] == model], same_questions=False))


def cells(number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one table of the paper as cells, and the numbers behind it; Table 1 is derived (`overview`)."""
    if number == 1:
        bounds = overview.Bounds()
        benign = pd.concat([published.table(3), published.table(4)])
        judged = overview.measured(published.rates(2), published.chosen(benign),
                                   published.chosen(published.table(5)), bounds)
        return overview.overview(judged, bounds), judged.drop(columns=list(overview.SEEDS))
    frame = published.table(number)
    if number in published.BENIGN:
        return paper_tables.exact_match(frame), frame
    if number in published.GRPO:
        return paper_tables.reinforcement(frame), frame
    headline = number in (2, 7)
    # Tables 18 to 22 have no row of the undefended model: it stands in 2 and 7
    return paper_tables.misalignment(published.rates(number), published.rates(2, 7), settings=not headline), frame


def write(folder: Path) -> list[Path]:
    """Write all figures and tables to `folder`, with the same bytes in every run."""
    written = []
    for name, draw in FIGURES.items():
        figure = draw({"paper": numbers()})
        written += plots.save(figure, folder, name)
        plt.close(figure)
    for number in (1, *published.TABLES):
        written += paper_tables.save(*cells(number), folder / "tables", f"table{number:02}")
    return written


if __name__ == "__main__":
    made = write(paths.ROOT / "figures" / "published")
    print(f"{len(made)} files in {made[0].parent}; README.md there describes them.")
