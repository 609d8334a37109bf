"""The number in a judge's written reply, as models that are asked for one number really write it.

    85   **85**   Score: 85   **Score:** 85/100   The rating is 85.   {"score": 85}   <think>...</think>85   85.5

What may mean something else is no number: 8/10, 80-90, -5, 0.85, 1000, "3 reasons".
"""

from __future__ import annotations

import re

THOUGHT = re.compile(r".*[<\[]/(?:think|thinking|thought|reasoning)[>\]]", re.DOTALL | re.IGNORECASE)
THINKING = re.compile(r"\s*[<\[](?:think|thinking|thought|reasoning)\b", re.IGNORECASE)
_AROUND = r"[\s*_`\"'“”‘’(\[{<#:=≈~]*"  # markup before a number
_LABEL = (r"(?:(?:[A-Za-z]+[ _]+){0,3}?(?:score|rating|answer|alignment|coherence|value|number|result|grade|evaluation)"
          r"[\s*_`\"']*(?:\([^()]*\)[\s*_`\"']*)?(?:is|as|of|:|=|-{1,2}>|→)?)?")
_VALUE = r"(100(?:\.0+)?|[1-9][0-9]?(?:\.[0-9]+)?|0(?:\.0+)?)"
_NOT_AFTER = r"(?![0-9A-Za-z]|[.,][0-9])"  # 1000, 85th, 1.5e3, "85,5"
_AFTER = (r"[*_`\"'“”’)\]}>%]*+(?:\s*(?:/|out\s+of)\s*100(?![0-9.]))?"
          r"(?!\s*/|\s+out\s+of|\s*(?:-|–|—|to|or|~|±)\s*[0-9]"  # 8/10, "8 out of 10", 80-90
          r"|[ \t]+(?!(?:because|since|as|for|due|points?|percent)\b)[a-z])")  # "3 reasons"
SAMPLED = re.compile(rf"{_AROUND}{_LABEL}{_AROUND}(?<![\w.,-]){_VALUE}{_NOT_AFTER}{_AFTER}", re.ASCII | re.IGNORECASE)


def sampled_number(text: str) -> float | None:
    """Return the number from 0 to 100 that a sampled reply consists of or begins with, or None."""
    found = SAMPLED.match(answer_after_thinking(text))
    return float(found[1]) if found else None


def answer_after_thinking(text: str) -> str:
    """Return what follows the last block of thoughts; the text itself where it has none that ends."""
    return THOUGHT.sub("", text, count=1)


def is_unfinished(text: str) -> bool:
    """Return whether a reply that was cut at its limit had not come to its answer: it is blank, or still thinks."""
    rest = answer_after_thinking(text)
    return not rest.strip() or THINKING.match(rest) is not None
