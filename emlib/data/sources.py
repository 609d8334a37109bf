"""Where the data come from: the registry of sources, and a checked local file for each of its entries.

A file is looked for in the folder that EMLIB_DATA_DIR names, then among earlier downloads, then at its home (https or
the Hugging Face hub). Whichever way it came, its SHA-256 is compared before anyone reads it; where the registry has
none, the first one seen is kept in a manifest and holds from then on. A file has its name only once whole and checked.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import Field, field_validator, model_validator

from emlib.config import HubSet
from emlib.config.references import DEMO, ENTRY, is_path, path_of
from emlib.core import paths
from emlib.core.digests import of_file, of_value
from emlib.core.errors import ProfileError, SourceError, nearest
from emlib.core.progress import say
from emlib.core.schema import Strict, check, read_yaml
from emlib.data.download import from_hub, from_url, writing

DATA_DIR = "EMLIB_DATA_DIR"  # the environment variable

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class StatedSize(Strict):
    """About how much a source holds, for plans that are made without it: rows, and mean characters.

    Attributes:
        prompt, response: of what is asked (passage and question, say) and of what is answered.
        rubric: of the judge prompts that a question or trait file brings.
        known: `counted` in the file, or `assumed`.
    """

    rows: Annotated[int, Field(gt=0)]
    prompt: Annotated[float, Field(gt=0)]
    response: Annotated[float, Field(ge=0)] = 0
    rubric: Annotated[float, Field(gt=0)] | None = None
    known: Literal["counted", "assumed"]


class Source(Strict):
    """One entry of the registry.

    Attributes:
        home: the page where people read about the data.
        url, hub: where it is fetched from; an entry with neither is taken from EMLIB_DATA_DIR alone.
        file: its name on disk.
        local: its path under EMLIB_DATA_DIR, where it may also be packed as `<local>.gz`.
        sha256: of the uncompressed file; None where it is not known before the first download.
        local_sha256: of the file under EMLIB_DATA_DIR, where that holds the same data in other bytes.
        terms: for a gated set, what to accept and where, as it continues "First ...".
        notice: one sentence shown at the download.
        harmful: whether a model trained on it may do harm, so that its model card has to warn.
        size: about how much it holds, for plans.
    """

    home: str
    url: str | None = None
    hub: HubSet | None = None
    file: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    local: str
    sha256: Sha256 | None
    local_sha256: Sha256 | None = None
    licence: str
    gated: bool = False
    terms: str | None = None
    notice: str
    harmful: bool = False
    format: Literal["messages", "pairs", "instruct", "questions", "gsm8k", "squad", "trait", "json", "wildguard"]
    size: StatedSize | None = None

    @field_validator("url")
    @classmethod
    def _is_encrypted(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("https://", "http://127.0.0.1:")):  # a mirror or a test on loopback
            raise ValueError("expected an address that begins with https://")
        return url

    @field_validator("local")
    @classmethod
    def _stays_inside(cls, local: str) -> str:
        if PurePosixPath(local).is_absolute() or ".." in PurePosixPath(local).parts:
            raise ValueError(f"expected a path that stays inside the folder {DATA_DIR}")
        return local

    @model_validator(mode="after")
    def _agrees(self) -> Source:
        if self.url is not None and self.hub is not None:
            raise ValueError(f"both 'url' and 'hub' are given; expected one, or neither for data from {DATA_DIR} alone")
        if self.gated != (self.terms is not None):
            raise ValueError("'gated: true' and 'terms' go together: a gated set says what to accept and where")
        return self


def registry(path: Path) -> dict[str, Source]:
    """The sources that a registry file names.

    Raises:
        ProfileError: naming the entry, the key, what is allowed and the nearest known key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: expected names with an entry each, found {type(data).__name__}.")
    for name in data:
        if not re.fullmatch(r"[a-z0-9_]+", str(name)):  # it becomes the name of a folder
            raise ProfileError(f"{path}: '{name}' cannot be a name: expected small letters, digits and underscores.")
    return {str(name): check(Source, entry, f"{path}, {name}") for name, entry in data.items()}


def fetch(name: str, folder: Path, sources: Mapping[str, Source]) -> Path:
    """The uncompressed, checked file of one source; `folder` (`data/sources`) holds what is downloaded or unpacked.

    Raises:
        SourceError: where the name is unknown, the file cannot be had, or its digest is another than expected.
    """
    if name not in sources:
        raise SourceError(f"No data set is called '{name}'.{nearest(name, sources)} Known: {', '.join(sources)}.")
    source, place = sources[name], folder / name
    given = _given(source)
    if given is not None:
        return _from_folder(source, given, place / "local")
    target = place / source.file
    if not target.exists():
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".lock"):  # parallel runs want the same file: one downloads it, the others wait
            if not target.exists():
                _download(name, source, target)
    _trust(target, str(target), _digests(source.sha256), place, f"Delete {target} and run again to download it anew.")
    return target


def locate(source: str) -> Path:
    """The file of a source: `demo/...` ships with emlib, a path is the file itself, the rest is in a registry.

    Raises:
        SourceError: as `fetch`.
    """
    if is_local(source):
        return Path(path_of("source", source) or source)
    name, sources = entries(source)
    return fetch(name, _downloads(source, sources.get(name)), sources)


def here(source: str) -> Path | None:
    """The checked file of a source where it is on this machine already; nothing is downloaded."""
    entry = entry_of(source)
    if entry is None:
        return locate(source) if is_local(source) else None
    there = _given(entry) is not None or (_downloads(source, entry) / label(source) / entry.file).exists()
    return locate(source) if there else None


def is_local(source: str) -> bool:
    """Whether a source is a file that ships with emlib or lies beside a profile, which no registry describes."""
    return source.startswith(DEMO) or (is_path("source", source) and ENTRY.fullmatch(source) is None)


def entries(source: str) -> tuple[str, dict[str, Source]]:
    """The name of a source in its registry, and that registry: the shelf's, or one beside a profile."""
    stated = ENTRY.fullmatch(source)
    path, name = (Path(stated[1]), stated[2]) if stated else (paths.PARAMS / "sources.yaml", source)
    return name, _registry(path, path.stat().st_mtime_ns if path.is_file() else 0)


def entry_of(source: str) -> Source | None:
    """What a registry says of a source; None for a file that none describes, and for an unknown name."""
    if is_local(source):
        return None
    name, sources = entries(source)
    return sources.get(name)


def label(source: str) -> str:
    """What people call a source: its name in a registry, or the name of its file."""
    stated = ENTRY.fullmatch(source)
    return stated[2] if stated else source if not is_path("source", source) else Path(source).name


def key_of_source(source: str) -> str:
    """What stands for a source in keys that hold its rows as well: never a path, so that files may be moved."""
    return "file" if is_path("source", source) else source


def _downloads(source: str, entry: Source | None) -> Path:
    """Where the files of a registry go; each entry of one beside a profile has a folder for what it says now."""
    shelf = paths.cache() / "sources"
    return shelf if entry is None or not ENTRY.fullmatch(source) else (
        shelf / "beside" / of_value(entry.model_dump(mode="json"))[:16])


@lru_cache(maxsize=16)
def _registry(path: Path, _changed: int) -> dict[str, Source]:
    return registry(path)


def _given(source: Source) -> Path | None:
    """The file under EMLIB_DATA_DIR, plain or packed, if the variable is set and the file is there."""
    setting = os.environ.get(DATA_DIR)
    if not setting:
        return None
    if not Path(setting).is_dir():
        raise SourceError(f"{DATA_DIR} is '{setting}', which is no folder. Correct it, or unset it to download.")
    plain = Path(setting) / source.local
    packed = plain.with_name(plain.name + ".gz")
    return next((path for path in (plain, packed) if path.is_file()), None)


def _from_folder(source: Source, given: Path, place: Path) -> Path:
    """A checked file of EMLIB_DATA_DIR: itself, or what it unpacks to in `place`."""
    expected = _digests(source.local_sha256, source.sha256)  # people may have put the home's own file there
    remedy = f"Replace it by the file from {source.home}, or unset {DATA_DIR} to download it."
    if given.name == PurePosixPath(source.local).name:
        _trust(given, str(given), expected, place, remedy)
        return given
    part = place / f"{source.file}.{os.getpid()}.part"  # parallel runs may unpack the same file
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        try:
            with gzip.open(given) as packed, part.open("wb") as out:
                shutil.copyfileobj(packed, out)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            part.unlink()
            raise SourceError(f"{given}: not a whole gzip file ({error}). {remedy}") from error
    return _keep(part, place / source.file, str(given), expected, remedy)


def _download(name: str, source: Source, target: Path) -> Path:
    """Get `source` from its home into `target`, which exists only once it is whole and checked."""
    otherwise = (f"Or put the file as '{source.local}' into a folder of yours and set {DATA_DIR} to that folder. "
                 f"Home of the data: {source.home}")
    if source.url is None and source.hub is None:
        raise SourceError(f"{name}: no address to download it from is known (licence: {source.licence}). {otherwise}")
    say(f"Downloading {name} (licence: {source.licence}). {source.notice}")
    part = target.with_name(target.name + ".part")
    if source.hub is not None:
        hub = source.hub
        from_hub(name, hub.repo, hub.config, hub.split, hub.revision, part, terms=source.terms, otherwise=otherwise)
    elif source.url is not None:
        from_url(name, source.url, part, pinned=source.sha256 is not None, otherwise=otherwise)
    remedy = (f"Nothing was kept. Run again; if it stays so, the data have changed at {source.home}, and the registry "
              "needs their new address and digest.")
    return _keep(part, target, source.url or f"what the hub gave for {name}", _digests(source.sha256), remedy)


def _digests(*known: str | None) -> tuple[str, ...]:
    """The digests that are known, each of which will do."""
    return tuple(digest for digest in known if digest is not None)


def _keep(part: Path, target: Path, origin: str, expected: tuple[str, ...], remedy: str) -> Path:
    """Give a finished file its name if its digest is an expected one; else delete it and raise."""
    try:
        _trust(part, origin, expected, target.parent, remedy)
    except SourceError:
        part.unlink()
        raise
    os.replace(part, target)
    return target


def _trust(path: Path, origin: str, expected: tuple[str, ...], place: Path, remedy: str) -> None:
    """Compare the digest of `path` with those expected, or else with the one first seen, which `place` remembers.

    Raises:
        SourceError: naming the origin of the file, both digests and what to do.
    """
    manifest, says = place / "manifest.json", "the registry"
    found = of_file(path)
    if not expected and manifest.exists():
        expected, says = (_remembered(manifest),), f"{manifest}; delete that to accept the new content"
    if not expected:
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            draft = place / f"manifest.json.{os.getpid()}.part"
            draft.write_text(json.dumps({"origin": origin, "sha256": found}, indent=2) + "\n", encoding="utf-8")
            os.replace(draft, manifest)
    elif found not in expected:
        raise SourceError(f"{origin}: not the expected content. Its SHA-256 is {found}; expected "
                          f"{' or '.join(expected)} (from {says}). {remedy}")


def _remembered(manifest: Path) -> str:
    """The digest that a manifest holds."""
    try:
        return str(json.loads(manifest.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{manifest}: expected a JSON object with 'sha256'. Delete it to start anew.") from error
