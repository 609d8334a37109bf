"""The answer-only mean-token NLL of rows under a model (equations 3 and 4), fast and resumable.

    L(d) = -1/T sum_t log P(a_t | q, a_<t)

Here it differs from a plain loop: rows share a pass, packed where that can be had and of like length elsewhere, logits
exist for response tokens alone, and a row that was computed before is looked up. The tokens are those that training
counts: the answer and the end of its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from emlib.core.digests import of_value
from emlib.core.progress import bar
from emlib.data.chat import Encoded
from emlib.models.batches import collate, pack
from emlib.models.kernels import fitted, packs
from emlib.models.logprobs import head, last_hidden, predicting, token_nll
from emlib.scoring.loss_cache import LossCache


def digest(row: Encoded) -> str:
    """A row's name: of its token ids and of how many of them, at its end, are the answer's."""
    return of_value([row.input_ids.tolist(), row.response_tokens])[:24]


def batches(lengths: Sequence[int], budget: int, packed: bool = False) -> list[list[int]]:
    """Places of rows by length, the longest first; a batch has at most `budget` tokens.

    Padding counts, of which there is none where rows are `packed`. A row that is longer than the budget goes alone.
    Longest first, so that memory that does not suffice shows at once.
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
    """Equation 4 for each row, in nats a token, computed in float32 from the hidden states on.

    Packed rows do not see each other; elsewhere rows are padded on the right, where nothing that counts can see it in a
    causal model. Hence no attention mask, and the faster kernel that this allows.
    """
    device = next(model.parameters()).device
    with fitted(model):
        batch = pack(rows, device) if packs(model) else collate(rows, device)
        hidden = last_hidden(model, batch.input_ids, None, batch.position_ids)
    per_token = token_nll(*predicting(hidden, batch.input_ids, batch.response_mask), head(model))
    return [float(row.mean()) for row in per_token.split([row.response_tokens for row in rows])]


def score(model: nn.Module, rows: Sequence[Encoded], ledger: LossCache, budget: int, what: str) -> list[float]:
    """The NLL of each row, in order; what `ledger` lacks is computed and written there batch by batch."""
    with fitted(model):
        packed = packs(model)
    return scored_by(partial(batch_nll, model), rows, ledger, budget, what, packed)


def scored_by(nll: Callable[[list[Encoded]], list[float]], rows: Sequence[Encoded], ledger: LossCache, budget: int,
              what: str, packed: bool = False) -> list[float]:
    """`score` by whatever gives the NLL of a batch of rows."""
    names = [digest(row) for row in rows]
    with ledger.opened() as known:
        plan = [[place for place in batch if names[place] not in known]
                for batch in batches([len(row.input_ids) for row in rows], budget, packed)]
        done = sum(name in known for name in names)
        with bar((), what, "row", total=len(rows), done=done) as progress:
            for batch in filter(None, plan):
                losses = nll([rows[place] for place in batch])
                found = {names[place]: loss for place, loss in zip(batch, losses, strict=True)}
                ledger.append(found)
                known |= found
                progress.update(len(batch))
    return [known[name] for name in names]
