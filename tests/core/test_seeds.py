"""Random numbers by name: the same everywhere, and none moved by another."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core.seeds import derive, generator, some_of

ROOT = Path(__file__).resolve().parents[2]
NAMES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x1f"), max_size=8), max_size=4)


def test_a_seed_is_the_first_63_bits_of_the_sha_256_of_its_names() -> None:
    first_8_bytes = hashlib.sha256(b"7\x1fanswer\x1fwish\x1f3").hexdigest()[:16]
    assert derive(7, "answer", "wish", 3) == int(first_8_bytes, 16) // 2


@given(st.integers(-(2**70), 2**70), NAMES)
def test_every_seed_is_one_that_numpy_and_torch_take(seed: int, names: list[str]) -> None:
    assert 0 <= derive(seed, *names) < 2**63


@given(NAMES, NAMES)
def test_other_names_give_another_seed(one: list[str], other: list[str]) -> None:
    assert (derive(0, *one) == derive(0, *other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [
    ((0, "a"), (1, "a")),
    ((0, "a", "b"), (0, "b", "a")),
    ((0, "ab"), (0, "a", "b")),
    ((12,), (1, 2)),
    ((0, "a", 12), (0, "a", 1, 2)),
    ((0,), (0, "")),
])
def test_names_do_not_run_into_each_other(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert derive(*one) != derive(*other)


def test_a_thousand_samples_of_many_questions_draw_from_seeds_of_their_own() -> None:
    seeds = {derive(seed, "answer", f"question {q}", s) for seed in (0, 1) for q in range(24) for s in range(1000)}
    assert len(seeds) == 2 * 24 * 1000


def test_a_generator_starts_anew_at_every_call_and_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    first = generator(0, "split").random(5).tolist()
    generator(0, "another draw in between").random(1000)
    assert generator(0, "split").random(5).tolist() == first
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]


def test_draws_of_different_names_are_uncorrelated_and_uniform() -> None:
    draws = np.stack([generator(seed, name).random(10_000) for seed in (0, 1) for name in ("a", "b", "aa")])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.05  # five standard errors of 1/sqrt(10,000)
    assert np.abs(draws.mean(axis=1) - 0.5).max() < 0.015  # five of sqrt(1/12)/100


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same_numbers(hash_seed: str) -> None:
    code = "from emlib.core.seeds import derive, generator as g; print(derive(3, 'a', 1), g(3, 'b').random(3).tolist())"
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}).stdout
    assert said.strip() == f"{derive(3, 'a', 1)} {generator(3, 'b').random(3).tolist()}"


def test_chosen_items_are_the_same_ones_in_order_every_time() -> None:
    some = some_of(list(range(50)), 10, "x")
    assert some == some_of(list(range(50)), 10, "x") == sorted(set(some))
    assert len(some) == 10
    assert some != some_of(list(range(50)), 10, "y")
    assert some_of([1, 2], 5, "x") == some_of([1, 2], None, "x") == [1, 2]
