"""Judging by batch: all requests go in one file, are answered within a day, and cost half.

A batch is recorded before it is sent, under a name that it also has on the server. An evaluation that is interrupted at
any moment therefore finds its batches again, and no score is requested twice. Requests that a batch leaves unanswered
(because it expired, say) go into the next one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
from filelock import FileLock

from emlib.config import OpenAIJudge
from emlib.config.evaluation import OPENAI
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.progress import say
from emlib.core.proxies import ask_directly
from emlib.judging import faults, replies
from emlib.judging.api import is_whole, key_of, logprobs_body, number_body, price_of
from emlib.judging.cache import canonical
from emlib.judging.faults import KEPT
from emlib.judging.judge_batch import Keep
from emlib.judging.money import Budget, most_tokens
from emlib.judging.rubrics import JudgeRequest, Metric, Score

MOST_REQUESTS = 50_000  # in one batch: OpenAI's limit
MOST_BYTES = 190_000_000  # of one file; OpenAI takes 200 MB
OVER = ("completed", "expired", "failed", "cancelled")
MOST_FRAME = 1000  # bytes of a line without its prompt
TRIES = 5  # by the client, of each of these few requests


@dataclass(frozen=True)
class Batch:
    """A batch as recorded locally; `id` is None where the process was interrupted while sending it."""

    name: str
    id: str | None
    usd: float


class BatchJudge:
    """A `Scorer` that collects the scores of finished batches, sends the remaining requests, and asks to wait."""

    def __init__(self, spec: OpenAIJudge, budget: Budget) -> None:
        """Read the key from the environment.

        Raises:
            JudgeError: the key is missing, or the budget has a limit and the model's price is unknown.
        """
        self.spec, self.budget, self.cache = spec, budget, budget.cache
        self.key, self.price = key_of(spec), price_of(spec)

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Collect finished batches and send new ones.

        Raises:
            JudgeWaits: some scores are still pending; run again later.
            JudgeError: the server refuses a request, or the budget does not allow a batch.
        """
        wanted = {request.key(self.spec.identity): request for request in requests}
        try:
            with FileLock(self.cache.path.with_name(f".{self.cache.path.name}.batches.lock")):  # one process at a time
                failure = self._collect_and_send(wanted, keep)
        except openai.APIError as error:
            fault = faults.sort(error, self.spec.model, self.key)
            failure = fault if isinstance(fault, JudgeError) else _later(fault.reason)
        except (replies.BadReply, json.JSONDecodeError) as error:
            failure = _later(str(error))
        if failure is not None:
            raise failure

    def _collect_and_send(self, wanted: dict[str, JudgeRequest], keep: Keep) -> JudgeError | None:
        ask_directly(self.spec.base_url or OPENAI)
        with openai.OpenAI(api_key=self.key, base_url=self.spec.base_url or OPENAI, max_retries=TRIES,
                           timeout=self.spec.timeout) as server:
            for batch in self._known():
                failure = self._collect(server, batch, wanted, keep)
                if failure is not None:
                    return failure
            waiting = {key for (key,) in self.cache.execute("SELECT key FROM waiting")}
            rest = {key: request for key, request in wanted.items() if key not in waiting}
            for part in parts(rest):
                failure = self._send(server, part)
                if failure is not None:
                    return failure
        return JudgeWaits(f"{len(wanted)} scores by {self.spec.model} are in batches, which take up to 24 hours. Run "
                          "again later: finished batches are collected then.") if wanted else None

    def _known(self) -> list[Batch]:
        return [Batch(*row) for row in self.cache.execute(
            "SELECT name, id, usd FROM batches WHERE judge = ? ORDER BY made", (canonical(self.spec.identity),))]

    def _collect(self, server: openai.OpenAI, batch: Batch, wanted: dict[str, JudgeRequest],
                 keep: Keep) -> JudgeError | None:
        """Keep the scores of a finished batch, drop them from `wanted`, and delete the batch's record."""
        name = batch.id or _found(server, batch.name)
        if name is None:  # it never reached the server
            self._forget(batch, 0.0)
            return None
        there = server.batches.retrieve(name)
        if there.status not in OVER:
            return None
        metrics: dict[str, Metric] = dict(
            self.cache.execute("SELECT key, metric FROM waiting WHERE batch = ?", (batch.name,)))
        answers = [answer for file in (there.output_file_id, there.error_file_id) if file
                   for answer in _answers(server.files.content(file).text)]
        if not _whole_numbers(server, self.spec, [body for _, body, _ in answers]):
            return faults.by_digits(self.spec.model)  # the batch stays recorded, so that it is not sent again
        for key, body, reason in answers:
            found = _score(body, reason)
            if found is not None and key in wanted:
                keep(wanted.pop(key), found)
            elif found is not None and key in metrics:  # requested by another evaluation, which reads it later
                self.cache.put(key, self.spec.identity, metrics[key], found)
        self._forget(batch, 0.0 if self.price is None else sum(
            self.price.of(replies.usage(body) or (0, 0), batch=True) for _, body, _ in answers))
        if there.status != "failed":
            return None
        messages = "; ".join(str(error.message) for error in (there.errors and there.errors.data) or [])
        return JudgeError(f"The server refused the batch {name}: {faults.redacted(messages, self.key)} {KEPT}")

    def _forget(self, batch: Batch, usd: float) -> None:
        self.budget.settle(batch.usd, usd)
        with self.cache.transaction():
            self.cache.execute("DELETE FROM waiting WHERE batch = ?", (batch.name,))
            self.cache.execute("DELETE FROM batches WHERE name = ?", (batch.name,))

    def _send(self, server: openai.OpenAI, part: dict[str, JudgeRequest]) -> JudgeError | None:
        usd = 0.0 if self.price is None else sum(
            self.price.of((most_tokens([message.content for message in request.messages]), 1), batch=True)
            for request in part.values())
        if not self.budget.book(usd):
            return JudgeError(f"A batch of {len(part)} scores could cost up to ${usd:.4f}, and "
                              f"${self.budget.spent():.4f} of the budget of ${self.budget.limit} are spent. Raise "
                              f"'max_usd' of the profile's judge. {KEPT}")
        name, made = f"emlib-{uuid.uuid4().hex}", datetime.now(UTC).isoformat(timespec="seconds")
        with self.cache.transaction():
            self.cache.execute("INSERT INTO batches VALUES (?, ?, ?, NULL, ?, ?)", (
                name, canonical(self.spec.identity), self.budget.name, usd, made))
            for key, request in part.items():
                self.cache.execute("INSERT INTO waiting VALUES (?, ?, ?)", (key, request.metric, name))
        text = "".join(line(self.spec, key, request) for key, request in part.items())
        file = server.files.create(file=(f"{name}.jsonl", text.encode()), purpose="batch")
        sent = server.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                     metadata={"name": name})
        self.cache.execute("UPDATE batches SET id = ? WHERE name = ?", (sent.id, name))
        say(f"{self.spec.model}: sent a batch of {len(part)} requests ({sent.id})")
        return None


def _later(reason: str) -> JudgeError:
    return JudgeError(f"The batches could not be sent or collected: {reason}. Run again later. {KEPT}")


def line(spec: OpenAIJudge, key: str, request: JudgeRequest) -> str:
    """Return one request of a batch file as a line of JSON; the score's key identifies its answer."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
                       "body": logprobs_body(spec, request)}) + "\n"


def parts(requests: Mapping[str, JudgeRequest]) -> Iterator[dict[str, JudgeRequest]]:
    """Split the requests into as many batches as the server's limits require."""
    part: dict[str, JudgeRequest] = {}
    size = 0
    for key, request in requests.items():
        length = MOST_FRAME + 6 * sum(len(message.content) for message in request.messages)  # JSON: é is \\u00e9
        if part and (len(part) == MOST_REQUESTS or size + length > MOST_BYTES):
            yield part
            part, size = {}, 0
        part[key] = request
        size += length
    if part:
        yield part


def _found(server: openai.OpenAI, name: str) -> str | None:
    """Return the server's id of a batch whose sending was interrupted, or None if it never arrived."""
    there = server.batches.list(limit=100)
    return next((batch.id for batch in there if (batch.metadata or {}).get("name") == name), None)


def _answers(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield for each line of a result file its key, the chat completion or None, and the error code."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        response, error = row.get("response") or {}, row.get("error") or {}
        body = response.get("body") if response.get("status_code") == 200 else None
        inner = (response.get("body") or {}).get("error") or {}
        yield row["custom_id"], body, str(error.get("code") or inner.get("code") or "")


def _whole_numbers(server: openai.OpenAI, spec: OpenAIJudge, bodies: Sequence[Any]) -> bool:
    """Return whether the judge writes numbers as single tokens; asks it where all numbers are single digits.

    `JudgingSession` checks the same. The request costs far less than the batch's unused booking.
    """
    numbers = {number for body in bodies for number in _numbers(body)}
    if not numbers or max(numbers) > 9:
        return True
    reply = server.post("/chat/completions", body=number_body(spec), cast_to=httpx2.Response)
    likeliest, _ = replies.likeliest(json.loads(reply.content))
    return is_whole([token for token, _ in likeliest])


def _numbers(body: Any) -> list[int]:
    try:
        likeliest, _ = replies.likeliest(body)
    except replies.BadReply:
        return []
    return [number for token, _ in likeliest if (number := replies.number(token)) is not None]


def _score(body: Any, reason: str) -> Score | None:
    """Return the score in one answer; None where it has none and another batch may bring one."""
    if body is None:
        return Score(None, reason=f"the server refuses the prompt: {reason}") if reason in faults.REFUSED else None
    try:
        likeliest, word = replies.likeliest(body)
    except replies.BadReply:
        return None
    return replies.from_distribution(likeliest, word, replies.usage(body) or (0, 0))
