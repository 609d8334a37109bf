"""The pool that rows are interleaved from (section 3.2): its rows, their losses, refusals, and the order.

Each is an artefact of its own. A fraction is no part of the order: the rows of 5% are among those of 20%.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from emlib.config import Backend, JudgeRefusals, Sampling
from emlib.config import Pool as PoolSpec
from emlib.core.step import Step
from emlib.core.work import Work
from emlib.data.lazy import Deferred, Rows
from emlib.data.mixing import rows_to_add
from emlib.data.pools import PoolForm
from emlib.data.sizes import CHARACTERS_A_TOKEN, Size, Sizes, likely_tokens
from emlib.judging.judges import identity as identity_of_judge
from emlib.scoring.refusals import PROMPT
from emlib.steps.specs import Model, first

if TYPE_CHECKING:
    from emlib.steps.adapter import Adapter

Choose = Literal["random", "score", "score_without_refusals"]


@dataclass(frozen=True)
class Pool(Step):
    """The candidates: the usable rows of a source, without near-duplicates."""

    stage: ClassVar = "pool"

    spec: PoolSpec
    form: PoolForm
    file: Deferred[str]  # the digest of the file

    @property
    def settings(self) -> dict[str, Any]:
        """The file, and which of its rows are drawn."""
        spec = self.spec
        return {"file": self.file.value, "form": self.form, "rows": spec.rows,
                "seed": None if spec.rows is None else spec.seed, "near_duplicates": spec.near_duplicates}

    @property
    def title(self) -> str:
        """As plans call it."""
        return f"pool {self.spec.source}"

    def size(self, sizes: Sizes) -> Size:
        """How many candidates there are, about, and how long they are."""
        return first(sizes.source(self.spec.source), self.spec.rows)


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter of one's own that scores the pool: where it lies, and what stands for it in keys."""

    domain: str
    folder: Path
    digests: Callable[[], Mapping[str, str]] = field(compare=False, repr=False)


@dataclass(frozen=True)
class PoolLosses(Step):
    """The losses of the pool's rows under the aligned model and under each scorer (equations 4 and 5).

    `aligned` None is the model before any fine-tuning. `scorers` have not seen the data set under defense, `dataset`.
    """

    stage: ClassVar = "scores"

    model: Model
    pool: Pool
    dataset: str
    aligned: Adapter | None
    scorers: tuple[Adapter | AdapterFolder, ...]
    max_length: int
    backend: Backend

    @property
    def settings(self) -> dict[str, Any]:
        """The pool and the models. No data set is in it: the same scorers give the same losses."""
        return {"model": self.model.identity, "pool": self.pool.key,
                "aligned": None if self.aligned is None else self.aligned.key,
                "misaligned": [self.stands_for(scorer) for scorer in self.scorers],
                **self.backend.key("scoring"), "max_length": self.max_length}

    @staticmethod
    def stands_for(scorer: Adapter | AdapterFolder) -> Any:
        """What stands for a scorer in keys."""
        return dict(scorer.digests()) if isinstance(scorer, AdapterFolder) else scorer.key

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The pool, and the adapters that the study trains for it."""
        aligned = () if self.aligned is None else (self.aligned,)
        return (self.pool, *(scorer for scorer in self.scorers if not isinstance(scorer, AdapterFolder)), *aligned)

    @property
    def title(self) -> str:
        """As plans call it."""
        return f"losses of the pool for {self.dataset}"

    def under(self, sizes: Sizes) -> dict[str, Work]:
        """One pass over the pool for each model, by what plans call it: a pass serves all data sets under defense."""
        size = self.pool.size(sizes)
        work = Work(read=size.rows * size.tokens, disk=100 * size.rows)
        names = ["the untrained model" if self.aligned is None else self.aligned.title, *(
            str(scorer.folder) if isinstance(scorer, AdapterFolder) else scorer.title for scorer in self.scorers)]
        return {f"losses of the pool under {name}": work for name in names}


@dataclass(frozen=True)
class Refusals(Step):
    """What a judge says of each row of the pool: how far its answer declines."""

    stage: ClassVar = "refusals"

    pool: Pool
    how: JudgeRefusals

    @property
    def settings(self) -> dict[str, Any]:
        """The pool, the judge and its prompt; not the threshold, which is applied later."""
        return {"pool": self.pool.key, "judge": identity_of_judge(self.how.judge), "prompt": PROMPT}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The pool."""
        return (self.pool,)

    @property
    def title(self) -> str:
        """As plans call it."""
        return f"refusals in the pool {self.pool.spec.source}"


@dataclass(frozen=True)
class Selection(Step):
    """The order in which the pool's rows are taken: at random by `seed`, or by their losses.

    `refusals` is what a judge says, where one is asked; keywords need no asking.
    """

    stage: ClassVar = "selection"

    model: Model
    pool: Pool
    dataset: str
    choose: Choose
    losses: PoolLosses | None
    refusals: Refusals | None
    max_length: int
    seed: int | None

    @property
    def settings(self) -> dict[str, Any]:
        """Which rows there are, what they are chosen by, and what fits."""
        spec = self.pool.spec
        settings: dict[str, Any] = {"model": self.model.identity, "choose": self.choose, "pool": self.pool.key,
                                    "max_length": self.max_length}
        if self.losses is None:
            return settings | {"seed": self.seed}
        settings |= {"scores": self.losses.key, "epsilon": spec.epsilon}
        if self.refusals is not None:
            settings |= {"refusals": self.refusals.key, "threshold": self.refusals.how.threshold}
        elif self.filtered:
            settings |= {"refusal_keywords": list(spec.refusal_keywords), "refusal_words": spec.refusal_words}
        return settings

    @property
    def filtered(self) -> bool:
        """Whether refusals are left out."""
        return self.choose == "score_without_refusals"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The pool, its losses, the refusals."""
        return (self.pool, *(step for step in (self.losses, self.refusals) if step is not None))

    @property
    def title(self) -> str:
        """As plans call it."""
        return f"order of the pool for {self.dataset}: {self.choose}"

    @property
    def order(self) -> str:
        """What tells this order from others, in words."""
        return f"by score for {self.dataset}" if self.losses is not None else f"at random, seed {self.seed}"


@dataclass(frozen=True)
class OwnAnswers(Step):
    """What the model itself answers to the pool's prompts, in the order in which they are taken.

    A batch of them is an artefact: `start` is where in the order it begins. Without it the step stands for all that
    will be needed, which is only known while they are drawn; `wanted` estimates how many have to be usable.
    """

    stage: ClassVar = "on_policy"

    model: Model
    adapter: Adapter | None
    selection: Selection
    sampling: Sampling
    seed: int
    backend: Backend
    wanted: Callable[[Sizes], int] = field(compare=False, repr=False)
    start: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Who answers, and in which order."""
        settings = {
            "model": self.model.identity, "adapter": None if self.adapter is None else self.adapter.key,
            "selection": self.selection.key, "sampling": self.sampling.model_dump(mode="json"), "seed": self.seed,
            **self.backend.key("generation")}
        return settings if self.start is None else settings | {"from": self.start}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The order, and the adapter under which the model answers."""
        return (self.selection,) if self.adapter is None else (self.selection, self.adapter)

    @property
    def title(self) -> str:
        """As plans call it."""
        who = "the untrained model" if self.adapter is None else self.adapter.title
        return f"on-policy answers of {who} ({self.selection.order})"

    def cost(self, sizes: Sizes) -> Work:
        """As many whole batches as the wanted answers take, if all are usable."""
        pool, size = self.selection.pool.size(sizes), self.sampling.batch_rows
        answers = min(-(-self.wanted(sizes) // size) * size, pool.rows)
        written = answers * self.sampling.max_new_tokens
        return Work(read=answers * likely_tokens(pool.prompt), write=written, disk=int(written * CHARACTERS_A_TOKEN))


@dataclass(frozen=True)
class AddedRows(Step):
    """Rows that are interleaved with the fine-tuning rows: the first of an order, `fraction` of them for each of these.

    `own_answers`: the model's own answers stand in the place of the pool's.
    """

    stage: ClassVar = "added_rows"

    selection: Selection
    fraction: float
    among: Rows
    own_answers: OwnAnswers | None = None

    @property
    def count(self) -> int:
        """How many rows are added."""
        return rows_to_add(len(self.among.examples), self.fraction)

    def size(self, sizes: Sizes) -> Size:
        """How many rows are added, about, and how long they are."""
        return replace(self.selection.pool.size(sizes), rows=rows_to_add(self.among.size(sizes).rows, self.fraction))

    @property
    def settings(self) -> dict[str, Any]:
        """The order, how many rows of it, and whose answers."""
        own = None if self.own_answers is None else self.own_answers.key
        return {"count": self.count, "on_policy": own, "selection": self.selection.key}

    def as_input(self, name: str) -> dict[str, Any]:
        """An adapter's key says what the rows are, and not that they lie in an artefact of their own."""
        return {"added": self.settings}

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The order, and the answers."""
        return (self.selection,) if self.own_answers is None else (self.selection, self.own_answers)

    @property
    def title(self) -> str:
        """As plans call it."""
        return f"{self.fraction:g} of rows {self.selection.order}"
