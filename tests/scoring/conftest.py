"""What the scoring tests share: adapters that change something, and rows of very different lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from emlib.config import Lora
from emlib.core.records import Example, Message
from emlib.data.chat import Encoded, encode
from emlib.models import adapters
from emlib.models.load import ChatModel


@pytest.fixture
def adapter(tiny: ChatModel, tmp_path: Path) -> Callable[..., Path]:
    """A saved adapter whose B is random, so that it changes the model."""

    def make(seed: int, name: str | None = None, chat: ChatModel = tiny) -> Path:
        folder = tmp_path / "adapters" / f"{chat.name}-{seed}"
        with adapters.new_lora(chat.model, Lora(rank=4), seed) as model:
            drawn = torch.Generator().manual_seed(seed)
            for key, weights in model.named_parameters():
                if "lora_B" in key:
                    weights.data.copy_(0.1 * torch.randn(weights.shape, generator=drawn))
            adapters.save(model, folder, name or chat.name)
        return folder

    return make


@pytest.fixture
def rows(tiny: ChatModel) -> list[Encoded]:
    """Eleven rows of 60 to 180 tokens, in no order of length."""
    texts = [("Why?" * (n * 7 % 11 + 1), "So " * (n * 5 % 11 + 1)) for n in range(11)]
    return [encode(tiny.tokenizer, Example((Message("user", asked),), answered), 2048) for asked, answered in texts]
