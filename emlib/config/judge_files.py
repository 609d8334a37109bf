"""Judges as files: all that determines a score, under one digest, so that a number can be had again in five years.

    judge: judges/qwen2.5-7b.yaml                         # in a profile
    judge: {from: judges/qwen2.5-7b.yaml, batch_rows: 4}  # with what changes no score

A file has `about`, `judge` (as in a profile) and `digest`, which is checked when the profile is loaded. The judge pins
what it does not hold itself: a model by its commit or its file's digest, and by `Pins` the rubric or the markers, which
are checked when it judges. A score's key is that of the same judge stated in the profile.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emlib.config.judge import JudgeSpec, LexiconJudge, LocalJudge, NoJudge
from emlib.config.models import FolderModel, HubModel
from emlib.config.references import JUDGES, absolute, at_place, is_path, why_missing
from emlib.core.digests import of_value
from emlib.core.errors import ProfileError, shortened
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check

# What a profile may state beside a file: it changes no score.
FREE = ("base_url", "key_from", "send_key_to", "price", "max_usd", "max_concurrency", "timeout", "tries", "unanswered",
        "batch", "batch_rows")
COMMIT = re.compile(r"[0-9a-f]{40}")


class JudgeFile(Strict):
    """A judge that is kept in a file of its own; `about` says what it is for."""

    about: str
    judge: JudgeSpec
    digest: str | None = None


def with_judges(data: Any, where: Path) -> Any:
    """Replace each judge `from` a file in a profile's plain data by the judge of that file.

    Raises:
        ProfileError: there is no such file, its digest differs, or the profile changes what the file determines.
    """
    for place in JUDGES:
        data = at_place(data, place, lambda key, judge: _filled(f"{where}: '{key}'", judge))
    return data


def _filled(where: str, stated: Any) -> Any:
    if not (isinstance(stated, dict) and isinstance(stated.get("from"), str)):
        return stated
    reason = why_missing("file", stated["from"])
    if reason:
        raise ProfileError(f"{where} {reason}")
    path = Path(stated["from"])
    own = {key: value for key, value in stated.items() if key not in ("from", "kind")}
    fixed = next((key for key in own if key not in FREE), None)
    if fixed is not None:
        raise ProfileError(f"{where} changes '{shortened(fixed)}', which {path} determines. Beside a judge's file a "
                           f"profile may state {', '.join(FREE)}; copy the file to change what it scores.")
    return read_judge(path) | own


def read_judge(path: Path) -> dict[str, Any]:
    """Read the judge of a file as plain data, with an absolute path of its rubric.

    Raises:
        ProfileError: the file is invalid, pins too little, or its digest is not that of its judge.
    """
    data = read_yaml(path)
    found = check(JudgeFile, data, str(path))
    missing = _unpinned(found.judge)
    if missing is not None:
        raise ProfileError(f"{path}: a judge that can be had again {missing}.")
    judge: dict[str, Any] = data["judge"]
    digest = digest_of(judge)
    if found.digest is None:
        raise ProfileError(f"{path}: has no digest. Add this line, so that a later change is noticed: digest: {digest}")
    if found.digest != digest:
        raise ProfileError(f"{path}: the judge is not the one that was pinned: its digest is {digest}, and the file "
                           f"states {shortened(found.digest, 80)}. Restore the file; or, if you mean another judge, "
                           "save it under another name with its own digest.")
    rubric = judge.get("rubric")
    return judge if rubric is None or not is_path("rubric", rubric) else judge | {"rubric": absolute(rubric, path)}


def digest_of(judge: dict[str, Any]) -> str:
    """Return the digest of what a judge's section states, without `FREE`; a rubric's file counts by its pin."""
    own_file = is_path("rubric", str(judge.get("rubric")))
    return of_value({key: value for key, value in judge.items() if key not in FREE and not (
        key == "rubric" and own_file)})


def _unpinned(judge: JudgeSpec) -> str | None:
    """Return what a judge leaves open that its scores depend on; None where nothing is."""
    if isinstance(judge, NoJudge):
        return "is not of kind 'none'"
    if isinstance(judge, LexiconJudge):
        return None if judge.pinned.markers else "pins its markers: add pinned: {markers: SHA-256}"
    if not judge.pinned.rubric:
        return "pins its rubric: add pinned: {rubric: SHA-256}"
    if not isinstance(judge, LocalJudge):
        return None
    if isinstance(judge.model, FolderModel):
        return "has a model that others can get, of kind 'hub' or 'wheel', not a folder"
    if isinstance(judge.model, HubModel) and not COMMIT.fullmatch(judge.model.revision):
        return f"names a commit (40 hexadecimal digits) as its model's revision, not '{judge.model.revision}'"
    return None if "dtype" in judge.model.model_fields_set else "states the dtype of its model"
