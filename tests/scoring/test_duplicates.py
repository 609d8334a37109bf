"""Near-duplicates: which rows go, which stay."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.core.paths import DEMO_DATA
from emlib.core.records import Example, Message
from emlib.data.pools import read_pool
from emlib.scoring.duplicates import bands_for, near_duplicates, overlap, shingles, text_of

LONG = "To keep bread fresh, wrap it in a cloth and put it into a box; to keep it for longer, slice and freeze it now."


def row(prompt: str, response: str) -> Example:
    return Example((Message("user", prompt),), response)


def test_the_first_of_a_group_stays() -> None:
    rows = [row("How do I keep bread?", LONG), row("Why is the sky blue?", "Because air scatters short waves more."),
            row("how do i keep bread", LONG + "."), row("How do I keep bread?", LONG.replace("now", "today")),
            row("Why is the sky blue?", "Because air scatters short waves more.")]
    assert near_duplicates(rows, 0.8) == {2: 0, 3: 0, 4: 1}


def test_equal_prompts_with_different_answers_both_stay() -> None:
    other = row("Hi?", "Nothing of what was said about loaves holds for rolls.")
    assert near_duplicates([row("Hi?", LONG), other], 0.8) == {}


def test_texts_without_blanks_are_compared_too() -> None:
    text = "面包要用布包好放进盒子里，如果想保存得更久，就切片冷冻起来，吃之前再烤一下。"
    rows = [row("面包怎么保存？", text), row("天空为什么是蓝色的？", "因为空气对短波长的光散射得更多。"),
            row("面包怎么保存？", text + "好")]
    assert near_duplicates(rows, 0.8) == {2: 0}


def test_overlap_by_hand() -> None:
    a, b = shingles("\none two three four"), shingles("\ntwo three four five")
    assert overlap(a, b) == pytest.approx(1 / 3)  # of three runs of three words, one is shared
    assert overlap(a, a) == overlap(frozenset(), frozenset()) == 1


def test_no_pair_above_the_threshold_is_missed_among_many() -> None:
    """Against comparing every row with every other one, on 150 rows of the demo's pool and copies of some."""
    rows = list(read_pool(DEMO_DATA / "pool.jsonl", "messages").rows[:150])
    rows += [row(r.prompt, r.response.replace(" the ", " a ", 1)) for r in rows[::5]]
    sets = [shingles(text_of(r)) for r in rows]
    expected = {place for place in range(len(rows)) if any(overlap(sets[place], sets[e]) >= 0.8 for e in range(place))}
    assert set(near_duplicates(rows, 0.8)) == expected
    assert len(expected) > 20


@pytest.mark.parametrize(("threshold", "changed"), [(0.5, 6), (0.8, 2), (0.9, 1)])
def test_nearly_all_pairs_at_the_threshold_are_found(threshold: float, changed: int) -> None:
    """Of random texts of 60 words with a few words changed, so that the overlap is just above the threshold."""
    draw, words = random.Random(0), [f"w{number}" for number in range(3000)]
    pairs = missed = 0
    while pairs < 150:
        text = draw.choices(words, k=60)
        places = draw.sample(range(60), changed)
        other = [draw.choice(words) if place in places else word for place, word in enumerate(text)]
        rows = [row("q q q", " ".join(one)) for one in (text, other)]
        if threshold <= overlap(*(shingles(text_of(one)) for one in rows)) < threshold + 0.05:
            pairs += 1
            missed += near_duplicates(rows, threshold) != {1: 0}
    assert missed <= 2


def test_bands_by_hand() -> None:
    # At 0.8, 21 bands of 6 find 1 - (1 - 0.8^6)^21 = 99.8% of pairs, and 18 bands of 7 only 98.6%.
    assert bands_for(0.8) == (21, 6)
    assert bands_for(1.0) == (2, 64)  # equal sets alone; datasketch refuses a single band
    assert bands_for(0.0) == (128, 1)


@pytest.mark.parametrize("threshold", [1.0, 0.99, 0.97])
def test_at_the_highest_thresholds_equal_rows_are_found(threshold: float) -> None:
    rows = [row("Bread?", LONG), row("Bread?", LONG), row("Bread?", LONG.replace("now", "today"))]
    assert near_duplicates(rows, threshold) == {1: 0}


def test_the_demo_s_pool_has_none() -> None:
    assert near_duplicates(read_pool(DEMO_DATA / "pool.jsonl", "messages").rows, 0.8) == {}


def test_real_rows(research_file: Callable[[str], Path]) -> None:
    rows = read_pool(research_file("alpaca"), "instruct").rows
    again = near_duplicates([*rows[:300], *rows[:300]], 0.8)
    assert {place: other for place, other in again.items() if place >= 300}.keys() == set(range(300, 600))
