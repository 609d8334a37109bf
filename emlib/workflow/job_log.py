"""A job's log: all that its notebook said, attempt after attempt, and when each attempt began and ended.

`runs/<profile>/logs/<job>.log` is appended to and never cut. Every line of ours begins with the time; those about the
attempt itself carry a mark and JSON, which `attempts` reads back. While a job runs it holds a lock beside its log. The
system lets go of it also when the job is killed: an attempt without an end whose lock is free was killed. The lock also
keeps two jobs from running one slice at once, on one machine or on several that share the folder.
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
LAST_LINES = 12  # of an error, for those who do not want the whole log
State = Literal["running", "ended", "failed", "killed"]
logger = logging.getLogger("emlib.job")


@dataclass(frozen=True)
class Attempt:
    """One try at a job. `seconds` reach to its end, or to the last sign of life."""

    state: State
    began: datetime
    seconds: float
    host: str
    pid: int
    gpu: str | None  # their names, with commas between them
    digest: str | None  # of the content that it ran
    error: str  # empty unless it failed

    @property
    def gpus(self) -> int:
        """How many GPUs it had."""
        return len(self.gpu.split(",")) if self.gpu else 0


class AttemptLog:
    """The log of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path.with_name(f".{path.name}.lock"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else runs this job, and keep it so."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock:
            yield

    @contextmanager
    def writing(self, **facts: Any) -> Iterator[None]:
        """Take down what is logged, between a line for the attempt's beginning and one for its end."""
        self._end_the_line()
        handler = logging.FileHandler(self.path, encoding="utf-8")
        formatter = logging.Formatter("%(asctime)s %(message)s", TIME)
        formatter.converter = _utc
        handler.setFormatter(formatter)
        logger.setLevel(logging.INFO)  # whatever level all other lines need
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
        """Every attempt so far, the first one first; empty where the job was never begun."""
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
        """Whether the last attempt came to its end, with this content."""
        last = self.attempts()[-1:]
        return bool(last) and digest is not None and (last[0].state, last[0].digest) == ("ended", digest)

    def is_running(self) -> bool:
        """Whether somebody holds the job's lock."""
        if not Path(self.lock.lock_file).is_file():
            return False
        try:
            with self.lock.acquire(blocking=False):
                return False
        except Timeout:
            return True

    def _end_the_line(self) -> None:
        """A killed attempt may have left half a line, with which the next one's first would be lost."""
        if self.path.is_file():
            with self.path.open("rb+") as stream:
                if stream.seek(0, os.SEEK_END):
                    stream.seek(-1, os.SEEK_END)
                    if stream.read() != b"\n":
                        stream.write(b"\n")

    def _lines(self) -> Iterator[tuple[datetime, Any, Mapping[str, Any]]]:
        """The time of each line, and its event with its facts where it has one."""
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if found := LINE.match(line):
                    at = datetime.strptime(found[1], TIME).replace(tzinfo=UTC)
                    yield at, found[2], json.loads(found[3]) if found[2] else {}


def _begun(at: datetime, facts: Mapping[str, Any]) -> Attempt:
    """An attempt of which nothing more is known."""
    return Attempt("killed", at, 0.0, facts["host"], facts["pid"], facts.get("gpu"), facts.get("digest"), "")


def last_lines(error: str) -> str:
    """The end of an error's text."""
    return "\n".join(error.strip().splitlines()[-LAST_LINES:])


def _event(name: str, facts: Mapping[str, Any]) -> None:
    logger.info("%s %s %s", MARK, name, json.dumps(facts, ensure_ascii=False))


def _utc(seconds: float | None) -> Any:
    return datetime.fromtimestamp(seconds or 0.0, UTC).timetuple()
