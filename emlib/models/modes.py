"""Training and evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, without dropout; its mode is restored at the end.

    Sampling then has its key-value cache, which gradient checkpointing would switch off.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
