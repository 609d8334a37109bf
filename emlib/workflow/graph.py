"""The study as a list of notebook runs: which jobs Snakemake runs, in which order, and what makes one stale.

The notebooks' metadata define which notebooks a profile needs, in which order and in which slices
(`emlib.workflow.chapters`). A notebook is run again when content changes that it depends on: its cells, emlib, the
profile and the files that it names, the demo data. Files with a new date and the same content change nothing.

    python -m emlib.workflow.graph demo        # checks that the profile exists and is valid
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from emlib.config import Benign, JobLimits, OpenAIJudge, Profile, datasets_of, load_profile
from emlib.core import digests, paths
from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.errors import ProfileError
from emlib.study import stamps
from emlib.study.ownership import refuse_others
from emlib.workflow.chapters import Chapter, chapter_of, chapters, concerns, former_names, read_notebook

SLICES = "notebooks/slices"  # under the profile's folder of results
AXES = ("dataset", "method", "setting", "seed")  # by which runs are sliced, in the order of a label's parts
PLANNING = ("models", "prices", "throughput")  # files of params/ from which every profile's costs are estimated
READING = JobLimits(memory_gib=4, hours=1)  # the limits of a chapter that computes nothing


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
    pays: bool  # whether it uses a paid judge
    trains: bool  # whether it uses a GPU if there is one

    @property
    def name(self) -> str:
        """The chapter and the slice."""
        return f"{self.chapter} ({self.part})" if self.part else self.chapter

    @property
    def log(self) -> str:
        """The path of its log, under the profile's folder of results."""
        return f"logs/{self.chapter}{'.' if self.part else ''}{self.part}.log"

    @property
    def stamp(self) -> str:
        """The stamp of an executed notebook that ran what this job would run now."""
        return stamps.of_job(self.digest, " ".join(shlex.split(self.arguments)[2:]))  # wherever the profile is

    @property
    def gathers(self) -> bool:
        """Whether it is a whole chapter after its slices, whose results it finds in the store."""
        return not self.part and any(Path(need).parent == Path(SLICES) for need in self.needs)

    @property
    def resources(self) -> dict[str, int]:
        """The resources that Snakemake schedules by: MB, minutes, and the GPUs and paid judges that the job needs."""
        return {"mem_mb": round(self.limits.memory_gib * 1024), "runtime": round(self.limits.hours * 60),
                **({"gpu": self.limits.gpus} if self.trains else {}), **({"judge": 1} if self.pays else {})}


def jobs(profile_name: str) -> list[Job]:
    """Return every notebook run of a profile, in reading order. A sliced chapter runs as a whole after its slices."""
    profile = load_profile(profile_name)
    refuse_others(profile_name)
    found: list[Job] = []
    contents = contents_for(profile)
    for chapter in (chapter for chapter in chapters() if concerns(profile, chapter)):
        found += _jobs_of(chapter, profile, profile_name, content_digest(chapter, contents), found)
    return found


def _jobs_of(chapter: str, profile: Profile, profile_name: str, digest: str, earlier: Sequence[Job]) -> Iterator[Job]:
    """Yield the slices of a chapter, and then the chapter as a whole."""
    about = chapter_of(chapter)
    limits = profile.job if about.gpu else READING
    pays = about.judged and any(isinstance(judge, OpenAIJudge) for judge in profile.judges)
    named = f"--profile {shlex.quote(profile_name)}"
    # A whole chapter ends after its slices. Naming those as well would give Snakemake a path for each pair of slices.
    before = tuple(job.output for job in earlier if not job.part and (about.after_all or job.chapter in about.after))
    parts = tuple(Job(chapter, label, f"{named} {arguments}", output_of(chapter, label), before, digest, limits, pays,
                      about.gpu) for label, arguments in _slices(profile, about))
    yield from parts
    yield Job(chapter, "", named, output_of(chapter), (*before, *(part.output for part in parts)), digest,
              limits, pays, about.gpu)


def output_of(chapter: str, label: str = "") -> str:
    """Return the path of an executed notebook, or of a slice of it, under the profile's folder of results."""
    return f"{SLICES}/{chapter}.{label}.ipynb" if label else f"notebooks/{chapter}.ipynb"


def chosen(found: list[Job], only: str = "") -> list[Job]:
    """Return the jobs whose log matches a pattern such as `02*` or `*.legal_*` (without `.log`), or all jobs ("").

    A pattern may begin with a name that a notebook had before. One that no job matches is refused.
    """
    name, dot, rest = only.partition(".")
    only = former_names().get(name, name) + dot + rest
    fitting = [job for job in found if not only or fnmatchcase(Path(job.log).stem, only)]
    if not fitting:
        names = ", ".join(Path(job.log).stem for job in found[:12])
        raise ProfileError(f"No job is named like '{only}'. Jobs: {names}, and so on.")
    return fitting


def rule_names(found: Sequence[Job]) -> list[str]:
    """Return the name of each job's rule: letters, digits and "_" alone, with a digest where two would be equal."""
    names = ["notebook_" + re.sub(r"\W+", "_", job.name).strip("_") for job in found]
    often = Counter(names)
    return [name if often[name] == 1 else f"{name}_{digests.of_text(job.name)[:8]}"
            for name, job in zip(names, found, strict=True)]


def with_needs(found: Sequence[Job], fitting: Sequence[Job]) -> list[Job]:
    """Return these jobs and all that they need of the jobs found."""
    makers, needed = {job.output: job for job in found}, dict[str, Job]()
    left = list(fitting)
    while left:
        if (job := left.pop()).output not in needed:
            needed[job.output] = job
            left += [makers[need] for need in job.needs]
    return list(needed.values())


def digest_of(chapter: str, profile: str) -> str:
    """Return the digest of all that the result of a profile's chapter depends on."""
    return content_digest(chapter, contents_for(load_profile(profile)))


def content_digest(chapter: str, contents: Any) -> str:
    """Return a digest of `contents` and the notebook's cells without their outputs: all that its result depends on."""
    cells = read_notebook(chapter)["cells"]
    return digests.of_value([contents, [[cell["cell_type"], "".join(cell["source"])] for cell in cells]])


def contents_for(profile: Profile) -> Any:
    """Return what all chapters of a profile depend on: the profile, what it names, emlib, demo data, cost tables."""
    files = sorted([*paths.ROOT.glob("emlib/**/*.py"), *paths.ROOT.glob("emlib/data/demo/*")])
    return [stamps.contents_of(profile), {str(path.relative_to(paths.ROOT)): digests.of_file(path) for path in files},
            [digests.of_file(paths.PARAMS / f"{name}.yaml") for name in PLANNING]]


def _slices(profile: Profile, about: Chapter) -> Iterator[tuple[str, str]]:
    """Yield a label and the arguments of each slice of a chapter, such as one for each data set and seed."""
    if about.slices is None:
        return
    grid = _grid(profile, about.slices.runs, () if about.when is None else about.when.defense)
    wanted = profile.grpo.slice_by if about.slices.runs == "grpo" and profile.grpo is not None else profile.slice_by
    axes = [values for by, values in grid.items() if by in about.slices.by and by in wanted]
    for values in product(*filter(None, axes)):
        if values:
            yield "_".join(label for label, _ in values), " ".join(arguments for _, arguments in values)


def _grid(profile: Profile, runs: str, kinds: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the values that the runs of a section can be sliced by: the label and the arguments of each value."""
    section = profile if runs == "narrow" else profile.benign if runs == "benign" else profile.grpo
    if section is None:
        return {}
    datasets: Sequence[str] = section.datasets if isinstance(section, Profile) else (
        tuple(datasets_of(section)) if isinstance(section, Benign) else ())
    methods = [method.name for method in section.methods]
    swept = sorted({number for method in section.methods for number in method.sweep
                    if any(one.kind in kinds for one in method.defenses)})
    values: dict[str, Sequence[Any]] = {"dataset": datasets, "method": methods, "setting": swept,
                                        "seed": section.seeds}
    return {by: [labelled(by, value) for value in values[by]] for by in AXES}


def labelled(by: str, value: Any) -> tuple[str, str]:
    """Return the label of a value that runs are sliced by, and the arguments that choose it."""
    if by == "setting":
        return f"{value:g}", f"--setting {float(value)}"
    return f"seed{value}" if by == "seed" else value, f"--{by} {value}"


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.workflow.graph", "Check that a profile exists and is valid.")
    jobs(parser.parse_args(arguments).profile)


if __name__ == "__main__":
    main()
