"""Judging by batch: all requests go in one file, are answered within a day, and cost half.

A batch is recorded before it is sent, under a name that it also has on the server. An evaluation that is interrupted at
any moment therefore finds its batches again, and no score is requested twice. Requests that a batch leaves unanswered
(because it expired, say) go into the next one, at most `tries` times; what the server refuses for good is not sent
again.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx2
import openai
from filelock import FileLock
from openai.types import Batch

from emlib.config import OpenAIJudge
from emlib.core.addresses import ask_directly
from emlib.core.errors import JudgeError, JudgeWaits
from emlib.core.progress import say
from emlib.judging import faults, replies
from emlib.judging.access import NO_KEY, api_key, fault_of, price_of
from emlib.judging.api import MOST_WORDS, without_numbers
from emlib.judging.batch_results import Line, read_lines
from emlib.judging.bodies import is_whole, known_support, logprobs_body, most_used, number_body, save_support
from emlib.judging.cache import canonical
from emlib.judging.faults import KEPT, Fault, Rejected
from emlib.judging.judge_batch import NOT_HAD, Keep
from emlib.judging.money import Budget
from emlib.judging.reservations import Reservations
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.judging.server_errors import redacted

MOST_REQUESTS = 50_000  # in one batch: OpenAI's limit
MOST_BYTES = 190_000_000  # of one file; OpenAI takes 200 MB
OVER = ("completed", "expired", "failed", "cancelled", "canceled", "succeeded")
PENDING = ("validating", "queued", "in_progress", "running", "finalizing", "cancelling", "canceling")
NONE_SUCH = (404, 405, 501)  # statuses of an address that a server does not have
MOST_FRAME = 1000  # bytes of a line without its prompt
MOST_SHARES = 100  # of a booking for one reply; a server that counts more tokens is not believed
TRIES = 5  # by the client, of each of these few requests


class BatchJob(NamedTuple):
    """A batch as recorded locally, and the account that booked it.

    `id` is None where the process was interrupted while sending it.
    """

    name: str
    id: str | None
    usd: float
    account: str


class BatchJudge:
    """A `Scorer` that collects the scores of finished batches, sends the remaining requests, and asks to wait."""

    def __init__(self, spec: OpenAIJudge, budget: Budget) -> None:
        """Read the key from the environment (`api_key`), and the model's price from the list (`price_of`)."""
        self.spec, self.budget, self.cache = spec, budget, budget.cache
        self.key, self.price = api_key(spec), price_of(spec)
        self.supported = known_support(self.cache, spec)
        self.unknown: list[str] = []  # batches in a state that this module does not know

    def __call__(self, requests: Sequence[JudgeRequest], keep: Keep) -> None:
        """Collect finished batches and send new ones.

        Raises:
            JudgeWaits: some scores are still pending; run again later.
            JudgeError: the server refuses a request, or the budget does not allow a batch.
        """
        wanted = {request.key(self.spec.identity): request for request in requests}
        self._at_server(lambda server: self._collect_and_send(server, wanted, keep))
        if wanted:
            strange = f" Look at them on the server: {', '.join(self.unknown)}." if self.unknown else ""
            ways = "".join(f" {count} of them were sent to {address}: a study whose judge has this address collects "
                           "them, or remove 'batch' to request them here as well."
                           for address, count in self._elsewhere(wanted).items())
            raise JudgeWaits(f"{len(wanted)} scores by {self.spec.model} are in batches, which take up to 24 hours. "
                             f"Run again later: finished batches are collected then.{strange}{ways}")

    def collect(self, requests: Sequence[JudgeRequest], keep: Keep, tries: int = TRIES) -> list[JudgeRequest]:
        """Collect finished batches, send none, and return the requests without a score.

        A judge without `batch` calls it first, so that what a batch has scored is not paid again. `tries` is how often
        a request to the server is sent again.
        """
        wanted = {request.key(self.spec.identity): request for request in requests}
        if self._sent():
            self._at_server(lambda server: self._collect_all(server, wanted, keep), tries)
        for address, count in self._elsewhere(wanted).items():
            say(f"{self.spec.model}: {count} scores wait in a batch that was sent to {address}, and are requested here "
                "as well")
        return list(wanted.values())

    def _at_server(self, work: Callable[[openai.OpenAI], None], tries: int = TRIES) -> None:
        """Do what needs the server; one process at a time."""
        failure: JudgeError | None = None
        try:
            with FileLock(self.cache.path.with_name(f".{self.cache.path.name}.batches.lock")):
                ask_directly(self.spec.address)
                with openai.OpenAI(api_key=self.key or NO_KEY, base_url=self.spec.address, max_retries=tries,
                                   timeout=self.spec.timeout) as server:
                    work(server)
        except openai.APIError as error:
            failure = _stopping(error, self.spec, self.key)
        except (Fault, ValueError, RecursionError) as error:
            failure = _later(redacted(str(error), self.key))
        if failure is not None:  # raised here, so that it does not refer to the client's error
            raise failure

    def _sent(self) -> list[BatchJob]:
        """Return the batches at this server, also of other studies; earlier versions recorded no address."""
        return [BatchJob(*row) for row in self.cache.execute(
            "SELECT name, id, usd, account FROM batches LEFT JOIN sent_to ON batch = name WHERE judge = ? "
            "AND (address IS NULL OR address = ?) ORDER BY made", (canonical(self.spec.identity), self.spec.address))]

    def _elsewhere(self, wanted: Mapping[str, JudgeRequest]) -> Counter[str]:
        """Count the wanted scores that wait in batches at each other server."""
        return Counter(address for key, address in self.cache.execute(
            "SELECT key, address FROM waiting JOIN sent_to USING (batch) WHERE address != ?", (self.spec.address,))
            if key in wanted)

    def _collect_all(self, server: openai.OpenAI, wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        for key, score in self.cache.get(list(wanted)).items():  # another process may have collected them meanwhile
            keep(wanted.pop(key), score)
        for batch in self._sent():
            self._collect(server, batch, wanted, keep)

    def _collect_and_send(self, server: openai.OpenAI, wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        self._collect_all(server, wanted, keep)
        self._give_up(wanted, keep)
        waiting = {key for (key,) in self.cache.execute("SELECT key FROM waiting")}
        waiting |= Reservations(self.cache).by_others()
        for part in parts({key: request for key, request in wanted.items() if key not in waiting}):
            self._send(server, part)

    def _collect(self, server: openai.OpenAI, batch: BatchJob, wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        """Keep the scores of a finished batch, drop them from `wanted`, and delete the batch's record."""
        name = batch.id or _found(server, batch.name)
        if name is None:  # it never reached the server
            self._forget(batch, 0.0)
            return
        metrics: dict[str, str] = dict(
            self.cache.execute("SELECT key, metric FROM waiting WHERE batch = ?", (batch.name,)))
        try:
            there = server.batches.retrieve(name)
        except openai.NotFoundError:  # servers delete old batches; it may have been paid for
            say(f"{self.spec.model}: the server has no batch {name} any more; its requests are sent again")
            self._forget(batch, batch.usd)
            self._count_unanswered(dict.fromkeys(metrics, "the server has deleted the batch"))
            return
        status = str(there.status).lower()  # some servers write COMPLETED
        if status in OVER:
            self._read(server, batch, there, metrics, wanted, keep)
        elif status not in PENDING:
            self.unknown.append(f"{name} is '{redacted(status, self.key)}'")

    def _read(self, server: openai.OpenAI, batch: BatchJob, there: Batch, metrics: dict[str, str],
              wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        """Keep the scores of a batch that is over; `metrics` are those of its requests, by their scores' keys."""
        labels = {key for (key,) in self.cache.execute(  # also of other evaluations' requests
            "SELECT key FROM labels JOIN waiting USING (key) WHERE batch = ?", (batch.name,))}
        lines = [line for file in (there.output_file_id, there.error_file_id) if file
                 for line in read_lines(server.files.content(file).content, self.spec.model, self.key, labels)]
        requests = len(metrics)
        self._refuse_unusable(server, lines, wanted)  # the batch stays recorded, so that it is not sent again
        answered = any(line.reply is not None for line in lines)
        for line in lines:
            score = line.lasting(answered)
            if score is not None and line.key in metrics:
                self._settle(line.key, metrics.pop(line.key), score, wanted, keep)
        self._forget(batch, self._cost(batch, lines, requests))
        messages = "; ".join(str(error.message) for error in (there.errors and there.errors.data) or [])
        said = redacted(messages, self.key) or f"the batch is {there.status.lower()}"
        self._count_unanswered(dict.fromkeys(metrics, said) | {
            line.key: line.reason for line in lines if line.key in metrics and line.fault is not None})
        if there.status.lower() == "failed":
            raise JudgeError(f"The server refused the batch {there.id}: {said} {KEPT}")
        if not answered:
            self._learn(lines)

    def _settle(self, key: str, metric: str, score: Score, wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        """Keep a score; one that another evaluation requested is stored, and read there later."""
        if key in wanted:
            keep(wanted.pop(key), score)
        else:
            self.cache.put(key, self.spec.identity, metric, score)
        self.cache.execute("DELETE FROM unanswered WHERE key = ?", (key,))

    def _refuse_unusable(self, server: openai.OpenAI, lines: Sequence[Line],
                         wanted: Mapping[str, JudgeRequest]) -> None:
        """Raise where the replies of this judge are no scores: it spells digit by digit, or says only words."""
        scored = [(line, line.score) for line in lines if line.score is not None and not line.is_label]
        tokens = {token for line, _ in scored for token, _ in replies.likeliest(line.reply)[0]}
        numbers = {number for token in tokens if (number := replies.number(token)) is not None}
        if numbers and max(numbers) <= 9:  # maybe first digits of larger numbers: one question tells, as in a session
            reply = server.post("/chat/completions", body=number_body(self.spec, self.supported),
                                cast_to=httpx2.Response)
            likeliest, _ = replies.likeliest(replies.parse(reply.content))
            if not is_whole([token for token, _ in likeliest]):
                raise faults.by_digits(self.spec.model)
        words = [word for line, score in scored
                 if line.key in wanted and (word := replies.other_word(wanted[line.key], score)) is not None]
        if MOST_WORDS <= len(words) == len(scored) and not self.cache.has_value_by(self.spec.identity):
            raise without_numbers(self.spec, words)

    def _learn(self, lines: Sequence[Line]) -> None:
        """Learn from a batch that was rejected whole what the model takes, so that the next batch is sent so."""
        rejected = next((line.fault for line in lines if isinstance(line.fault, Rejected)), None)
        if rejected is None:
            return
        learnt = self.supported.learn(rejected.error)
        if learnt is None:
            raise rejected.stopping()
        if not self.supported.logprobs:
            raise JudgeError(f"'{self.spec.model}' has no log-probabilities, and a batch needs them. Remove 'batch' "
                             "from the profile's judge and add 'samples: 10': the score is then the mean of 10 "
                             f"sampled ones. The server says: {rejected.reason}")
        say(f"{self.spec.model}: {learnt} (the server says: {rejected.reason}). The next batch is sent so.")
        save_support(self.cache, self.spec, self.supported)

    def _count_unanswered(self, reasons: Mapping[str, str]) -> None:
        with self.cache.transaction():
            for key, reason in reasons.items():
                self.cache.execute("INSERT INTO unanswered VALUES (?, 1, ?) ON CONFLICT (key) DO UPDATE SET "
                                   "batches = batches + 1, reason = excluded.reason", (key, reason))

    def _give_up(self, wanted: dict[str, JudgeRequest], keep: Keep) -> None:
        """Stop at requests that `tries` batches left unanswered, or give these up if the profile says so."""
        tired = {key: reason for key, reason in self.cache.execute(
            "SELECT key, reason FROM unanswered WHERE batches >= ?", (self.spec.tries,)) if key in wanted}
        if tired and self.spec.unanswered == "stop":
            last = next(iter(tired.values()))
            raise JudgeError(f"{len(tired)} scores by {self.spec.model} were left unanswered by {self.spec.tries} "
                             f"batches ('tries' of the profile's judge); the last reason: {last}. Nothing was sent. "
                             "Raise 'tries' to send them again, or set 'unanswered: unscored': they then count as "
                             f"unscored. {KEPT}")
        for key, reason in tired.items():
            keep(wanted.pop(key), Score(None, reason=f"{NOT_HAD} ({self.spec.tries} batches; the last: {reason})",
                                        lasting=False))

    def _cost(self, batch: BatchJob, lines: Sequence[Line], requests: int) -> float:
        """Return what a batch cost: by its tokens, or a request's share of the booking where they are unknown.

        Without a price it is what was booked, perhaps by a study that states one.
        """
        if self.price is None:
            return batch.usd
        share = batch.usd / max(1, requests)
        told = [replies.usage(line.reply) for line in lines if line.reply is not None]
        costs = [share if tokens is None else self.price.of(tokens, batch=True) for tokens in told]
        return sum(share if cost > MOST_SHARES * share else cost for cost in costs)

    def _forget(self, batch: BatchJob, usd: float) -> None:
        Budget(self.cache, batch.account).settle(batch.usd, usd)  # whoever collects it
        with self.cache.transaction():
            self.cache.execute("DELETE FROM labels WHERE key IN (SELECT key FROM waiting WHERE batch = ?)",
                               (batch.name,))
            for statement in ("DELETE FROM waiting WHERE batch = ?", "DELETE FROM sent_to WHERE batch = ?",
                              "DELETE FROM batches WHERE name = ?"):
                self.cache.execute(statement, (batch.name,))

    def _send(self, server: openai.OpenAI, part: dict[str, JudgeRequest]) -> None:
        bodies = {key: logprobs_body(self.spec, request, self.supported) for key, request in part.items()}
        usd = 0.0 if self.price is None else sum(self.price.of(most_used(one), batch=True) for one in bodies.values())
        if not self.budget.book(usd):
            raise JudgeError(f"A batch of {len(part)} scores could cost up to ${usd:.4f}, and "
                             f"${self.budget.spent():.4f} of the budget of ${self.budget.limit} are spent. Raise "
                             f"'max_usd' of the profile's judge. {KEPT}")
        name, made = f"emlib-{uuid.uuid4().hex}", datetime.now(UTC).isoformat(timespec="seconds")
        with self.cache.transaction():
            self.cache.execute("INSERT INTO batches VALUES (?, ?, ?, NULL, ?, ?)", (
                name, canonical(self.spec.identity), self.budget.name, usd, made))
            self.cache.execute("INSERT INTO sent_to VALUES (?, ?)", (name, self.spec.address))
            for key, request in part.items():
                self.cache.execute("INSERT INTO waiting VALUES (?, ?, ?)", (key, request.metric, name))
                if request.wants_label:
                    self.cache.execute("INSERT OR IGNORE INTO labels VALUES (?)", (key,))
        text = "".join(line(key, body) for key, body in bodies.items())
        file = server.files.create(file=(f"{name}.jsonl", text.encode()), purpose="batch")
        sent = server.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                     metadata={"name": name})
        self.cache.execute("UPDATE batches SET id = ? WHERE name = ?", (sent.id, name))
        say(f"{self.spec.model}: sent a batch of {len(part)} requests ({sent.id})")


def _stopping(error: openai.APIError, spec: OpenAIJudge, key: str) -> JudgeError:
    """Return the error that stops an evaluation by batch after a request that was not answered."""
    path = str(error.request.url).removeprefix(spec.address)
    if isinstance(error, openai.APIStatusError) and error.status_code in NONE_SUCH and "/chat/" not in path:
        if path.endswith("/content"):
            return _later(f"the server has no file {path} any more ({error.status_code})")
        return JudgeError(f"The server has no batches: {path.partition('?')[0]} is not there ({error.status_code}). "
                          f"Remove 'batch' from the profile's judge, or correct 'base_url' ({spec.address}). {KEPT}")
    fault = fault_of(error, spec.model, key)
    if isinstance(fault, JudgeError):
        return fault
    return fault.stopping() if isinstance(fault, Rejected) else _later(fault.reason)


def _later(reason: str) -> JudgeError:
    return JudgeError(f"The batches could not be sent or collected: {reason}. Run again later. {KEPT}")


def line(key: str, body: dict[str, Any]) -> str:
    """Return one request of a batch file as a line of JSON; the score's key identifies its answer."""
    return json.dumps({"custom_id": key, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


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
