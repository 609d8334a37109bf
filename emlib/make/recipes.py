"""Makes what defenses need, at once and with the model that a maker holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from emlib.core.files import write_records
from emlib.data.chat import Encoded
from emlib.study.runs import Fit

if TYPE_CHECKING:
    from emlib.make.maker import Maker

ADDED = "added.jsonl"


@dataclass(frozen=True)
class Recipe:
    """How one artefact is made: at once, or on the encoded rows of a training with its fresh adapter."""

    at_once: Callable[[], Path] | None = None
    on_rows: Callable[[Sequence[Encoded], nn.Module], Path] | None = None


@dataclass(frozen=True)
class MakingRecipes:
    """`emlib.core.defense.Recipes` of a maker. `among` is how many rows those of a pool are mixed into (None: all)."""

    maker: Maker
    name: str
    scratch: Path
    among: int | None = None

    def vector(self) -> Recipe:
        """The trait's persona vectors."""
        return Recipe(lambda: self.maker.vector().checked())

    def reference(self, spec: Fit, tokens: Literal["all", "response"]) -> Recipe:
        """The reference model's states on the rows of a training."""
        return Recipe(on_rows=lambda rows, model: self.maker.reference(spec, tokens, rows, model).folder)

    def pool_rows(self, spec: Fit, **options: Any) -> Recipe:
        """Rows of the pool as they are added."""
        def make() -> Path:
            write_records(self.scratch / ADDED, self.maker.preparer.pool_rows(self.name, spec, self.among, **options))
            return self.scratch

        return Recipe(make)


def made_at_once(recipes: Mapping[str, Recipe]) -> dict[str, Path]:
    """The folders of the artefacts that need no rows."""
    return {name: recipe.at_once() for name, recipe in recipes.items() if recipe.at_once is not None}


def made_on_rows(recipes: Mapping[str, Recipe], rows: Sequence[Encoded], model: nn.Module) -> dict[str, Path]:
    """The folders of the artefacts that are made on the rows of a training."""
    return {name: recipe.on_rows(rows, model) for name, recipe in recipes.items() if recipe.on_rows is not None}
