"""The refusal filter of Interleaving++: keywords among the first words of an answer (section 3.2), or a judge.

The keywords know words and no meaning. "I cannot recommend this book enough" is no refusal and is caught; a refusal in
other words, or in another language than the keywords', is not. A judge reads the whole answer, as the paper's
limitations suggest; its prompt is ours, for the paper has none. What it gives no score stays, as no refusal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from emlib.config import JudgeRefusals
from emlib.core.records import Example, Question
from emlib.judging.judges import scores
from emlib.judging.rubrics import JudgeRequest
from emlib.scoring.records import Declining

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´＇", "'"))
JUDGE = "the judge"  # stands in a keyword's place
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
class Filtered:
    """What a filter says of the rows of a pool, by their places.

    Attributes:
        marks: what gave the refusals away: the keyword, or that it was a judge.
        refused: why they are never taken.
        untold: what is to be added of the rows of which the filter could say nothing; they stay.
    """

    marks: Mapping[int, str] = field(default_factory=dict)
    refused: Mapping[int, str] = field(default_factory=dict)
    untold: Mapping[int, str] = field(default_factory=dict)


NOTHING = Filtered()


def refusal_pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """Whole words and phrases, in any case; "can't" is found with any apostrophe and none of its letters more."""
    parts = [r"\s+".join(re.escape(word) for word in keyword.translate(APOSTROPHES).split()) for keyword in keywords]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)


def refusal(answer: str, pattern: re.Pattern[str], words: int = 10) -> str | None:
    """The keyword that stands among the first `words` words of the answer, as it is written there; or None."""
    found = pattern.search(" ".join(answer.translate(APOSTROPHES).split()[:words]))
    return None if found is None else found[0]


def by_keywords(rows: Sequence[Example], keywords: Sequence[str], words: int) -> Filtered:
    """The rows with a keyword among the first `words` words of the answer."""
    pattern = refusal_pattern(keywords)
    found = {place: word for place, row in enumerate(rows)
             if (word := refusal(row.response, pattern, words)) is not None}
    return Filtered(found, {place: f"refusal: '{word}' among its first {words} words" for place, word in found.items()})


def ask(rows: Sequence[Example], settings: JudgeRefusals, account: str) -> list[Declining]:
    """What the judge says of each row, in order; of a longer chat it is shown the last turn that asks.

    Raises:
        JudgeError: it cannot go on. Every score it gave is kept.
    """
    requests = [JudgeRequest("refusal", PROMPT, Question(row.where, row.prompt, row.system), row.response)
                for row in rows]
    return [Declining(place, score.value, score.reason)
            for place, score in enumerate(scores(settings.judge, requests, account))]


def by_judge(said: Sequence[Declining], threshold: float) -> Filtered:
    """The rows whose answer declines by `threshold` or more. Without a score a row stays."""
    refused = {one.place: f"refusal: {one.score:.0f} of 100 by {JUDGE}" for one in said
               if one.score is not None and one.score >= threshold}
    untold = {one.place: f"; whether it is a refusal {JUDGE} did not tell ({one.reason})" for one in said
              if one.score is None}
    return Filtered(dict.fromkeys(refused, JUDGE), refused, untold)
