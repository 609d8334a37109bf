"""A session makes what is missing, and a maker's time is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emlib.config import load_profile
from emlib.make.session import Session, maker
from emlib.steps.recipes import Recipes
from emlib.store.artefacts import Store
from tests.store.made import Made


@dataclass(frozen=True)
class MadeOf(Made):
    """A made-up step with an input."""

    below: Made


def test_the_clock_of_a_maker_starts_when_its_inputs_are_made(tmp_path: Path) -> None:
    maker.register(Made, lambda *_: {})
    below = Made("answers", {"a": 1})
    step = MadeOf("verdicts", {"b": 2}, below)
    session = Session(Recipes(load_profile("tiny"), "tiny"), Store(tmp_path), tmp_path, "tiny")
    seconds = session.timer(step)
    assert session.store.find(below) is not None
    assert session.store.find(step) is None
    assert 0 <= seconds() <= seconds()
