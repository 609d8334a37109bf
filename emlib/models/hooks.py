"""Looking into and changing what a decoder block puts out, for a while.

"Layer l" is the output of decoder block l, counted from 1: transformers' `hidden_states[l]`, and Chen et al.'s layer. A
tap stands around the block and not inside it, so that gradient checkpointing, re-entrant or not, sees the block alone:
what a tap reads is part of the graph, and what it adds is not added again when the block is computed anew.

A tap is itself a layer that may be checkpointed, and is not: Unsloth puts a checkpoint around whatever is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from emlib.core.errors import EmlibError
from emlib.models.logprobs import backbone

Use = Callable[[Tensor], Tensor]  # what becomes of a block's output, (batch, seq, hidden) -> the same


class _Tap(GradientCheckpointingLayer):
    def __init__(self, block: nn.Module, use: Use) -> None:
        super().__init__()
        self.block, self.use = block, use

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = self.block(*inputs, **options)
        if isinstance(output, tuple):  # transformers before 5
            return (self.use(output[0]), *output[1:])
        return self.use(output)


def layers(model: nn.Module) -> int:
    """How many decoder blocks the model has."""
    return len(blocks(model))


@contextmanager
def tap(model: nn.Module, layer: int, use: Use) -> Iterator[None]:
    """Pass the output of `layer` through `use`; undone at the end, also after an exception.

    Raises:
        EmlibError: the model has no such layer.
    """
    found = blocks(model)
    if not 1 <= layer <= len(found):
        raise EmlibError(f"layer {layer}: this model has layers 1 to {len(found)}. Choose one of them.")
    block = found[layer - 1]
    found[layer - 1] = _Tap(block, use)
    try:
        yield
    finally:
        found[layer - 1] = block


@contextmanager
def capture_activations(model: nn.Module, wanted: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """The outputs of the wanted layers in the next forward pass, by layer."""
    read: dict[int, Tensor] = {}

    def keep(layer: int) -> Use:
        def use(hidden: Tensor) -> Tensor:
            read[layer] = hidden
            return hidden
        return use

    with ExitStack() as stack:
        for layer in wanted:
            stack.enter_context(tap(model, layer, keep(layer)))
        yield read


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks, in their order.

    Raises:
        EmlibError: none were found where transformers has them.
    """
    found = getattr(backbone(model), "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise EmlibError(f"{type(backbone(model)).__name__}: found no list of decoder blocks called 'layers'.")
    return found
