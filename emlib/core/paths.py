"""Where the study's files live. Nothing here is created; whoever writes makes the folder."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
DEMO_DATA = ROOT / "emlib" / "data" / "demo"


EFFECTIVE = "profile.yaml"  # in a folder of results: the profile they were made with, whole


def study_name(profile: str) -> str:
    """What a study's results are filed under: the profile's name, or that of the folder of results it was kept in."""
    path = Path(profile)
    if path.name == EFFECTIVE:
        return path.resolve().parent.name
    return path.stem if path.suffix == ".yaml" else profile


def runs() -> Path:
    """Results and the store; `EMLIB_RUNS_DIR` moves them (to a large or a shared disk)."""
    return Path(os.environ.get("EMLIB_RUNS_DIR", ROOT / "runs"))


def cache() -> Path:
    """Downloaded data sets and converted models; `EMLIB_CACHE_DIR` moves them."""
    return Path(os.environ.get("EMLIB_CACHE_DIR", ROOT / "data"))
