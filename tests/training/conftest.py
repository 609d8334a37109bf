"""A fresh adapter on the tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from peft import PeftModel

from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel
from tests.training.rl.reinforcing import LORA


@pytest.fixture
def lora(tiny: ChatModel) -> Iterator[PeftModel]:
    with new_lora(tiny.model, LORA, 0) as model:
        yield model
