"""A vLLM server of one's own, on a port of this machine, ended with the work, also where that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from emlib.config import FolderModel, HubModel, ModelSpec, WheelModel
from emlib.core.errors import EmlibError
from emlib.core.progress import say
from emlib.models import hub, wheel
from emlib.models.identity import model_folder

BASE = "base"  # what the server calls the model without an adapter
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that its kernels take
PATIENCE = 1800.0  # seconds until it must have loaded its model
SHARE = 0.4  # of the GPU's memory: training, and the model it is checked against, need the rest
KEEPER = Path(__file__).with_name("vllm_keeper.py")


def arguments(spec: ModelSpec, cache: Path, rank: int, modules: Iterable[str], max_length: int, port: int,
              together: int = 1, gpu: bool = True) -> list[str]:
    """What the program `vllm` is called with.

    Args:
        spec: the model.
        cache: where it was converted to, or downloaded.
        rank: the largest of its adapters.
        modules: the layers that they change. Where all are allowed, the head is one of them, with which vLLM computes
            the log-probabilities of prompts wrongly, or on a CPU not at all (its issues 29955 and 51594).
        max_length: tokens of prompt and answer.
        port: where it listens.
        together: adapters that may be in one batch.
        gpu: whether there is one. Without it, a prompt that is read in two parts ends the engine where its request has
            a seed, as all of ours do ("CPU Generator does not use offset"), so that prompts are read whole.

    Raises:
        EmlibError: an adapter of this rank is larger than it takes.
    """
    fitting = [size for size in RANKS if size >= rank]
    if not fitting:
        raise EmlibError(f"vLLM takes adapters up to rank {RANKS[-1]}, and lora.rank is {rank}. Set backend.generation "
                         "and backend.scoring to 'transformers'.")
    return ["serve", *_source(spec, cache), "--dtype", spec.dtype, "--served-model-name", BASE,
            "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm",
            "--max-model-len", str(max_length), "--gpu-memory-utilization", str(SHARE),
            "--enable-lora", "--max-lora-rank", str(fitting[0]), "--max-loras", str(together),
            "--lora-target-modules", *sorted(set(modules)),
            *([] if gpu else ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(2048, max_length))])]


@contextmanager
def serving(program: Path, told: Sequence[str], port: int, log: Path, patience: float = PATIENCE) -> Iterator[str]:
    """The server's address, from when it is ready; it ends with this, and its output stays in `log`.

    Raises:
        EmlibError: it ended by itself, or was not ready in time; with the end of what it said.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # No key but the hub's goes to it, and no package of this environment; adapters may be loaded while it runs.
    environment = {name: value for name, value in os.environ.items()
                   if not name.endswith("_API_KEY") and name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-I", str(KEEPER), str(program), *told], stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True, env=environment | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"})
    try:
        _wait(server, port, log, patience)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(server)


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _source(spec: ModelSpec, cache: Path) -> list[str]:
    if isinstance(spec, HubModel):
        return [spec.repo, "--revision", hub.commit(spec, cache), "--tokenizer-revision", hub.commit(spec, cache)]
    if isinstance(spec, FolderModel):
        return [str(model_folder(spec))]
    assert isinstance(spec, WheelModel), "a model built in code lies nowhere"
    return [str(wheel.converted(spec, cache))]


def _wait(server: subprocess.Popen[bytes], port: int, log: Path, patience: float) -> None:
    say(f"starting vLLM; its log is {log}")
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if server.poll() is not None:
            raise EmlibError(f"vLLM ended with code {server.returncode} before it was ready. {_tail(log)}")
        with suppress(httpx.HTTPError):  # it does not listen yet; if it never does, its log is shown below
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise EmlibError(f"vLLM was not ready after {patience:.0f} s. {_tail(log)}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End it with all its processes: its engine is one of its own, and holds the GPU's memory."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # all gone
            os.killpg(server.pid, how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)


def _tail(log: Path) -> str:
    return f"The end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:])
