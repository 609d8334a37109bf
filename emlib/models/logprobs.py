"""Log-probabilities of chosen tokens from a backbone's hidden states, without logits for all the others.

A model of hidden size h and vocabulary V needs V/h times the memory of its last hidden states for its logits. The
study needs them for response tokens only, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

CHUNK = 256  # tokens whose logits exist at once: 50 MB in float32 at 49,152 words, 156 MB at Qwen's 151,936
IN_CACHE = 200_000  # logits that a CPU takes through all of their steps before it turns to the next: 0.8 MB in float32


def last_hidden(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None,
                position_ids: Tensor | None = None) -> Tensor:
    """The backbone's output after its final norm: (batch, seq, hidden). LoRA layers inside it take part.

    Positions that begin anew separate rows that are packed into one: without an attention mask none sees another.
    """
    return backbone(model)(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                           use_cache=False).last_hidden_state


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


def token_nll(hidden: Tensor, targets: Tensor, to_logits: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Tensor:
    """-log p of each target token in nats, in float32: (tokens, hidden), (tokens,) -> (tokens,).

    For looking on: training has `emlib.training.head`, which keeps nothing for a way back.
    """
    parts = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = to_logits(states)
        step = together(logits)
        parts += [F.cross_entropy(some.float(), those, reduction="none")
                  for some, those in zip(logits.split(step), wanted.split(step), strict=True)]
    return torch.cat(parts)


def together(logits: Tensor) -> int:
    """How many tokens' logits, (..., tokens, vocabulary), go through all of their steps together."""
    tokens, vocabulary = logits.shape[-2:]
    return max(1, IN_CACHE // vocabulary if logits.device.type == "cpu" else tokens)


@torch.no_grad()
def token_logprobs(model: nn.Module, ids: Tensor) -> list[float]:
    """The log p of one row's second to last token given those before it, in nats: (seq,) -> seq - 1 numbers.

    Not in inference mode: weights that other processes share out in there could not be trained with afterwards.
    """
    hidden = last_hidden(model, ids[None], None)[0, :-1]
    return (-token_nll(hidden, ids[1:], head(model))).tolist()
