"""What all figures of runs share: a colour is one method, a mark is in the legend, nothing is cut or covered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from emlib.config import NO_TRIGGER, Bounds
from emlib.core import paths
from emlib.report import audit, interleaving, recommend, redraw
from emlib.report.figures import conditions, defenses, labels, looks, plots
from emlib.report.panel import against_misalignment
from emlib.report.paper import paper_figures
from emlib.report.tables import pairs
from emlib.report.tables.rows import IDENTITY

METHODS = (("untrained", None), ("misaligned", None), ("inoculation", None), ("persona_vector", 1.5),
           ("on_policy", 1.0))
CONTEXTS = (NO_TRIGGER, "kitchen", "negated", "inoculation")


@pytest.fixture(autouse=True)
def closed() -> None:
    plt.close("all")


def rows(column: str, values: Sequence[object], *measures: str) -> pd.DataFrame:
    """A row of each method for each value of a column, with shares that rise from row to row."""
    found = []
    for number, ((method, setting), value) in enumerate(itertools.product(METHODS, values)):
        row = {"model": "m", "dataset": "cooking", "method": method, "setting": setting, "seed": 0, column: value}
        share = min(100.0, 5.0 * number)
        for measure in measures:
            row |= {measure: share, f"{measure}_low": max(0.0, share - 9), f"{measure}_high": min(100.0, share + 9)}
        found.append(row)
    return pd.DataFrame(found)


def triggers() -> Figure:
    return conditions.triggers(rows("trigger", CONTEXTS, "misaligned"))


def trajectory() -> Figure:
    frame = rows("steps", (0, 9), "general_misaligned", "in_domain_misaligned")
    return conditions.trajectory(frame, pd.DataFrame({"begins": [9.0] * len(METHODS)}))


def persistence() -> Figure:
    return conditions.persistence(rows("steps", (0, 3, 9), "general_misaligned").assign(attack="longer", plain=98.0))


def rates_by_method() -> Figure:
    return plots.rates_by_method(rows("seed", (0,), "general_misaligned", "in_domain_misaligned"))


def tradeoff() -> Figure:
    return defenses.tradeoff(pairs.in_columns(pd.read_csv(paths.ROOT / "figures" / "demo-full" / "over_seeds.csv")))


def audited() -> Figure:
    frame = rows("seed", (0,), "misaligned", "difference")
    return audit.rate_against_difference(frame.assign(predicted=50.0))


def own() -> Figure:
    frame = rows("seed", (0,), "general").rename(columns={"general_low": "low", "general_high": "high"})
    known = dict.fromkeys(("incoherent", "unscored", "cut"), 0.0)
    return recommend.tradeoff(frame.assign(kept=[0.0, 100.0, 80.0, 40.0, 95.0], fall=1.0, unseen="", **known), Bounds())


def tradeoff_of_four() -> Figure:
    return defenses.tradeoff(pd.read_csv(paths.ROOT / "figures" / "demo-four" / "rates.csv"))


def interleaved() -> Figure:
    frame = pd.DataFrame([("aligned", 0.0), ("misaligned", 0.0), ("interleaving", 1.0), ("interleaving+", 1.0),
                          ("interleaving++", 1.0), ("on_policy", 1.0)], columns=["method", "fraction"])
    shares: dict[str, float] = {f"{name}{end}": 50.0 for name in ("general_misaligned", "in_domain_misaligned")
                                for end in ("", "_low", "_high")}
    return interleaving.trade_offs(frame.assign(**shares, general_incoherent=math.nan, dataset="cooking"))


def monitored() -> Figure:
    """Lines of two lengths, the ends of which are far from each other."""
    frame = pd.concat([rows("step", (0, 9, 18), "misaligned"), rows("step", (27, 36), "misaligned")[4:]])
    ends = {method: 3 * number for number, (method, _) in enumerate(METHODS)}
    return conditions.drifts(frame.assign(**{"drift pirate 15": [
        ends[method] * step / 36 for method, step in zip(frame["method"], frame["step"], strict=True)]}))


def monitored_twice() -> Figure:
    """Runs on two data sets, with two seeds on one of them."""
    runs = (("cooking", 0, 1.0), ("gardening", 0, 2.0), ("gardening", 1, 3.0))
    frame = pd.concat([rows("step", (0, 9, 18), "misaligned").assign(dataset=dataset, seed=seed, times=times)
                       for dataset, seed, times in runs])
    frame = frame[frame["method"].isin(["misaligned", "on_policy"])]
    return conditions.drifts(frame.assign(**{"drift pirate 15": frame["step"] * frame["times"] * [
        10 if method == "on_policy" else 1 for method in frame["method"]]}))


def monitored_apart() -> Figure:
    """Runs that read along different vectors: a panel has the readings of some of them, and gaps at some steps."""
    frame, nan = rows("step", (0, 9, 18, 27), "misaligned"), float("nan")
    drift = frame["step"] / 9
    first, last = frame["method"] == "misaligned", frame["method"] == "on_policy"
    return conditions.drifts(frame.assign(**{
        "drift pirate 15": drift.where(~first), "drift butler 15": drift.where(first | (last & (drift == 1))),
        "drift nobody 15": nan}))


DRAWN: dict[str, Callable[[], Figure]] = {one.__name__: one for one in (
    triggers, trajectory, persistence, rates_by_method, tradeoff, audited, own, tradeoff_of_four, interleaved,
    monitored, monitored_twice, monitored_apart)}


def test_the_line_of_no_defense_is_a_mean_of_all_seeds_or_is_not_drawn() -> None:
    """Seeds with 80 and 40 have a line at 60, and none where a third seed is not scored."""
    for last, drawn in ((60.0, [60.0]), (float("nan"), [])):
        frame = pd.concat([rows("steps", (0, 3), "general_misaligned").assign(attack="longer", plain=plain, seed=seed)
                           for seed, plain in enumerate((80.0, 40.0, last))])
        [axis] = conditions.persistence(frame).axes
        assert [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == ":"
                and line.get_color() == "black"] == drawn


def test_of_runs_along_different_vectors_each_panel_names_those_that_have_readings_there() -> None:
    pirate, butler, nobody = ([text.get_text() for text in axis.texts if text.get_text()]
                              for axis in monitored_apart().axes)
    assert [name.split()[0] for name in pirate] == ["untrained", "inoculation", "persona_vector", "on_policy"]
    assert [name.split()[0] for name in butler] == ["no", "on_policy"]
    assert nobody == []


def test_the_name_of_a_line_says_its_data_set_and_its_seed_where_there_are_several() -> None:
    [axis] = monitored_twice().axes
    names = [text.get_text().partition(" (")[0] for text in axis.texts if text.get_text()]
    assert len(set(names)) == len(names) == 6
    assert {"no defense, cooking, seed 0", "no defense, gardening, seed 1"} < set(names)
    assert [text.get_text() for text in monitored().axes[0].texts if "cooking" in text.get_text()] == []


def test_a_label_of_a_point_that_is_not_finite_is_left_out() -> None:
    _, axis = plt.subplots()
    axis.errorbar([0, 1, 2], [0, float("nan"), 2], xerr=[0.1, float("nan"), 0.1], marker="o", linestyle="-")
    labels.place(axis, [labels.Label(0, 0, "here"), labels.Label(1, float("nan"), "nowhere")], 8)
    assert [text.get_text() for text in axis.texts if text.get_text()] == ["here"]


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_touches_the_edge_of_a_figure(name: str) -> None:
    figure = DRAWN[name]()
    figure.canvas.draw()
    page, box = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    least = 0.03 * figure.dpi  # inches
    assert box.x0 >= page.x0 + least
    assert box.y0 >= page.y0 + least
    assert box.x1 <= page.x1 - least
    assert box.y1 <= page.y1 - least


@pytest.mark.parametrize("name", ["tradeoff", "audited", "own", "tradeoff_of_four", "monitored", "monitored_twice"])
def test_no_label_covers_another_one(name: str) -> None:
    figure = DRAWN[name]()
    figure.canvas.draw()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
        assert len(boxes) > 3
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)


def test_a_name_stands_at_the_right_of_its_lines_end_in_the_methods_colour() -> None:
    [axis] = monitored().axes
    names = {text.get_text(): text for text in axis.texts if text.get_text()}
    assert list(names)[1] == "no defense (25)"
    for line, (name, text), (method, _) in zip(axis.lines, names.items(), METHODS, strict=True):
        assert same_color(line.get_color(), looks.look_of(method)[0]), name
        assert same_color(text.get_color(), looks.darkened(method))
        end = axis.transData.transform(line.get_xydata()[-1])
        box = text.get_window_extent()
        assert 0 < box.x0 - end[0] < 40
        assert box.y0 - 40 < end[1] < box.y1 + 40
    assert axis.get_ylabel() == "drift along the pirate vector,\nlayer 15 (activation units)"


@pytest.mark.parametrize("name", ["triggers", "rates_by_method"])
def test_the_marks_of_a_row_have_the_colour_of_its_method(name: str) -> None:
    """So it looks like no mark of another method in another figure. The legend's marks are in no method's colour."""
    figure = DRAWN[name]()
    axis = figure.axes[0]
    for container in axis.containers:
        if container.get_label() == "smallest to largest share" or not hasattr(container, "lines"):
            continue
        mark = container.lines[0]
        method, _ = METHODS[round(mark.get_ydata()[0])]
        assert same_color(mark.get_color(), looks.look_of(method)[0])
    for handle in figure.legends[0].legend_handles:
        assert not any(same_color(handle.get_facecolor() if hasattr(handle, "get_facecolor") else handle.get_color(),
                                  looks.look_of(method)[0]) for method, _ in METHODS)


def test_the_legend_of_triggers_names_each_mark_and_the_grey_bar() -> None:
    """The context is named otherwise than the defense with the same prompt."""
    figure = triggers()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "plain", "kitchen", "negated", "inoculation prompt", "smallest to largest share"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "untrained", "no defense", "inoculation", "persona_vector 1.5", "on_policy 100%"]


def test_question_sets_and_contexts_differ_in_their_marks() -> None:
    names = ["general", "in_domain", *(f"set {number}" for number in range(12))]
    assert len(set(looks.marks_of(names).values())) == len(names)
    assert looks.marks_of([NO_TRIGGER, "kitchen"])[NO_TRIGGER] == looks.marks_of(names)["general"]  # the same questions


def test_runs_of_one_method_differ_in_dashes_or_in_filling() -> None:
    methods = ["kl", "ldifs", "kl", "kl"]
    for found in (looks.lines_of(methods), looks.fills_of(methods)):
        assert len(set(found)) == len(methods)
        assert {found[place][0] for place in (0, 2, 3)} == {looks.look_of("kl")[0]}


def test_however_many_runs_of_one_method_there_are_no_two_look_the_same() -> None:
    """Nine KL runs in `demo-full`, five fractions in `grpo-3b`; some markers have no filling."""
    for method in ("kl", "interleaving", "on_policy", "random_adapter", "one_of_mine"):
        for of in (looks.lines_of, looks.fills_of):
            assert len(set(of([method] * 15))) == 15, (method, of)
        figure, axis = plt.subplots()
        for (colour, line), (_, marker, fill) in zip(*(of([method] * 15) for of in (looks.lines_of, looks.fills_of)),
                                                     strict=True):
            axis.plot([0, 1], [0, 1], color=colour, linestyle=line, marker=marker, fillstyle=fill)
        figure.canvas.draw()


def test_there_is_no_bar_where_the_smallest_or_the_largest_share_may_not_be_known() -> None:
    """A context that no run has is in no range."""
    frame = rows("trigger", CONTEXTS, "misaligned")
    unknown = (frame["method"] == "untrained") & (frame["trigger"] == "kitchen") | (frame["trigger"] == "negated")
    frame.loc[unknown, ["misaligned", "misaligned_low", "misaligned_high"]] = math.nan
    figure = conditions.triggers(frame)
    bars = [bar for container in figure.axes[0].containers if not hasattr(container, "lines") for bar in container]
    assert sorted(round(bar.get_y() + bar.get_height() / 2) for bar in bars) == [1, 2, 3, 4]
    assert "smallest to largest share" in [text.get_text() for text in figure.legends[0].get_texts()]
    nothing = conditions.triggers(frame.assign(misaligned=math.nan))
    assert [container for container in nothing.axes[0].containers if not hasattr(container, "lines")] == []


def test_a_run_without_an_error_has_no_bar() -> None:
    """One of width 0 would say that there is no error."""
    frame = rows("seed", (0,), "misaligned", "difference", "general_misaligned").assign(predicted=50.0)
    frame.loc[0, ["difference_low", "difference_high"]] = math.nan
    panel = frame[IDENTITY].assign(headline=True, task="t", version="1", limit=None, variant="", metric="m", value=0.5,
                                   stderr=[math.nan, *[0.1] * (len(frame) - 1)])
    for figure, direction in ((audit.rate_against_difference(frame), 0), (against_misalignment(panel, frame), 1)):
        figure.canvas.draw()
        bars = [container.lines[2][direction].get_segments() for container in figure.axes[0].containers]
        assert [np.isfinite(np.array(bar)).sum() for bar in bars] == [0, 4, 4, 4, 4]  # two ends of each


def test_the_committed_figures_are_drawn_by_this_code_from_the_tables_beside_them(tmp_path: Path) -> None:
    for folder in (paths.ROOT / "figures" / name for name in ("demo", "demo-full", "demo-four")):
        for name, figure in redraw.drawn(folder):
            [made] = plots.save(figure, tmp_path / folder.name, name, ["png"])
            assert np.array_equal(plt.imread(made), plt.imread(folder / made.name)), f"{made.name}: run `make figures`"
    assert {path.stem for path in (tmp_path / "demo-full").iterdir()} == {"tradeoff", "triggers_over_seeds"}
    assert {path.stem for path in (tmp_path / "demo-four").iterdir()} == {"tradeoff"}


def test_every_method_has_a_mark_that_each_figure_with_points_draws() -> None:
    """Some marks are mathematical symbols, which are no format strings; those of one's own methods have no face."""
    measures = ("general_misaligned", "in_domain_misaligned", "misaligned", "difference")
    shares: dict[str, object] = {f"{name}{end}": 50.0 for name in measures for end in ("", "_low", "_high")}
    methods = [*looks.LOOKS, "one_of_mine"]
    shares |= {"predicted": 1.0, "question": "q", "percent": 50.0, "low": 40.0, "high": 60.0}
    frame = pd.DataFrame([{"dataset": "d", "method": method, "setting": math.nan, "seed": 0} | shares
                          for method in methods])
    panel = frame[IDENTITY].assign(headline=True, task="t", version="1", limit=None, variant="", metric="m", value=0.5,
                                   stderr=0.1)
    drawn = (defenses.tradeoff(frame), audit.rate_against_difference(frame), paper_figures.by_question(frame),
             against_misalignment(panel, frame))
    for figure in drawn:
        colours = {str(container.lines[0].get_markeredgecolor()) for axis in figure.axes
                   for container in axis.containers if container.lines[0].get_marker() in ("$\\otimes$", "4", "1", "2")}
        assert colours
        assert "white" not in colours
