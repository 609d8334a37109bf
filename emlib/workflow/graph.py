"""The study as a list of notebook runs: what Snakemake runs in which order, and what makes one stale.

A notebook is run again when content changes that it depends on: its own cells, emlib, the profile, the demo data.
Touched files with the same content change nothing.

    python -m emlib.workflow.graph demo        # is there such a profile, and is it sound?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from emlib.config import NOT_PROFILES, JobLimits, OpenAIJudge, Profile, datasets_of, load_profile
from emlib.core import digests, paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.defenses.interleaving import Interleaving

# Chapters about one kind of defense: a profile without it does without them.
KINDS = {"02_persona_vectors": "persona_vector", "05_kl": "kl", "06_ldifs": "ldifs",
         "07_persona_steering": "persona_vector", "08_inoculation": "inoculation", "09_interleaving": "interleaving"}
# Chapters whose work begins with what another one made. Run at once, one of them would wait for the other.
AFTER = {"05_kl": ("04_baselines",), "06_ldifs": ("04_baselines",),
         "07_persona_steering": ("02_persona_vectors", "04_baselines"), "08_inoculation": ("04_baselines",),
         "09_interleaving": ("03_data_selection", "04_baselines"),
         "10_benign_tasks": ("02_persona_vectors", "03_data_selection")}
# Chapters that a profile may cut into slices.
SLICED = ("03_data_selection", "04_baselines", "05_kl", "06_ldifs", "07_persona_steering", "08_inoculation",
          "09_interleaving", "10_benign_tasks")
# Chapters that only profiles with that section have.
SECTIONS = {"10_benign_tasks": "benign", "11_grpo": "grpo", "15_your_own_data": "own"}
# Chapters that want a GPU where there is one.
COMPUTING = ("02_persona_vectors", *SLICED, "11_grpo", "15_your_own_data")
# Chapters that read what all the others left.
FINAL = ("12_costs", "13_tables", "14_figures", "15_your_own_data", "16_explore")
JUDGED = tuple(chapter for chapter in COMPUTING if chapter not in ("10_benign_tasks", "11_grpo"))
READING = JobLimits(memory_gib=4, hours=1)  # for a chapter that computes nothing


@dataclass(frozen=True)
class Job:
    """One notebook run. `part` is empty for a whole chapter."""

    chapter: str
    part: str
    arguments: str  # of `python -m emlib.workflow.notebooks <chapter>`
    output: str  # under the profile's folder of results
    needs: tuple[str, ...]
    digest: str
    limits: JobLimits
    pays: bool  # whether it asks a judge that costs money

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.chapter} ({self.part})" if self.part else self.chapter

    @property
    def trains(self) -> bool:
        """Whether it wants a GPU where there is one."""
        return self.chapter in COMPUTING

    @property
    def log(self) -> str:
        """Where it leaves what its notebook says, under the profile's folder of results."""
        return f"logs/{self.chapter}{'.' if self.part else ''}{self.part}.log"

    @property
    def error(self) -> str:
        """Where it leaves the end of its last error, in the same folder."""
        return self.log.removesuffix(".log") + ".error"

    @property
    def resources(self) -> dict[str, int]:
        """What Snakemake reckons with, in its words: MB, minutes. What a job does not need is not named."""
        return {"mem_mb": round(self.limits.memory_gib * 1024), "runtime": round(self.limits.hours * 60),
                **({"gpu": self.limits.gpus} if self.trains else {}), **({"judge": 1} if self.pays else {})}


def chapters() -> list[str]:
    """The numbered notebooks, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def jobs(profile_name: str) -> list[Job]:
    """Every notebook run of a profile, in reading order; a sliced chapter is read back after its slices."""
    profile = load_profile(profile_name)
    found: list[Job] = []
    for chapter in (chapter for chapter in chapters() if concerns(profile, chapter)):
        digest = content_digest(chapter, profile)
        limits = profile.job if chapter in COMPUTING else READING
        pays = isinstance(profile.judge, OpenAIJudge) and chapter in JUDGED
        before = tuple(job.output for job in found if chapter in FINAL or job.chapter in AFTER.get(chapter, ()))
        parts = tuple(Job(chapter, label, f"--profile {profile_name} {arguments}",
                          f"notebooks/slices/{chapter}.{label}.ipynb", before, digest, limits, pays)
                      for label, arguments in _slices(profile, chapter))
        needs = (*before, *(part.output for part in parts))
        whole = Job(chapter, "", f"--profile {profile_name}", f"notebooks/{chapter}.ipynb", needs, digest,
                    limits, pays)
        found += [*parts, whole]
    return found


def chosen(found: list[Job], only: str = "") -> list[Job]:
    """The jobs whose log, without its ending, fits a pattern such as `04*` or `*.legal_*`; all where there is none.

    Raises:
        ProfileError: none does.
    """
    fitting = [job for job in found if not only or fnmatchcase(job.log.split("/")[1].removesuffix(".log"), only)]
    if not fitting:
        names = ", ".join(job.log.split("/")[1].removesuffix(".log") for job in found[:12])
        raise ProfileError(f"No job is named like '{only}'. They are named {names}, and so on.")
    return fitting


def concerns(profile: Profile, chapter: str) -> bool:
    """Whether a chapter has anything to do for a profile: the chapters of a defense need a method that has it."""
    defenses = [defense for method in profile.methods for defense in method.defenses]
    if chapter == "03_data_selection":
        return any(isinstance(defense, Interleaving) and defense.scored for defense in defenses)
    if chapter in SECTIONS:
        return getattr(profile, SECTIONS[chapter]) is not None
    return chapter not in KINDS or KINDS[chapter] in {defense.kind for defense in defenses}


def content_digest(chapter: str, profile: Profile) -> str:
    """One digest of everything in the repository that a notebook's result depends on.

    That is the profile (with what it extends), the notebook's own cells, emlib, the demo data, and the files of params/
    that are no profiles. Outputs that JupyterLab saved do not count.
    """
    cells = json.loads((paths.NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    files = [*paths.ROOT.glob("emlib/**/*.py"), *paths.ROOT.glob("emlib/data/demo/*"),
             *paths.ROOT.glob("params/traits/*.yaml"), *(paths.PARAMS / f"{name}.yaml" for name in NOT_PROFILES)]
    values = profile.model_dump(mode="json", exclude={"job"})
    return digests.of_value([
        values, [[cell["cell_type"], "".join(cell["source"])] for cell in cells],
        {str(path.relative_to(paths.ROOT)): digests.of_file(path) for path in sorted(files)}])


def _slices(profile: Profile, chapter: str) -> Iterator[tuple[str, str]]:
    """A label and the arguments of each slice of a chapter: one for each data set, setting and seed to be apart."""
    if chapter == "11_grpo":
        yield from _rl_slices(profile)
        return
    if chapter not in SLICED or not profile.slice_by:
        return
    names, swept = _benign_grid(profile) if chapter == "10_benign_tasks" else (profile.datasets, sorted({
        number for method in profile.methods for number in method.sweep
        if any(defense.kind == KINDS.get(chapter) for defense in method.defenses)}))
    datasets = [(name, f"--dataset {name}") for name in names if "dataset" in profile.slice_by]
    settings = [(f"{number:g}", f"--setting {number}") for number in swept if "setting" in profile.slice_by]
    drawn = profile.seeds if chapter != "10_benign_tasks" or profile.benign is None else profile.benign.seeds
    seeds = [(f"seed{seed}", f"--seed {seed}") for seed in drawn if "seed" in profile.slice_by]
    for parts in product(*filter(None, (datasets, settings, seeds))):
        if parts:
            yield "_".join(label for label, _ in parts), " ".join(arguments for _, arguments in parts)


def _benign_grid(profile: Profile) -> tuple[Sequence[str], list[float]]:
    """The benign tasks, a slice each, whatever is swept on them: few methods have a sweep there."""
    return ((), []) if profile.benign is None else (tuple(datasets_of(profile.benign)), [])


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
        chosen(jobs(sys.argv[1]), *sys.argv[2:])
    except EmlibError as error:
        sys.exit(str(error))
