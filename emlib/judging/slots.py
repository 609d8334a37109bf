"""A limit on concurrent requests that adapts to what the server accepts, and spreads their starts.

Additive increase, multiplicative decrease, as in TCP. The first answer opens a window of ten, which then doubles in
every round until the server refuses a request. The number of requests in progress when the refused one started counts
as too many: the limit falls to seven eighths of it, at most once a round. It then grows by one a round, and more slowly
near the number that was refused before, so that occasional refusals do not keep it low for long.

Requests that start together also return together, and the server idles while their results are processed. So they
start one after the other, spread over most of the time that an answer takes.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from types import TracebackType

FIRST = 1  # so that a wrong key causes one refusal only
WINDOW = 10  # once the server has answered; TCP's initial window (RFC 6928)
LESS = 7 / 8
PROBE = 0.1  # how much the limit grows in a round where the server refused before
SPREAD = 0.75  # of an answer's time; less than 1, to catch up after a pause
SMOOTH = 1 / 8  # weight of the newest answer in the mean time of an answer, as in TCP (RFC 6298)


@dataclass(frozen=True)
class Start:
    """The start of a request: its round, its time, and the number of requests then in progress."""

    round: int
    time: float
    under_way: int


class Slots:
    """An async context manager around each request: `async with slots as start:`."""

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(min(FIRST, most))
        self.used, self._round = 0, 0
        self._too_many = math.inf  # concurrent requests at the last refusal
        self._takes = self._next = 0.0  # mean seconds until an answer; when the next request may start
        self._free = asyncio.Condition()

    async def __aenter__(self) -> Start:
        """Wait for a slot and for the start time; return the argument of `answered` and `refused`."""
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
        """Record that the server answered a request: raise the limit."""
        took = asyncio.get_running_loop().time() - start.time
        if self._too_many == math.inf:
            more = max(self.limit + 1, WINDOW)
        else:
            near = 0 <= self.limit + 1 - self._too_many < 2
            more = self.limit + (PROBE if near else 1) / self.limit
        self.limit = min(float(self.most), more)
        self._takes += SMOOTH * (took - self._takes) if self._takes else took

    def refused(self, start: Start) -> None:
        """Record an overload: lower the limit, unless the request started before the last decrease."""
        if start.round == self._round:
            self._too_many, self.limit = start.under_way, max(1.0, start.under_way * LESS)
            self._round += 1
