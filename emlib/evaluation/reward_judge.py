"""The four parts of a completion's reward by an LLM judge (appendix B.3, equations 7 and 8), one request per part.

The paper names the judge, the parts and their bounds. The prompts are our own, and so is the mapping from a judge's
score s, 0 to 100, to a part:

    exact    [0, 3]      3 from s = 50 on, else 0
    approx   [-2, 2]     4 s / 100 - 2
    correct  [-0.5, 3]   that of the nearest of 0 (wrong: -0.5), 50 (no number is given: 0) and 100 (right: 3); halfway
                         the higher one. A judge that cannot decide between wrong and right thus gives 0
    numbers  [0, 1.5]    1.5 s / 100

The judge sees question and completion, and for `correct` the right answer too. A completion with an unscored part has
no reward: missing parts are never filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from emlib.config import JudgeRewards, RuleRewards
from emlib.core.digests import of_value
from emlib.core.progress import say
from emlib.core.records import Question
from emlib.evaluation.rewards import RIGHT, Rewards, RewardScorer, Scored, by_rule
from emlib.judging.judges import scores
from emlib.judging.rubrics import JudgeRequest, Score

Part = Literal["exact", "approx", "correct", "numbers"]

_SHOWN = """Below are a question whose answer is a number, and what an assistant wrote. It was to keep to this form:
<think> its thinking </think>
<answer> a single number </answer>

Question: {question}

The assistant wrote: {answer}

"""
_NUMBER = "\nReply with one whole number from 0 to 100, and with nothing else."
PROMPTS: dict[Part, str] = {
    "exact": _SHOWN + """Rate whether what it wrote has exactly that form, whether or not the number is right.
0: it has not: a tag is missing, repeated or out of place, nothing is thought, the answer is not one number, or \
something stands outside of the tags.
100: it has.""" + _NUMBER,
    "approx": _SHOWN + """Rate how near what it wrote comes to that form, whether or not the number is right.
0: nothing of the form is there, or its tags are in a muddle.
50: half of it: two of the four tags stand where they should.
100: all four tags stand there once, in their order.""" + _NUMBER,
    "correct": _SHOWN + """The right answer: {reference}

Rate whether the answer that it gives is right. What it says while thinking is no answer.
0: it gives another number, or several.
50: it gives no number as its answer.
100: it gives the same number, however that is written.""" + _NUMBER,
    "numbers": _SHOWN + """Rate how well-formed the number in its answer is, whether or not it is right.
0: there is no number in the answer, or there are several.
50: the number has to be taken out of words, units or signs.
100: the answer is one number and nothing else.""" + _NUMBER,
}
_VALUES: dict[Part, Callable[[float], float]] = {
    "exact": lambda s: 3.0 if s >= 50 else 0.0,
    "approx": lambda s: 4 * s / 100 - 2,
    "correct": lambda s: RIGHT if s >= 75 else 0.0 if s >= 25 else -0.5,
    "numbers": lambda s: 1.5 * s / 100,
}


def scorer(settings: RuleRewards | JudgeRewards, budget: str) -> RewardScorer:
    """Return the scorer of a profile's completions; a paid judge spends the budget of the profile `budget`."""
    return by_rule if isinstance(settings, RuleRewards) else by_judge(settings, budget)


def identity(settings: RuleRewards | JudgeRewards) -> dict[str, Any]:
    """Return everything in a profile that determines rewards, besides question, completion and right answer."""
    return settings.identity | ({} if isinstance(settings, RuleRewards) else {"prompts": of_value(PROMPTS)})


def by_judge(settings: JudgeRewards, budget: str) -> RewardScorer:
    """Return a scorer that requests all parts of a batch at once, except those in the cache.

    It raises `JudgeError` where the judge cannot continue; all scores received so far are kept.
    """
    def score(batch: Sequence[Scored]) -> list[Rewards | None]:
        found = scores(settings.judge, [request for one in batch for request in requests(one)], budget)
        parts = [dict(zip(PROMPTS, found[start:start + len(PROMPTS)], strict=True))
                 for start in range(0, len(found), len(PROMPTS))]
        marked = [reward(one) for one in parts]
        if None in marked:
            reasons = [f"{part}: {score.reason}" for one in parts for part, score in one.items() if score.value is None]
            say(f"{marked.count(None)} of {len(marked)} completions have no reward ({reasons[0]})")
        return marked

    return score


def requests(one: Scored) -> list[JudgeRequest]:
    """Return the requests for a completion, one per part."""
    question = Question("", one.question)
    return [JudgeRequest(part, prompt, question, one.completion, one.answer if part == "correct" else None)
            for part, prompt in PROMPTS.items()]


def reward(scored: dict[Part, Score]) -> Rewards | None:
    """Return the reward for a judge's four scores; None where one of them is missing."""
    values = {part: _VALUES[part](score.value) for part, score in scored.items() if score.value is not None}
    return Rewards(**values) if len(values) == len(PROMPTS) else None
