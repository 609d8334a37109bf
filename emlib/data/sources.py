"""The registry of data sources, and a verified local file for each of its entries.

A file is looked up in the folder EMLIB_DATA_DIR, then among earlier downloads, then at its origin (https or the Hugging
Face hub). Its SHA-256 is always verified before use; if the registry has none, a manifest records the first one, and
later files must match it. A file gets its final name only when it is complete and verified.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emlib.config import HubSet
from emlib.config.references import DEMO, ENTRY, is_path, path_of
from emlib.config.references import NAME as ENTRY_NAME
from emlib.config.words import Sha256
from emlib.core import paths
from emlib.core.addresses import checked_address
from emlib.core.digests import of_file, of_value
from emlib.core.errors import ProfileError, SourceError, nearest, shortened
from emlib.core.files import whole_file, write_text
from emlib.core.names import LONGEST, Name, PathInside, is_name
from emlib.core.plain_yaml import read_yaml
from emlib.core.progress import say
from emlib.core.schema import Strict, check
from emlib.data.download import LARGEST, copy_limited, from_hub, from_url, once

DATA_DIR = "EMLIB_DATA_DIR"  # the environment variable
MANIFEST = "manifest.json"  # beside a file whose digest the registry does not state


class StatedSize(Strict):
    """The approximate size of a source, for plans without its file: rows, and mean characters."""

    rows: Annotated[int, Field(gt=0)]
    # The number of different questions in a question file that asks some in several formats; None: `rows`.
    clusters: Annotated[int, Field(gt=0)] | None = None
    prompt: Annotated[float, Field(gt=0)]  # of all that is asked, such as passage and question
    response: Annotated[float, Field(ge=0)] = 0
    rubric: Annotated[float, Field(gt=0)] | None = None  # of the judge prompts in a question or trait file
    known: Literal["counted", "assumed"]  # whether it was counted in the file


class Source(Strict):
    """One entry of the registry."""

    home: str  # the web page about the data
    url: str | None = None  # where it is downloaded from; with neither this nor `hub` it must be in EMLIB_DATA_DIR
    hub: HubSet | None = None  # where it is on the hub, instead of `url`
    file: Name
    local: PathInside  # its path under EMLIB_DATA_DIR, where it may also be compressed as `<local>.gz`
    sha256: Sha256 | None  # of the uncompressed file; None if it is unknown before the first download
    local_sha256: Sha256 | None = None  # of the file under EMLIB_DATA_DIR, if that has the same data in other bytes
    licence: str
    gated: bool = False
    terms: str | None = None  # for a gated data set, what to accept and where; it continues "First ..."
    notice: str  # one sentence shown at the download
    harmful: bool = False  # whether a model trained on it may do harm, so that its model card must warn
    format: Literal["messages", "pairs", "instruct", "questions", "gsm8k", "squad", "trait", "json", "wildguard",
                    "text"]
    size: StatedSize | None = None
    # The size of the file; None if it is unknown: then 2 GB are the most. A larger file is refused.
    bytes: Annotated[int, Field(gt=0)] | None = None

    @property
    def limit(self) -> int:
        """The most bytes that the file may have, also unpacked."""
        return self.bytes or LARGEST

    @property
    def address(self) -> str:
        """Where exactly it is downloaded from; empty without such a place."""
        hub = self.hub
        return f"{hub.repo}, {hub.config}, {hub.split}, {hub.revision}" if hub is not None else self.url or ""

    @field_validator("url")
    @classmethod
    def _is_encrypted(cls, url: str | None) -> str | None:
        if url is not None:
            checked_address(url)
        return url

    def _mistakes(self) -> Iterator[str]:
        if self.url is not None and self.hub is not None:
            yield f"both 'url' and 'hub' are given; give one, or neither for data from {DATA_DIR} alone"
        if self.gated != (self.terms is not None):
            yield "'gated: true' and 'terms' (what to accept and where) go together: give both or neither"


def registry(path: Path) -> dict[str, Source]:
    """Read the sources of a registry file.

    Raises:
        ProfileError: the message gives the entry, the key, what is allowed and the nearest known key.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ProfileError(f"{path}: expected a mapping of names to entries, found {type(data).__name__}.")
    for name in data:
        if not (ENTRY_NAME.fullmatch(str(name)) and is_name(str(name))):  # it becomes the name of a folder
            raise ProfileError(f"{path}: '{shortened(str(name))}' cannot be a name: expected lower-case letters, "
                               f"digits and underscores, at most {LONGEST}, the first a letter or a digit.")
    return {str(name): check(Source, entry, f"{path}, {name}") for name, entry in data.items()}


def fetch(name: str, folder: Path, sources: Mapping[str, Source]) -> Path:
    """Return the decompressed, verified file of one source; downloads go to `folder` (`data/sources`).

    Raises:
        SourceError: the name is unknown, the file is not available, its digest is not the expected one, or an earlier
            download whose digest the registry does not state is from another address than the registry names now.
    """
    if name not in sources:
        raise SourceError(f"There is no data set '{name}'.{nearest(name, sources)} Known: {', '.join(sources)}.")
    source, place = sources[name], folder / name
    given = _given(source)
    if given is not None:
        return _from_folder(source, given, place / "local")
    target = place / source.file
    _refuse_another(source, place)
    once(target, partial(_download, name, source))
    _trust(target, str(target), (source.sha256,), place, f"Delete {target} and run again to download it again.",
           source.address)
    return target


def locate(source: str) -> Path:
    """Return the file of a source: a shipped file (`demo/...`), the file at a path, or an entry of a registry.

    Raises:
        SourceError: as for `fetch`.
    """
    if is_local(source):
        return Path(path_of("source", source) or source)
    name, sources = entries(source)
    return fetch(name, _downloads(source, sources.get(name)), sources)


def here(source: str) -> Path | None:
    """Return the verified file of a source if it is on this machine; never download."""
    entry = entry_of(source)
    if entry is None:
        return locate(source) if is_local(source) else None
    present = _given(entry) is not None or (_downloads(source, entry) / label(source) / entry.file).exists()
    return locate(source) if present else None


def is_local(source: str) -> bool:
    """Return whether a source is a file that no registry describes: shipped with emlib, or given by its path."""
    return source.startswith(DEMO) or (is_path("source", source) and ENTRY.fullmatch(source) is None)


def entries(source: str) -> tuple[str, dict[str, Source]]:
    """Return the name of a source in its registry, and that registry: emlib's or a profile's."""
    stated = ENTRY.fullmatch(source)
    path, name = (Path(stated[1]), stated[2]) if stated else (paths.PARAMS / "sources.yaml", source)
    return name, _registry(path, path.stat().st_mtime_ns if path.is_file() else 0)


def entry_of(source: str) -> Source | None:
    """Return the registry entry of a source; None for a file without an entry and for an unknown name."""
    if is_local(source):
        return None
    name, sources = entries(source)
    return sources.get(name)


def label(source: str) -> str:
    """Return the display name of a source: its name in a registry, or the name of its file."""
    if stated := ENTRY.fullmatch(source):
        return stated[2]
    return Path(source).name if is_path("source", source) else source


def key_of_source(source: str) -> str:
    """Return the name of a source in keys, which also hold its rows: never a path, so that files can be moved."""
    return "file" if is_path("source", source) else source


def _downloads(source: str, entry: Source | None) -> Path:
    """Return the folder of downloads; for an entry of a profile's registry, one that depends on its content."""
    folder = paths.cache() / "sources"
    if entry is None or not ENTRY.fullmatch(source):
        return folder
    return folder / "beside" / of_value(entry.model_dump(mode="json"))[:16]


@lru_cache(maxsize=16)
def _registry(path: Path, _changed: int) -> dict[str, Source]:
    return registry(path)


def _given(source: Source) -> Path | None:
    """Return the file under EMLIB_DATA_DIR, plain or compressed, if the variable is set and the file exists."""
    setting = os.environ.get(DATA_DIR)
    if not setting:
        return None
    if not Path(setting).is_dir():
        raise SourceError(f"{DATA_DIR} is '{setting}', which is not a folder. Correct it, or unset it to download.")
    plain = Path(setting) / source.local
    packed = plain.with_name(plain.name + ".gz")
    return next((path for path in (plain, packed) if path.is_file()), None)


def _from_folder(source: Source, given: Path, place: Path) -> Path:
    """Return a verified file of EMLIB_DATA_DIR: the file itself, or its decompressed copy in `place`."""
    expected = (source.local_sha256, source.sha256)  # the folder may hold the original file
    remedy = f"Replace it by the file from {source.home}, or unset {DATA_DIR} to download it."
    if given.name == PurePosixPath(source.local).name:
        _trust(given, str(given), expected, place, remedy)
        return given
    target = place / source.file
    with whole_file(target) as part:
        try:
            with gzip.open(given) as packed, part.open("wb") as out:
                copy_limited(iter(lambda: packed.read(2**20), b""), out.write, source.limit, str(given))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise SourceError(f"{given}: not a complete gzip file ({error}). {remedy}") from error
        _trust(part, str(given), expected, place, remedy)
    return target


def _download(name: str, source: Source, part: Path) -> None:
    """Download `source` into `part`, and verify it."""
    otherwise = (f"Or put the file as '{source.local}' into a folder of your choice and set {DATA_DIR} to that "
                 f"folder. Home of the data: {source.home}")
    if source.url is None and source.hub is None:
        raise SourceError(f"{name}: there is no known address to download it from (licence: {source.licence}). "
                          f"{otherwise}")
    say(f"Downloading {name} (licence: {source.licence}). {source.notice}")
    if source.hub is not None:
        from_hub(name, source.hub, part, terms=source.terms, otherwise=otherwise, limit=source.limit)
    elif source.url is not None:
        from_url(name, source.url, part, pinned=source.sha256 is not None, otherwise=otherwise, limit=source.limit)
    remedy = (f"Nothing was kept. Run again; if the error persists, the data have changed at {source.home}, and the "
              "registry needs their new address and digest.")
    origin = source.url or f"the hub's data for {name}"
    try:
        _trust(part, origin, (source.sha256,), part.parent, remedy, source.address)
    except SourceError:
        part.unlink()
        raise


def _trust(path: Path, origin: str, known: tuple[str | None, ...], place: Path, remedy: str, address: str = "") -> None:
    """Refuse `path` unless its digest is one of the known ones, or else the first one, which `place` records."""
    manifest, authority = place / MANIFEST, "the registry"
    found, expected = of_file(path), [digest for digest in known if digest is not None]
    if not expected and manifest.exists():
        expected, authority = [_remembered(manifest)["sha256"]], f"{manifest}; delete that to accept the new content"
    if not expected:
        write_text(manifest, json.dumps({"address": address, "sha256": found}, indent=2) + "\n")
    elif found not in expected:
        raise SourceError(f"{origin}: not the expected content. Its SHA-256 is {found}; expected "
                          f"{' or '.join(expected)} (from {authority}). {remedy}")


def _refuse_another(source: Source, place: Path) -> None:
    """Refuse what was downloaded from another address than the registry's, where no digest tells the two apart.

    Manifests of before state no address.
    """
    manifest = place / MANIFEST
    former = "" if source.sha256 is not None or not manifest.exists() else _remembered(manifest).get("address")
    if former and former != source.address:
        raise SourceError(f"{place}: was downloaded from {former}, and the registry now names "
                          f"{source.address or 'nothing'}. Delete this folder and run again to download the data that "
                          "it names, or name the former ones again.")


def _remembered(manifest: Path) -> dict[str, str]:
    """Return a manifest: the digest of a file, and where it was downloaded from."""
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        return {name: str(value) for name, value in found.items()} | {"sha256": str(found["sha256"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{manifest}: expected a JSON object with 'sha256'. Delete it to start again.") from error
