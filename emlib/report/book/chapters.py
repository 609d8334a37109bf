"""The chapters of a study and their state in the report: run, failed, or still to run.

Files that were made before the profile was edited (`emlib.study.stamps`) are none of its chapters'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emlib.config import Profile
from emlib.study import stamps
from emlib.workflow.chapters import chapter_of, chapters, concerns, read_notebook

State = Literal["run", "failed", "missing", "former", "elsewhere", "interactive"]


@dataclass(frozen=True)
class ChapterState:
    """A numbered notebook and its state.

    Attributes:
        name: the notebook's name without its ending.
        title: its first heading.
        state: `run`; `failed` in its last attempt, with no earlier result; `missing`, not run yet; `former`, not run
            since the profile was edited; `elsewhere`, if it does not apply to the profile; `interactive`, if it is
            meant for use by hand.
    """

    name: str
    title: str
    state: State


def chapters_of(profile: Profile, folder: Path) -> list[ChapterState]:
    """Return all numbered notebooks in reading order, with their state under `folder / "notebooks"`."""
    with_profile = stamps.stamp_of(profile, folder.name)
    return [ChapterState(name, title_of(name), _state(name, profile, folder / "notebooks", with_profile))
            for name in chapters()]


def former(profile: Profile, folder: Path, files: Iterable[Path], of: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return the names of those tables or figures that are not the present profile's. `of` has their chapters.

    A file without a stamp, as earlier versions of emlib wrote them, counts if its chapter applies to the profile.
    """
    with_profile = stamps.stamp_of(profile, folder.name)
    return sorted({path.stem for path in files
                   if not _is_present(path, with_profile, path.stem not in of or _applies(profile, of[path.stem][0]))})


def _is_present(path: Path, with_profile: str, applies: bool) -> bool:
    stamp = stamps.of_file(path)
    return applies if stamp is None else stamp == with_profile


def _applies(profile: Profile, chapter: str) -> bool:
    return chapter not in chapters() or concerns(profile, chapter)


def title_of(chapter: str) -> str:
    """Return the first heading of a notebook, or its name if it has none."""
    for cell in read_notebook(chapter)["cells"]:
        first = "".join(cell["source"]).partition("\n")[0]
        if cell["cell_type"] == "markdown" and first.startswith("# "):
            return first.removeprefix("# ").strip()
    return chapter


def _state(name: str, profile: Profile, executed: Path, with_profile: str) -> State:
    if chapter_of(name).interactive:  # widgets do not work on a static page
        return "interactive"
    applies, there = concerns(profile, name), False
    states: tuple[tuple[str, State], ...] = ((f"{name}.ipynb", "run"), (f"{name}.failed.ipynb", "failed"))
    for file, state in states:
        if (executed / file).is_file():
            there = True
            if _is_present(executed / file, with_profile, applies):
                return state
    return "elsewhere" if not applies else "former" if there else "missing"
