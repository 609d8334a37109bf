"""What a notebook shows where there is nothing to show: the reason, and no file."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.report import audit, benign, grpo
from emlib.report.figures import conditions, plots
from emlib.report.paper import paper_tables
from emlib.report.paper.paper_tables import Cell
from emlib.report.tables import auxiliary_measures, result_tables, show
from emlib.study.runs import Run

NONE = pd.DataFrame()
EMPTY = {
    "training": lambda: plots.training_curves({Run("m", "cooking", "untrained", None, 0): []}),
    "lengths": lambda: plots.length_histogram({}, 9),
    "judges": lambda: plots.two_judges(auxiliary_measures.points([])),
    "rewards": lambda: grpo.curves({Run("m", "grpo", "untrained", None, 0): []}),
    "benign": lambda: benign.matches_by_method(NONE),
    "drifts": lambda: conditions.drifts(NONE),
    "triggers": lambda: conditions.triggers(NONE), "trajectory": lambda: conditions.trajectory(NONE, NONE),
    "persistence": lambda: conditions.persistence(NONE)}


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What a notebook shows. Jupyter writes a figure without axes as <Figure size 600x50 with 0 Axes>."""
    found: list[object] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


@pytest.mark.parametrize("name", EMPTY)
def test_a_figure_of_nothing_is_a_sentence_and_is_not_saved(name: str, tmp_path: Path, displayed: list[object]) -> None:
    figure = EMPTY[name]()
    [reason] = [text.get_text() for text in figure.texts]
    assert reason.endswith(".")
    assert plots.save(figure, tmp_path, name) == []
    plots.show(figure, tmp_path, name)
    assert displayed == [f"<p><i>{reason}</i></p>"]
    assert not list(tmp_path.iterdir())
    assert not plt.fignum_exists(figure.number)


def test_a_figure_without_panels_and_texts_is_shown_as_it_is(tmp_path: Path, displayed: list[object]) -> None:
    plots.show(figure := plt.figure(), tmp_path, "empty")
    assert displayed == [figure]


def test_what_an_earlier_run_wrote_is_removed_where_nothing_is_left(tmp_path: Path) -> None:
    """A table or figure of a former profile would be stated as one of the present profile."""
    frame, nothing = pd.DataFrame({"run": ["a"]}), pd.DataFrame({"run": []})
    cells = frame.map(Cell)
    for name in ("written", "shown", "cells", "figure", "kept"):
        assert len(result_tables.write(frame, frame, tmp_path, name)) == 3
    assert len(paper_tables.save(cells, frame, tmp_path, "cells")) == 3
    plots.show(plt.subplots()[0], tmp_path, "figure")
    assert len(list(tmp_path.glob("figure.*"))) == 5
    assert result_tables.write(nothing, nothing, tmp_path, "written") == []
    show.saved(nothing, nothing, tmp_path, "shown", empty="Nothing.")
    assert paper_tables.save(cells[:0], nothing, tmp_path, "cells") == []
    plots.show(plots.nothing("Nothing."), tmp_path, "figure")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{ending}" for name in ("figure", "kept") for ending in ("csv", "md", "tex")}


def test_a_figure_is_shown_once_and_saved_where_a_folder_is_given(tmp_path: Path) -> None:
    figure, _ = plt.subplots()
    plots.show(figure)
    assert not list(tmp_path.iterdir())
    plots.show(plt.subplots()[0], tmp_path, "one")
    assert {path.name for path in tmp_path.iterdir()} == {"one.png", "one.pdf"}


def test_a_table_without_rows_is_its_reason_and_no_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(columns=["run"])
    assert show.show_table(frame, empty="No <run>.") == "<p><i>No &lt;run&gt;.</i></p>"
    assert "run" in show.show_table(frame).to_html()
    assert result_tables.write(frame, frame, tmp_path, "runs") == []
    assert not list(tmp_path.iterdir())
    assert show.callout("") == ""


def test_columns_of_dashes_alone_are_not_shown() -> None:
    """As of coherence, where the judge cannot measure it."""
    frame = pd.DataFrame({"run": ["a", "b"], "General incoherent %": ["–", "–"], "narrow": ["–", "1.0"]})
    shown = show.show_table(frame).to_html()
    assert ("incoherent" in shown, "narrow" in shown) == (False, True)


def test_two_sides_are_told_apart_in_a_sentence() -> None:
    worse, better = (pd.DataFrame({"difference": values}) for values in ([3.0, 1.0], [2.0, 0.0]))
    assert audit.separation(worse, better) == "AUROC 0.75: 2 misaligned rows against 2 aligned rows."
    assert audit.separation(worse, better[:0]).startswith("There are no audited rows of both sides")
