"""How a command ends that its user stops, or that meets an error which its user can fix: with no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emlib.core.errors import EmlibError

INTERRUPTED = 130  # the exit status that shells report after Ctrl-C


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
