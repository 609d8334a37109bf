"""Merging what studies recorded on another machine: the data types that they compute in, and executed slices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from emlib.config import profile_names
from emlib.core import paths
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import whole_file
from emlib.core.progress import say
from emlib.study import precision
from emlib.study.ownership import owner_of
from emlib.workflow.graph import Job, jobs
from emlib.workflow.job_log import AttemptLog


def new_types(theirs: Path, ours: Path) -> dict[str, str]:
    """Return the data types that studies record there and not here, by the studies' names.

    A study with `dtype: auto` finds its artefacts by the recorded type alone.

    Raises:
        StoreError: a study records two types on the two sides, or a record holds something else.
    """
    there = {path.parent.name: precision.recorded(path.parent) for path in sorted(theirs.glob(f"*/{precision.RECORD}"))}
    here = {study: precision.recorded(ours / study) for study in there}
    differ = [f"{ours / study / precision.RECORD}: ours {here[study]}, theirs {dtype}."
              for study, dtype in there.items() if here[study] not in (None, dtype)]
    if differ:
        raise StoreError("\n".join([
            f"{len(differ)} studies compute in different data types on the two sides. Nothing was copied.", *differ,
            "Write the type that the study shall have into both files: what was made with the other one is made again. "
            "Or move theirs away: their artefacts are then copied, and this study does not use them."]))
    return {study: dtype for study, dtype in there.items() if dtype is not None and here[study] is None}


def copy_slices(slices: Sequence[tuple[str, Job]], theirs: Path, ours: Path) -> int:
    """Copy executed slices that are missing here. Return their number.

    A slice that runs here at the moment is left alone.
    """
    copied = 0
    for name, job in slices:
        here, out = AttemptLog(ours / name / job.log), ours / name / job.output
        if not out.exists() and not here.is_running():
            here.take_over(AttemptLog(theirs / name / job.log))
            with whole_file(out) as copy:  # last, so that an interrupted merge copies this slice again
                shutil.copy(theirs / name / job.output, copy)
            copied += 1
    return copied


def ended_slices(theirs: Path, ours: Path) -> list[tuple[str, Job]]:
    """Return the slices that ended there with the content that would run here, each with its study's name.

    Whole chapters are left out: they run again from the store, so that they show the runs of both sides. Nothing is
    copied of a study whose profile is invalid here, which is said.
    """
    found = []
    for name, profile in _profiles(theirs, ours):
        try:
            found += [(name, job) for job in jobs(profile) if job.part and (theirs / name / job.output).is_file()
                      and AttemptLog(theirs / name / job.log).ended_with(job.digest)]
        except EmlibError as error:
            say(f"{name}: its executed slices are not copied. {error}")
    return found


def _profiles(theirs: Path, ours: Path) -> Iterator[tuple[str, str]]:
    """Yield the studies that ran there: the name, and the profile, if it is on this machine.

    The profile of a name is that recorded in the folder of results here, else in theirs, else that in params/.
    """
    for logs in sorted(theirs.glob("*/logs")):
        name = logs.parent.name
        owner = owner_of(ours / name) or owner_of(theirs / name)
        if owner is not None and paths.study_name(str(owner)) == name:
            yield name, str(owner)
        elif name in profile_names():
            yield name, name
