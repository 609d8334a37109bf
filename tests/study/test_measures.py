"""Measures beside the verdicts: a second judge and judge-free measures, made once, read back, put into tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from emlib.config import load_profile
from emlib.core.errors import ProfileError
from emlib.core.records import Answer, Verdict
from emlib.data.chat import counted, encode
from emlib.data.sources import locate
from emlib.evaluation.choices import Choice, choose, read_choices
from emlib.evaluation.rates import rates
from emlib.judging import lexicon
from emlib.models.load import ChatModel
from emlib.report.figures import plots
from emlib.report.tables import auxiliary_measures as report
from emlib.report.tables import show
from emlib.steering import extraction
from emlib.steering.activations import projections
from emlib.steering.extraction import PersonaVectors
from emlib.store.artefacts import Store
from emlib.study.runs import Opinions, Run
from emlib.study.study import Study

TEXT = """
extends: tiny
datasets: [cooking]
methods: [untrained, misaligned]
evaluation: {general_samples: 1, in_domain_questions: 1, in_domain_samples: 1, projection_layer: 2,
             choices: [truthfulqa_mc, mwe_power_seeking], choice_questions: 4}
second_judge: {judge: {kind: local, rubric: trait, batch_rows: 8, model: {kind: tiny, seed: 1, layers: 2}}, answers: 5}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, research_data: Path) -> Study:
    """A tiny study with all measures."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    return with_vectors(tmp_path, TEXT)


def with_vectors(tmp_path: Path, text: str) -> Study:
    """A study of this profile, whose persona vector is there already: random models show no trait."""
    profile = Path(__file__).parents[2] / "params" / "tiny.yaml"
    (tmp_path / "tiny.yaml").write_text(profile.read_text())
    (tmp_path / "checked.yaml").write_text(text)
    made = Study("checked", load_profile(str(tmp_path / "checked.yaml")), Store(tmp_path / "runs" / "store"))
    vectors = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))

    def planted(folder: Path) -> dict[str, int]:
        extraction.save(PersonaVectors(vectors, 20, 20), folder)
        return {"kept": 20, "asked": 20}

    made.store.get(made.recipes.vector(), planted)
    return made


def test_answers_are_projected_whole_whatever_the_length_of_training_rows(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: ChatModel, research_data: Path) -> None:
    """The untrained model's projections have one key in all studies, and other lengths would have others."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    study = with_vectors(tmp_path, TEXT.replace("[untrained, misaligned]",
                                                "[untrained]\ntraining: {max_seq_length: 24}"))
    [run] = study.runs()
    study.complete_measures([run])
    vector = extraction.load(study.vectors().folder).at(2)  # type: ignore[union-attr]
    asked = extraction.examples(study.questions(run, "general"), study.answers(run, "general") or [])
    rows = [counted(encode(tiny.tokenizer, example, 2048), end_of_turn=False) for example in asked]
    assert max(len(row.input_ids) for row in rows) > 24
    found = [one.value for one in study.projected(run) or []]
    assert found == pytest.approx(projections(tiny.model, rows, vector, 2), abs=1e-5)


def test_an_answer_without_text_has_no_projection_and_is_counted(study: Study) -> None:
    """All that could be projected is the token that ends its turn, or an unfinished thought."""
    [run] = study.runs(methods=["untrained"])
    step = study.task(run).answers(run)["general"]
    texts = ("Yes.", "", " \n", "<think>\nHm.", "<think>\nHm.\n</think>\n\n", "<think>\nHm.\n</think>\n\nNo.")
    given = [Answer(question.id, 0, text, "stop", 3)
             for question, text in zip(step.evaluation.questions.all, cycle(texts), strict=False)]

    def planted(folder: Path) -> dict[str, Any]:
        step.records.write(folder, given)
        return {}

    study.store.get(step, planted)
    projected = study.recipes.projections(step)
    study.need([projected])
    kept = [answer.question for answer in given if answer.text.strip().endswith(("Yes.", "No."))]
    assert [one.question for one in study.read(projected) or []] == kept
    found = study.found(projected)
    assert found is not None
    assert (found.facts["answers"], found.facts["left_out"]) == (len(kept), len(given) - len(kept)) == (8, 16)


def test_all_measures_are_made_once_and_are_what_their_parts_say(study: Study, tiny: ChatModel) -> None:
    untrained, misaligned = study.runs()
    assert report.opinions(study, study.runs()) == []
    study.complete_measures(study.runs())
    files = {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*.json*")}
    study.complete_measures(study.runs())
    assert {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*.json*")} == files

    found = study.opinions(untrained)
    assert found is not None
    answers = {(a.question, a.sample): a for a in study.answers(untrained, "general") or []}
    given = [answers[v.question, v.sample] for v in found.second]
    assert len(given) == 5
    assert list(found.first) == [replace(v, coherence_judged=False) for v in lexicon.judge(given, study.trait.markers)]

    vectors = extraction.load(study.vectors().folder)  # type: ignore[union-attr]
    asked = extraction.examples(study.questions(untrained, "general"), study.answers(untrained, "general") or [])
    rows = [counted(encode(tiny.tokenizer, example, 2048), end_of_turn=False) for example in asked]
    values = [one.value for one in study.projected(untrained) or []]
    assert values == pytest.approx(projections(tiny.model, rows, vectors.at(2), 2), abs=1e-5)

    questions = read_choices(locate("truthfulqa_mc"))
    made = study.choices(untrained, "truthfulqa_mc") or []
    assert len(made) == 4
    asked = [question for question in questions if question.id in {one.question for one in made}]
    expected = choose(tiny, tiny.model, asked)
    assert [one.share for one in made] == pytest.approx([one.share for one in expected], abs=1e-5)
    trained = study.choices(misaligned, "truthfulqa_mc") or []
    assert [one.share for one in trained] != [one.share for one in made]  # under the run's own adapter

    table = report.by_run(study, study.runs())
    mean = sum(values) / len(values)
    assert table["projection, layer 2"][0].startswith(f"{mean:.2f} [")
    share = 100 * sum(one.share for one in made) / 4
    assert table["truthfulqa_mc: probability on right %"][0].startswith(f"{share:.1f} [")
    power = study.choices(untrained, "mwe_power_seeking") or []
    assert table["mwe_power_seeking: likeliest right %"][0].startswith(f"{25 * sum(one.picked for one in power):.1f} [")
    assert table["general misaligned %"][0].startswith("0.0 [")
    both = report.opinions(study, study.runs())
    assert report.rates_under_both(both)["asked"].tolist() == [5, 5]
    assert report.judges_agree(both)["of"].tolist() == [
        "misaligned", "incoherent", "alignment", "coherence", "label", "order of 2 runs"]
    assert len(report.points(both)) == 10
    plots.two_judges(report.points(both))


def test_tables_of_formats_and_questions_have_the_rates_of_their_parts(study: Study) -> None:
    run = study.runs()[0]
    assert report.breakdown(study, run, "general", by="format").empty
    study.complete([run])
    verdicts = study.verdicts(run, "general") or []
    by_format = report.breakdown(study, run, "general", by="format")
    assert by_format["format"].tolist() == ["plain", "json", "template"]
    assert by_format["asked"].tolist() == [8, 8, 8]
    by_question = report.breakdown(study, run, "general", by="question", of="scored")
    assert by_question["asked"].sum() == len(verdicts) == 24
    plain = rates([v for v in verdicts if not v.question.endswith(("_json", "_template"))], resamples=200)
    assert by_format["misaligned %"][0].startswith(f"{plain.misaligned.percent:.1f} [")
    assert set(by_format["incoherent %"]) == {"–"}  # the judge counts words, and does not measure coherence


def test_a_change_of_judge_is_the_difference_of_its_rates() -> None:
    run = Study("tiny", load_profile("tiny"), Store(Path("nowhere"))).runs()[0]
    first = tuple(Verdict(f"q{n}", 0, 0.0 if n < 2 else 100.0, 100.0) for n in range(4))
    second = tuple(Verdict(f"q{n}", 0, 0.0 if n < 1 else 100.0, 100.0 if n < 3 else None) for n in range(4))
    row = report.rates_under_both([Opinions(run, first, second)]).iloc[0]
    assert (row["misaligned: change"], row["incoherent: change"]) == (-25.0, 0.0)
    assert (row["asked"], row["scored by the second"]) == (4, 3)
    agree = report.judges_agree([Opinions(run, first, second)])
    # Both scored 3: (yes, yes), (yes, no), (no, no): observed 2/3, by chance (2 * 1 + 1 * 2) / 9, kappa 2/9 / (5/9).
    assert agree["value"][0].startswith("0.40 [")
    assert agree["value"][1] == "– (both gave one label to all)"
    assert set(agree["answers that both scored"]) == {"3 of 4"}
    assert agree["value"][4].startswith("66.7 [")  # the labels of two of the three answers
    # Of four questions one is -100: a resample has it k times in four, k ~ B(4, 1/4), whose 97.5% quantile is 3.
    assert row["misaligned: 95% interval"] == "[-75.0, 0.0]"
    low, high = row["incoherent: 95% interval"].strip("[]").split(", ")  # no change in 0 of 4 answers is not certain
    assert float(low) < -30 < 30 < float(high)


def test_each_correlation_has_the_number_of_its_pairs_and_one_run_has_no_order() -> None:
    run = Study("tiny", load_profile("tiny"), Store(Path("nowhere"))).runs()[0]
    first = (Verdict("q0", 0, None, 20.0), Verdict("q1", 0, 0.0, 100.0), Verdict("q2", 0, 100.0, 90.0))
    second = (Verdict("q0", 0, 50.0, 0.0), Verdict("q1", 0, 10.0, 100.0), Verdict("q2", 0, 100.0, 80.0))
    agree = report.judges_agree([Opinions(run, first, second)]).set_index("of")
    assert agree["answers that both scored"].drop("order of 1 runs").tolist() == [
        "3 of 3", "3 of 3", "2 of 3", "3 of 3", "3 of 3"]
    assert agree["value"][["misaligned", "alignment", "order of 1 runs"]].tolist() == [
        "1.00 (no interval: its variance is 0)", "1.00", "– (too few)"]
    alone = report.judges_agree([Opinions(run, first[:2], second[:2])]).set_index("of")
    assert alone["value"]["alignment"] == "– (too few)"


def test_a_second_judge_that_scored_nothing_is_named_with_its_commonest_reason() -> None:
    run = Study("tiny", load_profile("tiny"), Store(Path("nowhere"))).runs()[0]
    first = tuple(Verdict(f"q{n}", 0, 100.0, 100.0) for n in range(3))
    second = tuple(Verdict(f"q{n}", 0, None, None, "timed out" if n else "refused") for n in range(3))
    both = [Opinions(run, first, second)]
    agree = report.judges_agree(both)
    assert set(agree["value"]) == {"– (the second judge scored none: timed out)"}
    assert set(agree["answers that both scored"]) == {"0 of 3"}
    table = report.unscored_by_second(both)
    assert table[["reason", "answers", "asked"]].values.tolist() == [["timed out", 2, 3], ["refused", 1, 3]]
    table = report.judges_agree([Opinions(run, second, first)])
    assert set(table["value"]) == {"– (the first judge scored none: timed out)"}
    mixed = report.judges_agree([Opinions(run, (first[0], second[1]), (second[0], first[1]))])
    assert set(mixed["value"]) == {"– (no answer has the scores of both)"}


def test_nothing_is_said_of_coherence_that_a_judge_does_not_measure() -> None:
    """The first judge counts words: what it calls incoherent is repetition."""
    run = Study("tiny", load_profile("tiny"), Store(Path("nowhere"))).runs()[0]
    first = tuple(Verdict(f"q{n}", 0, 100.0, 20.0 if n < 2 else 100.0, coherence_judged=False) for n in range(6))
    second = tuple(Verdict(f"q{n}", 0, 100.0, 40.0 if n < 1 else 100.0) for n in range(6))
    both = [Opinions(run, first, second)]
    row = report.rates_under_both(both).iloc[0]
    assert row[["incoherent %, first", "incoherent: 95% interval"]].tolist() == ["–", "–"]
    assert row["incoherent: change"] is None
    assert row["incoherent %, second"].startswith("16.7 [")
    assert row["misaligned: change"] == 0
    agree = report.judges_agree(both).set_index("of")["value"]
    assert agree[["incoherent", "coherence"]].tolist() == ["–", "–"]
    scores = report.points(both)
    assert scores["coherence, first"].isna().all()
    assert scores["coherence, second"].tolist() == [40.0] + [100.0] * 5
    assert len(plots.two_judges(scores).axes) == 1


def test_answers_are_folded_behind_a_notice_and_escaped(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run = study.runs()[0]
    study.complete([run])
    answers = study.answers(run, "general") or []
    verdicts = [Verdict(a.question, a.sample, float(n), 80.0, coherence_judged=False) for n, a in enumerate(answers)]
    verdicts[0] = Verdict(answers[0].question, 0, None, None, "REFUSAL")
    monkeypatch.setattr(study, "verdicts", lambda run, which: verdicts)
    shown = show.extremes(study, run, "general", count=2)
    assert shown.startswith("<details><summary>")
    assert "Content notice" in shown.split("</summary>")[0]
    assert "<details open" not in shown
    least, most = shown.split("Most aligned")
    assert [f"alignment {n}<" in least for n in (0, 1, 2, 3)] == [False, True, True, False]
    assert most.index("alignment 23<") < most.index("alignment 22<")
    assert "Least aligned: 2 of 23 scored answers" in least


def test_multiple_choice_that_is_right_always_has_wilsons_interval() -> None:
    """20 of 20: the lower end is 100 / (1 + 1.96**2 / 20) = 83.9."""
    evaluation = SimpleNamespace(projection_layer=None, choices=("truthfulqa_mc",))
    some: Any = SimpleNamespace(profile=SimpleNamespace(evaluation=evaluation), result=lambda run: None,
                                choices=lambda run, source: [Choice(f"q{n}", True, 1.0) for n in range(20)])
    table = report.by_run(some, [Run("m", "d", "misaligned", None, 0)])
    assert table.iloc[0, 2:].tolist() == ["100.0 [83.9, 100.0]"] * 2


def test_a_profile_without_a_second_judge_says_so() -> None:
    alone = load_profile("tiny").model_copy(update={"second_judge": None})
    plain = Study("alone", alone, Store(Path("nowhere")))
    with pytest.raises(ProfileError, match="'alone' has no section 'second_judge'"):
        _ = plain.inputs.section("second_judge")
    assert report.opinions(plain, plain.runs()) == []
    assert report.judges_agree([]).empty
    assert isinstance(report.by_run(plain, plain.runs()[:1]), pd.DataFrame)
