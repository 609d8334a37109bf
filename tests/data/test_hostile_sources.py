"""Servers and files that mean harm: detours without encryption, disguised hosts, more bytes than stated, bombs."""

from __future__ import annotations

import gzip
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emlib.core.addresses import checked_address
from emlib.core.errors import ProfileError, SourceError
from emlib.core.schema import check
from emlib.data import download
from emlib.data.sources import DATA_DIR, Source, fetch

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_DIR, raising=False)
    monkeypatch.setattr(download, "WAIT", 0)


@contextmanager
def server(answer: Answer, certificate: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

    home = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        home.socket = context.wrap_socket(home.socket, server_side=True)
    threading.Thread(target=home.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http{'' if certificate is None else 's'}://127.0.0.1:{home.server_port}", asked
    home.shutdown()
    home.server_close()


def redirect(to: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()
    return answer


def sending(content: bytes, stated: int | None) -> Answer:
    """Answer with a content, whose length is stated or left open."""
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if stated is not None:
            handler.send_header("Content-Length", str(stated))
        handler.end_headers()
        handler.wfile.write(content)
    return answer


def source(url: str | None, **more: object) -> dict[str, Source]:
    entry = {"home": "https://example.org", "url": url, "file": "file.bin", "local": "file.bin", "sha256": None,
             "licence": "MIT", "notice": "Numbers.", "format": "json"}
    return {"thing": check(Source, entry | more, "here")}


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate for loopback, with its key in one file, which the client trusts."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl on this machine to make a certificate with")
    parts = [tmp_path / "key.pem", tmp_path / "cert.pem"]
    subprocess.run([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", parts[0], "-out", parts[1]],
                   check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(parts[1]))
    return both


def test_a_redirect_from_https_to_http_is_refused_and_not_followed(certificate: Path, tmp_path: Path) -> None:
    with server(sending(b"x", 1)) as (plain, asked), server(redirect(f"{plain}/x"), certificate) as (secure, _):
        with pytest.raises(SourceError, match=r"thing: https://127.* leads to http://127.*not encrypted"):
            fetch("thing", tmp_path / "sources", source(f"{secure}/file.bin"))
        assert asked == []
    with server(sending(b"right", 5), certificate) as (other, _), (
            server(redirect(f"{other}/x"), certificate)) as (secure, _):
        assert fetch("thing", tmp_path / "sources", source(f"{secure}/file.bin")).read_bytes() == b"right"


@pytest.mark.parametrize("to", ["http://example.org/x", "https://me@example.org/x", "https://2130706433/x",
                                "ftp://example.org/x", "https://exa%6dple.org/x"])
def test_a_redirect_to_an_address_that_a_registry_may_not_name_is_refused(to: str, tmp_path: Path) -> None:
    with server(redirect(to)) as (url, _), pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(f"{url}/file.bin"))
    assert "thing: " in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize("url", [
    "http://example.org/a", "ftp://example.org/a", "file:///etc/passwd", "example.org", "https://", "https:///a",
    "https://me@example.org/a", "https://me:word@example.org/a", "https://example.org@evil.org/a", "https://@example.org",
    "http://127.0.0.1:80@example.org/a", "http://127.0.0.1.example.org/a", "http://localhost.example.org/a",
    "https://example.org\\@evil.org/a", "https://example.org /a", "https://example.org\n/a", "https://ex\tample.org/a",
    "https://exаmple.org/a", "https://2130706433/a", "https://0x7f000001/a", "https://10.1/a",
    "https://192.0.2.1/a", "https://example%2eorg/a", "https://example.org:99999/a", "https://-example.org/a",
    "https://[::ffff:192.0.2.1]/a"])
def test_an_address_that_is_not_what_it_seems_is_refused(url: str) -> None:
    with pytest.raises(ProfileError, match="'url' is "):
        source(url)


@pytest.mark.parametrize("url", [
    "https://example.org/a.json", "https://raw.example.co.uk/a%20b?c=d#e", "https://example.de:8443/a",
    "http://127.0.0.1:8000/a", "http://localhost:80/a", "http://[::1]:80/a", "https://xn--exmple-cua.org/a"])
def test_an_ordinary_address_passes(url: str) -> None:
    assert checked_address(url).hostname
    assert source(url)["thing"].url == url


@pytest.mark.parametrize("stated", [True, False])
def test_more_bytes_than_the_registry_states_are_not_taken(stated: bool, tmp_path: Path) -> None:
    content = b"x" * 300_000
    with server(sending(content, len(content) if stated else None)) as (url, asked):
        with pytest.raises(SourceError, match="more bytes than the 299,999 that are allowed"):
            fetch("thing", tmp_path, source(f"{url}/file.bin", bytes=299_999))
        assert len(asked) == 1  # and not tried again
        assert files(tmp_path) == []
        assert fetch("thing", tmp_path, source(f"{url}/file.bin", bytes=300_000)).read_bytes() == content


def test_two_gigabytes_are_the_most_where_nothing_is_stated(tmp_path: Path) -> None:
    assert source("https://example.org/a")["thing"].limit == 2_000_000_000
    with server(sending(b"x", 2_000_000_001)) as (url, _), pytest.raises(SourceError, match="the 2,000,000,000 that"):
        fetch("thing", tmp_path, source(f"{url}/file.bin"))


def test_a_packed_file_that_unpacks_to_more_than_is_stated_is_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    with gzip.open(tmp_path / "mine" / "file.bin.gz", "wb") as out:
        for _ in range(200):
            out.write(bytes(2**20))  # 200 MB in 200 kB
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "mine"))
    with pytest.raises(SourceError, match=r"file\.bin\.gz: the file has more bytes than the 1,000,000 that are"):
        fetch("thing", tmp_path / "sources", source(None, bytes=1_000_000))
    assert files(tmp_path / "sources") == []
