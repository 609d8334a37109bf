"""A server that speaks the OpenAI API on loopback, for tests and benchmarks: real HTTP, real log-probabilities.

It serves a chat model of ours, refuses what a real one refuses (a wrong key, an unknown model), does what it is told to
do wrong, and remembers what it was asked. `python tests/judging/server.py` runs one in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web

Reply = tuple[list[tuple[str, float]], int]  # the likeliest first tokens with their log-probabilities; tokens read
Model = Callable[[list[dict[str, str]]], Reply]
WAITS = {"429": {}, "429 after": {"retry-after": "1"},  # the headers of a refusal
         "429 never": {"retry-after": "Fri, 31 Dec 12025 23:59:59 GMT"}}
FAULTS = ("429", "429 after", "500", "cut", "slow", "truncated", "no logprobs", "no choices", "html")


def counting_model(messages: list[dict[str, str]]) -> Reply:
    """Numbers that depend on the prompt alone: for benchmarks, in which no model shall be timed."""
    text = messages[-1]["content"]
    number = int(hashlib.sha256(text.encode()).hexdigest()[:4], 16) % 101
    rest = [str(n) for n in range(101) if n != number][:19]
    return [(str(number), math.log(0.81)), *((n, math.log(0.01)) for n in rest)], len(text) // 4


def saying(score: Callable[[str], int | str]) -> Model:
    """A judge that is certain: to each prompt the number, or the word, that a function of its text gives."""
    def reply(messages: list[dict[str, str]]) -> Reply:
        text = messages[-1]["content"]
        return [(str(score(text)), 0.0)], len(text) // 4

    return reply


def no_fault(key: str, tries: int) -> str | None:
    """All is well."""
    return None


class JudgeServer:
    """A context manager: the server runs in a thread with a loop of its own.

    Attributes:
        fault: which of `FAULTS` befalls a prompt, told by its text's digest and the number of its tries so far.
        asked: how often each prompt was asked for.
        answered: how often each prompt was answered well.
        refuse: a status and an error code with which everything is refused.
        replies: to a request's body the status and the JSON (or text) that is replied instead, a response as it is, or
            None.
    """

    def __init__(self, model: Model = counting_model, *, key: str | None = None, name: str = "judge-1",
                 fault: Callable[[str, int], str | None] = no_fault, delay: float = 0.0, slots: int = 10**6,
                 slow: float = 30.0, logprobs: bool = True) -> None:
        self.model, self.key, self.name, self.fault = model, key, name, fault
        self.delay, self.slots, self.slow, self.logprobs = delay, slots, slow, logprobs
        self.keys: set[str] = set()  # what was sent as one
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.busy = self.most_busy = self.refusals = 0
        self.refuse: tuple[int, str] | None = None
        self.replies: Callable[[dict[str, Any]], Any] = lambda body: None
        self.known: dict[str, Reply] = {}
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.finish_batches = True
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> JudgeServer:
        ready = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    @property
    def url(self) -> str:
        """The address up to and including /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._download)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._retrieve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        self.loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        self.loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        ready.set()
        self.loop.run_forever()
        self.loop.run_until_complete(runner.cleanup())
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self.loop.close()

    # --- chat completions ---------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        refused = self._refusal(request, body["model"])
        if refused is not None:
            return refused
        if self.busy >= self.slots:
            self.refusals += 1
            return error(429, "rate_limit_exceeded", "slow down", {"retry-after-ms": str(int(1000 * self.delay) or 1)})
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            return await self._answer(request, body)
        finally:
            self.busy -= 1

    def _refusal(self, request: web.Request, model: str) -> web.Response | None:
        sent = request.headers.get("authorization", "")
        self.keys.add(sent)
        if self.refuse is not None:
            self.refusals += 1
            status, code = self.refuse
            return error(status, code, f"refused; you sent {sent}")  # as careless a server as there can be
        if self.key is not None and sent != f"Bearer {self.key}":
            self.refusals += 1
            return error(401, "invalid_api_key", f"Incorrect API key provided: {sent}")
        if model != self.name:
            self.refusals += 1
            return error(404, "model_not_found", f"The model `{model}` does not exist")
        return None

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        prompt = digest(body["messages"])
        self.bodies.append(body)
        fault = self.fault(prompt, self.asked[prompt])
        self.asked[prompt] += 1
        planned = self.replies(body)
        if isinstance(planned, web.StreamResponse):
            return planned
        if planned is not None:
            status, reply = planned
            if status == 307:
                return web.Response(status=status, headers=reply)
            return web.Response(text=reply if isinstance(reply, str) else json.dumps(reply), status=status,
                                content_type="application/json")
        if self.delay:
            await asyncio.sleep(self.delay)
        if fault in WAITS:
            return error(429, "rate_limit_exceeded", "slow down", WAITS[fault])
        if fault == "500":
            return error(500, "server_error", "an error")
        if fault == "cut":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if fault == "cut after the headers":
            begun = web.StreamResponse(headers={"content-length": "500", "content-type": "application/json"})
            await begun.prepare(request)
            await begun.write(b'{"choices": [{"message": {"content": "8')
            assert request.transport is not None
            request.transport.abort()
            return begun
        if fault == "slow":
            await asyncio.sleep(self.slow)
        if fault == "html":
            return web.Response(text="<html><body>Bad gateway</body></html>", content_type="text/html")
        text = json.dumps(self.completion(body, fault))
        if fault == "truncated":
            return web.Response(text=text[:len(text) // 2], content_type="application/json")
        if fault is None:
            self.answered[prompt] += 1
        return web.Response(text=text, content_type="application/json")

    def completion(self, body: dict[str, Any], fault: str | None = None) -> dict[str, Any]:
        """A chat completion as OpenAI writes it."""
        prompt = digest(body["messages"])
        if prompt not in self.known:
            self.known[prompt] = self.model(body["messages"])
        likeliest, read = self.known[prompt]
        word = likeliest[0][0]
        count = body.get("n", 1)
        ended = "length" if 1 in (body.get("max_tokens"), body.get("max_completion_tokens")) else "stop"
        content = {"token": word, "logprob": likeliest[0][1], "bytes": list(word.encode()), "top_logprobs": [
            {"token": token, "logprob": logprob, "bytes": list(token.encode())}
            for token, logprob in likeliest[:body.get("top_logprobs", 0)]]}
        told = self.logprobs and fault != "no logprobs" and body.get("logprobs")
        choices = [] if fault == "no choices" else [
            {"index": index, "finish_reason": ended, "logprobs": {"content": [content], "refusal": None} if told
             else None, "message": {"role": "assistant", "content": word, "refusal": None}} for index in range(count)]
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": choices, "usage": {"prompt_tokens": read, "completion_tokens": count,
                                              "total_tokens": read + count}}

    # --- files and batches --------------------------------------------------------------------------------------------

    async def _upload(self, request: web.Request) -> web.Response:
        refused = self._refusal(request, self.name)
        if refused is not None:
            return refused
        form = await request.post()
        name = f"file-{len(self.files) + 1}"
        assert isinstance(form["file"], web.FileField)
        assert form["purpose"] == "batch"
        self.files[name] = form["file"].file.read()
        return web.json_response({"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 1,
                                  "filename": "batch.jsonl", "purpose": "batch", "status": "processed"})

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        name = f"batch_{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name, "object": "batch", "endpoint": body["endpoint"], "completion_window": "24h", "created_at": 1,
            "input_file_id": body["input_file_id"], "metadata": body.get("metadata"), "status": "in_progress",
            "output_file_id": None, "error_file_id": None}
        return web.json_response(self.batches[name])

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.batches.values()), "has_more": False})

    async def _retrieve(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return error(404, "not_found", "No batch found")
        if self.finish_batches and batch["status"] == "in_progress":
            self._finish(batch)
        return web.json_response(batch)

    async def _download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    def _finish(self, batch: dict[str, Any]) -> None:
        """Answer what `fault` lets through; the rest goes to the error file, as of a batch that has expired."""
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            item = json.loads(line)
            prompt = digest(item["body"]["messages"])
            fault = self.fault(prompt, self.asked[prompt])
            self.asked[prompt] += 1
            planned = self.replies(item["body"])
            if planned is not None:
                (good if planned[0] == 200 else bad).append({"id": "r", "custom_id": item["custom_id"], "error": None,
                    "response": {"status_code": planned[0], "request_id": "x", "body": planned[1]}})
            elif fault is None:
                self.answered[prompt] += 1
                good.append({"id": "r", "custom_id": item["custom_id"], "error": None, "response": {
                    "status_code": 200, "request_id": "x", "body": self.completion(item["body"])}})
            else:
                bad.append({"id": "r", "custom_id": item["custom_id"], "response": None, "error": {
                    "code": "batch_expired", "message": "This request could not be executed in time."}})
        batch["status"] = "expired" if bad else "completed"
        for kind, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                name = f"file-{len(self.files) + 1}"
                self.files[name] = "".join(json.dumps(line) + "\n" for line in reversed(lines)).encode()
                batch[kind] = name


def digest(messages: list[dict[str, str]]) -> str:
    """What stands for a prompt."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error as OpenAI writes it."""
    return web.json_response({"error": {"message": message, "type": code, "code": code, "param": None}},
                             status=status, headers=headers)


def main() -> None:
    """Serve until the standard input closes; the address is the first line of output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=10**6)
    asked = parser.parse_args()
    with JudgeServer(delay=asked.delay, slots=asked.slots) as server:
        print(server.url, flush=True)
        input()
        print(json.dumps({"answered": sum(server.answered.values()), "refused": server.refusals,
                          "most_busy": server.most_busy, "cpu_s": time.process_time()}), flush=True)


if __name__ == "__main__":
    main()
