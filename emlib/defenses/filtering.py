"""Data filtering: training without the rows that an audit ranks highest (Chen et al. 2025, on predicting shifts).

    train on n - round(s n) of n rows:  those with the smallest d_i = (h(x_i, y_i) - h(x_i, own answer)) . e / |e|

s is the share that is left out, h the base model's mean activation over an answer's tokens, e the trait's persona
vector (`emlib.steps.measures`). One difference to the source, which compares data sets and single samples by d: here a
share of the rows is left out, so that a sweep means the same for any model and trait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from emlib.core.defense import Defense, require
from emlib.core.errors import DataError
from emlib.core.files import read_records
from emlib.core.hooks import Artefacts, Recipes
from emlib.core.records import Example
from emlib.core.seeds import some_of
from emlib.evaluation.records import AUDITED, AuditedRow


class Filtering(Defense):
    """`share` of the fine-tuning rows are left out: the worst by the profile's `audit`, or random ones as the control.

    Rows are audited as they are before other defenses change them. A row without a projection is never left out. The
    random rows are the same for every seed: a mean over seeds has no variation of their choice.
    """

    label: ClassVar = "Data Filtering"
    equation: ClassVar = "n - round(s n) rows: those with the smallest projection difference"
    origin: ClassVar = "Chen et al. 2025 (persona vectors), projection difference"
    swept: ClassVar = "share"
    null: ClassVar = {"share": 0.0}
    data_only: ClassVar = True
    cost: ClassVar = "an own answer of the base model to every row once; then less in proportion to the rows left out"

    kind: Literal["filtering"] = "filtering"
    share: Annotated[float, Field(ge=0, lt=1)] = 0.25
    choose: Literal["worst", "random"] = "worst"

    def fits(self, section: Any, method: str) -> None:
        if self.choose == "worst":
            require(section, "audit", f"method '{method}' leaves out rows by their audit")

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {} if self.is_null or self.choose == "random" else {"audit": recipes.row_audit(spec)}

    def filtered(self, rows: Sequence[Example], artefacts: Artefacts) -> Collection[int]:
        """Return the places of the worst rows, or of random ones.

        Raises:
            DataError: the share amounts to no row or to all rows, or another defense changed the number of rows.
        """
        if self.is_null:
            return ()
        if len(places := self._places(rows, artefacts)) == len(rows):
            raise DataError(f"A share of {self.share:g} of {len(rows)} fine-tuning rows amounts to all of them, and "
                            "none is left to train on. Choose a smaller one.")
        return places

    def _places(self, rows: Sequence[Example], artefacts: Artefacts) -> Collection[int]:
        """Return the same, whether or not a row is left."""
        count = round(self.share * len(rows))
        if count == 0:
            raise DataError(f"A share of {self.share:g} of {len(rows)} fine-tuning rows amounts to no row: the run "
                            f"would equal `misaligned`. Choose {1 / len(rows):.2g} or more.")
        if self.choose == "random":
            return some_of(range(len(rows)), count, "filtered rows")
        audited = read_records(artefacts["audit"] / AUDITED, AuditedRow)
        if len(audited) != len(rows):
            raise DataError(f"The audit has {len(audited)} rows and the training {len(rows)}: another defense of the "
                            "method adds or removes rows, so that filtering cannot tell which is which.")
        return [row.place for row in ranked(audited)[:count] if row.difference is not None]


def ranked(rows: Sequence[AuditedRow]) -> list[AuditedRow]:
    """Return audited rows by their difference, the largest first, and those without one last; ties keep their order."""
    return sorted(rows, key=lambda row: float("inf") if row.difference is None else -row.difference)
