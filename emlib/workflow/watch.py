"""Running a study's jobs and showing them: a line for each notebook that ends, with its time and what it found.

    python -m emlib.workflow.watch demo -- snakemake ...

The command runs the jobs, here or on a cluster. Everything shown is read from the jobs' logs, as `make status` does. In
a terminal a bar at the bottom shows how many jobs are done, the time left, and what runs. With VERBOSE=1 the jobs show
every step themselves. If this process or its `make` is stopped, the command is interrupted as by Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import psutil
from tqdm import tqdm

from emlib.core import paths
from emlib.core.commands import INTERRUPTED, ends_with_message, profile_parser
from emlib.store.artefacts import open_store
from emlib.workflow import status
from emlib.workflow.graph import Job, chosen, jobs, with_needs
from emlib.workflow.job_log import WATCHED, Attempt
from emlib.workflow.status import CONTINUE, JUDGE_WAITS, JobStatus, stale, statuses, time_left

PAUSE = 1.0  # seconds between two looks at the logs
WIDTH = 34  # of a job's name
RESULTS = {"results": "results.csv", "tables": "tables", "figures": "figures", "executed notebooks": "notebooks",
           "report": "report/index.html", "profile": paths.EFFECTIVE}


class Watch:
    """What a run of a study has shown so far."""

    def __init__(self, folder: Path, watched: Sequence[Job]) -> None:
        self.folder = folder
        self.jobs = watched
        self._sizes: dict[str, int] = {}
        self._seen: dict[str, JobStatus] = {}
        self.statuses = self.look()
        self._told = {one.job.log: _ended(one.attempts) for one in self.statuses}

    def look(self) -> list[JobStatus]:
        """Read the logs that have changed, and those of jobs that run, and return each job's status."""
        for job in self.jobs:
            log = self.folder / job.log
            size = log.stat().st_size if log.is_file() else -1
            known = self._seen.get(job.log)
            if known is None or known.state == "running" or size != self._sizes[job.log]:
                (self._seen[job.log],) = statuses(self.folder, [job])
                self._sizes[job.log] = size
        self.statuses = [self._seen[job.log] for job in self.jobs]
        return self.statuses

    def news(self) -> Iterator[str]:
        """Look again, and yield a line for each attempt that ended since the last look."""
        done = sum(one.state == "done" for one in self.look())
        for one in self.statuses:
            before, now = self._told[one.job.log], _ended(one.attempts)
            for attempt in one.attempts[before:now]:
                yield line(f"{done}/{len(self.jobs)}", one.job.name, attempt, self.folder / one.job.log)
            self._told[one.job.log] = now

    def now(self) -> str:
        """Return what runs, and the time left, in a line."""
        left = time_left(self.statuses)
        running = [one for one in self.statuses if one.state == "running"]
        return "; ".join([*(["about " + minutes(3600 * left) + " left"] if left else []), *(
            f"{one.job.name}{': ' if one.attempts[-1].said else ''}{one.attempts[-1].said}" for one in running)])


def _ended(attempts: Sequence[Attempt]) -> int:
    return len(attempts) - bool(attempts and attempts[-1].state == "running")


def line(done: str, name: str, attempt: Attempt, log: Path) -> str:
    """Return the line of an attempt that ended: its job, its time, and what it found or where its log is."""
    start = f"{done:>7}  {name:<{WIDTH}} {minutes(attempt.seconds):>9}"
    if attempt.state == "ended":
        return f"{start}  {attempt.found}".rstrip()
    if JUDGE_WAITS in attempt.error:
        return f"{start}  waits for its judge's batch"
    if attempt.state == "interrupted":
        return f"{start}  interrupted"
    return f"{start}  {attempt.state}, see {log.absolute()}"


def minutes(seconds: float) -> str:
    """Return a length of time such as "45 s", "3 min 20 s" or "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def run(folder: Path, watched: Sequence[Job], command: Sequence[str]) -> int:
    """Run the command and show the jobs until it ends. Return its exit status; after Ctrl-C, that of shells."""
    watch, starters, interrupts = Watch(folder, watched), _starters(), list[int]()
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))  # a terminal tells the command as well
    with (subprocess.Popen(command, env=os.environ | ({WATCHED: "1"} if watched else {})) as process,
          tqdm(total=len(watched), leave=False, disable=None if watched else True, dynamic_ncols=True,
               bar_format="{bar:20} {n}/{total}  {desc}") as bar):
        signal.signal(signal.SIGTERM, lambda *_: _interrupt(process.pid))
        while True:
            code = process.poll()  # before the logs are read, so that nothing is missed at the end
            if starters and starters != _starters():
                starters = ()
                _interrupt(process.pid)
            for text in watch.news():
                tqdm.write(text, file=sys.stderr)
            bar.n = sum(one.state == "done" for one in watch.statuses)
            bar.set_description_str(watch.now())
            if code is not None:
                if code and interrupts:
                    return INTERRUPTED
                return code if code >= 0 else 128 - code  # as shells report a signal
            with suppress(subprocess.TimeoutExpired):
                process.wait(PAUSE)


def _starters() -> tuple[int, ...]:
    """Return the process that started this one, and the one that started that: a shell and `make`."""
    with suppress(psutil.NoSuchProcess):
        return os.getppid(), psutil.Process(os.getppid()).ppid()
    return ()


def _interrupt(command: int) -> None:
    """Interrupt a process and all that it started, as a terminal does: Snakemake then cancels the jobs of a cluster."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(command)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGINT)


def watch(name: str, only: str, command: Sequence[str]) -> int:
    """Run what is not done, show it, and say at the end where the results are, or else what failed.

    Snakemake compares the content of what it has run itself alone. So it is told which other notebooks to run again.

    Raises:
        StoreError: the store has another format. Nothing was run.
    """
    open_store()
    folder, every = paths.runs() / paths.study_name(name), jobs(name)
    watched = chosen(every, only)
    again = stale(folder, with_needs(every, watched))
    if os.environ.get("VERBOSE") == "1":
        watched = []  # the jobs show everything themselves
    else:
        done = sum(one.state == "done" for one in statuses(folder, watched))
        print(f"{folder.name}: {len(watched)} notebooks" + (f", {done} of them done" if done else ""),
              file=sys.stderr, flush=True)
    options = list(takewhile(lambda word: word != "--", command))  # behind "--" are targets
    forced = ["--forcerun", *again] if again else []
    code = run(folder, watched, [*options, *forced, *command[len(options):]])
    if code:
        status.show(name)
    if code == INTERRUPTED:
        print(f"interrupted; {CONTINUE}")
    elif not code:
        print(where(folder))
    return code


def where(folder: Path) -> str:
    """Return a line for each kind of result that there is, with its path relative to the working directory."""
    lines = [f"{kind:>20}  {os.path.relpath(folder / file)}" for kind, file in RESULTS.items()
             if (folder / file).exists()]
    return "\n".join([f"\n{folder.name}: done.", *lines])


@ends_with_message()
def main(arguments: Sequence[str]) -> None:
    """Run the command line, of which the part after the first `--` is the command to run."""
    parser = profile_parser("python -m emlib.workflow.watch", "Run a study's jobs by a command, and show them.")
    parser.usage = "%(prog)s [-h] profile [only] -- command ..."
    parser.add_argument("only", nargs="?", default="", help="the jobs whose logs match this pattern")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    asked, command = parser.parse_args(arguments[:at]), arguments[at + 1:]
    if not command:
        parser.error("no command follows after --")
    sys.exit(watch(asked.profile, asked.only, command))


if __name__ == "__main__":
    main(sys.argv[1:])
