"""The paper's layout and marks: computed from numbers, the same in each form."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from emlib.report.paper import draw, overview, paper_tables, published
from emlib.report.paper.paper_tables import Cell, marks
from emlib.report.tables.result_tables import MEASURES

NO = float("nan")


def rows(*numbers: tuple[str, float, float, float, float]) -> pd.DataFrame:
    """One data set: (method, general misaligned and incoherent, in-domain misaligned and incoherent)."""
    return pd.DataFrame([("m", "code", 0, method, float("nan"), *four) for method, *four in numbers],
                        columns=["model", "dataset", "seed", "method", "setting", *MEASURES])


def marked(frame: pd.DataFrame, misaligned: pd.DataFrame | None = None) -> list[tuple[str, ...]]:
    return [tuple("".join(sorted(name[0] for name in cell)) for cell in row)
            for row in marks(frame, misaligned).itertuples(index=False)]


def test_marks_by_hand() -> None:
    frame = rows(("untrained", 0, 0, 0, 0), ("misaligned", 40, 10, 50, 20),
                 ("a", 4, 11, 45, 20), ("b", 4.1, 10, 44.9, 5), ("c", 9, 5, 51, 21))
    assert marked(frame) == [
        ("", "", "", ""),              # untrained does not compete, though it is lower
        ("", "", "", ""),
        ("bu", "i", "u", ""),          # exactly 90% less, exactly 90% kept; 11 > 10
        ("", "", "", "b"),             # just not; equal incoherence is not more
        ("", "b", "bu", "i")]


def test_equal_best_are_all_bold_and_blocks_are_judged_apart() -> None:
    frame = rows(("misaligned", 40, 10, 50, 20), ("a", 1, 1, 1, 1), ("b", 1, 2, 1, 2))
    other = rows(("a", 5, 5, 5, 5)).assign(dataset="legal")
    assert [cells[0] for cells in marked(pd.concat([frame, other], ignore_index=True))] == ["", "bu", "bu", "b"]


def test_the_undefended_model_may_come_from_another_table() -> None:
    sweep = rows(("a", 4, 11, 45, 20))
    assert marked(sweep) == [("b", "b", "b", "b")]
    assert marked(sweep, rows(("misaligned", 40, 10, 50, 20))) == [("bu", "bi", "bu", "b")]


def test_what_was_not_scored_has_no_mark() -> None:
    nothing = float("nan")
    frame = rows(("misaligned", 40, 10, 50, 20), ("a", nothing, nothing, nothing, nothing))
    assert marked(frame)[1] == ("", "", "", "")
    assert "–" in paper_tables.markdown(paper_tables.misalignment(frame))


def test_marks_of_table_2_say_what_section_5_1_says() -> None:
    """"Interleaving variants ... consistently reach ... Persona Vectors achieves this only on one dataset"."""
    frame = published.rates(2)
    kept = marks(frame)["in_domain_misaligned"].map(lambda cell: "underline" in cell).groupby(frame["method"]).sum()
    assert kept[["interleaving", "interleaving+", "interleaving++", "persona_vector"]].tolist() == [4, 4, 4, 1]
    best = frame[marks(frame)["general_misaligned"].map(lambda cell: "bold" in cell)]
    assert dict(zip(best["dataset"], best["method"], strict=True)) == {
        "code": "persona_vector", "medical": "persona_vector", "legal": "interleaving++",
        "security": "on_policy"}  # the text counts Interleaving++; at the stated 5% on-policy it is


@pytest.mark.parametrize("number", [1, *published.TABLES])
def test_every_number_stands_in_each_form(number: int) -> None:
    table, numbers = draw.cells(number)
    markdown, latex = paper_tables.markdown(table), paper_tables.latex(table)
    for cell in table.to_numpy().ravel():
        assert cell.text in markdown
    if number > 1:
        printed = [f"{value:.2f}" for name in MEASURES if name in numbers for value in numbers[name]]
        assert all(value in markdown and value in latex for value in printed)
    assert markdown.count("**") == 2 * sum("bold" in cell.marks for cell in table.to_numpy().ravel())
    assert latex.count(r"\textbf") == markdown.count("**") / 2
    assert latex.count(r"\underline") == markdown.count("<u>")
    assert not re.search(r"[λαβ±↓↑✓✗–%](?<!\\%)", latex)


def test_tables_are_named_as_the_paper_names_them() -> None:
    assert paper_tables.label("kl", 0.1) == "KL-Div., λ=0.1"
    assert paper_tables.label("persona_vector", 5.0) == "Persona Vectors, α=5"
    assert paper_tables.label("interleaving++", 0.05) == "Interleaving++, 5%"
    assert [paper_tables.label("interleaving", share) for share in (0.001, 0.02, 0.025, 0.29, 1.0)] == [
        f"Interleaving, {percent}%" for percent in ("0.1", "2", "2.5", "29", "100")]
    assert paper_tables.label("untrained") == "Untrained"
    assert paper_tables.label("filtering", 0.2).endswith(", share=0.2")  # of a kind without a symbol
    assert paper_tables.label("kl_inoculated", 2.0) == "kl_inoculated, setting=2"


def test_several_seeds_become_a_mean_and_a_deviation() -> None:
    frame = pd.DataFrame([{"tier": tier, "method": "sft", "setting": None, "seed": seed, "exact_match": 30 + 2 * seed}
                          for tier in (0, 1) for seed in (0, 1, 2)])
    assert [cell.text for cell in paper_tables.exact_match(frame).iloc[0]] == ["SFT", "32.00 ± 2.00", "32.00 ± 2.00"]
    runs = pd.DataFrame([("untrained", 0, 99.0, 9.0), ("grpo", 0, 80.0, 7.0), ("grpo", 1, 90.0, 8.0)],
                        columns=["method", "seed", "eval_accuracy", "eval_reward"]).assign(setting=None)
    table = paper_tables.reinforcement(runs)
    assert table.iloc[1].tolist() == [Cell("GRPO"), Cell("85.0 ± 7.1", frozenset({"bold"})),
                                      Cell("7.50 ± 0.71", frozenset({"bold"}))]


def test_table_1_follows_from_its_bounds() -> None:
    bounds = overview.Bounds()
    plain = [("misaligned", 50.0, 20.0, 40.0, 0.0)]
    rates = rows(*plain, ("good", 5, 20, 36, 0), ("half", 30, 21, 35.9, 0), ("bad", 40, 2, 0, 0))
    benign = pd.DataFrame([(task, None, method, score) for task, scores in
                           {"x": {"sft": 50, "good": 45, "half": 44.9}, "y": {"sft": 10, "good": 20, "half": 9}}.items()
                           for method, score in scores.items()], columns=["task", "tier", "method", "exact_match"])
    grpo = pd.DataFrame([("grpo", 90.0), ("good", 81.0)], columns=["method", "eval_accuracy"])
    table = overview.overview(overview.measured(rates, benign, grpo, bounds), bounds)
    assert [[cell.text for cell in row] for row in table.to_numpy()] == [
        ["good", "✓", "✓", "✓", "✓"],
        ["half", "~", "~", "✗", "✗"],   # 40% less; one task of two; 89.75% kept; 105% as incoherent
        ["bad", "✗", "–", "✗", "✓"]]    # 20% less; no task tried


def test_table_1_has_a_dash_where_plain_fine_tuning_has_nothing_to_keep() -> None:
    """0% of 0% is nothing kept. Where another data set or task has something to keep, that one counts."""
    one, bounds = rows(("misaligned", 50, 20, 0, 0), ("good", 5, 20, 0, 0)), overview.Bounds()
    other = rows(("misaligned", 50, 20, 40, 0), ("good", 5, 20, 30, 0)).assign(dataset="other")
    benign = pd.DataFrame([(task, None, method, score) for task, scores in {"x": (0.0, 3.0), "y": (50.0, 40.0)}.items()
                           for method, score in zip(("sft", "good"), scores, strict=True)],
                          columns=["task", "tier", "method", "exact_match"])
    grpo = pd.DataFrame({"method": ["grpo"], "eval_accuracy": [1.0]})
    for rates, scores, learnt, kept in ((one, benign[:2], "–", "–"), (pd.concat([one, other]), benign, "✗", "✗")):
        [row] = overview.overview(overview.measured(rates, scores, grpo, bounds), bounds).to_numpy()
        assert [cell.text for cell in row] == ["good", "✓", learnt, kept, "✓"]


def test_table_1_has_dashes_where_a_seed_has_no_score_and_tells_fewer_seeds() -> None:
    """`half` removes all with seed 0, and has no score with seed 1; `few` has seed 0 alone."""
    first = rows(("misaligned", 50, 20, 40, 0), ("half", 0, 20, 40, 0), ("few", 0, 20, 40, 0), ("narrow", 0, 20, 40, 0))
    second = rows(("misaligned", 50, 20, 40, 0), ("half", NO, NO, NO, NO), ("narrow", 0, 20, NO, 0)).assign(seed=1)
    none, bounds = pd.DataFrame({"method": ["sft"], "task": ["x"], "tier": pd.array([None], "Int64"),
                                 "exact_match": [50.0]}), overview.Bounds()
    grpo = pd.DataFrame({"method": ["grpo"], "eval_accuracy": [1.0]})
    numbers = overview.measured(pd.concat([first, second]), none, grpo, bounds)
    assert numbers[["seeds", "most_seeds"]].to_numpy().tolist() == [[2, 2], [1, 2], [2, 2]]  # as overview.csv has them
    table = overview.overview(numbers, bounds)
    assert [[cell.text for cell in row] for row in table.to_numpy()] == [
        ["half", "–", "–", "–", "–"], ["few (1 of 2 seeds)", "✓", "–", "✓", "✓"], ["narrow", "✓", "–", "–", "✓"]]


def test_table_1_tells_fewer_seeds_of_a_benign_task_and_has_a_dash_where_one_has_no_score() -> None:
    """Plain fine-tuning has three seeds. Of two, `few` is marked; `lost` has three, of which one is not scored."""
    rates = pd.concat([rows(*[(name, 50 * (name == "misaligned"), 20, 40, 0) for name in ("misaligned", "few", "lost")]
                            ).assign(seed=seed) for seed in range(3)])
    scores = {"sft": (90.0, 60.0, 60.0), "few": (70.0, 70.0), "lost": (90.0, NO, 90.0)}
    benign = pd.DataFrame([(method, score) for method, found in scores.items() for score in found],
                          columns=["method", "exact_match"]).assign(task="opswap", tier=1)
    numbers = overview.measured(rates, benign, pd.DataFrame(columns=["method", "eval_accuracy"]), overview.Bounds())
    assert numbers[["seeds", "most_seeds"]].to_numpy().tolist() == [[2, 3], [3, 3]]
    table = overview.overview(numbers, overview.Bounds())
    assert [[cell.text for cell in row] for row in table.to_numpy()] == [
        ["few (2 of 3 seeds)", "✓", "✓", "✓", "✓"], ["lost", "✓", "–", "✓", "✓"]]


def test_table_1_has_dashes_where_a_method_lacks_a_data_set_or_a_task() -> None:
    """`part` removes all on one data set, and has no result on the other; `whole` removes half."""
    rates = pd.concat([rows(("misaligned", 50, 0, 80, 0), ("part", 0, 0, 80, 0), ("whole", 0, 0, 80, 0)),
                       rows(("misaligned", 50, 0, 80, 0), ("whole", 50, 0, 10, 0)).assign(dataset="other")])
    benign = pd.DataFrame([("x", None, "sft", 50.0), ("y", None, "sft", 50.0), ("x", None, "part", 50.0),
                           ("x", None, "whole", 50.0), ("y", None, "whole", 10.0)],
                          columns=["task", "tier", "method", "exact_match"])
    bounds, grpo = overview.Bounds(), pd.DataFrame({"method": ["whole"], "eval_accuracy": [0.0]})
    table = overview.overview(overview.measured(rates, benign, grpo, bounds), bounds)
    assert [[cell.text for cell in row] for row in table.to_numpy()] == [
        ["part", "–", "–", "–", "–"], ["whole", "~", "~", "~", "✓"]]  # plain GRPO is not there to compare with


def test_table_1_has_a_dash_where_plain_training_learnt_nothing_and_no_benign_task_was_run() -> None:
    rates = rows(("misaligned", 50, 0, 80, 0), ("part", 0, 0, 80, 0))
    nothing = pd.DataFrame(columns=["task", "tier", "method", "exact_match"])
    grpo = pd.DataFrame({"method": ["grpo", "part"], "eval_accuracy": [0.0, 0.0]})
    bounds = overview.Bounds()
    table = overview.overview(overview.measured(rates, nothing, grpo, bounds), bounds)
    assert [cell.text for cell in table.to_numpy()[0]] == ["part", "✓", "–", "✓", "✓"]


def test_table_1_has_as_many_partly_marks_as_the_papers(paper: str) -> None:
    start = paper.index("Method no EM Learns Well")
    lines = [line.replace("\xa0", " ") for line in paper[start:].split("\n")[1:6]]
    printed = {line.split(" \\sim")[0]: line.count("\\sim") for line in lines}
    table = draw.cells(1)[0].set_index("Method")
    ours = {name.text: sum(cell.text == "~" for cell in row)
            for name, row in zip(table.index, table.to_numpy(), strict=True)}
    same = {"KL divergence": "KL-Div.", "Persona Vector": "Persona Vectors",
            "Inoculation Prompt": "Inoculation Prompting"}
    assert printed == {name: ours[same.get(name, name)] for name in printed}
    assert len(printed) == 5


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_all_latex_tables_compile(tmp_path: Path) -> None:
    tables = "\n\n".join(paper_tables.latex(draw.cells(number)[0]) for number in (1, *published.TABLES))
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{tables}\end{{document}}"
    (tmp_path / "page.tex").write_text(document, encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
