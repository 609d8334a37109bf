"""The choice of the libraries that train, sample answers and score rows, with reasons and without importing them.

Unsloth patches transformers in the whole process as soon as it is imported, and vLLM requires another version of torch.
So Unsloth runs in a subprocess, and vLLM in a separate environment as a server. If a library is not available, `auto`
uses transformers and records the reason; a library that the profile names stops the study instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emlib.config import Backend, HubModel, ModelSpec, TinyModel
from emlib.core import gpus, paths
from emlib.core.errors import ProfileError

TRANSFORMERS = "transformers"
VLLM = "EMLIB_VLLM"  # names the program `vllm`, if it is neither in .venv-vllm nor on the PATH
BUILT_IN_CODE = "it loads a model from the Hub or from a folder, and this one is built in code"


@dataclass(frozen=True)
class ChosenBackend:
    """A backend, the number of its processes, and the reason why a faster one is not used."""

    name: str
    why: str = ""
    processes: int = 1

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that an artefact's manifest records."""
        return {"backend": self.name, **({"backend_why": self.why} if self.why else {}),
                **({"processes": self.processes} if self.processes > 1 else {})}


@dataclass(frozen=True)
class Machine:
    """The parts of this machine on which the choice depends: a GPU, the package `unsloth`, and the program `vllm`."""

    gpu: bool
    unsloth: bool
    vllm: Path | None

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine without loading a library. A GPU hidden by CUDA_VISIBLE_DEVICES does not count."""
        return cls(bool(gpus.devices()), importlib.util.find_spec("unsloth") is not None, vllm_program())


def vllm_program() -> Path | None:
    """Return the program that starts a vLLM server: that of EMLIB_VLLM, of `make vllm`, or one on the PATH."""
    for found in (os.environ.get(VLLM), paths.ROOT / ".venv-vllm" / "bin" / "vllm", shutil.which("vllm")):
        if found and Path(found).is_file():
            return Path(found)
    return None


def training(wanted: str, model: ModelSpec, machine: Machine | None = None, processes: int = 1) -> ChosenBackend:
    """Choose the backend that trains an adapter in `processes` processes."""
    choice = _chosen("training", wanted, "unsloth", lambda: _against_unsloth(
        model, machine or Machine.here(), processes))
    return replace(choice, processes=processes)


def inference(stage: str, backend: Backend, model: ModelSpec, machine: Machine | None = None) -> ChosenBackend:
    """Choose the backend that samples answers or scores rows; `stage` is `generation` or `scoring`."""
    wanted = getattr(backend, stage)
    return _chosen(stage, wanted, "vllm", lambda: _against_vllm(
        wanted, model, backend.base_url, machine or Machine.here()))


def _chosen(stage: str, wanted: str, faster: str, against: Callable[[], list[str]]) -> ChosenBackend:
    """Choose the faster backend if nothing speaks against it.

    Raises:
        ProfileError: the profile names it, and it is not available; with the reasons.
    """
    if wanted == TRANSFORMERS:
        return ChosenBackend(TRANSFORMERS)
    reasons = against()
    if not reasons:
        return ChosenBackend(faster)
    if wanted == faster:
        raise ProfileError(f"backend.{stage} is '{faster}', which is not available: {'; '.join(reasons)}. Fix that, or "
                           f"set backend.{stage} to 'auto', which then uses {TRANSFORMERS}.")
    return ChosenBackend(TRANSFORMERS, f"no {faster}: {'; '.join(reasons)}")


def _against_unsloth(model: ModelSpec, machine: Machine, processes: int) -> list[str]:
    return _that_hold({
        "there is no GPU": not machine.gpu,
        f"it trains on one GPU, and job.gpus is {processes}": processes > 1,
        "it is not installed (requirements/gpu.txt has it)": not machine.unsloth,
        BUILT_IN_CODE: isinstance(model, TinyModel),
        "its kernels compute in bfloat16, and the model's dtype is float32": model.dtype == "float32"})


def _against_vllm(wanted: str, model: ModelSpec, base_url: str | None, machine: Machine) -> list[str]:
    """Return the reasons against vLLM. If the profile names it, a build for CPUs is accepted without a GPU."""
    return _that_hold({
        BUILT_IN_CODE: isinstance(model, TinyModel),
        "it must use the same weights as training, and these are quantized while loading":
            isinstance(model, HubModel) and model.load_in_4bit,
        "there is no GPU, and backend.base_url names no server":
            base_url is None and not machine.gpu and wanted == "auto",
        f"there is no program vllm (`make vllm` installs it, {VLLM} names one)":
            base_url is None and machine.vllm is None})


def _that_hold(reasons: Mapping[str, bool]) -> list[str]:
    return [reason for reason, holds in reasons.items() if holds]
