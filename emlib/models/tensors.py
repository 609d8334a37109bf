"""Tensors on disk as safetensors: equal content has equal bytes, and a damaged file is reported as damaged.

safetensors writes several metadata entries in random order, so that equal files differ. So there is one entry, the
canonical JSON of all metadata, with a digest of the tensors. Files that PEFT wrote have no such entry, and are read
unchecked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emlib.core.errors import StoreError
from emlib.core.files import damaged, whole_file

ENTRY = "emlib"  # the one entry of the metadata
DIGEST = "digest"


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write tensors, copied to the CPU, and metadata that JSON can hold; atomically.

    They are copied, because an optimizer may keep one tensor for all parameters (8-bit AdamW its maps), which
    safetensors refuses.
    """
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    entry = json.dumps({**(metadata or {}), DIGEST: digest(copies)}, sort_keys=True, ensure_ascii=False)
    with whole_file(path) as aside:
        save_file(copies, aside, {ENTRY: entry})


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all tensors and the metadata.

    Raises:
        StoreError: the file is damaged or truncated.
    """
    with opened(path) as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = metadata_of(stored)
    if metadata.pop(DIGEST, None) not in (None, digest(tensors)):
        raise damaged(path, "its tensors are not those that were written")
    return tensors, metadata


def is_whole(path: Path) -> bool:
    """Whether the file can be read, with the tensors that were written."""
    try:
        load(path)
    except StoreError:
        return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file to read single tensors; see `safetensors.safe_open`.

    Raises:
        StoreError: the file is damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except SafetensorError as error:
        raise damaged(path, str(error)) from error


def metadata_of(stored: Any) -> dict[str, Any]:
    """Return the metadata of an opened file."""
    entries = dict(stored.metadata() or {})
    return dict(json.loads(entries[ENTRY])) if ENTRY in entries else entries


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU: of their names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def same(one: Path, other: Path) -> bool:
    """Whether two files hold equal tensors and metadata, however they are written.

    Raises:
        StoreError: a file is damaged or truncated.
    """
    (ours, facts), (theirs, other_facts) = load(one), load(other)
    return facts == other_facts and digest(ours) == digest(theirs)
