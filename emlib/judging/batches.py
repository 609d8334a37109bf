"""Judging by batch: everything is sent in one file, is answered within a day, and costs half.

A batch is written down before it is sent, under a name that it also bears on the server. So an evaluation that was
stopped at any moment finds its batches again, and no score is asked for twice. What a batch leaves unanswered (it
expired, say) goes into the next one.
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
from emlib.judging import faults, replies
from emlib.judging.api import is_whole, key_of, logprobs_body, number_body, price_of
from emlib.judging.cache import canonical
from emlib.judging.faults import KEPT
from emlib.judging.judge_batch import Keep
from emlib.judging.money import Budget, most_tokens
from emlib.judging.rubrics import JudgeRequest, Metric, Score

MOST_REQUESTS = 50_000  # in one batch, as OpenAI has it
MOST_BYTES = 190_000_000  # of one file; OpenAI takes 200 MB
OVER = ("completed", "expired", "failed", "cancelled")
MOST_FRAME = 1000  # bytes of a line without its prompt
TRIES = 5  # by the client itself, of each of these few requests


@dataclass(frozen=True)
class Batch:
    """A batch as this side knows it; without `id` it was being sent when something stopped it."""

    name: str
    id: str | None
    usd: float


class BatchJudge:
    """A `Scorer` that gives what finished batches answered, sends what is in none, and then asks to wait."""

    def __init__(self, spec: OpenAIJudge, account: Budget) -> None:
        """Reads the key from the environment.

        Raises:
            JudgeError: there is no key, or a budget for a model whose price is not known.
        """
        self.spec, self.account, self.cache = spec, account, account.cache
        self.key, self.price = key_of(spec), price_of(spec)

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Collect and send.

        Raises:
            JudgeWaits: there are scores still to come; run again later.
            JudgeError: the server refuses, or the budget does not allow a batch.
        """
        wanted = {request.key(self.spec.identity): request for request in requests}
        try:
            with FileLock(self.cache.path.with_name(f".{self.cache.path.name}.batches.lock")):  # one process at a time
                failure = self._collect_and_send(wanted, keep)
        except openai.APIError as error:
            fault = faults.sort(error, self.spec.model, self.key)
            failure = fault if isinstance(fault, JudgeError) else _later(fault.what)
        except (replies.BadReply, json.JSONDecodeError) as error:
            failure = _later(str(error))
        if failure is not None:
            raise failure

    def _collect_and_send(self, wanted: dict[str, JudgeRequest], keep: Keep) -> JudgeError | None:
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
                          "again later: what has come by then is collected.") if wanted else None

    def _known(self) -> list[Batch]:
        return [Batch(*row) for row in self.cache.execute(
            "SELECT name, id, usd FROM batches WHERE judge = ? ORDER BY made", (canonical(self.spec.identity),))]

    def _collect(self, server: openai.OpenAI, batch: Batch, wanted: dict[str, JudgeRequest],
                 keep: Keep) -> JudgeError | None:
        """Keep what a finished batch answered, and forget the batch; what it answered leaves `wanted`."""
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
            return faults.by_digits(self.spec.model)  # the batch is not forgotten, so that it is not sent again
        for key, body, reason in answers:
            found = _score(body, reason)
            if found is not None and key in wanted:
                keep(wanted.pop(key), found)
            elif found is not None and key in metrics:  # asked for by another evaluation, which comes later
                self.cache.put(key, self.spec.identity, metrics[key], found)
        self._forget(batch, 0.0 if self.price is None else sum(
            self.price.of(replies.usage(body) or (0, 0), batch=True) for _, body, _ in answers))
        if there.status != "failed":
            return None
        said = "; ".join(str(error.message) for error in (there.errors and there.errors.data) or [])
        return JudgeError(f"The server refused the batch {name}: {faults.redacted(said, self.key)} {KEPT}")

    def _forget(self, batch: Batch, usd: float) -> None:
        self.account.settle(batch.usd, usd)
        with self.cache.transaction():
            self.cache.execute("DELETE FROM waiting WHERE batch = ?", (batch.name,))
            self.cache.execute("DELETE FROM batches WHERE name = ?", (batch.name,))

    def _send(self, server: openai.OpenAI, part: dict[str, JudgeRequest]) -> JudgeError | None:
        usd = 0.0 if self.price is None else sum(
            self.price.of((most_tokens([message.content for message in request.messages]), 1), batch=True)
            for request in part.values())
        if not self.account.book(usd):
            return JudgeError(f"A batch of {len(part)} scores could cost up to ${usd:.4f}, and of the budget of "
                              f"${self.account.limit} ${self.account.spent():.4f} are spent. Raise 'max_usd' of the "
                              f"profile's judge. {KEPT}")
        name, made = f"emlib-{uuid.uuid4().hex}", datetime.now(UTC).isoformat(timespec="seconds")
        with self.cache.transaction():
            self.cache.execute("INSERT INTO batches VALUES (?, ?, ?, NULL, ?, ?)", (
                name, canonical(self.spec.identity), self.account.name, usd, made))
            for key, request in part.items():
                self.cache.execute("INSERT INTO waiting VALUES (?, ?, ?)", (key, request.metric, name))
        text = "".join(line(self.spec, key, request) for key, request in part.items())
        file = server.files.create(file=(f"{name}.jsonl", text.encode()), purpose="batch")
        sent = server.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                     metadata={"name": name})
        self.cache.execute("UPDATE batches SET id = ? WHERE name = ?", (sent.id, name))
        say(f"{self.spec.model}: sent a batch of {len(part)} requests ({sent.id})")
        return None


def _later(what: str) -> JudgeError:
    return JudgeError(f"The batches could not be sent or collected: {what}. Run again later. {KEPT}")


def line(spec: OpenAIJudge, key: str, request: JudgeRequest) -> str:
    """One request of a batch file; the score's key tells its answer from others."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions",
                       "body": logprobs_body(spec, request)}) + "\n"


def parts(requests: Mapping[str, JudgeRequest]) -> Iterator[dict[str, JudgeRequest]]:
    """The requests in as many batches as the server's limits ask for."""
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
    """The server's id of a batch that was being sent when something stopped it, if it was."""
    there = server.batches.list(limit=100)
    return next((batch.id for batch in there if (batch.metadata or {}).get("name") == name), None)


def _answers(text: str) -> Iterator[tuple[str, Any, str]]:
    """For each line of a result file: its key, the chat completion or None, and what is said of an error."""
    for row in map(json.loads, filter(None, text.split("\n"))):
        response, error = row.get("response") or {}, row.get("error") or {}
        body = response.get("body") if response.get("status_code") == 200 else None
        inner = (response.get("body") or {}).get("error") or {}
        yield row["custom_id"], body, str(error.get("code") or inner.get("code") or "")


def _whole_numbers(server: openai.OpenAI, spec: OpenAIJudge, bodies: Sequence[Any]) -> bool:
    """Whether the judge's first tokens tell its numbers, as `Sitting` makes sure of: where all are digits, it is asked.

    What that one request costs lies far below what was booked for the batch and came to less.
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
    """The score in one answer; None where there is none, and another batch may bring one."""
    if body is None:
        return Score(None, reason=f"the server refuses the prompt: {reason}") if reason in faults.UNFIT else None
    try:
        likeliest, word = replies.likeliest(body)
    except replies.BadReply:
        return None
    return replies.from_distribution(likeliest, word, replies.usage(body) or (0, 0))
