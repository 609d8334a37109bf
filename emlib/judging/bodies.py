"""The requests that a judge is sent, in the form that its model takes.

Models differ in the parameters that they take: some want `max_completion_tokens` in place of `max_tokens`, some take no
temperature, some give no log-probabilities, some give one choice at a time. `Supported` starts with what most models
take, and `learn` corrects it by the server's own errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from emlib.config import OpenAIJudge
from emlib.data.sizes import FRAME_TOKENS
from emlib.judging import replies
from emlib.judging.cache import Cache
from emlib.judging.rubrics import JudgeRequest
from emlib.judging.server_errors import ServerError

SAMPLE_TOKENS = 5  # enough for "100" in digits, with a space or markup before it
LABEL_TOKENS = 16  # enough for all of a label, whose first token may be that of another word
MOST_SAMPLE_TOKENS = 4096  # for models that think before they answer
LONGER = 8  # times as many tokens, where the limit cut a reply before its number
LEAST_TOKENS = re.compile(r"(?:>=|at least|minimum(?: value)?(?: of| is|:)?|greater than or equal to)\s*'?(\d{1,4})\b",
                          re.IGNORECASE)
TEST_NUMBER = 57


@dataclass
class Supported:
    """What a model takes in a request, as far as its server has told."""

    limit: str = "max_tokens"  # the name of the limit of tokens
    temperature: bool = True  # whether it takes one
    logprobs: bool = True  # whether it gives them
    choices: bool = True  # whether it gives several
    least_tokens: int = 1  # the smallest limit of tokens that it takes
    sample_tokens: int = SAMPLE_TOKENS  # the limit for a sampled number; more for models that think first

    def learn(self, error: ServerError) -> str | None:
        """Correct this by an error of the server; return what it was told, or None where it says nothing new."""
        parameter = error.unsupported
        if parameter in ("logprobs", "top_logprobs") and self.logprobs and _is_absent(error):
            self.logprobs = False
            return "has no log-probabilities"
        if parameter == "n" and self.choices:
            self.choices = False
            return "gives one choice at a time"
        if parameter == "temperature" and self.temperature:
            self.temperature = False
            return "takes no temperature"
        if parameter in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            return self._learn_limit(error, parameter)
        return None

    def _learn_limit(self, error: ServerError, parameter: str) -> str | None:
        if re.search(r"output limit was reached|could not finish", error.words, re.IGNORECASE):
            return self.think_longer()
        least = LEAST_TOKENS.search(error.words)
        if least is not None:
            if int(least[1]) <= self.least_tokens:
                return None
            self.least_tokens = int(least[1])
            return f"wants a limit of at least {self.least_tokens} tokens"
        if parameter != self.limit:
            return None
        self.limit = "max_tokens" if self.limit == "max_completion_tokens" else "max_completion_tokens"
        return f"wants '{self.limit}'"

    def think_longer(self) -> str | None:
        """Raise the limit of tokens of a sampled number; return what was learnt, or None where it is high enough."""
        if self.sample_tokens >= MOST_SAMPLE_TOKENS:
            return None
        self.sample_tokens = min(LONGER * self.sample_tokens, MOST_SAMPLE_TOKENS)
        return f"thinks before it answers: its replies may have {self.sample_tokens} tokens"

    def body(self, spec: OpenAIJudge, messages: list[dict[str, str]], tokens: int, temperature: float,
             **others: Any) -> dict[str, Any]:
        """Return a request with at most `tokens` tokens in its reply, and other parameters as they are."""
        limit = {self.limit: max(tokens, self.least_tokens)}
        warmth = {"temperature": temperature} if self.temperature else {}
        return {"model": spec.model, "messages": messages, **limit, **warmth, **others}


def known_support(cache: Cache, spec: OpenAIJudge) -> Supported:
    """Return what was found out about the model before; log-probabilities are asked for again each time."""
    found = cache.execute("SELECT parameters FROM supported WHERE server = ? AND model = ?",
                          (spec.address, spec.model))
    return Supported(**json.loads(found[0][0])) if found else Supported(choices=spec.gives_choices)


def save_support(cache: Cache, spec: OpenAIJudge, supported: Supported) -> None:
    """Remember what was found out about the model, for other processes and days."""
    lasting = {name: value for name, value in asdict(supported).items() if name != "logprobs"}
    cache.execute("INSERT OR REPLACE INTO supported VALUES (?, ?, ?)", (spec.address, spec.model, json.dumps(lasting)))


def _is_absent(error: ServerError) -> bool:
    """Return whether the model has no log-probabilities at all; a server may as well give fewer than are asked for."""
    return not re.search(r"top_logprobs\b.{0,60}\d|logprobs\b.{0,60}(less|greater|fewer|most|between|exceed|max|<=|≤)",
                         error.words, re.IGNORECASE)


def logprobs_body(spec: OpenAIJudge, request: JudgeRequest, supported: Supported) -> dict[str, Any]:
    """Return the request of Betley et al.: one token, with its most likely alternatives. A label may have more."""
    tokens = LABEL_TOKENS if request.wants_label else 1
    return supported.body(spec, _chat(request), tokens, 0, logprobs=True, top_logprobs=spec.top_logprobs)


def samples_body(spec: OpenAIJudge, request: JudgeRequest, count: int, supported: Supported) -> dict[str, Any]:
    """Return a request for sampled numbers: `count`, or one where the server gives one choice at a time.

    A label is not sampled: it is the likeliest reply, at temperature 0.
    """
    several = {"n": count} if supported.choices else {}
    tokens, warmth = (max(supported.sample_tokens, LABEL_TOKENS), 0) if request.wants_label else (
        supported.sample_tokens, 1)
    return supported.body(spec, _chat(request), tokens, warmth, **several)


def number_body(spec: OpenAIJudge, supported: Supported) -> dict[str, Any]:
    """Return a request that shows how a judge writes a number of two digits, and whether it takes any request."""
    messages = [{"role": "user", "content": f"Reply with the number {TEST_NUMBER} and with nothing else."}]
    if not supported.logprobs or spec.samples is not None:
        return supported.body(spec, messages, supported.sample_tokens, 1)
    return supported.body(spec, messages, 1, 0, logprobs=True, top_logprobs=spec.top_logprobs)


def is_whole(tokens: Sequence[str]) -> bool:
    """Return whether the number is among the most likely first tokens of the reply to `number_body`.

    A small model may answer something else; a judge that spells digit by digit cannot have it even among these.
    """
    return any(replies.number(token) == TEST_NUMBER for token in tokens)


def most_used(body: dict[str, Any]) -> tuple[int, int]:
    """Return the most tokens that a request can read and write: a token has at least one byte."""
    texts = [message["content"] for message in body["messages"]]
    read = sum(len(text.encode(errors="surrogatepass")) for text in texts) + FRAME_TOKENS
    return read, int(body.get("max_tokens") or body["max_completion_tokens"]) * int(body.get("n", 1))


def _chat(request: JudgeRequest) -> list[dict[str, str]]:
    return [message.to_dict() for message in request.messages]
