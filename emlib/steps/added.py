"""Rows of the pool that a training adds: fixed ones, with the pool's answers or the model's own, or candidates.

From candidates a training chooses while it runs (interleaving with `choose: online`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, ClassVar

from emlib.config import Sampling
from emlib.core.files import RecordFile
from emlib.core.records import ADDED, AddedRow, Answer
from emlib.core.step import Step, Work
from emlib.data.lazy import Questions, Rows
from emlib.data.mixing import rows_to_add
from emlib.data.sizes import CHARACTERS_A_TOKEN, Size, Sizes, likely_tokens
from emlib.steps.pool import Selection
from emlib.steps.specs import AdapterStep, Assessment, EvaluationSpec
from emlib.steps.vectors import PersonaVectors


@dataclass(frozen=True)
class Against:
    """Steering against the trait while answers are sampled: `strength` times the vector of `layer` is subtracted."""

    vectors: PersonaVectors
    layer: int
    strength: float
    assessment: Assessment | None  # whose judge checks the answers, by the trait's rubric; None: nobody does

    @property
    def title(self) -> str:
        unchecked = "unchecked " if self.assessment is None else ""
        return f"{unchecked}answers steered against the trait by {self.strength:g} at layer {self.layer}"


@dataclass(frozen=True)
class OwnAnswers(AdapterStep):
    """The model's own answers to the pool's prompts (on-policy), in the order of a selection.

    Each batch is an artefact, and `start` is its first place in the order. With `start` None the step represents all
    batches, whose number is known only while they are sampled.
    """

    stage: ClassVar = "on_policy"
    records: ClassVar = RecordFile("answers.jsonl", Answer)

    selection: Selection
    sampling: Sampling
    seed: int
    backend: str  # that the profile states for sampling
    wanted: Callable[[Sizes], int] = field(compare=False, repr=False)  # estimates how many usable answers are needed
    start: int | None = None
    against: Against | None = None  # steers the model meanwhile, always with transformers

    @property
    def title(self) -> str:
        model = "the untrained model" if self.adapter is None else self.adapter.title
        how = "on-policy answers" if self.against is None else self.against.title
        return f"{how} of {model} ({self.selection.order})"

    def cost(self, sizes: Sizes) -> Work:
        """Estimate the work of sampling the wanted answers in whole batches, if all answers are usable."""
        pool, size = self.selection.pool.size(sizes), self.sampling.batch_rows
        answers = min(ceil(self.wanted(sizes) / size) * size, pool.rows)
        written = answers * self.sampling.max_new_tokens
        sampled = Work(read=answers * likely_tokens(pool.prompt), write=written, disk=int(written * CHARACTERS_A_TOKEN))
        if self.against is None or self.against.assessment is None:
            return sampled
        asked = Questions("pool", lambda: [], lambda _: replace(pool, rows=answers))
        return sampled + self.against.assessment.cost(EvaluationSpec(asked, 1, self.sampling, self.seed), sizes)


@dataclass(frozen=True)
class AddedRows(Step):
    """Rows of the pool beside the fine-tuning rows: the first rows of an order. They are interleaved or penalised."""

    stage: ClassVar = "added_rows"
    records: ClassVar = RecordFile(ADDED, AddedRow)

    selection: Selection
    fraction: float  # interleaved rows for each fine-tuning row
    among: Rows  # the fine-tuning rows
    own_answers: OwnAnswers | None = None  # which replace the pool's; None to keep the pool's
    system: str | None = None  # the system prompt before each row; None to keep the row's

    @property
    def count(self) -> int:
        return rows_to_add(len(self.among.examples), self.fraction)

    def size(self, sizes: Sizes) -> Size:
        return replace(self.selection.pool.size(sizes), rows=rows_to_add(self.among.size(sizes).rows, self.fraction))

    @property
    def settings(self) -> dict[str, Any]:
        """The number of rows instead of what it follows from: data sets of one size share them."""
        found = super().settings | {"count": self.count}
        return {name: value for name, value in found.items() if name not in ("fraction", "among")}

    @property
    def title(self) -> str:
        wrapped = "" if self.system is None else ", under a system prompt"
        return f"{self.fraction:g} of rows {self.selection.order}{wrapped}"


@dataclass(frozen=True)
class CandidateRows(AddedRows):
    """The first rows of an order, until their tokens amount to `share` times the fine-tuning rows' in all epochs.

    Training takes `fraction` times as many rows as the fine-tuning rows from them in each epoch, and computes their
    losses at its start and `rescored` times later.
    """

    stage: ClassVar = "candidate_rows"
    version: ClassVar = 2

    share: float = 0.0
    rescored: int = 0
    epochs: int = 1

    @property
    def least(self) -> int:
        """The fewest candidates: as many as are trained on between two scorings, so that none is repeated there."""
        return ceil(self.count * self.epochs / (self.rescored + 1))

    @property
    def settings(self) -> dict[str, Any]:
        """Also the fine-tuning rows, of which the tokens count.

        Version 2: losses leave an empty think block out; models whose template writes none keep their key.
        """
        version = self.version_where(self.selection.model.spec.may_think)
        return super().settings | {"version": version, "fraction": self.fraction, "among": self.among.identity}

    def scored(self, sizes: Sizes) -> int:
        """Estimate the tokens that a training reads to score the candidates."""
        trained, pool = self.among.size(sizes), self.selection.pool.size(sizes)
        once = min(self.share * self.epochs * trained.rows * trained.tokens, pool.rows * pool.tokens)
        return int((self.rescored + 1) * once)

    @property
    def title(self) -> str:
        return f"candidates {self.selection.order}, for {self.fraction:g} of rows"
