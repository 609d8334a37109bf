"""What is asked, how answers are drawn, who judges them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emlib.config.words import Positive, Share, Weight
from emlib.strict import Strict


class Sampling(Strict):
    """How answers are drawn. Defaults: Betley et al.'s, as the paper follows them (section 4.3)."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Share = 1.0
    max_new_tokens: Positive = 600
    batch_rows: Positive = 64


class Evaluation(Strict):
    """Which questions are asked how often. Defaults: section 4.3."""

    general: str = "general_questions"
    general_samples: Positive = 100
    in_domain_questions: Positive = 30
    in_domain_samples: Positive = 100
    sampling: Sampling = Sampling()
    bootstrap: Positive = 2000


class Extraction(Strict):
    """How a persona vector is taken. Defaults: Chen et al.'s, whom section 3.1 follows.

    `keep: all` takes every pair of answers, whatever the judge says of them, and needs no judge.
    """

    samples: Positive = 10
    keep: Literal["judged", "all"] = "judged"
    instruction_pairs: Positive | None = None
    min_pairs: Positive = 20
    sampling: Sampling = Sampling(max_new_tokens=1000)
    seed: int = 0


class Probe(Strict):
    """What is tried with a persona vector at inference: each strength at each layer (notebook 02)."""

    layers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (20,)
    strengths: Annotated[tuple[Weight, ...], Field(min_length=1)] = (0.0, 2.0, 5.0)
    questions: Positive = 8
    sampling: Sampling = Sampling(max_new_tokens=200)


class LexiconJudge(Strict):
    """Counts the markers that the trait file lists: no model, no key."""

    kind: Literal["lexicon"]


class NoJudge(Strict):
    """Keeps the answers and scores nothing."""

    kind: Literal["none"]


JudgeSpec = Annotated[LexiconJudge | NoJudge, Field(discriminator="kind")]
