"""The loss on rows that are not trained on at the moment: for what is chosen, watched and stopped by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from emlib.data.chat import Encoded, counted
from emlib.models.batches import forward_batches
from emlib.models.hooks import evaluating
from emlib.models.logprobs import head, predicting, token_nll
from emlib.training.ranks import ALONE, Ranks


def row_losses(model: nn.Module, rows: Sequence[Encoded], batch_size: int, ranks: Ranks = ALONE) -> list[float]:
    """Compute each row's mean loss as equation 4 does, in evaluation mode; the ranks share the passes.

    It is in nats per token of the answer, without the empty think block that a template writes before it.
    """
    rows = [counted(row) for row in rows]
    found: dict[str, float] = {}
    batches = forward_batches(list({row.key: row for row in rows}.values()), batch_size, model, responses_only=True)
    with evaluating(model), torch.no_grad():
        for batch in ranks.dealt(batches):
            nll = token_nll(*predicting(batch.hidden(model), batch.input_ids, batch.response_mask), head(model))
            parts = nll.split([int(batch.response_mask[place].sum()) for place in batch.spans])
            found |= {key: float(part.mean()) for key, part in zip(batch.keys, parts, strict=True)}
    found = ranks.summed(found, batches[0].input_ids.device, same_names=False)
    return [found[row.key] for row in rows]


def mean_loss(model: nn.Module, rows: Sequence[Encoded], batch_size: int, ranks: Ranks = ALONE) -> float:
    """Compute the mean loss over the answers' tokens of all rows, in nats, as `row_losses` does."""
    tokens = [counted(row).response_tokens for row in rows]
    losses = row_losses(model, rows, batch_size, ranks)
    return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
