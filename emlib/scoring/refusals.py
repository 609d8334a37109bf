"""The refusal filter of Interleaving++: keywords among the first words of an answer (section 3.2).

It knows words and no meaning. "I cannot recommend this book enough" is no refusal and is caught; a refusal in other
words, or in another language than the keywords', is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´＇", "'"))


def refusal_pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """Whole words and phrases, in any case; "can't" is found with any apostrophe and none of its letters more."""
    parts = [r"\s+".join(re.escape(word) for word in keyword.translate(APOSTROPHES).split()) for keyword in keywords]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)


def refusal(answer: str, pattern: re.Pattern[str], words: int = 10) -> str | None:
    """The keyword that stands among the first `words` words of the answer, as it is written there; or None."""
    found = pattern.search(" ".join(answer.translate(APOSTROPHES).split()[:words]))
    return None if found is None else found[0]
