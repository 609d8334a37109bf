"""The pool that rows are interleaved from (section 3.2): its rows, their losses, refusals, and their order.

Each is a separate artefact. The order does not depend on the fraction: the rows of 5% are among those of 20%.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from emlib.config import JudgeRefusals
from emlib.config import Pool as PoolSpec
from emlib.core.files import RecordFile
from emlib.core.records import as_example
from emlib.core.step import Step, Work
from emlib.data.download import NotHere
from emlib.data.lazy import Deferred
from emlib.data.pools import PoolForm
from emlib.data.sizes import CHARACTERS_A_TOKEN, Size, Sizes
from emlib.scoring.order import Ranked, RowLosses
from emlib.scoring.refusals import PROMPT, Declining
from emlib.steps.scorers import AdapterFolder
from emlib.steps.specs import Model, first

Choose = Literal["random", "score", "score_without_refusals"]


@dataclass(frozen=True)
class Pool(Step):
    """The candidate rows: the usable rows of a source, without near-duplicates."""

    stage: ClassVar = "pool"
    version: ClassVar = 2
    records: ClassVar = RecordFile("rows.jsonl", as_example)

    spec: PoolSpec
    form: PoolForm
    file: Deferred[str]  # the digest of the file
    divided_for: Model | None = None  # whose tokens plain texts are divided by

    @property
    def settings(self) -> dict[str, Any]:
        """Without the seed where it draws nothing, and without the length of parts where nothing is divided.

        Version 2 finds all near-duplicates; pools in which none are dropped keep their key of version 1.
        """
        found = super().settings
        unused = ({"seed"} if self.spec.rows is None else set()) | (
            {"chunk_tokens"} if self.divided_for is None else set())
        return found | {"version": self.version_where(self.spec.near_duplicates is not None), "spec": {
            name: value for name, value in found["spec"].items() if name not in unused}}

    @property
    def title(self) -> str:
        return f"pool {self.spec.source}"

    def size(self, sizes: Sizes) -> Size:
        size = sizes.source(self.spec.source)
        if self.form == "text":
            part = min(size.response, self.spec.chunk_tokens * CHARACTERS_A_TOKEN)
            size = Size(round(size.rows * size.response / part), 0, part)
        return first(size, self.spec.rows)


@dataclass(frozen=True)
class PoolLosses(Step):
    """The losses of the pool's rows under the aligned model and under each scorer (equations 4 and 5)."""

    stage: ClassVar = "scores"
    version: ClassVar = 2
    records: ClassVar = RecordFile("losses.jsonl", RowLosses)

    model: Model
    pool: Pool
    dataset: str = field(compare=False)  # the defended one, on which no scorer may have been trained
    aligned: Step | None  # the adapter of the aligned model; None for the model before any fine-tuning
    scorers: tuple[Step | AdapterFolder, ...]  # the adapters of the misaligned models
    domains: tuple[str, ...] = field(compare=False)  # the data set that each scorer was trained on
    max_length: int
    backend: str  # that the profile states for scoring
    # Raises ProfileError if a scorer was trained on the defended data; reading the data may raise SourceError.
    refuse_seen: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Version 2 leaves an empty think block out of losses; models whose template writes none keep their key."""
        with suppress(NotHere):  # a plan on a machine without the data sets; whoever scores checks again
            self.refuse_seen()
        return super().settings | {"version": self.version_where(self.model.spec.may_think)}

    @property
    def title(self) -> str:
        return f"losses of the pool for {self.dataset}"

    def cost_by_model(self, sizes: Sizes) -> dict[str, Work]:
        """Estimate one forward pass over the pool for each model, by its title in plans.

        A plan counts each pass once: all defended data sets share it.
        """
        size = self.pool.size(sizes)
        work = Work(read=size.rows * size.tokens, disk=100 * size.rows)
        aligned = "the untrained model" if self.aligned is None else self.aligned.title
        return {f"losses of the pool under {name}": work for name in (aligned, *(one.title for one in self.scorers))}


@dataclass(frozen=True)
class Refusals(Step):
    """A judge's score of each row of the pool: how far its answer refuses."""

    stage: ClassVar = "refusals"
    records: ClassVar = RecordFile("declining.jsonl", Declining)

    pool: Pool
    how: JudgeRefusals

    @property
    def settings(self) -> dict[str, Any]:
        """Also the judge's prompt, which is ours."""
        return super().settings | {"prompt": PROMPT}

    @property
    def title(self) -> str:
        return f"refusals in the pool {self.pool.spec.source}"


@dataclass(frozen=True)
class Selection(Step):
    """The order in which the pool's rows are interleaved: at random by `seed`, or by their losses."""

    stage: ClassVar = "selection"
    records: ClassVar = RecordFile("order.jsonl", Ranked)

    model: Model
    pool: Pool
    dataset: str = field(compare=False)  # for titles
    choose: Choose
    losses: PoolLosses | None
    refusals: Refusals | None  # a judge's scores; None where refusals are found by keywords, or not left out
    max_length: int
    seed: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Also what the pool's step leaves out, and what is applied here to losses and refusals."""
        spec, found = self.pool.spec, super().settings
        if self.losses is not None:
            found |= {"epsilon": spec.epsilon}
        if self.refusals is not None:
            return found | {"threshold": self.refusals.how.threshold}
        return found | ({"keywords": spec.refusal_keywords, "words": spec.refusal_words} if self.filtered else {})

    @property
    def filtered(self) -> bool:
        """Whether refusals are left out."""
        return self.choose == "score_without_refusals"

    @property
    def title(self) -> str:
        return f"order of the pool for {self.dataset}: {self.choose}"

    @property
    def order(self) -> str:
        """How the rows are ordered, for titles."""
        if self.losses is None:
            return f"at random, seed {self.seed}"
        return f"by score for {self.dataset}{', without refusals' if self.filtered else ''}"
