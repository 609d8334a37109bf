"""A small server that speaks OpenAI's chat completions, so that other tools can ask a study's model.

It listens on loopback alone, and each request must bring its random key. Requests that arrive together are sampled in
one batch. `/v1/chat/completions` and `/v1/models` are all that it has.
"""

from __future__ import annotations

import hmac
import json
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from emlib.config import Sampling
from emlib.core.records import Answer
from emlib.generation.chat_completions import Refused, Sampler, ServedModel
from emlib.generation.sample import Request

LARGEST = 64 * 2**20  # bytes of a request
WINDOW = 0.02  # seconds in which requests are collected for a batch
Waiting = tuple[Sequence[Request], Sampling, "Future[list[Answer]]"]


@contextmanager
def batching(sample: Sampler, rows: int, window: float = WINDOW) -> Iterator[Sampler]:
    """Give a function for several threads that samples the requests of all of them in batches of up to `rows`.

    One thread samples. While it does, further requests wait, and make up the next batch.
    """
    waiting: queue.Queue[Waiting | None] = queue.Queue()

    def work() -> None:
        while (first := waiting.get()) is not None:
            collected = _collected(first, waiting, rows, window)
            for sampling in dict.fromkeys(one[1] for one in collected):
                _answer([one for one in collected if one[1] == sampling], sample, rows)

    def ask(requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        found: Future[list[Answer]] = Future()
        waiting.put((requests, sampling, found))
        return found.result()

    thread = threading.Thread(target=work, name="sampling", daemon=True)
    thread.start()
    try:
        yield ask
    finally:
        waiting.put(None)
        thread.join()


def _collected(first: Waiting, waiting: queue.Queue[Waiting | None], rows: int, window: float) -> list[Waiting]:
    found, until = [first], time.monotonic() + window
    while sum(len(one[0]) for one in found) < rows:
        try:
            another = waiting.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if another is None:
            waiting.put(None)  # the end, after this batch
            break
        found.append(another)
    return found


def _answer(asked: Sequence[Waiting], sample: Sampler, rows: int) -> None:
    """Sample the answers to requests with equal sampling, and give each caller its own, or the error."""
    requests = [request for one in asked for request in one[0]]
    try:
        answers = [answer for start in range(0, len(requests), rows)
                   for answer in sample(requests[start:start + rows], asked[0][1])]
    except BaseException as error:
        for *_, found in asked:
            found.set_exception(error)
        return
    start = 0
    for some, _, found in asked:
        found.set_result(answers[start:start + len(some)])
        start += len(some)


@dataclass
class Server:
    """A running server: its address up to and including /v1, its key, and the first error of the model."""

    url: str
    key: str = field(repr=False)
    failure: BaseException | None = None


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024  # as many connections at once as a client may open; http.server has 5

    def __init__(self, model: ServedModel) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.shown = Server(f"http://127.0.0.1:{self.server_address[1]}/v1", secrets.token_urlsafe(24))


@contextmanager
def serving(model: ServedModel) -> Iterator[Server]:
    """Serve the model on a free port of loopback inside the context."""
    http = _Http(model)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), name="server", daemon=True)
    thread.start()
    try:
        yield http.shown
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        self._reply(lambda: {"object": "list", "data": [
            {"id": self.server.model.name, "object": "model", "created": 0, "owned_by": "emlib"}]}, "/v1/models")

    def do_POST(self) -> None:
        self._reply(lambda: self.server.model.reply(self._json()), "/v1/chat/completions")

    def _reply(self, answer: Any, path: str) -> None:
        try:
            self._check(path)
            status, body = 200, answer()
        except Refused as refused:
            status, body = refused.status, refused.body
        except Exception as error:
            self.server.shown.failure = self.server.shown.failure or error
            status, body = 500, Refused(500, "model_failed", f"{type(error).__name__}: {error}").body
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status != 200:  # the body may be unread
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(text)

    def _check(self, path: str) -> None:
        sent = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {self.server.shown.key}".encode()):
            raise Refused(401, "invalid_api_key", "The key is not this server's.")
        if self.path.partition("?")[0] != path:
            raise Refused(404, "not_found", f"{self.command} {self.path}: there is only {path}.")

    def _json(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            raise Refused(413 if length.isdecimal() else 411, "invalid_request",
                          f"The body needs a Content-Length of at most {LARGEST} bytes.")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(400, "invalid_request", f"The body is not JSON: {error}") from error

    def log_message(self, *_: Any) -> None:
        """Print nothing: requests are counted."""
