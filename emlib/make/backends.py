"""Which library trains, draws answers and scores: chosen in one place, with reasons, and without importing any of them.

Unsloth changes transformers for the whole process as soon as it is imported, and vLLM wants another torch: so the
first works in a process of its own and the second in an environment of its own, behind a server. What cannot be had is
told in words; `auto` then goes on with transformers and keeps the reason, a library that was named stops the study.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emlib.config import Backend, HubModel, ModelSpec, TinyModel
from emlib.core import gpus, paths
from emlib.core.errors import ProfileError

PLAIN = "transformers"
VLLM = "EMLIB_VLLM"  # the program `vllm`, where it is neither in .venv-vllm nor on the path


@dataclass(frozen=True)
class Choice:
    """What runs, in how many processes, and why it is not what would have been taken first."""

    name: str
    why: str = ""
    processes: int = 1

    @property
    def facts(self) -> dict[str, Any]:
        """What an artefact's manifest says of it."""
        return {"backend": self.name, **({"backend_why": self.why} if self.why else {}),
                **({"processes": self.processes} if self.processes > 1 else {})}


@dataclass(frozen=True)
class Machine:
    """What this machine has, as far as the choice depends on it; found without loading any of it."""

    gpu: bool
    packages: frozenset[str]
    vllm: Path | None

    @classmethod
    def here(cls) -> Machine:
        """What is here. A GPU that CUDA_VISIBLE_DEVICES hides is none."""
        there = {name for name in ("unsloth", "bitsandbytes") if importlib.util.find_spec(name) is not None}
        return cls(bool(gpus.devices()), frozenset(there), vllm_program())


def vllm_program() -> Path | None:
    """The program that starts a vLLM server: the one that is named, that of `make vllm`, or one on the path."""
    for found in (os.environ.get(VLLM), paths.ROOT / ".venv-vllm" / "bin" / "vllm", shutil.which("vllm")):
        if found and Path(found).is_file():
            return Path(found)
    return None


def training(wanted: str, model: ModelSpec, machine: Machine | None = None, processes: int = 1) -> Choice:
    """What trains an adapter, spread over so many processes.

    Raises:
        ProfileError: Unsloth was named, and cannot be had or cannot do this; with the reason.
    """
    choice = _chosen("training", wanted, "unsloth", lambda: _against_unsloth(
        model, machine or Machine.here(), processes))
    return replace(choice, processes=processes)


def drawing(stage: str, backend: Backend, model: ModelSpec, machine: Machine | None = None) -> Choice:
    """What draws answers or scores rows; `stage` is `generation` or `scoring`.

    Raises:
        ProfileError: vLLM was named, and cannot be had; with the reason.
    """
    wanted = getattr(backend, stage)
    return _chosen(stage, wanted, "vllm", lambda: _against_vllm(
        wanted, model, backend.base_url, machine or Machine.here()))


def _chosen(stage: str, wanted: str, faster: str, against: Callable[[], list[str]]) -> Choice:
    if wanted == PLAIN:
        return Choice(PLAIN)
    reasons = against()
    if not reasons:
        return Choice(faster)
    if wanted == faster:
        raise ProfileError(f"backend.{stage} is '{faster}', which cannot be had: {'; '.join(reasons)}. Mend that, or "
                           f"set backend.{stage} to 'auto', which then takes {PLAIN}.")
    return Choice(PLAIN, f"no {faster}: {'; '.join(reasons)}")


def _against_unsloth(model: ModelSpec, machine: Machine, processes: int) -> list[str]:
    said = []
    if not machine.gpu:
        said.append("there is no GPU")
    if processes > 1:
        said.append(f"it trains on one GPU, and job.gpus is {processes}")
    if "unsloth" not in machine.packages:
        said.append("it is not installed (requirements/gpu.txt has it)")
    if isinstance(model, TinyModel):
        said.append("it loads a model of the hub or of a folder, and this one is built in code")
    if model.dtype == "float32":
        said.append("its kernels compute in bfloat16, and the model's dtype is float32")
    return said


def _against_vllm(wanted: str, model: ModelSpec, base_url: str | None, machine: Machine) -> list[str]:
    """Where it is named, a program for CPUs does as well; what is not one says so when it is started."""
    said = []
    if isinstance(model, TinyModel):
        said.append("it loads a model of the hub or of a folder, and this one is built in code")
    if isinstance(model, HubModel) and model.load_in_4bit:
        said.append("it is to read the weights that training reads, and those are quantized while loading")
    if base_url is None and not machine.gpu and wanted == "auto":
        said.append("there is no GPU, and backend.base_url names no server")
    if base_url is None and machine.vllm is None:
        said.append(f"there is no program vllm (`make vllm` installs it, {VLLM} names one)")
    return said
