"""What commands have in common: a command line that begins with a profile, and an end with an error's message."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emlib.core.errors import EmlibError

INTERRUPTED, NO_READER = 130, 141  # the exit statuses that shells report after Ctrl-C, and of `command | head`
STOPPED = "SIGTERM: it was cancelled, or its time was over"


def profile_parser(prog: str, about: str) -> argparse.ArgumentParser:
    """Return a parser whose first argument is a profile; the command adds its own."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("profile", help="a name in params/, or the path of a YAML file")
    return parser


@contextmanager
def ends_with_message(status: int = 1) -> Iterator[None]:
    """Print an error's message alone and exit with this status, in a `with` block or as a function's decorator."""
    try:
        yield
    except EmlibError as error:
        print(error, file=sys.stderr)
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        if _is_read():
            raise
        sys.exit(NO_READER)


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM, with which schedulers cancel a job or end it when its time is over.

    Only at the first one, so that the way out is not interrupted: Slurm sends it to every process, and srun passes it
    on once more.
    """
    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt(STOPPED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_read() -> bool:
    """Return whether somebody still reads the output; if not, drop what is left of it, which Python would write."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(events & select.POLLERR for _, events in output.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return False
