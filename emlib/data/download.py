"""Downloads data sets by https, with resumption, and from the Hugging Face hub.

Both write one file, or raise an error that says what to do.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm import tqdm

from emlib.config import HubSet
from emlib.core.addresses import ask_directly, checked_address
from emlib.core.errors import SourceError
from emlib.core.files import disk_errors
from emlib.core.flag import Flag
from emlib.data.tables import as_written, of_few_digits

LARGEST = 2_000_000_000  # bytes of a file whose size the registry does not state
TRIES = 5  # attempts for one download
WAIT = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without a reply
nothing_downloaded = Flag("nothing_downloaded")  # within it, what is not on this machine raises `NotHere`


class TooLarge(SourceError):
    """A file has more bytes than its registry states or than any data set needs."""


class NotHere(SourceError):
    """A file is not on this machine, and nothing is downloaded now."""


def once(target: Path, download: Callable[[Path], object]) -> None:
    """Call `download` with the path of an unfinished file, which becomes `target`, unless that is there.

    Of parallel jobs, one downloads it and the others wait.

    Raises:
        NotHere: it is not there, within `nothing_downloaded`.
    """
    if target.exists():
        return
    if nothing_downloaded.is_set:
        raise NotHere(f"{target}: is not on this machine, and nothing is downloaded to plan.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            part = target.with_name(f"{target.name}.part")
            download(part)
            part.replace(target)


def from_url(name: str, url: str, part: Path, *, pinned: bool, otherwise: str, limit: int = LARGEST) -> None:
    """Download `url` into `part`. After lost connections, 429 and 5xx it tries again.

    Args:
        name: the name in the progress bar and messages.
        pinned: whether the caller compares the digest, which detects a file that changed between two attempts; then
            an attempt resumes the one before.
        otherwise: the sentence that tells the user what to do instead.
        limit: the most bytes that the file may have.

    Raises:
        SourceError: the server refuses, leads to an address without encryption or sends too much, or the network
            fails. Received bytes stay in `part`.
        StoreError: the disk is full or cannot be written.
    """
    import httpx

    retrying = Retrying(stop=stop_after_attempt(TRIES), wait=wait_exponential(multiplier=WAIT, max=8),
                        retry=retry_if_exception(_is_transient), reraise=True)
    try:
        retrying(_transfer, name, url, part, pinned, limit)
    except TooLarge:
        part.unlink(missing_ok=True)
        raise
    except httpx.HTTPStatusError as error:
        raise SourceError(f"{name}: {url} answered {error.response.status_code}. {otherwise}") from error
    except httpx.HTTPError as error:
        host = urlsplit(url).hostname
        raise SourceError(f"{name}: {host} could not be reached, or the connection broke ({type(error).__name__}: "
                          f"{error}). Check the network and run again. {otherwise}") from error


def _is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def _transfer(name: str, url: str, part: Path, pinned: bool, limit: int) -> None:
    """Make one attempt: request the bytes that `part` lacks, and append them; all, if the file is not `pinned`.

    Raises:
        httpx.HTTPError: `part` then holds a beginning of the file, or is deleted.
    """
    import httpx

    ask_directly(url)
    start = part.stat().st_size if pinned and part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the encoded body
    if start:
        headers["Range"] = f"bytes={start}-"
    with (httpx.Client(event_hooks={"request": [partial(_refuse_detours, name, url)]}) as client,
          client.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as answer):
        fits = answer.headers.get("content-range", "").startswith(f"bytes {start}-")
        if answer.status_code == 416 or (answer.status_code == 206 and not fits):
            part.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError("the server does not have the requested range")  # retried from zero
        answer.raise_for_status()
        if answer.status_code != 206:
            start = 0  # the whole file: the server ignores ranges
        total = start + int(answer.headers["content-length"]) if "content-length" in answer.headers else None
        if total is not None and total > limit:
            raise _too_large(name, limit)
        with (disk_errors(part), part.open("ab" if start else "wb") as file, tqdm.wrapattr(
                file, "write", desc=name, total=total, initial=start, disable=None) as out):
            copy_limited(answer.iter_raw(), out.write, limit - start, name)
    if total is not None and part.stat().st_size != total:
        raise httpx.RemoteProtocolError(f"received {part.stat().st_size} of {total} bytes")


def copy_limited(chunks: Iterator[bytes], write: Callable[[bytes], object], limit: int, name: str) -> None:
    """Write the chunks, unpacked or as they came from a server.

    Raises:
        TooLarge: they have more than `limit` bytes; what exceeds it is not written.
    """
    written = 0
    for chunk in chunks:
        written += len(chunk)
        if written > limit:
            raise _too_large(name, limit)
        write(chunk)


def _too_large(name: str, limit: int) -> TooLarge:
    return TooLarge(f"{name}: the file has more bytes than the {limit:,} that are allowed. If it is the right file, "
                       "state its size in bytes in the registry, as 'bytes'.")


def _refuse_detours(name: str, asked: str, request: Any) -> None:
    """Refuse an address that a server redirects to, if it is not encrypted as the first one, or disguised."""
    url = str(request.url)
    try:
        unencrypted = checked_address(url).scheme == "http" and not asked.startswith("http:")
    except ValueError as error:
        raise SourceError(f"{name}: {asked} leads to {url}, which is refused: {error}.") from error
    if unencrypted:
        raise SourceError(f"{name}: {asked} leads to {url}, which is refused because it is not encrypted.")


def from_hub(name: str, hub: HubSet, part: Path, *, terms: str | None, otherwise: str, wanted: Collection[str] = (),
             limit: int = LARGEST) -> None:
    """Write one split of a hub data set into `part`: JSON Lines, one ASCII line per row, in the hub's order.

    Columns that JSON does not know, such as dates, bytes and images, are left out and are never decoded.

    Args:
        wanted: columns that may not be left out.
        terms: for a gated data set, what to accept and where.
        otherwise: the sentence that tells the user what to do instead.
        limit: the most bytes that `part` may have.

    Raises:
        SourceError: the hub refuses, the network fails, the rows are too many, or a wanted column is no text.
        StoreError: the disk is full or cannot be written.
    """
    import datasets
    import httpx

    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    try:
        rows = datasets.load_dataset(hub.repo, hub.config, split=hub.split, revision=hub.revision,
                                     token=os.environ.get("HF_TOKEN") or None)
    except (datasets.exceptions.DatasetsError, httpx.HTTPError, OSError, ValueError) as error:
        raise SourceError(f"{name}: {_refusal(error, hub.repo, terms)} {otherwise}") from error
    readable = [column.name for column in rows.features.arrow_schema if _in_json(column.type)]
    if lost := [column for column in rows.column_names if column in wanted and column not in readable]:
        raise SourceError(f"{name}: the column '{lost[0]}' of {hub.repo} is no text ({rows.features[lost[0]]}). Name "
                          f"another one; columns that can be read: {', '.join(readable) or 'none'}.")
    rows, few = rows.select_columns(readable), of_few_digits(rows.features.arrow_schema)
    with disk_errors(part), part.open("wb") as out:
        written = (json.dumps(as_written(row, few)) + "\n" for row in rows)
        copy_limited((line.encode("ascii") for line in written), out.write, limit, name)


def _in_json(stored: Any) -> bool:
    """Return whether JSON knows the values of a column of this type: texts, numbers, lists and objects of them."""
    from pyarrow import types

    if types.is_nested(stored):
        return all(_in_json(stored.field(place).type) for place in range(stored.num_fields))
    return (types.is_string(stored) or types.is_large_string(stored) or types.is_boolean(stored)
            or types.is_integer(stored) or types.is_floating(stored) or types.is_null(stored))


def _refusal(error: Exception, repo: str, terms: str | None) -> str:
    """Explain an error of the hub or the network, and what to do."""
    import httpx
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or (terms is not None and isinstance(error, DatasetNotFoundError)):
        state = "the token in HF_TOKEN has no access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        accept = terms or f"see https://huggingface.co/datasets/{repo}"
        return f"the hub refuses access to {repo} ({state}). First {accept}; then set HF_TOKEN to your token."
    reason = error.__cause__ or error  # `datasets` wraps errors of writing its cache
    if isinstance(reason, OSError) and reason.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for the hub's cache of {repo}. Free some, or set HF_HOME to a larger disk."
    if isinstance(error, (ConnectionError, httpx.TransportError)):
        host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
        return f"{host} could not be reached ({error}). Check the network and run again."
    return f"{repo} could not be loaded from the hub ({type(reason).__name__}: {reason})."
