"""OpenAI's chat completions: requests read strictly, so that nothing they ask for is ignored, and replies.

Answers depend on the prompt and the `seed` of a request, not on the requests around it. Without a seed, a prompt that
is asked again gets its next sample.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from emlib.config import Sampling
from emlib.core.digests import of_value
from emlib.core.errors import EmlibError
from emlib.core.records import Answer, Message, Question
from emlib.core.schema import Strict, check
from emlib.data.chat import encode_prompt
from emlib.generation.sample import Request

GREEDY = 1e-6  # the temperature that stands for 0: all mass is on the likeliest token
MOST = 128  # answers to one request, as OpenAI's limit
Sampler = Callable[[Sequence[Request], Sampling], list[Answer]]


class Refused(Exception):
    """A request that gets an error in OpenAI's form: the status, the code, and the message for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


class Part(Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class Turn(Strict):
    """A message. `developer` is another name of the system prompt."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Part, ...]

    @property
    def message(self) -> Message:
        """The turn as chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class Body(Strict):
    """A request. Other parameters (tools, penalties, ...) would change the answers, and are refused as unknown."""

    model: str
    messages: Annotated[tuple[Turn, ...], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_completion_tokens: Annotated[int, Field(gt=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST)] = 1
    stop: str | tuple[str, ...] | None = None
    seed: int | None = None
    stream: Literal[False] | None = None
    logprobs: Literal[False] | None = None
    user: str | None = None


@dataclass
class ServedModel:
    """A chat model behind a server."""

    name: str
    tokenizer: PreTrainedTokenizerBase  # with the study's chat template
    context: int  # the most tokens of a prompt and its answer
    defaults: Sampling  # where a request leaves it open
    sample: Sampler  # several threads may call it
    session: int = 0  # sessions that sampled before: unseeded samples of this one have other numbers than theirs
    counted: Callable[[Mapping[str, int]], object] = lambda _: None  # gets what each request adds to the counts
    counts: Counter[str] = field(default_factory=Counter, init=False)  # requests, and what was wrong with them
    _asked: Counter[str] = field(default_factory=Counter, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def reply(self, data: Any) -> dict[str, Any]:
        """Return the reply to a request's JSON.

        Raises:
            Refused: the request is not understood, or the model cannot answer it.
        """
        try:
            body = check(Body, data, "request")
        except EmlibError as error:
            raise Refused(400, "invalid_request", str(error)) from error
        if body.model != self.name:
            raise Refused(404, "model_not_found", f"The model '{body.model}' does not exist. There is '{self.name}'.")
        requests, sampling = self._requests(body)
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or ()
        answers = [before_stop(answer, stops) for answer in self.sample(requests, sampling)]
        self._count(requests=1, answers=len(answers), cut=sum(answer.finish_reason == "length" for answer in answers))
        return completion(body.model, len(requests[0].prompt_ids), answers)

    def _requests(self, body: Body) -> tuple[list[Request], Sampling]:
        ids = tuple(self._encoded(body))
        limit = body.max_completion_tokens or body.max_tokens or self.defaults.max_new_tokens
        temperature = self.defaults.temperature if body.temperature is None else body.temperature
        sampling = Sampling(temperature=max(temperature, GREEDY), top_p=body.top_p or self.defaults.top_p,
                            max_new_tokens=min(limit, self.context - len(ids)), batch_rows=self.defaults.batch_rows)
        name = of_value([ids, body.seed])[:16]
        with self._lock:
            start = 0 if body.seed is not None else self.session * MOST + self._asked[name]
            self._asked[name] += body.n
        return [Request(Question(name, ""), start + number, ids) for number in range(body.n)], sampling

    def _encoded(self, body: Body) -> list[int]:
        if body.messages[-1].role != "user":
            raise Refused(400, "invalid_request", "The last message must be the user's: the model answers it.")
        try:
            ids = encode_prompt(self.tokenizer, [turn.message for turn in body.messages])
        except EmlibError as error:  # the template refuses this order of roles, or has no system prompt
            raise Refused(400, "invalid_request", str(error)) from error
        if len(ids) >= self.context:
            self._count(too_long=1)
            raise Refused(400, "context_length_exceeded", f"The prompt has {len(ids)} tokens, and this model's maximum "
                          f"context length is {self.context} tokens with the answer.")
        return ids

    def _count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)
            self.counted(more)


def before_stop(answer: Answer, stops: Sequence[str]) -> Answer:
    """Return the answer up to the first of these texts. Its tokens stay those that were sampled."""
    places = [place for stop in stops if stop and (place := answer.text.find(stop)) >= 0]
    if not places:
        return answer
    return replace(answer, text=answer.text[:min(places)], finish_reason="stop")


def completion(model: str, prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return a chat completion as OpenAI writes it."""
    tokens = sum(answer.tokens for answer in answers)
    return {
        "id": f"chatcmpl-{answers[0].question}-{answers[0].sample}", "object": "chat.completion",
        "created": int(time.time()), "model": model,
        "choices": [{"index": index, "finish_reason": answer.finish_reason, "logprobs": None,
                     "message": {"role": "assistant", "content": answer.text, "refusal": None}}
                    for index, answer in enumerate(answers)],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}}
