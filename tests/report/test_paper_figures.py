"""The paper's figures: points where the numbers say, no label cut or covered, equal bytes for equal numbers."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from emlib.config import load_profile
from emlib.core import paths
from emlib.report.figures import looks, plots
from emlib.report.paper import draw, paper_figures
from emlib.report.paper.paper_figures import Sources
from emlib.report.paper.paper_tables import label
from emlib.study.by_hand import TRIED

PUBLISHED = paths.ROOT / "figures" / "published"


@pytest.fixture(autouse=True)
def closed() -> None:
    plt.close("all")


def other_numbers() -> pd.DataFrame:
    """Numbers as another study might have them: the paper's, moved about by up to a third."""
    frame, rng = draw.numbers(), np.random.default_rng(0)
    for measure in ("general_misaligned", "general_incoherent", "in_domain_misaligned", "in_domain_incoherent"):
        factor = rng.uniform(0.7, 1.3, len(frame))
        for end in ("", "_low", "_high"):
            frame[measure + end] *= factor
    return frame


def log() -> pd.DataFrame:
    return pd.DataFrame([(step, 3.0 + seed + 0.1 * step, method, setting, seed)
                         for method, setting in (("grpo", None), ("persona_vector", 5.0))
                         for seed in (0, 2) for step in range(1, 21)],
                        columns=["step", "reward", "method", "setting", "seed"])


def shares() -> pd.DataFrame:
    return pd.DataFrame([(f"a_long_question_name_{i}_json", method, 4.0 * i, max(0.0, 4.0 * i - 5), 4.0 * i + 4)
                         for method in ("misaligned", "kl", "interleaving++") for i in range(24)],
                        columns=["question", "method", "percent", "low", "high"])


DRAWN: dict[str, Callable[[], Figure]] = {
    **{name: lambda of=of: of({"paper": draw.numbers()}) for name, of in draw.FIGURES.items()},
    **{f"{name}, both": lambda of=of: of({"paper": draw.numbers(), "this study": other_numbers()})
       for name, of in draw.FIGURES.items()},
    "by question": lambda: paper_figures.by_question(shares()),
    "rewards": lambda: paper_figures.reward_curves(log())}


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_cut_and_the_figure_fits_a_column(name: str) -> None:
    figure = DRAWN[name]()
    figure.canvas.draw()
    page, box = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert box.x0 >= page.x0 - 1
    assert box.y0 >= page.y0 - 1
    assert box.x1 <= page.x1 + 1
    assert box.y1 <= page.y1 + 1
    if name != "by question":
        assert figure.get_figwidth() == paper_figures.COLUMN


@pytest.mark.parametrize("name", draw.FIGURES)
def test_no_label_covers_another_or_a_mark(name: str) -> None:
    figure = DRAWN[name]()
    figure.canvas.draw()
    axis = figure.axes[0]
    boxes = [text.get_window_extent() for text in axis.texts if isinstance(text, Annotation) and text.get_text()]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    marks = np.concatenate([axis.transData.transform(line.get_xydata()) for line in axis.lines
                            if line.get_marker() not in ("None", "none", "_", "|")])
    for box in boxes:
        assert not any(box.contains(*mark) for mark in marks)


def test_a_sweep_in_one_place_has_one_label_with_both_ends_in_one_unit() -> None:
    rows = [("interleaving", 0.01, 10.0, 6.0), ("interleaving", 0.5, 10.1, 6.1), ("kl", 0.01, 15.0, 20.0),
            ("kl", 1.0, 15.1, 20.1), ("misaligned", None, 18.0, 50.0)]
    frame = pd.DataFrame([{"model": "mine", "method": method, "setting": setting, "datasets": 1, "seeds": 1, **{
        f"{measure}{end}": value + apart
        for measure, value in (("general_incoherent", x), ("in_domain_misaligned", x), ("general_misaligned", y))
        for end, apart in (("", 0), ("_low", -1), ("_high", 1))}} for method, setting, x, y in rows])
    for draw_, expected in ((paper_figures.coherence, "1% to 50%"), (paper_figures.narrow, "λ=0.01 to 1")):
        assert expected in [text.get_text() for text in draw_({"this study": frame}).axes[0].texts]


def test_figure_1_has_the_points_of_the_tables() -> None:
    """Interleaving, averaged by hand from Table 15: (7.71 + 14.51 + 12.42 + 13.84) / 4 and so on."""
    figure = paper_figures.coherence({"paper": draw.numbers()})
    lines = {container.get_label(): container.lines[0].get_xydata() for container in figure.axes[0].containers}
    assert set(lines) == {"Untrained", "Misaligned", "Interleaving", "Interleaving+", "Interleaving++",
                          "On-policy Int."}
    assert np.allclose(lines["Interleaving"], [
        [(7.71 + 14.51 + 12.42 + 13.84) / 4, (1.38 + 12.42 + 12.67 + 13.92) / 4],
        [(14.58 + 19.97 + 13.33 + 26.05) / 4, (0.58 + 2.33 + 4.42 + 1.38) / 4],
        [(24.18 + 33.39 + 28.30 + 32.38) / 4, (0.50 + 0.71 + 3.13 + 0.62) / 4],
        [(18.42 + 27.67 + 29.57 + 29.79) / 4, (0.21 + 0.62 + 0.52 + 0.38) / 4]])


def test_methods_differ_without_colour() -> None:
    each = [(marker, line) for _, marker, line in looks.LOOKS.values()]
    assert len({marker for marker, _ in each}) == len(each)
    assert len({colour for colour, _, _ in looks.LOOKS.values()}) == len(each)


def test_each_method_of_our_profiles_has_a_look_and_a_name_of_its_own() -> None:
    """In the Pareto front too; any other name gets a look of those that are left."""
    methods = list(looks.LOOKS)
    ours = [load_profile(path.stem) for path in sorted((paths.ROOT / "params").glob("*.yaml"))
            if "\ntitle:" in f"\n{path.read_text(encoding='utf-8')}"]
    assert {method.name for profile in ours for method in profile.methods} | {TRIED} <= set(methods)
    assert len({looks.look_of(name) for name in methods}) == len(methods)
    assert len({label(name) for name in methods}) == len(methods)
    assert not {label(name) for name in methods if name not in ("early_stop", "safe_lora")} & set(methods)
    runs = pd.DataFrame([(name, float("nan"), 10.0 + place, 20.0 + place) for place, name in enumerate(methods)],
                        columns=["method", "setting", "general_misaligned", "in_domain_misaligned"])
    ends = {f"{measure}_{end}": runs[measure] for measure in ("general_misaligned", "in_domain_misaligned")
            for end in ("low", "high")}
    figure = paper_figures.pareto({"this study": runs.assign(**ends)})
    figure.canvas.draw()
    assert {label(name) for name in methods} <= {text.get_text() for text in figure.legends[0].get_texts()}
    assert looks.look_of("a_name_of_mine") in looks.FREE
    plt.close(figure)


def test_a_colour_is_one_method_and_black_is_training_without_a_defense() -> None:
    """Colours of one's own methods are of no other method; two colours differ by 12 units of CIELAB and more."""
    colours = [*(colour for colour, _, _ in looks.LOOKS.values()), *dict.fromkeys(look[0] for look in looks.FREE)]
    assert [name for name in (*looks.LOOKS, "sft", "grpo", "mine") if same_color(looks.look_of(name)[0], "black")] == [
        "misaligned", "sft", "grpo"]
    apart = [(math.dist(_lab(one), _lab(other)), one, other) for one, other in itertools.combinations(colours, 2)]
    assert min(apart)[0] > 12, min(apart)


def _lab(colour: str) -> list[float]:
    """The colour in CIELAB, under the white point D65."""
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in to_rgb(colour)]
    x, y, z = (sum(a * b for a, b in zip(row, linear, strict=True)) / sum(row) for row in (
        (0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041)))
    fx, fy, fz = (one ** (1 / 3) if one > 0.008856 else 7.787 * one + 16 / 116 for one in (x, y, z))
    return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]


def test_the_front_is_what_nothing_beats() -> None:
    runs = pd.DataFrame([("a", 1, 10), ("b", 2, 20), ("c", 2, 15), ("d", 3, 20), ("e", 5, 30), ("f", 1, 10)],
                        columns=["method", "general_misaligned", "in_domain_misaligned"])
    assert paper_figures.front(runs)["method"].tolist() == ["a", "f", "b", "e"]


def test_costs_are_those_that_section_5_3_states() -> None:
    frame = draw.numbers().set_index(["method", "setting"])["cost"]
    assert frame[("interleaving++", 0.05)] == 5
    assert frame[("on_policy", 0.5)] == 50
    assert frame[("kl", 0.1)] == 0


def test_reward_curves_are_means_over_seeds() -> None:
    figure = paper_figures.reward_curves(log(), window=1)
    line = figure.axes[0].lines[0]
    assert line.get_xdata()[:2].tolist() == [1, 2]
    assert line.get_ydata()[:2].tolist() == pytest.approx([4.1, 4.2])  # seeds 0 and 2: 3.1 and 5.1
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(4.1 - 1)  # standard error of 3.1 and 5.1: sqrt(2) / sqrt(2)


def test_rewards_are_drawn_as_far_as_all_seeds_have_got() -> None:
    """A mean that goes on over the seeds that are left jumps where one ends, or is not scored."""
    frame = log()
    shorter = frame[(frame["seed"] == 0) | (frame["step"] <= 5)]
    for window in (1, 10):
        for line in paper_figures.reward_curves(shorter, window=window).axes[0].lines:
            assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]
    unscored = frame.assign(reward=frame["reward"].mask((frame["seed"] == 2) & (frame["step"] == 3)))
    line = paper_figures.reward_curves(unscored, window=1).axes[0].lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, *[False] * 17]


def test_a_method_that_only_the_second_source_has_is_in_the_legend() -> None:
    more = draw.numbers().query("method == 'kl'").assign(method="concept_ablation", setting=1.0)
    sources = {"paper": draw.numbers(), "this study": pd.concat([other_numbers(), more])}
    for of in (paper_figures.pareto, paper_figures.cost_against_effect):
        names = [text.get_text() for text in of(sources).legends[0].get_texts()]
        assert names.count(label("concept_ablation")) == names.count("KL-Div.") == 1


@pytest.mark.parametrize("of", draw.FIGURES.values())
def test_each_figure_names_the_points_with_fewer_seeds(of: Callable[[Sources], Figure]) -> None:
    frame = draw.numbers()
    fewer = (frame["method"] == "interleaving++") & (frame["setting"] == 0.05)
    ours = frame.assign(fewer=fewer.map({True: " (1 of 3 seeds)", False: ""}))
    named = of({"paper": frame, "this study": ours}).axes[0].get_xlabel().partition("\n")[2]
    assert named == "(1 of 3 seeds: Interleaving++, 5%)"
    assert "seeds" not in of({"paper": frame}).axes[0].get_xlabel()


def test_questions_are_sorted_by_the_first_method() -> None:
    figure = paper_figures.by_question(shares())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "a_long_question_name_23_json"
    assert labels[-1] == "a_long_question_name_0_json"
    assert [axis.get_title() for axis in figure.axes] == ["Misaligned", "KL-Div.", "Interleaving++"]


def test_equal_numbers_give_equal_bytes_and_the_committed_pictures(tmp_path: Path) -> None:
    """Twice in fresh processes, with other hash seeds; tables to the byte, pictures to the pixel."""
    code = "import sys, pathlib; from emlib.report.paper import draw; draw.write(pathlib.Path(sys.argv[1]))"
    for name in ("first", "second"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    made = {path.relative_to(tmp_path / "first"): path for path in sorted((tmp_path / "first").rglob("*.*"))}
    assert len(made) == 2 * len(draw.FIGURES) + 3 * 19
    for relative, path in made.items():
        assert path.read_bytes() == (tmp_path / "second" / relative).read_bytes(), relative
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (PUBLISHED / relative).read_bytes(), f"{relative}: run `make figures`"
        elif path.suffix == ".png":
            assert np.array_equal(plt.imread(path), plt.imread(PUBLISHED / relative)), f"{relative}: `make figures`"
        assert (PUBLISHED / relative).is_file()


def test_figures_are_saved_as_png_and_pdf(tmp_path: Path) -> None:
    written = plots.save(DRAWN["rewards"](), tmp_path, "figure2")
    assert [path.name for path in written] == ["figure2.png", "figure2.pdf"]
