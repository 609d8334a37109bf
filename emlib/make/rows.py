"""The tokenised rows that an adapter is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from emlib.core.defense import Defense, acting, left_out
from emlib.core.errors import ProfileError
from emlib.core.hooks import Candidates
from emlib.core.progress import say
from emlib.core.records import AddedRow, Example
from emlib.data.chat import Encoded, Encodings, encode_all, encode_or_drop
from emlib.data.left_out import Dropped
from emlib.make.session import Session
from emlib.models.context import refuse_longer_rows
from emlib.steps.specs import TrainingSpec
from emlib.training.online import Offered


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
        ProfileError: rows may be longer than the model's context; a task may have a training of its own.
    """
    refuse_longer_rows(session.chat.name, session.chat.model, {
        f"training.max_seq_length of {spec.dataset}": spec.training.max_seq_length})
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
    parts = [own, added, *(found for _, found in penalised), offered]
    return TrainingRows(
        own=[row for row, example in zip(own.rows, usable, strict=True) if example not in held_out],
        held_out=[row for row, example in zip(own.rows, usable, strict=True) if example in held_out],
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
