"""The head's operations on the logits of two models, compiled into few kernels on a GPU.

Run one by one, the operations of `emlib.training.head` move 114 bytes per word and token between a GPU and its memory
for KL, and 44 for cross-entropy alone; compiled, KL moves 14. With Qwen2.5's 152,064 words that is 17 and 2 MB per
token, or about 6 and 1 microseconds of an H100, where a KL step takes about 100 per token: a gain of a twentieth. For
cross-entropy, whose logits exist for responses only, it would be a hundredth, less than the compilation costs a run:
that is not compiled.

The compiled form is compared with the uncompiled operations before its first use, for varying lengths and weights;
where it fails, these are used. On a CPU they are written for its caches, and nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from emlib.core.errors import first_line

Step = Callable[[Tensor, Tensor, Tensor, float], Tensor]
DEVICES = ("cuda",)  # devices on which compilation is tried
PROOF = ((300, 0.25), (7, 0.5), (41, 2.0))  # tokens and weight of kl, per comparison
TOLERANCE = 1e-2  # of the gradient's norm, which is rounded to the logits' precision; a wrong weight gives far more
COMPILED = "compiled"


def written_over(logits: Tensor, targets: Tensor, weights: Tensor, kl_weight: Tensor) -> Tensor:
    """Compute `emlib.training.head.of_logits` in a form for compilation; the gradient overwrites the trained logits.

    Args:
        logits: of the trained and of the reference model, (2, tokens, vocabulary), in any precision.
        targets, weights: as there, (tokens, 1).
        kl_weight: of each token's kl, a scalar tensor on the device: a changing Python number would be recompiled.

    Returns:
        Scale, nll and kl of each token, (3, tokens, 1).
    """
    shifted = logits.float()
    shifted = shifted - shifted.amax(-1, keepdim=True)
    raised = shifted.exp()
    mass = raised.sum(-1, keepdim=True)  # (2, tokens, 1)
    apart, scale = shifted[0] - shifted[1], 1 / mass[0]
    mean = scale * (raised[0] * apart).sum(-1, keepdim=True)
    target = torch.arange(logits.shape[-1], device=logits.device) == targets
    nll = mass[0].log() - torch.where(target, shifted[0], 0).sum(-1, keepdim=True)
    gradient = raised[0] * (weights + kl_weight * (apart - mean)) - torch.where(target, weights * mass[0], 0)
    logits[0] = gradient
    return torch.stack([scale, nll, mean + (mass[1] * scale).log()])


@lru_cache(maxsize=1)
def compiled() -> Step:
    """Compile `written_over` for any number of tokens; the result takes the weight of kl as a number."""
    by_inductor = torch.compile(written_over, dynamic=True, fullgraph=True)
    return lambda logits, targets, weights, kl_weight: by_inductor(
        logits, targets, weights, torch.full((), kl_weight, device=logits.device))


def choose_step(sides: int, like: Tensor, words: int, plain: Step) -> tuple[Step, str]:
    """Choose the operations for the logits of `sides` models on the device and precision of `like`; and describe it."""
    if sides < 2 or like.device.type not in DEVICES:
        return plain, "step by step"
    reason = fault(like.device, like.dtype, words, plain)
    return (plain, f"step by step: {reason}") if reason else (compiled(), COMPILED)


@lru_cache(maxsize=8)
def fault(device: torch.device, dtype: torch.dtype, words: int, plain: Step) -> str:
    """Return what is wrong with the compiled form; empty where it gives the same as `plain`."""
    made = torch.Generator(device).manual_seed(0)
    try:
        for tokens, weight in PROOF:
            logits = (3 * torch.randn(2, tokens, words, generator=made, device=device)).to(dtype)
            targets = torch.randint(0, words, (tokens, 1), generator=made, device=device)
            weights = torch.rand(tokens, 1, generator=made, device=device)
            ours, theirs = logits.clone(), logits
            with torch.no_grad():
                found, expected = compiled()(ours, targets, weights, weight), plain(theirs, targets, weights, weight)
            error = max(_apart(found, expected), _apart(ours[0], theirs[0]))
            if not error < TOLERANCE:
                return f"the compiled gradient differs by {error:.2g} of its norm from the one step by step"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError) as error:
        return f"it does not compile: {first_line(error)}"
    return ""


def _apart(some: Tensor, others: Tensor) -> float:
    return float((some.float() - others.float()).norm() / others.float().norm())
