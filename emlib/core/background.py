"""Work in background threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any, TypeVar

from emlib.core.progress import quiet

Found = TypeVar("Found")


class BackgroundWorker(AbstractContextManager["BackgroundWorker"]):
    """One thread that runs submitted calls in order. After the first error, in it or in the caller, it starts no more.

    An error in the thread is raised in the caller at the next `submit`, or at the end of the `with` block.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._given: list[Future[Any]] = []
        self._failed = False

    def submit(self, work: Callable[..., Found], *args: Any) -> Future[Found]:
        """Run `work` in the thread, after everything submitted before it."""
        for each in filter(Future.done, self._given):
            each.result()
        found = self._pool.submit(self._in_turn, work, *args)
        self._given.append(found)
        return found

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for all submitted calls; after an error in the caller, only for the call that is running."""
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for each in self._given:  # the call that failed comes before those cancelled because of it
                each.result()

    def _in_turn(self, work: Callable[..., Found], *args: Any) -> Found:
        if self._failed:
            raise CancelledError
        try:
            return work(*args)
        except BaseException:
            self._failed = True
            raise


class SharedClock:
    """Divides time among threads that work at once: at each moment all of them have an equal share."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._lock = now, Lock()
        self._shares: dict[object, float] = {}  # of those that work now
        self._last = 0.0

    @contextmanager
    def share(self) -> Iterator[Callable[[], float]]:
        """Count the body's share of the time. Give the function that returns it, in seconds, after the body."""
        one, found = object(), list[float]()
        with self._lock:
            self._divide()
            self._shares[one] = 0.0
        try:
            yield lambda: found[0]
        finally:
            with self._lock:
                self._divide()
                found.append(self._shares.pop(one))

    def _divide(self) -> None:
        now = self._now()
        for one in self._shares:
            self._shares[one] += (now - self._last) / len(self._shares)
        self._last = now


@contextmanager
def run_concurrently(works: Sequence[Callable[[], Found]], stop: Callable[[], None]) -> Iterator[Iterator[Found]]:
    """Run each callable in a separate thread and yield an iterator over their results, in order; meant for I/O.

    If one of them fails, or the body of the `with` block does, `stop` is called, which must make the others end soon;
    then the first error is raised.
    """
    failed: list[BaseException] = []

    def watched(work: Callable[[], Found]) -> Found:
        try:
            with quiet():
                return work()
        except BaseException as error:
            failed.append(error)
            stop()
            raise

    with ThreadPoolExecutor(max(1, len(works)), "together") as pool:
        begun = [pool.submit(watched, work) for work in works]
        try:
            yield (each.result() for each in begun)
        except BaseException as error:
            first = failed[0] if failed else error  # later errors come from stopping the others
            stop()
            raise first from first.__cause__
