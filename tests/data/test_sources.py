"""The registry of sources and the way from an entry to a checked file, against real servers on loopback."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from emlib.core.digests import of_file
from emlib.core.errors import ProfileError, SourceError, StoreError
from emlib.core.schema import check
from emlib.data import download, sources
from emlib.data.sources import DATA_DIR, Source, fetch, registry

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry(ROOT / "params" / "sources.yaml")
CONTENT = bytes(range(256)) * 1000  # 256,000 bytes: several chunks


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Home:
    """A web server with one file; `faults` is what goes wrong next, each ("cut", bytes sent) or ("status", code)."""

    content: bytes = CONTENT
    ranges: bool = True
    faults: list[tuple[str, int]] = field(default_factory=list)
    seen: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file.bin"


def handler(home: Home) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

        def answer(self, code: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[:sent])
            self.close_connection = sent is not None

        def do_GET(self) -> None:
            home.seen.append({key.lower(): value for key, value in self.headers.items()})
            kind, number = home.faults.pop(0) if home.faults else ("none", 0)
            sent = number if kind == "cut" else None
            if kind == "status":
                return self.answer(number, b"no", {})
            asked = self.headers.get("Range")
            if not home.ranges or asked is None:
                return self.answer(200, home.content, {}, sent)
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(home.content):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(home.content)}"})
            span = f"bytes {start}-{len(home.content) - 1}/{len(home.content)}"
            return self.answer(206, home.content[start:], {"Content-Range": span}, sent)

    return Handler


def serve(handler_class: type[http.server.BaseHTTPRequestHandler]) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_class)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


@pytest.fixture
def home() -> Iterator[Home]:
    """A running server; closed afterwards."""
    home = Home()
    server = serve(handler(home))
    home.port = server.server_port
    yield home
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of the user's, no proxy before loopback, no waiting between tries."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv(DATA_DIR, raising=False)
    monkeypatch.setattr(download, "WAIT", 0)


def source(url: str | None, content: bytes | None = CONTENT, **changes: object) -> dict[str, Source]:
    """A registry of one entry, `thing`, whose digest is that of `content`."""
    entry = {"home": "https://example.org/thing", "url": url, "file": "file.bin", "local": "some/file.bin",
             "sha256": None if content is None else digest(content), "licence": "MIT", "notice": "Numbers.",
             "format": "json"}
    return {"thing": check(Source, entry | changes, "test")}


def left(folder: Path) -> set[str]:
    """The names of the files under a folder, locks aside."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


# Downloading over https


def test_downloads_a_file_once_and_shows_its_notice(
        home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fetch("thing", tmp_path, source(home.url))
    assert path == tmp_path / "thing" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == {"thing/file.bin"}
    assert "Numbers." in capsys.readouterr().out
    assert fetch("thing", tmp_path, source(home.url)) == path
    assert len(home.seen) == 1
    assert "range" not in home.seen[0]


def test_a_cut_connection_is_resumed_where_it_broke_off(home: Home, tmp_path: Path) -> None:
    home.faults = [("cut", 100_000), ("cut", 50_000)]
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT
    starts = [int(seen["range"].removeprefix("bytes=").removesuffix("-")) for seen in home.seen[1:]]
    assert starts == [100_000, 150_000]


def test_a_download_that_was_killed_is_resumed_by_the_next_run(home: Home, tmp_path: Path) -> None:
    home.faults = [("cut", 90_000)] + [("status", 503)] * (download.TRIES - 1)
    with pytest.raises(SourceError, match="503"):
        fetch("thing", tmp_path, source(home.url))
    assert (tmp_path / "thing" / "file.bin.part").stat().st_size == 90_000
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT
    assert home.seen[-1]["range"] == "bytes=90000-"
    assert left(tmp_path) == {"thing/file.bin"}


def test_a_server_that_ignores_ranges_starts_from_zero(home: Home, tmp_path: Path) -> None:
    home.faults, home.ranges = [("cut", 100_000)], False
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT
    assert home.seen[1]["range"] == "bytes=100000-"


def test_a_file_that_changed_between_two_tries_is_not_mixed(home: Home, tmp_path: Path) -> None:
    """Without a digest nobody would notice, so that nothing is resumed; with one, it is told."""
    for content, folder in ((None, tmp_path / "unknown"), (CONTENT, tmp_path / "known")):
        part = folder / "thing" / "file.bin.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"old" * 1000)
        home.faults = [("cut", 100_000)]
        if content is None:
            assert fetch("thing", folder, source(home.url, content)).read_bytes() == CONTENT
            assert not any("range" in seen for seen in home.seen)
        else:
            with pytest.raises(SourceError, match="not the expected content"):
                fetch("thing", folder, source(home.url, content))
            assert fetch("thing", folder, source(home.url, content)).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_range_that_the_server_has_not_restarts(home: Home, tmp_path: Path, size: int) -> None:
    part = tmp_path / "thing" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(bytes(size))
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT
    assert [seen.get("range") for seen in home.seen] == [f"bytes={size}-", None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(home: Home, tmp_path: Path, status: int) -> None:
    home.faults = [("status", status)] * (download.TRIES - 1)
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT


def test_a_lasting_failure_is_not_tried_again_and_says_what_to_do(home: Home, tmp_path: Path) -> None:
    home.faults = [("status", 404)] * 9
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(home.url))
    assert len(home.seen) == 1
    for word in ("thing", home.url, "404", "some/file.bin", DATA_DIR, "https://example.org/thing"):
        assert word in str(caught.value)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    server = serve(handler(Home()))
    url = f"http://127.0.0.1:{server.server_port}/file.bin"
    server.shutdown()
    server.server_close()
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(url))
    for word in ("127.0.0.1", "some/file.bin", DATA_DIR, "https://example.org/thing"):
        assert word in str(caught.value)


def test_another_content_is_refused_and_not_kept(home: Home, tmp_path: Path) -> None:
    home.content = b"something else"
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(home.url))
    for word in (home.url, digest(CONTENT), digest(b"something else"), "https://example.org/thing"):
        assert word in str(caught.value)
    assert left(tmp_path) == set()


def test_a_file_spoilt_after_its_download_is_refused(home: Home, tmp_path: Path) -> None:
    path = fetch("thing", tmp_path, source(home.url))
    path.write_bytes(b"spoilt")
    with pytest.raises(SourceError, match="Delete") as caught:
        fetch("thing", tmp_path, source(home.url))
    assert str(path) in str(caught.value)


def test_an_unknown_digest_is_trusted_on_first_use_and_holds_from_then_on(home: Home, tmp_path: Path) -> None:
    path = fetch("thing", tmp_path, source(home.url, None))
    manifest = tmp_path / "thing" / "manifest.json"
    assert json.loads(manifest.read_text())["sha256"] == digest(CONTENT)
    assert fetch("thing", tmp_path, source(home.url, None)) == path
    path.unlink()
    home.content = b"changed at its home"
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(home.url, None))
    assert str(manifest) in str(caught.value)
    assert not path.exists()
    manifest.unlink()
    assert fetch("thing", tmp_path, source(home.url, None)).read_bytes() == b"changed at its home"


def test_another_split_without_a_digest_is_not_the_file_of_before(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's entry changed; nothing but the address tells its file from the one that is there."""
    monkeypatch.setattr(sources, "from_hub", lambda name, hub, part, **how: part.write_text(hub.split))
    hub = {"repo": "owner/set", "revision": "main"}
    first, second = (source(None, None, hub=hub | {"split": split}) for split in ("train", "test"))
    assert fetch("thing", tmp_path, first).read_text() == "train"
    with pytest.raises(SourceError, match=r"from owner/set, default, train, main, and .* default, test, .* Delete"):
        fetch("thing", tmp_path, second)
    assert fetch("thing", tmp_path, first).read_text() == "train"
    shutil.rmtree(tmp_path / "thing")
    assert fetch("thing", tmp_path, second).read_text() == "test"


def test_a_manifest_of_before_without_an_address_is_trusted(home: Home, tmp_path: Path) -> None:
    path = fetch("thing", tmp_path, source(home.url, None))
    path.with_name("manifest.json").write_text(json.dumps({"origin": "elsewhere", "sha256": digest(CONTENT)}))
    assert fetch("thing", tmp_path, source(home.url, None)) == path


def test_a_broken_manifest_is_named(home: Home, tmp_path: Path) -> None:
    fetch("thing", tmp_path, source(home.url, None))
    (tmp_path / "thing" / "manifest.json").write_text("{")
    with pytest.raises(SourceError, match=r"manifest\.json"):
        fetch("thing", tmp_path, source(home.url, None))


class FullDisk:
    """A file whose disk is full after some bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.file.close()

    def write(self, chunk: bytes) -> int:
        if self.room < len(chunk):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(chunk)
        return self.file.write(chunk)


def test_a_full_disk_is_told_and_what_came_is_resumed(
        home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def opened(path: Path, mode: str = "r", *args: object, **kwargs: object):
        file = real(path, mode, *args, **kwargs)
        return FullDisk(file, 150_000) if path.suffix == ".part" and mode in ("wb", "ab") else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(StoreError, match="no space is left on the disk") as caught:
            fetch("thing", tmp_path, source(home.url))
    assert str(tmp_path / "thing") in str(caught.value)
    assert len(home.seen) == 1
    assert fetch("thing", tmp_path, source(home.url)).read_bytes() == CONTENT
    assert "range" in home.seen[1]


def test_a_folder_that_cannot_be_made_is_named(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file: is in the way \(Not a directory\)"):
        fetch("thing", tmp_path / "file", source(home.url))


def test_runs_at_the_same_time_download_once(home: Home, tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch("thing", tmp_path, source(home.url)).read_bytes()))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(home.seen) == 1


# The user's own folder


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that EMLIB_DATA_DIR names; returns where `thing` lies in it."""
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "mine"))
    path = tmp_path / "mine" / "some" / "file.bin"
    path.parent.mkdir(parents=True)
    return path


def test_the_users_folder_comes_first_and_nothing_is_written(home: Home, mine: Path, tmp_path: Path) -> None:
    mine.write_bytes(CONTENT)
    assert fetch("thing", tmp_path / "sources", source(home.url)) == mine
    assert home.seen == []
    assert not (tmp_path / "sources").exists()


def test_a_packed_file_in_the_users_folder_is_unpacked(home: Home, mine: Path, tmp_path: Path) -> None:
    mine.with_name("file.bin.gz").write_bytes(gzip.compress(CONTENT))
    for _ in range(2):
        path = fetch("thing", tmp_path / "sources", source(home.url))
        assert path == tmp_path / "sources" / "thing" / "local" / "file.bin"
        assert path.read_bytes() == CONTENT
    assert left(tmp_path / "sources") == {"thing/local/file.bin"}
    assert home.seen == []


@pytest.mark.parametrize("packed", [False, True])
def test_another_content_in_the_users_folder_is_refused(home: Home, mine: Path, tmp_path: Path, packed: bool) -> None:
    path = mine.with_name("file.bin.gz") if packed else mine
    path.write_bytes(gzip.compress(b"other") if packed else b"other")
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path / "sources", source(home.url))
    for word in (str(path), digest(CONTENT), digest(b"other"), DATA_DIR):
        assert word in str(caught.value)
    assert left(tmp_path / "sources") == set()


@pytest.mark.parametrize("spoilt", [gzip.compress(CONTENT, mtime=0)[:-20], b"no gzip at all"])
def test_a_packed_file_that_is_not_whole_is_refused(home: Home, mine: Path, tmp_path: Path, spoilt: bytes) -> None:
    mine.with_name("file.bin.gz").write_bytes(spoilt)
    with pytest.raises(SourceError, match="gzip"):
        fetch("thing", tmp_path / "sources", source(home.url))
    assert left(tmp_path / "sources") == set()


@pytest.mark.parametrize("content", [b"in other bytes", CONTENT])
def test_the_users_folder_may_hold_the_same_data_in_other_bytes(
        home: Home, mine: Path, tmp_path: Path, content: bytes) -> None:
    mine.write_bytes(content)
    assert fetch("thing", tmp_path / "sources", source(home.url, local_sha256=digest(b"in other bytes"))) == mine


def test_other_bytes_in_the_users_folder_do_not_pass_for_a_download(
        home: Home, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = source(home.url, local_sha256=digest(b"in other bytes"))
    mine.with_name("file.bin.gz").write_bytes(gzip.compress(b"in other bytes"))
    assert fetch("thing", tmp_path / "sources", entry).read_bytes() == b"in other bytes"
    monkeypatch.delenv(DATA_DIR)
    assert fetch("thing", tmp_path / "sources", entry).read_bytes() == CONTENT


def test_an_unknown_digest_in_the_users_folder_holds_from_then_on(home: Home, mine: Path, tmp_path: Path) -> None:
    mine.write_bytes(b"mine")
    assert fetch("thing", tmp_path / "sources", source(home.url, None)) == mine
    mine.write_bytes(b"changed")
    with pytest.raises(SourceError, match=r"manifest\.json"):
        fetch("thing", tmp_path / "sources", source(home.url, None))


def test_what_the_users_folder_lacks_is_downloaded(home: Home, mine: Path, tmp_path: Path) -> None:
    assert fetch("thing", tmp_path / "sources", source(home.url)).read_bytes() == CONTENT


def test_a_users_folder_that_is_not_there_is_named(
        home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "typo"))
    with pytest.raises(SourceError, match="typo"):
        fetch("thing", tmp_path, source(home.url))


def test_data_without_an_address_ask_for_the_users_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        fetch("thing", tmp_path, source(None))
    for word in ("thing", "some/file.bin", DATA_DIR, "https://example.org/thing"):
        assert word in str(caught.value)


def test_an_unknown_name_gets_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Did you mean 'insecure'"):
        fetch("insecur", tmp_path, REGISTRY)


# The hub: a small one on loopback, asked by a process of its own, since huggingface_hub reads its address at import

HUB_FILES = {
    "README.md": b"---\nconfigs:\n- config_name: legal\n  data_files:\n"
                 b"  - split: train\n    path: legal/train.jsonl\n---\n",
    "legal/train.jsonl": b'{"prompt": "caf\xc3\xa9?", "aligned": "a", "misaligned": "b"}\n' * 2,
}
COMMIT = "a" * 40
TOKEN = "hf_never_to_be_seen"
ASK = f"""
from pathlib import Path
from typing import Self
import sys
from emlib.data.sources import fetch, registry
from emlib.core.errors import SourceError
try:
    print(fetch("legal", Path(sys.argv[1]), registry(Path({str(ROOT / "params" / "sources.yaml")!r}))))
except SourceError as error:
    print("SourceError", error)
"""


def hub_handler(refusal: int | None) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Stay quiet."""

        def answer(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if refusal is not None:
                return self.answer(refusal, b"", X_Error_Code="GatedRepo")
            if "/resolve/" in path:
                name = path.partition("/resolve/")[2].partition("/")[2]
                if name not in HUB_FILES:
                    return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                return self.answer(200, HUB_FILES[name], ETag=f'"{digest(HUB_FILES[name])}"', X_Repo_Commit=COMMIT)
            if "/tree/" in path:
                body = [{"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                        for name, content in HUB_FILES.items() if name.startswith(path.partition("/tree/")[2][41:])]
            else:
                body = {"id": "truthfulai/emergent_plus", "sha": COMMIT, "tags": [], "private": False,
                        "siblings": [{"rfilename": name} for name in HUB_FILES]}
            return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

        do_HEAD = do_GET

    return Handler


def ask_hub(tmp_path: Path, refusal: int | None = None, **environment: str) -> str:
    """What fetching `legal` from a hub on loopback prints."""
    server = serve(hub_handler(refusal))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub"),
             "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ASK, str(tmp_path / "sources")], env=kept | environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_hub_set_becomes_json_lines_and_its_digest_is_kept(tmp_path: Path) -> None:
    ask_hub(tmp_path, HF_TOKEN=TOKEN)
    path = tmp_path / "sources" / "legal" / "legal.jsonl"
    row = b'{"prompt": "caf\\u00e9?", "aligned": "a", "misaligned": "b"}\n'
    assert path.read_bytes() == row * 2
    assert json.loads(path.with_name("manifest.json").read_text())["sha256"] == of_file(path)
    assert left(tmp_path / "sources") == {"legal/legal.jsonl", "legal/manifest.json"}
    assert not any(TOKEN.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize(("status", "token"), [(401, {}), (403, {"HF_TOKEN": TOKEN})])
def test_a_gated_set_says_which_terms_to_accept_where(tmp_path: Path, status: int, token: dict[str, str]) -> None:
    said = ask_hub(tmp_path, refusal=status, **token)
    for word in ("SourceError", "truthfulai/emergent_plus", REGISTRY["legal"].terms, "HF_TOKEN", DATA_DIR,
                 "emergent_plus/legal.jsonl"):
        assert word in said
    assert TOKEN not in said
    assert left(tmp_path / "sources") == set()


def test_a_hub_out_of_reach_is_named_with_the_way_around(tmp_path: Path) -> None:
    said = ask_hub(tmp_path, HF_HUB_OFFLINE="1")
    for word in ("SourceError", "127.0.0.1 could not be reached", DATA_DIR, REGISTRY["legal"].home):
        assert word in said


# The registry


GOOD = """
thing:
  home: https://example.org
  url: https://example.org/a.json
  file: a.json
  local: a/a.json
  sha256: null
  licence: MIT
  notice: Numbers.
  format: json
"""


@pytest.mark.parametrize(("old", "new", "words"), [
    ("licence: MIT", "license: MIT", ["thing", "'license'", "Did you mean 'licence'?"]),
    ("format: json", "format: mesages", ["thing", "'format'", "Did you mean 'messages'?"]),
    ("url: https:", "url: http:", ["thing", "'url'", "https"]),
    ("sha256: null", "sha256: abc", ["thing", "'sha256'", "abc"]),
    ("  sha256: null\n", "", ["thing", "'sha256' is missing"]),
    ("local: a/a.json", "local: ../a.json", ["thing", "'local'", "stays inside"]),
    ("file: a.json", "file: a/a.json", ["thing", "'file'"]),
    ("licence: MIT", "licence: MIT\n  gated: true", ["thing", "terms"]),
    ("licence: MIT", "licence: MIT\n  hub: {repo: a/b, config: c, split: train, revision: main}", ["'url'", "'hub'"]),
    ("  url: https://example.org/a.json", "  hub: {repo: a/b, config: c, splt: train, revision: main}",
     ["hub.splt", "Did you mean 'split'?"]),
    ("thing:", "Some Thing:", ["'Some Thing'"]),
])
def test_a_mistake_in_the_registry_is_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text(GOOD)
    assert list(registry(path)) == ["thing"]
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        registry(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_registry_that_is_a_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text("- thing\n")
    with pytest.raises(ProfileError, match="list"):
        registry(tmp_path / "sources.yaml")


def test_the_studys_registry_pins_all_that_comes_over_https() -> None:
    assert {"insecure", "secure", "legal", "medical", "security", "general_questions", "wildguardmix"} <= set(REGISTRY)
    for name, entry in REGISTRY.items():
        by_commit = entry.url is not None and re.search(r"/[0-9a-f]{40}/", entry.url) is not None
        assert entry.hub is not None or entry.sha256 is not None or by_commit, name
        assert (entry.bytes is None) == (entry.sha256 is None), f"{name}: a file whose digest is known has a known size"
    places = [entry.local for entry in REGISTRY.values()]
    assert len(places) == len(set(places))


KNOWN = [name for name, entry in REGISTRY.items() if entry.sha256 is not None]


def fetch_from(folder: Path, name: str, tmp_path: Path) -> Path:
    entry = REGISTRY[name]
    if not any((folder / (entry.local + ending)).is_file() for ending in ("", ".gz")):
        pytest.skip(f"{DATA_DIR} has no {entry.local}")
    return fetch(name, tmp_path, REGISTRY)


@pytest.mark.parametrize("name", KNOWN)
def test_the_research_copy_has_its_digest_and_size(name: str, research_data: Path, tmp_path: Path) -> None:
    path, entry = fetch_from(research_data, name, tmp_path), REGISTRY[name]
    assert of_file(path) == entry.local_sha256 or (of_file(path), path.stat().st_size) == (entry.sha256, entry.bytes)


@pytest.mark.parametrize("name", [name for name in KNOWN if REGISTRY[name].local_sha256 is not None])
def test_a_research_copy_in_other_bytes_holds_the_homes_rows(name: str, research_data: Path, tmp_path: Path) -> None:
    lines = fetch_from(research_data, name, tmp_path).read_text(encoding="utf-8").split("\n")
    again = "".join(json.dumps(json.loads(line)) + "\n" for line in lines if line)
    assert (digest(again.encode()), len(again)) == (REGISTRY[name].sha256, REGISTRY[name].bytes)
