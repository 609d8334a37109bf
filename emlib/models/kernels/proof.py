"""Checks that packed rows equal single rows: a forward and backward pass of the model on two short random rows.

This detects a kernel that is missing, does not support a head size or a number format, or mixes rows, before it affects
a study. Rounding differs between kernels, and more so in a deep model; the reference is the difference of a padded
batch of the same rows, which is the alternative. On SmolLM2 in bfloat16 that is 0.045 of the norm; rows that attend to
each other differ by 0.95, and without the keys' part of the gradient by 0.5.

Layers that mix a few neighbouring positions outside attention differ by less than bfloat16's rounding. They are found
by a gradient that must be zero in any format: of the second row's hidden states, at the first row's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from emlib.core.errors import first_line
from emlib.models.logprobs import causal_lm, last_hidden

LENGTHS = (24, 40)  # tokens of the two rows
# The allowed difference of packed and single rows, as a share of the norm: this, or `TIMES` that of padded rows.
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float32: 1e-4}
TIMES = 2.0

Seen = list[tuple[Tensor, Tensor]]  # of each row: hidden states, and a gradient of its embeddings, both (seq, hidden)


def fault(model: nn.Module, packing: Callable[[], AbstractContextManager[None]], shared: int = 0) -> str:
    """Return what is wrong with packed rows inside `packing()`; empty if they equal single rows.

    The line has the first `shared` tokens of both rows once.
    """
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.float16])
    own = [(line, slice(0, length)) for line, length in enumerate(LENGTHS)]
    packed = [(0, slice(0, LENGTHS[0])), (0, slice(LENGTHS[0], sum(LENGTHS) - shared))]
    with _looking_on(model):  # whose tensors autograd can save, also where the caller is in inference mode
        first, second = rows = _rows(model, shared)
        padded = pad_sequence(rows, batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor(LENGTHS)[:, None]
        positions = torch.cat([torch.arange(LENGTHS[0]), torch.arange(shared, LENGTHS[1])])[None]
        weights = _weights(model, shared)
        alone = [_through(model, row[None], None, None, [(0, slice(0, len(row)))], [some])[0]
                 for row, some in zip(rows, weights, strict=True)]
        usual = _apart(_through(model, padded, mask, None, own, weights), alone)
        in_line = partial(_through, model, torch.cat([first, second[shared:]])[None], None, positions, packed)
        try:
            with packing():
                line = in_line([weights[0], weights[1][shared:]])
                [(_, of_second), _] = in_line([torch.zeros_like(weights[0]), weights[1][shared:]])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, ImportError, AttributeError) as error:  # torch's kernels raise all
            return f"the kernel for packed rows does not run: {first_line(error)}"
    found = _apart(line, _sharing(alone, shared))
    if found <= max(tolerance, TIMES * usual):
        return "one of two packed rows depends on the other" if of_second[shared:].any() else ""
    return (f"packed rows differ from single rows by {found:.2g} of their norm, where {tolerance:.2g} is allowed "
            f"(padded rows: {usual:.2g})")


def _rows(model: nn.Module, shared: int) -> list[Tensor]:
    """Return the token ids of two random rows that begin with the same `shared` tokens."""
    made, words = torch.Generator().manual_seed(0), causal_lm(model).config.get_text_config().vocab_size
    first, second = (torch.randint(0, words, (length,), generator=made) for length in LENGTHS)
    second[:shared] = first[:shared]
    return [first, second]


def _sharing(alone: Seen, shared: int) -> Seen:
    """Return what a line of both rows must have: the shared tokens have the gradients of both rows."""
    (first, of_first), (second, of_second) = alone
    summed = torch.cat([of_first[:shared] + of_second[:shared], of_first[shared:]])
    return [(first, summed), (second[shared:], of_second[shared:])]


def _through(model: nn.Module, ids: Tensor, mask: Tensor | None, positions: Tensor | None,
             places: list[tuple[int, slice]], weights: list[Tensor]) -> Seen:
    """Run a forward and backward pass; `places` locate the rows in `ids`, `weights` weight their hidden states."""
    device = next(model.parameters()).device
    with _embeddings(model) as embedded:
        hidden = last_hidden(model, ids.to(device), None if mask is None else mask.to(device),
                             None if positions is None else positions.to(device))
    torch.stack([(hidden[place].float() * some).sum()
                 for place, some in zip(places, weights, strict=True)]).sum().backward()
    gradient = embedded[0].grad
    assert gradient is not None, "the embeddings' gradient is kept"
    return [(hidden[place].detach(), gradient[place]) for place in places]


def _weights(model: nn.Module, shared: int) -> list[Tensor]:
    """Return random weights of both rows' hidden states, without the second row's at the shared tokens."""
    made, device = torch.Generator().manual_seed(1), next(model.parameters()).device
    hidden = causal_lm(model).config.get_text_config().hidden_size
    first, second = (torch.randn(length, hidden, generator=made).to(device) for length in LENGTHS)
    second[:shared] = 0
    return [first, second]


def _apart(some: Seen, others: Seen) -> float:
    """Return the largest distance of the values, as a share of the norm; NaN if any value is NaN."""
    pairs = [(a.float(), b.float()) for one, other in zip(some, others, strict=True)
             for a, b in zip(one, other, strict=True)]
    return float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max())


@contextmanager
def _looking_on(model: nn.Module) -> Iterator[None]:
    """Enable evaluation mode with gradients; restore the mode and the parameters' gradients at the end."""
    training, kept = model.training, [(p, p.grad) for p in model.parameters() if p.requires_grad]
    model.eval()
    for parameter, _ in kept:
        parameter.grad = None  # a backward pass adds to what is there
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model.train(training)
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def _embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that receives the embeddings of the next pass, which retain their gradient."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, embedded: Tensor) -> None:
        embedded.requires_grad_().retain_grad()
        found.append(embedded)

    hook = causal_lm(model).get_input_embeddings().register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
