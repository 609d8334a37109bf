"""Answers to judge, and a judge for them, as tests and the processes that they start need them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emlib.config import OpenAIJudge
from emlib.core.records import Answer, Message, Question, Verdict
from emlib.evaluation.reward_judge import PROMPTS, Part
from emlib.judging.api import ApiJudge
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch, Keep, Scorer, scores_of
from emlib.judging.money import Budget
from emlib.judging.replies import from_distribution
from emlib.judging.rubrics import JudgeRequest, Rubric, Rubrics, Score
from tests.judging.server import FAULTS, Model, digest

SHORT = Rubrics(Rubric("Good? {question} {answer}", "Clear? {question} {answer}"))
QUESTIONS = [Question(f"q{number}", f"Why {number}?") for number in range(10)]


def sheet(answers: int) -> JudgeBatch:
    """That many different answers to ten questions."""
    return JudgeBatch(QUESTIONS, [Answer(f"q{number % 10}", number // 10, f"Since {number}.", "stop", 3)
                             for number in range(answers)], SHORT)


def api(url: str, **changes: Any) -> OpenAIJudge:
    """A judge at a server of the tests."""
    return OpenAIJudge.model_validate({"kind": "openai", "model": "judge-1", "base_url": url} | changes)


def judge_answers(batch: JudgeBatch, identity: Mapping[str, Any], cache: Cache, scorer: Scorer) -> list[Verdict]:
    """The verdicts of a judge, with its scores kept in a cache."""
    return batch.verdicts(scores_of([*batch.requests()], identity, cache, scorer))


def judged(spec: OpenAIJudge, asked: JudgeBatch, path: Path, account: str = "test") -> list[Verdict]:
    """The verdicts, with the scores kept at `path`."""
    with Cache(path) as cache:
        return judge_answers(asked, spec.identity, cache, ApiJudge(spec, Budget(cache, account, spec.max_usd)))


def in_batches(score: Callable[[Sequence[tuple[Message, ...]]], Sequence[Score]], size: int) -> Scorer:
    """Make a scorer from a function that scores a list of chats; the scores of a batch are kept before the next one."""
    def scorer(requests: Sequence[JudgeRequest], keep: Keep) -> None:
        for start in range(0, len(requests), size):
            some = requests[start:start + size]
            for request, found in zip(some, score([request.messages for request in some]), strict=True):
                keep(request, found)

    return scorer


def directly(model: Model, asked: JudgeBatch, path: Path) -> list[Verdict]:
    """The verdicts of a model without a server, a client or a fault between."""
    def score(chats: Sequence[tuple[Message, ...]]) -> list[Score]:
        found = [model([message.to_dict() for message in chat])[0] for chat in chats]
        return [from_distribution(likeliest, likeliest[0][0]) for likeliest in found]

    with Cache(path) as cache:
        return judge_answers(asked, {"kind": "direct"}, cache, in_batches(score, 100))


PATIENCE = 20.0  # seconds: longer than a busy machine takes to answer, so that only the fault "slow" is given up


def three_in_ten(key: str, tries: int) -> str | None:
    """One of the faults for 30% of all requests, told by prompt and try, so that every run has the same ones.

    Few are "slow", because each takes all of `PATIENCE`.
    """
    number = int(hashlib.sha256(f"{key} {tries}".encode()).hexdigest()[:8], 16)
    fault = FAULTS[number // 10 % len(FAULTS)] if number % 10 < 3 else None
    return "500" if fault == "slow" and number % 16 else fault


def part_of(text: str) -> Part:
    """Which part of a reward a prompt asks for, told by its last paragraph."""
    return next(part for part, prompt in PROMPTS.items() if text.endswith(prompt.rpartition("\n\n")[2]))


def prompt_digest(request: JudgeRequest) -> str:
    """What the server calls a request."""
    return digest([message.to_dict() for message in request.messages])


if __name__ == "__main__":
    address, count, scores = sys.argv[1:]
    judged(api(address, max_concurrency=32, timeout=PATIENCE, tries=12), sheet(int(count)), Path(scores))
