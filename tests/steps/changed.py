"""Records of the configuration with one value changed, whatever values they have."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any, Literal, get_args, get_origin

from emlib.core.schema import Strict


def changes(record: Strict) -> Iterator[tuple[str, Any]]:
    """Yield the name of each value of a record, and the record with another one; nothing checks whether it fits."""
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if name != "kind":
            yield name, record.model_copy(update={name: _choice(field.annotation, value) or _other(value)})


def _choice(annotation: Any, value: Any) -> Any:
    """Return another one of the values that are listed, of the same type if there is one; None if none are listed."""
    if get_origin(annotation) is not Literal:
        return None
    others = [one for one in get_args(annotation) if one != value]
    return next((one for one in others if type(one) is type(value)), others[0])


def _other(value: Any) -> Any:
    """Return another value of the same type; of a record one with another identity."""
    if isinstance(value, Strict):
        found = [other for _, other in changes(value)]
        return next((other for other in found if other.identity != value.identity), found[0])
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[0]) if value else ("other",)
    if isinstance(value, dict):
        return {**value, "other": 1}
    if isinstance(value, date):
        return value + timedelta(1)
    return {type(None): lambda: 7, int: lambda: value + 1, float: lambda: value + 0.5,
            str: lambda: f"{value} other"}[type(value)]()
