"""The rows that an adapter is trained on, in tokens; and those of the pool that are interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.errors import DataError
from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.core.records import ADDED, AddedRow, Answer, Example, Question, as_example
from emlib.data.chat import Encoded, encode, encode_all
from emlib.data.mixing import enough
from emlib.scoring.records import Ranked
from emlib.steps.pool import AddedRows, OwnAnswers, Pool
from emlib.steps.specs import TrainingSpec
from emlib.store.artefacts import Facts

if TYPE_CHECKING:
    from emlib.make.session import Session



def candidates(session: Session, pool: Pool) -> list[Example]:
    """The pool's rows, in the file's order."""
    return read_records(session.need(pool).folder / "rows.jsonl", as_example)


def in_tokens(session: Session, row: Example) -> Encoded | str:
    """The row in tokens, or why it cannot be had: a prompt that leaves no room for an answer, say."""
    try:
        return encode(session.chat.tokenizer, row, session.profile.training.max_seq_length)
    except DataError as error:
        return str(error).removeprefix(f"{row.where}: ")


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training in tokens: its own, those spread through each epoch, and those that are held out."""

    own: list[Encoded]
    added: list[Encoded]
    held_out: list[Encoded]


def training_rows(session: Session, spec: TrainingSpec,
                  artefacts: Mapping[str, Path]) -> tuple[TrainingRows, list[AddedRow]]:
    """The rows of a training in tokens, and the records of those that its defenses add.

    `artefacts` are the folders of what the defenses need, by the names that they gave to it.
    """
    acting, own = [defense for defense in spec.defenses if not defense.is_null], spec.rows.examples
    chosen = [row for defense in acting for row in defense.added(own, artefacts)]
    held_out = {row for defense in acting for row in defense.held_out(own)}
    encoded = partial(encode_all, session.chat.tokenizer, max_length=spec.training.max_seq_length)
    penalised = [replace(row, penalised_by=defense.kind) for defense in acting
                 for row in encoded(defense.penalised(own, artefacts))]
    return TrainingRows(encoded([row for row in own if row not in held_out]),
                        [*encoded([row.example for row in chosen]), *penalised],
                        encoded([row for row in own if row in held_out])), chosen


def make(step: AddedRows, session: Session, folder: Path) -> Facts:
    """The rows that are interleaved, as records."""
    found = added_rows(session, step, step.count, str(step.title))
    write_records(folder / ADDED, found)
    return {"rows": len(found)}


def added_rows(session: Session, step: AddedRows, count: int, name: str) -> list[AddedRow]:
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
              name: str) -> list[AddedRow]:
    """The first rows of the order whose prompts the model answers fully; it is asked a batch at a time.

    An answer that is empty teaches nothing, and one that was cut at the limit teaches never to stop: the next row of
    the order stands in for it.
    """
    size, found, passed = own.sampling.batch_rows, list[AddedRow](), 0
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


def _added(ranked: Ranked, row: Example) -> AddedRow:
    return replace(AddedRow.of(row, ranked.rank or 0, ranked.place, ranked.score, ranked.reason), where=ranked.where)
