"""A job's log: all output of its notebook, attempt after attempt, and when each attempt began and ended.

`runs/<profile>/logs/<job>.log` is only appended to. Every line that we log begins with the time. Lines on the attempt
itself have a mark and JSON, which `attempts` reads. While a job runs, it holds a lock beside its log. The operating
system releases the lock even if the job is killed, so that an unfinished attempt with a free lock was killed. The lock
also prevents two jobs from running one slice at once, on one machine or on several that share the folder.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from emlib.core.errors import StoreError
from emlib.core.files import disk_errors, in_the_way
from emlib.core.progress import FOUND
from emlib.core.progress import MARK as SAID

MARK = "■"
LINE = re.compile(rf"^(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (?:{MARK} (began|ended|failed) (\{{.*\}})$)?")
TEXT = re.compile(rf"^(?:\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ )?([{SAID.strip()}{FOUND.strip()}]) (.*)$")
TIME = "%Y-%m-%dT%H:%M:%SZ"
JUMP = 60  # seconds by which times may go backwards: threads log out of order, and clocks are corrected a little
WATCHED = "EMLIB_WATCHED"  # in the environment of jobs whose logs somebody shows (`emlib.workflow.watch`)
LAST_LINES = 12  # lines of an error that are shown without the log
State = Literal["running", "ended", "failed", "killed"]
logger = logging.getLogger("emlib.job")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job. `seconds` are counted up to its end, or up to the last line that it logged."""

    state: State
    began: datetime
    seconds: float
    host: str
    pid: int
    gpu: str | None  # the names of its GPUs, with commas between them
    digest: str | None  # the digest of the content that it ran
    error: str  # empty unless it failed
    set_back: bool = False  # whether the clock was set back meanwhile, so that `seconds` is too small
    said: str = ""  # its last line of progress
    found: str = ""  # the last sentence that states what it found

    @property
    def gpus(self) -> int:
        """The number of its GPUs."""
        return len(self.gpu.split(",")) if self.gpu else 0


class AttemptLog:
    """The log of one job. Reading it writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the job's lock, after waiting until no other process runs the job."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            yield

    @contextmanager
    def writing(self, **facts: Any) -> Iterator[None]:
        """Write everything that is logged to the file, between a line for the attempt's start and one for its end."""
        with disk_errors(self.path):
            self._end_last_line()
            handler = _LogFile(self.path, encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(message)s", TIME)
        formatter.converter = _utc
        handler.setFormatter(formatter)
        logger.setLevel(logging.INFO)  # independent of the root logger's level
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            _event("began", {"host": socket.gethostname(), "pid": os.getpid(), **facts})
            yield
            _event("ended", {})
        except BaseException as error:
            _event("failed", {"error": f"{type(error).__name__}: {error}"})
            raise
        finally:
            root.removeHandler(handler)
            handler.close()

    def attempts(self) -> list[Attempt]:
        """Read all attempts so far, from the first to the last; empty if the job never began."""
        found: list[Attempt] = []
        for at, event, facts in self._lines():
            if at is None:
                found = [*found[:-1], replace(found[-1], **facts)] if found else []
            elif event == "began":
                found.append(_begun(at, facts))
            elif found:
                found[-1] = _seen(found[-1], at)
                if event:
                    found[-1] = replace(found[-1], state=event, error=facts.get("error", ""))
        if found and found[-1].state == "killed" and self.is_running():
            found[-1] = replace(_seen(found[-1], datetime.now(UTC)), state="running")
        return found

    def ended_with(self, digest: str | None) -> bool:
        """Whether the last attempt ended without an error, and ran this content."""
        last = self.attempts()[-1:]
        return bool(last) and digest is not None and (last[0].state, last[0].digest) == ("ended", digest)

    def is_running(self) -> bool:
        """Whether a process holds the job's lock. Only a shared lock is asked for, so that two that look see no job."""
        try:
            with Path(self.lock.lock_file).open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except BlockingIOError:
            return True
        return False

    def _end_last_line(self) -> None:
        """End a line that a killed attempt left incomplete, so that the next attempt's first line can be read."""
        if self.path.is_file():
            with self.path.open("rb+") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    if stream.read() != b"\n":
                        stream.write(b"\n")

    def _lines(self) -> Iterator[tuple[datetime | None, Any, Mapping[str, Any]]]:
        """Yield the time of each line, and its event with the facts if it has one; texts for people have no time."""
        try:
            stream = self.path.open(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{in_the_way(self.path)}: the job's log cannot be read ({error.strerror}). Move what is "
                             "there away.") from error
        with stream:
            for number, line in enumerate(stream, start=1):
                if found := LINE.match(line):
                    yield _parsed(found, f"{self.path}, line {number}")
                if text := TEXT.match(line.rstrip()):  # alone or in a record of several lines
                    yield None, None, {"found" if text[1] == FOUND.strip() else "said": text[2]}


class _LogFile(logging.FileHandler):
    """A log file whose disk may become full: that is told once, and the job goes on without its log."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if isinstance(error, OSError):
            self._tell(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:  # what was not written before
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self.told:
            self.told = True
            print(f"    {self.baseFilename}: cannot be written ({error.strerror}), so the log of this job is "
                  "incomplete. The job goes on; make room on the disk.", file=sys.stderr, flush=True)


def _parsed(line: re.Match[str], where: str) -> tuple[datetime, Any, Mapping[str, Any]]:
    """Return the time, the event and the facts of a line.

    Raises:
        StoreError: the line is damaged.
    """
    try:
        at, event = datetime.strptime(line[1], TIME).replace(tzinfo=UTC), line[2]
        facts = dict(json.loads(line[3])) if event else {}
        if event == "began":
            _begun(at, facts)
        return at, event, facts
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{where}: the job's log is damaged here ({type(error).__name__}: {error}). Remove the line, "
                         "or move the log away.") from error


def _seen(attempt: Attempt, at: datetime) -> Attempt:
    """Return an attempt that was seen at work at a time; of a time that goes backwards only that it does."""
    seconds = (at - attempt.began).total_seconds()
    return replace(attempt, seconds=max(attempt.seconds, seconds),
                   set_back=attempt.set_back or seconds < attempt.seconds - JUMP)


def _begun(at: datetime, facts: Mapping[str, Any]) -> Attempt:
    """Return an attempt of which only the start is known."""
    return Attempt("killed", at, 0.0, facts["host"], facts["pid"], facts.get("gpu"), facts.get("digest"), "")


def last_lines(error: str) -> str:
    """Return the last lines of an error's text."""
    return "\n".join(error.strip().splitlines()[-LAST_LINES:])


def _event(name: str, facts: Mapping[str, Any]) -> None:
    logger.info("%s %s %s", MARK, name, json.dumps(facts, ensure_ascii=False))


def _utc(seconds: float | None) -> Any:
    return datetime.fromtimestamp(seconds or 0.0, UTC).timetuple()
