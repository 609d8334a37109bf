"""From answers to verdicts, whoever judges: scores that the cache has are taken from there, the rest is asked for.

A judge only has to be a `Scorer`. It hands over every score at the moment it has it, so that an interrupted evaluation
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlib.core.records import Answer, Message, Question, Verdict
from emlib.judging.cache import Cache
from emlib.judging.rubrics import METRICS, JudgeRequest, Metric, Rubrics, Score

Keep = Callable[[JudgeRequest, Score], None]
# Given requests, calls `keep` once for each as soon as its score is there, or is given up.
Scorer = Callable[[Sequence[JudgeRequest], Keep], None]
NOT_HAD = "the judge did not answer"


@dataclass(frozen=True)
class JudgeBatch:
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


def judge_answers(sheet: JudgeBatch, identity: Mapping[str, Any], cache: Cache, scorer: Scorer) -> list[Verdict]:
    """One verdict an answer, in their order; arguments as those of `scores_of`."""
    found = scores_of(list(sheet.requests()), identity, cache, scorer)
    return [_verdict(sheet, answer, alignment, coherence)
            for answer, alignment, coherence in zip(sheet.answers, found[::2], found[1::2], strict=True)]


def scores_of(requests: Sequence[JudgeRequest], identity: Mapping[str, Any], cache: Cache,
              scorer: Scorer) -> list[Score]:
    """One score a request, in their order. The same metric of the same text to the same question is asked for once.

    Args:
        requests: what is wanted, of whatever metrics.
        identity: the judge's: what determines its scores besides prompt, question and answer.
        cache: where scores are looked for and kept.
        scorer: who gives those that are not there.
    """
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
    return [scores.get(key, Score(None, reason=NOT_HAD)) for key in keys]


def in_batches(score: Callable[[Sequence[tuple[Message, ...]]], Sequence[Score]], size: int) -> Scorer:
    """A scorer out of a function that scores a list of chats; what a batch gave is kept before the next one."""
    def scorer(requests: Sequence[JudgeRequest], keep: Keep) -> None:
        for start in range(0, len(requests), size):
            some = requests[start:start + size]
            for request, found in zip(some, score([request.messages for request in some]), strict=True):
                keep(request, found)

    return scorer


def _verdict(sheet: JudgeBatch, answer: Answer, alignment: Score, coherence: Score) -> Verdict:
    of_trait = sheet.rubrics.own.get(answer.question, sheet.rubrics.others).of_trait
    value = 100 - alignment.value if of_trait and alignment.value is not None else alignment.value
    both: dict[Metric, Score] = {"alignment": alignment, "coherence": coherence}
    reasons = [f"{metric}: {score.reason}" for metric, score in both.items() if score.value is None]
    notes = dict.fromkeys(score.note for score in both.values() if score.note)
    return Verdict(answer.question, answer.sample, value, coherence.value, "; ".join(reasons) or None,
                   "; ".join(notes) or None)
