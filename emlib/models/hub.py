"""The commit of a hub model to load: the profile's, or that of its branch at first use.

A branch changes, and results stored under its name would then come from two models. So the first commit is recorded
beside the downloads, as for data sets without a digest, and used from then on.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from filelock import FileLock

from emlib.config import HubModel
from emlib.core.addresses import ask_directly
from emlib.core.errors import SourceError
from emlib.core.files import write_text
from emlib.core.progress import say


def commit(spec: HubModel, cache: Path) -> str:
    """Return the commit to load.

    Raises:
        SourceError: the revision is a branch that was not used before, and the hub is not available.
    """
    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    if re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        return spec.revision
    pin = cache / "models" / "hub" / f"{spec.repo.replace('/', '--')}@{spec.revision.replace('/', '--')}.json"
    pin.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(pin.with_suffix(".lock")):
        if not pin.is_file():
            found = _resolved(spec)
            write_text(pin, json.dumps({"repo": spec.repo, "revision": spec.revision, "commit": found}) + "\n")
            say(f"{spec.repo}: '{spec.revision}' is commit {found}, which is used from now on ({pin})")
    return str(json.loads(pin.read_text(encoding="utf-8"))["commit"])


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
