"""Text from outside in Markdown pages and tables: it stays text, whatever markup it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
IN_A_TABLE = re.compile(r"([\\`<|$]|(?<=\])\(|&(?=#?\w+;))")  # code, HTML, columns, equations, links, entities


def plain(text: str) -> str:
    """Return a text on one line with all punctuation escaped: it has no markup in Markdown."""
    return PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Return a text as code on one line; backticks become apostrophes."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def listed(parts: Sequence[str]) -> str:
    """Join parts as in "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def table(frame: pd.DataFrame, **options: Any) -> str:
    """Return a table in Markdown, without HTML, links and code in its cells and headings.

    Unlike `plain` it leaves the brackets of intervals as they are, because people read these files too.
    """
    return frame.map(_escaped).rename(columns=_escaped).to_markdown(index=False, **options) + "\n"


def escaped_cell(text: str) -> str:
    """Return the text of one cell as `table` writes it."""
    return IN_A_TABLE.sub(r"\\\1", " ".join(text.split()))


def _escaped(value: Any) -> Any:
    return escaped_cell(value) if isinstance(value, str) else value
