"""Whether the longest tests run in full, as under `make torture`, or shorter, as under `make test` at each change."""

from __future__ import annotations

import os

LONG = os.environ.get("EMLIB_TORTURE") == "1"
