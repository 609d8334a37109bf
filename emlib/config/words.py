"""The types of values in profiles."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
ComputeDtype = Literal["bfloat16", "float32"]
Dtype = Literal["auto", "bfloat16", "float32"]


def no_repeats(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raise ValueError if one is repeated, where records are compared by name."""
    names = [getattr(value, "name", value) for value in values]
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"named more than once: {', '.join(repeated)}; list each once")
    return values
