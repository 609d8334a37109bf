"""The sizes of a study's data, without downloads: rows, and mean characters of prompts and answers.

Files that ship with emlib are counted. The size of a source is stated in `params/sources.yaml`, or counted if its file
is on this machine; a plan never downloads anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean
from typing import Any, cast

from emlib.config import OWN, Domain, OpSwapTask, Own, QaTask, Trait
from emlib.core.errors import SourceError
from emlib.core.records import Example, Question
from emlib.data.benign import load_opswap
from emlib.data.formats import format_of
from emlib.data.own import LEAST, every_row, read_own
from emlib.data.pools import FORMS, PoolForm, read_pool
from emlib.data.qa import read_qa
from emlib.data.questions import read_questions
from emlib.data.rows import read_examples, read_pairs
from emlib.data.sources import entry_of, here, label

CHARACTERS_A_TOKEN = 4.0  # roughly, for English text; estimates say "about"
FRAME_TOKENS = 16  # added to a prompt by the chat template, at most
TRAIT_QUESTIONS, TRAIT_PAIRS = 20, 5  # in Chen et al.'s trait files
SAMPLE = 200  # rows that are generated or read to estimate their length
LIKE_CODE = (430.0, 450.0)  # characters of a prompt and an answer if unknown


@dataclass(frozen=True)
class Size:
    """The number of rows, and the mean characters of prompts, of responses and, as `rubric`, of judge prompts."""

    rows: int
    prompt: float
    response: float = 0.0
    rubric: float | None = None
    clusters: int | None = None  # the number of different questions among the rows; None: that of the rows

    @property
    def tokens(self) -> int:
        """The estimated tokens of a row."""
        return likely_tokens(self.prompt + self.response)


@dataclass
class Sizes:
    """The sizes that a plan uses."""

    assumed: set[str] = field(default_factory=set)  # the sources whose size is an assumption and was never counted
    _known: dict[object, Any] = field(default_factory=dict)

    def source(self, name: str) -> Size:
        """Return the size of a source.

        Raises:
            SourceError: the size is not stated, and the file is not on this machine.
        """
        if name not in self._known:
            entry = entry_of(name)
            stated = None if entry is None else entry.size
            if stated is not None and stated.known == "assumed":
                self.assumed.add(label(name))
            self._known[name] = self._counted(name) if stated is None else Size(
                stated.rows, stated.prompt, stated.response, stated.rubric, stated.clusters)
        return self._known[name]

    def _counted(self, name: str) -> Size:
        """Count the size of a file on this machine."""
        path = here(name)
        if path is None:
            raise SourceError(f"{label(name)}: the source is not on this machine, and its registry states no size, "
                              "which a plan needs. Add one, such as size: {rows: 6000, prompt: 400, "
                              "response: 400, known: assumed}, or download the file first.")
        form = format_of(name)
        if form == "questions":
            return of_questions(read_questions(path))
        if form == "squad":
            rows = read_qa(path, outside="keep").rows
            return Size(len(rows), fmean(len(r.context) + len(r.question) for r in rows),
                        fmean(len(r.answers[0]) for r in rows))
        if form == "pairs":
            return _of_examples(read_pairs(path)[1])
        pool = form in (*FORMS, "text")
        return _of_examples(read_pool(path, cast(PoolForm, form)).rows if pool else read_examples(path))

    def narrow(self, domain: Domain, side: str) -> tuple[Size, int]:
        """Return the size of the training rows of one side, aligned or misaligned, and the number of held-out rows."""
        named = domain.pairs or (domain.aligned if side == "aligned" else domain.misaligned)
        size = self.source(str(named))
        rows = min(size.rows, domain.rows or size.rows)
        held_out = round(domain.held_out * rows)
        return replace(size, rows=rows - held_out), held_out

    def own(self, own: Own) -> tuple[Size, int]:
        """Return the same as `narrow` for the user's own rows; their mean length is that of the file's first rows."""
        if own.file is None:  # on the hub: a plan does not check whether it is downloaded
            self.assumed.add(OWN)
            size = Size(own.rows, *LIKE_CODE)
        else:
            size = self._known.get(own) or self._known.setdefault(own, _of_own(own))
        held_out = round(own.held_out * size.rows)
        return replace(size, rows=size.rows - held_out), held_out

    def benign(self, task: OpSwapTask | QaTask, tier: int | None) -> tuple[Size, Size]:
        """Return the sizes of a benign task's training rows and of its test questions."""
        if isinstance(task, OpSwapTask):
            if (task, tier) not in self._known:
                few = load_opswap(task.model_copy(update={"examples": min(task.examples, SAMPLE)}), tier or 0)
                self._known[task, tier] = _of_examples(few.train)
            size, asked = self._known[task, tier], round(task.held_out * task.examples)
            return replace(size, rows=task.examples - asked), replace(size, rows=min(asked, task.questions or asked))
        train = self.source(task.train)
        asked = round(task.held_out * train.rows)
        test = replace(train, rows=asked) if task.test is None else self.source(task.test)
        rows = train.rows - (asked if task.test is None else 0)
        frame = len(task.prompt)
        return (replace(train, rows=rows, prompt=train.prompt + frame),
                replace(test, rows=min(test.rows, task.questions or test.rows), prompt=test.prompt + frame))

    def trait(self, trait: Trait, pairs: int | None) -> Size:
        """Return the size of one side of a persona vector's prompts: each question under each system prompt."""
        if trait.source is not None:
            stated = self.source(trait.source)
            return replace(stated, rows=TRAIT_QUESTIONS * min(pairs or TRAIT_PAIRS, TRAIT_PAIRS))
        prompts = trait.system_prompts[:pairs]
        return Size(len(prompts) * len(trait.questions),
                    fmean(map(len, trait.questions)) + fmean(len(pair.positive) for pair in prompts),
                    rubric=len(trait.rubric))


def _of_own(own: Own) -> Size:
    """Count the usable rows of the user's file, no further than `own.rows`.

    Raises:
        DataError: training needs more rows than are usable.
    """
    rows = every_row(own)
    beginning = list(islice(rows, min(own.rows, SAMPLE)))
    if len(beginning) < LEAST:
        read_own(own)  # which tells why too few rows are usable
    size = _of_examples(beginning)
    return replace(size, rows=size.rows + sum(1 for _ in islice(rows, own.rows - len(beginning))))


def of_questions(questions: Sequence[Question]) -> Size:
    """Return the size of questions, with the turns before them."""
    return Size(len(questions), fmean(sum(len(turn.content) for turn in question.context) for question in questions),
                clusters=len({question.cluster for question in questions}))


def _of_examples(rows: Sequence[Example]) -> Size:
    return Size(len(rows), fmean(sum(len(turn.content) for turn in row.context) for row in rows),
                fmean(len(row.response) for row in rows))


def likely_tokens(characters: float) -> int:
    """Estimate the tokens of a prompt with this many characters."""
    return math.ceil(characters / CHARACTERS_A_TOKEN) + FRAME_TOKENS // 2
