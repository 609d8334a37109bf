"""Removing a profile's results, or its adapters, answers or verdicts if they are named.

    python -m emlib.workflow.cleaning demo                 # executed notebooks, tables, figures, logs
    python -m emlib.workflow.cleaning demo verdicts        # the verdicts of this profile's runs, and nothing else

Results are remade from the store within seconds. What else is in the folder of results is kept: the defenses that
notebook 18 writes there, any file of the user's, and `dtype.txt`, by which a study with `dtype: auto` finds its
artefacts. Other profiles with the same runs may share the artefacts.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from emlib.core import paths
from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.errors import StoreError, nearest
from emlib.core.of_kind import unknown_kinds_allowed
from emlib.core.step import Step
from emlib.core.temporary import sweep
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.answers import Answers, MetricScores, Verdicts
from emlib.steps.grpo import GrpoAdapter, GrpoRewards
from emlib.study import precision
from emlib.study.ownership import RECORD
from emlib.study.runs import FILES
from emlib.study.study import Study, open_study
from emlib.workflow.job_log import AttemptLog

# What a study makes in its folder of results.
MADE = (*FILES.values(), "panel.csv", "notebooks", "tables", "figures", "report", "tensorboard", "logs", "vllm-*.log",
        ".snakemake", paths.EFFECTIVE, RECORD, precision.RECORD, f".{precision.RECORD}.lock")
# The kinds that a user may name. A judge's single scores are in a separate file and are not among them.
KINDS: Mapping[str, tuple[type[Step], ...]] = {
    "adapters": (Adapter, KeptAdapter, GrpoAdapter), "answers": (Answers,),
    "verdicts": (Verdicts, MetricScores, GrpoRewards)}


def clean(study: Study, kinds: Sequence[str] = ()) -> str:
    """Remove the named kinds of the profile's artefacts, or the results in its folder if none is named.

    Return a message that says what was removed, and what else the folder holds.

    Raises:
        StoreError: a kind is not known, or a job of the profile is running. Nothing was removed.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise StoreError(f"There are no '{kind}' to remove.{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}. "
                             "Nothing was removed.")
    if study.folder.resolve() == study.store.root.resolve():
        raise StoreError(f"{study.folder}: this is the store, and no profile's results. A profile named "
                         f"'{study.name}' cannot be cleaned. Nothing was removed.")
    for log in sorted((study.folder / "logs").glob("*.log")):
        if AttemptLog(log).is_running():
            raise StoreError(f"{log.stem} is running. Stop the jobs of profile '{study.name}' first. "
                             "Nothing was removed.")
    if kinds:
        return "\n".join(_remove_artefacts(study, kind) for kind in kinds)
    if not study.folder.is_dir():
        return f"{study.name}: there are no results to remove."
    kept = (precision.RECORD, RECORD) if study.auto_dtype else ()  # the type, and for which profile it was decided
    return f"{_remove_results(study.folder, kept)} Adapters, answers and verdicts are kept."


def _remove_results(folder: Path, kept: Collection[str]) -> str:
    """Remove what the study made in its folder of results but `kept`, and the folder if nothing else is there."""
    sweep(folder, deep=False)
    for path in {path for made in MADE if made not in kept for path in folder.glob(made)}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if others := sorted(path.name for path in folder.iterdir()):
        return f"{folder}: the results were removed. Kept there: {', '.join(others)}."
    folder.rmdir()
    return f"{folder} was removed."


def steps_of(study: Study, kind: str) -> list[Step]:
    """Return the steps of one kind that the profile's runs end in, each once."""
    steps = dict.fromkeys(step for run in study.every_run() for step in study.own_steps(run))
    return [step for step in steps if isinstance(step, KINDS[kind])]


def _remove_artefacts(study: Study, kind: str) -> str:
    removed = sum(study.store.remove(step) for step in steps_of(study, kind))
    again = ("`make clean` and then `make reproduce` make them again." if kind == "verdicts" else
             f"Fine-tuned runs whose verdicts are kept count as finished: their {kind} are made again when something "
             "needs them. `make clean` and then `make reproduce` finish the other runs.")
    return f"{study.name}: {removed} {kind} were removed from {study.store.root}. {again}"


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.workflow.cleaning", "Remove a profile's results, or named artefacts.")
    parser.add_argument("kinds", nargs="*", help=f"the kinds of artefacts to remove: {', '.join(KINDS)}")
    asked = parser.parse_args(arguments)
    with unknown_kinds_allowed():  # runs no plugin; artefacts of unknown kinds are not touched
        print(clean(open_study(asked.profile), asked.kinds))


if __name__ == "__main__":
    main()
