"""Loopback servers are asked directly, whatever proxy the environment names; all others through the proxy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from emlib.config import OpenAIJudge
from emlib.core.addresses import ask_directly, is_loopback
from emlib.generation.vllm import VllmClient
from emlib.judging.api import client


class _Server(BaseHTTPRequestHandler):
    """Answers everything with its own name: whoever gets "proxy" has been sent to the proxy."""

    name = ""

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "%s"}]}' % self.name.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def serve(name: str) -> HTTPServer:
    server = HTTPServer(("127.0.0.1", 0), type("Named", (_Server,), {"name": name}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on loopback, behind an environment with a proxy and without NO_PROXY."""
    servers = proxy, ours = serve("proxy"), serve("ours")
    for name in ("no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "")  # so that what is set is undone at the end
        monkeypatch.delenv(name)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    yield f"http://127.0.0.1:{ours.server_port}"
    for each in servers:
        each.shutdown()
        each.server_close()


def test_a_judge_and_a_vllm_server_on_loopback_are_asked_directly(server: str) -> None:
    assert httpx.get(f"{server}/v1/models").json()["data"][0]["id"] == "proxy"  # what would happen
    assert VllmClient(server).base == "ours"

    async def models() -> str:
        async with client(OpenAIJudge(kind="openai", model="judge-1", base_url=f"{server}/v1"), "a key") as judge:
            return (await judge.models.list()).data[0].id

    assert asyncio.run(models()) == "ours"


def test_only_loopback_is_exempt(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    ask_directly(server)
    ask_directly("https://api.openai.com/v1")
    ask_directly("")
    assert httpx.get(f"{server}/").json()["data"][0]["id"] == "ours"
    assert httpx.get("http://judge.invalid/").json()["data"][0]["id"] == "proxy"  # the proxy answers for every host


@pytest.mark.parametrize(("host", "loopback"), [
    ("localhost", True), ("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("my.localhost", True),
    ("10.0.0.1", False), ("localhost.example.org", False), ("api.openai.com", False), ("", False)])
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
