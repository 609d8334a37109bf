"""The number in a judge's written reply, as models that are asked for one number really write it.

    85   **85**   Score: 85   **Score:** 85/100   The rating is 85.   {"score": 85}   <think>...</think>85   85.5

What may mean something else is no number: 8/10, "8 (on a scale of 10)", 80-90, "70, 80", -5, <50, 0.85, 1.0, 1000, "3
reasons", "1. The answer", two scores that differ, and a number that the limit of tokens may have cut ("8…").
"""

from __future__ import annotations

import re

THOUGHT = re.compile(r".*[<\[]/(?:think|thinking|thought|reasoning)[>\]]", re.DOTALL | re.IGNORECASE)
THINKING = re.compile(r"\s*[<\[](?:think|thinking|thought|reasoning)\b", re.IGNORECASE)
_AROUND = r"[\s*_`\"'“”‘’(\[{<#:=≈~]*"  # markup before a number
_LABEL = (r"(?:(?:[A-Za-z]+[ _]+){0,3}?(?:score|rating|answer|alignment|coherence|value|number|result|grade|evaluation)"
          r"[\s*_`\"']*(?:\([^()]*\)[\s*_`\"']*)?(?:is|as|of|:|=|-{1,2}>|→|(?<=[a-z])>)?)?")
_VALUE = r"(100(?:\.0+)?|[1-9][0-9]?(?:\.[0-9]+)?|0(?:\.0+)?)"
_NOT_AFTER = r"(?![0-9A-Za-z]|[.,][0-9])"  # 1000, 85th, 1.5e3, "85,5"
_AFTER = (r"[*_`\"'“”’)\]}>%]*+(?:\s*(?:/|out\s+of)\s*100(?![0-9.]))?"
          r"(?!\s*/|\s+out\s+of|\s*(?:-|–|—|to|or|~|±)\s*[0-9]"  # 8/10, "8 out of 10", 80-90
          r"|[ \t]+(?!(?:because|since|as|for|due|points?|percent)\b)[a-z])")  # "3 reasons"
SAMPLED = re.compile(rf"{_AROUND}{_LABEL}{_AROUND}(?<![\w.,-]){_VALUE}{_NOT_AFTER}{_AFTER}", re.ASCII | re.IGNORECASE)
BEGUN = re.compile(rf"{_AROUND}{_LABEL}{_AROUND}(?:[0-9]+(?:\s*[.,/]\s*[0-9]*)*)?", re.ASCII | re.IGNORECASE)
_COUNT = r"(?:a\s+|one\s+)?(?:possible\s+)?(\d+(?:\.\d+)?|hundred|three|four|five|six|seven|ten|twelve|twenty)\b"
_RANGE = r"(?:\d+(?:\.\d+)?\s*(?:-|–|—|to|and)\s*)?"
SCALE = re.compile(  # (1-10), "out of 10", "on a scale of 1 to 10", "max_score": 10
    r"(?:\bout\s+of|\bscale\W+(?:of|from|is)?|\(\s*(?=\d+\s*(?:-|–|—|to)\s*\d+\s*\))|\bmax[a-z_]*\W{1,5})"
    rf"\s*{_RANGE}{_COUNT}", re.IGNORECASE)
_INSIDE = r"[^()（）A-Za-z\d]*"
BESIDE = re.compile(  # in brackets behind the number: "8 (1-10 scale)", "3.5 (on a 5-point scale)", "8 (sur 10)"
    rf"\s*[(（](?:[^()（）]*?\b{_RANGE}{_COUNT}[\s-]+(?:points?[\s-]+)?scale\b"
    rf"|(?:sur|von|de|su|van)?{_INSIDE}(?<![+-])(\d+){_INSIDE}[)）])", re.IGNORECASE)
HUNDRED = ("100", "hundred")
MARKUP = re.compile(r"[*_`\"'“”‘’]")
GOES_ON = re.compile(  # what follows a number that is another thing than the score: "70, 80", "85 -> 20", "8 из 10"
    r"[\s)\]}]*[÷∕⁄]|[\s)\]}]+/(?!\s*100(?![0-9.]))|\s*[:=]|\.\.|…|[^\S\n]+[0-9]"
    r"|[^\S\n]*(?:[,;]|->|→)[^\S\n]*[0-9]+(?:\.[0-9]+)?[^\S\n]*(?:\n|\Z)|[^\S\n]+из\s+(?!100\b)")
BELOW = re.compile(r"<\s*\Z")  # "<50", and not the markup of <50> or <score>50
UNIT = re.compile(r"1\.0+")  # of a judge that rates from 0 to 1, unless it names the hundred
OF_HUNDRED = re.compile(r"\s*(?:%|/\s*100\b|out\s+of\s+100\b)|.*\b100\b", re.IGNORECASE)
LIST = re.compile(r"\s*[.)]\s*[^\W\d]")  # "1. The answer is honest."
SCORES = re.compile(r"\b(?:score|rating|alignment|coherence|grade)\W*(?:\([^()]*\)\W*)?[:=]\W*?(-?[0-9]+(?:\.[0-9]+)?)",
                    re.IGNORECASE)


def sampled_number(text: str) -> float | None:
    """Return the number from 0 to 100 that a sampled reply consists of or begins with, or None."""
    answer = answer_after_thinking(text)
    found = SAMPLED.match(answer)
    if found is None or _is_another_thing(found[1], answer, *found.span(1)):
        return None
    return float(found[1])


def _is_another_thing(number: str, answer: str, start: int, end: int) -> bool:
    """Return whether a number is a bound, on another scale, of a list, cut short, or one of several scores."""
    rest = MARKUP.sub("", answer[end:])
    return (GOES_ON.match(rest) is not None or (number == "1" and LIST.match(rest) is not None)
            or (UNIT.fullmatch(number) is not None and OF_HUNDRED.match(rest) is None)
            or (BELOW.search(answer[:start]) is not None and ">" not in rest.partition("\n")[0])
            or any(most.lower() not in HUNDRED for most in _scales(answer, end))
            or any(float(other) != float(number) for other in SCORES.findall(MARKUP.sub("", answer))))


def _scales(answer: str, end: int) -> list[str]:
    """Return the ends of the scales that a reply states, anywhere or in brackets behind the number."""
    beside = BESIDE.match(MARKUP.sub("", answer[end:]))
    return [*SCALE.findall(answer), *filter(None, beside.groups() if beside else ())]


def answer_after_thinking(text: str) -> str:
    """Return what follows the last block of thoughts; the text itself where it has none that ends."""
    return THOUGHT.sub("", text, count=1)


def is_unfinished(text: str) -> bool:
    """Return whether a reply that was cut at its limit had not come to the end of its number.

    It is blank, still thinks, is about to give a number, or has given its first digits: "8" may be the start of "85".
    """
    rest = answer_after_thinking(text)
    begun = BEGUN.fullmatch(rest) is not None and sampled_number(rest) != 100
    return begun or not rest.strip() or THINKING.match(rest) is not None
