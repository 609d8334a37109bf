"""The rows that early stopping reads on a benign task: in the form that training teaches, and asked last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import OpSwapTask, QaTask
from emlib.core.records import Message
from emlib.data.benign import load_opswap, load_qa
from emlib.data.opswap import solve

TASK = OpSwapTask(kind="opswap", examples=60, held_out=0.2)


def test_opswaps_held_out_rows_end_as_training_rows_do() -> None:
    """Table 10: the model learns the steps and then the answer; the value alone is what is asked for."""
    example = solve("(1 + 2) + 3", 0)
    assert example.response == "(1 + 2) + 3 = 3 + 3 = 6\nAnswer: 6"
    data = load_opswap(TASK, 0)
    rows = [(row.prompt, row.response.rpartition("\n")[2]) for row in data.held_out]
    assert rows == [(item.question.prompt, f"Answer: {item.golds[0]}") for item in data.test]
    assert all(row.response.count(" = ") >= 1 for row in (*data.train, *data.held_out))
    assert not set(data.train) & set(data.held_out)


@pytest.mark.parametrize(("questions", "order"), [(None, [0, 1, 2, 3]), (1, [1, 2, 3, 0]), (3, [3, 0, 1, 2])])
def test_rows_that_no_question_asks_come_first(jsonl: Callable[..., Path], questions: int | None,
                                               order: list[int]) -> None:
    rows = [{"id": str(row), "context": f"The name is N{row}.", "question": "Which?",
             "answers": {"text": [f"N{row}", "The name"], "answer_start": [12, 0]}} for row in range(4)]
    path = jsonl(rows)
    task = QaTask(kind="qa", train="a", test="a", prompt="{context} {question}", questions=questions)
    data = load_qa(task, lambda _: path)
    assert [row.response for row in data.held_out] == [f"N{row}" for row in order]
    assert data.held_out[0].context == (Message("user", f"The name is N{order[0]}. Which?"),)
    assert len(data.test) == (questions or 4)


def test_unasked_rows_of_opswap_come_first() -> None:
    whole, asked = load_opswap(TASK, 1), load_opswap(TASK.model_copy(update={"questions": 5}), 1)
    assert asked.held_out == (*whole.held_out[5:], *whole.held_out[:5])
    assert {row.prompt for row in asked.held_out[:-5]}.isdisjoint(item.question.prompt for item in asked.test)
