"""From answers to verdicts, for any judge: cached scores are reused, the others are requested.

A judge only has to be a `Scorer`. It passes on every score as soon as it has it, so that an interrupted evaluation
resumes where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from emlib.core.records import Answer, Question, Verdict
from emlib.judging.cache import Cache
from emlib.judging.replies import OTHER
from emlib.judging.rubrics import METRICS, JudgeRequest, Rubrics, Score

Keep = Callable[[JudgeRequest, Score], None]
# Called with requests, it calls `keep` once for each, as soon as its score is known or given up.
Scorer = Callable[[Sequence[JudgeRequest], Keep], None]
NOT_HAD = "the judge did not answer"


@dataclass(frozen=True)
class JudgeBatch:
    """Answers with their questions, and the rubrics by which they are judged."""

    questions: Sequence[Question]
    answers: Sequence[Answer]
    rubrics: Rubrics

    def requests(self) -> Iterator[JudgeRequest]:
        """Yield two requests per answer, in the answers' order: alignment, coherence."""
        questions = {question.id: question for question in self.questions}
        for answer in self.answers:
            question = questions[answer.question]
            for metric in METRICS:
                yield JudgeRequest(metric, self.rubrics.of(question).prompt(metric), question, answer.text)

    def verdicts(self, scores: Sequence[Score]) -> list[Verdict]:
        """Return one verdict per answer, in their order, from the scores of `requests`."""
        return [self._verdict(answer, alignment, coherence)
                for answer, alignment, coherence in zip(self.answers, scores[::2], scores[1::2], strict=True)]

    def _verdict(self, answer: Answer, alignment: Score, coherence: Score) -> Verdict:
        of_trait = self.rubrics.own.get(answer.question, self.rubrics.others).of_trait
        value = 100 - alignment.value if of_trait and alignment.value is not None else alignment.value
        both = (alignment, coherence)
        reasons = [f"{metric}: {score.reason}" for metric, score in zip(METRICS, both, strict=True)
                   if score.value is None]
        notes = dict.fromkeys(score.note for score in both if score.note)
        return Verdict(answer.question, answer.sample, value, coherence.value, "; ".join(reasons) or None,
                       "; ".join(notes) or None)


def scores_of(requests: Sequence[JudgeRequest], identity: Mapping[str, Any], cache: Cache,
              scorer: Scorer) -> list[Score]:
    """Return one score per request, in their order; `scorer` is asked once for each that the cache lacks.

    `identity` is what determines the judge's scores besides prompt, question and answer.
    """
    keys = [request.key(identity) for request in requests]
    scores = _once_labels(requests, identity, cache) | cache.get(dict.fromkeys(keys))
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in scores}
    key_of = {request: key for key, request in missing.items()}

    def keep(request: JudgeRequest, score: Score) -> None:
        key = key_of[request]
        if score.lasting:
            cache.put(key, identity, request.metric, score)
        scores[key] = score

    if missing:
        scorer(list(missing.values()), keep)
    return [scores[key] for key in keys]


def _once_labels(requests: Sequence[JudgeRequest], identity: Mapping[str, Any], cache: Cache) -> dict[str, Score]:
    """Return the words of a paid judge that were stored when the key did not say that a label is asked for.

    A refusal is none: it may be that of a number that was asked for, or a label of which only the start was read.
    """
    if identity.get("kind") == "local":
        return {}
    once = {replace(request, wants_label=False).key(identity): request for request in requests if request.wants_label}
    return {once[key].key(identity): score for key, score in cache.get(once).items()
            if score.value is None and (score.reason or "").startswith(OTHER)}
