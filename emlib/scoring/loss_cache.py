"""What one model made of each row so far: a file of JSON lines that grows as the work goes on.

A line holds a whole batch, because it is written at once: a killed process leaves a line or none, so that going on
makes the same batches again and ends in the same numbers. A row's name is the digest of its tokens, so that what was
computed for one pool is found again in another one, and nothing is computed twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from emlib.core.files import disk_errors


class LossCache:
    """The losses of one (model, adapter), in nats a token, by row digest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self) -> Iterator[dict[str, float]]:
        """What is there, for this process alone: another one that wants the same rows waits, and then finds them."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield self._whole_lines()

    def append(self, losses: Mapping[str, float]) -> None:
        """Add one batch. A loss that is no number is kept too: it would come out the same again."""
        line = json.dumps({row: loss if math.isfinite(loss) else None for row, loss in losses.items()}) + "\n"
        with disk_errors(self.path), self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def _whole_lines(self) -> dict[str, float]:
        """Read all, and cut off what a killed process left of its last line."""
        found: dict[str, float] = {}
        if not self.path.is_file():
            return found
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                batch = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                batch = None
            if batch is None:
                break
            found |= {row: math.nan if loss is None else loss for row, loss in batch.items()}
            whole += len(line)
        if whole < self.path.stat().st_size:
            with self.path.open("r+b") as stream:
                stream.truncate(whole)
        return found
