"""The rows of a training, assembled from the data set's and from what its defenses add, leave out and offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emlib.core.defense import Defense, acting, left_out
from emlib.core.errors import DataError, ProfileError
from emlib.core.hooks import Candidates
from emlib.core.records import AddedRow, Example
from emlib.data.chat import Encoded, Encodings
from emlib.training.online import Offered

Encode = Callable[[str, Sequence[Example]], Encodings]  # given what the rows are, for messages


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


def assemble(defenses: Iterable[Defense], examples: Sequence[Example], artefacts: Mapping[str, Path],
             encode: Encode) -> TrainingRows:
    """Tokenise the rows of a training under these defenses; `examples` are the data set's, as they changed them.

    Raises:
        DataError: no row of the data set is left to train on.
        ProfileError: two defenses choose rows during training.
    """
    defenses = acting(defenses)
    filtered = left_out(defenses, examples, artefacts)
    places = [place for place in range(len(examples)) if place not in filtered]
    kept = [examples[place] for place in places]
    own = encode("training rows", kept)
    usable = tuple(kept[place] for place in own.places)
    unfiltered = filtered.union(places[place] for place in own.places)
    chosen = [row for defense in defenses for row in defense.added(usable, artefacts)]
    added = encode("interleaved rows", [row.example for row in chosen])
    penalised = [(defense.kind, encode(f"rows that {defense.kind} penalises", defense.penalised(usable, artefacts)))
                 for defense in defenses]
    chooser, some = _candidates(defenses, [examples[place] for place in sorted(unfiltered)], artefacts)
    offered = encode("candidate rows", [row.example for row in some.rows])
    held_out = {row for defense in defenses for row in defense.held_out(usable)}
    if not set(usable) - held_out:
        raise DataError(f"Of {len(examples)} fine-tuning rows none is left to train on: {len(filtered)} are left out "
                        f"by defenses ({', '.join(one.kind for one in defenses)}), {len(held_out)} held out by them, "
                        f"and {own.reasons.total()} cannot be encoded. Leave more rows in.")
    parts = [own, added, *(found for _, found in penalised), offered]
    return TrainingRows(
        own=[row for row, example in zip(own.rows, usable, strict=True) if example not in held_out],
        held_out=[row for row, example in zip(own.rows, usable, strict=True) if example in held_out],
        added=[*added.rows, *(replace(row, penalised_by=kind) for kind, found in penalised for row in found.rows)],
        offered=Offered(offered.rows, some.count, chooser),
        records=[chosen[place] for place in added.places],
        candidates=[some.rows[place] for place in offered.places],
        left_out=sum((part.reasons for part in parts), Counter()), filtered=filtered)


def _candidates(defenses: Sequence[Defense], own: Sequence[Example],
                artefacts: Mapping[str, Path]) -> tuple[str, Candidates]:
    """Return the rows from which a defense chooses during training, after its kind; none if no defense does."""
    found = {defense.kind: some for defense in defenses if (some := defense.candidates(own, artefacts)).count}
    if len(found) > 1:
        raise ProfileError(f"{' and '.join(found)} each choose rows during training. Use one of them.")
    return next(iter(found.items()), ("", Candidates()))
