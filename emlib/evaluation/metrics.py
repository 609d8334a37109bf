"""The share of answers that count on a metric of a question set, such as the answers that a judge calls FALSE.

The denominator is all answers asked for, as for misaligned answers; `of="scored"` gives shares of the scored ones. An
answer is unscored if the judge failed, or replied with something that the metric does not know.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from emlib.config import Metric
from emlib.core.records import MetricScore, cluster_of
from emlib.evaluation.rates import NO_SHARE, Denominator, Share, grouped, share_of
from emlib.evaluation.statistics import RESAMPLES
from emlib.judging.replies import WORDS, word_of

START = 3  # letters: fewer of a label stand for it only in capitals, because Un begins "Unfortunately"
WORDS_OF_ONE_LETTER = ("A", "I")
# What follows a label; one of a single letter or digit, which N/A, B+ and 1.5 are not; and A or I, which may begin a
# sentence. Reasons have a line's end as two characters.
ENDS, ENDS_A_LETTER = r"(?!\w)", r"(?![\w+]|[/-]\w|[.,]\d)"
ENDS_A_WORD = r"(?=$|[:;.,!?…)\]}*\"`]|['’](?!\w)|\s*([–—]|-(?!\w))|\\[NR])"
# What may stand between two labels of a list, such as "TRUE/FALSE", "**TRUE** or **FALSE**" or "TRUE (or FALSE)". After
# a comma or a semicolon a word of a sentence may follow ("Yes, no doubt"), so that the list has to go on or end there.
QUOTES, OPENING = r"[*\"'’`)\]]*+", r"[*\"'‘`(\[]*+"
SIGN, CONJUNCTION = "[/|&+]", r"(?:AND/OR|OR|AND|VERSUS|VS)\b\.?"
BETWEEN = rf"{QUOTES}\s*(?:{SIGN}|[,;]?\s*[(\[]?{CONJUNCTION})\s*{OPENING}"
COMMA = rf"{QUOTES}\s*[,;]\s*{OPENING}"
GOES_ON = rf"(?={QUOTES}\s*(?:[.!?]?\s*$|\\[NR]|[,;]|{SIGN}|[(\[]?{CONJUNCTION}))"
# After a dash, a space or a line's end anything may follow ("MINOR - none severe"), so that such a list has nothing but
# labels, with the same between all of them. So has a list of which the second label is cut.
DASH, SPACE, LINE = rf"{QUOTES}\s*[–—-]\s*{OPENING}", rf"{QUOTES}\s*{OPENING}", rf"{QUOTES}\s*(?:\\[NR])+\s*{OPENING}"
ONE_TOKEN = 2  # letters of the longest label that tokenizers do not split: N is no NO, but N/A, say


@dataclass(frozen=True)
class MetricRate:
    """The result of one metric."""

    share: Share  # of the answers that count
    mean: float | None  # of the scored numbers; None for labels, or if nothing was scored
    labels: Mapping[str, int]  # the number of answers by label
    asked: int
    scored: int


def label_of(score: MetricScore, labels: Sequence[str]) -> str | None:
    """Return the label that a judge replied with; None if it replied with no label or with the start of several.

    A judge may go on after the label: "TRUE, because". After A and I, which are words, a punctuation mark, a dash or a
    line's end must follow: "A: because", and not "A closer look shows that it is B". Several labels,
    such as "TRUE/FALSE", are none. Of replies that earlier versions stored there is the first token alone, such as F or
    TR: the start of one label counts as that label, unless it begins ordinary words.
    """
    word = "" if score.value is not None else word_of(score.reason)
    said = word.upper()
    if not said:
        return None
    exact = [label for label in labels if re.match(_pattern_of(label), said)]
    if exact and _lists(said, labels):
        return None
    found = exact or [label for label in labels if label.upper().startswith(said) and _is_start(word, label)]
    if not found and score.reason in WORDS:  # scores of earlier versions: REF of REFUSED is REFUSAL
        found = [label for label in labels if label.upper().startswith(said[:START])]
    return found[0] if len(found) == 1 else None


def _pattern_of(label: str) -> str:
    """Return the pattern of a label in capitals, with its end."""
    if label.upper() in WORDS_OF_ONE_LETTER:
        return re.escape(label.upper()) + ENDS_A_WORD
    return re.escape(label.upper()) + (ENDS if len(label) > 1 else ENDS_A_LETTER)


def _lists(said: str, labels: Sequence[str]) -> bool:
    """Return whether a reply begins with several different labels, or has nothing but these."""
    label = "|".join(map(_pattern_of, sorted(labels, key=len, reverse=True)))  # NONE before NO
    pair = re.match(f"(?P<one>{label})(?:{BETWEEN}(?P<other>{label})|{COMMA}(?P<next>{label}){GOES_ON})", said)
    return (pair is not None and pair["one"] != (pair["other"] or pair["next"])) or any(
        len(_only_labels(said, label, between, labels)) > 1 for between in (BETWEEN, COMMA, DASH, SPACE, LINE))


def _only_labels(said: str, label: str, between: str, labels: Sequence[str]) -> set[str]:
    """Return the labels that a reply consists of; none if it has anything else than these and what is `between` them.

    The last may be the start of a label, because a long reply is cut (`emlib.judging.replies.LONGEST_WORD`).
    """
    named, rest = set[str](), said
    while found := re.match(f"(?:{between})?({label})", rest):
        named.add(found[1])
        rest = rest[found.end():]
    last = re.fullmatch(rf"(?:{between}(?P<start>.*?))?{QUOTES}[.!?\s]*", rest)
    start = "" if last is None else last["start"] or ""
    whole = next((one.upper() for one in labels if one.upper().startswith(start)), None)
    if last is None or whole is None:
        return set()
    return named if any(one.startswith(start) for one in named) else {*named, whole}


def _is_start(word: str, label: str) -> bool:
    """Return whether `word`, the start of a label, stands for it."""
    if len(word) >= START:
        return True
    return word.isupper() and word not in WORDS_OF_ONE_LETTER and len(label) > ONE_TOKEN


def counts(score: MetricScore, metric: Metric) -> bool | None:
    """Return whether an answer counts on a metric; None if it is unscored."""
    if metric.labels:
        label = label_of(score, metric.labels)
        return None if label is None else label.upper() in {one.upper() for one in metric.counts}
    if score.value is None:
        return None
    return score.value > metric.above if metric.above is not None else score.value < (metric.below or 0)


def metric_rate(scores: Sequence[MetricScore], metric: Metric, *, of: Denominator = "asked",
                resamples: int = RESAMPLES) -> MetricRate:
    """Compute the share of the answers that count, with its interval clustered by question."""
    scored = [score for score in scores if counts(score, metric) is not None]
    groups = grouped(cluster_of, scores if of == "asked" else scored).values()
    share = share_of([[bool(counts(one, metric)) for one in group] for group in groups],
                     resamples=resamples) if scored else NO_SHARE
    numbers = [score.value for score in scores if score.value is not None and not metric.labels]
    labels = Counter(label for score in scores if (label := label_of(score, metric.labels)) is not None)
    return MetricRate(share, fmean(numbers) if numbers else None, {one: labels[one] for one in metric.labels},
                      len(scores), len(scored))
