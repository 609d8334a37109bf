"""A job's log: all output of its notebook, attempt after attempt, and when each attempt began and ended.

`runs/<profile>/logs/<job>.log` is only appended to. Every line that we log begins with the time. Lines on the attempt
itself have a mark and JSON, which `attempts` reads. While a job runs, it holds a lock beside its log. The operating
system releases the lock even if the job is killed, so that an unfinished attempt with a free lock was killed. The lock
also prevents two jobs from running one slice at once, on one machine or on several that share the folder.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

MARK = "■"
LINE = re.compile(rf"^(\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ) (?:{MARK} (began|ended|failed) (\{{.*\}})$)?")
TIME = "%Y-%m-%dT%H:%M:%SZ"
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

    @property
    def gpus(self) -> int:
        """The number of its GPUs."""
        return len(self.gpu.split(",")) if self.gpu else 0


class AttemptLog:
    """The log of one job."""

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
        self._end_last_line()
        handler = logging.FileHandler(self.path, encoding="utf-8")
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
            if event == "began":
                found.append(_begun(at, facts))
            elif found:
                found[-1] = replace(found[-1], seconds=(at - found[-1].began).total_seconds())
                if event:
                    found[-1] = replace(found[-1], state=event, error=facts.get("error", ""))
        if found and found[-1].state == "killed" and self.is_running():
            found[-1] = replace(found[-1], state="running",
                                seconds=(datetime.now(UTC) - found[-1].began).total_seconds())
        return found

    def ended_with(self, digest: str | None) -> bool:
        """Whether the last attempt ended without an error, and ran this content."""
        last = self.attempts()[-1:]
        return bool(last) and digest is not None and (last[0].state, last[0].digest) == ("ended", digest)

    def is_running(self) -> bool:
        """Whether a process holds the job's lock."""
        if not Path(self.lock.lock_file).is_file():
            return False
        try:
            with self.lock.acquire(blocking=False):
                return False
        except Timeout:
            return True

    def _end_last_line(self) -> None:
        """End a line that a killed attempt left incomplete, so that the next attempt's first line can be read."""
        if self.path.is_file():
            with self.path.open("rb+") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    if stream.read() != b"\n":
                        stream.write(b"\n")

    def _lines(self) -> Iterator[tuple[datetime, Any, Mapping[str, Any]]]:
        """Yield the time of each line, and its event with the facts if it has one."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if found := LINE.match(line):
                    at = datetime.strptime(found[1], TIME).replace(tzinfo=UTC)
                    yield at, found[2], json.loads(found[3]) if found[2] else {}


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
