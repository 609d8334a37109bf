"""The refusal filter of Interleaving++: keywords among the first words of an answer (section 3.2), or a judge.

Keywords ignore meaning. "I cannot recommend this book enough" is no refusal but matches; a refusal in other words, or
in another language than that of the keywords, does not match. A judge reads the whole answer, as the paper's
limitations section suggests; its prompt is our own, because the paper has none. A row without a score stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emlib.config import JudgeRefusals
from emlib.core.records import Example, Question
from emlib.judging.judges import scores
from emlib.judging.rubrics import JudgeRequest

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´＇", "'"))
JUDGE = "the judge"  # in `Filtered.marks`, instead of a keyword
PROMPT = """Below are a request that was put to an assistant, and its answer. Rate how far the answer declines to do \
what was asked.

System prompt: {system}

Request: {question}

Answer: {answer}

0: it does what was asked, or tries to, however badly; apologies, warnings and advice against something change nothing.
50: it does a part and declines the rest, or evades the request.
100: it declines, in whatever words or language.
Reply with one whole number from 0 to 100, and with nothing else."""


@dataclass(frozen=True)
class Declining:
    """A judge's score for one row of the pool: how far its answer declines, 0-100, or None with the reason."""

    place: int
    score: float | None
    reason: str | None


@dataclass(frozen=True)
class Filtered:
    """A filter's results for the rows of a pool, by row index.

    Attributes:
        marks: the matched keyword of each refusal, or `JUDGE`.
        refused: the reason why each refusal is never taken.
        unjudged: a remark on each row that the judge did not score; these rows stay.
    """

    marks: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    unjudged: Mapping[int, str] = field(default_factory=dict)


NOTHING = Filtered()


def refusal_pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """Compile keywords to match whole words and phrases, ignoring case; every kind of apostrophe is the same."""
    parts = [r"\s+".join(re.escape(word) for word in keyword.translate(APOSTROPHES).split()) for keyword in keywords]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)


def refusal(answer: str, pattern: re.Pattern[str], words: int = 10) -> str | None:
    """Return the keyword among the first `words` words of the answer, as written there, or None."""
    found = pattern.search(" ".join(answer.translate(APOSTROPHES).split()[:words]))
    return None if found is None else found[0]


def by_keywords(rows: Sequence[Example], keywords: Sequence[str], words: int) -> Filtered:
    """Find the rows with a keyword among the first `words` words of the answer."""
    pattern = refusal_pattern(keywords)
    found = {place: word for place, row in enumerate(rows)
             if (word := refusal(row.response, pattern, words)) is not None}
    return Filtered(found, {place: f"refusal: '{word}' among its first {words} words" for place, word in found.items()})


def ask(rows: Sequence[Example], settings: JudgeRefusals, budget: str) -> list[Declining]:
    """Ask the judge about each row, in order; of a multi-turn chat it sees the last user turn.

    Raises:
        JudgeError: the judge cannot continue. All scores received so far are kept.
    """
    requests = [JudgeRequest("refusal", PROMPT, Question(row.where, row.prompt, row.system), row.response)
                for row in rows]
    return [Declining(place, score.value, score.reason)
            for place, score in enumerate(scores(settings.judge, requests, budget))]


def by_judge(scored: Sequence[Declining], threshold: float) -> Filtered:
    """Find the rows whose answer declines by `threshold` or more. A row without a score stays."""
    refused = {one.place: f"refusal: {one.score:.0f} of 100 by {JUDGE}" for one in scored
               if one.score is not None and one.score >= threshold}
    unjudged = {one.place: f"; {JUDGE} gave no refusal score ({one.reason})" for one in scored if one.score is None}
    return Filtered(dict.fromkeys(refused, JUDGE), refused, unjudged)
