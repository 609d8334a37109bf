"""The chapters of a study and their state in the report: run, failed, or still to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emlib.config import Profile
from emlib.workflow.chapters import chapter_of, chapters, concerns, read_notebook

State = Literal["run", "failed", "missing", "elsewhere", "interactive"]


@dataclass(frozen=True)
class ChapterState:
    """A numbered notebook and its state.

    Attributes:
        name: the notebook's name without its ending.
        title: its first heading.
        state: `run`; `failed` in its last attempt, with no earlier result; `missing`, not run yet; `elsewhere`, if it
            does not apply to the profile; `interactive`, if it is meant for use by hand.
    """

    name: str
    title: str
    state: State


def chapters_of(profile: Profile, folder: Path) -> list[ChapterState]:
    """Return all numbered notebooks in reading order, with their state under `folder / "notebooks"`."""
    return [ChapterState(name, title_of(name), _state(name, profile, folder / "notebooks")) for name in chapters()]


def title_of(chapter: str) -> str:
    """Return the first heading of a notebook, or its name if it has none."""
    for cell in read_notebook(chapter)["cells"]:
        first = "".join(cell["source"]).partition("\n")[0]
        if cell["cell_type"] == "markdown" and first.startswith("# "):
            return first.removeprefix("# ").strip()
    return chapter


def _state(name: str, profile: Profile, executed: Path) -> State:
    if chapter_of(name).interactive:  # widgets do not work on a static page
        return "interactive"
    if (executed / f"{name}.ipynb").is_file():
        return "run"
    if (executed / f"{name}.failed.ipynb").is_file():
        return "failed"
    return "missing" if concerns(profile, name) else "elsewhere"
