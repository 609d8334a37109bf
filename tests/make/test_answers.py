"""Answers that are sampled batch by batch: what is on disk is read, and only what is damaged is sampled again."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.core.records import Answer, Question
from emlib.generation.sample import Request
from emlib.make.answers import _batch_by_batch

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
