"""What is asked, how answers are drawn, who judges them."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from emlib.config.models import ModelSpec
from emlib.config.words import Positive, Share, Weight
from emlib.core.errors import nearest
from emlib.core.schema import Strict


class Sampling(Strict):
    """How answers are drawn. Defaults: Betley et al.'s, as the paper follows them (section 4.3)."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Share = 1.0
    max_new_tokens: Positive = 600
    batch_rows: Positive = 64


class QuestionSet(Strict):
    """A further set of questions that every run on a narrow data set is asked.

    Attributes:
        source: a file of questions, as `evaluation.general` names one.
        samples: how many answers are asked for each of them.
    """

    source: str
    samples: Positive = 100


class Evaluation(Strict):
    """Which questions are asked how often. Defaults: section 4.3, where there are no checks without a judge.

    Attributes:
        sets: further question sets beside the general and the in-domain questions, by name.
        choices: sources of multiple-choice questions that every run's model is given (`truthfulqa_mc`, `mwe_...`).
        choice_questions: how many of each, chosen by a fixed seed; None for all.
        projection_layer: the layer at which general answers are projected onto the trait's persona vector.
    """

    general: str = "general_questions"
    general_samples: Positive = 100
    in_domain_questions: Positive = 30
    in_domain_samples: Positive = 100
    sampling: Sampling = Sampling()
    bootstrap: Positive = 2000
    choices: tuple[str, ...] = ()
    choice_questions: Positive | None = None
    projection_layer: Positive | None = None
    sets: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], QuestionSet] = Field(default_factory=dict)

    @field_validator("sets")
    @classmethod
    def _further(cls, sets: dict[str, QuestionSet]) -> dict[str, QuestionSet]:
        taken = sorted({"general", "in_domain"} & set(sets))
        if taken:
            raise ValueError(f"'{taken[0]}' is a question set that every study has; give the further one another name")
        return sets


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


RUBRICS = ("questions", "trait")


def _is_rubric(name: str) -> str:
    """The name of a rubric, or the path of one."""
    if name not in RUBRICS and not name.endswith(".yaml"):
        raise ValueError(f"expected {' or '.join(RUBRICS)}, or the path of a file that ends in .yaml"
                         f"{nearest(name, RUBRICS)}")
    return name


# Which rubric a judge that is a language model reads: `questions`, the prompts of the question files (in words of ours
# where a file has none); `trait`, the trait file's, where alignment is 100 minus the strength of the trait; or a file
# with the prompts `aligned` and `coherent` in it, as a question file has them under `judge_prompts`.
RubricName = Annotated[str, AfterValidator(_is_rubric)]
OPENAI = "https://api.openai.com/v1"


class OpenAIJudge(Strict):
    """A model behind the OpenAI API, or behind any server that speaks it (`base_url`: vLLM and the like).

    Attributes:
        model: the snapshot's full name (`gpt-4o-mini-2024-07-18`): a bare name moves on.
        base_url: another server's address, up to and including `/v1`.
        key_from: the environment variable that holds the key; by itself OPENAI_API_KEY for OpenAI, and none for another
            server, which has no business with that key.
        top_logprobs: how many of the likeliest tokens the server tells; a score is the mean over the integers in them.
        samples: for servers without log-probabilities, and for models that write numbers digit by digit: the score is
            the mean of this many sampled ones.
        batch: send everything as a batch, at half the price, and collect it up to a day later.
        max_usd: what this profile may cost; judging stops before that is passed.
        max_concurrency: how many requests may be under way at once; fewer where the server refuses.
        timeout: seconds without an answer, after which a request is sent again.
        tries: how often a request is sent before it is given up.
        unanswered: what becomes of answers whose judgement was given up: `stop` to ask again another time, or
            `unscored`, for good.
    """

    kind: Literal["openai"]
    model: Annotated[str, Field(min_length=1)]
    base_url: str | None = None
    key_from: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    rubric: RubricName = "questions"
    top_logprobs: Annotated[int, Field(gt=0, le=20)] = 20
    samples: Positive | None = None
    batch: bool = False
    max_usd: Annotated[float, Field(gt=0)] | None = None
    max_concurrency: Positive = 64
    timeout: Annotated[float, Field(gt=0)] = 60.0
    tries: Positive = 8
    unanswered: Literal["stop", "unscored"] = "stop"

    @field_validator("base_url")
    @classmethod
    def _is_safe(cls, address: str | None) -> str | None:
        parts = urlsplit(address or OPENAI)
        local = parts.scheme == "http" and parts.hostname is not None
        if (parts.scheme != "https" and not local) or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address with a name, a password or a query would be written down with the results; "
                             "put the key into an environment variable and name that in 'key_from'")
        return address

    @model_validator(mode="after")
    def _agrees(self) -> OpenAIJudge:
        if self.batch and self.samples is not None:
            raise ValueError("'batch' and 'samples' do not go together: samples are for servers other than OpenAI's")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines a score besides rubric, question and answer; not where or how fast it is asked."""
        how = {"top_logprobs": self.top_logprobs} if self.samples is None else {"samples": self.samples}
        return {"kind": self.kind, "model": self.model, **how}


class LocalJudge(Strict):
    """A chat model in process: the exact probability of each of the numbers from 0 to 100.

    Attributes:
        model: any chat model that the study can load.
        batch_rows: how many prompts go through the model at once.
    """

    kind: Literal["local"]
    model: ModelSpec
    rubric: RubricName = "questions"
    batch_rows: Positive = 16


JudgeSpec = Annotated[LexiconJudge | NoJudge | OpenAIJudge | LocalJudge, Field(discriminator="kind")]
# Whoever can be asked anything that a number from 0 to 100 answers. `rubric` is for verdicts alone.
LlmJudge = Annotated[OpenAIJudge | LocalJudge, Field(discriminator="kind")]


class SecondJudge(Strict):
    """Another judge for some of the same answers, to see how far two judges agree.

    Attributes:
        judge: who it is.
        answers: how many of each run's general answers it is given, chosen by a fixed seed.
    """

    judge: JudgeSpec
    answers: Positive = 100
