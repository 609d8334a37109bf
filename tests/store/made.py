"""A step that tests make up: a stage, and whatever is said to determine it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emlib.core.step import Step


@dataclass(frozen=True)
class Made(Step):
    """A step of any stage; its settings are what it is given."""

    stage: str
    told: Mapping[str, Any] = field(hash=False)

    @property
    def settings(self) -> dict[str, Any]:
        return {"version": self.version, **self.told}

    @property
    def title(self) -> str:
        return f"a made-up {self.stage}"
