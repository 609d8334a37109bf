"""Keeping a run's adapter after some of its steps, without changing any step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emlib.core.files import whole_folder, write_text

KEPT, FACTS = "kept", "kept.json"


@dataclass(frozen=True)
class Keep:
    """What is kept of a run.

    Attributes:
        shares: the shares of its steps after which the adapter is kept.
        save: saves the adapter as it is, into a folder.
        then_stop: whether training ends when all are kept.
    """

    shares: tuple[float, ...]
    save: Callable[[Path], object]
    then_stop: bool = False


class Keeping:
    """The kept adapters of a run of `total` steps, in `folder / "kept"`; None: another process keeps them.

    A run that is killed and resumed keeps the same ones: those after the last checkpoint are saved again.
    """

    def __init__(self, keep: Keep | None, total: int, folder: Path | None) -> None:
        self.keep, self.total, self.folder = keep, total, folder
        self.at = {share: step_of(share, total) for share in (() if keep is None else keep.shares)}

    @property
    def last(self) -> int:
        """The last step that is kept."""
        return max(self.at.values(), default=self.total)

    def after(self, step: int) -> None:
        """Keep the adapter if it is to be kept after this step, counted from 1."""
        for share in [share for share, when in self.at.items() if when == step]:
            self._save(share, step)

    def rest(self, step: int) -> None:
        """Keep the final adapter for all later shares, if training ended early, after `step`."""
        for share in [share for share, when in self.at.items() if when > step]:
            self._save(share, step)

    def _save(self, share: float, step: int) -> None:
        if self.keep is not None and self.folder is not None:
            with whole_folder(kept_in(self.folder, share)) as aside:
                self.keep.save(aside)
                write_text(aside / FACTS, json.dumps({"steps": step, "of": self.total}))


def step_of(share: float, total: int) -> int:
    """Return the step, counted from 1, after which a share of `total` steps is done: the nearest one."""
    return min(total, max(1, round(share * total)))


def kept_in(folder: Path, share: float) -> Path:
    """Return the folder of the adapter that was kept after a share of the steps."""
    return folder / KEPT / f"{share:.6g}"
