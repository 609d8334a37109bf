"""Scorers that a user gives as folders: their files, and whether they were trained on the defended data (section 3.2).

"Previously unseen" is checked by rows, whatever domain the profile states: emlib records the rows of each adapter that
it trains (`emlib.data.row_record`). An adapter without that record cannot be checked, and scoring says so.
"""

from __future__ import annotations

from pathlib import Path

from emlib.config import PoolScorer
from emlib.core import digests, paths
from emlib.core.errors import ProfileError, StoreError
from emlib.core.records import Example
from emlib.data import row_record
from emlib.data.domains import NarrowData

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
SEEN = 0.1  # shared rows, as a share of the smaller one of both sets, from which on a scorer has seen the data


def adapter_folder(scorer: PoolScorer) -> Path:
    """Return the folder of a user's own adapter; a relative path is relative to the project's folder.

    Raises:
        StoreError: a file of the adapter is missing.
    """
    folder = paths.ROOT / Path(str(scorer.folder)).expanduser()
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise StoreError(f"{folder}: there is no adapter ({', '.join(missing)} is missing). Expected the folder of a "
                         f"PEFT adapter, with {' and '.join(ADAPTER_FILES)}.")
    return folder


def unseen_digests(folder: Path, data: NarrowData | None) -> dict[str, str]:
    """Return the file digests of a user's own adapter, which identify it in keys.

    Raises:
        ProfileError: it was trained on `data`, the defended data set, on either side of it.
    """
    if data is not None and (evidence := _evidence(folder, data)):
        raise ProfileError(f"{folder}: this adapter was trained on '{data.name}', which is the defended data set "
                           f"({evidence}). Scorers must not be trained on it (section 3.2). Name an adapter of another "
                           "domain.")
    return {name: digests.of_unchanged_file(folder / name) for name in ADAPTER_FILES}


def remark(folder: Path, data: NarrowData | None) -> str:
    """Return what a user should know about an adapter that is not refused; empty if there is nothing."""
    if data is None:
        return ""
    recorded = row_record.read(folder)
    if recorded is None:
        return (f"{folder} has no record of the rows that it was trained on ({row_record.FILE}), so emlib cannot check "
                f"that '{data.name}', the defended data set, is not among them. Scorers must not be trained on it.")
    shared = len(recorded & _rows_of(data))
    return "" if not shared else (f"{folder}: {shared} of its {len(recorded)} training rows are also in '{data.name}', "
                                  "the defended data set.")


def _evidence(folder: Path, data: NarrowData) -> str:
    """Return what shows that the adapter was trained on the data; empty if nothing does."""
    recorded = row_record.read(folder)
    if recorded is None:
        return ""
    defended = _rows_of(data)
    shared = len(recorded & defended)
    seen = shared > 0 and shared >= SEEN * min(len(recorded), len(defended))
    return f"{shared} of its {len(recorded)} training rows are in it" if seen else ""


def _rows_of(data: NarrowData) -> frozenset[str]:
    rows: list[Example] = [row for side in data.sides.values() for row in (*side.train, *side.held_out)]
    return row_record.digests_of(rows)
