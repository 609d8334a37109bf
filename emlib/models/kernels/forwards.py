"""Layers of a model that compute in another way for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn


@contextmanager
def computed_by(forward: Callable[..., Any], layers: Iterable[nn.Module]) -> Iterator[None]:
    """Each layer's `forward` is this one, which is given the layer first; undone at the end, also after an error."""
    replaced = list(layers)
    for layer in replaced:
        layer.forward = partial(forward, layer)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.forward  # the class's own shows again
