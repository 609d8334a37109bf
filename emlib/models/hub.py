"""The commit of a hub model to load: the profile's, or that of its branch at first use.

A branch changes, and results stored under its name would then come from two models. So the first commit is recorded
beside the downloads, as for data sets without a digest, and used from then on. The store records it too (`COMMITS`),
before the first artefact is made with it: another machine with this store loads the same commit, and is refused if it
has recorded another one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from emlib.config import HubModel
from emlib.core import paths
from emlib.core.addresses import ask_directly
from emlib.core.errors import SourceError, StoreError
from emlib.core.files import disk_errors, write_text
from emlib.core.progress import say

COMMITS = "commits.json"  # in the store: the commit of each branch, as {"repository@branch": commit}


def commit(spec: HubModel, cache: Path) -> str:
    """Return the commit to load. Nothing is written into the store.

    Raises:
        SourceError: the revision is a branch that was not used before, and the hub is not available.
        StoreError: the store's artefacts come from another commit of this branch than the one of `cache`.
    """
    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    if _is_commit(spec):
        return spec.revision
    store, pin = paths.runs() / paths.STORE, _pin(spec, cache)
    pin.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(pin.with_suffix(".lock")):
        if not pin.is_file():
            found = commits(store).get(_name(spec)) or _resolved(spec)
            write_text(pin, json.dumps({"repo": spec.repo, "revision": spec.revision, "commit": found}) + "\n")
            say(f"{spec.repo}: '{spec.revision}' is commit {found}, which is used from now on ({pin})")
    found = str(json.loads(pin.read_text(encoding="utf-8"))["commit"])
    _refuse_another(spec, found, store, commits(store), pin)
    return found


def hold(models: Iterable[HubModel], cache: Path, store: Path) -> None:
    """Record in a store the commits with which an artefact is about to be made there. Errors are those of `commit`."""
    found = {_name(spec): (spec, commit(spec, cache)) for spec in models if not _is_commit(spec)}
    if not found:
        return
    recorded = record(store, {name: loaded for name, (_, loaded) in found.items()})
    for spec, loaded in found.values():
        _refuse_another(spec, loaded, store, recorded, _pin(spec, cache))


def _is_commit(spec: HubModel) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", spec.revision) is not None


def _name(spec: HubModel) -> str:
    return f"{spec.repo}@{spec.revision}"


def _pin(spec: HubModel, cache: Path) -> Path:
    return cache / "models" / "hub" / f"{_name(spec).replace('/', '--')}.json"


def _refuse_another(spec: HubModel, found: str, store: Path, recorded: Mapping[str, str], pin: Path) -> None:
    of_store = recorded.get(_name(spec), found)
    if of_store != found:
        raise StoreError(f"{store / COMMITS}: this store is of commit {of_store} of {spec.repo} ('{spec.revision}'), "
                         f"and {pin} names commit {found}. Nothing was made. Delete that file to go on with the "
                         "store's commit. To use the other one, set the model's revision to it: its results then have "
                         "keys of their own.")


def commits(store: Path) -> dict[str, str]:
    """Return the commit of each branch with which a store's artefacts are made, by repository and branch."""
    path = store / COMMITS
    if not path.is_file():
        return {}
    try:
        return {str(name): str(found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{path}: is damaged ({error}). Delete it if each machine that made artefacts there loads the "
                         "same commits of its models; they are then recorded again.") from error


def record(store: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Record commits in a store, and return all that it has then. Those that it had stay."""
    with disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{COMMITS}.lock"):
            had = commits(store)
            merged = dict(more) | had
            if merged != had:
                write_text(store / COMMITS, json.dumps(merged, indent=1) + "\n")
    return merged


def _resolved(spec: HubModel) -> str:
    """Look up the commit of a branch, on the hub or, without a network, among earlier downloads."""
    from huggingface_hub import hf_hub_download

    try:
        config = hf_hub_download(spec.repo, "config.json", revision=spec.revision)
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError and HTTP errors are OSErrors
        raise SourceError(f"{spec.repo}: the commit of '{spec.revision}' cannot be looked up ({error}). Is the name "
                          "right, is there a network, and does HF_TOKEN hold a token if the model is gated? Or set "
                          "'model.revision' to a commit.") from error
    return Path(config).parent.name  # <cache>/snapshots/<commit>/config.json
