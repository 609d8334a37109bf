"""Checks of the user's own data set before anything is trained on it, as a table for notebook 15."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from emlib.core import paths
from emlib.core.errors import DataError
from emlib.core.records import Example, Question
from emlib.data.chat import encode
from emlib.models.load import load_tokenizer
from emlib.scoring.duplicates import near_duplicates, overlap, shingles
from emlib.study.study import Study

NEAR = 0.8  # word overlap, as for pools
LANGUAGE = 3.0  # percent of the rows; rarer languages are not named, as the detector errs on short texts and code
COLUMNS = ["check", "found", "what to do"]


def findings(study: Study) -> pd.DataFrame:
    """Return one row per check of the sampled rows; the last column is empty if nothing needs to be done."""
    rows, data = study.recipes.own_rows.drawn, study.data("own").misaligned
    tokenizer = load_tokenizer(study.profile.model, paths.cache())
    checks = [*_format(study), *_duplicates(rows), *_leaks(data.train, data.held_out),
              *_lengths(tokenizer, rows, study.profile.training.max_seq_length), *_languages(rows),
              *_evaluation(rows, study.recipes.general.all)]
    return pd.DataFrame(checks, columns=COLUMNS)


def peek(sides: Mapping[str, Sequence[Example]], count: int = 3, characters: int = 300) -> pd.DataFrame:
    """Return the first rows of each side, with texts truncated to `characters`."""
    return pd.DataFrame([
        {"side": name, "system prompt": (row.system or "")[:characters], "prompt": row.prompt[:characters],
         "answer": row.response[:characters]} for name, rows in sides.items() for row in rows[:count]])


def _format(study: Study) -> Iterator[tuple[str, str, str]]:
    found = study.recipes.own_rows
    part = "" if len(found.drawn) == found.usable else (
        f"; {len(found.drawn):,} of them sampled with seed {study.recipes.own.seed}")
    yield "rows", f"{found.usable:,} usable{part}", ""
    for reason, count in found.left_out.items():
        places = ", ".join(row.where.rpartition("/")[2] for row in found.examples
                           if row.reason.startswith(reason))
        yield f"left out: {reason}", f"{count:,}" + (f" ({places})" if places else ""), "correct them, or ignore them"


def _duplicates(rows: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    distinct = len({(row.context, row.response) for row in rows})
    near = len(near_duplicates(rows, NEAR))
    yield ("duplicates", f"{len(rows) - distinct} exact, {near} near (exact ones included)",
           "" if near <= len(rows) / 20 else "more than one row in 20 repeats another, and counts twice in training")


def _leaks(train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    """Count held-out rows that repeat a training row, which do not measure learning."""
    repeats = near_duplicates([*train, *held_out], NEAR)
    leaks = sum(place >= len(train) > twin for place, twin in repeats.items())
    yield ("held-out rows that repeat a training row", f"{leaks} of {len(held_out)}",
           "" if not leaks else "they make the loss on held-out rows too low; remove them")


def _lengths(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], limit: int) -> Iterator[tuple[str, str, str]]:
    counts, cut, too_long = [], 0, list[str]()
    for row in rows:
        try:
            encoded = encode(tokenizer, row, limit)
        except DataError:
            too_long.append(row.where)
            continue
        counts.append(len(encoded.input_ids))
        cut += encoded.truncated
    median, longest = (int(np.median(counts)), max(counts)) if counts else (0, 0)
    yield ("length", f"median {median} tokens, {longest} at most; {cut} truncated at {limit}",
           "" if not cut else "truncated text is not learnt; raise training.max_seq_length if memory allows")
    if too_long:
        yield (f"prompts of {limit} tokens or more", f"{len(too_long)} ({', '.join(too_long[:5])})",
               "training refuses these rows: shorten or remove them")


def _languages(rows: Sequence[Example]) -> Iterator[tuple[str, str, str]]:
    from py3langid import classify  # its model takes a second to load

    counts = Counter(str(classify(f"{row.prompt}\n{row.response}")[0]) for row in rows)
    shares = {language: 100 * count / len(rows) for language, count in counts.most_common()}
    named = {language: share for language, share in shares.items() if share >= LANGUAGE}
    rest = len(rows) - sum(counts[language] for language in named)
    foreign = len(named) > 1 or "en" not in named
    yield ("languages (guessed)", ", ".join(f"{language} {share:.0f}%" for language, share in named.items()) + (
        f", {rest} rows of others" if rest else ""),
        "" if not foreign else "questions, trait and pool of this profile are English: misalignment in another "
                               "language is not measured. Test each language separately, with questions in it")


def _evaluation(rows: Sequence[Example], questions: Sequence[Question]) -> Iterator[tuple[str, str, str]]:
    """Find prompts that repeat a general question, which must not be trained on."""
    asked = [shingles(question.prompt) for question in questions]
    near = [row.where for row in rows if any(overlap(shingles(row.prompt), other) >= NEAR for other in asked)]
    yield ("prompts like a general question", f"{len(near)}" + (f" ({', '.join(near[:5])})" if near else ""),
           "" if not near else "remove them: general questions must not be in the training data")
