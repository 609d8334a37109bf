"""A cache of each row's loss under one model: a file of JSON lines, extended batch by batch.

A line holds one batch and a check of itself, and is written at once. A killed process leaves a complete batch or none,
so that a resumed run forms the same batches and gets the same numbers. A row's key is the digest of its tokens, so that
a loss computed for one pool is reused in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from emlib.core.files import append, disk_errors, line_of, value_of, whole_file
from emlib.core.progress import say

FOLDER = "nll"  # in the store: the caches of rows of pools


class LossCache:
    """The losses under one (model, adapter), in nats per token, by row digest.

    `added` counts the losses that were computed, and stored, through this object: the others were known before.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.added = path, 0

    @contextmanager
    def opened(self) -> Iterator[dict[str, float]]:
        """Lock the file and give its losses; another process waits for the lock, and then finds the new losses too."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            yield self._whole_lines()

    def append(self, losses: Mapping[str, float]) -> None:
        """Add one batch. NaN and infinite losses are stored too (as null): computing them again would not help."""
        append(self.path, line_of({row: loss if math.isfinite(loss) else None for row, loss in losses.items()}))
        self.added += len(losses)

    def _whole_lines(self) -> dict[str, float]:
        """Read all whole lines. Remove damaged ones, and an incomplete last line of a killed process, from the file."""
        if not self.path.is_file():
            return {}
        *lines, rest = self.path.read_bytes().split(b"\n")
        batches = [_batch(line) for line in lines]
        found = {row: loss for batch in batches if batch is not None for row, loss in batch.items()}
        damaged = batches.count(None)
        if damaged:
            say(f"{self.path}: {damaged} of {len(lines)} lines are damaged; their losses are computed again")
        if damaged or rest:
            whole = [line for line, batch in zip(lines, batches, strict=True) if batch is not None]
            with whole_file(self.path) as aside:
                aside.write_bytes(b"".join(line + b"\n" for line in whole))
        return found


def _batch(line: bytes) -> dict[str, float] | None:
    """Return the losses of a line; None if it is damaged."""
    try:
        return {row: math.nan if loss is None else float(loss) for row, loss in value_of(line.decode()).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
