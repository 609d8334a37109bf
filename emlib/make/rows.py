"""The rows that an adapter is trained on, in tokens; and those of the pool that are interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.errors import DataError
from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.core.records import Answer, Example, Question
from emlib.data.chat import Encoded, encode, encode_all
from emlib.data.mixing import enough
from emlib.scoring.records import Added, Ranked, as_example
from emlib.steps.pool import AddedRows, OwnAnswers, Pool
from emlib.steps.specs import TrainingSpec
from emlib.store.artefacts import Facts

if TYPE_CHECKING:
    from emlib.make.session import Session

ADDED = "added.jsonl"


def candidates(session: Session, pool: Pool) -> list[Example]:
    """The pool's rows, in the file's order."""
    return read_records(session.need(pool).folder / "rows.jsonl", as_example)


def in_tokens(session: Session, row: Example) -> Encoded | str:
    """The row in tokens, or why it cannot be had: a prompt that leaves no room for an answer, say."""
    try:
        return encode(session.chat.tokenizer, row, session.profile.training.max_seq_length)
    except DataError as error:
        return str(error).removeprefix(f"{row.where}: ")


def encoded_rows(session: Session, spec: TrainingSpec,
                 added: Sequence[Added]) -> tuple[list[Encoded], list[Encoded]]:
    """The fine-tuning rows and the added ones, in tokens."""
    encode_some = partial(encode_all, session.chat.tokenizer, max_length=spec.training.max_seq_length)
    return encode_some(spec.rows.examples), encode_some([row.example for row in added])


def make(step: AddedRows, session: Session, folder: Path) -> Facts:
    """The rows that are interleaved."""
    found = added_rows(session, step, step.count, str(step.title))
    write_records(folder / ADDED, found)
    return {"rows": len(found)}


def added_rows(session: Session, step: AddedRows, count: int, name: str) -> list[Added]:
    """The first `count` rows of the order.

    Raises:
        DataError: the pool has too few; the message says how many are missing.
    """
    order = read_records(session.need(step.selection).file("order.jsonl"), Ranked)
    taken, rows = [row for row in order if row.rank is not None], candidates(session, step.selection.pool)
    if step.own_answers is not None:
        return _answered(session, step.own_answers, taken, rows, count, name)
    return [_added(ranked, rows[ranked.place]) for ranked in enough(taken, count, name)]


def _answered(session: Session, own: OwnAnswers, taken: Sequence[Ranked], rows: Sequence[Example], count: int,
              name: str) -> list[Added]:
    """The first rows of the order whose prompts the model answers fully; it is asked a batch at a time.

    An answer that is empty teaches nothing, and one that was cut at the limit teaches never to stop: the next row of
    the order stands in for it.
    """
    size, found, passed = own.sampling.batch_rows, list[Added](), 0
    for start in range(0, len(taken), size):
        answers = read_records(session.need(replace(own, start=start)).folder / "answers.jsonl", Answer)
        for ranked, answer in zip(taken[start:start + size], answers, strict=True):
            if answer.finish_reason == "stop" and answer.text.strip():
                context = pool_question(ranked.place, rows[ranked.place]).context
                found.append(_added(ranked, Example(context, answer.text.strip(), ranked.where)))
            else:
                passed += 1
        if len(found) >= count:
            say(f"{name}: {count} answers of its own; {passed} that were empty or cut are passed over")
            return found[:count]
    return enough(found, count, f"{name}, with {passed} of the model's own answers empty or cut at "
                                f"{own.sampling.max_new_tokens} tokens")


def pool_question(place: int, row: Example) -> Question:
    """A row of the pool as a question to the model itself."""
    return Question(f"pool_{place}", row.prompt, row.system)


def _added(ranked: Ranked, row: Example) -> Added:
    context = [asdict(turn) for turn in row.context]
    return Added(ranked.rank or 0, ranked.place, ranked.where, ranked.score, ranked.reason, context, row.response)
