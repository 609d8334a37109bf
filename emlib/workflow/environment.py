"""A check of this machine: its resources, packages and environment variables."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path

import pandas as pd

from emlib.core import paths
from emlib.core.machine import cpus
from emlib.make.backends import vllm_program

PACKAGES = ("torch", "transformers", "peft")


def check() -> pd.DataFrame:
    """Tabulate what the study may use, what this machine has, and what it is needed for."""
    folder = next(path for path in (paths.runs(), *paths.runs().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rows = [
        ("Python", platform.python_version(), "3.11 or newer is needed"),
        ("CPU cores", str(cpus()), "the demo was measured on 2"),
        ("memory", f"{memory:.0f} GiB", "the demo needs 6, or 3 with JOBS=1"),
        ("free disk", f"{free:.0f} GiB", "the demo needs 1, and .venv 4"),
        ("GPU", _gpu(), "needed by the paper's profiles, not by the demo"),
        ("HF_TOKEN", _set("HF_TOKEN"), "needed only for gated data sets"),
        ("OPENAI_API_KEY", _set("OPENAI_API_KEY"), "not needed by the demo"),
        ("EMLIB_DATA_DIR", _set("EMLIB_DATA_DIR"), "a folder with data sets, instead of downloading them"),
    ]
    rows += [(name, importlib.metadata.version(name), "pinned in requirements/") for name in PACKAGES]
    rows += [("unsloth", "installed" if importlib.util.find_spec("unsloth") else "not installed",
              "fine-tunes on a GPU if installed (docs/backends.md)"),
             ("vllm", str(vllm_program() or "not installed"), "samples answers on a GPU; `make vllm` installs it")]
    return pd.DataFrame(rows, columns=["what", "here", "note"])


def _set(variable: str) -> str:
    """Whether a variable is set. Its value is never shown, because it may be a secret."""
    return "set" if os.environ.get(variable) else "not set"


def _gpu() -> str:
    """Return the first GPU's name. Imports torch only if there is a driver, because that is slow."""
    if not (Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()):
        return "none"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "a driver that this torch does not support"
