"""Which commit of a hub model is loaded: the profile's, or the one that its branch named at first use.

A branch moves on, and results kept under its name would then be of two models. So the commit seen first is written down
beside the downloads, as for data sets without a digest, and holds from then on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from filelock import FileLock

from emlib.config import HubModel
from emlib.core.errors import SourceError
from emlib.core.files import write_text
from emlib.core.progress import say


def commit(spec: HubModel, cache: Path) -> str:
    """The commit to load.

    Raises:
        SourceError: the revision is a branch that was not used yet, and the hub cannot be asked.
    """
    if re.fullmatch(r"[0-9a-f]{40}", spec.revision):
        return spec.revision
    pin = cache / "models" / "hub" / f"{spec.repo.replace('/', '--')}@{spec.revision.replace('/', '--')}.json"
    pin.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(pin.with_suffix(".lock")):
        if not pin.is_file():
            found = _resolved(spec)
            write_text(pin, json.dumps({"repo": spec.repo, "revision": spec.revision, "commit": found}) + "\n")
            say(f"{spec.repo}: '{spec.revision}' is commit {found} and stays it here ({pin})")
    return str(json.loads(pin.read_text(encoding="utf-8"))["commit"])


def _resolved(spec: HubModel) -> str:
    """The commit that a branch names, on the hub or, without a network, among earlier downloads."""
    from huggingface_hub import hf_hub_download

    try:
        config = hf_hub_download(spec.repo, "config.json", revision=spec.revision)
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError and HTTP errors are OSErrors
        raise SourceError(f"{spec.repo}: which commit '{spec.revision}' is cannot be asked ({error}). Is the name "
                          "right, is there a network, and does HF_TOKEN hold a token if the model is gated? Or name a "
                          "commit as 'model.revision'.") from error
    return Path(config).parent.name  # <cache>/snapshots/<commit>/config.json
