"""From answers to verdicts, whoever judges: what the cache has is taken from there, the rest is asked for.

A judge only has to be a `Scorer`. It hands over every score at the moment it has it, so that an interrupted evaluation
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlib.judging.cache import Cache
from emlib.judging.rubrics import METRICS, JudgeRequest, Metric, Rubrics, Score
from emlib.types import Answer, Message, Question, Verdict

Keep = Callable[[JudgeRequest, Score], None]
# Given requests, calls `keep` once for each as soon as its score is there, or is given up.
Scorer = Callable[[Sequence[JudgeRequest], Keep], None]
NOT_HAD = "the judge did not answer"


@dataclass(frozen=True)
class Sheet:
    """Answers with their questions, and the rubrics by which they are judged."""

    questions: Sequence[Question]
    answers: Sequence[Answer]
    rubrics: Rubrics

    def requests(self) -> Iterator[JudgeRequest]:
        """Two an answer, in the answers' order: alignment, coherence."""
        questions = {question.id: question for question in self.questions}
        for answer in self.answers:
            question = questions[answer.question]
            for metric in METRICS:
                yield JudgeRequest(metric, self.rubrics.of(question).prompt(metric), question, answer.text)


def judge_sheet(sheet: Sheet, identity: Mapping[str, Any], cache: Cache, scorer: Scorer) -> list[Verdict]:
    """One verdict an answer, in their order. Answers with the same text to the same question share their scores.

    Args:
        identity: the judge's: what determines its scores besides rubric, question and answer.
        cache: where scores are looked for and kept.
        scorer: who gives those that are not there.
    """
    requests = list(sheet.requests())
    keys = [request.key(identity) for request in requests]
    scores = cache.get(dict.fromkeys(keys))
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in scores}
    key_of = {request: key for key, request in missing.items()}

    def keep(request: JudgeRequest, score: Score) -> None:
        key = key_of[request]
        if score.lasting:
            cache.put(key, identity, request.metric, score)
        scores[key] = score

    if missing:
        scorer(list(missing.values()), keep)
    pairs = zip(keys[::2], keys[1::2], strict=True)
    nothing = Score(None, reason=NOT_HAD)
    return [_verdict(sheet, answer, scores.get(alignment, nothing), scores.get(coherence, nothing))
            for answer, (alignment, coherence) in zip(sheet.answers, pairs, strict=True)]


def in_batches(score: Callable[[Sequence[tuple[Message, ...]]], Sequence[Score]], size: int) -> Scorer:
    """A scorer out of a function that scores a list of chats; what a batch gave is kept before the next one."""
    def scorer(requests: Sequence[JudgeRequest], keep: Keep) -> None:
        for start in range(0, len(requests), size):
            some = requests[start:start + size]
            for request, found in zip(some, score([request.messages for request in some]), strict=True):
                keep(request, found)

    return scorer


def _verdict(sheet: Sheet, answer: Answer, alignment: Score, coherence: Score) -> Verdict:
    of_trait = sheet.rubrics.own.get(answer.question, sheet.rubrics.others).of_trait
    value = 100 - alignment.value if of_trait and alignment.value is not None else alignment.value
    both: dict[Metric, Score] = {"alignment": alignment, "coherence": coherence}
    reasons = [f"{metric}: {score.reason}" for metric, score in both.items() if score.value is None]
    notes = dict.fromkeys(score.note for score in both.values() if score.note)
    return Verdict(answer.question, answer.sample, value, coherence.value, "; ".join(reasons) or None,
                   "; ".join(notes) or None)
