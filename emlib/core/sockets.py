"""A folder for sockets, whose paths have at most 107 bytes on Linux; on clusters TMPDIR may be longer than that."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emlib.core.errors import EmlibError

LONGEST = 107  # bytes of a socket's path
OTHERS = ("/tmp", "/dev/shm", "/var/tmp")


def socket_folder(needed: int, others: Sequence[str] = OTHERS) -> Path:
    """Return the temporary folder, or another one if a path that continues it by `needed` bytes would be too long.

    Raises:
        EmlibError: no such folder can be written.
    """
    tried = [tempfile.gettempdir(), *filter(None, [os.environ.get("XDG_RUNTIME_DIR")]), *others]
    for folder in tried:
        if len(os.fsencode(folder)) + needed <= LONGEST and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise EmlibError(f"no folder for sockets: a socket's path may have {LONGEST} bytes, and none of "
                     f"{', '.join(tried)} is short enough and can be written. Set TMPDIR to a folder whose path has at "
                     f"most {LONGEST - needed} bytes.")
