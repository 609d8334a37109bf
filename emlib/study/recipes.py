"""What stands for the artefacts that defenses need: their stage and settings. `emlib.make.recipes` makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from emlib.defenses.interleaving import Interleaving
from emlib.study import interleaving

if TYPE_CHECKING:
    from emlib.study.runs import Fit
    from emlib.study.study import Study

Needed = tuple[str, dict[str, Any]]  # stage and settings


class StageNames:
    """Recipes that say the stage alone: for plans, which read no data and no trait file."""

    def vector(self) -> str:
        """The trait's persona vectors."""
        return "vector"

    def reference(self, spec: Any, tokens: str) -> str:
        """The reference model's states."""
        return "reference"

    def pool_rows(self, spec: Any, **options: Any) -> str:
        """Rows of the pool."""
        return "selection"


@dataclass(frozen=True)
class StudyRecipes:
    """`emlib.core.defense.Recipes` in a study."""

    study: Study

    def vector(self) -> Needed:
        """The trait's persona vectors."""
        return "vector", self.study.vector_settings()

    def reference(self, spec: Fit, tokens: Literal["all", "response"]) -> Needed:
        """The reference model's states on the rows of a training."""
        return "reference", self.study.reference_settings(spec, tokens)

    def pool_rows(self, spec: Fit, **options: Any) -> Needed:
        """Rows of the pool: its scores where they decide, else the order alone."""
        chosen = replace(spec, defenses=(Interleaving(**options),))
        if interleaving.is_scored(chosen):
            return "scores", interleaving.scores_settings(self.study, spec.dataset)
        return "selection", interleaving.selection_settings(self.study, chosen)
