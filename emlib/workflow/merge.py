"""Taking over what another machine computed: its artefacts, its judges' scores, its finished slices.

    rsync -a elsewhere:emlib/runs/ /tmp/theirs/ && python -m emlib.workflow.merge /tmp/theirs

Everything is checked before anything is copied. An artefact is found by its key; where both sides have one of a key,
with another content, nothing at all is taken over, because what else came along may have been made from it. Nothing of
one's own is overwritten, and a merge that was interrupted is simply done again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emlib.config import profile_names
from emlib.core import paths
from emlib.core.digests import key_of
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import whole_file
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.judging import sharing
from emlib.judging.cache import Cache
from emlib.store.artefacts import Artefact, Store, settings_of
from emlib.study.ownership import owner_of
from emlib.training.records import LOG
from emlib.training.rl.records import STEPS
from emlib.workflow.graph import jobs
from emlib.workflow.job_log import AttemptLog

TIMED = (LOG, STEPS)  # files with seconds in them, in which two makings of one thing differ


@dataclass(frozen=True)
class Merged:
    """How much was new."""

    artefacts: int
    there_already: int
    scores: int
    slices: int


def merge(theirs: Path, ours: Path) -> Merged:
    """Take over what lies under `theirs`, a copy of another machine's folder of runs.

    Raises:
        StoreError: it holds no store, something in it is damaged, or both sides have one key with another content.
            Nothing was copied.
    """
    if not (theirs / "store").is_dir():
        raise StoreError(f"{theirs}: no folder 'store' in it. Expected a copy of another machine's runs/ (or of the "
                         "folder that EMLIB_RUNS_DIR names there).")
    store = Store(ours / "store")
    found = list(Store(theirs / "store").all())
    _refuse("are not what was made", [f"{_name(one)}: {why}" for one in found if (why := _damage(one))])
    there = {(one.stage, one.key): mine for one in found if (mine := store.at(one.stage, one.key)) is not None}
    _refuse("are there in both, with another content", [
        f"{_name(one)}: ours {there[one.stage, one.key].folder}, theirs {one.folder}" for one in found
        if (one.stage, one.key) in there and _content(one) != _content(there[one.stage, one.key])])
    new = [one for one in found if (one.stage, one.key) not in there]
    for one in new:
        store.adopt(one)
    return Merged(len(new), len(there), _scores(theirs, ours), _slices(theirs, ours))


def _damage(artefact: Artefact) -> str:
    """What is wrong with an artefact, if anything is."""
    if key_of(artefact.stage, settings_of(artefact.folder)) != artefact.key:
        return "its settings are not those of its key"
    try:
        artefact.checked()
    except StoreError as error:
        return str(error).split(". ")[0]
    return ""


def _content(artefact: Artefact) -> dict[str, str]:
    return {name: digest for name, digest in artefact.files.items() if name not in TIMED}


def _name(artefact: Artefact) -> str:
    return f"{artefact.stage}/{artefact.key}"


def _refuse(what: str, which: list[str]) -> None:
    if which:
        raise StoreError("\n".join([f"{len(which)} artefacts {what}. Nothing was copied.", *which,
                                    "Decide for one side, move the other's folder away (and what was made from it), "
                                    "and merge again."]))


def _scores(theirs: Path, ours: Path) -> int:
    """Judges' scores, one a key: those that are there already stay."""
    path = theirs / "scores.sqlite"
    if not path.is_file():
        return 0
    with tempfile.TemporaryDirectory(prefix="emlib-") as folder:  # the other side's files are only read
        for part in theirs.glob(f"{path.name}*"):
            shutil.copy(part, folder)
        exported = Path(folder) / "scores.jsonl"
        with Cache(Path(folder) / path.name) as cache:
            sharing.export(cache, exported)
        with Cache(ours / path.name) as cache:
            return sharing.import_(cache, exported)


def _slices(theirs: Path, ours: Path) -> int:
    """Executed slices that are missing here, if they ran what would run here, so that they need not run again.

    Chapters are read back from the store after that: they are to show all runs, and not those of one side.
    """
    copied = 0
    for name, profile in _profiles(theirs, ours):
        for job in jobs(profile):
            log, out = theirs / name / job.log, ours / name / job.output
            if job.part and not out.exists() and AttemptLog(log).ended_with(job.digest):
                for file in (job.log, job.output):  # the notebook last
                    with whole_file(ours / name / file) as aside:
                        shutil.copy(theirs / name / file, aside)
                copied += 1
    return copied


def _profiles(theirs: Path, ours: Path) -> Iterator[tuple[str, str]]:
    """The studies that have run there, by name, each with its profile where that is on this machine.

    Which profile a name means is said by the folder of results here, then by theirs, then by params/.
    """
    for logs in sorted(theirs.glob("*/logs")):
        name = logs.parent.name
        owner = owner_of(ours / name) or owner_of(theirs / name)
        if owner is not None and paths.study_name(str(owner)) == name:
            yield name, str(owner)
        elif name in profile_names():
            yield name, name


def main(arguments: list[str]) -> int:
    """The command line; the exit code is 1 after a refusal, with its message alone."""
    if len(arguments) != 1 or not arguments[0]:
        print("Name the folder to take over: make merge FROM=/a/copy/of/their/runs", file=sys.stderr)
        return 2
    try:
        with unknown_kinds_allowed():  # as status
            done = merge(Path(arguments[0]), paths.runs())
    except EmlibError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{done.artefacts} artefacts, {done.scores} scores of judges and {done.slices} executed slices are new; "
          f"{done.there_already} artefacts were there already. `make reproduce` goes on from here.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
