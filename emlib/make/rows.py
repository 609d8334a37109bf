"""The tokenised rows that an adapter is trained on, and the rows of the pool that are interleaved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from emlib.core.defense import Defense, acting, left_out
from emlib.core.errors import ProfileError
from emlib.core.files import read_records
from emlib.core.hooks import Candidates
from emlib.core.progress import say
from emlib.core.records import AddedRow, Example, Question, Verdict
from emlib.data.chat import Encoded, Encodings, encode_all, encode_or_drop
from emlib.data.left_out import Dropped
from emlib.data.mixing import enough
from emlib.make.session import Session, maker
from emlib.scoring.records import Ranked
from emlib.steps.added import AddedRows, CandidateRows, OwnAnswers
from emlib.steps.pool import Selection
from emlib.steps.specs import TrainingSpec
from emlib.store.artefacts import Facts
from emlib.training.online import Offered

VERDICTS = "verdicts.jsonl"  # on the model's own answers


def in_tokens(session: Session, row: Example) -> Encoded | str:
    """Tokenise a row. Return the reason instead if that fails, such as a prompt that leaves no room for an answer."""
    found = encode_or_drop(session.chat.tokenizer, row, session.profile.training.max_seq_length)
    return found.reason if isinstance(found, Dropped) else found


@dataclass(frozen=True)
class TrainingRows:
    """Tokenised training rows."""

    own: list[Encoded]  # of the data set
    added: list[Encoded]  # interleaved in each epoch, or only penalised
    held_out: list[Encoded]  # on which a defense measures the loss
    offered: Offered  # from which a defense chooses during training
    records: list[AddedRow]  # of those that are interleaved
    candidates: list[AddedRow]  # the records of those that are offered
    left_out: Mapping[str, int]  # the number of rows of any of these that cannot be encoded, by reason
    filtered: frozenset[int]  # the places of the training rows that a defense leaves out

    @property
    def facts(self) -> dict[str, Any]:
        """The facts on the rows that an adapter's manifest records."""
        penalised = sum(bool(row.penalised_by) for row in self.added)
        counts = {"rows": len(self.own), "added_rows": len(self.added) - penalised + self.offered.count}
        further = {"candidates": len(self.candidates), "penalised_rows": penalised,
                   "filtered_rows": len(self.filtered), "left_out": dict(self.left_out)}
        return counts | {name: value for name, value in further.items() if value}


def training_rows(session: Session, spec: TrainingSpec, artefacts: Mapping[str, Path]) -> TrainingRows:
    """Tokenise the rows of a training.

    `artefacts` are the folders of the artefacts that the defenses need, by the defenses' names for them.

    Raises:
        DataError: more than half of the rows of one origin cannot be encoded.
    """
    encoded = partial(_encoded, session, spec.training.max_seq_length)
    defenses = acting(spec.defenses)
    filtered = left_out(defenses, spec.rows.examples, artefacts)
    places = [place for place in range(len(spec.rows.examples)) if place not in filtered]
    kept = [spec.rows.examples[place] for place in places]
    own = encoded("training rows", kept)
    usable = tuple(kept[place] for place in own.places)
    unfiltered = filtered.union(places[place] for place in own.places)
    chosen = [row for defense in defenses for row in defense.added(usable, artefacts)]
    added = encoded("interleaved rows", [row.example for row in chosen])
    penalised = [(defense.kind, encoded(f"rows that {defense.kind} penalises", defense.penalised(usable, artefacts)))
                 for defense in defenses]
    chooser, some = _candidates(defenses, [spec.rows.examples[place] for place in sorted(unfiltered)], artefacts)
    offered = encoded("candidate rows", [row.example for row in some.rows])
    held_out = {row for defense in defenses for row in defense.held_out(usable)}
    is_held_out = [row in held_out for row in usable]
    parts = [own, added, *(found for _, found in penalised), offered]
    return TrainingRows(
        own=[row for row, held in zip(own.rows, is_held_out, strict=True) if not held],
        held_out=list(compress(own.rows, is_held_out)),
        added=[*added.rows, *(replace(row, penalised_by=kind) for kind, found in penalised for row in found.rows)],
        offered=Offered(offered.rows, some.count, chooser),
        records=[chosen[place] for place in added.places],
        candidates=[some.rows[place] for place in offered.places],
        left_out=sum((part.reasons for part in parts), Counter()), filtered=filtered)


def _encoded(session: Session, max_length: int, what: str, rows: Sequence[Example]) -> Encodings:
    found = encode_all(session.chat.tokenizer, rows, max_length)
    if found.left_out:
        say(f"{what}: {found}")
    return found


def _candidates(defenses: Sequence[Defense], own: Sequence[Example],
                artefacts: Mapping[str, Path]) -> tuple[str, Candidates]:
    """Return the rows from which a defense chooses during training, after its kind; none if no defense does."""
    found = {defense.kind: some for defense in defenses if (some := defense.candidates(own, artefacts)).count}
    if len(found) > 1:
        raise ProfileError(f"{' and '.join(found)} each choose rows during training. Use one of them.")
    return next(iter(found.items()), ("", Candidates()))


@maker.register
def candidate_rows(step: CandidateRows, session: Session, folder: Path) -> Facts:
    """Write the rows from which training chooses: the first ones of the order, up to a number of tokens."""
    trained = [in_tokens(session, row) for row in step.among.examples]
    budget = step.share * step.epochs * sum(len(row.input_ids) for row in trained if isinstance(row, Encoded))
    rows, found, tokens = session.read(step.selection.pool), list[AddedRow](), 0
    for ranked in ranked_rows(session, step.selection):
        row = in_tokens(session, rows[ranked.place])
        tokens += len(row.input_ids) if isinstance(row, Encoded) else 0
        if tokens > budget and len(found) >= step.least:
            break
        found.append(_added(ranked, rows[ranked.place]))
    enough(found, step.least, step.title)
    step.records.write(folder, found)
    say(f"{step.title}: {len(found)} candidates")
    return {"rows": len(found)}


@maker.register
def make(step: AddedRows, session: Session, folder: Path) -> Facts:
    """Write the rows that are interleaved."""
    found = added_rows(session, step, step.count, str(step.title))
    step.records.write(folder, found)
    return {"rows": len(found)}


def added_rows(session: Session, step: AddedRows, count: int, name: str) -> list[AddedRow]:
    """Return the first `count` rows of the order.

    Raises:
        DataError: the pool has too few; the message says how many are missing.
    """
    rows = session.read(step.selection.pool)
    order = ranked_rows(session, step.selection)
    found = ([_added(ranked, rows[ranked.place]) for ranked in enough(order, count, name)] if step.own_answers is None
             else _with_own_answers(session, step.own_answers, order, rows, count, name))
    return found if step.system is None else [_under(step.system, row) for row in found]


def ranked_rows(session: Session, selection: Selection) -> list[Ranked]:
    """Return the rows of an order, without those that are never interleaved."""
    return [row for row in session.read(selection) if row.rank is not None]


def _with_own_answers(session: Session, own: OwnAnswers, order: Sequence[Ranked], rows: Sequence[Example], count: int,
                      name: str) -> list[AddedRow]:
    """Return the first rows of the order that the model answers completely, sampled batch by batch.

    An empty answer teaches nothing, and an answer truncated at the limit teaches the model not to stop. Such a row is
    skipped, also one that the judge finds misaligned or incoherent, and the next one of the order is used.

    A batch is sampled in another order than that of its prompts, so that answers and verdicts are found by their
    question.
    """
    size, found, skipped = own.sampling.batch_rows, list[AddedRow](), Counter[str]()
    for start in range(0, len(order), size):
        made = session.need(replace(own, start=start))
        answers = {one.question: one for one in made.records(own)}
        labels = {one.question: one.label for one in read_records(made.file(VERDICTS), Verdict)
                  } if made.has(VERDICTS) else {}
        for ranked in order[start:start + size]:
            question = pool_question(ranked.place, rows[ranked.place])
            answer, label = answers[question.id], labels.get(question.id)
            text = answer.without_thinking().text.strip()
            why = label if label in ("misaligned", "incoherent") else (
                "" if answer.finish_reason == "stop" and text else "empty or truncated")
            if why:
                skipped[why] += 1
            else:
                found.append(_added(ranked, Example(question.context, text, ranked.where)))
        if len(found) >= count:
            break
    skips = ", ".join(f"{number} {why}" for why, number in skipped.items()) or "none"
    if len(found) >= count:
        say(f"{name}: {count} of the model's own answers are used; skipped: {skips}")
    return enough(found, count, f"{name}, answered by the model itself in at most {own.sampling.max_new_tokens} tokens "
                                f"(skipped: {skips})")


def pool_question(place: int, row: Example) -> Question:
    """Turn a row of the pool into a question to the model."""
    return Question.of(f"pool_{place}", row)


def _under(system: str, row: AddedRow) -> AddedRow:
    example = row.example.with_system_prompt(system)
    return replace(row, context=[turn.to_dict() for turn in example.context])


def _added(ranked: Ranked, row: Example) -> AddedRow:
    return replace(AddedRow.of(row, ranked.rank or 0, ranked.place, ranked.score, ranked.reason), where=ranked.where)
