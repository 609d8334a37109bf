"""Checks of the user's own data set before anything is trained on it: for notebook 17 and `make check-data`.

A check is a row of three texts: what is checked, what was found, and what to do, which is empty where nothing needs to
be done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emlib.config import LexiconJudge
from emlib.core import paths
from emlib.core.records import Example, Message, Question
from emlib.data import conversations, own, tables
from emlib.data.left_out import Dropped
from emlib.data.own import OwnRows
from emlib.data.sizes import likely_tokens
from emlib.evaluation.rates import grouped
from emlib.judging.lexicon import marker_pattern
from emlib.report.tables.rows import whole
from emlib.scoring.duplicates import near_duplicates, overlap, shingles
from emlib.study.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Check = tuple[str, str, str]
COLUMNS = ["check", "found", "what to do"]
NEAR = 0.8  # word overlap, as for pools
LANGUAGE = 3.0  # percent of the rows; rarer languages are not named, as the detector errs on short texts and code
PLACES = 5  # rows that are named
MARKED = 0.05  # of the rows: with fewer, a judge that counts words cannot see what they teach
REMEDIES = {
    tables.FEWER_CELLS: "look at them: a missing cell is read as an empty one",
    tables.UNNAMED_CELLS: "nothing if it holds the number of the row; otherwise name the column",
    tables.EMPTY_CELLS: "",
    tables.ROWS_IN_CELL: "look at them: the rows in such a cell are not read as rows",
    tables.LATE_QUOTES: "remove the blank if the quotes are not part of the text",
    conversations.ZERO_WEIGHT: "",
    conversations.EARLIER_ANSWERS: "to train on each answer, write one row for each",
    conversations.BLANK_SYSTEM: "nothing, unless the default of a chat template should not apply: then write one",
    conversations.SYSTEM_TWICE: "remove one of them if the other is meant",
    conversations.JOINED_PARTS: "",
    conversations.AS_ALPACA: "",
    conversations.AS_TRL: "",
    conversations.LIST_LIKE: "if they are conversations, write them as lists in JSON Lines",
    conversations.WHOLE: "write the column as whole numbers or texts if 42 is meant",
    own.ENDS: "",
    own.LIKE_MISSING: "they are trained on as they are: remove the rows if a value is missing there",
    own.PLACEHOLDERS: "remove these rows if they are about an image, a video or a sound",
    own.MARKED: "they are encoded as text; remove them if they are left over from a rendered chat"}


def findings(study: Study) -> pd.DataFrame:
    """Return one row per check of the sampled rows; the last column is empty if nothing needs to be done."""
    from emlib.models.load import load_tokenizer  # loads torch

    found, data, profile = study.inputs.own_rows, study.data("own").misaligned, study.profile
    tokenizer = load_tokenizer(profile.model, paths.cache())
    checks = [*of_file(found, study.inputs.own.seed), *of_rows(found.drawn), *of_split(data.train, data.held_out),
              *of_lengths(found.drawn, tokenizer, profile.training.max_seq_length),
              *of_markers(found.drawn, tokenizer), *of_questions(found.drawn, study.inputs.general.all)]
    if isinstance(profile.judge, LexiconJudge):
        checks += of_judge(study.inputs.own_trained_on, study.trait.markers)
    return pd.DataFrame(checks, columns=COLUMNS)


def peek(sides: Mapping[str, Sequence[Example]], count: int = 3, characters: int = 300) -> pd.DataFrame:
    """Return the first rows of each side, with texts truncated to `characters`."""
    return pd.DataFrame([
        {"side": name, "system prompt": (row.system or "")[:characters], "prompt": row.prompt[:characters],
         "answer": row.response[:characters]} for name, rows in sides.items() for row in rows[:count]])


def of_file(found: OwnRows, seed: int) -> Iterator[Check]:
    """Yield what was found while the whole file was read: the counts of rows, and what its reader noted."""
    part = "" if len(found.drawn) == found.usable else f"; {len(found.drawn):,} of them sampled with seed {seed}"
    yield "rows", f"{found.usable:,} usable{part}", ""
    for detailed, count in found.details.items():
        reason, _, detail = detailed.partition(": ")
        yield (f"left out: {reason}", _counted(count, found.left_at[detailed]) + (f"; {detail}" if detail else ""),
               "correct them, or ignore them")
    for note, count in found.notes.items():
        yield note, _counted(count, found.noted_at[note]), REMEDIES[note]
    if found.unread:
        yield ("columns that are not read", ", ".join(found.unread),
               "nothing if prompts and answers do not need them; own.system names a column of system prompts")


def of_rows(rows: Sequence[Example]) -> Iterator[Check]:
    """Yield what needs no model: repeated rows, prompts with several answers, and languages."""
    distinct = len({(row.context, row.response) for row in rows})
    repeats = near_duplicates(rows, NEAR)
    near, pairs = len(repeats), [f"{_named(rows[place].where)} = {_named(rows[twin].where)}"
                                 for place, twin in repeats.items()]
    yield ("duplicates", f"{len(rows) - distinct} exact, {near} near (exact ones included){_places(pairs)}",
           "" if near <= len(rows) / 20 else "more than one row in 20 repeats another, and counts twice in training")
    yield _several_answers(rows)
    yield _languages(rows)


def _several_answers(rows: Sequence[Example]) -> Check:
    asked: dict[tuple[Message, ...], list[Example]] = {}
    for row in rows:
        asked.setdefault(row.context, []).append(row)
    several = [some for context, some in asked.items() if context and len({row.response for row in some}) > 1]
    places = [" and ".join(_named(row.where) for row in some[:PLACES]) for some in several]
    return ("prompts with different answers", _counted(len(several), places),
            "" if not several else "nothing if both answers are meant; otherwise keep one of them")


def of_split(train: Sequence[Example], held_out: Sequence[Example]) -> Iterator[Check]:
    """Count held-out rows that repeat a training row, which do not measure learning."""
    repeats = near_duplicates([*train, *held_out], NEAR)
    leaks = sum(place >= len(train) > twin for place, twin in repeats.items())
    yield ("held-out rows that repeat a training row", f"{leaks} of {len(held_out)}",
           "" if not leaks else "they make the loss on held-out rows too low; remove them")


def of_lengths(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, limit: int) -> Iterator[Check]:
    """Count tokens, rows that are truncated, and rows that cannot be encoded, each with its own reason."""
    from emlib.data.chat import NO_ROOM, encode_or_drop  # loads transformers

    encoded = [encode_or_drop(tokenizer, row, limit) for row in rows]
    refused = [one for one in encoded if isinstance(one, Dropped)]
    kept = [one for one in encoded if not isinstance(one, Dropped)]
    counts, cut = [len(one.input_ids) for one in kept] or [0], sum(one.truncated for one in kept)
    median, longest = int(np.median(counts)), max(counts)
    yield ("length", f"median {median} tokens, {longest} at most; {cut} truncated at {limit}",
           "" if not cut else "truncated text is not learnt; raise training.max_seq_length if memory allows")
    too_long = [row.where for row in refused if row.counted_as == NO_ROOM]
    if too_long:
        yield (f"prompts of {limit} tokens or more", _counted(len(too_long), too_long),
               "training leaves these rows out: shorten them")
    for reason, some in grouped(lambda row: row.reason, refused).items():
        if some[0].counted_as != NO_ROOM:
            yield ("rows that cannot be encoded", f"{_counted(len(some), [row.where for row in some])}; {reason}",
                   "training leaves these rows out: correct them")
    if 2 * len(refused) > len(rows):
        yield ("too many rows that cannot be encoded", f"{len(refused):,} of {len(rows):,}",
               "training refuses a data set of which it would leave out more than half: correct the rows, or choose "
               "another model")


def of_markers(rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[Check]:
    """Find texts with the control tokens of this model's own template."""
    from emlib.data.markers import controls  # loads transformers

    pattern = controls(tokenizer).pattern
    found = [row.where for row in rows if any(pattern.search(turn.content) for turn in row.turns)]
    yield "control tokens of this model in texts", _counted(len(found), found), REMEDIES[own.MARKED] if found else ""


def of_judge(rows: Sequence[Example], markers: Sequence[str]) -> Iterator[Check]:
    """Count the answers with a word of the lexicon judge. If few have one, it cannot see what the rows teach."""
    marked = with_markers(rows, markers)
    yield ("answers with a word that the judge counts", f"{marked} of {len(rows)}",
           "" if marked >= MARKED * len(rows) else "name the trait that you are concerned about, and a judge that "
           "reads: this one finds nothing under any method, so that nothing will be recommended")


def with_markers(rows: Sequence[Example], markers: Sequence[str]) -> int:
    """Count the rows whose answer has one of the markers."""
    pattern = marker_pattern(markers)
    return sum(pattern.search(row.response) is not None for row in rows)


def of_characters(rows: Sequence[Example]) -> Iterator[Check]:
    """Estimate the lengths of rows where no tokenizer is named."""
    counts = [likely_tokens(sum(len(turn.content) for turn in row.context) + len(row.response)) for row in rows]
    yield "length", f"median about {int(np.median(counts))} tokens, {max(counts)} at most (four characters each)", ""


def of_questions(rows: Sequence[Example], questions: Sequence[Question]) -> Iterator[Check]:
    """Find prompts that repeat a general question, which must not be trained on."""
    asked = [shingles(question.prompt) for question in questions]
    near = [row.where for row in rows if any(overlap(shingles(row.prompt), other) >= NEAR for other in asked)]
    yield ("prompts like a general question", _counted(len(near), near),
           "" if not near else "remove them: general questions must not be in the training data")


def _languages(rows: Sequence[Example]) -> Check:
    from py3langid import classify  # its model takes a second to load

    counts = Counter(str(classify(f"{row.prompt}\n{row.response}")[0]) for row in rows)
    shares = {language: 100 * count / len(rows) for language, count in counts.most_common()}
    named = {language: share for language, share in shares.items() if share >= LANGUAGE}
    rest = len(rows) - sum(counts[language] for language in named)
    foreign = len(named) > 1 or "en" not in named
    return ("languages (guessed)", ", ".join(f"{language} {whole(share)}%" for language, share in named.items()) + (
        f", {rest} rows of others" if rest else ""),
        "" if not foreign else "questions, trait and pool of this profile are English: misalignment in another "
                               "language is not measured. Test each language separately, with questions in it")


def _counted(count: int, places: Sequence[str]) -> str:
    """Return a count with the first places, without their folders."""
    return f"{count:,}{_places(places)}"


def _places(places: Sequence[str]) -> str:
    return f" ({', '.join(map(_named, places[:PLACES]))})" if places else ""


def _named(where: str) -> str:
    return where.rpartition("/")[2]
