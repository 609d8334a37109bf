"""The data type that a study computes in, where its profile says `dtype: auto`.

A study's first job that computes decides it and records it in the folder of results, so that results which are carried
to another processor stay the same study. The keys of its artefacts contain the type itself, never `auto`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from filelock import FileLock

from emlib.config import Profile, load_profile
from emlib.config.words import ComputeDtype
from emlib.core import gpus, machine, paths
from emlib.core.errors import StoreError
from emlib.core.files import disk_errors, write_text
from emlib.study.ownership import base_of

RECORD = "dtype.txt"
TYPES = get_args(ComputeDtype)


def resolved(profile: Profile, study: str) -> Profile:
    """Return the profile with a data type instead of `auto`: the one that the study records, or else this machine's.

    A study with overrides takes the plain study's type if it has none of its own, so that the two share artefacts.

    Raises:
        StoreError: a record holds something else than a data type.
    """
    if profile.model.dtype != "auto":
        return profile
    dtype = recorded(paths.runs() / study) or recorded(paths.runs() / base_of(study)) or fastest()
    model: Any = profile.model.model_copy(update={"dtype": dtype})
    return profile.model_copy(update={"model": model})


def decide(name: str) -> None:
    """Record the data type of `auto` for a study's first job that computes, before it does; a record stays.

    Not for the command that starts jobs elsewhere, such as on a cluster's login node, which may have no GPU.
    """
    profile, study = load_profile(name), paths.study_name(name)
    if profile.model.dtype == "auto":
        _create(paths.runs() / study, resolved(profile, study).model.dtype)


def record(profile: Profile, study: str, *, auto: bool = False) -> None:
    """Record the data type of a resolved profile in its study's folder of results; that of `auto` never changes.

    Raises:
        StoreError: `auto` has another type by now, which another process has recorded.
    """
    folder, dtype = paths.runs() / study, profile.model.dtype
    if auto:
        _create(folder, dtype)
    found = recorded(folder)
    if found == dtype:
        return
    if auto:
        raise StoreError(f"{folder / RECORD}: another process has recorded {found} for this study since it was opened "
                         f"here, with {dtype}. Start this again: it computes in {found} then.")
    write_text(folder / RECORD, f"{dtype}\n")


def _create(folder: Path, dtype: str) -> None:
    """Write the record if there is none; of two processes on two machines one writes it."""
    if recorded(folder) is None:
        with disk_errors(folder / RECORD):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{RECORD}.lock"):
                if recorded(folder) is None:
                    write_text(folder / RECORD, f"{dtype}\n")


def recorded(folder: Path) -> str | None:
    """Return the data type that a folder of results records; None without a record."""
    path = folder / RECORD
    if not path.is_file():
        return None
    dtype = path.read_text(encoding="utf-8", errors="replace").strip()
    if dtype not in TYPES:
        raise StoreError(f"{path}: {dtype[:40]!r} is no data type. Write {' or '.join(TYPES)}, whichever the results "
                         "in this folder were made with, or remove the file if there are none.")
    return dtype


def fastest() -> ComputeDtype:
    """Return bfloat16 if this machine has a GPU or a processor that computes in it, else float32."""
    return "bfloat16" if gpus.devices() or machine.computes_bfloat16() else "float32"
