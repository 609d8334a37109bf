"""A private vLLM server on a local port, which ends with the study's process, even if that is killed."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from emlib.config import ModelSpec
from emlib.core.addresses import ask_directly
from emlib.core.child import child
from emlib.core.errors import EmlibError
from emlib.core.files import end_of
from emlib.core.progress import say
from emlib.core.temporary import socket_folder
from emlib.models.source import source_of

BASE = "base"  # the served name of the model without an adapter
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # supported by vLLM's kernels
PATIENCE = 1800.0  # seconds within which it must have loaded its model
SHARE = 0.4  # of the GPU's memory: training, and the reference for the agreement check, need the rest


def arguments(spec: ModelSpec, cache: Path, rank: int, modules: Iterable[str], max_length: int, port: int,
              together: int = 1, gpu: bool = True) -> list[str]:
    """Return the command-line arguments of the program `vllm`, for adapters of up to `rank`, `together` in one batch.

    The layers `modules` that adapters change are listed, because vLLM's default includes the head, with which it
    computes prompt log-probabilities wrongly, or on a CPU not at all (its issues 29955 and 51594). On a CPU, chunked
    prefill of a request with a seed, as all of ours have, stops the engine ("CPU Generator does not use offset"), so it
    is switched off.

    Raises:
        EmlibError: vLLM supports no adapter of this rank.
    """
    fitting = [size for size in RANKS if size >= rank]
    if not fitting:
        raise EmlibError(f"vLLM supports adapters up to rank {RANKS[-1]}, and lora.rank is {rank}. Set "
                         "backend.generation and backend.scoring to 'transformers'.")
    source, where = source_of(spec, cache)
    commit = ["--revision", where["revision"], "--tokenizer-revision", where["revision"]] if where else []
    return ["serve", source, *commit, "--dtype", spec.dtype, "--served-model-name", BASE,
            "--host", "127.0.0.1", "--port", str(port), "--generation-config", "vllm",
            "--max-model-len", str(max_length), "--gpu-memory-utilization", str(SHARE),
            "--enable-lora", "--max-lora-rank", str(fitting[0]), "--max-loras", str(together),
            "--lora-target-modules", *sorted(set(modules)),
            *([] if gpu else ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(2048, max_length))])]


@contextmanager
def serving(program: Path, options: Sequence[str], port: int, log: Path, patience: float = PATIENCE) -> Iterator[str]:
    """Run the server inside the context, and give its address once it is ready; its output is kept in `log`.

    Raises:
        EmlibError: the server ended, or was not ready in time; the message contains the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ask_directly(f"http://127.0.0.1:{port}")
    # Of all keys it gets the hub's only; adapters may be loaded while it runs.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment.setdefault("VLLM_RPC_BASE_PATH", str(socket_folder(len("/") + 36)))  # its sockets are called by UUIDs
    with log.open("wb") as out, child([program, *options], environment | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"},
                                      out) as server:
        _wait(server, port, log, patience)
        yield f"http://127.0.0.1:{port}"


def free_port() -> int:
    """Return a local port that is not in use now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path, patience: float) -> None:
    say(f"starting vLLM; its log is {log}")
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if server.poll() is not None:
            raise EmlibError(f"vLLM ended with code {server.returncode} before it was ready. {end_of(log)}")
        with suppress(httpx.HTTPError):  # it does not listen yet; if it never does, the error below shows its log
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    raise EmlibError(f"vLLM was not ready after {patience:.0f} s. {end_of(log)}")
