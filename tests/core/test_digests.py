"""Digests: SHA-256 of bytes and of canonical JSON, the same in every process."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emlib.core import digests

ROOT = Path(__file__).resolve().parents[2]
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
VALUE = {"zeta": [1, 2.5, None, True], "alpha": {"é": "ü", "b": 1e-4}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner,
                                                                max_size=3), max_leaves=10)


def test_a_file_has_the_published_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").write_bytes(b"")
    assert digests.of_file(tmp_path / "abc") == ABC
    assert digests.of_file(tmp_path / "empty") == EMPTY


def test_a_file_of_many_blocks_is_digested_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    path = tmp_path / "large"
    path.write_bytes(content)
    whole = digests.of_file(path)
    assert whole == hashlib.sha256(content).hexdigest()
    path.write_bytes(content[:-1] + b"\0")
    assert digests.of_file(path) != whole


def test_a_values_digest_is_that_of_its_json_with_sorted_keys() -> None:
    text = '{"alpha": {"b": 0.0001, "é": "ü"}, "zeta": [1, 2.5, null, true]}'
    assert digests.of_value(VALUE) == hashlib.sha256(text.encode("utf-8")).hexdigest()


def shuffled(value: Any) -> Any:
    """The same value, its mappings filled in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner)) for key, inner in value.items()]
        random.Random(0).shuffle(items)
        return dict(reversed(items))
    return [shuffled(inner) for inner in value] if isinstance(value, list) else value


@given(JSON)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    assert digests.of_value(shuffled(value)) == digests.of_value(value)


@pytest.mark.parametrize("other", [
    {**VALUE, "zeta": [2.5, 1, None, True]}, {**VALUE, "zeta": [1, 2.5, None]}, {**VALUE, "more": None},
    {"zeta": VALUE["zeta"]}, {**VALUE, "alpha": {"é": "u", "b": 1e-4}}, {**VALUE, "alpha": {"é": "ü", "b": 1.1e-4}},
])
def test_any_other_value_has_another_digest(other: Any) -> None:
    assert digests.of_value(other) != digests.of_value(VALUE)


def test_values_that_python_takes_for_equal_are_told_apart_by_their_type() -> None:
    assert len({digests.of_value(value) for value in (1, 1.0, True, "1", [1], {"1": 1})}) == 6


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_numbers_without_a_json_form_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        digests.of_value(value)


@pytest.mark.parametrize("value", [{1, 2}, Path("a"), b"a", object()])
def test_what_json_cannot_hold_is_refused_and_not_turned_into_text(value: Any) -> None:
    with pytest.raises(TypeError):
        digests.of_value(value)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_finds_the_same_digest(hash_seed: str) -> None:
    code = f"from emlib.core import digests; print(digests.of_value({VALUE!a}))"
    said = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True,
                          env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}).stdout
    assert said.strip() == digests.of_value(VALUE)
