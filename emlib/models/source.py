"""Where the files of a profile's model are."""

from __future__ import annotations

from pathlib import Path

from emlib.config import FolderModel, HubModel, ModelSpec, WheelModel
from emlib.models import hub, wheel


def source_of(spec: ModelSpec, cache: Path) -> tuple[str, dict[str, str]]:
    """Return the repository or the folder of a model's files; and of a repository the commit, as `revision`."""
    if isinstance(spec, HubModel):
        return spec.repo, {"revision": hub.commit(spec, cache)}
    if isinstance(spec, WheelModel):
        return str(wheel.converted(spec, cache)), {}
    assert isinstance(spec, FolderModel), "a model built in code has no files"
    return str(spec.folder), {}
