"""The fixture that tests of own data share."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.config import Own
from emlib.data.own import OwnRows, read_own
from tests.data.reading import Put


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file of this name and content, and read it as own data."""

    def read(name: str, content: str | bytes, **options: str) -> OwnRows:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_own(Own(file=str(path), **options), least=1)

    return read
