"""Pydantic annotations for a defense in a schema: the registry finds its class by its `kind`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, TypeAdapter, ValidationInfo
from pydantic_core import core_schema

from emlib.core.defense import Defense
from emlib.core.flag import Flag
from emlib.core.hooks import FINE_TUNING, GRPO
from emlib.core.registry import Purpose, kinds

# Within it, profiles are read without their plugins, and unknown kinds are kept as `UnknownDefense`: for commands that
# only look at a study's files and jobs (status, merging, cleaning).
unknown_kinds_allowed = Flag("unknown_kinds_allowed")


class UnknownDefense(Defense):
    """A defense whose class is not loaded, with its options as in the profile; nothing can be trained with it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    listed: ClassVar[bool] = False


@dataclass(frozen=True)
class OfKind:
    """Annotates a field that holds a defense for one purpose."""

    purpose: Purpose

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Validate a value as the class of its kind; it is dumped with that class's options."""
        return core_schema.with_info_before_validator_function(self.resolved, handler(source))

    @property
    def record_types(self) -> tuple[type[BaseModel], ...]:
        """The allowed classes, for error messages."""
        return tuple(kinds(self.purpose).values())

    def resolved(self, value: Any, info: ValidationInfo) -> Any:
        """Validate `value` as a record of the kind that it names.

        Raises:
            ValueError: the kind is unknown, or does not work for this purpose.
        """
        if not isinstance(value, dict):
            return self._acting(value) if isinstance(value, Defense) else value
        kind = value.get("kind")
        if isinstance(kind, str) and kind not in kinds(self.purpose):
            if unknown_kinds_allowed.is_set:
                return UnknownDefense.model_validate(value)
            self._refuse_in_grpo(kind)
        adapter = _adapter(self.record_types)  # which refuses a kind that nobody knows
        return self._acting(adapter.validate_json(json.dumps(value)) if info.mode == "json" else
                            adapter.validate_python(value))

    def _refuse_in_grpo(self, kind: str) -> None:
        """Refuse a kind that works in fine-tuning alone, with the reason."""
        if kind in kinds():
            because = f" ({reason})" if (reason := kinds()[kind].not_in_grpo) else ""
            raise ValueError(f"the kind '{kind}' does not work in reinforcement learning{because}. These do: "
                             f"{', '.join(kinds(self.purpose))}")

    def _acting(self, defense: Defense) -> Defense:
        """Return the defense; refuse one that overrides no hook of this purpose, or one that GRPO does not call."""
        if isinstance(defense, UnknownDefense):
            return defense
        called = FINE_TUNING if self.purpose == "fine-tuning" else GRPO
        overridden = [hook for hook in (*FINE_TUNING, *GRPO) if defense.has(hook)]
        if not set(overridden) & set(called):
            raise ValueError(f"the defense '{defense.kind}' {defense.why_inert(called)}")
        if self.purpose == "grpo" and defense.has("penalty") and defense.reads_hidden:
            raise ValueError(f"the penalty of '{defense.kind}' reads the last hidden states, which reinforcement "
                             "learning does not keep. Let it read layers (`reads_layers`), with reads_hidden = False")
        ignored = sorted(set(overridden) - set(called) - {"change_rows"}) if self.purpose == "grpo" else []
        if ignored:
            raise ValueError(f"the defense '{defense.kind}' overrides {', '.join(ignored)}, which reinforcement "
                             "learning does not call")
        return defense


@cache
def _adapter(classes: tuple[type[BaseModel], ...]) -> TypeAdapter[Any]:
    union: Any = Annotated[reduce(or_, classes), Field(discriminator="kind")]
    return TypeAdapter(union)


AnyDefense = Annotated[SerializeAsAny[Defense], OfKind("fine-tuning")]
AnyGrpoDefense = Annotated[SerializeAsAny[Defense], OfKind("grpo")]
