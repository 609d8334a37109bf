"""What the head adds to a step's loss, cross-entropy and KL, with their gradients in closed form.

    nll = -log p_t,      d nll / d z = p - onehot(t)
    kl  = sum_v p_v (log p_v - log q_v),      d kl / d z = p (log p - log q - kl)

with z the logits of a token, p their softmax, t the token to predict and q the reference model's probabilities. Here it
differs from autograd: the logits' gradient is written over the logits while they are in the processor's caches, and
nothing is kept for a way back. Logits exist for a chunk of tokens at a time. LoRA leaves the head frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emlib.models.logprobs import causal_lm

CHUNK = 256  # tokens whose logits exist at once: 50 MB in float32 at 49,152 words, 156 MB at Qwen's 151,936
IN_CACHE = 8  # tokens whose logits a CPU takes from them to their gradient at once
IGNORED = -100  # a target on which cross-entropy does not count


@dataclass(frozen=True)
class HeadTerms:
    """Sums over tokens, in nats: `loss` has a gradient, `nll` and `kl` are to be told. `kl` is 0 without reference."""

    loss: Tensor
    nll: float
    kl: float


def head_terms(model: nn.Module, hidden: Tensor, targets: Tensor, nll_weight: float,
               reference: Tensor | None = None, kl_weight: float = 0.0) -> HeadTerms:
    """`nll_weight` times the sum of nll plus `kl_weight` times the sum of kl, over tokens.

    Args:
        model: whose head turns hidden states into logits; also the reference model's.
        hidden: after the final norm, (tokens, hidden).
        targets: the token after each, `IGNORED` where cross-entropy does not count, (tokens,).
        nll_weight: of cross-entropy.
        reference: what the reference model has in the place of `hidden`, (tokens, hidden).
        kl_weight: of D_KL(trained || reference).
    """
    found: Tensor = _Head.apply(hidden, causal_lm(model).get_output_embeddings(), targets, nll_weight, reference,
                                kl_weight)
    nll, kl = found.detach()[1:].tolist()
    return HeadTerms(found[0], nll, kl)


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, nll_weight: float,
                reference: Tensor | None, kl_weight: float) -> Tensor:
        """The loss, and the sums of nll and of kl: (3,). The gradient of the first is kept for `backward`."""
        to_hidden, sums = torch.empty_like(hidden), hidden.new_zeros(2, dtype=torch.float32)
        for start in range(0, len(hidden), CHUNK):
            chunk = slice(start, start + CHUNK)
            logits = head(hidden[chunk])
            others = None if reference is None else head(reference[chunk])
            step = IN_CACHE if logits.device.type == "cpu" else CHUNK
            for part in map(slice, range(0, len(logits), step), range(step, len(logits) + step, step)):
                gradient, *two = of_logits(logits[part].float(), targets[chunk][part], nll_weight,
                                           None if others is None else others[part].float(), kl_weight)
                logits[part] = gradient
                sums += torch.stack([one.sum() for one in two])
            torch.mm(logits, head.weight, out=to_hidden[chunk])
        ctx.save_for_backward(to_hidden)
        return torch.cat([(nll_weight * sums[0] + kl_weight * sums[1])[None], sums])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream[0] * ctx.saved_tensors[0], None, None, None, None, None


def of_logits(logits: Tensor, targets: Tensor, nll_weight: float, reference: Tensor | None,
              kl_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted gradient for logits, (tokens, vocabulary); nll and kl of each token, (tokens,) twice.

    Both logits are float32, (tokens, vocabulary), and are written over.
    """
    log_p = logits.sub_(logits.logsumexp(-1, keepdim=True))
    nll = F.nll_loss(log_p, targets, ignore_index=IGNORED, reduction="none")
    counts = nll_weight * (targets != IGNORED).to(log_p)[:, None]
    at = targets.clamp(min=0)[:, None]
    if reference is None:
        p = log_p.exp_()
        return p.mul_(counts).scatter_add_(1, at, -counts), nll, torch.zeros_like(nll)
    log_q = reference.sub_(reference.logsumexp(-1, keepdim=True))
    apart = torch.sub(log_p, log_q, out=log_q)
    p = log_p.exp_()
    kl = torch.linalg.vecdot(p, apart)
    gradient = torch.add(counts - kl_weight * kl[:, None], apart, alpha=kl_weight, out=apart).mul_(p)
    return gradient.scatter_add_(1, at, -counts), nll, kl
