"""Scores that a process is asking for, so that no other process asks and pays for the same ones meanwhile.

A score is looked up and reserved in one transaction, just before its request is sent. Whoever finds it reserved asks
for others first and then waits until it is there, or free. It becomes free when its owner lets it go; when the owner,
on the same machine, no longer runs; or when the owner has not renewed it for `LIFETIME` (it may run on a machine that
was switched off). What waits in a batch that was sent to the same server (`emlib.judging.batches`) is being asked for,
too, until that batch is collected.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable

from emlib.core.process import has_ended, new_mark
from emlib.judging.cache import Cache
from emlib.judging.rubrics import Score

LIFETIME, RENEWAL = 120.0, 30.0  # seconds
FORGOTTEN = 86_400.0  # seconds after its end at which a reservation is deleted


class Reservations:
    """The reservations of one session, which asks the server at `address`."""

    def __init__(self, cache: Cache, address: str = "") -> None:
        self.cache, self.address, self.owner = cache, address, new_mark()

    def take(self, key: str) -> Score | bool:
        """Return the score if it is there; else whether it could be reserved for this session."""
        with self.cache.transaction():
            found = self.cache.get([key])
            if found:
                return found[key]
            other = self.cache.execute("SELECT owner, expires FROM reserved WHERE key = ?", (key,))
            if self.in_batches([key]) or (other and other[0][0] != self.owner and is_held(*other[0])):
                return False
            self.cache.execute("INSERT OR REPLACE INTO reserved VALUES (?, ?, ?)",
                               (key, self.owner, time.time() + LIFETIME))
            return True

    def release(self, key: str) -> None:
        """Let one score go: it is stored, or others may try."""
        self.cache.execute("DELETE FROM reserved WHERE key = ? AND owner = ?", (key, self.owner))

    def renew(self) -> None:
        """Hold all reservations of this session for another `LIFETIME`."""
        self.cache.execute("UPDATE reserved SET expires = ? WHERE owner = ?", (time.time() + LIFETIME, self.owner))

    def release_all(self) -> None:
        """Let everything go, and delete what was left behind long ago."""
        self.cache.execute("DELETE FROM reserved WHERE owner = ? OR expires < ?", (self.owner, time.time() - FORGOTTEN))

    def in_batches(self, keys: Iterable[str]) -> set[str]:
        """Return which of these scores wait in a batch that was sent to the server, or by a version that noted none."""
        return {key for (key,) in self.cache.execute(
            "SELECT key FROM waiting LEFT JOIN sent_to USING (batch) WHERE (address IS NULL OR address = ?) "
            "AND key IN (SELECT value FROM json_each(?))", (self.address, json.dumps(list(keys))))}

    def by_others(self) -> set[str]:
        """Return the scores that other sessions are asking for."""
        return {key for key, owner, expires in self.cache.execute("SELECT key, owner, expires FROM reserved")
                if owner != self.owner and is_held(owner, expires)}


def is_held(owner: str, expires: float) -> bool:
    """Return whether a reservation still holds: it was renewed lately, and its owner is not known to have ended."""
    return time.time() <= expires and not has_ended(owner)
