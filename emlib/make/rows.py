"""The tokenised rows that an adapter is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from emlib.core.progress import say
from emlib.core.records import Example
from emlib.data.chat import Encoded, Encodings, encode_all, encode_or_drop
from emlib.data.left_out import Dropped
from emlib.make.session import Session
from emlib.models.context import refuse_longer_rows
from emlib.steps.specs import TrainingSpec
from emlib.training.rows import TrainingRows, assemble


def in_tokens(session: Session, row: Example) -> Encoded | str:
    """Tokenise a row. Return the reason instead if that fails, such as a prompt that leaves no room for an answer."""
    found = encode_or_drop(session.chat.tokenizer, row, session.profile.training.max_seq_length)
    return found.reason if isinstance(found, Dropped) else found


def training_rows(session: Session, spec: TrainingSpec, artefacts: Mapping[str, Path]) -> TrainingRows:
    """Tokenise the rows of a training.

    `artefacts` are the folders of the artefacts that the defenses need, by the defenses' names for them.

    Raises:
        DataError: more than half of the rows of one origin cannot be encoded.
        ProfileError: rows may be longer than the model's context; a task may have a training of its own.
    """
    refuse_longer_rows(session.chat.name, session.chat.model, {
        f"training.max_seq_length of {spec.dataset}": spec.training.max_seq_length})
    return assemble(spec.defenses, spec.rows.examples, artefacts,
                    partial(_encoded, session, spec.training.max_seq_length))


def _encoded(session: Session, max_length: int, what: str, rows: Sequence[Example]) -> Encodings:
    found = encode_all(session.chat.tokenizer, rows, max_length)
    if found.left_out:
        say(f"{what}: {found}")
    return found
