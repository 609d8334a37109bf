"""Temporary files and folders: their names, by which what a killed process left is recognised and removed; their place.

A name holds the mark of its process (`emlib.core.process`). What another machine writes is never removed, because only
that machine knows whether its process is alive.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from emlib.core import process
from emlib.core.errors import EmlibError

MARK = re.compile(rf"\.({process.MARK})(?:\.|$)")
LONGEST = 120  # characters of a path's own name in the temporary one: file systems allow 255 bytes
FORMER = ".old"  # the ending of the former folder, while a new one takes its place
FOLDERS = "emlib-"  # the beginning of the names of temporary folders, which are short: sockets are in some of them
OWNER = ".owner"  # the file in a temporary folder that holds its mark
LONGEST_SOCKET = 107  # bytes of a socket's path on Linux
SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")


def named(path: Path, ending: str = "") -> Path:
    """Return a new hidden path beside `path`, with its suffix, for what shall replace it."""
    stem = path.stem.encode()[:LONGEST].decode(errors="ignore")
    return path.with_name(f".{stem}.{process.new_mark()}{path.suffix}{ending}")


@contextmanager
def temporary_folder(place: Path | None = None) -> Iterator[Path]:
    """Give a new folder in `place`, and delete it at the end, as well as those that killed processes left there.

    Without a place it is in the system's temporary folder.
    """
    place = place or Path(tempfile.gettempdir())
    for entry in place.glob(f"{FOLDERS}*/{OWNER}"):
        with contextlib.suppress(OSError):  # it ends, or is somebody else's
            if is_left(entry.read_text(encoding="utf-8")):
                remove(entry.parent)
    with tempfile.TemporaryDirectory(prefix=FOLDERS, dir=place) as folder:
        (Path(folder) / OWNER).write_text(f".{process.new_mark()}", encoding="utf-8")
        yield Path(folder)


def socket_folder(needed: int, others: Sequence[str] = SHORT_FOLDERS) -> Path:
    """Return the temporary folder, or another one if a socket's path that continues it by `needed` bytes is too long.

    On clusters TMPDIR may be longer than a socket's path may be.

    Raises:
        EmlibError: no such folder can be written.
    """
    tried = [tempfile.gettempdir(), *filter(None, [os.environ.get("XDG_RUNTIME_DIR")]), *others]
    for folder in tried:
        if len(os.fsencode(folder)) + needed <= LONGEST_SOCKET and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise EmlibError(f"no folder for sockets: a socket's path may have {LONGEST_SOCKET} bytes, and none of "
                     f"{', '.join(tried)} is short enough and can be written. Set TMPDIR to a folder whose path has at "
                     f"most {LONGEST_SOCKET - needed} bytes.")


def sweep(folder: Path, *, deep: bool = True) -> list[Path]:
    """Remove what killed processes of this machine were writing in a folder, and below it if `deep`.

    If one was killed while it replaced a folder, the former folder returns to its place. Return the removed paths.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        left = [name for name in (*folders, *files) if is_left(name)]
        for name in left:
            found.append(path := Path(place) / name)
            if not _put_back(path):
                remove(path)
        folders[:] = [name for name in folders if name not in left] if deep else []
    return found


def remove_unfinished(path: Path) -> None:
    """Remove all that was being written for `path`, on other machines too; the caller holds its lock.

    What a running process of this machine writes is kept nevertheless.
    """
    for other in path.parent.glob(f".*{escape(path.suffix)}"):
        mark = MARK.search(other.name)
        if mark is not None and other.name[1:mark.start()] == path.stem and (
                not process.is_of_this_machine(mark[1]) or process.has_ended(mark[1])):
            remove(other)


def is_left(name: str) -> bool:
    """Whether a name is that of a temporary file or folder whose process, on this machine, no longer runs."""
    found = MARK.search(name)
    return found is not None and process.has_ended(found[1])


def _put_back(path: Path) -> bool:
    """Return a former folder to its place, if no new one took it."""
    if not path.name.endswith(FORMER):
        return False
    mark = MARK.search(path.name)
    assert mark is not None, "only marked names are left"
    original = path.with_name(path.name[1:mark.start()] + path.name[mark.end() - 1:].removesuffix(FORMER))
    if original.exists():
        return False
    os.replace(path, original)
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder; another process may do so at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
