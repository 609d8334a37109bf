"""How many requests are under way at once: as many as the server takes.

Additive increase, multiplicative decrease, as TCP does it. The limit doubles with every round until the server refuses
for the first time, and is halved then; from there it grows by one a round, slowly where the server refused before, and
falls by an eighth with a refusal, once a round.
"""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

FIRST = 1  # so that a wrong key costs one refusal
LESS = 7 / 8
PROBE = 0.1  # how much the limit grows in a round where the server refused before


class Slots:
    """An async context manager around each request: `async with slots:`."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(min(FIRST, most))
        self.used, self._round = 0, 0
        self._too_many = math.inf  # requests at once, as the last refusal taught
        self._free = asyncio.Condition()

    async def __aenter__(self) -> int:
        """Wait for a slot; gives the round in which the request starts, to be told again to `refused`."""
        async with self._free:
            await self._free.wait_for(lambda: self.used < int(self.limit))
            self.used += 1
            return self._round

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        async with self._free:
            self.used -= 1
            self._free.notify(max(0, int(self.limit) - self.used))

    def answered(self) -> None:
        """The server took a request: it may take more."""
        step = 1.0 if self._too_many == math.inf else (1 if self.limit + 1 < self._too_many else PROBE) / self.limit
        self.limit = min(float(self.most), self.limit + step)

    def refused(self, started: int) -> None:
        """The server is overloaded. Refusals of requests that started before the last decrease say nothing new."""
        if started == self._round:
            less = 1 / 2 if self._too_many == math.inf else LESS
            self._too_many, self.limit = self.limit, max(1.0, self.limit * less)
            self._round += 1
