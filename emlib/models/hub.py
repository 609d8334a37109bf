"""The commit of a hub model to load: the profile's, or that of its branch at first use.

A branch changes, and results stored under its name would then come from two models. So the first commit is recorded
beside the downloads, as for data sets without a digest, and used from then on. The store records it too (`COMMITS`):
another machine with this store loads the same commit, and is refused if it has recorded another one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
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
    """Return the commit to load.

    Raises:
        SourceError: the revision is a branch that was not used before, and the hub is not available.
        StoreError: the store's artefacts come from another commit of this branch than the one of `cache`.
    """
    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    if re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        return spec.revision
    store, name = paths.runs() / paths.STORE, f"{spec.repo}@{spec.revision}"
    pin = cache / "models" / "hub" / f"{name.replace('/', '--')}.json"
    pin.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(pin.with_suffix(".lock")):
        if not pin.is_file():
            found = commits(store).get(name) or _resolved(spec)
            write_text(pin, json.dumps({"repo": spec.repo, "revision": spec.revision, "commit": found}) + "\n")
            say(f"{spec.repo}: '{spec.revision}' is commit {found}, which is used from now on ({pin})")
    found = str(json.loads(pin.read_text(encoding="utf-8"))["commit"])
    if (recorded := commits(store).get(name)) is None:
        record(store, {name: found})
    elif recorded != found:
        raise StoreError(f"{store / COMMITS}: the artefacts there come from commit {recorded} of {spec.repo} "
                         f"('{spec.revision}'), and {pin} names commit {found}. Nothing was made. Delete that file to "
                         "go on with the store's commit. To use the other one, set the model's revision to it: its "
                         "results then have keys of their own.")
    return found


def commits(store: Path) -> dict[str, str]:
    """Return the commit of each branch from which a store's artefacts come, by repository and branch."""
    path = store / COMMITS
    if not path.is_file():
        return {}
    try:
        return {str(name): str(found) for name, found in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, AttributeError) as error:
        raise StoreError(f"{path}: is damaged ({error}). Delete it if each machine that made artefacts there loads the "
                         "same commits of its models; they are then recorded again.") from error


def record(store: Path, more: Mapping[str, str]) -> None:
    """Record commits in a store, beside those that it has."""
    with disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f".{COMMITS}.lock"):
            write_text(store / COMMITS, json.dumps(dict(more) | commits(store), indent=1) + "\n")


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
