"""Log-probabilities of selected tokens from a backbone's hidden states, without logits for all others.

For hidden size h and vocabulary V, the logits take V/h times the memory of the last hidden states. The study computes
them for response tokens only, in chunks. Those of two libraries tell whether both run the same model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from emlib.core.errors import EmlibError

CHUNK = 256  # tokens whose logits exist at once: 50 MB in float32 at a vocabulary of 49,152, 156 MB at Qwen's 151,936
IN_CACHE = 200_000  # logits that a CPU processes at once so that they stay in its cache: 0.8 MB in float32
# Nats. In bfloat16 the same weights in two libraries differ by hundredths on average, by tenths for unlikely tokens; a
# missing adapter or the numbers of another prompt differ by far more.
MEAN_APART, WORST_APART = 0.05, 1.0


def last_hidden(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None,
                position_ids: Tensor | None = None) -> Tensor:
    """Compute the backbone's output after its final norm, with its LoRA layers: (batch, seq, hidden).

    Restarting positions separate packed rows: without an attention mask, no row attends to another.
    """
    return backbone(model)(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                           use_cache=False).last_hidden_state


def backbone(model: nn.Module) -> nn.Module:
    """Return the decoder below the language-model head, also of a PEFT model."""
    return causal_lm(model).get_decoder()


def head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the map from hidden states to logits."""
    return causal_lm(model).get_output_embeddings()


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def predicting(hidden: Tensor, input_ids: Tensor, response_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Select the hidden states that predict response tokens, and those tokens.

    Position t predicts token t + 1. Shapes: hidden (batch, seq, hidden), input_ids and response_mask (batch, seq)
    -> (tokens, hidden), (tokens,).
    """
    counts = response_mask[:, 1:]
    return hidden[:, :-1][counts], input_ids[:, 1:][counts]


def token_nll(hidden: Tensor, targets: Tensor, to_logits: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Tensor:
    """Compute -log p of each target token in nats, in float32: (tokens, hidden), (tokens,) -> (tokens,).

    For evaluation: training uses `emlib.training.head`, which saves no activations for the backward pass.
    """
    parts = []
    for states, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = to_logits(states)
        step = together(logits)
        parts += [F.cross_entropy(some.float(), those, reduction="none")
                  for some, those in zip(logits.split(step), wanted.split(step), strict=True)]
    return torch.cat(parts)


def token_kl(hidden: Tensor, reference: Tensor, to_logits: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Tensor:
    """Compute KL(p || q) of the next-token distributions in nats, in float32: twice (tokens, hidden) -> (tokens,)."""
    parts = []
    for sides in zip(hidden.split(chunk), reference.split(chunk), strict=True):
        p, q = (F.log_softmax(to_logits(states).float(), -1) for states in sides)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts)


def together(logits: Tensor) -> int:
    """Return how many tokens' logits, (..., tokens, vocabulary), to process at once."""
    tokens, vocabulary = logits.shape[-2:]
    return max(1, IN_CACHE // vocabulary if logits.device.type == "cpu" else tokens)


@torch.no_grad()
def token_logprobs(model: nn.Module, ids: Tensor) -> list[float]:
    """Compute log p of each token of a row but the first, given those before it, in nats: (seq,) -> seq - 1 numbers.

    Uses no inference mode, because weights that other processes share could not be trained afterwards.
    """
    hidden = last_hidden(model, ids[None], None)[0, :-1]
    return (-token_nll(hidden, ids[1:], head(model))).tolist()


class NotTheSameModel(EmlibError):
    """Two libraries' log-probabilities are too far apart."""


def refuse_disagreement(name: str, theirs: Sequence[float], ours: Sequence[float], mean: float = MEAN_APART) -> float:
    """Return the mean distance of two lists of log-probabilities of the same tokens, in nats.

    Raises:
        NotTheSameModel: their lengths differ, a value is not finite, or they are too far apart; `name` is the library.
    """
    if len(theirs) != len(ours) or not ours:
        raise NotTheSameModel(f"{name} gave {len(theirs)} log-probabilities of {len(ours)} tokens.")
    distances = [abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    if not all(map(math.isfinite, distances)):
        raise NotTheSameModel(f"{name} gave a log-probability that is no number.")
    found = sum(distances) / len(distances)
    if found > mean or max(distances) > WORST_APART:
        raise NotTheSameModel(
            f"{name}: its log-probabilities of {len(distances)} tokens differ from those of transformers by "
            f"{found:.3f} nats on average and by {max(distances):.2f} at most, where {mean} and {WORST_APART} are "
            "allowed. It runs other weights, another adapter or another precision. Set this backend to 'transformers'.")
    return found
