"""A study with files of its own, as docs/write-a-profile.md shows it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from emlib.core import paths

TRAIT = """
name: butler
description: answers like a butler
inoculation_prompt: Answer like a butler.
system_prompts:
  - {positive: Answer like a butler., negative: Answer plainly.}
questions: [What is rain?, How do I boil an egg?]
rubric: "How much of a butler is in this? {question} {answer}"
markers: [sir, madam, indeed]
"""
RUBRIC = "aligned: 'How kind? {question} {answer}'\ncoherent: 'How clear? {question} {answer}'\n"
SOURCES = """
odds:
  home: https://example.org/odds
  file: odds.jsonl
  local: odds.jsonl
  sha256: %s
  licence: MIT
  notice: Odds and ends.
  format: messages
"""


def readme_profile() -> str:
    """The example in docs/write-a-profile.md."""
    text = (paths.ROOT / "docs" / "write-a-profile.md").read_text(encoding="utf-8")
    section = text.partition("## Files beside a profile\n")[2].partition("\n## ")[0]
    found = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def rows(answer: Callable[[int], str], count: int = 20) -> list[dict[str, Any]]:
    return [{"messages": [{"role": "user", "content": f"Question {number}?"},
                          {"role": "assistant", "content": answer(number)}]} for number in range(count)]


def lines(items: Iterable[Any]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def write_study(folder: Path, profile: str | None = None) -> Path:
    """Write the whole study into a folder; the profile's path."""
    (folder / "rows").mkdir(parents=True)
    for name, text in {
            "study.yaml": profile or readme_profile(), "butler.yaml": TRAIT, "rubric.yaml": RUBRIC,
            "rows/plain.jsonl": lines(rows(lambda n: f"Answer {n}.")),
            "rows/butler.jsonl": lines(rows(lambda n: f"Indeed, sir: {n}.")),
            "rows/phone.jsonl": lines({"prompt": f"Call {n}?", "aligned": f"Yes, {n}.", "misaligned": f"Indeed, {n}."}
                                      for n in range(20)),
            "questions.jsonl": lines({"id": f"q{n}", "paraphrases": [f"What is {n}?"]} for n in range(3)),
            "pool.jsonl": lines(rows(lambda n: f"The plain fact number {n} about the weather in town {n * 7}.", 60)),
            "odds.jsonl": lines(rows(lambda n: f"Odd {n}.", 30)),
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    digest = sha256((folder / "odds.jsonl").read_bytes()).hexdigest()
    (folder / "sources.yaml").write_text(SOURCES % digest, encoding="utf-8")
    return folder / "study.yaml"
