"""The study as a list of notebook runs: what Snakemake runs in which order, and what makes one stale.

Which notebooks a profile needs, after which others and in which slices, stands in the notebooks' own metadata
(`emlib.workflow.chapters`). One is run again when content changes that it depends on: its own cells, emlib, the profile
and what it names, the demo data. Touched files with the same content change nothing.

    python -m emlib.workflow.graph demo        # is there such a profile, and is it sound?
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from emlib.config import Benign, JobLimits, OpenAIJudge, Profile, datasets_of, load_profile
from emlib.core import digests, paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.study.ownership import refuse_others
from emlib.workflow.chapters import Chapter, chapter_of, chapters, concerns, read_notebook
from emlib.workflow.contents import contents_of

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
    trains: bool  # whether it wants a GPU where there is one

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.chapter} ({self.part})" if self.part else self.chapter

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


def jobs(profile_name: str) -> list[Job]:
    """Every notebook run of a profile, in reading order; a sliced chapter is read back after its slices.

    Raises:
        ProfileError: the profile is not sound, or its results would be filed among those of another one.
        NotebookError: what a notebook says of itself is not sound.
    """
    profile = load_profile(profile_name)
    refuse_others(profile_name)
    found: list[Job] = []
    contents = _contents(profile)
    for chapter in (chapter for chapter in chapters() if concerns(profile, chapter)):
        found += _jobs_of(chapter, profile, profile_name, _digest(chapter, contents), found)
    return found


def _jobs_of(chapter: str, profile: Profile, profile_name: str, digest: str, earlier: Sequence[Job]) -> Iterator[Job]:
    """The slices of a chapter, and the chapter as a whole."""
    about = chapter_of(chapter)
    limits = profile.job if about.gpu else READING
    pays = isinstance(profile.judge, OpenAIJudge) and about.judged
    before = tuple(job.output for job in earlier if about.after_all or job.chapter in about.after)
    parts = tuple(Job(chapter, label, f"--profile {profile_name} {arguments}",
                      f"notebooks/slices/{chapter}.{label}.ipynb", before, digest, limits, pays, about.gpu)
                  for label, arguments in _slices(profile, about))
    yield from parts
    yield Job(chapter, "", f"--profile {profile_name}", f"notebooks/{chapter}.ipynb",
              (*before, *(part.output for part in parts)), digest, limits, pays, about.gpu)


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


def content_digest(chapter: str, profile: Profile) -> str:
    """One digest of everything that a notebook's result depends on.

    That is the profile with the contents of all that it names, the notebook's own cells, emlib and the demo data.
    Outputs that JupyterLab saved do not count.
    """
    return _digest(chapter, _contents(profile))


def _digest(chapter: str, contents: Any) -> str:
    cells = read_notebook(chapter)["cells"]
    return digests.of_value([contents, [[cell["cell_type"], "".join(cell["source"])] for cell in cells]])


def _contents(profile: Profile) -> Any:
    """What all chapters of a profile depend on: the profile, what it names, emlib and the demo data."""
    files = sorted([*paths.ROOT.glob("emlib/**/*.py"), *paths.ROOT.glob("emlib/data/demo/*")])
    return [contents_of(profile), {str(path.relative_to(paths.ROOT)): digests.of_file(path) for path in files}]


def _slices(profile: Profile, about: Chapter) -> Iterator[tuple[str, str]]:
    """A label and the arguments of each slice of a chapter: one for each data set, setting and seed to be apart."""
    if about.slices is None:
        return
    grid = _grid(profile, about.slices.runs, None if about.when is None else about.when.defense)
    asked = profile.grpo.slice_by if about.slices.runs == "grpo" and profile.grpo is not None else profile.slice_by
    apart = [parts for by, parts in grid.items() if by in about.slices.by and by in asked]
    for chosen_parts in product(*filter(None, apart)):
        if chosen_parts:
            yield "_".join(label for label, _ in chosen_parts), " ".join(arguments for _, arguments in chosen_parts)


def _grid(profile: Profile, runs: str, defense: str | None) -> dict[str, list[tuple[str, str]]]:
    """By what the runs of a section can be told apart: a label and the arguments of each data set, method and so on."""
    section = profile if runs == "narrow" else profile.benign if runs == "benign" else profile.grpo
    if section is None:
        return {}
    datasets = section.datasets if isinstance(section, Profile) else (
        tuple(datasets_of(section)) if isinstance(section, Benign) else ())
    methods = [method.name for method in section.methods]
    swept = sorted({number for method in section.methods for number in method.sweep
                    if any(one.kind == defense for one in method.defenses)})
    return {"dataset": [(name, f"--dataset {name}") for name in datasets],
            "method": [(name, f"--method {name}") for name in methods],
            "setting": [(f"{number:g}", f"--setting {number}") for number in swept],
            "seed": [(f"seed{seed}", f"--seed {seed}") for seed in section.seeds]}


if __name__ == "__main__":
    try:
        chosen(jobs(sys.argv[1]), *sys.argv[2:])
    except EmlibError as error:
        sys.exit(str(error))
