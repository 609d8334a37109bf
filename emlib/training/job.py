"""A training as a folder: what a process of its own needs for it, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from emlib.config import Defense, Lora, ModelSpec, Training
from emlib.core.files import write_text
from emlib.core.schema import Strict
from emlib.data.chat import Encoded

JOB, ROWS, VECTOR, READY, SUMMARY, ERROR = (
    "job.json", "rows.json", "vector.safetensors", "ready", "summary.json", "error.json")


class Job(Strict):
    """One training. `probe` holds log-probabilities of the first row's tokens under the model without an adapter."""

    engine: Literal["transformers", "unsloth"]
    model: ModelSpec
    base_name: str
    lora: Lora
    training: Training
    defenses: tuple[Defense, ...]
    seed: int
    reference: str | None
    added: int
    probe: tuple[float, ...]


def write_rows(path: Path, rows: Sequence[Encoded]) -> None:
    """Token ids, how many at the end are the answer's, and whether the row was cut."""
    write_text(path, json.dumps([[row.input_ids.tolist(), row.response_tokens, row.truncated] for row in rows]))


def read_rows(path: Path) -> list[Encoded]:
    """The rows that `write_rows` wrote."""
    return [Encoded(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= len(ids) - answer, cut)
            for ids, answer, cut in json.loads(path.read_text(encoding="utf-8"))]
