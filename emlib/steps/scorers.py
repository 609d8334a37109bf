"""Scorers of the pool: whether they were trained on the defended data (section 3.2), and the files of a user's own.

"Previously unseen" is checked by rows, whatever domain the profile states: of a scorer that the study trains, those of
its data set, and of one that a user gives as a folder, those that emlib records of each adapter that it trains
(`emlib.data.row_record`). An adapter without that record cannot be checked, and scoring says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emlib.config import PoolScorer
from emlib.core import digests, paths
from emlib.core.digests import Keyed
from emlib.core.errors import ProfileError, StoreError
from emlib.core.records import Example
from emlib.data import row_record
from emlib.data.domains import NarrowData
from emlib.data.lazy import Deferred, Rows
from emlib.models import adapter_config

ADAPTER_FILES = (adapter_config.WEIGHTS, adapter_config.CONFIG)
SEEN = 0.1  # shared rows, as a share of the smaller one of both sets, from which on a scorer has seen the data


@dataclass(frozen=True)
class Defended:
    """A defended data set: the digests of the rows that the study has of it, and of all rows of its files.

    Another study may have chosen other rows of the same files.
    """

    name: str
    rows: frozenset[str]
    every: frozenset[str]

    @classmethod
    def of(cls, data: NarrowData, every: Iterable[Example]) -> Defended:
        """Take the data set, and the rows from which its own were chosen."""
        rows = (row for side in data.sides.values() for row in (*side.train, *side.held_out))
        return cls(data.name, row_record.digests_of(rows), row_record.digests_of(every))

    def seen_by(self, recorded: frozenset[str]) -> bool:
        """Return whether an adapter that was trained on the recorded rows has seen this data set."""
        return any(rows & recorded and len(rows & recorded) >= SEEN * min(len(recorded), len(rows))
                   for rows in (self.rows, self.every))

    def refuse_seen(self, scorer: str, recorded: frozenset[str]) -> None:
        """Refuse a scorer, trained on the recorded rows, that has seen this data set.

        Raises:
            ProfileError: it has, on either side of it.
        """
        if self.seen_by(recorded):
            raise ProfileError(
                f"{scorer} trained on '{self.name}', which is the defended data set ({len(recorded & self.every)} of "
                f"its {len(recorded)} training rows are in the files of that set). Scorers must not be trained on it "
                "(section 3.2). Name a scorer of another domain.")


def refuse_seen(trained_on: Mapping[str, Rows], defended: Deferred[Defended | None]) -> None:
    """Refuse scorers that the study trains on rows, by their domain, of which the defended data set has too many.

    Raises:
        ProfileError: one of them has seen the defended data set.
    """
    if trained_on and defended.value is not None:
        for domain, rows in trained_on.items():
            defended.value.refuse_seen(f"pool: the scorer of '{domain}' is", row_record.digests_of(rows.examples))


@dataclass(frozen=True)
class AdapterFolder(Keyed):
    """A user's own adapter that scores the pool, and the defended data set that it must not have been trained on."""

    folder: Path
    defended: Deferred[Defended | None] = field(compare=False, repr=False)  # None for a task without narrow data

    @property
    def identity(self) -> dict[str, str]:
        """The digests of its files.

        Raises:
            ProfileError: it was trained on the defended data set, on either side of it.
        """
        recorded = row_record.read(self.folder)
        data = None if recorded is None else self.defended.value  # whose files are read only to compare them
        if data is not None and recorded is not None:
            data.refuse_seen(f"{self.folder}: this adapter was", recorded)
        return {name: digests.of_unchanged_file(self.folder / name) for name in ADAPTER_FILES}

    @property
    def title(self) -> str:
        """Its folder, for plans."""
        return str(self.folder)

    @property
    def remark(self) -> str:
        """A sentence where it cannot be checked, or has seen a few rows of the defended data; else an empty text."""
        data, recorded = self.defended.value, row_record.read(self.folder)
        if data is None:
            return ""
        if recorded is None:
            return (f"{self.folder} has no record of the rows that it was trained on ({row_record.FILE}), so emlib "
                    f"cannot check that '{data.name}', the defended data set, is not among them. Scorers must not be "
                    "trained on it.")
        shared = len(recorded & data.every)
        return "" if not shared else (f"{self.folder}: {shared} of its {len(recorded)} training rows are also in "
                                      f"'{data.name}', the defended data set.")


def adapter_folder(scorer: PoolScorer) -> Path:
    """Return the folder of a user's own adapter; a relative path is relative to the project's folder.

    Raises:
        StoreError: a file of the adapter is missing.
        ProfileError: it is of a kind that would change the base model.
    """
    folder = paths.ROOT / Path(str(scorer.folder)).expanduser()
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise StoreError(f"{folder}: there is no adapter ({', '.join(missing)} is missing). Expected the folder of a "
                         f"PEFT adapter, with {' and '.join(ADAPTER_FILES)}.")
    adapter_config.read(folder)
    return folder
