"""Downloads data sets by https, with resumption, and from the Hugging Face hub.

Both write one file, or raise a SourceError that says what to do.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential
from tqdm import tqdm

from emlib.core.addresses import checked_address
from emlib.core.errors import SourceError
from emlib.core.proxies import ask_directly

LARGEST = 2_000_000_000  # bytes of a file whose size the registry does not state
TRIES = 5  # attempts for one download
WAIT = 0.5  # seconds before the second attempt, doubled before each further one
TIMEOUT = 30.0  # seconds without a reply


class TooLarge(SourceError):
    """A file has more bytes than its registry states or than any data set needs."""


def from_url(name: str, url: str, part: Path, *, pinned: bool, otherwise: str, limit: int = LARGEST) -> None:
    """Download `url` into `part`. After lost connections, 429 and 5xx it retries and resumes.

    Args:
        name: the name in the progress bar and messages.
        pinned: whether the caller compares the digest, which detects a file that changed between two attempts.
        otherwise: the sentence that tells the user what to do instead.
        limit: the most bytes that the file may have.

    Raises:
        SourceError: the server refuses, leads to an address without encryption or sends too much; the network
            fails, or the disk is full. Received bytes stay in `part`.
    """
    import httpx

    retrying = Retrying(stop=stop_after_attempt(TRIES), wait=wait_exponential(multiplier=WAIT, max=8),
                        retry=retry_if_exception(_is_transient), reraise=True)
    try:
        retrying(_transfer, name, url, part, pinned, limit)
    except TooLarge:
        part.unlink(missing_ok=True)
        _tag_of(part).unlink(missing_ok=True)
        raise
    except httpx.HTTPStatusError as error:
        raise SourceError(f"{name}: {url} answered {error.response.status_code}. {otherwise}") from error
    except httpx.HTTPError as error:
        host = urlsplit(url).hostname
        raise SourceError(f"{name}: {host} could not be reached, or the connection broke ({type(error).__name__}: "
                          f"{error}). Check the network and run again; received bytes are kept. {otherwise}") from error


def _is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def _transfer(name: str, url: str, part: Path, pinned: bool, limit: int) -> None:
    """Make one attempt: request the bytes that `part` lacks, and append them.

    Raises:
        httpx.HTTPError: `part` then holds a valid beginning of the file, or is deleted.
    """
    import httpx

    ask_directly(url)
    tag_file = _tag_of(part)
    start, headers = _resume(part, tag_file, pinned)
    with (httpx.Client(event_hooks={"request": [partial(_refuse_detours, name, url)]}) as client,
          client.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as answer):
        fits = answer.headers.get("content-range", "").startswith(f"bytes {start}-")
        if answer.status_code == 416 or (answer.status_code == 206 and not fits):
            part.unlink(missing_ok=True)
            raise httpx.RemoteProtocolError("the server does not have the requested range")  # retried from zero
        answer.raise_for_status()
        if answer.status_code != 206:
            start = 0  # the whole file: the server ignores ranges, or its file has changed
        total = start + int(answer.headers["content-length"]) if "content-length" in answer.headers else None
        if total is not None and total > limit:
            raise _too_large(name, limit)
        with writing(part.parent, total):
            if start == 0:
                tag_file.write_text(answer.headers.get("etag", ""), encoding="utf-8")
            _append(answer.iter_raw(), part, start, total, name, limit)
    if total is not None and part.stat().st_size != total:
        raise httpx.RemoteProtocolError(f"received {part.stat().st_size} of {total} bytes")
    tag_file.unlink()


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _append(chunks: Iterator[bytes], part: Path, start: int, total: int | None, name: str, limit: int) -> None:
    """Append the chunks to `part` after its first `start` bytes, with a progress bar."""
    with part.open("ab" if start else "wb") as out, tqdm(
            desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar:
        def write(chunk: bytes) -> None:
            out.write(chunk)
            bar.update(len(chunk))

        copy_limited(chunks, write, limit - start, name)


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


def _resume(part: Path, tag_file: Path, pinned: bool) -> tuple[int, dict[str, str]]:
    """Return how many bytes are present, and the headers that request the rest."""
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes of the encoded body
    start = part.stat().st_size if part.exists() else 0
    tag = tag_file.read_text(encoding="utf-8") if tag_file.exists() else ""
    strong = tag.startswith('"')  # a weak tag, W/"...", does not guarantee the same bytes
    if start == 0 or not (strong or pinned):
        return 0, headers
    return start, headers | {"Range": f"bytes={start}-"} | ({"If-Range": tag} if strong else {})


def from_hub(name: str, repo: str, config: str, split: str, revision: str, part: Path, *, terms: str | None,
             otherwise: str, wanted: Collection[str] = (), limit: int = LARGEST) -> None:
    """Write one split of a hub data set into `part`: JSON Lines, one ASCII line per row, in the hub's order.

    Columns that JSON does not know, such as dates, bytes and images, are left out and are never decoded.

    Args:
        wanted: columns that may not be left out.
        terms: for a gated data set, what to accept and where.
        otherwise: the sentence that tells the user what to do instead.
        limit: the most bytes that `part` may have.

    Raises:
        SourceError: the hub refuses, the network fails, the disk is full, the rows are too many, or a wanted column is
            no text.
    """
    import datasets
    import httpx

    ask_directly(os.environ.get("HF_ENDPOINT", ""))
    try:
        rows = datasets.load_dataset(repo, config, split=split, revision=revision,
                                     token=os.environ.get("HF_TOKEN") or None)
    except (datasets.exceptions.DatasetsError, httpx.HTTPError, OSError, ValueError) as error:
        raise SourceError(f"{name}: {_refusal(error, repo, terms)} {otherwise}") from error
    readable = [column.name for column in rows.features.arrow_schema if _in_json(column.type)]
    if lost := [column for column in rows.column_names if column in wanted and column not in readable]:
        raise SourceError(f"{name}: the column '{lost[0]}' of {repo} is no text ({rows.features[lost[0]]}). Name "
                          f"another one; columns that can be read: {', '.join(readable) or 'none'}.")
    rows = rows.select_columns(readable)
    with writing(part.parent, rows.dataset_size), part.open("wb") as out:
        copy_limited(((json.dumps(row) + "\n").encode("ascii") for row in rows), out.write, limit, name)


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


@contextmanager
def writing(folder: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a failed write into a SourceError that names the folder and, if the disk is full, the space needed."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = "unknown" if needed is None else f"{needed:,} bytes"
            raise SourceError(f"{folder}: no space left on its disk. Size of the file: {size}. Free that much and run "
                              "again, or choose another folder.") from error
        raise SourceError(f"{folder}: cannot be written ({error}). Fix that, or choose another folder.") from error
