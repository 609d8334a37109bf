"""Temporary changes of a model: hooks that read or change the outputs of decoder blocks, fewer blocks, its mode.

"Layer l" is the output of decoder block l, counted from 1: transformers' `hidden_states[l]`, and Chen et al.'s layer. A
hook wraps the block from outside, so that gradient checkpointing, re-entrant or not, applies to the block alone: the
outputs that a hook reads are part of the graph, and a change is not applied again when the block is recomputed.

The wrapper is a `GradientCheckpointingLayer` without checkpointing, because Unsloth checkpoints all other modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from emlib.core.errors import EmlibError
from emlib.models.logprobs import backbone

Use = Callable[[Tensor], Tensor]  # maps a block's output to its replacement, (batch, seq, hidden) -> the same


class _Tap(GradientCheckpointingLayer):
    def __init__(self, block: nn.Module, use: Use) -> None:
        super().__init__()
        self.block, self.use = block, use

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = self.block(*inputs, **options)
        if isinstance(output, tuple):  # transformers before 5
            return (self.use(output[0]), *output[1:])
        return self.use(output)


def without_taps(name: str) -> str:
    """Return a module's name as it is without a hook around its block."""
    return name.replace(".block.", ".")


def layers(model: nn.Module) -> int:
    """Return the number of decoder blocks."""
    return len(blocks(model))


@contextmanager
def tap(model: nn.Module, layer: int, use: Use) -> Iterator[None]:
    """Replace the output of `layer` by `use` of it; undone at the end, also after an exception.

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
    """Yield a mapping that the next forward pass fills with the outputs of the wanted layers."""
    captured: dict[int, Tensor] = {}

    def keep(layer: int) -> Use:
        def use(hidden: Tensor) -> Tensor:
            captured[layer] = hidden
            return hidden
        return use

    with ExitStack() as stack:
        for layer in wanted:
            stack.enter_context(tap(model, layer, keep(layer)))
        yield captured


@contextmanager
def first_blocks(model: nn.Module, count: int) -> Iterator[None]:
    """Let passes inside the context end after the first `count` blocks; undone at the end, also after an exception.

    The output after the final norm means nothing then; read the blocks' outputs. A model whose weights are sharded over
    several processes runs whole, because all of them gather every block's weights together.
    """
    found = blocks(model)
    if any(hasattr(weights, "to_local") for weights in model.parameters()) or count >= len(found):
        yield
        return
    decoder = backbone(model)
    decoder.layers = nn.ModuleList(list(found)[:count])
    try:
        yield
    finally:
        decoder.layers = found


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks, in order.

    Raises:
        EmlibError: the model has none where transformers keeps them.
    """
    found = getattr(backbone(model), "layers", None)
    if not isinstance(found, nn.ModuleList):
        raise EmlibError(f"{type(backbone(model)).__name__}: found no list of decoder blocks called 'layers'. Choose "
                         "another model.")
    return found


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
