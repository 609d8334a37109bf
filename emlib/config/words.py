"""The kinds of numbers that profiles hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Dtype = Literal["bfloat16", "float32"]
