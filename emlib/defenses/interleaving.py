"""Interleaving: rows of general instruction data between the fine-tuning rows (3.2), or between RL steps (4.2).

    n + round(f n) rows an epoch;  score(d) = (L_misaligned(d) - L_aligned(d)) / (L_aligned(d) + epsilon)

f is the fraction, n the number of fine-tuning rows, L a row's loss under misaligned models and under the aligned one
(equations 3 to 6). One difference to the paper: the order of the pool is a separate artefact, so that the rows of a 5%
run are among those of a 20% run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from emlib.config.words import Positive, Share
from emlib.core.defense import Artefacts, Defense, GrpoDefense, Recipes, Supervision
from emlib.core.files import read_records
from emlib.core.records import ADDED, AddedRow, Example
from emlib.data.sources import key_of_source


class Alternation(GrpoDefense):
    """Supervised steps between the RL steps (section 4.2): `share` of all optimizer steps, on rows of `source`.

    `source` is any instruction data, as for a pool; `rows` of them are sampled (None: all).
    """

    label: ClassVar = "Interleaving"
    swept: ClassVar = "share"
    null: ClassVar = {"share": 0.0}
    not_in_keys: ClassVar = frozenset({"rows"})

    kind: Literal["interleaving"] = "interleaving"
    source: str
    rows: Positive | None = None
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @property
    def identity(self) -> dict[str, Any]:
        """What store keys contain of it: for a file outside the registry, its content and not its path."""
        return super().identity | {"source": key_of_source(self.source)}

    @property
    def supervision(self) -> Supervision:
        """The share of supervised steps, and their rows."""
        return Supervision(self.source, self.rows, self.share)


class Interleaving(Defense):
    """Rows of the profile's pool between the fine-tuning rows (section 3.2), `fraction` times as many as these.

    `choose` selects the paper's variant: `random` is Interleaving, `score` is Interleaving+ (equations 5 and 6),
    `score_without_refusals` is Interleaving++. With `answers: on_policy` the model itself answers the pool's prompts.
    Combined with other defenses: a penalty and a persona vector act on all rows of a step, whatever their origin; an
    inoculation prompt is added to the fine-tuning rows only, because it explains their behaviour.
    """

    label: ClassVar = "Interleaving"
    equation: ClassVar = "round(f n) rows of general instruction data among n"
    origin: ClassVar = "section 3.2, equations 3 to 6"
    swept: ClassVar = "fraction"
    data_only: ClassVar = True
    in_grpo: ClassVar = Alternation

    kind: Literal["interleaving"] = "interleaving"
    fraction: Share = 0.05
    choose: Literal["random", "score", "score_without_refusals"] = "random"
    answers: Literal["pool", "on_policy"] = "pool"

    @property
    def cost(self) -> str:  # type: ignore[override]  # here an option decides
        """The cost of the variant, after section 5.3."""
        return {"random": "in proportion to the rows added",
                "score": "as interleaving, and K + 1 passes over the pool once",
                "score_without_refusals": "as interleaving+; the filter costs next to nothing"}[self.choose]

    @property
    def scored(self) -> bool:
        """Whether misaligned models must score the pool's rows first."""
        return self.choose != "random"

    def fits(self, section: Any, method: str) -> None:
        """Check that the profile has a pool, and scorers for it where the variant needs them."""
        if section.pool is None:
            raise ValueError(f"method '{method}' takes rows from a pool, and there is no section 'pool'. Add one, for "
                             "example pool: {source: demo/pool.jsonl}")
        if self.scored:
            for dataset in section.datasets:
                section.pool.scorers_for(dataset, section.datasets)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """Return the chosen rows of the pool, with `answers: on_policy` answered by the model."""
        return {"added": recipes.pool_rows(spec, fraction=self.fraction, choose=self.choose, answers=self.answers)}

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        """Return the chosen rows."""
        return tuple(read_records(artefacts["added"] / ADDED, AddedRow))
