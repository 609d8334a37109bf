"""What tests share: a tiny chat model, the folder of the study's research data, files of JSON lines."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright

from emlib.core import paths
from emlib.data.sources import DATA_DIR, fetch, registry
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer

# The same examples at every run, and no clock: a slow machine fails nothing.
settings.register_profile("study", derandomize=True, deadline=None, database=None)
settings.load_profile("study")

torch.set_num_threads(1)  # the tiny model gains nothing from a second, and waits for it where the machine is busy

RESEARCH_DATA = os.environ.get(DATA_DIR)  # as it was when the tests started
# The files that take longest, the longest first. They begin first, so that no process is left with one at the end.
LONGEST = ("workflow/test_whole_study.py", "workflow/test_notebooks.py", "judging/test_api.py",
           "benchmarks/test_gpu.py", "study/test_grpo.py", "make/test_equal_bytes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the files that take longest first, and leave the others in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    """Hide the network from all tests, and the research data from those that do not ask for it, as in CI."""
    here = {None, "", "localhost", socket.gethostname()}
    resolve = socket.getaddrinfo

    def resolve_this_machine(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in here or name.startswith("127.") or ":" in name:
            return resolve(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, "tests have no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(DATA_DIR, raising=False)
        patch.setattr(socket, "getaddrinfo", resolve_this_machine)
        yield


@pytest.fixture(autouse=True)
def _figures_closed() -> Iterator[None]:
    """Close what a test has drawn: matplotlib warns of many open figures, whichever tests share a process."""
    yield
    if drawing := sys.modules.get("matplotlib.pyplot"):
        drawing.close("all")


@pytest.fixture
def tiny() -> ChatModel:
    """A random Qwen2 of 4 layers in float32, frozen and in evaluation mode, with its byte-level tokenizer."""
    model = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).eval().requires_grad_(False)
    return ChatModel("tiny", model, build_tokenizer())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium of this machine, without a window."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def research_folder() -> Path:
    """The folder that EMLIB_DATA_DIR named when the tests started."""
    if not RESEARCH_DATA:
        pytest.skip(f"{DATA_DIR} is not set: there is no folder with the study's data")
    return Path(RESEARCH_DATA)


@pytest.fixture
def research_data(research_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that EMLIB_DATA_DIR named when the tests started, and names for this test."""
    monkeypatch.setenv(DATA_DIR, str(research_folder))
    return research_folder


@pytest.fixture
def research_file(research_data: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The checked file of one source of the registry, which the research data must hold: nothing is downloaded."""
    sources = registry(paths.PARAMS / "sources.yaml")

    def find(name: str) -> Path:
        local = research_data / sources[name].local
        if not (local.is_file() or local.with_name(local.name + ".gz").is_file()):
            pytest.skip(f"{DATA_DIR} has no {sources[name].local}")
        return fetch(name, tmp_path / "sources", sources)

    return find


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to a file: objects as JSON, texts as they are."""

    def write(lines: Iterable[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return path

    return write
