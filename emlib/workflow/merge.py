"""Merging what another machine computed: its artefacts, the scores of judges and labels of people, finished slices.

    rsync -a elsewhere:emlib/runs/ /tmp/theirs/ && python -m emlib.workflow.merge /tmp/theirs

Everything is checked before anything is copied. If both sides have an artefact with the same key and different content,
nothing is copied, because other artefacts may have been made from it; nor if one side has removed it, and what was made
from it there is of another content. No artefact here is overwritten. Of two labels that one person gave to one answer
the later one holds. Batches of judges that are still open there can be collected on either side afterwards. An
interrupted merge can be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from emlib.core import paths
from emlib.core.commands import ends_with_message
from emlib.core.errors import StoreError
from emlib.core.files import read_records, write_objects, write_text
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.judging import merging
from emlib.judging.judges import SCORES
from emlib.models import hub
from emlib.store.artefacts import Store
from emlib.study import precision
from emlib.workflow import merge_artefacts, merge_studies


@dataclass(frozen=True)
class Merged:
    """How many artefacts, scores and slices were new, and how many artefacts were here already.

    `waiting` is how many scores wait in batches that were sent there, and `left` how many files of losses stay there.
    """

    artefacts: int
    here_already: int
    scores: int
    slices: int
    waiting: int = 0
    left: int = 0


def merge(theirs: Path, ours: Path) -> Merged:
    """Merge `theirs`, a copy of another machine's folder of runs, into `ours`.

    Raises:
        StoreError: `theirs` has no store, a store has another format, an artefact on one of the sides is damaged, or
            both have, or used, different content under one key, commits of a model or data types. Nothing was copied.
        DataError: a score there is not valid. Nothing was copied.
    """
    if not (theirs / paths.STORE).is_dir():
        raise StoreError(f"{theirs}: no folder 'store' in it. Expected a copy of another machine's runs/ (or of the "
                         "folder that EMLIB_RUNS_DIR names there).")
    store, other = Store(ours / paths.STORE), Store(theirs / paths.STORE)
    of_models = merge_artefacts.commits(store.root, other.root)
    new, here_already = merge_artefacts.compared(store, other)
    labels = {path.name: _later(_labels(path), _labels(ours / paths.LABELS / path.name))
              for path in sorted((theirs / paths.LABELS).glob("*.jsonl"))}
    scores, types = merging.read(theirs / SCORES), merge_studies.new_types(theirs, ours)
    ended = merge_studies.ended_slices(theirs, ours)
    if of_models:
        hub.record(store.root, of_models)
    for one in new:
        store.adopt(one)
    for study, dtype in types.items():
        write_text(ours / study / precision.RECORD, f"{dtype}\n")
    for name, both in labels.items():
        write_objects(ours / paths.LABELS / name, both)
    rows, waiting = merging.add(scores, ours / SCORES)
    slices = merge_studies.copy_slices(ended, theirs, ours)
    left = len(merge_artefacts.other_losses(other.root, store.root))
    return Merged(len(new), here_already, rows, slices, waiting, left)


def _labels(path: Path) -> list[dict[str, Any]]:
    """Return a person's labels; none without a file."""
    return read_records(path, dict) if path.is_file() else []


def _later(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one label for each key: of several the later one, and of two of one second ours."""
    return list({label["key"]: label for label in sorted([*theirs, *ours], key=itemgetter("made"))}.values())


@ends_with_message()
def main(arguments: list[str]) -> None:
    """Run the command line."""
    if len(arguments) != 1 or not arguments[0]:
        print("Name the folder to merge: make merge FROM=/a/copy/of/their/runs", file=sys.stderr)
        sys.exit(2)
    with unknown_kinds_allowed():  # runs no plugin
        done = merge(Path(arguments[0]), paths.runs())
    print(f"{done.artefacts} artefacts, {done.scores} scores of judges and {done.slices} executed slices are new; "
          f"{done.here_already} artefacts were here already. `make reproduce` continues from here.")
    if done.left:
        print(f"{done.left} file{'s' if done.left > 1 else ''} with losses of pool rows (store/nll) "
              f"{'were' if done.left > 1 else 'was'} not copied: which training they are of is not known. Whole pools "
              "that were scored are among the artefacts; of others the rest is scored here again.")
    if done.waiting:
        print(f"{done.waiting} scores wait in batches that were sent there. With the same API key `make reproduce` "
              "collects them here as well, and they are paid once. With another key it requests them again: collect "
              "them there first (`make reproduce` there), and merge again.")


if __name__ == "__main__":
    main(sys.argv[1:])
