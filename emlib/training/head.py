"""The head's terms of a step's loss, cross-entropy and KL, with their gradients in closed form.

    nll = -log p_t,      d nll / d z = p - onehot(t)
    kl  = sum_v p_v (log p_v - log q_v),      d kl / d z = p (log p - log q - kl)

with z the logits of a token, p their softmax, t the token to predict and q the reference model's probabilities. Unlike
autograd, this overwrites the logits by their gradient while they are in the processor's caches, and saves no
activations for a backward pass. Logits exist for a chunk of tokens at a time. LoRA leaves the head frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from emlib.models.logprobs import causal_lm, together
from emlib.training.budget import CHUNK
from emlib.training.fused import choose_step

IGNORED = -100  # a target on which cross-entropy does not count
BACK = 256  # tokens per product of the backward pass, whose inner size is the vocabulary


@dataclass(frozen=True)
class HeadTerms:
    """Sums over tokens, in nats: `loss` has a gradient, `nll` and `kl` are for the log. `kl` is 0 without reference."""

    loss: Tensor
    nll: float
    kl: float


def head_terms(model: nn.Module, hidden: Tensor, targets: Tensor, nll_weight: float,
               reference: Tensor | None = None, kl_weight: float = 0.0) -> HeadTerms:
    """Compute `nll_weight` times the sum of nll plus `kl_weight` times the sum of kl, over tokens.

    Args:
        model: its head turns hidden states into logits, also those of the reference model.
        hidden: after the final norm, (tokens, hidden).
        targets: the token after each, `IGNORED` where cross-entropy does not count, (tokens,).
        nll_weight: of cross-entropy.
        reference: the reference model's hidden states for the same tokens, (tokens, hidden).
        kl_weight: of D_KL(trained || reference).
    """
    assert reference is None or len(reference) == len(hidden), "the reference's states are for another number of tokens"
    found: Tensor = _Head.apply(hidden, causal_lm(model).get_output_embeddings(), targets, nll_weight, reference,
                                kl_weight)
    nll, kl = found.detach()[1:].tolist()
    return HeadTerms(found[0], nll, kl)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, nll_weight: float,
                reference: Tensor | None, kl_weight: float) -> Tensor:
        """Return the loss, and the sums of nll and of kl: (3,). The gradient of the loss is saved for `backward`."""
        sides = [hidden] if reference is None else [hidden, reference]
        counts, targets = (targets != IGNORED)[:, None].float(), targets.clamp(min=0)[:, None]
        weights, terms = nll_weight * counts, [counts.new_zeros(3, 0, 1)]
        buffer, to_hidden = _buffer(len(sides), head, hidden), torch.empty_like(hidden)
        work_on, _ = choose_step(len(sides), hidden, head.weight.shape[0], step_by_step)
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = buffer[:, :len(targets[chunk])]
            for side, into in zip(sides, logits, strict=True):
                _product(side[chunk], head, into)
            for part in _slices(logits.shape[1], together(logits)):
                terms.append(work_on(logits[:, part], targets[chunk][part], weights[chunk][part], kl_weight))
            for part in _slices(logits.shape[1], BACK):
                torch.mm(logits[0, part], head.weight, out=to_hidden[chunk][part])
        scale, nll, kl = torch.cat(terms, 1)
        ctx.save_for_backward(to_hidden.mul_(scale))
        sums = torch.stack([(counts * nll).sum(), kl.sum()])
        return torch.cat([(nll_weight * sums[0] + kl_weight * sums[1])[None], sums])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream[0] * ctx.saved_tensors[0], None, None, None, None, None


def step_by_step(logits: Tensor, targets: Tensor, weights: Tensor, kl_weight: float) -> Tensor:
    """Compute `of_logits` in any precision; the gradient overwrites the trained logits. Returns scale, nll and kl."""
    logits[0], terms = of_logits(logits.float(), targets, weights, kl_weight)
    return terms


def head_method(model: nn.Module, kl: bool) -> str:
    """Return a description of the chosen operations, for the training summary."""
    weight = causal_lm(model).get_output_embeddings().weight
    return choose_step(1 + kl, weight, weight.shape[0], step_by_step)[1]


def head_bytes(model: nn.Module, kl: bool) -> int:
    """Return the peak memory of a chunk's logits: in the model's precision, in float32, and of their difference."""
    weight = causal_lm(model).get_output_embeddings().weight
    return CHUNK * weight.shape[0] * ((1 + kl) * (weight.element_size() + 4) + 4 * kl)


def of_logits(logits: Tensor, targets: Tensor, weights: Tensor, kl_weight: float) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the weighted nll and kl for the trained model's logits, up to a scale per token.

    It makes as few passes over the vocabulary as possible. With d the difference of the two models' logits and <d> its
    mean under p, log p - log q - kl = d - <d>, independent of their normalisation; and 1 / sum(p) is the scale.

    Args:
        logits: float32, (sides, tokens, vocabulary), overwritten: the trained model's, and the reference model's if
            there is one.
        targets: the token to predict, (tokens, 1).
        weights: of each token's nll, (tokens, 1).
        kl_weight: of each token's kl.

    Returns:
        The gradient without its scale, (tokens, vocabulary); scale, nll and kl of each token, (3, tokens, 1).
    """
    logits -= logits.amax(-1, keepdim=True)
    of_target = logits[0].gather(1, targets)
    apart = logits[0] - logits[1] if len(logits) > 1 else None
    mass = logits.exp_().sum(-1, keepdim=True)  # (sides, tokens, 1)
    p, scale, nll = logits[0], 1 / mass[0], mass[0].log() - of_target
    if apart is None:
        gradient, kl = p.mul_(weights), torch.zeros_like(nll)
    else:
        mean = scale * torch.mul(p, apart, out=logits[1]).sum(-1, keepdim=True)
        kl = mean + (mass[1] * scale).log()
        gradient = torch.add(weights - kl_weight * mean, apart, alpha=kl_weight, out=apart).mul_(p)
    return gradient.scatter_add_(1, targets, -weights * mass[0]), torch.stack([scale, nll, kl])


def _product(states: Tensor, head: nn.Linear, out: Tensor) -> None:
    """Write the logits to `out`."""
    if head.bias is None:
        torch.mm(states, head.weight.T, out=out)
    else:
        torch.addmm(head.bias, states, head.weight.T, out=out)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _buffer(sides: int, head: nn.Linear, like: Tensor) -> Tensor:
    shape = sides, CHUNK, head.weight.shape[0]
    return _kept(shape, like.dtype) if like.device.type == "cpu" else like.new_empty(shape)


@lru_cache(maxsize=1)
def _kept(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a buffer that stays allocated: else the allocator returns it to the system, which clears it each time.

    On a CPU that takes as long as the product that is written to it.
    """
    return torch.empty(shape, dtype=dtype)
