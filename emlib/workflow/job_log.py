"""A job's log: all output of its notebook, attempt after attempt, and when each attempt began and ended.

`runs/<profile>/logs/<job>.log` is for people, and is only appended to. The attempts are records beside it, in
`<job>.attempts.jsonl`. While a job runs, it holds a lock beside its log. The operating system releases the lock even if
the job is killed, so that an unfinished attempt with a free lock was killed. The lock also prevents two jobs from
running one slice at once, on one machine or on several that share the folder.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from emlib.core.errors import StoreError
from emlib.core.files import disk_errors, read_appended, whole_file, write_records
from emlib.core.progress import FOUND
from emlib.core.progress import MARK as SAID

MARK = "■"
TEXT = re.compile(rf"^(?:\S+Z )?([{SAID.strip()}{FOUND.strip()}]) (.*)$", re.MULTILINE)
WATCHED = "EMLIB_WATCHED"  # in the environment of jobs whose logs somebody shows (`emlib.workflow.watch`)
State = Literal["running", "ended", "failed", "interrupted", "killed"]
logger = logging.getLogger("emlib.job")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job. On disk, one without an end is `killed`: nobody can write that it was.

    Attributes:
        began: seconds since the epoch.
        seconds: up to its end, by a clock that nobody sets; of a killed one, up to the last change of its log.
        gpu: the names of its GPUs, with commas between them.
        digest: the digest of the content that it ran.
        error: empty unless it failed, or was stopped by another signal than that of Ctrl-C.
        said, found: of the last attempt, its last line of progress, and the last sentence that states what it found.
    """

    state: State
    began: float
    seconds: float
    host: str
    pid: int
    gpu: str | None
    digest: str | None
    error: str = ""
    said: str = field(default="", metadata={"stored": False})
    found: str = field(default="", metadata={"stored": False})

    @property
    def gpus(self) -> int:
        """The number of its GPUs."""
        return len(self.gpu.split(",")) if self.gpu else 0


class AttemptLog:
    """The log of one job. Reading it writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = path.with_suffix(".attempts.jsonl")
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the job's lock, after waiting until no other process runs the job."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            yield

    @contextmanager
    def writing(self, *, gpu: str | None, digest: str | None) -> Iterator[None]:
        """Record an attempt, and write everything that is logged meanwhile to the file."""
        before, started = self._recorded(), time.monotonic()
        attempt = Attempt("killed", time.time(), 0.0, socket.gethostname(), os.getpid(), gpu, digest)
        self._record([*before, attempt])
        with self._logged():
            logger.info("%s began on %s", MARK, attempt.host)
            try:
                yield
                attempt = replace(attempt, state="ended")
            except KeyboardInterrupt as stopped:
                attempt = replace(attempt, state="interrupted", error=str(stopped))
                raise
            except BaseException as error:
                attempt = replace(attempt, state="failed", error=f"{type(error).__name__}: {error}")
                raise
            finally:
                self._record([*before, replace(attempt, seconds=time.monotonic() - started)])
                logger.info("%s %s", MARK, attempt.state)

    def attempts(self) -> list[Attempt]:
        """Read all attempts so far, from the first to the last; empty if the job never began."""
        running = self.is_running()  # before and after, because the job may end or begin while its records are read
        found = self._recorded()
        if found:
            found[-1] = replace(found[-1], **self._found_and_said())
            if found[-1].state == "killed" and (running or self.is_running()):
                found[-1] = replace(found[-1], state="running", seconds=max(0.0, time.time() - found[-1].began))
        return found

    def ended_with(self, digest: str | None) -> bool:
        """Whether the last attempt ended without an error, and ran this content."""
        last = self.attempts()[-1:]
        return bool(last) and digest is not None and (last[0].state, last[0].digest) == ("ended", digest)

    def take_over(self, other: AttemptLog) -> None:
        """Put the attempts and the log of another machine behind those here, so that its last attempt is the last one.

        What was taken over before is not added again.
        """
        with self.alone():
            mine = self._recorded()  # a last, killed one with its seconds, which the log's time tells only now
            write_records(self.records, [*mine, *(one for one in other._recorded() if one not in mine)])
            here, there = (log.path.read_bytes() if log.path.is_file() else b"" for log in (self, other))
            if not here.endswith(there):
                with whole_file(self.path) as whole:
                    whole.write_bytes(here + (b"" if here.endswith(b"\n") or not here else b"\n") + there)

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

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """Write everything that is logged to the file, each record with its time in UTC."""
        with disk_errors(self.path):
            handler = _LogFile(self.path, encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        handler.setFormatter(formatter)
        logger.setLevel(logging.INFO)  # independent of the root logger's level
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            handler.close()

    def _recorded(self) -> list[Attempt]:
        """Read the attempts as they are on disk, the last one up to the last sign of life."""
        found = read_appended(self.records, Attempt)
        if found and found[-1].state == "killed" and self.path.is_file():
            found[-1] = replace(found[-1], seconds=max(0.0, self.path.stat().st_mtime - found[-1].began))
        return found

    def _record(self, attempts: list[Attempt]) -> None:
        """Write all attempts; a full disk, which may be an attempt's error, must not replace it."""
        try:
            write_records(self.records, attempts)
        except StoreError as error:
            print(f"    {error}", file=sys.stderr, flush=True)

    def _found_and_said(self) -> dict[str, Any]:
        """Return the last texts for people that the last attempt logged."""
        if not self.path.is_file():
            return {}
        log = self.path.read_text(encoding="utf-8", errors="replace").rpartition(f" {MARK} began on ")[2]
        return {"found" if sign == FOUND.strip() else "said": text for sign, text in TEXT.findall(log)}


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
