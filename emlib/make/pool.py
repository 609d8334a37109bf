"""The pool: its candidate rows, a judge's scores of refusals, losses under the scorers, and the order of its rows.

The pool is scored in one forward pass over its rows for each model. Adapters are never merged into the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from emlib.config import Pool as PoolSpec
from emlib.core.background import run_concurrently
from emlib.core.digests import key_of
from emlib.core.files import write_objects, write_records
from emlib.core.progress import say
from emlib.core.records import Example
from emlib.core.seeds import chosen
from emlib.core.step import Step
from emlib.data.chat import Encoded, counted
from emlib.data.left_out import Dropped, is_blank
from emlib.data.pools import PoolRows, read_pool
from emlib.data.sources import locate
from emlib.make.backends import TRANSFORMERS
from emlib.make.inference import Weights
from emlib.make.rows import in_tokens
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.scoring.duplicates import near_duplicates
from emlib.scoring.loss_cache import FOLDER, LossCache
from emlib.scoring.nll import score, scored_by
from emlib.scoring.order import RowLosses, at_random, by_score
from emlib.scoring.refusals import NOTHING, Filtered, ask, by_judge, by_keywords
from emlib.steps.pool import Pool, PoolLosses, Refusals, Selection
from emlib.steps.scorers import AdapterFolder
from emlib.store.artefacts import Facts

Models = Mapping[str, tuple[Weights, LossCache]]  # by a model's name: its weights, and the cache of its losses
Found = dict[str, Iterator[float]]  # by a model's name: the losses of the rows in order
SERVED_TOKENS = 2**18  # sent to a server between two writes of the loss cache
CACHE_VERSION = 1  # raised when losses are computed in another way


@maker.register
def candidates(step: Pool, session: Session, folder: Path) -> Facts:
    """Write the candidate rows, and the reason for each row that was left out."""
    read = read_pool(locate(step.spec.source), step.form)
    if step.form == "text":
        tokenizer, length = session.chat.tokenizer, step.spec.chunk_tokens
        read = replace(read, rows=tuple(part for row in read.rows for part in parts_of(tokenizer, row, length)))
    found = _candidates(step.spec, read)
    write_objects(folder / step.records.name, (row.to_record() for row in found.rows))
    write_records(folder / "dropped.jsonl", found.dropped)
    reasons = Counter(row.counted_as for row in found.dropped)
    say(f"pool '{step.spec.source}': {len(found.rows)} candidates" + "".join(
        f", {count} left out ({reason})" for reason, count in reasons.items()) + "".join(
        f"; noted {count} times: {note}" for note, count in read.notes.items()))
    return {"rows": len(found.rows), "dropped": dict(reasons)}


def parts_of(tokenizer: PreTrainedTokenizerBase, row: Example, length: int) -> list[Example]:
    """Divide a plain text at the borders of its tokens into parts of `length` tokens; blank parts are left out."""
    text = row.response
    places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    starts = [0, *(start for start, _ in places[length::length])]
    return [replace(row, response=text[start:end], where=f"{row.where}, part {number}")
            for number, (start, end) in enumerate(pairwise([*starts, len(text)]), start=1)
            if not is_blank(text[start:end])]


@maker.register
def refusals(step: Refusals, session: Session, folder: Path) -> Facts:
    """Have a judge score how far each row's answer refuses, once for all data sets."""
    scored = ask(session.read(step.pool), step.how, session.budget)
    step.records.write(folder, scored)
    unscored = Counter(one.reason for one in scored if one.score is None)
    say(f"refusals: {len(scored)} rows judged" + "".join(
        f", {count} without a score, which are kept ({reason})" for reason, count in unscored.items()))
    return {"asked": len(scored), "unscored": dict(unscored)}


@maker.register
def select(step: Selection, session: Session, folder: Path) -> Facts:
    """Order the rows at random or by their losses. Rows that are never interleaved come last, each with its reason."""
    rows, pool = session.read(step.pool), step.pool.spec
    losses = None if step.losses is None else session.read(step.losses)
    filtered = _refused(step, session, rows)
    unfit = {place: f"does not fit: {reason}" for place, row in enumerate(rows) if isinstance(
        reason := in_tokens(session, row), str)}
    order = at_random(rows, unfit, step.seed or 0) if losses is None else by_score(
        rows, losses, unfit, pool.epsilon, filtered)
    step.records.write(folder, order)
    reasons = Counter(ranked.reason.partition(":")[0] for ranked in order if ranked.rank is None)
    unscored = [ranked.where for ranked in order if ranked.reason.startswith("no score")]
    ranks = sum(ranked.rank is not None for ranked in order)
    say(f"{step.dataset or 'pool'}, {step.choose}: {ranks} rows in order" + "".join(
        f", {count} never interleaved ({reason})" for reason, count in reasons.items()) + (
        f"; without a score: {', '.join(unscored[:5])}" if unscored else ""))
    return {"ranked": ranks, "never_taken": dict(reasons)}


def _candidates(pool: PoolSpec, read: PoolRows) -> PoolRows:
    """Drop short answers, near-duplicates, and then rows at random down to the profile's number."""
    long = [row for row in read.rows if len(row.response.split()) >= pool.least_words]
    dropped = [*read.dropped, *(Dropped(row.where, f"an answer of fewer than {pool.least_words} words")
                                for row in read.rows if len(row.response.split()) < pool.least_words)]
    repeats = {} if pool.near_duplicates is None else near_duplicates(long, pool.near_duplicates)
    rows = [row for place, row in enumerate(long) if place not in repeats]
    dropped += [Dropped(long[place].where, f"near-duplicate: of {long[earlier].where}")
                for place, earlier in repeats.items()]
    drawn = chosen(range(len(rows)), pool.rows, pool.seed, "pool")
    dropped += [Dropped(rows[place].where, "not drawn") for place in sorted({*range(len(rows))} - {*drawn})]
    return PoolRows(tuple(rows[place] for place in drawn), tuple(dropped))


def _refused(step: Selection, session: Session, rows: list[Example]) -> Filtered:
    """Apply the refusal filter to the rows, by a judge's scores or by keywords, if the step has one."""
    pool = step.pool.spec
    if step.refusals is not None:
        return by_judge(session.read(step.refusals), step.refusals.how.threshold)
    return by_keywords(rows, pool.refusal_keywords, pool.refusal_words) if step.filtered else NOTHING


@maker.register
def pool_losses(step: PoolLosses, session: Session, folder: Path) -> Facts:
    """Compute each row's losses under the aligned model and the scorers."""
    step.refuse_seen()
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
    return LossCache(session.store.root / FOLDER / f"{key}.jsonl")


def _losses_of(place: int, row: Encoded | str, found: Mapping[str, Iterator[float]]) -> RowLosses:
    """Return the next loss of each model; None for a row that was not scored, given as the reason."""
    if isinstance(row, str):
        return RowLosses(place, None, [None] * (len(found) - 1), 0)
    aligned, *misaligned = [loss if math.isfinite(loss) else None for loss in map(next, found.values())]
    return RowLosses(place, aligned, misaligned, counted(row).response_tokens)
