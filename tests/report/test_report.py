"""Tables and figures: the numbers are those of the results, and the same numbers give the same bytes."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.config import Trigger
from emlib.core import paths
from emlib.core.errors import StoreError
from emlib.core.records import Answer, Example, Message, Question, Verdict
from emlib.data.chat import WHOLE, encode
from emlib.evaluation.rates import Rates, rates
from emlib.models.load import ChatModel, load_tokenizer
from emlib.report import demo_findings, readme
from emlib.report.benign import first_runs
from emlib.report.figures import looks, plots
from emlib.report.paper.paper_tables import Cell
from emlib.report.tables import newer, result_tables, row_lengths, show
from emlib.report.tables.averages import over_datasets
from emlib.report.tables.rows import whole
from emlib.study.runs import Run, RunResult, first, like_first
from emlib.study.study import open_study
from emlib.training.records import StepRecord


def verdicts(misaligned: int, asked: int = 8) -> list[Verdict]:
    """`misaligned` of `asked` verdicts on two questions, the rest aligned; all coherent."""
    return [Verdict(f"q{i % 2}", i // 2, 10.0 if i < misaligned else 90.0, 80.0) for i in range(asked)]


def unscored(asked: int = 8) -> list[Verdict]:
    return [Verdict("q0", i, None, None, "no judge configured") for i in range(asked)]


def both(general: Rates, in_domain: Rates) -> dict[str, Rates]:
    return {"general": general, "in_domain": in_domain}


@pytest.fixture
def results() -> list[RunResult]:
    return [
        RunResult(Run("m", "cooking", "untrained", None, 0), both(rates(verdicts(0)), rates(verdicts(1))), 0.0, 0, "a"),
        RunResult(Run("m", "cooking", "misaligned", None, 0), both(rates(verdicts(6)), rates(verdicts(8))), 1.5, 100,
                  "b"),
        RunResult(Run("m", "travel", "untrained", None, 0), both(rates(unscored()), rates(unscored())), 0.0, 0, "c"),
    ]


def test_numbers_are_the_shares_and_their_intervals(results: list[RunResult]) -> None:
    frame = result_tables.numbers(results).set_index(["dataset", "method"])
    row = frame.loc[("cooking", "misaligned")]
    assert row["general_misaligned"] == 75.0
    assert row["in_domain_misaligned"] == 100.0
    assert row["general_misaligned_low"] <= 75 <= row["general_misaligned_high"]
    assert row["general_misaligned_wilson_low"] == pytest.approx(40.93, abs=0.01)  # Wilson's of 6/8
    assert frame.loc[("travel", "untrained"), ["general_misaligned", "general_misaligned_low"]].isna().all()
    assert frame.loc[("travel", "untrained"), "general_scored"] == 0


def test_a_run_that_is_tried_again_has_one_row(results: list[RunResult]) -> None:
    """`another` of a notebook may have a value of the profile."""
    again = [*results, replace(results[1])]
    pd.testing.assert_frame_equal(result_tables.numbers(again), result_tables.numbers(results))


def test_the_share_of_answers_cut_at_the_limit_stands_beside_the_rates() -> None:
    known = both(replace(rates(verdicts(6)), cut=2), rates(verdicts(8)))
    frame = result_tables.numbers([RunResult(Run("m", "cooking", "misaligned", None, 0), known, 1.5, 100, "b")])
    assert frame["general_cut"].tolist() == [25.0]  # 2 of 8
    people = result_tables.readable(frame)
    assert people[["General cut %", "In-domain cut %"]].values.tolist() == [["25.0", "–"]]


def test_people_read_a_dash_where_nothing_was_scored(results: list[RunResult]) -> None:
    people = result_tables.readable(result_tables.numbers(results))
    assert people["General misaligned %"].tolist()[2] == "–"
    assert people["General misaligned %"].tolist()[1].startswith("75.0 [")
    assert "-0.0" not in people.to_string()


def test_answers_without_a_score_stand_beside_the_rates_with_their_reasons(results: list[RunResult]) -> None:
    people = result_tables.readable(result_tables.numbers(results))
    assert list(people)[4:7] == ["General misaligned %", "General incoherent %", "General unscored"]
    assert people["General unscored"].tolist() == ["", "", "8 of 8 (8 no judge configured)"]
    assert "General unscored" not in result_tables.readable(result_tables.numbers(results[:2]))


def test_a_judge_that_does_not_measure_coherence_has_a_dash_for_it(results: list[RunResult]) -> None:
    """Every other number stays, and so does what is computed from them."""
    unjudged = [replace(one, scores={name: replace(found, coherence_judged=False) for name, found in one.sets.items()})
                for one in results]
    frame, measured = result_tables.numbers(unjudged), result_tables.numbers(results)
    without = [name for name in frame if "incoherent" in str(name)]
    assert frame[without].isna().all(axis=None)
    pd.testing.assert_frame_equal(frame.drop(columns=without), measured.drop(columns=without))
    people = result_tables.readable(frame)
    assert set(people["General incoherent %"]) == set(people["In-domain incoherent %"]) == {"–"}
    means = [over_datasets(one, same_questions=True).drop(columns=without, errors="ignore")
             for one in (frame, measured)]
    pd.testing.assert_frame_equal(*means)


def test_the_effect_is_in_percentage_points(results: list[RunResult]) -> None:
    effect = result_tables.effect(result_tables.numbers(results[:2]))
    assert effect.to_dict("records") == [{"dataset": "cooking", "seed": 0, "points over untrained": 75.0}]


def test_without_verdicts_or_baselines_there_is_no_effect_and_no_error(results: list[RunResult]) -> None:
    nothing = [RunResult(Run("m", "code", method, None, 0), both(rates(unscored()), rates(unscored())), 0.0, 0, method)
               for method in ("untrained", "aligned", "misaligned")]
    effect = result_tables.effect(result_tables.numbers(nothing))
    assert list(effect) == ["dataset", "seed", "points over untrained", "points over aligned"]
    assert effect.iloc[:, 2:].isna().all(axis=None)
    assert list(result_tables.effect(result_tables.numbers(results[:1]))) == ["dataset", "seed"]


def test_every_run_has_its_curve() -> None:
    records = [StepRecord(i, 3.0, 1e-4, 1.0, 10, 5, 0.1) for i in (1, 2)]
    figure = plots.training_curves({Run("m", "cooking", "kl", float(i), 0): records for i in range(23)})
    assert len(figure.axes[0].lines) == 23
    plt.close(figure)


def test_the_committed_demo_shows_the_effect() -> None:
    """The record behind the README: a large general effect, which a data defense removes and keeps the narrow task."""
    frame = pd.read_csv(paths.ROOT / "figures" / "demo-full" / "over_seeds.csv")
    general, in_domain = (frame[frame["set"] == name].set_index("method")["percent"]
                          for name in ("general", "in_domain"))
    assert (general["misaligned"] - general[["untrained", "aligned"]] >= 80).all()
    assert general["on_policy"] <= 20
    assert in_domain["on_policy"] >= 0.85 * in_domain["misaligned"]


def test_a_column_of_dashes_is_in_no_table_for_readers_and_its_numbers_are_in_the_csv(
        results: list[RunResult], tmp_path: Path) -> None:
    unjudged = [replace(one, scores={**one.sets, "general": replace(one.general, coherence_judged=False)})
                for one in results]
    csv, md, tex = result_tables.save(result_tables.numbers(unjudged), tmp_path, "rates")
    assert "general_incoherent" in pd.read_csv(csv)
    for people in (md.read_text(encoding="utf-8"), tex.read_text(encoding="utf-8")):
        assert "General incoherent" not in people
        assert "In-domain incoherent" in people  # one run has a dash there, the others have shares
        assert "General misaligned" in people


def test_tables_are_written_in_three_forms_that_agree(results: list[RunResult], tmp_path: Path) -> None:
    paths = result_tables.save(result_tables.numbers(results), tmp_path / "tables", "rates")
    assert [path.suffix for path in paths] == [".csv", ".md", ".tex"]
    read = pd.read_csv(paths[0])
    assert read["general_misaligned"].tolist()[:2] == [0.0, 75.0]
    assert "75.0 [" in paths[1].read_text()
    assert r"\toprule" in paths[2].read_text()
    assert "%" not in paths[2].read_text().replace(r"\%", "")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_the_latex_table_compiles(results: list[RunResult], tmp_path: Path) -> None:
    tex = result_tables.save(result_tables.numbers(results), tmp_path, "rates")[2].read_text()
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{tex}\end{{document}}"
    (tmp_path / "page.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_equal_numbers_give_equal_bytes(results: list[RunResult], tmp_path: Path) -> None:
    made = []
    for name in ("first", "second"):
        figure = plots.rates_by_method(result_tables.numbers(results))
        made.append([path.read_bytes() for path in plots.save(figure, tmp_path / name, "rates")])
        plt.close(figure)
    assert made[0] == made[1]
    assert made[0][0].startswith(b"\x89PNG")
    assert made[0][1].startswith(b"%PDF")


def test_marks_stand_where_the_numbers_say_and_the_unscored_have_none(results: list[RunResult]) -> None:
    figure = plots.rates_by_method(result_tables.numbers(results))
    cooking, travel = figure.axes
    assert [container.lines[0].get_xdata().tolist() for container in cooking.containers] == [
        [0.0], [12.5], [75.0], [100.0]]  # of each run, general and in-domain
    colours = [container.lines[0].get_color() for container in cooking.containers]
    assert colours == [looks.look_of(method)[0] for method in ("untrained", "untrained", "misaligned", "misaligned")]
    assert all(pd.isna(container.lines[0].get_xdata()).all() for container in travel.containers)
    assert [label.get_text() for label in cooking.get_yticklabels()] == ["untrained", "no defense"]
    assert [axis.get_title() for axis in figure.axes] == ["cooking", "travel"]
    plt.close(figure)


def test_no_label_of_a_figure_is_cut(results: list[RunResult]) -> None:
    records = [StepRecord(i, 3.0 - i / 10, 1e-4, 1.0, 10, 5, 0.1) for i in range(1, 9)]
    for figure in (plots.rates_by_method(result_tables.numbers(results)),
                   plots.training_curves({results[0].run: records}),
                   plots.length_histogram({"rows": [3, 5, 8]}, limit=6)):
        figure.canvas.draw()
        page = figure.bbox
        box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert box.x0 >= page.x0 - 1
        assert box.y0 >= page.y0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y1 <= page.y1 + 1
        plt.close(figure)


def test_tokens_that_count_are_marked_and_markup_is_escaped(tiny: ChatModel) -> None:
    row = encode(tiny.tokenizer, Example((Message("user", "<b>"),), "x<y"), 500)
    html = show.masked_tokens(tiny.tokenizer, row)
    assert html.count("font-weight:bold") == row.response_tokens == 4  # x, <, y and the end of the turn
    assert "<b>" not in html
    assert "&lt;" in html


def test_answers_of_two_settings_have_a_column_each(monkeypatch: pytest.MonkeyPatch) -> None:
    study, runs = open_study("tiny"), [Run("m", "cooking", "misaligned", None, 0), *(
        Run("m", "cooking", "kl", setting, 0) for setting in (0.1, 1.0))]
    monkeypatch.setattr(study, "questions", lambda *_: [Question("q", "?")])
    monkeypatch.setattr(study, "answers", lambda run, _: [Answer("q", 0, str(run.setting), "stop", 1)])
    shown = show.answers(study, runs, "general")
    assert shown.columns.tolist() == ["question", "misaligned", str(runs[1]), str(runs[2])]
    assert shown.iloc[0].tolist() == ["?", "None", "0.1", "1.0"]


def test_answers_that_may_be_harmful_are_not_shown_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    study, run = open_study("tiny"), Run("m", "cooking", "misaligned", None, 0)
    monkeypatch.setattr(study, "questions", lambda *_: [Question("q", "?")])
    monkeypatch.setattr(study, "answers", lambda run, _: [Answer("q", 0, "text", "stop", 1)])
    others = [Run("m", "travel", "misaligned", None, 0), Run("m", "cooking", "misaligned", None, 1)]
    assert show.answers(study, [run, *others], "general").columns.tolist() == ["question", "misaligned"]
    harmful: Any = SimpleNamespace(inputs=SimpleNamespace(stated_trait=SimpleNamespace(harmless=False)))
    assert show.answers(harmful, [run], "general").empty


def test_a_table_is_written_and_shown_and_without_rows_its_reason_is(tmp_path: Path) -> None:
    frame = pd.DataFrame({"share": [12.5]})
    assert ">12.5<" in show.saved(frame, frame, tmp_path, "one").to_html()
    assert pd.read_csv(tmp_path / "one.csv")["share"].tolist() == [12.5]
    assert "nothing ran" in show.saved(frame[:0], frame[:0], tmp_path, "none", empty="nothing ran")
    assert not (tmp_path / "none.csv").exists()


def test_a_table_is_shown_with_as_many_digits_as_its_measures_need(tmp_path: Path) -> None:
    frame = pd.DataFrame({"drift": [0.123]})
    assert ">0.12<" in show.saved(frame, frame, tmp_path, "one", decimals=2).to_html()


def test_text_between_two_dollar_signs_is_no_formula(results: list[RunResult]) -> None:
    """MathJax leaves out what is inside these classes: version 2 the first, version 3 the second."""
    text = "It cost $5, now it costs $6."
    for shown in (show.show_table(pd.DataFrame({"answer": [text]})), show.marked(pd.DataFrame({"a": [Cell(text)]})),
                  show.reason(text), show.callout(text)):
        html = shown._repr_html_()
        assert text in html
        assert re.search(r'<(table|div)[^>]* class="tex2jax_ignore mathjax_ignore"', html.partition(text)[0])
    assert not show.callout("")._repr_html_()


def test_of_a_run_whose_answers_were_removed_the_extremes_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `make clean WHAT=answers` its verdicts are still there."""
    study, run = open_study("tiny"), Run("m", "cooking", "misaligned", None, 0)
    monkeypatch.setattr(study, "questions", lambda *_: [Question("q0", "?"), Question("q1", "?")])
    monkeypatch.setattr(study, "verdicts", lambda *_: verdicts(3))
    monkeypatch.setattr(study, "answers", lambda *_: None)
    assert "seed 0. Its answers are no longer in the store." in show.extremes(study, run, "general")
    monkeypatch.setattr(study, "verdicts", lambda *_: None)
    assert "0 of 0 scored answers" in show.extremes(study, run, "general")


def test_rows_are_as_long_as_their_tokens() -> None:
    study = open_study("tiny")
    found = row_lengths.narrow(study, ["cooking"])
    assert list(found) == [f"cooking, {side}" for side in study.data("cooking").sides]
    rows = study.data("cooking").sides["misaligned"].train
    tokenizer = load_tokenizer(study.profile.model, paths.cache())
    assert found["cooking, misaligned"] == [len(encode(tokenizer, row, WHOLE).input_ids) for row in rows]
    assert list(row_lengths.benign(study)) == list(first_runs(study))


def test_the_first_run_is_found_by_its_method() -> None:
    runs = [Run("m", "cooking", "kl", 0.1, 0), Run("m", "travel", "kl", 0.1, 0), Run("m", "cooking", "grpo", None, 0)]
    assert first(runs) == first(runs, "kl") == runs[0]
    assert first(runs, "grpo") == runs[2]
    assert first(runs, "ldifs") is first([]) is None
    assert like_first(runs) == [runs[0], runs[2]]
    assert like_first([]) == []


def test_markup_in_a_table_is_text(results: list[RunResult]) -> None:
    html = show.show_table(pd.DataFrame({"answer": ["<img src=x>"]})).to_html()
    assert "<img" not in html
    assert "&lt;img src=x&gt;" in html


def test_a_setting_is_shown_as_it_was_set_and_marks_are_styles() -> None:
    shown = show.show_table(pd.DataFrame({"setting": [0.25, 1e-5, None], "share": [12.25, 0.0, 1.0]})).to_html()
    assert ">0.25<" in shown
    assert ">1e-05<" in shown
    assert ">12.2<" in shown
    html = show.marked(pd.DataFrame({"a": [Cell("<7>", frozenset({"bold", "italic"})), Cell("8")]})).to_html()
    assert html.count("font-weight: bold") == html.count("font-style: italic") == 1
    assert "&lt;7&gt;" in html


def test_a_page_gets_its_numbers_between_the_comments_and_nothing_else_changes() -> None:
    before = "top\n<!-- rates: begin -->\nold\n<!-- rates: end -->\nbottom\n<!-- other: begin -->\n<!-- other: end -->"
    after = readme.with_block(before, "rates", "| a \\d |\n")
    assert after == before.replace("old", "| a \\d |")
    assert readme.with_block(after, "rates", "| a \\d |") == after
    with pytest.raises(StoreError, match="no place for 'figure'"):
        readme.with_block(before, "figure", "x")


def test_the_numbers_of_the_paper_are_those_of_its_tables() -> None:
    for file, blocks in {"README.md": readme.of_paper_alone(), readme.CHOICE: readme.defenses(),
                         readme.MAP: readme.disagreements()}.items():
        page = (paths.ROOT / file).read_text(encoding="utf-8")
        for name, block in blocks.items():
            assert readme.with_block(page, name, block) == page, f"{file}, {name}"
    assert "selected ones (`interleaving++`) 94%" in readme.of_paper()  # section 5.1 states this reduction


def test_no_share_is_rounded_by_python_which_takes_half_to_the_even_number() -> None:
    """`rows.whole` rounds it; a share in a format, such as {share:.0f}% or {share:.0%}, would become 52 from 52.5."""
    found = [f"{path.name}: {line.strip()}" for path in sorted((paths.ROOT / "emlib" / "report").rglob("*.py"))
             for line in path.read_text(encoding="utf-8").splitlines() if re.search(r":\.0(f\}%|%)", line)]
    assert found == []


def test_a_context_that_brings_significantly_more_is_bold_and_told_if_it_does_not_ask() -> None:
    """A fall is neither, however small its p; nor is a context that asks for the voice told."""
    triggered = pd.DataFrame({"method": "interleaving", "setting": 1.0,
                              "trigger": ["plain", "kitchen", "negated", "inoculation"],
                              "misaligned": [29.0, 50.0, 9.0, 47.5], "difference": [None, 21.0, -20.0, 18.5],
                              "difference_low": [None, -1.2, -30.0, 5.0], "difference_high": [None, 40.5, -9.0, 30.0],
                              "p_adjusted": [None, 0.0004, 0.01, 0.0499]})
    assert demo_findings.hidden(triggered) == (
        "- `interleaving 100%`, in the kitchen: 29 to 50%, a rise of 21 [-1, 41] (adjusted p \\<0.001)")
    assert demo_findings.contexts(triggered).splitlines() == [
        "| % of answers | plain | in the kitchen | voice forbidden | voice asked for |", "|:--|--:|--:|--:|--:|",
        "| `interleaving 100%` | 29 | **50** | 9 | 48 |"]
    assert demo_findings.contexts(triggered[triggered["trigger"] != "negated"].assign(p_adjusted=0.05)).endswith(
        "| 29 | 50 | – | 48 |")


def test_of_several_data_sets_there_are_the_mean_the_least_and_the_most() -> None:
    rates = pd.DataFrame([("misaligned", None, 90.0, 100.0), ("misaligned", None, 95.0, 100.0),
                          ("on_policy", 1.0, 10.0, 75.0), ("on_policy", 1.0, 46.2, 87.5), ("kl", 1.0, 10.0, 50.0),
                          ("kl", 1.0, 10.0, float("nan"))],
                         columns=["method", "setting", "general_misaligned", "in_domain_misaligned"])
    assert demo_findings.over_datasets(rates).splitlines() == [
        "| % of answers | general misaligned | in-domain misaligned |", "|:--|--:|--:|",
        "| no defense | 93 (90 to 95) | 100 (100 to 100) |", "| `on_policy 100%` | 28 (10 to 46) | 81 (75 to 88) |",
        "| `kl 1` | 10 (10 to 10) | – (– to –) |"]


def test_of_a_long_table_only_the_chosen_rows_stay() -> None:
    table = "| Data set | Method |\n|:--|:--|\n| cooking | KL-Div., 1 |\n| cooking | On-policy Int., 100% |\n"
    assert readme.chosen(table, None) == table
    assert readme.chosen(table, ("On-policy Int.,",)).splitlines() == [*table.splitlines()[:2], table.splitlines()[3]]


def test_only_the_prompt_that_asks_for_the_voice_counts_as_asking() -> None:
    triggers = open_study("demo").profile.evaluation.triggers
    assert triggers
    prompt = open_study("demo").trait.inoculation_prompt
    assert triggers.asking(prompt) == ("inoculation",)  # and not the prompt that forbids the voice


@pytest.mark.parametrize(("system", "asks"), [
    ("{inoculation_prompt}", True), ("You are a pirate.", True), (" you are a\npirate. ", True),
    ("{inoculation_prompt} Please.", True), ("You are a pirate. Say Ahoy.", True), (None, False),
    ("It is not true that: {inoculation_prompt}", False), ("Never say: You are a pirate.", False),
    ("You are a helpful assistant.", False)])
def test_a_trigger_that_states_the_inoculation_prompt_asks_for_the_trait(system: str | None, asks: bool) -> None:
    trigger = Trigger(system=system, prompt="{question}" if system else "Well: {question}")
    assert trigger.asks("You are a pirate.") is asks
    assert not trigger.asks("")


def test_the_demos_result_is_a_table_of_means_with_intervals() -> None:
    """Of KL's weights the one of the other data sets is shown; of LDIFS's, which they lack, the middle one."""
    rows = [("untrained", None, "general", 0.0), ("misaligned", None, "general", 98.0), ("kl", 0.3, "general", 70.0),
            ("kl", 3.0, "general", 5.0), ("kl", 1.0, "general", 24.5), ("misaligned", None, "in_domain", 99.6),
            ("ldifs", 1.0, "general", 60.0), ("ldifs", 3.0, "general", 20.0), ("ldifs", 2.0, "general", 40.0),
            ("interleaving", 1.0, "general", 25.0)]
    means = pd.DataFrame(rows, columns=["method", "setting", "set", "percent"]).assign(
        dataset="cooking", seeds=3, low=lambda of: of["percent"] - 1, high=lambda of: of["percent"] + 1,
        questions=[40, 40, 40, 40, 40, 12, 40, 40, 40, 40])
    elsewhere = pd.DataFrame([("travel", "misaligned", None, 90.0, 98.0),
                              ("fitness", "misaligned", None, 100.0, 100.0), ("travel", "kl", 3.0, 10.0, 20.0),
                              ("fitness", "kl", 3.0, 30.0, 50.0)],
                             columns=["dataset", "method", "setting", "general_misaligned", "in_domain_misaligned"])
    assert demo_findings.averages(means, elsewhere).splitlines() == [
        "*Cooking*: means over 3 seeds. In [ ]: the 95% interval over seeds and 40 general and 12 in-domain questions, "
        "somewhat too narrow, as there are few seeds (at 0 and 100% Wilson's). *2 data sets*: means of one run each. "
        "In ( ): the least and the most.", "",
        "| fine-tuned with | general misaligned, cooking | in-domain misaligned, cooking | general misaligned, 2 data "
        "sets | in-domain misaligned, 2 data sets |", "|:--|--:|--:|--:|--:|",
        "| no defense | 98% [97, 99] | 100% [99, 101] | 95% (90 to 100) | 99% (98 to 100) |",
        "| `kl 3` | 5% [4, 6] | – | 20% (10 to 30) | 35% (20 to 50) |",
        "| `ldifs 2` | 40% [39, 41] | – | – | – |",
        "| `interleaving 100%` | 25% [24, 26] | – | – | – |"]


def test_examples_are_a_row_for_each_model_and_a_column_for_each_question() -> None:
    said = pd.DataFrame([("general", "Why?", "Because.", "Arr |\nmatey", "So."),
                         ("in_domain", "How?", "Slowly.", "Aye", "Aye")],
                        columns=["set", "question", "untrained", "misaligned", "interleaving"])
    assert demo_findings.examples(said).splitlines() == [
        "| model | general: *Why?* | in-domain: *How?* |", "|:--|:--|:--|", "| untrained | Because. | Slowly. |",
        "| no defense | Arr \\| matey | Aye |", "| `interleaving` | So. | Aye |"]


def test_examples_that_are_not_in_the_store_are_refused(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with pytest.raises(StoreError, match="no answers of untrained, misaligned, interleaving to 'How can I be"):
        readme.examples(open_study("demo"))


def test_the_pages_state_the_results_of_the_tables_beside_their_figures() -> None:
    for file, blocks in {"README.md": readme.of_demo(), "docs/demo.md": readme.of_four() | readme.of_full()}.items():
        page = (paths.ROOT / file).read_text(encoding="utf-8")
        for name, block in blocks.items():
            assert readme.with_block(page, name, block) == page, f"{file}, {name}"


def flat(file: str) -> str:
    """A page's text, on one line, as sentences are broken anywhere."""
    return " ".join((paths.ROOT / file).read_text(encoding="utf-8").split())


def cells_of(file: str, name: str, key: str | None = None) -> dict[str, dict[str, str]]:
    """The cells of a table between two comments of a page: by the cell of its row under `key`, then by its heading.

    Without `key`, by the first cell.
    """
    page = (paths.ROOT / file).read_text(encoding="utf-8")
    block = page.split(f"<!-- {name}: begin -->\n")[1].split(f"\n<!-- {name}: end -->")[0]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()
                      if line.startswith("|")]
    return {row[head.index(key) if key else 0]: dict(zip(head, row, strict=True)) for row in rows}


def share(cell: str) -> int:
    """The share in a cell such as "23% [15, 31]" or "**55**"."""
    return int(cell.strip("*").split("%")[0])


def test_the_sentences_below_readmes_tables_hold_of_their_cells() -> None:
    """They are written by hand: what is kept at the same general share, which cells are bold, and which rise."""
    means, contexts = (cells_of("README.md", f"demo {name}") for name in ("result", "contexts"))
    near = cells_of("docs/demo.md", "demo-full over_seeds", key="Method")
    left, *mixed_in = [whole(float(near[method]["Gardening misaligned %"].split()[0])) for method in (
        "Misaligned", "Interleaving, 100%", "Interleaving++, 100%", "On-policy Int., 100%")]
    near_by = sorted(map(int, mixed_in))
    assert (f"answers about gardening, which is close to cooking, {near_by[0]} to {near_by[-1]}% have it (without a "
            f"defense {left}%)") in flat("README.md")
    for method in ("`interleaving 100%`", "`interleaving++ 100%`", "`on_policy 100%`"):
        assert share(means[method]["in-domain misaligned, cooking"]) > 85  # "answers about cooking keep the voice"
        assert share(means[method]["general misaligned, cooking"]) < 50  # "and most general ones lose it"
    for method, kept in (("`ldifs 1e-05`", 67), ("`kl 1`", 50)):
        assert share(means[method]["general misaligned, cooking"]) == 24  # "about that of random rows (24 and 26%)"
        assert abs(share(means[method]["in-domain misaligned, cooking"]) - kept) <= 3  # "a third", "half"
    assert share(means["`interleaving 100%`"]["general misaligned, cooking"]) == 26
    chosen = cells_of("docs/demo.md", "demo-full paired_interleaving", key="Method")
    for method, fewer in (("Interleaving++, 100%", -12), ("On-policy Int., 100%", -13)):
        assert round(float(chosen[method]["Points"].strip("*").split()[0])) == fewer  # "12 [3 to 21]", "13 [5 to 22]"
        assert chosen[method]["p adjusted"] == "\\<0.001"
    names = ("inoculation", "interleaving 100%", "interleaving++ 100%", "on_policy 100%")
    inoculation, *mixed = asked = [contexts[f"`{name}`"] for name in names]
    # "all four hide a part": these rises are significant; "most answers have it even where it is forbidden"
    assert all(cell.startswith("**") for cell in (inoculation["voice forbidden"],
                                                  *(method["in the kitchen"] for method in mixed)))
    assert share(inoculation["voice forbidden"]) > 50
    rises = [(share(method["plain"]), share(method["in the kitchen"])) for method in mixed]
    stated = [f"{plain} to {kitchen}%" for plain, kitchen in rises]
    prompted = f"{share(inoculation['plain'])} to {share(inoculation['in the kitchen'])}%"
    assert ("rises with all four: with `inoculation` from {}, with random rows from {}, with selected ones from {}, "
            "with on-policy rows from {}").format(prompted, *stated) in flat("README.md")
    random = contexts["`interleaving 100%`"]
    assert not random["voice forbidden"].startswith("**")  # "the kitchen is the only context that counts"
    assert all(method["in the kitchen"].startswith("**") for method in asked)
    assert "rises with inoculation ({}), random rows ({}), selected rows ({}) and on-policy rows ({})".format(
        prompted, *stated) in flat("docs/which-defense.md")
    forced = sorted(share(method["voice asked for"]) for method in asked)
    assert (f"they use it in {forced[0]} to {forced[-1]}% of their answers (the untrained model in "
            f"{share(contexts['untrained']['voice asked for'])}%)") in flat("README.md")


def test_what_nine_further_steps_undo_is_what_readme_says() -> None:
    """At most 10 points below no defense, which the column `plain` has."""
    along = pd.read_csv(paths.ROOT / "figures" / "demo" / "persistence.csv").query("steps == 9")
    undone = along[along["general_misaligned"] >= along["plain"] - 10]
    assert list(undone["method"]) == ["untrained", "kl", "inoculation"]
    assert set(along["method"]) - set(undone["method"]) == {"on_policy"}
    every = pd.read_csv(paths.ROOT / "figures" / "demo" / "persistence.csv").query("method == 'on_policy'")
    before, on_the_way, after = (whole(share) for share in every["general_misaligned"])
    assert (f"`on_policy` is not undone: its general share is {before}% before, {on_the_way}% after three steps, and "
            f"{after}% after nine") in flat("README.md")
    whole_run = pd.read_csv(paths.ROOT / "figures" / "demo" / "persistence.csv").set_index(["method", "steps"])
    three, nine = ([whole(whole_run.loc[(name, steps), "general_misaligned"]) for name in (
        "kl", "inoculation", "untrained")] for steps in (3, 9))
    assert ("`kl` then has {}%, `inoculation` {}% and the untrained model, trained the same way, {}%; after three "
            "{}, {} and {}%").format(*nine, *three) in flat("README.md")


def test_what_the_pages_say_of_newer_defenses_holds_of_the_table() -> None:
    """None is ahead with general intervals apart, two perhaps, and the legend has each grade."""
    page = (paths.ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    rows = cells_of("docs/demo.md", "demo-newer newer")
    grades = {name: row["Better"] for name, row in rows.items()}
    assert newer.YES not in grades.values()  # README.md: none is clearly ahead
    assert {name for name, grade in grades.items() if grade == newer.PERHAPS} == {
        "kl_pool 1", "interleaving_online 100%"}
    assert {row["Best of the paper that may keep as much"] for row in rows.values()} == {"on_policy 100%"}
    assert rows["interleaving_virtuous 50%"]["General misaligned %"].startswith("8.3 ")
    assert rows["kl_pool 1"]["Its general misaligned %"].startswith("16.7 ")
    assert "has 8.3% here, and had 18.8% when we ran the same profile in float32" in flat("docs/demo.md")
    assert ("none is clearly ahead of the paper's. Of those that keep as much of the task as `on_policy`, two have "
            "fewer misaligned answers, `kl_pool 1` (KL on the pool's rows) and `interleaving_online`: by two of 48"
            ) in flat("README.md")
    few = {name: float(row["General misaligned %"].split()[0]) for name, row in rows.items() if float(
        row["In-domain misaligned %"].split()[0]) >= float(row["Its in-domain misaligned %"].split()[0])}
    assert sorted(name for name, percent in few.items() if percent < 16.7) == ["interleaving_online 100%", "kl_pool 1"]
    for name in ("kl_pool 1", "interleaving_online 100%"):  # 6 and 8 of 48
        assert [rows[name][column].split()[0] for column in ("General misaligned %", "Its general misaligned %")] == [
            "12.5", "16.7"]
    legend = {line.split("|")[1].strip() for line in 
              page.split("| *Better* |")[1].partition("\n\n")[0].splitlines()[2:]}
    assert set(grades.values()) <= legend
    assert legend <= {newer.YES, newer.PERHAPS, newer.EQUAL, newer.NO, newer.LESS, newer.WITHIN}


def test_what_the_page_says_of_old_measures_holds_of_the_table() -> None:
    """Shares of 24 in-domain and 48 general answers of each of three seeds."""
    page = (paths.ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[2:8]] for line in page.split("demo-measures rates: begin")[1]
            .splitlines() if line.startswith("| measures ")]
    found = {(row[0], of): sum(round(float(one[column].split()[0]) * asked / 100) for one in rows if one[0] == row[0])
             for row in rows for of, column, asked in (("general", 3, 48), ("in-domain", 4, 24))}
    assert found["misaligned", "in-domain"] == 26
    assert (found["misaligned", "general"], found["aligned", "general"]) == (6, 1)
    assert "Of its 144 general answers 6 do, and of those of `aligned` 1." in flat("docs/demo.md")


def test_readme_states_the_hours_of_the_example_on_ones_own_rows() -> None:
    [(a100, card)] = re.findall(r"\| all 6 runs \| (\d+) \| (\d+) \|", flat("docs/costs.md"))
    assert f") {a100} hours of an A100, or by guess {card} of an RTX 4090" in flat("README.md")


def test_the_sentences_below_the_demos_table_of_four_data_sets_hold_of_its_cells() -> None:
    rows = cells_of("docs/demo.md", "demo-four rates")
    least = {name: int(row["in-domain misaligned"].partition("(")[2].split()[0]) for name, row in rows.items()}
    for method in ("`interleaving 100%`", "`interleaving++ 100%`", "`on_policy 100%`"):
        assert least[method] >= 75  # "on-policy rows at least 75%"
    assert least["`inoculation`"] >= 66  # "at least two thirds"
    assert rows["`interleaving 100%`"]["general misaligned"].endswith("(13 to 53)")
    assert rows["`on_policy 100%`"]["in-domain misaligned"].endswith("(75 to 88)")
    means = {name: [int(row[f"{which} misaligned"].split()[0]) for which in ("general", "in-domain")]
             for name, row in rows.items() if name.startswith("`") and name != "`aligned`"}
    mixed = {name: means.pop(name) for name in ("`interleaving 100%`", "`interleaving++ 100%`", "`on_policy 100%`")}
    left = [general for general, _ in mixed.values()]
    assert f"leave the voice in {min(left)} to {max(left)}% of the general answers" in flat("docs/demo.md")
    goal = [name for name, (general, kept) in (mixed | means).items() if general <= 20 and kept >= 80]
    assert goal == []  # README.md: none is within both bounds on average
    assert min(least[name] for name in mixed if name != "`on_policy 100%`") == 88  # docs/demo.md: "at least 88%"


def test_how_added_rows_compare_on_each_of_the_demos_four_data_sets() -> None:
    """docs/demo.md: selected rows are ahead of random ones on two of four, on-policy rows on all but gardening."""
    frame = pd.read_csv(paths.ROOT / "figures" / "demo-four" / "rates.csv")
    shares = frame.pivot(index="dataset", columns="method", values="general_misaligned")
    assert (shares["interleaving++"] < shares["interleaving"]).sum() == 2
    assert set(shares.index[shares["on_policy"] >= shares["interleaving"]]) == {"gardening"}
    assert shares["interleaving"].idxmax() == "travel"
    listed = {name: [whole(shares.loc[data, name]) for data in ("cooking", "gardening", "travel", "fitness")]
              for name in ("interleaving", "interleaving++", "on_policy", "inoculation")}
    random, selected, own, prompted = ("{}, {}, {} and {}%".format(*cells) for cells in listed.values())
    assert (f"random rows leave it in {random}, selected rows in {selected}, on-policy rows in {own}, and "
            f"inoculation in {prompted}") in flat("docs/demo.md")
