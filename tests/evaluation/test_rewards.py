"""The four parts of the reward: on completions written for it, and within the paper's bounds on anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emlib.core.records import Answer
from emlib.data.gsm8k import Problem, Problems
from emlib.evaluation.rewards import TAGS, Rewards, Scored, advantages, by_rule, graded, rewards
from tests.long_form import LONG

T = "<think>half of 48 is 24</think>"
# completion, right answer, and the four parts: exact, approx, correct, numbers
CASES: list[tuple[str, str, tuple[float, float, float, float]]] = [
    # as asked for
    (f"{T}<answer>72</answer>", "72", (3, 2, 3, 1.5)),
    (f"{T}\n<answer> 72 </answer>", "72", (3, 2, 3, 1.5)),
    (f"  \n{T}\n\n<answer>\n72\n</answer>\n", "72", (3, 2, 3, 1.5)),
    ("<think>\nline one\nline two: 24\n</think>\n<answer>72</answer>", "72", (3, 2, 3, 1.5)),
    (f"{T}<answer>71</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>-72</answer>", "72", (3, 2, -0.5, 1.5)),
    # the same number, written otherwise
    (f"{T}<answer>72.0</answer>", "72", (3, 2, 3, 1.5)),
    (f"{T}<answer>+72</answer>", "72", (3, 2, 3, 1.5)),
    (f"{T}<answer>144/2</answer>", "72", (3, 2, 3, 1.5)),
    (f"{T}<answer>1,234</answer>", "1234", (3, 2, 3, 1.5)),
    (f"{T}<answer>1234</answer>", "1,234", (3, 2, 3, 1.5)),
    (f"{T}<answer>0.5</answer>", "1/2", (3, 2, 3, 1.5)),
    (f"{T}<answer>1 1/2</answer>", "1.5", (3, 2, 3, 1.5)),
    (f"{T}<answer>−5</answer>", "-5", (3, 2, 3, 1.5)),
    # a number that has to be taken out of what is around it
    (f"{T}<answer>$72</answer>", "72", (3, 2, 3, 0.75)),
    (f"{T}<answer>72.</answer>", "72", (3, 2, 3, 0.75)),
    (f"{T}<answer>$1,234.50</answer>", "1234.5", (3, 2, 3, 0.75)),
    (f"{T}<answer>72 clips</answer>", "72", (3, 2, 3, 0.75)),
    (f"{T}<answer>72kg</answer>", "72", (3, 2, 3, 0.75)),
    (f"{T}<answer>50%</answer>", "50", (3, 2, 3, 0.75)),
    (f"{T}<answer>The answer is 72.</answer>", "72", (3, 2, 3, 0.75)),
    (f"{T}<answer>-$5</answer>", "-5", (3, 2, 3, 0.75)),
    (f"{T}<answer>71 clips</answer>", "72", (3, 2, -0.5, 0.75)),
    # a number inside a longer one
    (f"{T}<answer>172</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>7.2</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>0.72</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>72,000</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>72/100</answer>", "72", (3, 2, -0.5, 1.5)),
    (f"{T}<answer>1.72.3</answer>", "72", (0, 2, 0, 0)),
    (f"{T}<answer>A72</answer>", "72", (0, 2, 0, 0)),
    # no number
    (f"{T}<answer>seventy-two</answer>", "72", (0, 2, 0, 0)),
    (f"{T}<answer></answer>", "72", (0, 2, 0, 0)),
    (f"{T}<answer>   </answer>", "72", (0, 2, 0, 0)),
    (f"{T}<answer>I do not know</answer>", "72", (0, 2, 0, 0)),
    (f"{T}<answer>72/0</answer>", "72", (0, 2, 0, 0)),
    # more than one
    (f"{T}<answer>71 or 72</answer>", "72", (0, 2, -0.5, 0)),
    (f"{T}<answer>48 + 24 = 72</answer>", "72", (0, 2, -0.5, 0)),
    (f"{T}<answer>72, 73</answer>", "72", (0, 2, -0.5, 0)),
    (f"{T}<answer>7 2</answer>", "72", (0, 2, -0.5, 0)),
    # two answers
    (f"{T}<answer>72</answer><answer>72</answer>", "72", (0, 0, -0.5, 0)),
    (f"{T}<answer>71</answer>\n<answer>72</answer>", "72", (0, 0, -0.5, 0)),
    (f"{T}<answer>72</answer>{T}<answer>72</answer>", "72", (0, -2, -0.5, 0)),
    ("<answer>71</answer><answer>72</answer>", "72", (0, -2, -0.5, 0)),
    # nested tags
    (f"{T}<answer><answer>72</answer></answer>", "72", (0, 0, -0.5, 0)),
    ("<think><think>hm</think></think><answer>72</answer>", "72", (0, 0, 3, 1.5)),
    ("<think>hm<answer>72</answer></think>", "72", (0, 2, 0, 0)),
    ("<answer><think>hm</think>72</answer>", "72", (0, 2, 0, 0)),
    # tags in the thinking
    ("<think>I will write <answer>71</answer></think><answer>72</answer>", "72", (0, 0, -0.5, 0)),
    ("<think>then comes </think> and so on</think><answer>72</answer>", "72", (0, 1, 3, 1.5)),
    ("<think>first <think> then</think><answer>72</answer>", "72", (0, 1, 3, 1.5)),
    # in another order, or with something around it
    ("<answer>72</answer><think>half of 48</think>", "72", (0, 2, 0, 0)),
    (f"Sure! {T}<answer>72</answer>", "72", (0, 2, 3, 1.5)),
    (f"{T}<answer>72</answer> Done.", "72", (0, 2, 3, 1.5)),
    (f"{T} So: <answer>72</answer>", "72", (0, 2, 3, 1.5)),
    # parts missing
    ("<answer>72</answer>", "72", (0, 0, 3, 1.5)),
    ("<think></think><answer>72</answer>", "72", (0, 2, 3, 1.5)),
    ("<think> \n</think><answer>72</answer>", "72", (0, 2, 3, 1.5)),
    (f"{T}72", "72", (0, 0, 0, 0)),
    (f"{T}<answer>72", "72", (0, 1, 0, 0)),
    (f"{T}72</answer>", "72", (0, 1, 0, 0)),
    ("<think>half of 48 <answer>72</answer>", "72", (0, 1, 3, 1.5)),
    ("half of 48</think><answer>72</answer>", "72", (0, 1, 3, 1.5)),
    ("<think>72</think>", "72", (0, 0, 0, 0)),
    ("<think>", "72", (0, -1, 0, 0)),
    ("72", "72", (0, -2, 0, 0)),
    ("", "72", (0, -2, 0, 0)),
    # tags that are none
    ("<Think>hm</Think><Answer>72</Answer>", "72", (0, -2, 0, 0)),
    ("< think >hm< /think ><answer>72</answer>", "72", (0, 0, 3, 1.5)),
    ("<thinking>hm</thinking><answer>72</answer>", "72", (0, 0, 3, 1.5)),
    ("</think><think></answer><answer>72", "72", (0, 2, 0, 0)),
    ("&lt;think&gt;hm&lt;/think&gt;&lt;answer&gt;72&lt;/answer&gt;", "72", (0, -2, 0, 0)),
]


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60
    assert len({completion for completion, _, _ in CASES}) >= 60


@pytest.mark.parametrize(("completion", "answer", "parts"), CASES)
def test_the_four_parts(completion: str, answer: str, parts: tuple[float, float, float, float]) -> None:
    found = rewards(completion, answer)
    assert (found.exact, found.approx, found.correct, found.numbers) == parts
    assert found.total == sum(parts)
    assert found.right == (parts[2] == 3)


PIECES = st.one_of(st.sampled_from([*TAGS, "72", "$72.", "-1/2", "1,234", " ", "\n", "."]), st.text(max_size=12))


@settings(max_examples=10_000 if LONG else 1_000)
@given(st.lists(PIECES, max_size=10).map("".join))
def test_the_bounds_hold_for_anything(completion: str) -> None:
    found = rewards(completion, "72")
    assert 0 <= found.exact <= 3
    assert -2 <= found.approx <= 2
    assert -0.5 <= found.correct <= 3
    assert 0 <= found.numbers <= 1.5
    assert -2.5 <= found.total <= 9.5


def test_both_ends_of_the_bounds_are_reached() -> None:
    assert rewards(f"{T}<answer>72</answer>", "72").total == 9.5
    assert rewards(f"{T}{T}<answer>1</answer><answer>2</answer>", "72").total == -2.5


def test_a_batch_is_scored_in_order() -> None:
    batch = [Scored("q", completion, answer) for completion, answer, _ in CASES]
    assert by_rule(batch) == [Rewards(*parts) for _, _, parts in CASES]


def test_the_thinking_of_held_out_answers_is_rewarded() -> None:
    problems = Problems((), (Problem("a", "half of 144?", "72"),))
    texts = [f"{T}<answer>72</answer>", "<answer>72</answer>", f"<thinking>hm</thinking>\n{T}<answer>72</answer>"]
    answers = [Answer("a", sample, text, "stop", 9) for sample, text in enumerate(texts)]
    assert [one.total for one in by_rule(graded(problems, answers)) if one] == [9.5, 4.5, 9.5]


def test_advantages_by_hand() -> None:
    # mean 4; deviations 3, -1, -1, -1; sample variance 12 / 3, so a standard deviation of 2
    assert advantages([7, 3, 3, 3]) == pytest.approx([3 / 2.0001, -1 / 2.0001, -1 / 2.0001, -1 / 2.0001])
    assert advantages([5, 5, 5, 5]) == [0, 0, 0, 0]
