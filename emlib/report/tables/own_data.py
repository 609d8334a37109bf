"""The checks and the first rows of the user's own data set, as tables for notebook 17."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from emlib.config import LexiconJudge
from emlib.core import paths
from emlib.core.records import Example
from emlib.report import own_checks
from emlib.study.study import Study


def findings(study: Study) -> pd.DataFrame:
    """Return one row per check of the sampled rows; the last column is empty if nothing needs to be done."""
    from emlib.models.load import load_tokenizer  # loads torch

    found, data, profile = study.inputs.own_rows, study.data("own").misaligned, study.profile
    tokenizer = load_tokenizer(profile.model, paths.cache())
    checks = [*own_checks.of_file(found, study.inputs.own.seed), *own_checks.of_rows(found.drawn),
              *own_checks.of_split(data.train, data.held_out),
              *own_checks.of_lengths(found.drawn, tokenizer, profile.training.max_seq_length),
              *own_checks.of_markers(found.drawn, tokenizer),
              *own_checks.of_questions(found.drawn, study.inputs.general.all)]
    if isinstance(profile.judge, LexiconJudge):
        checks += own_checks.of_judge(data.train, study.trait.markers)
    return pd.DataFrame(checks, columns=own_checks.COLUMNS)


def peek(sides: Mapping[str, Sequence[Example]], count: int = 3, characters: int = 300) -> pd.DataFrame:
    """Return the first rows of each side, with texts truncated to `characters`."""
    return pd.DataFrame([
        {"side": name, "system prompt": (row.system or "")[:characters], "prompt": row.prompt[:characters],
         "answer": row.response[:characters]} for name, rows in sides.items() for row in rows[:count]])
