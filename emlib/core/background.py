"""Work in threads beside this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from emlib.core.progress import quiet

Found = TypeVar("Found")


class BackgroundWorker(AbstractContextManager["BackgroundWorker"]):
    """One thread that does what it is given in turn, until something fails there or here; then nothing more is begun.

    What fails there is raised here when the next work is given, or at the end.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)
        self._given: list[Future[Any]] = []
        self._failed = False

    def submit(self, work: Callable[..., Found], *args: Any) -> Future[Found]:
        """Have `work` done in its turn."""
        self._raise([each for each in self._given if each.done()])
        found = self._pool.submit(self._in_turn, work, *args)
        self._given.append(found)
        return found

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Wait for what was given; where something failed here, only for what was begun."""
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._raise(self._given)

    def _in_turn(self, work: Callable[..., Found], *args: Any) -> Found:
        if self._failed:
            raise CancelledError
        try:
            return work(*args)
        except BaseException:
            self._failed = True
            raise

    @staticmethod
    def _raise(ended: list[Future[Any]]) -> None:
        for each in ended:  # in the order given: what failed comes before what was left out for it
            each.result()


@contextmanager
def run_concurrently(works: Sequence[Callable[[], Found]], stop: Callable[[], None]) -> Iterator[Iterator[Found]]:
    """What comes of all these, in their order. Each has a thread of its own, in which it mostly waits for others.

    Where one of them fails, or what is done with the outcomes, `stop` is called, which has to end the others soon; the
    first error is raised then.
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
            first = failed[0] if failed else error  # those after it were stopped
            stop()
            raise first from first.__cause__
