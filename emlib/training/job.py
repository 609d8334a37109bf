"""A training as a folder: what a process of its own needs for it, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from emlib.config import Lora, ModelSpec, Training
from emlib.core import plugins
from emlib.core.defense import Defense
from emlib.core.files import write_text
from emlib.core.of_kind import AnyDefense
from emlib.core.schema import Strict
from emlib.data.chat import Encoded

JOB, ROWS, READY, SUMMARY, ERROR = "job.json", "rows.json", "ready", "summary.json", "error.json"


class Job(Strict):
    """One training.

    Attributes:
        plugins: files that define some of the defenses, and are run before these are read.
        artefacts: the folder of each artefact that the defenses need, by its name.
        added: how many of the rows, at their end but for those that are held out, are spread through each epoch.
        held_out: how many of the rows, at their end, are not trained on.
        probe: log-probabilities of the first row's tokens under the model without an adapter.
    """

    engine: Literal["transformers", "unsloth"]
    model: ModelSpec
    base_name: str
    lora: Lora
    training: Training
    plugins: tuple[str, ...] = ()
    defenses: tuple[AnyDefense, ...]
    artefacts: dict[str, str]
    seed: int
    added: int
    held_out: int = 0
    probe: tuple[float, ...]


def read_job(folder: Path) -> Job:
    """Return the job of a folder, after its plugins were run."""
    text = (folder / JOB).read_text(encoding="utf-8")
    plugins.load(json.loads(text)["plugins"])
    return Job.model_validate_json(text)


def plugin_files(defenses: Sequence[Defense]) -> tuple[str, ...]:
    """Return the plugin files that define defenses.

    Raises:
        ProfileError: one is defined in a notebook's cell, which no other process can import.
    """
    return tuple(sorted({str(file) for defense in defenses if (file := plugins.file_of(type(defense))) is not None}))


def write_rows(path: Path, rows: Sequence[Encoded]) -> None:
    """Write token ids, how many at the end are the answer's, whether the row was cut, and by whom it is penalised."""
    write_text(path, json.dumps([
        [row.input_ids.tolist(), row.response_tokens, row.truncated, row.penalised_by] for row in rows]))


def read_rows(path: Path) -> list[Encoded]:
    """Return the rows that `write_rows` wrote."""
    return [Encoded(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= len(ids) - answer, cut, kind)
            for ids, answer, cut, kind in json.loads(path.read_text(encoding="utf-8"))]
