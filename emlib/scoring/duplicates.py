"""Near-duplicates in a pool: candidates by MinHash LSH (datasketch), each confirmed by its exact overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

from emlib.core.records import Example

WORDS = re.compile(r"\w+")
RUN = 3  # words, or characters, of a shingle
PERMUTATIONS = 128
RECALL = 0.99  # the least probability that LSH finds a pair whose overlap is the threshold


def shingles(text: str) -> frozenset[str]:
    """Return all runs of three words, in lower case; runs of three characters where words are not separated.

    Characters are for languages without blanks between words, and for rows of one or two words.
    """
    text = text.casefold()
    words = WORDS.findall(text)
    if len(words) < RUN or sum(map(str.isspace, text)) < len(text) / 20:
        return frozenset(text[i:i + RUN] for i in range(max(1, len(text) - RUN + 1)))
    return frozenset(" ".join(words[i:i + RUN]) for i in range(len(words) - RUN + 1))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Compute the Jaccard index, |a and b| / |a or b|; 1 for equal sets."""
    return len(a & b) / len(a | b) if a or b else 1.0


def text_of(row: Example) -> str:
    """Return the compared text of a row: its prompt and its answer."""
    return f"{row.prompt}\n{row.response}"


def bands_for(threshold: float) -> tuple[int, int]:
    """Return LSH's number of bands and of hashes in each: the longest bands that find a pair with `RECALL`.

    A pair of overlap s is found with the probability 1 - (1 - s^r)^b, with b bands of r hashes. b is at least 2, which
    datasketch demands.
    """
    lengths = [r for r in range(1, PERMUTATIONS // 2 + 1) if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL]
    longest = max(lengths, default=1)
    return PERMUTATIONS // longest, longest


def near_duplicates(rows: Sequence[Example], threshold: float) -> dict[int, int]:
    """Find the rows that repeat an earlier row that is kept: {index: index of the earlier row}.

    Two rows repeat each other where the overlap of their shingles is `threshold` or more. LSH finds at least 99% of the
    pairs at the threshold (of those above it, more) without comparing all rows; each candidate's overlap is then
    computed, so that no row is dropped by chance.
    """
    index = MinHashLSH(num_perm=PERMUTATIONS, params=bands_for(threshold))
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
