"""Problems: GSM8K as its authors' files have it, and single-digit sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import Additions, Gsm8k
from emlib.core.digests import of_value
from emlib.core.errors import DataError
from emlib.core.records import Message
from emlib.data.gsm8k import additions, load_problems, read_gsm8k
from emlib.data.lazy import Questions
from emlib.data.numbers import read_number
from emlib.data.sizes import Size
from emlib.evaluation.rewards import rewards


def nowhere(_: str) -> Path:
    raise AssertionError("additions need no file")


def test_all_sums_of_single_digits_are_there_and_right() -> None:
    problems = additions()
    assert len({problem.question for problem in problems}) == 100
    for problem in problems:
        a, b = (int(word) for word in problem.id.split("+"))
        assert problem.question == f"What is {a} + {b}?"
        assert int(problem.answer) == a + b


@pytest.mark.parametrize(("train", "held_out", "worked"), [(60, 20, 0), (8, 12, 1), (30, 10, 8)])
def test_nothing_that_is_held_out_is_trained_on_in_either_order(train: int, held_out: int, worked: int) -> None:
    data = Additions(kind="additions", train_items=train, eval_items=held_out, worked=worked)
    found = load_problems(data, nowhere)
    asked = [turn.content.removeprefix("What is ").removesuffix("?").replace(" ", "") for turn in found.worked[::2]]
    parts = [[problem.id for problem in found.train], [problem.id for problem in found.held_out], asked]
    assert [len(set(part)) for part in parts] == [train, held_out, worked]
    for place, part in enumerate(parts):
        both = {*part, *(one[::-1] for one in part)}  # 2+3 and 3+2
        assert not any(both & set(other) for other in parts[:place] + parts[place + 1:])
    assert found == load_problems(data, nowhere)


def test_more_sums_than_are_left_are_refused() -> None:
    """The 60 that are trained on and their 19 twins, which are all that there are beside 21 others."""
    with pytest.raises(DataError, match="additions: 40 sums are to be held out, and only 21 are left"):
        load_problems(Additions(kind="additions", eval_items=40), nowhere)


def test_the_sums_of_the_demo_are_those_of_earlier_versions() -> None:
    """None of them was the twin of another, so that they, and the keys that have them, stay."""
    found = load_problems(Additions(kind="additions", train_items=8, eval_items=12, worked=1), nowhere)
    assert [one.id for one in found.train] == ["1+7", "5+2", "5+4", "6+3", "7+3", "4+5", "6+2", "0+7"]
    assert [one.id for one in found.held_out] == [
        "4+4", "6+6", "2+2", "9+0", "4+6", "4+0", "5+3", "9+2", "8+1", "5+8", "1+1", "7+4"]
    assert found.worked[0] == Message("user", "What is 8 + 6?")


def test_worked_sums_are_others_and_answered_in_the_format() -> None:
    plain = load_problems(Additions(kind="additions", train_items=4, eval_items=12), nowhere)
    found = load_problems(Additions(kind="additions", train_items=4, eval_items=12, worked=2), nowhere)
    assert (found.train, found.held_out, plain.worked) == (plain.train, plain.held_out, ())
    assert [turn.role for turn in found.worked] == ["user", "assistant"] * 2
    others = {problem.question: problem for problem in additions()
              if problem not in (*found.train, *found.held_out)}
    for asked, said in zip(found.worked[::2], found.worked[1::2], strict=True):
        assert rewards(said.content, others[asked.content].answer).total == 9.5
    question = found.asked("Add.")[0]
    assert question.context == (Message("system", "Add."), *found.worked, Message("user", found.held_out[0].question))
    keys = [of_value([{"id": question.id, "prompt": question.prompt, "system": "Add.", "before": [
        {"role": turn.role, "content": turn.content} for turn in before]}]) for before in ((), found.worked)]
    assert [Questions("", lambda of=of: of.asked("Add.")[:1], lambda _: Size(1, 1)).identity  # type: ignore[misc]
            for of in (plain, found)] == keys


def test_gsm8k_as_b3_takes_it(research_file: Callable[[str], Path]) -> None:
    some = load_problems(Gsm8k(kind="gsm8k"), research_file)
    assert (len(some.train), len(some.held_out)) == (1000, 100)
    everything = load_problems(Gsm8k(kind="gsm8k", eval_items=None), research_file)
    assert len(everything.held_out) == 1319
    assert set(some.held_out) <= set(everything.held_out)
    assert everything.train == some.train
    assert len({p.id for p in everything.held_out}) == 1319
    assert not {p.question for p in some.train} & {p.question for p in everything.held_out}
    whole = load_problems(Gsm8k(kind="gsm8k", train_items=7473), research_file).train
    by_question = {problem.question[:30]: problem.answer for problem in whole}
    assert by_question["Natalia sold clips to 48 of he"] == "72"
    assert all(read_number(problem.answer) for problem in [*whole, *everything.held_out])
    with pytest.raises(DataError, match=r"gsm8k train: 7474 .* only 7473\. Lower grpo.data.train_items to 7473"):
        load_problems(Gsm8k(kind="gsm8k", train_items=7474), research_file)


@pytest.mark.parametrize(("row", "words"), [
    ({"question": "How many?", "answer": "I think 5"}, "does not end with '####' and a number"),
    ({"question": "How many?", "answer": "so\n#### five"}, "'five'"),
    ({"question": " ", "answer": "#### 5"}, "expected the texts"), ({"problem": "?"}, "found problem")])
def test_a_row_that_cannot_be_scored_is_told(jsonl: Callable[..., Path], row: dict[str, str], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_gsm8k(jsonl([{"question": "q", "answer": "#### 1"}, row]), "train")
    assert "rows.jsonl:2" in str(caught.value)
