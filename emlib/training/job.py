"""The folder of a training in a subprocess: its inputs and its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from emlib.config import Lora, ModelSpec, Monitor, Training
from emlib.core import plugins, registry
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.core.files import write_text
from emlib.core.of_kind import AnyDefense
from emlib.core.schema import Strict
from emlib.data.chat import Encoded

JOB, ROWS, READY, SUMMARY, ERROR = "job.json", "rows.json", "ready", "summary.json", "error.json"


class Job(Strict):
    """One training.

    Attributes:
        plugins: files that define some of the defenses; they run before the defenses are read.
        sources: the digest of the source of each defense that is not ours, by its kind, as the key has it.
        artefacts: the folder of each artefact that the defenses need, by its name.
        added: number of rows, after the data set's own, that are spread through each epoch.
        held_out: number of rows, after these, that are not trained on.
        offered: number of rows at the end, from which the defense of kind `chooser` chooses `taken` in each epoch.
        probe: log-probabilities of the first row's tokens under the model without an adapter.
        keep: the shares of the steps after which the adapter is kept as well.
        then_stop: whether training ends when all of these are kept.
        start: the folder of the adapter whose weights it begins with; None: a new one.
        limit: the number of steps; None: those of the epochs.
        monitor: the folder of what a monitor reads, and its settings; None: no monitor.
    """

    engine: Literal["transformers", "unsloth"]
    model: ModelSpec
    base_name: str
    lora: Lora
    training: Training
    plugins: tuple[str, ...] = ()
    sources: dict[str, str] = Field(default_factory=dict)
    defenses: tuple[AnyDefense, ...]
    artefacts: dict[str, str]
    seed: int
    added: int
    held_out: int = 0
    offered: int = 0
    taken: int = 0
    chooser: str = ""
    probe: tuple[float, ...]
    keep: tuple[float, ...] = ()
    then_stop: bool = False
    start: str | None = None
    limit: int | None = None
    monitor: tuple[str, Monitor] | None = None


def read_job(folder: Path) -> Job:
    """Run the plugins of a folder's job, and read the job.

    Raises:
        EmlibError: a defense is defined otherwise than where the job was written: its file was edited since.
    """
    text = (folder / JOB).read_text(encoding="utf-8")
    plugins.load(json.loads(text)["plugins"])
    job = Job.model_validate_json(text)
    now = sources(job.defenses)
    if changed := [kind for kind in sorted({*now, *job.sources}) if now.get(kind) != job.sources.get(kind)]:
        raise EmlibError(f"The source of the defense '{changed[0]}' was changed after the study was opened, and the "
                         "key of this training has the former one. Nothing was trained. Open the study again (restart "
                         "the notebook, or run the same command), and the new definition is trained under its own key; "
                         "or undo the change.")
    return job


def sources(defenses: Sequence[Defense]) -> dict[str, str]:
    """Return the digest of the source of each defense that is not ours, by its kind."""
    return {defense.kind: digest for defense in defenses
            if (digest := registry.source_digest(type(defense))) is not None}


def plugin_files(defenses: Sequence[Defense]) -> tuple[str, ...]:
    """Return the plugin files that define defenses.

    Raises:
        ProfileError: a defense is defined in a notebook cell, which no other process can import.
    """
    return tuple(sorted({str(file) for defense in defenses if (file := plugins.file_of(type(defense))) is not None}))


def write_rows(path: Path, rows: Sequence[Encoded]) -> None:
    """Write for each row its token ids, number of answer tokens, whether it was cut, and by which kind penalised.

    Last is the number of tokens of an empty think block before the answer's text, if there is one.
    """
    write_text(path, json.dumps([
        [row.input_ids.tolist(), row.response_tokens, row.truncated, row.penalised_by, *filter(None, [row.before])]
        for row in rows]))


def read_rows(path: Path) -> list[Encoded]:
    """Read the rows that `write_rows` wrote."""
    return [Encoded(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= len(ids) - answer, cut, kind, *before)
            for ids, answer, cut, kind, *before in json.loads(path.read_text(encoding="utf-8"))]
