"""Merging another machine's file of scores into this one: its scores, and the batches in which further ones wait.

A batch comes along because nobody may collect it where it was sent: that machine may be rented, and gone. It is paid
once, however many collect it. Here its most is booked on the account of its study, as if it had been sent here, so that
collecting it leaves there what it cost. Without that the account would end below the bill.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emlib.core.errors import DataError, StoreError
from emlib.core.names import is_name
from emlib.core.temporary import temporary_folder
from emlib.judging import sharing
from emlib.judging.cache import COLUMNS, Cache, Row
from emlib.judging.money import Budget

OF_BATCHES = ("batches", "sent_to", "waiting", "labels", "unanswered")  # tables of a file of scores


@dataclass(frozen=True)
class Scores:
    """A file of scores as it was read: the values of `COLUMNS`, and the rows of each of `OF_BATCHES`."""

    rows: list[Row]
    tables: Mapping[str, list[Row]]


def read(path: Path) -> Scores:
    """Read a file of scores and check it; it is not written, and may be missing.

    Raises:
        DataError: a row is no valid score, or no valid batch.
        StoreError: the file is damaged, or has another format.
    """
    if not path.is_file():
        return Scores([], {table: [] for table in OF_BATCHES})
    with temporary_folder() as folder:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, folder)
        try:
            with Cache(folder / path.name) as cache:
                found = Scores(cache.rows(), {table: cache.execute(f"SELECT * FROM {table}") for table in OF_BATCHES})
        except StoreError as error:
            raise StoreError(str(error).replace(str(folder / path.name), str(path))) from error
    _check_batches(path, found.tables)
    return Scores([sharing.checked(f"{path}: score {row[0]!r}", dict(zip(COLUMNS, row, strict=True)))
                   for row in found.rows], found.tables)


def _check_batches(path: Path, tables: Mapping[str, list[Row]]) -> None:
    for name, _, account, _, usd, _ in tables["batches"]:
        if not (account and 0 <= usd < math.inf):
            raise DataError(f"{path}: the batch {name!r} books ${usd!r} on {account!r}. Expected an account, and a "
                            "number that is not negative. Copy the file again from where it was written.")
    for key, metric, _ in tables["waiting"]:
        if not (sharing.KEY.fullmatch(key) and is_name(metric)):
            raise DataError(f"{path}: {key!r} ({metric!r}) waits in a batch. Expected a key of 64 hex digits and a "
                            "metric. Copy the file again from where it was written.")


def add(found: Scores, path: Path) -> tuple[int, int]:
    """Add to the file of scores at `path` what it lacks.

    Return how many scores were new, and of how many that wait in their batches there is no score yet.
    """
    if not (found.rows or any(found.tables.values())):
        return 0, 0
    with Cache(path) as cache:
        return cache.add(found.rows), _add_unscored(found.tables, cache)


def _add_unscored(tables: Mapping[str, list[Row]], cache: Cache) -> int:
    """Add the batches whose scores are missing here, and how often requests were left unanswered."""
    sent = {batch for batch, *_ in tables["batches"]}
    with cache.transaction():
        scored = cache.get(key for key, *_ in (*tables["waiting"], *tables["unanswered"]))
        collected = _collected(tables, cache)
        missing = {key: batch for key, _, batch in tables["waiting"]
                   if batch in sent and key not in scored and key not in collected}
        waiting = {key for (key,) in cache.execute("SELECT key FROM waiting")}
        known = {batch for (batch,) in cache.execute("SELECT name FROM batches")}
        _add_batches(tables, {batch for key, batch in missing.items() if key not in waiting} - known, cache)
        for key, batches, reason in tables["unanswered"]:
            if key not in scored:
                cache.execute("INSERT INTO unanswered VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                              "batches = max(batches, excluded.batches)", (key, batches, reason))
    return len(missing)


def _collected(tables: Mapping[str, list[Row]], cache: Cache) -> set[str]:
    """Return the keys whose batch was collected here since it was copied, and that it left unanswered."""
    theirs = {key: batches for key, batches, _ in tables["unanswered"]}
    return {key for key, batches in cache.execute("SELECT key, batches FROM unanswered")
            if batches > theirs.get(key, 0)}


def _add_batches(tables: Mapping[str, list[Row]], names: set[str], cache: Cache) -> None:
    """Record their batches of these names, without requests that wait in a batch of ours as well."""
    for batch in tables["batches"]:
        if batch[0] in names:
            _, _, account, _, usd, _ = batch
            Budget(cache, account).book(usd)  # no limit: it is spent already
            cache.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", batch)
    for batch, address in tables["sent_to"]:
        if batch in names:
            cache.execute("INSERT INTO sent_to VALUES (?, ?)", (batch, address))
    keys = {row[0]: row for row in tables["waiting"] if row[2] in names}
    for row in keys.values():
        cache.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?)", row)
    for label in tables["labels"]:
        if label[0] in keys:
            cache.execute("INSERT OR IGNORE INTO labels VALUES (?)", label)
