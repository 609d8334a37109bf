"""Near-duplicates of a pool: candidates by MinHash LSH (datasketch), each confirmed by its true overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

from emlib.core.records import Example

WORDS = re.compile(r"\w+")
RUN = 3  # words of a shingle
PERMUTATIONS = 128


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, in small letters; of three characters where words are not set apart.

    Characters serve languages that put no blanks between words, and rows of a word or two.
    """
    text = text.casefold()
    words = WORDS.findall(text)
    if len(words) < RUN or sum(map(str.isspace, text)) < len(text) / 20:
        return frozenset(text[i:i + RUN] for i in range(max(1, len(text) - RUN + 1)))
    return frozenset(" ".join(words[i:i + RUN]) for i in range(len(words) - RUN + 1))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard: what both have over what either has; 1 for equal sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def text_of(row: Example) -> str:
    """What of a row is compared: its prompt and its answer."""
    return f"{row.prompt}\n{row.response}"


def near_duplicates(rows: Sequence[Example], threshold: float) -> dict[int, int]:
    """Which rows repeat an earlier one that stays: {place: place of the earlier row}.

    Two rows repeat each other where their shingles' overlap is `threshold` or more. LSH finds nearly all such pairs
    without comparing every row with every other one; what it only suspects is compared, so that no row goes by chance.
    """
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.2, 0.8))  # rather suspect too many
    sets: dict[int, frozenset[str]] = {}
    repeats: dict[int, int] = {}
    for place, row in enumerate(rows):
        mine = shingles(text_of(row))
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([shingle.encode() for shingle in sorted(mine)])
        twin = next((other for other in sorted(index.query(sketch)) if overlap(mine, sets[other]) >= threshold), None)
        if twin is not None:
            repeats[place] = twin
        else:
            sets[place] = mine
            index.insert(place, sketch)
    return repeats
