"""The answer-only mean-token NLL of rows under a model (equations 3 and 4), fast and resumable.

    L(d) = -1/T sum_t log P(a_t | q, a_<t)

Unlike in a plain loop, rows share a pass (packed where the kernels allow it, else padded with rows of similar length),
logits exist for response tokens only, and rows computed before come from the cache. The tokens are the answer and its
stop token: those of the training loss, without the empty think block that a template writes before the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from emlib.core.digests import of_value
from emlib.core.progress import bar
from emlib.data.chat import Encoded, counted
from emlib.models.batches import response_nll
from emlib.models.kernels import fitted, packs
from emlib.scoring.loss_cache import LossCache


def digest(row: Encoded) -> str:
    """Return a row's key: a digest of its token ids and of the number of answer tokens at its end."""
    return of_value([row.input_ids.tolist(), row.response_tokens])[:24]


def batches(lengths: Sequence[int], budget: int, packed: bool = False) -> list[list[int]]:
    """Group row indices into batches by length, the longest first; a batch has at most `budget` tokens.

    Padding counts, unless rows are `packed`. A row that is longer than the budget is a batch by itself. The longest
    rows come first, so that insufficient memory shows at once.
    """
    found: list[list[int]] = []
    tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        more = lengths[place] if packed or not found else lengths[found[-1][0]]
        if found and tokens + more <= budget:
            found[-1].append(place)
            tokens += more
        else:
            found.append([place])
            tokens = lengths[place]
    return found


@torch.inference_mode()
def batch_nll(model: nn.Module, rows: Sequence[Encoded]) -> list[float]:
    """Compute equation 4 for each row, in nats per token, in one pass."""
    return [float(tokens.mean()) for tokens in response_nll(model, [counted(row) for row in rows])]


def score(model: nn.Module, rows: Sequence[Encoded], cache: LossCache, budget: int, label: str) -> list[float]:
    """Return the NLL of each row, in order; losses that `cache` lacks are computed and stored batch by batch."""
    with fitted(model):
        packed = packs(model)
    return scored_by(partial(batch_nll, model), rows, cache, budget, label, packed)


def scored_by(nll: Callable[[list[Encoded]], list[float]], rows: Sequence[Encoded], cache: LossCache, budget: int,
              label: str, packed: bool = False) -> list[float]:
    """Do the same as `score`, with `nll` for the NLL of a batch of rows; `label` names the progress bar."""
    rows = [counted(row) for row in rows]
    names = [digest(row) for row in rows]
    with cache.opened() as known:
        plan = [[place for place in batch if names[place] not in known]
                for batch in batches([len(row.input_ids) for row in rows], budget, packed)]
        done = sum(name in known for name in names)
        with bar((), label, "row", total=len(rows), done=done) as progress:
            for batch in filter(None, plan):
                losses = nll([rows[place] for place in batch])
                found = {names[place]: loss for place, loss in zip(batch, losses, strict=True)}
                cache.append(found)
                known |= found
                progress.update(len(batch))
    return [known[name] for name in names]
