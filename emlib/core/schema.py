"""Strict validation of configuration: returns checked records, and reports every mistake.

A message names the file, the key, the value, what is allowed and the nearest known key. Whether values go
together is checked once each of them is valid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from emlib.core.digests import Keyed
from emlib.core.errors import ProfileError, nearest, shortened


class Strict(BaseModel, Keyed):
    """A frozen record that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    not_in_keys: ClassVar[frozenset[str]] = frozenset()  # fields that determine no result, or that a key has elsewhere

    @property
    def identity(self) -> dict[str, Any]:
        """The part of it that enters a key: its values; for records, also in lists and mappings, their identities."""
        values = self.model_dump(mode="json", exclude=set(self.not_in_keys))
        return {name: _keyed(getattr(self, name), shown) for name, shown in values.items()}

    def _mistakes(self) -> Iterator[str]:
        """Yield what is wrong with valid values together, a line for each mistake."""
        yield from ()

    def model_post_init(self, context: Any, /) -> None:
        """Refuse the record for its mistakes; a validator would put its own name into the places of errors."""
        if mistakes := list(self._mistakes()):
            raise ValueError("\n".join(mistakes))


def _keyed(value: Any, shown: Any) -> Any:
    """Return the part of a value that enters a key; `shown` is the value as JSON, with all of its records."""
    if isinstance(value, Keyed):
        return value.identity
    if isinstance(value, tuple | list):
        return [_keyed(*both) for both in zip(value, shown, strict=True)]
    if isinstance(value, Mapping):
        return {name: _keyed(part, shown[name]) for part, name in zip(value.values(), shown, strict=True)}
    return shown


Record = TypeVar("Record", bound=Strict)


def check(schema: type[Record], data: Any, where: str) -> Record:
    """Validate `data` as a `schema` record; raise ProfileError with one line for each mistake."""
    if not isinstance(data, dict):
        raise ProfileError(f"{where}: expected keys and values at the top level, found {type(data).__name__}.")
    try:
        # Through JSON, because pydantic's strict mode then accepts a list for a tuple, and YAML has no tuples.
        return schema.model_validate_json(json.dumps(data))
    except ValidationError as error:
        # Pydantic also calls a list too short if all its items are wrong: report only the items.
        items = [item for item in error.errors() if item["type"] != "too_short" or not any(
            len(other["loc"]) > len(item["loc"]) and other["loc"][:len(item["loc"])] == item["loc"]
            for other in error.errors())]
        lines = [line for item in items for line in _message(schema, item).split("\n")]
        raise ProfileError("\n".join(f"{where}: {line}" for line in lines)) from error
    except (TypeError, ValueError) as error:  # a date, for example, has no JSON form
        raise ProfileError(f"{where}: a value is neither text, number, list nor mapping. {error}") from error


def mistakes_in(item: Any) -> list[str]:
    """Return the mistakes that pydantic reports as one error, in words that may follow a colon."""
    return [f"{line[:1].lower()}{line[1:]}" for line in item["msg"].removeprefix("Value error, ").split("\n")]


def _message(schema: type[BaseModel], item: Any) -> str:
    """Describe one pydantic error, a line for each mistake: key, value, what is allowed."""
    key = ".".join(shortened(str(part)) for part in _places(schema, item["loc"]))
    if item["type"] == "extra_forbidden":
        known = sorted({name for record in _records(schema, item["loc"][:-1]) for name in record.model_fields})
        return f"unknown key '{key}'.{nearest(str(item['loc'][-1]), known)} Known here: {', '.join(known)}."
    if item["type"] == "missing":
        return f"key '{key}' is missing."
    if item["type"] == "union_tag_not_found":
        kinds = ", ".join(str(kind_of(model)) for model in _records(schema, item["loc"]))
        return f"key '{key}.kind' is missing. Allowed: {kinds}."
    if item["type"] == "union_tag_invalid":
        found = shortened(str(item["ctx"]["tag"]))
        allowed = [tag.strip().strip("'") for tag in item["ctx"]["expected_tags"].split(",")]
        return f"'{key}': unknown kind '{found}'.{nearest(found, allowed)} Allowed: {', '.join(allowed)}."
    value = json.dumps(item["input"], default=str)
    hint = nearest(str(item["input"]), re.findall(r"'([^']*)'", item["ctx"]["expected"])) if (
        item["type"] == "literal_error") else ""
    start = f"'{key}' is {value[:80]}: " if key else ""
    return "\n".join(f"{start}{mistake}.{hint}" for mistake in mistakes_in(item))


def _records(schema: type[BaseModel], loc: tuple[Any, ...]) -> list[type[BaseModel]]:
    """Return the record types that are allowed at `loc` inside `schema`."""
    found = [schema]
    for part in loc:
        inner = [m for s in found if part in s.model_fields for m in _models(s.model_fields[part].annotation)]
        tagged = [s for s in found if kind_of(s) == part]  # pydantic puts a union's tag into the path
        found = inner or tagged or found  # otherwise `part` is an index of a list or a name in a table
    return found


def _places(schema: type[BaseModel], loc: tuple[Any, ...]) -> list[Any]:
    """Return `loc` as in the file: without the tags that pydantic inserts after the name of a union."""
    return [part for index, part in enumerate(loc)
            if len(tags := [kind_of(record) for record in _records(schema, loc[:index])]) < 2 or part not in tags]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return all record types that an annotation mentions or, through the registry, allows."""
    registered = [model for part in get_args(annotation) for model in getattr(part, "record_types", ())]
    if registered:
        return registered
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def kind_of(schema: type[BaseModel]) -> str | None:
    """Return the kind that a record type declares; None for one that declares none, such as a base class."""
    kind = schema.model_fields.get("kind")
    return str(get_args(kind.annotation)[0]) if kind is not None and get_args(kind.annotation) else None
