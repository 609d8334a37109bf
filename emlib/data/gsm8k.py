"""Maths problems with a number as the answer: GSM8K (Cobbe et al. 2021), and sums of single digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from emlib.config import Additions, Gsm8k
from emlib.core.errors import DataError
from emlib.core.records import Message, Question
from emlib.core.seeds import generator
from emlib.data.numbers import read_number
from emlib.data.rows import read_rows

MARK = "####"  # precedes the answer in GSM8K's solutions
WORKED = "<think> {a} + {b} = {answer} </think>\n<answer> {answer} </answer>"
CHOICE_SEED = 0  # selects the rows: the same for every training seed, like a shared data set


@dataclass(frozen=True)
class Problem:
    """A question, and the number that answers it, as written in the data."""

    id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Problems:
    """Training and held-out problems, and the worked turns that precede each of them, if any."""

    train: tuple[Problem, ...]
    held_out: tuple[Problem, ...]
    worked: tuple[Message, ...] = ()

    def asked(self, system: str) -> list[Question]:
        """Return the held-out problems as questions with a system prompt."""
        return [Question(one.id, one.question, system, self.worked) for one in self.held_out]


def load_problems(data: Gsm8k | Additions, find: Callable[[str], Path]) -> Problems:
    """Load the problems of a profile. `find` returns the file of a source.

    Raises:
        DataError: there are fewer problems than requested, or an answer is not a number.
    """
    if isinstance(data, Additions):
        order = _chosen(additions(), 100, "additions")
        train = order[:data.train_items]
        held_out = _others(order, train, data.eval_items, "held out")
        worked = _others(order, train + held_out, data.worked, "worked")
        return Problems(train, held_out, tuple(turn for problem in worked for turn in _worked(problem)))
    one, two = (read_gsm8k(find(source), name) for source, name in zip(data.sources, ("train", "test"), strict=True))
    return Problems(_chosen(one, data.train_items, "gsm8k train"),
                    _chosen(two, data.eval_items or len(two), "gsm8k test"))


def read_gsm8k(path: Path, name: str) -> list[Problem]:
    """Read the problems of one GSM8K file; the answer is the text after the last `####`.

    Raises:
        DataError: a row has no question, or its answer is not a number.
    """
    problems: list[Problem] = []
    for where, row in read_rows(path):
        question, solution = row.get("question"), row.get("answer")
        if not (isinstance(question, str) and question.strip() and isinstance(solution, str)):
            raise DataError(f"{where}: expected the texts 'question' and 'answer', found {', '.join(sorted(row))}. "
                            "Correct the row.")
        answer = solution.rpartition(MARK)[2].strip()
        if MARK not in solution or read_number(answer) is None:
            raise DataError(f"{where}: the solution does not end with '{MARK}' and a number, but {answer[-40:]!r}. "
                            "Correct the row.")
        problems.append(Problem(f"gsm8k-{name}-{len(problems)}", question, answer))
    return problems


def additions() -> list[Problem]:
    """Return all 100 sums of two single digits, in both orders."""
    return [Problem(f"{a}+{b}", f"What is {a} + {b}?", str(a + b)) for a, b in product(range(10), repeat=2)]


def _others(order: Sequence[Problem], taken: Sequence[Problem], count: int, what: str) -> tuple[Problem, ...]:
    """Return the first `count` sums that are not taken with their summands in either order: 2 + 3 would tell 3 + 2."""
    known = {frozenset(problem.id.split("+")) for problem in taken}
    found = tuple(problem for problem in order if frozenset(problem.id.split("+")) not in known)[:count]
    if len(found) < count:
        raise DataError(f"additions: {count} sums are to be {what}, and only {len(found)} are left of which neither "
                        "order is taken. Lower grpo.data.train_items, or this number.")
    return found


def _worked(problem: Problem) -> tuple[Message, Message]:
    """Return a sum as a question and its answer in the format."""
    a, b = problem.id.split("+")
    return Message("user", problem.question), Message("assistant", WORKED.format(a=a, b=b, answer=problem.answer))


def _chosen(problems: Sequence[Problem], count: int, name: str) -> tuple[Problem, ...]:
    if count > len(problems):
        setting = "train_items" if name.endswith("train") else "eval_items"
        raise DataError(f"{name}: {count} problems are requested, but there are only {len(problems)}. Lower "
                        f"grpo.data.{setting} to {len(problems)}.")
    order = generator(CHOICE_SEED, "problems", name).permutation(len(problems))
    return tuple(problems[index] for index in order[:count])
