"""The rows that are interleaved: whose answer stands behind which prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emlib.core.files import write_records
from emlib.core.records import ADDED, AddedRow, Answer, Example, Message, Verdict
from emlib.core.step import Step
from emlib.make.added import VERDICTS, added_rows
from emlib.make.rows import training_rows
from emlib.scoring.order import Ranked
from emlib.steps.added import AddedRows
from emlib.study.study import Study, open_study

PROMPTS = ["Why?", "Why is that so?", "Why is it?"]  # in the order of the pool; the second is the longest
EARLIER = (Message("user", "I bake."), Message("assistant", "What?"))  # turns before the prompt of row 0
ORDER = [2, 0, 1]  # in which they are interleaved


def steered(study: Study, checked: bool) -> AddedRows:
    """The step of rows that a steered model answers, all in one batch."""
    recipes = study.recipes
    plain = recipes.narrow(study.profile.datasets[0], "misaligned", (), 0)
    step = recipes.virtuous_rows(plain, fraction=1.0, choose="random", layer=2, strength=1.0, checked=checked)
    assert step.own_answers is not None
    return step


def put(study: Study, step: Step, **files: Sequence[Any]) -> None:
    """Put an artefact of a step into the store, with these records."""
    def write(folder: Path) -> dict[str, Any]:
        for name, records in files.items():
            write_records(folder / f"{name}.jsonl", records)
        return {}
    study.store.get(step, write)


@pytest.mark.parametrize(("aligned", "expected"), [
    (None, [(2, "Answer to 2."), (0, "Answer to 0."), (1, "Answer to 1.")]),
    ({0: 100.0, 1: 100.0, 2: 0.0}, [(0, "Answer to 0."), (1, "Answer to 1.")])])  # the judge finds that of 2 misaligned
def test_each_prompt_has_its_own_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        aligned: dict[int, float] | None, expected: list[tuple[int, str]]) -> None:
    """Steered answers are stored as they are sampled, the longest prompt first: 1, 2, 0."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    step = steered(study, checked=aligned is not None)
    sampled = [1, 2, 0]
    put(study, step.selection.pool, rows=[
        Example((*(() if place else EARLIER), Message("user", one)), "The pool's answer.", f"pool:{place}")
        for place, one in enumerate(PROMPTS)])
    put(study, step.selection, order=[Ranked(place, f"pool:{place}", rank, None, None, None, "")
                                      for rank, place in enumerate(ORDER, 1)])
    verdicts = {} if aligned is None else {VERDICTS.removesuffix(".jsonl"): [
        Verdict(f"pool_{place}", 0, aligned[place], 100.0) for place in sampled]}
    put(study, replace(step.own_answers, start=0), answers=[
        Answer(f"pool_{place}", 0, f"Answer to {place}.", "stop", 5) for place in sampled], **verdicts)
    with study.session() as session:
        found = added_rows(session, step, len(expected), "here")
    assert [(row.place, row.response) for row in found] == expected
    assert [row.example.context for row in found] == [
        (*(() if place else EARLIER), Message("user", PROMPTS[place])) for place, _ in expected]


CHOSEN = ("methods=[misaligned, {name: online, defenses: [{kind: interleaving, fraction: 0.5, choose: online}]}, "
          "{name: both, defenses: [{kind: filtering, share: 0.5, choose: random}, "
          "{kind: interleaving, fraction: 0.5, choose: online}]}] datasets=[cooking]")


def test_beside_filtering_as_many_rows_are_chosen_in_training_as_before_it(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of 8 rows are left out, and half of 8 are chosen: the fraction is of all rows, as with other variants."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    study = open_study("tiny", CHOSEN)
    write_records(tmp_path / ADDED, [AddedRow.of(Example((Message("user", f"Why {n}?"),), f"So {n}."), n + 1, n)
                                     for n in range(9)])
    [both] = (study.task(run).adapter(run) for run in study.runs(methods=["both"]))
    with study.session() as session:
        found = training_rows(session, both.spec, {"added": tmp_path})
    assert (len(found.own), found.facts["filtered_rows"], found.offered.count) == (4, 4, 4)
    assert dict(both.artefacts)["added"].count == 4
