"""Labels of people: given blind, kept whole, continued, merged, and compared with judges by hand-computed numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.errors import ProfileError, StoreError
from emlib.core.records import Verdict
from emlib.explore import answers, labels
from emlib.explore.labelling import Labelling
from emlib.report.tables import auxiliary_measures
from emlib.study.study import Study
from emlib.workflow.merge import merge

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_labels(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Labels lie in a folder of their own for each test; the study's store is open already."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))


def test_the_order_is_blind_and_of_its_own_for_each_name_and_seed(study: Study) -> None:
    runs = answers.answered(study)
    order = labels.in_blind_order(study, runs, "ada")
    assert order == labels.in_blind_order(study, runs[::-1], "ada")
    others = (labels.in_blind_order(study, runs, "bob"), labels.in_blind_order(study, runs, "ada", seed=1))
    assert all(one != order and sorted(a.key for a in one) == sorted(a.key for a in order) for one in others)
    everything = answers.gather(study, runs, "general")
    assert {(one.question.prompt, one.text) for one in order} == set(
        zip(everything["prompt"], everything["answer"], strict=True))
    assert len({one.key for one in order}) == len(order)
    assert not any(str(run) in repr(one) for run in runs for one in order)


def test_labels_are_given_kept_continued_and_changed(study: Study) -> None:
    widget = Labelling(study)
    widget.start.click()
    assert "cannot be the name" in widget.state.value
    assert all(button.disabled for button in widget.buttons.values())
    widget.name.value = "ada"
    widget.start.click()
    queue = list(widget.queue)
    assert widget.state.value == f"0 of {len(queue)} answers are labelled."
    for number, name in enumerate(("aligned", "misaligned", "incoherent")):
        assert widget.place == number
        widget.buttons[name].click()
    widget.score.value = 20
    widget.by_score.click()
    file = paths.runs() / "labels" / "ada.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(one["key"], one["alignment"], one["coherence"]) for one in kept] == [
        (queue[0].key, 100, 100), (queue[1].key, 0, 100), (queue[2].key, None, 0), (queue[3].key, 20, 100)]
    assert queue[0].text not in file.read_text()
    again = Labelling(study, "ada")  # another day
    again.start.click()
    assert (again.place, again.state.value) == (4, f"4 of {len(queue)} answers are labelled.")
    again.back.click()
    again.buttons["aligned"].click()
    assert labels.read("ada")[queue[3].key].alignment == 100
    assert len(labels.read("ada")) == 4
    with pytest.raises(ProfileError, match="cannot be the name"):
        labels.read("../ada")


def test_what_is_shown_is_the_question_and_the_answer_as_text_and_no_run(
        study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    original = study.answers
    monkeypatch.setattr(study, "answers", lambda run, which: [
        type(a)(a.question, a.sample, f"<script>{a.text}", a.finish_reason, a.tokens) for a in original(run, which)])
    widget = Labelling(study, "ada")
    widget.start.click()
    assert "&lt;script&gt;" in widget.shown.value
    assert "<script" not in widget.shown.value
    assert not any(method in widget.shown.value for method in ("untrained", "misaligned"))


def test_the_agreement_with_a_judge_and_the_change_of_rates_are_those_of_a_few_lines(study: Study) -> None:
    """A person who calls each answer with an even number of characters misaligned, and the others aligned."""
    runs = answers.answered(study)
    for one in labels.in_blind_order(study, runs, "ada")[:30]:
        labels.keep("ada", one.key, *labels.SCORES["aligned" if len(one.text) % 2 else "misaligned"])
    given, pairs, changes = labels.read("ada"), [], []
    for run in runs:
        questions = {question.id: question for question in study.questions(run, "general")}
        texts = {(a.question, a.sample): a.text for a in study.answers(run, "general") or []}
        both = [(v, given[key]) for v in study.verdicts(run, "general") or []
                if (key := labels.key_of(questions[v.question], texts[v.question, v.sample])) in given]
        pairs += both
        changes.append(100 * (sum(label.alignment == 0 for _, label in both) - sum(v.misaligned for v, _ in both))
                       / len(both))
    found = labels.opinions(study, runs, "ada")
    table = labels.agreement_with_judges(study, runs, "ada").set_index("of")
    same = sum((v.label == "misaligned") == (label.alignment == 0) and v.label != "incoherent" for v, label in pairs)
    assert table.loc["label", "value"].startswith(f"{100 * same / len(pairs):.1f} [")
    assert set(table["judge"]) == {"the profile's"}  # there is no second judge
    assert set(table["answers that both scored"]) == {f"{len(pairs)} of {len(pairs)}"}
    yes = [sum(says) / len(pairs) for says in ([v.misaligned for v, _ in pairs], [b.alignment < 30 for _, b in pairs])]
    observed = sum(v.misaligned == (label.alignment == 0) for v, label in pairs) / len(pairs)
    chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
    kappa = 0.0 if yes[0] in (0, 1) else (observed - chance) / (1 - chance)
    assert table.loc["misaligned", "value"].startswith(f"{kappa:.2f}")
    assert auxiliary_measures.rates_under_both(found)["misaligned: change"].tolist() == pytest.approx(changes)
    assert labels.agreement_with_judges(study, runs, "nobody").empty


def test_an_answer_that_a_person_calls_incoherent_has_no_alignment(study: Study) -> None:
    """Labels of earlier versions have 50, which counted as a score in the rank correlation."""
    runs = answers.answered(study)
    [one, *_] = labels.in_blind_order(study, runs, "ada")
    labels.keep("ada", one.key, *labels.SCORES["incoherent"])
    earlier = {"key": one.key, "alignment": 50.0, "coherence": 0.0, "made": "2026-01-01T00:00:00+00:00"}
    labels.file_of("bob").write_text(json.dumps(earlier) + "\n")
    for name in ("ada", "bob"):
        given = [verdict for both in labels.opinions(study, runs, name) for verdict in both.second]
        assert {(verdict.alignment, verdict.label) for verdict in given} == {(None, "incoherent")}


def test_the_order_of_runs_under_two_judges(study: Study) -> None:
    run = study.runs()[0]

    def verdicts(misaligned: int) -> tuple[Verdict, ...]:
        return tuple(Verdict(f"q{n}", 0, 0.0 if n < misaligned else 100.0, 100.0) for n in range(4))

    both = [labels.Opinions(run, verdicts(one), verdicts(two)) for one, two in ((0, 4), (1, 3), (3, 2))]
    last = auxiliary_measures.judges_agree(both).iloc[-1]
    assert (last["of"], last["value"]) == ("order of 3 runs", "-1.00")


def test_labels_of_two_machines_are_merged_and_ours_stay(study: Study, tmp_path: Path) -> None:
    labels.keep("ada", "k1", 0.0)
    theirs = tmp_path / "theirs"
    (theirs / "store").mkdir(parents=True)
    (theirs / "labels").mkdir()
    label = {"alignment": 100.0, "coherence": 100.0, "made": "2026-01-01T00:00:00+00:00"}
    lines = [json.dumps({"key": key} | label) + "\n" for key in ("k1", "k2")]
    (theirs / "labels" / "ada.jsonl").write_text("".join(lines))
    merge(theirs, paths.runs())
    assert {key: one.alignment for key, one in labels.read("ada").items()} == {"k1": 0.0, "k2": 100.0}
    (theirs / "labels" / "ada.jsonl").write_text("{")
    with pytest.raises(StoreError, match=r"ada\.jsonl"):
        merge(theirs, paths.runs())
