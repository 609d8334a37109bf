"""What tests of own data share: how a file is read, and what is looked at in its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from emlib.data.own import OwnRows

Put = Callable[..., OwnRows]  # writes a file of a name and content, and reads it


def texts(found: OwnRows) -> list[list[tuple[str, str]]]:
    return [[(turn.role, turn.content) for turn in row.turns] for row in found.drawn]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
