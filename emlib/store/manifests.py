"""The manifest of an artefact: its settings, the facts that its maker recorded, and digests of its files and itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emlib.core.digests import of_text
from emlib.core.errors import StoreError
from emlib.core.files import in_the_way, made_again, write_text

MANIFEST = "manifest.json"
DIGEST = "digest"


@dataclass(frozen=True)
class Manifest:
    """What readers need of a manifest."""

    settings: Mapping[str, Any]  # everything that determines the artefact
    facts: Mapping[str, Any]  # what its maker recorded
    files: Mapping[str, str]  # the digest of each file
    made_from: Mapping[str, str]  # the content of each artefact that it was made from; earlier versions state none
    seconds: float  # how long the last session took that worked on it


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a manifest with its digest."""
    text = json.dumps({**content, DIGEST: _digest(content)}, indent=1, ensure_ascii=False)
    write_text(folder / MANIFEST, text)


def read(folder: Path) -> Manifest | None:
    """Read the manifest of an artefact's folder; None if the folder or its manifest does not exist.

    Raises:
        StoreError: it is damaged, or a file is where the folder should be; with the path and what to do.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = content.pop(DIGEST)
        found = Manifest(dict(content["settings"]), dict(content["facts"]), dict(content["files"]),
                         dict(content.get("made_from", {})), float(content["seconds"]))
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StoreError(f"{in_the_way(folder)}: is a file, and the store has a folder there. Move it away."
                         ) from error
    except OSError as error:
        raise StoreError(f"{error.filename or path}: cannot be read ({error.strerror}). {made_again(folder)}"
                         ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: is damaged or truncated, and no manifest as emlib writes it. {made_again(folder)}"
                         ) from error
    if stated != _digest(content):
        raise StoreError(f"{path}: was changed after it was written, by the digest in it. {made_again(folder)}")
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return of_text(json.dumps(content, ensure_ascii=False))
