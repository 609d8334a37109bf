"""A cache of each row's loss under one model: a file of JSON lines, extended batch by batch.

A line holds one batch and is written at once. A killed process leaves a complete batch or none, so that a resumed run
forms the same batches and gets the same numbers. A row's key is the digest of its tokens, so that a loss computed for
one pool is reused in another.
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
    """The losses under one (model, adapter), in nats per token, by row digest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def opened(self) -> Iterator[dict[str, float]]:
        """Lock the file and give its losses; another process waits for the lock, and then finds the new losses too."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield self._whole_lines()

    def append(self, losses: Mapping[str, float]) -> None:
        """Add one batch. NaN and infinite losses are stored too (as null): computing them again would not help."""
        line = json.dumps({row: loss if math.isfinite(loss) else None for row, loss in losses.items()}) + "\n"
        with disk_errors(self.path), self.path.open("ab", buffering=0) as stream:
            stream.write(line.encode())

    def _whole_lines(self) -> dict[str, float]:
        """Read all complete lines, and cut off an incomplete last line of a killed process."""
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
