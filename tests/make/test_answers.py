"""Answers that are sampled batch by batch: what is on disk is read, and only what is damaged is sampled again."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from emlib.config import load_profile
from emlib.core.background import SharedClock
from emlib.core.records import Answer, Question
from emlib.generation.sample import Request
from emlib.make.answers import _batch_by_batch
from emlib.store.artefacts import Store
from emlib.study.plan.speed import Taken, answered
from tests.store.made import Made

BATCHES = [[Request(Question(f"q{number}", "How?"), sample, (1, 2)) for sample in range(2)] for number in range(3)]


def test_a_damaged_batch_is_sampled_again_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled: list[str] = []

    def sample(batch: list[Request]) -> list[Answer]:
        sampled.append(batch[0].question.id)
        return [Answer(one.question.id, one.sample, f"text {one.sample}", "stop", 2) for one in batch]

    first = _batch_by_batch(BATCHES, sample, tmp_path, None)
    for place, damage in ((0, lambda data: data[:30]), (2, lambda data: data.replace(b"text 1", b"test 1"))):
        path = tmp_path / f"batch-{place:04d}.jsonl"
        path.write_bytes(damage(path.read_bytes()))
    assert _batch_by_batch(BATCHES, sample, tmp_path, None) == first
    assert sampled == ["q0", "q1", "q2", "q0", "q2"]
    assert capsys.readouterr().out.count("is damaged") == 2


def test_the_time_of_sets_that_are_sampled_at_once_is_divided_among_them() -> None:
    """One from 0 to 6 s, another from 2 to 7 s: 2 + 4/2 s and 4/2 + 1 s, which are 7 s together."""
    time = 0.0
    clock, one, other, third = SharedClock(lambda: time), ExitStack(), ExitStack(), ExitStack()
    first = one.enter_context(clock.share())
    time = 2.0
    second = other.enter_context(clock.share())
    time = 6.0
    one.close()
    time = 7.0
    other.close()
    assert (first(), second()) == (4.0, 3.0)
    time = 10.0  # nobody samples meanwhile
    alone = third.enter_context(clock.share())
    time = 11.5
    third.close()
    assert alone() == 1.5


def test_measured_sampling_is_the_shares_of_sets_sampled_in_one_session(tmp_path: Path) -> None:
    """Of earlier versions' sets, only those count that were sampled one after another."""
    model, store = load_profile("tiny").model, Store(tmp_path)
    whole = {"one_session": True, "tokens": 100}
    facts: list[dict[str, Any]] = [
        whole | {"sampling_seconds": 4.0, "backend": "vllm"}, whole | {"sampling_seconds": 3.0, "backend": "vllm"},
        whole | {"sampling_seconds": 9.0, "one_session": False}, whole | {"backend": "vllm"}]
    for number, each in enumerate(facts):
        store.get(Made("answers", {"number": number, "model": model.identity}), lambda _, each=each: each)
    assert answered(store, model) == Taken(2, 200, 7.0)
    store.get(Made("answers", {"number": 9, "model": model.identity}), lambda _: whole | {"backend": "transformers"})
    older = answered(store, model)
    assert (older.count, older.tokens) == (3, 300)
