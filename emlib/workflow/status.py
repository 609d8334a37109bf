"""The status of a profile: which jobs are done, running, failed or waiting, and what they have cost so far.

It reads only the jobs' logs and writes nothing, so that it is quick and works at any time, even while jobs run on other
machines. Like all commands, it refuses a store of another format.

    python -m emlib.workflow.status demo
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from emlib.config import OpenAIJudge, Profile, load_profile
from emlib.core import paths
from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.judging.cache import read_only
from emlib.judging.judges import scores_file
from emlib.judging.money import SPENT
from emlib.store.artefacts import open_store
from emlib.study import stamps
from emlib.study.ownership import base_of
from emlib.workflow.graph import Job, jobs
from emlib.workflow.job_log import Attempt, AttemptLog

State = Literal["done", "running", "failed", "waiting"]
JUDGE_WAITS = ": JudgeWaits: "  # in the error of a job that waits for its judge's batch, which is no failure
CONTINUE = "run the same command to continue"
LAST_LINES = 12  # of an error
HOUR = 3600


@dataclass(frozen=True)
class JobStatus:
    """A job, its state, and its attempts so far."""

    job: Job
    state: State
    attempts: tuple[Attempt, ...]


def statuses(folder: Path, found: Iterable[Job]) -> list[JobStatus]:
    """Determine each job's state from its output and its log under the profile's folder of results."""
    return [_status(folder, job, tuple(AttemptLog(folder / job.log).attempts())) for job in found]


def _status(folder: Path, job: Job, attempts: tuple[Attempt, ...]) -> JobStatus:
    last = attempts[-1] if attempts else None
    if last is not None and last.state == "running":
        return JobStatus(job, "running", attempts)
    if (folder / job.output).is_file() and _is_current(folder / job.output, job, last):
        return JobStatus(job, "done", attempts)
    if last is None or last.state in ("ended", "interrupted") or JUDGE_WAITS in last.error:  # or it ran other content
        return JobStatus(job, "waiting", attempts)
    return JobStatus(job, "failed", attempts)


def _is_current(executed: Path, job: Job, last: Attempt | None) -> bool:
    """Whether an executed notebook ran what the job would run now: by its stamp, or without one by the last attempt."""
    stamp = stamps.job_of_file(executed)
    return stamp == job.stamp if stamp else last is None or last.digest in (None, job.digest)


def stale(folder: Path, found: Iterable[Job]) -> list[str]:
    """Return the outputs of jobs that ran other content, also those that ran by hand or on another machine."""
    return [one.job.output for one in statuses(folder, found)
            if one.state not in ("done", "running") and (folder / one.job.output).is_file()]


def hours(found: Iterable[JobStatus], *, gpu: bool = False) -> float:
    """Sum up the hours of all attempts, including failed and killed ones, or their GPU-hours (`gpu`)."""
    return sum(attempt.seconds * (attempt.gpus if gpu else 1) for status in found for attempt in status.attempts) / HOUR


def hours_left(found: Sequence[JobStatus]) -> float | None:
    """Estimate the hours of all jobs that are not done; None if no job that computes is done yet."""
    left = _rests(found)
    return None if left is None else sum(left)


def time_left(found: Sequence[JobStatus]) -> float | None:
    """Estimate the hours until all jobs are done, if always as many run at once as now; None as `hours_left`."""
    left = _rests(found)
    if not left:
        return None if left is None else 0.0
    at_once = sum(one.state == "running" and one.job.trains for one in found)
    return max(sum(left) / max(1, at_once), *left)


def _rests(found: Sequence[JobStatus]) -> list[float] | None:
    """Estimate the hours left of each job that is not done, from finished jobs of the same chapter, or else of any.

    None if no job that computes is done yet; `make plan` has an estimate then. A finished job took the most that one of
    its contents took: after an edit of the profile it may have found all in the store, and have ended in seconds. So
    does a chapter after its slices, which is not counted.
    """
    computing = [status for status in found if status.job.trains and not status.job.gathers]
    seconds: dict[str, list[float]] = {}
    for status in computing:
        if status.state == "done" and status.attempts:
            seconds.setdefault(status.job.chapter, []).append(
                max(_seconds(status, digest) for digest in {one.digest for one in status.attempts}))
    left = [status for status in computing if status.state != "done"]
    if not seconds:
        return None if left else []
    of_any = fmean(one for chapter in seconds.values() for one in chapter)
    return [max(0.0, (fmean(seconds[one.job.chapter]) if one.job.chapter in seconds else of_any)
                - _seconds(one, one.job.digest)) / HOUR for one in left]


def _seconds(status: JobStatus, digest: str | None) -> float:
    """Sum up the seconds of a job's attempts at the content of a digest, and of those of which it is not known.

    An attempt continues where the previous one stopped, so that a job takes the sum of its attempts at one content.
    """
    return sum(one.seconds for one in status.attempts if one.digest in (None, digest))


def spent(name: str) -> float:
    """Return the US dollars that the profile has spent on judges, together with its studies with overrides."""
    path = scores_file()
    rows = read_only(path, SPENT, (base_of(name),)) if path.exists() else []
    return float(rows[0][0]) if rows else 0.0


def report(name: str, profile: Profile, found: Sequence[JobStatus]) -> Iterator[str]:
    """Yield the lines of the report."""
    counts = ", ".join(f"{sum(one.state == state for one in found)} {state}" for state in get_args(State))
    yield f"{name}: {len(found)} jobs, {counts}"
    for one in found:
        yield from _lines(one, paths.runs() / name / one.job.log)
    left = hours_left(found)
    rest = "not known before a job is done: see `make plan`" if left is None else f"about {left:.2f}, job after job"
    yield f"hours  {hours(found):.2f} computed, {hours(found, gpu=True):.2f} GPU-hours; left {rest}"
    limit = profile.judge.max_usd if isinstance(profile.judge, OpenAIJudge) else None
    shared = "" if base_of(name) == name else f" by all studies of {base_of(name)}"
    yield f"money  ${spent(name):.2f} spent on judges{shared}" + ("" if limit is None else f", of ${limit:.2f}")


def _lines(one: JobStatus, log: Path) -> Iterator[str]:
    """Yield the lines of a job that runs, failed or was interrupted: where, and the end of its error."""
    last = one.attempts[-1] if one.attempts else None
    if last is None or not (one.state in ("running", "failed") or _is_interrupted(one)):
        return
    where = last.host if last.gpu is None else f"{last.host}, {last.gpu}"
    yield f"  {one.state:8} {one.job.name}: " + (
        f"{last.seconds / 60:.0f} min on {where}" if one.state == "running" else
        f"attempt {len(one.attempts)} on {where} {last.state}; {CONTINUE if _is_interrupted(one) else log.absolute()}")
    yield from (f"           {line}" for line in last.error.strip().splitlines()[-LAST_LINES:])


def _is_interrupted(one: JobStatus) -> bool:
    """Whether a job waits because its last attempt was interrupted, as by Ctrl-C."""
    return one.state == "waiting" and one.attempts[-1:] != () and one.attempts[-1].state == "interrupted"


def show(name: str) -> None:
    """Print the status of a profile."""
    study = paths.study_name(name)
    open_store()
    with unknown_kinds_allowed():  # runs no plugin
        profile, found = load_profile(name), jobs(name)
    for line in report(study, profile, statuses(paths.runs() / study, found)):
        print(line)


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    show(profile_parser("python -m emlib.workflow.status", "Show the status of a profile's jobs.").parse_args(
        arguments).profile)


if __name__ == "__main__":
    main()
