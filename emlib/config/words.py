"""The types of values in profiles. Every number has bounds: above them is a slip, such as 1e30 epochs, and no study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]  # rows, items
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]  # of a text or a batch
SmallCount = Annotated[int, Field(gt=0, le=100_000)]  # rows at once, samples of a question, steps between checkpoints
Few = Annotated[int, Field(gt=0, le=1000)]  # epochs, layers, tries
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]
Factor = Annotated[float, Field(gt=0, le=1_000_000)]
Number = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComputeDtype = Literal["bfloat16", "float32"]
Dtype = Literal["auto", "bfloat16", "float32"]


def no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raise ValueError if one is repeated, where records are compared by name."""
    if repeated := repeats([_label(value) for value in values]):
        raise ValueError(f"named more than once: {', '.join(repeated)}; list each once")
    return values


Item = TypeVar("Item")
Distinct = Annotated[tuple[Item, ...], AfterValidator(no_repeats)]  # a list that may be empty
AtLeastOne = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(no_repeats)]  # distinct ones, too


def repeats(names: Sequence[str]) -> list[str]:
    """Return the names that stand there more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _label(value: Any) -> str:
    """Return what a value is called in the labels of runs and files."""
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "name", value))
