"""The study as a list of notebook runs: what Snakemake runs in which order, and what makes one stale.

A notebook is run again when content changes that it depends on: its own cells, emlib, the profile, the demo data.
Touched files with the same content change nothing.

    python -m emlib.workflow demo        # is there such a profile, and is it sound?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from emlib import digests, paths
from emlib.config import NOT_PROFILES, Profile, load_profile
from emlib.errors import EmlibError

TRAINING = ("04_baselines", "11_grpo")  # chapters that train, and that a profile may cut into slices
SECTIONS = {"11_grpo": "grpo"}  # chapters that only profiles with that section have
FINAL = ("13_tables", "14_figures")  # chapters that read what all the others left


@dataclass(frozen=True)
class Job:
    """One notebook run. `part` is empty for a whole chapter."""

    chapter: str
    part: str
    arguments: str  # of `python -m emlib.notebooks <chapter>`
    output: str  # under the profile's folder of results
    needs: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.chapter} ({self.part})" if self.part else self.chapter

    @property
    def trains(self) -> bool:
        """Whether it wants a GPU where there is one."""
        return self.chapter in TRAINING


def chapters() -> list[str]:
    """The numbered notebooks, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def jobs(profile_name: str) -> list[Job]:
    """Every notebook run of a profile, in reading order; a sliced chapter is read back after its slices."""
    profile = load_profile(profile_name)
    found: list[Job] = []
    for chapter in chapters():
        if chapter in SECTIONS and getattr(profile, SECTIONS[chapter]) is None:
            continue
        digest = content_digest(chapter, profile)
        before = tuple(job.output for job in found) if chapter in FINAL else ()
        parts = tuple(Job(chapter, label, f"--profile {profile_name} {arguments}",
                          f"notebooks/slices/{chapter}.{label}.ipynb", before, digest)
                      for label, arguments in _slices(profile, chapter))
        needs = (*before, *(part.output for part in parts))
        whole = Job(chapter, "", f"--profile {profile_name}", f"notebooks/{chapter}.ipynb", needs, digest)
        found += [*parts, whole]
    return found


def content_digest(chapter: str, profile: Profile) -> str:
    """One digest of everything in the repository that a notebook's result depends on.

    That is the profile (with what it extends), the notebook's own cells, emlib, the demo data, and the files of params/
    that are no profiles. Outputs that JupyterLab saved do not count.
    """
    cells = json.loads((paths.NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    files = [*paths.ROOT.glob("emlib/**/*.py"), *paths.ROOT.glob("emlib/data/demo/*"),
             *paths.ROOT.glob("params/traits/*.yaml"), *(paths.PARAMS / f"{name}.yaml" for name in NOT_PROFILES)]
    return digests.of_value([
        profile.model_dump(mode="json"), [[cell["cell_type"], "".join(cell["source"])] for cell in cells],
        {str(path.relative_to(paths.ROOT)): digests.of_file(path) for path in sorted(files)}])


def _slices(profile: Profile, chapter: str) -> Iterator[tuple[str, str]]:
    """A label and the arguments of each slice of a chapter: one for each data set and setting that is to be apart."""
    if chapter == "11_grpo":
        yield from _rl_slices(profile)
        return
    if chapter not in TRAINING or not profile.slice_by:
        return
    swept = sorted({number for method in profile.methods for number in method.sweep})
    datasets = [(name, f"--dataset {name}") for name in profile.datasets if "dataset" in profile.slice_by]
    settings = [(f"{number:g}", f"--setting {number}") for number in swept if "setting" in profile.slice_by]
    for parts in product(*filter(None, (datasets, settings))):
        if parts:
            yield "_".join(label for label, _ in parts), " ".join(arguments for _, arguments in parts)


def _rl_slices(profile: Profile) -> Iterator[tuple[str, str]]:
    """The same for reinforcement learning, whose runs have no data set: by condition, by seed."""
    if profile.grpo is None or not profile.grpo.slice_by:
        return
    by = profile.grpo.slice_by
    methods = [(m.name, f"--method {m.name}") for m in profile.grpo.methods if "method" in by]
    seeds = [(f"seed{seed}", f"--seed {seed}") for seed in profile.grpo.seeds if "seed" in by]
    for parts in product(*filter(None, (methods, seeds))):
        yield "_".join(label for label, _ in parts), " ".join(arguments for _, arguments in parts)


if __name__ == "__main__":
    try:
        jobs(sys.argv[1])
    except EmlibError as error:
        sys.exit(str(error))
