"""How many requests are under way at once: as many as the server takes, and not all of them in one instant.

Additive increase, multiplicative decrease, as TCP does it. The first answer opens a window of ten, which then doubles
with every round until the server refuses. A refusal tells how many were too many: those that were under way when the
refused request started. The limit falls by an eighth below that, once a round, and grows by one a round, but slowly
where the server refused before: what it refuses now and then, whatever is under way, shall not hold it down for long.

Requests that leave together come back together, and the last of them then waits for the work on all others while the
server has nothing to do. So they leave one after the other, spread over most of the time that an answer takes.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from types import TracebackType

FIRST = 1  # so that a wrong key costs one refusal
WINDOW = 10  # once the server has answered; TCP's initial window (RFC 6928)
LESS = 7 / 8
PROBE = 0.1  # how much the limit grows in a round where the server refused before
SPREAD = 0.75  # of an answer's time; less than all of it, so that a pause is caught up with
SMOOTH = 1 / 8  # share of the newest answer in the mean time of an answer, as in TCP (RFC 6298)


@dataclass(frozen=True)
class Start:
    """When a request started: in which round, at what time, and how many were under way with it."""

    round: int
    time: float
    under_way: int


class Slots:
    """An async context manager around each request: `async with slots as start:`."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(min(FIRST, most))
        self.used, self._round = 0, 0
        self._too_many = math.inf  # requests at once, as the last refusal taught
        self._takes = self._next = 0.0  # seconds until an answer; when the next request may leave
        self._free = asyncio.Condition()

    async def __aenter__(self) -> Start:
        """Wait for a slot and for one's turn; gives what `answered` and `refused` have to be told."""
        async with self._free:
            await self._free.wait_for(lambda: self.used < int(self.limit))
            self.used += 1
            start = Start(self._round, max(asyncio.get_running_loop().time(), self._next), self.used)
            self._next = start.time + SPREAD * self._takes / self.limit
        await asyncio.sleep(start.time - asyncio.get_running_loop().time())
        return start

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        async with self._free:
            self.used -= 1
            self._free.notify(max(0, int(self.limit) - self.used))

    def answered(self, start: Start) -> None:
        """The server took a request: it may take more."""
        took = asyncio.get_running_loop().time() - start.time
        if self._too_many == math.inf:
            more = max(self.limit + 1, WINDOW)
        else:
            near = 0 <= self.limit + 1 - self._too_many < 2
            more = self.limit + (PROBE if near else 1) / self.limit
        self.limit = min(float(self.most), more)
        self._takes += SMOOTH * (took - self._takes) if self._takes else took

    def refused(self, start: Start) -> None:
        """The server is overloaded. Refusals of requests that started before the last decrease say nothing new."""
        if start.round == self._round:
            self._too_many, self.limit = start.under_way, max(1.0, start.under_way * LESS)
            self._round += 1
