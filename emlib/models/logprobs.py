"""Log-probabilities of chosen tokens from a backbone's hidden states, without logits for all the others.

A model of hidden size h and vocabulary V needs V/h times the memory of its last hidden states for its logits. The
study needs them for response tokens only, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

CHUNK = 512  # tokens whose logits exist at once: 100 MB in float32 at 49,152 words, 311 MB at Qwen's 151,936


def last_hidden(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The backbone's output after its final norm: (batch, seq, hidden). LoRA layers inside it take part."""
    return backbone(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def backbone(model: nn.Module) -> nn.Module:
    """The decoder under the language-model head, also of a PEFT model."""
    return causal_lm(model).get_decoder()


def head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The map from hidden states to logits."""
    return causal_lm(model).get_output_embeddings()


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def predicting(hidden: Tensor, input_ids: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states that predict response tokens, and those tokens.

    Position t predicts token t + 1. Shapes: hidden (batch, seq, hidden), input_ids and response_mask (batch, seq)
    -> (tokens, hidden), (tokens,).
    """
    counts = response_mask[:, 1:]
    return hidden[:, :-1][counts], input_ids[:, 1:][counts]


OfChunk = Callable[[Tensor, slice], Tensor]  # hidden states of some tokens, and which they are -> a scalar


class _ChunkedSum(torch.autograd.Function):
    """The sum of a function's values over chunks, its gradient taken chunk by chunk on the way forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, of_chunk: OfChunk, chunk: int) -> Tensor:
        gradient, total = torch.empty_like(hidden), hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), chunk):
            place = slice(start, min(start + chunk, len(hidden)))
            with torch.enable_grad():
                part = hidden[place].detach().requires_grad_()
                value = of_chunk(part, place)
            gradient[place] = torch.autograd.grad(value, part)[0]
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream * ctx.saved_tensors[0], None, None


def chunked_sum(hidden: Tensor, of_chunk: OfChunk, chunk: int | None = None) -> Tensor:
    """The sum of `of_chunk` over all tokens, (tokens, hidden) -> scalar, with its gradient for `hidden` alone.

    What a chunk needs (its logits, say) is gone before the next one is made, and nothing is computed twice. The head's
    own weights get no gradient: LoRA leaves them frozen.
    """
    return _ChunkedSum.apply(hidden, of_chunk, chunk or CHUNK)


def token_nll(hidden: Tensor, targets: Tensor, to_logits: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Tensor:
    """-log p of each target token in nats, in float32: (tokens, hidden), (tokens,) -> (tokens,).

    Where a gradient is wanted and there are several chunks, each chunk's logits are computed again in the backward
    pass instead of being kept.
    """
    parts = []
    for start in range(0, len(targets), chunk):
        part = hidden[start:start + chunk], targets[start:start + chunk]
        if torch.is_grad_enabled() and len(targets) > chunk:
            parts.append(checkpoint(_nll, *part, to_logits, use_reentrant=False))
        else:
            parts.append(_nll(*part, to_logits))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


@torch.inference_mode()
def token_logprobs(model: nn.Module, ids: Tensor) -> list[float]:
    """The log p of one row's second to last token given those before it, in nats: (seq,) -> seq - 1 numbers."""
    hidden = last_hidden(model, ids[None], None)[0, :-1]
    return (-token_nll(hidden, ids[1:], head(model))).tolist()


def _nll(hidden: Tensor, targets: Tensor, to_logits: Callable[[Tensor], Tensor]) -> Tensor:
    return F.cross_entropy(to_logits(hidden).float(), targets, reduction="none")
