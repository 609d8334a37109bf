"""Scoring the pool: one forward pass over its rows for each model. Adapters are never merged into the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emlib.core.background import run_concurrently
from emlib.core.digests import key_of
from emlib.core.progress import say
from emlib.core.step import Step
from emlib.data.chat import Encoded
from emlib.make.backends import TRANSFORMERS
from emlib.make.inference import Weights
from emlib.make.rows import in_tokens
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.scoring.loss_cache import LossCache
from emlib.scoring.nll import score, scored_by
from emlib.scoring.records import RowLosses
from emlib.steps.pool import PoolLosses
from emlib.steps.scorers import AdapterFolder
from emlib.store.artefacts import Facts

Models = Mapping[str, tuple[Weights, LossCache]]  # by a model's name: its weights, and the cache of its losses
Found = dict[str, Iterator[float]]  # by a model's name: the losses of the rows in order
SERVED_TOKENS = 2**18  # sent to a server between two writes of the loss cache
CACHE_VERSION = 1  # raised when losses are computed in another way


@maker.register
def make(step: PoolLosses, session: Session, folder: Path) -> Facts:
    """Compute each row's losses under the aligned model and the scorers."""
    seconds, rows = session.timer(step), session.read(step.pool)
    models = {name: (weights, _cache(step, session, key)) for name, (weights, key) in _models(step, session).items()}
    remarks = list(filter(None, (scorer.remark for scorer in step.scorers if isinstance(scorer, AdapterFolder))))
    for remark in remarks:
        say(remark)
    encoded = [in_tokens(session, row) for row in rows]
    fitting = [row for row in encoded if isinstance(row, Encoded)]
    session.inference.expect(sum(weights != Weights() for weights, _ in models.values()))
    choices = [session.inference.backend_for("scoring", weights) for weights, _ in models.values()]
    choice = next((one for one in choices if one.name == TRANSFORMERS), choices[0])
    score_all = _by_transformers if choice.name == TRANSFORMERS else _by_server
    found = score_all(step, session, models, fitting)
    step.records.write(folder, [_losses_of(place, row, found) for place, row in enumerate(encoded)])
    say(f"{len(fitting)} rows scored under {', '.join(models)}")
    computed = {"losses": len(fitting) * len(models), "computed": sum(cache.added for _, cache in models.values())}
    return {"rows": len(rows), "models": list(models), **computed, **({"remarks": remarks} if remarks else {}),
            **session.facts, "seconds": seconds(), **choice.facts}


def _models(step: PoolLosses, session: Session) -> dict[str, tuple[Weights, Any]]:
    """Return the weights of the aligned model and then of each scorer, by name, with the adapter's identity in keys."""
    def weights_of(one: Step | AdapterFolder | None) -> tuple[Weights, Any]:
        if one is None:
            return Weights(), None
        if isinstance(one, AdapterFolder):
            return Weights(key_of("served", one.identity), one.folder), one.identity
        return Weights.under(session.need(one)), one.key

    names = [f"misaligned {number} ({domain})".replace(".", "_")  # PEFT takes no dots
             for number, domain in enumerate(step.domains, start=1)]
    return {name: weights_of(one) for name, one in zip(["aligned", *names], [step.aligned, *step.scorers], strict=True)}


def _by_transformers(step: PoolLosses, session: Session, models: Models, rows: Sequence[Encoded]) -> Found:
    """Score with one base model, on which the adapters are switched."""
    folders = {name: weights.folder for name, (weights, _) in models.items() if weights.folder is not None}
    found: Found = {}
    with adapters.switchable(session.chat.model, session.chat.name, folders) as under:
        for name, (_, cache) in models.items():
            with under(name if name in folders else None) as model:
                found[name] = iter(score(model, rows, cache, step.pool.spec.token_budget, name))
    return found


def _by_server(_: PoolLosses, session: Session, models: Models, rows: Sequence[Encoded]) -> Found:
    """Score on a server, under all adapters at once. The loss cache is written every few hundred rows."""
    inference = session.inference
    calls = [partial(scored_by, partial(inference.client.nll, inference.model(weights)), rows, cache, SERVED_TOKENS,
                     name) for name, (weights, cache) in models.items()]
    if not inference.mixes(weights for weights, _ in models.values()):
        return {name: iter(call()) for name, call in zip(models, calls, strict=True)}
    with run_concurrently(calls, inference.stop) as found:
        return {name: iter(losses) for name, losses in zip(models, found, strict=True)}


def _cache(step: PoolLosses, session: Session, adapter: Any) -> LossCache:
    """Open the cache of all losses under one model. `adapter` is the adapter's key, or the digests of its files."""
    key = key_of("nll", {"version": CACHE_VERSION, "model": step.model.identity, "adapter": adapter,
                         "backend": step.backend})
    return LossCache(session.store.root / "nll" / f"{key}.jsonl")


def _losses_of(place: int, row: Encoded | str, found: Mapping[str, Iterator[float]]) -> RowLosses:
    """Return the next loss of each model; None for a row that was not scored, given as the reason."""
    if isinstance(row, str):
        return RowLosses(place, None, [None] * (len(found) - 1), 0)
    aligned, *misaligned = [loss if math.isfinite(loss) else None for loss in map(next, found.values())]
    return RowLosses(place, aligned, misaligned, row.response_tokens)
