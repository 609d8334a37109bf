"""How long training rows are, in tokens of the study's model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emlib.core import paths
from emlib.core.records import Example
from emlib.data.chat import WHOLE, encode_all
from emlib.models.load import load_tokenizer
from emlib.report.benign import first_runs
from emlib.study.study import Study


def narrow(study: Study, datasets: Iterable[str]) -> dict[str, list[int]]:
    """Return the tokens of each training row of narrow data sets, by data set and side."""
    return {f"{name}, {side}": tokens(study, split.train)
            for name in datasets for side, split in study.data(name).sides.items()}


def benign(study: Study) -> dict[str, list[int]]:
    """Return the tokens of each training row of benign tasks, by task and tier."""
    return {name: tokens(study, study.benign(run).data.train) for name, run in first_runs(study).items()}


def tokens(study: Study, rows: Sequence[Example]) -> list[int]:
    """Return the tokens of each row that can be encoded, in the model's chat template and without a limit."""
    tokenizer = load_tokenizer(study.profile.model, paths.cache())
    return [len(row.input_ids) for row in encode_all(tokenizer, rows, WHOLE).rows]
