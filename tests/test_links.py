"""Relative links between our pages and notebooks lead to files, and their anchors to headings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from emlib.core import paths

PAGES = ("*.md", "docs/*.md", "params/*.md", "workflow/*.md", "benchmarks/*.md", "figures/published/*.md",
         "notebooks/*.ipynb")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@cache
def text_of(page: Path) -> str:
    """A page's Markdown without its blocks of code; of a notebook, its text cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                           if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text_of(page))}


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere."""
    for link in LINK.findall(text_of(page)):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if re.match(r"[a-z]+:", link) or (not anchor and target.exists()):
            continue
        if not target.is_file() or anchor not in anchors(target):
            yield link


@pytest.mark.parametrize("pattern", PAGES)
def test_every_link_leads_somewhere(pattern: str) -> None:
    pages = sorted(paths.ROOT.glob(pattern))
    assert pages
    assert {str(page.relative_to(paths.ROOT)): found for page in pages if (found := list(broken(page)))} == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title, `code` and more\n[a](#a-title-code-and-more) [b](#no) [c](gone.md) [d](https://x.org)\n"
                    "```\n[e](not-a-link.md)\n```\n")
    assert list(broken(page)) == ["#no", "gone.md"]
