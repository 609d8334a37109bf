"""A small server that speaks OpenAI's chat completions, so that other tools can ask a study's model.

It listens on loopback alone, and each request must bring its random key. Requests that arrive together are sampled in
one batch. `/v1/chat/completions` and `/v1/models` are all that it has.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice

from aiohttp import web
from aiohttp.typedefs import Handler
from anyio import CapacityLimiter
from anyio.from_thread import start_blocking_portal
from anyio.to_thread import run_sync

from emlib.config import Sampling
from emlib.core.records import Answer
from emlib.generation.chat_completions import Refused, Sampler, ServedModel
from emlib.generation.sample import Request

LARGEST = 64 * 2**20  # bytes of a request
CONNECTIONS = 1024  # at once
WINDOW = 0.02  # seconds in which requests are collected for a batch
Waiting = tuple[Sequence[Request], Sampling, "Future[list[Answer]]"]


@contextmanager
def batching(sample: Sampler, rows: int, window: float = WINDOW) -> Iterator[Sampler]:
    """Give a function for several threads that samples the requests of all of them in batches of up to `rows`.

    One thread samples. While it does, further requests wait, and make up the next batch.
    """
    waiting: list[Waiting] = []
    changed = threading.Condition()

    def answer_waiting() -> None:
        with changed:
            if waiting:  # else the batch before took the request along
                changed.wait_for(lambda: sum(len(requests) for requests, *_ in waiting) >= rows, window)
            batch, waiting[:] = [*waiting], []
        for sampling in dict.fromkeys(one[1] for one in batch):
            _answer([one for one in batch if one[1] == sampling], sample, rows)

    def ask(requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        found: Future[list[Answer]] = Future()
        with changed:
            waiting.append((requests, sampling, found))
            changed.notify()
        thread.submit(answer_waiting)
        return found.result()

    with ThreadPoolExecutor(1, "sampling") as thread:
        yield ask


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
    left = iter(answers)
    for some, _, found in asked:
        found.set_result([*islice(left, len(some))])


@dataclass
class Server:
    """A running server: its address up to and including /v1, its key, and the first error of the model."""

    url: str
    key: str = field(repr=False)
    failure: BaseException | None = None


@contextmanager
def serving(model: ServedModel) -> Iterator[Server]:
    """Serve the model on a free port of loopback inside the context."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_running(model)) as server:
        yield server


@asynccontextmanager
async def _running(model: ServedModel) -> AsyncIterator[Server]:
    server, threads = Server("", secrets.token_urlsafe(24)), CapacityLimiter(CONNECTIONS)

    @web.middleware
    async def in_openais_form(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            sent = request.headers.get("Authorization", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(sent, f"Bearer {server.key}".encode()):
                raise Refused(401, "invalid_api_key", "The key is not this server's.")
            return await handler(request)
        except Refused as error:
            refused = error
        except web.HTTPException as error:  # there is no such path, or the body is too large
            refused = Refused(error.status, "invalid_request", f"{request.method} {request.path}: {error.reason}.")
        except Exception as error:
            server.failure = server.failure or error
            refused = Refused(500, "model_failed", f"{type(error).__name__}: {error}")
        return web.json_response(refused.body, status=refused.status)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [
            {"id": model.name, "object": "model", "created": 0, "owned_by": "emlib"}]})

    async def complete(request: web.Request) -> web.Response:
        try:
            data = await request.json()
        except (ValueError, RecursionError) as error:
            raise Refused(400, "invalid_request", f"The body is not JSON: {error}") from error
        return web.json_response(await run_sync(model.reply, data, limiter=threads, abandon_on_cancel=True))

    app = web.Application(client_max_size=LARGEST, middlewares=[in_openais_form])
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", complete)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=CONNECTIONS).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
