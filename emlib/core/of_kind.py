"""The annotation of a defense in a schema: its `kind` decides its class, through the registry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, TypeAdapter, ValidationInfo
from pydantic_core import core_schema

from emlib.core.defense import FINE_TUNING, GRPO, Defense
from emlib.core.registry import Purpose, kinds

_unknown_allowed = ContextVar("unknown_allowed", default=False)


class UnknownDefense(Defense):
    """A defense whose class is not at hand, with its options as a profile has them; nothing is trained with it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    listed: ClassVar[bool] = False


@contextmanager
def unknown_kinds_allowed() -> Iterator[None]:
    """While it lasts, profiles are read without their plugins, and a kind that nobody knows is kept as it stands.

    For what looks at a study's files and jobs alone: status, merging, cleaning.
    """
    before = _unknown_allowed.set(True)
    try:
        yield
    finally:
        _unknown_allowed.reset(before)


def are_unknown_kinds_allowed() -> bool:
    """Whether it lasts now."""
    return _unknown_allowed.get()


@dataclass(frozen=True)
class OfKind:
    """Says in an annotation that a defense is meant that serves a purpose."""

    purpose: Purpose

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make whatever is given a record of its kind; it is dumped with the options of that kind."""
        return core_schema.with_info_before_validator_function(self.resolved, handler(source))

    @property
    def record_types(self) -> tuple[type[BaseModel], ...]:
        """The classes that may stand there, for messages about mistakes."""
        return tuple(kinds(self.purpose).values())

    def resolved(self, value: Any, info: ValidationInfo) -> Any:
        """The record of the kind that `value` names.

        Raises:
            ValueError: there is no such kind, it does not work here, or it does nothing here.
        """
        if not isinstance(value, dict):
            return self._acting(value) if isinstance(value, Defense) else value
        kind, there = value.get("kind"), kinds(self.purpose)
        if isinstance(kind, str) and kind not in there:
            if _unknown_allowed.get():
                return UnknownDefense.model_validate(value)
            if kind in kinds():
                raise ValueError(f"the kind '{kind}' does not work in reinforcement learning. These do: "
                                 f"{', '.join(there)}")
        adapter = _adapter(self.record_types)
        return self._acting(adapter.validate_json(json.dumps(value)) if info.mode == "json" else
                            adapter.validate_python(value))

    def _acting(self, defense: Defense) -> Defense:
        """The defense, if it overrides a hook that is asked here, and none that is asked elsewhere alone."""
        if isinstance(defense, UnknownDefense):
            return defense
        asked = FINE_TUNING if self.purpose == "fine-tuning" else GRPO
        found = [hook for hook in (*FINE_TUNING, *GRPO) if defense.has(hook)]
        if not set(found) & set(asked):
            raise ValueError(f"the defense '{defense.kind}' overrides none of the hooks by which it could act here: "
                             f"{', '.join(asked)}")
        lost = sorted(set(found) - set(asked) - {"change_rows"}) if self.purpose == "grpo" else []
        if lost:
            raise ValueError(f"the defense '{defense.kind}' acts by {', '.join(lost)}, which reinforcement learning "
                             "does not ask for")
        return defense


@cache
def _adapter(classes: tuple[type[BaseModel], ...]) -> TypeAdapter[Any]:
    union: Any = Annotated[reduce(or_, classes), Field(discriminator="kind")]
    return TypeAdapter(union)


AnyDefense = Annotated[SerializeAsAny[Defense], OfKind("fine-tuning")]
AnyGrpoDefense = Annotated[SerializeAsAny[Defense], OfKind("grpo")]
