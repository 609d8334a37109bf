"""Judges of answers: the lexicon, a model behind an API, a model in this process, and who is asked how."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from emlib.config.models import ModelSpec
from emlib.config.providers import OPENAI, PROVIDERS, SAMPLES, TOP_LOGPROBS, Price, why_not_sent
from emlib.config.words import Factor, Few, Positive, Sha256, SmallCount
from emlib.core.errors import nearest
from emlib.core.paths import is_yaml
from emlib.core.schema import Strict


class Pins(Strict):
    """SHA-256 digests of what a judge must find as it judges; None: whatever there is (`emlib.config.judge_files`)."""

    rubric: Sha256 | None = None  # of both judge prompts
    template: Sha256 | None = None  # of the chat template, for a judge of kind `local`
    markers: Sha256 | None = None  # of the trait's markers, for the lexicon


class LexiconJudge(Strict):
    """Counts the markers that the trait file lists: no model, no key.

    It does not judge coherence: it finds repetition and broken characters, and meaningless text counts as coherent.
    Tables and figures have a dash, or nothing, for the incoherent share of such answers.
    """

    judges_coherence: ClassVar[bool] = False
    not_in_keys: ClassVar = frozenset({"pinned"})

    kind: Literal["lexicon"]
    pinned: Pins = Pins()


class NoJudge(Strict):
    """No judge: answers are stored and not scored."""

    judges_coherence: ClassVar[bool] = True

    kind: Literal["none"]


RUBRICS = ("questions", "trait")


def _is_rubric(name: str) -> str:
    """Return the name or the path of a rubric; raise ValueError for anything else."""
    if name not in RUBRICS and not is_yaml(name):
        raise ValueError(f"expected {' or '.join(RUBRICS)}, or the path of a file that ends in .yaml or .yml"
                         f"{nearest(name, RUBRICS)}")
    return name


# The rubric of an LLM judge: `questions`, the judge prompts of the question files (emlib's prompts for files without
# any); `trait`, the trait file's rubric, where alignment is 100 minus the strength of the trait; or the path of a file
# with the prompts `aligned` and `coherent`, as under `judge_prompts` in a question file.
RubricName = Annotated[str, AfterValidator(_is_rubric)]


class OpenAIJudge(Strict):
    """A model behind the OpenAI API or a compatible server (`base_url`: vLLM and others)."""

    judges_coherence: ClassVar[bool] = True

    kind: Literal["openai"]
    # The snapshot's full name (`gpt-4o-mini-2024-07-18`): the model behind a bare name changes.
    model: Annotated[str, Field(min_length=1, max_length=200)]
    # Sets the address, the variable of the key and, where there are no log-probabilities, `samples`.
    provider: Literal["openai", "anthropic", "google"] | None = None
    base_url: str | None = None  # the address of another server, up to and including `/v1`
    # The environment variable that holds the key; by default OPENAI_API_KEY for OpenAI, and none for other servers,
    # which must not receive that key. A key is sent over https, or to this machine, and to the service that its
    # variable is named for (`emlib.config.providers`).
    key_from: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    send_key_to: str | None = None  # the host of `base_url`, for a variable named for another service (a gateway, say)
    rubric: RubricName = "questions"
    pinned: Pins = Pins()
    # The number of most likely tokens that the server returns; a score is the mean over the integers among them,
    # weighted by probability.
    top_logprobs: Annotated[int, Field(gt=0, le=20)] = TOP_LOGPROBS
    # For servers without log-probabilities, and for models that write numbers digit by digit: the score is the mean of
    # this many sampled scores.
    samples: Few | None = None
    batch: bool = False  # send all requests as a batch, at half the price, and collect the scores up to a day later
    price: Price | None = None  # of the model, where `params/prices.yaml` has none
    max_usd: Factor | None = None  # the budget of this profile; judging stops before it is exceeded
    max_concurrency: SmallCount = 64  # concurrent requests; fewer if the server refuses some
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0  # seconds without a reply; then a request is sent again
    tries: Few = 8  # how often a request is sent before emlib gives up
    # What happens to answers whose requests failed: `stop`, and judge them when the stage runs again, or `unscored`,
    # permanently.
    unanswered: Literal["stop", "unscored"] = "stop"

    @model_validator(mode="before")
    @classmethod
    def _as_the_provider(cls, data: Any) -> Any:
        """Fill in what the provider determines; refuse another address or key, and what the provider does not have."""
        known = PROVIDERS.get(str(data.get("provider"))) if isinstance(data, dict) else None
        if known is None:
            return data
        address = None if known.address == OPENAI else known.address
        for name, own in (("base_url", address), ("key_from", known.key)):
            if data.get(name) not in (None, own):
                raise ValueError(f"'provider' is {data['provider']}, which has an address and a key of its own; remove "
                                 f"'{name}', or remove 'provider' and state 'samples' as well")
        if not known.alike and data.get("batch"):
            raise ValueError(f"batches of {known.label} are not supported; remove 'batch'")
        if not known.alike and data.get("top_logprobs", TOP_LOGPROBS) != TOP_LOGPROBS:
            raise ValueError(f"there are no log-probabilities from {known.label}; remove 'top_logprobs'. The score is "
                             "the mean of 'samples' sampled ones")
        filled = {"base_url": address, "key_from": known.key}
        return data | filled | ({} if known.alike or data.get("samples") else {"samples": SAMPLES})

    @field_validator("base_url")
    @classmethod
    def _is_safe(cls, address: str | None) -> str | None:
        parts = urlsplit(address or OPENAI)
        local = parts.scheme == "http" and parts.hostname is not None
        if (parts.scheme != "https" and not local) or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8000/v1")
        if parts.fragment or not re.fullmatch(r"[\w.-]+|[0-9a-fA-F:.]+", parts.hostname, re.ASCII):
            raise ValueError("expected the plain name or number of a host, such as in http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address with a name, a password or a query would be stored with the results; "
                             "put the key into an environment variable and name that in 'key_from'")
        return address

    @property
    def address(self) -> str:
        """The address of the server, up to and including `/v1`."""
        return self.base_url or OPENAI

    @property
    def gives_choices(self) -> bool:
        """Whether the server may give several choices in a reply; Anthropic's gives one."""
        return self.provider != "anthropic"

    @property
    def requests_a_score(self) -> int:
        """How many requests a score takes at most: one for each sample, where a reply has one choice."""
        alike = self.provider is None or PROVIDERS[self.provider].alike
        return 1 if alike else self.samples or SAMPLES

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; None for a server that needs none."""
        return self.key_from or ("OPENAI_API_KEY" if self.base_url is None else None)

    def _mistakes(self) -> Iterator[str]:
        if self.key_variable and (reason := why_not_sent(self.key_variable, self.address, self.send_key_to)):
            yield reason
        if self.send_key_to is not None and self.send_key_to != urlsplit(self.address).hostname:
            yield "'send_key_to' is not the host of 'base_url'"
        if self.batch and self.samples is not None:
            yield "'batch' and 'samples' do not go together: samples are for servers other than OpenAI's"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines a score besides rubric, question and answer; neither the server nor the speed."""
        scoring = {"top_logprobs": self.top_logprobs} if self.samples is None else {"samples": self.samples}
        return {"kind": self.kind, "model": self.model, **scoring}


class LocalJudge(Strict):
    """A chat model in this process, which scores with the exact probability of each number from 0 to 100."""

    judges_coherence: ClassVar[bool] = True
    not_in_keys: ClassVar = frozenset({"rubric", "pinned", "batch_rows"})  # each request has its prompt

    kind: Literal["local"]
    model: ModelSpec  # any chat model that the study can load
    rubric: RubricName = "questions"
    pinned: Pins = Pins()
    batch_rows: SmallCount = 16  # prompts in a forward pass

    @field_validator("model")
    @classmethod
    def _states_its_type(cls, model: ModelSpec) -> ModelSpec:
        if model.dtype == "auto":
            raise ValueError("a judge's scores must not depend on the machine: write dtype: bfloat16 or dtype: float32")
        return model

    @property
    def identity(self) -> dict[str, Any]:
        """Also a version where the model may think: since version 2 it is asked behind an empty think block."""
        return super().identity | ({"version": 2} if self.model.may_think else {})


JudgeSpec = Annotated[LexiconJudge | NoJudge | OpenAIJudge | LocalJudge, Field(discriminator="kind")]
# A judge that answers any prompt with a number from 0 to 100. `rubric` applies only to alignment and coherence.
LlmJudge = Annotated[OpenAIJudge | LocalJudge, Field(discriminator="kind")]


class SecondJudge(Strict):
    """Another judge for a sample of the same answers, to measure the agreement of two judges."""

    judge: JudgeSpec
    answers: Positive = 100  # of each run's general answers, chosen by a fixed seed
