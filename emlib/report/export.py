"""Exports of a study: an adapter with its model card, and a data set with its defense applied.

    python -m emlib.report.export adapter demo --dataset cooking --method kl --setting 1 --to my-adapter
    python -m emlib.report.export data own --method interleaving --setting 0.5 --to mixed.jsonl

Nothing leaves the machine unless `--push-to owner/name` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from emlib.config import ALIGNED, OWN
from emlib.core.addresses import ask_directly
from emlib.core.commands import ends_with_message
from emlib.core.defense import acting, left_out, needs_of
from emlib.core.errors import ProfileError, StoreError
from emlib.core.files import whole_file, write_text
from emlib.core.records import Example
from emlib.core.registry import kinds
from emlib.data import row_record
from emlib.data.lazy import Rows
from emlib.data.mixing import interleave, rows_to_add
from emlib.data.own import every_row
from emlib.report.card import card
from emlib.steps.scorers import ADAPTER_FILES
from emlib.study.runs import Run
from emlib.study.study import Study, open_study


def adapter(study: Study, run: Run, folder: Path) -> Path:
    """Write the run's adapter in PEFT's format, with a model card; `folder` must be new or empty.

    Raises:
        StoreError: the run has no adapter or is not finished, or the folder is not empty.
    """
    if study.task(run).adapter(run) is None:
        raise StoreError(f"{run} trains nothing, so there is no adapter to export. Name a method that is fine-tuned.")
    found, result = study.adapter(run), study.result(run)
    if found is None or result is None:
        raise StoreError(f"{run} is not finished, so there is no adapter with measured rates to export. Run "
                         f"`{study.command}` first.")
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty. Nothing was written; name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    recorded = () if run.task == OWN else tuple(name for name in (row_record.FILE,) if found.has(name))
    for name in (*ADAPTER_FILES, *recorded):  # the user's own rows may be private, their digests too
        shutil.copyfile(found.file(name), folder / name)
    write_text(folder / "README.md", card(study, result))
    return folder


def push(folder: Path, repo: str) -> str:
    """Upload a folder that `adapter` wrote to a private repository of the hub, and return its address.

    The token comes from the environment (HF_TOKEN), or from `hf auth login`.

    Raises:
        StoreError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    api = HfApi()
    try:
        url = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="An adapter and its model card")
    except (HfHubHTTPError, OSError) as error:
        raise StoreError(f"{repo}: the hub refused the upload ({error}). Is HF_TOKEN set to a token that may write "
                         f"there? The adapter is in {folder}.") from error
    return str(url)


def mixed_data(study: Study, run: Run, path: Path) -> int:
    """Write the run's whole data set, with its defense applied, as chat JSON Lines, and return the number of rows.

    The format, one `{"messages": [...]}` per line, is that of OpenAI's fine-tuning and most other services. All rows
    of the user's own file are written, not only those of the trial; added rows are spread uniformly. A turn keeps the
    `weight` that its file states.

    Raises:
        ProfileError: a defense of the run changes the training itself, which a service does not offer, or the run has
            no training rows.
        DataError: the pool has too few rows.
    """
    defenses = study.defenses(run)
    other = sorted({defense.kind for defense in defenses if not defense.data_only})
    if other:
        able = ", ".join(kind for kind, cls in kinds().items() if cls.data_only)
        raise ProfileError(f"{run}: {', '.join(other)} changes the training and not the data, so it cannot be "
                           f"exported as a data set. Kinds that can: {able}.")
    trained, count, rows = _whole(study, run)
    added = _added(study, run, trained)
    if any(not row.context for row in added):
        raise ProfileError(f"{run} mixes in plain texts, and a fine-tuning service takes conversations only.")
    order = interleave(range(count), range(count, count + len(added)))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for place in order:
            row = next(rows) if place < count else added[place - count]
            turns = [turn.to_record() for turn in row.turns]
            out.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return len(order)


def _whole(study: Study, run: Run) -> tuple[int, int, Iterator[Example]]:
    """Return how many training rows the run has, how many its defenses keep, and these as the defenses change them."""
    data, recipes = study.data(run.task), study.recipes
    known = (data.aligned if run.method == ALIGNED else data.misaligned).train
    if study.training(run) is None or not known:
        raise ProfileError(f"{run} has no training rows, so there is no data set to export. Name a method that is "
                           "fine-tuned on this data set.")
    count, read = (recipes.inputs.own_rows.usable, lambda: every_row(recipes.inputs.own)) if run.task == OWN else (
        len(known), lambda: iter(known))
    defenses = study.defenses(run)
    without = _left_out(study, run, lambda: tuple(read()))
    return count, count - len(without), (changed for place, row in enumerate(read()) if place not in without
                                         for changed in recipes.defended((row,), defenses))


def _left_out(study: Study, run: Run, read: Callable[[], tuple[Example, ...]]) -> frozenset[int]:
    """Return the places of the rows, of all that `read` returns, that the run's defenses leave out."""
    spec = study.training(run)
    filtering = [defense for defense in acting(study.defenses(run)) if defense.has("filtered")]
    if spec is None or not filtering:
        return frozenset()
    rows = Rows(f"{run.task}, whole", read, spec.rows.size)
    whole = replace(spec, rows=rows, plain_rows=rows)
    with study.session() as session:
        artefacts = {name: session.folder_of(step) for name, step in needs_of(filtering, study.recipes, whole).items()}
    return left_out(filtering, rows.examples, artefacts)


def _added(study: Study, run: Run, count: int) -> list[Example]:
    """Return the rows of the pool that are interleaved with `count` rows, of which `filtering` may leave some out."""
    steps = study.task(run).pool_rows(run)
    if not steps:
        return []
    from emlib.make.added import added_rows  # loads torch

    with study.session() as session:
        return [row.example for step in steps
                for row in added_rows(session, step, rows_to_add(count, step.fraction), str(run))]


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m emlib.report.export",
                                     description="Export an adapter or a data set.")
    parser.add_argument("what", choices=("adapter", "data"))
    parser.add_argument("profile", help="a name in params/, or the path of a YAML file")
    parser.add_argument("--dataset", help="the run's data set; required if the profile has several")
    parser.add_argument("--method", required=True)
    parser.add_argument("--setting", type=float, help="the hyperparameter value; required if the method has several")
    parser.add_argument("--seed", type=int, help="required if the profile has several")
    parser.add_argument("--to", type=Path, required=True, help="a new folder, or the file of the data set")
    parser.add_argument("--push-to", help="also upload the adapter into this private repository of the hub: owner/name")
    asked = parser.parse_args(arguments)
    if asked.push_to and asked.what != "adapter":
        parser.error("--push-to is for adapters")
    study = open_study(asked.profile)
    run = _one(study, asked)
    if asked.what == "data":
        print(f"{asked.to}: {mixed_data(study, run, asked.to)} rows")
    else:
        print(adapter(study, run, asked.to))
    if asked.push_to:
        print(push(asked.to, asked.push_to))


def _one(study: Study, asked: argparse.Namespace) -> Run:
    """Return the one run that the arguments select.

    Raises:
        ProfileError: the arguments select none or several, which are named.
    """
    given = {"datasets": asked.dataset, "methods": asked.method, "settings": asked.setting, "seeds": asked.seed}
    wanted: dict[str, Any] = {name: None if value is None else [value] for name, value in given.items()}
    runs = study.runs(**wanted)
    if len(runs) != 1:
        raise ProfileError(f"The arguments select {len(runs)} runs: {'; '.join(map(str, runs))}. Choose one by "
                           "--dataset, --setting or --seed.")
    return runs[0]


if __name__ == "__main__":
    main()
