"""Interleaving: rows of general instruction data between the fine-tuning rows (3.2), or between RL steps (4.2).

    n + round(f n) rows an epoch;  score(d) = (L_misaligned(d) - L_aligned(d)) / (L_aligned(d) + epsilon)

f is the fraction, n the number of fine-tuning rows, L a row's loss under misaligned models and under the aligned one
(equations 3 to 6). Here it differs in one thing: the order of the pool is an artefact of its own, so that 5% of the
rows are among the 20%.
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

    `source` is any instruction data, as for a pool; `rows` of them are drawn (None: all).
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
        """What keys say of it: not where a file lies that is no entry of the registry."""
        return super().identity | {"source": key_of_source(self.source)}

    @property
    def supervision(self) -> Supervision:
        """The steps, and what they are taken on."""
        return Supervision(self.source, self.rows, self.share)


class Interleaving(Defense):
    """Rows of the profile's pool between the fine-tuning rows (section 3.2), `fraction` of them for each of these.

    `choose` tells the paper's variants apart: `random` is Interleaving, `score` is Interleaving+ (equations 5 and 6),
    `score_without_refusals` is Interleaving++. With `answers: on_policy` the model answers the pool's prompts itself.
    Together with other defenses: a penalty and a persona vector act on all rows of a step, whichever their origin; an
    inoculation prompt is put on the fine-tuning rows alone, since it is their behaviour that it is to explain.
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
        """What section 5.3 says of the variant."""
        return {"random": "in proportion to the rows added",
                "score": "as interleaving, and K + 1 passes over the pool once",
                "score_without_refusals": "as interleaving+; the filter costs next to nothing"}[self.choose]

    @property
    def scored(self) -> bool:
        """Whether the pool's rows have to be scored by misaligned models first."""
        return self.choose != "random"

    def fits(self, section: Any, method: str) -> None:
        """See that the profile has a pool, and scorers for it where they are wanted."""
        if section.pool is None:
            raise ValueError(f"method '{method}' takes rows from a pool, and there is no section 'pool'. Add one, such "
                             "as pool: {source: demo/pool.jsonl}")
        if self.scored:
            for dataset in section.datasets:
                section.pool.scorers_for(dataset, section.datasets)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """The rows of the pool, chosen and perhaps answered by the model."""
        return {"added": recipes.pool_rows(spec, fraction=self.fraction, choose=self.choose, answers=self.answers)}

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        """These rows."""
        return tuple(read_records(artefacts["added"] / ADDED, AddedRow))
