"""Reading the pool, asking a judge which of its answers are refusals, and ordering its rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from emlib.config import Pool as PoolSpec
from emlib.core.files import write_objects, write_records
from emlib.core.progress import say
from emlib.core.records import Example
from emlib.core.seeds import chosen
from emlib.data.left_out import Dropped, is_blank
from emlib.data.pools import Candidates, read_pool
from emlib.data.sources import locate
from emlib.make.rows import in_tokens
from emlib.make.session import Session, maker
from emlib.scoring.duplicates import near_duplicates
from emlib.scoring.order import at_random, by_score
from emlib.scoring.refusals import NOTHING, Filtered, ask, by_judge, by_keywords
from emlib.steps.pool import Pool, Refusals, Selection
from emlib.store.artefacts import Facts


@maker.register
def make(step: Pool, session: Session, folder: Path) -> Facts:
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
        f", {count} left out ({reason})" for reason, count in reasons.items()))
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


def _candidates(pool: PoolSpec, read: Candidates) -> Candidates:
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
    return Candidates(tuple(rows[place] for place in drawn), tuple(dropped))


def _refused(step: Selection, session: Session, rows: list[Example]) -> Filtered:
    """Apply the refusal filter to the rows, by a judge's scores or by keywords, if the step has one."""
    pool = step.pool.spec
    if step.refusals is not None:
        return by_judge(session.read(step.refusals), step.refusals.how.threshold)
    return by_keywords(rows, pool.refusal_keywords, pool.refusal_words) if step.filtered else NOTHING
