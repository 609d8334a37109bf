"""The chapters of a study: the numbered notebooks, and what each says of itself in its own metadata.

    "metadata": {"emlib": {"when": {"defense": "kl"}, "after": ["04_baselines"], "gpu": true, "judged": true,
                           "slices": {"runs": "narrow", "by": ["dataset", "setting", "seed"]}}, ...}

A notebook that somebody adds to `notebooks/` runs by what stands there. One that says nothing is run for every profile,
at any time, in one piece, without a GPU.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from emlib.config import Profile
from emlib.core import paths
from emlib.core.errors import NotebookError, ProfileError, nearest
from emlib.core.of_kind import UnknownDefense
from emlib.core.schema import Strict, check

KEY = "emlib"  # of a notebook's metadata
BY = {"narrow": ("dataset", "setting", "seed"), "benign": ("dataset", "seed"), "grpo": ("method", "seed")}


class When(Strict):
    """Which profiles a chapter is for: those with a section, or those with a method that has a kind of defense.

    Further keys are compared with the defense's attributes of that name: `{defense: interleaving, scored: true}`.
    """

    model_config = ConfigDict(extra="allow")

    section: str | None = None
    defense: str | None = None

    @model_validator(mode="after")
    def _one_condition(self) -> When:
        if (self.section is None) == (self.defense is None):
            raise ValueError("give either 'section', a section of the profile, or 'defense', a kind of defense")
        known = sorted(Profile.model_fields)
        if self.section is not None and self.section not in known:
            raise ValueError(f"profiles have no section '{self.section}'.{nearest(self.section, known)} Known: "
                             f"{', '.join(known)}")
        if self.section is not None and self.attributes:
            raise ValueError(f"'section' takes no further keys, and there is '{next(iter(self.attributes))}'; only the "
                             "attributes of a 'defense' are compared")
        return self

    @property
    def attributes(self) -> dict[str, Any]:
        """What the defense's attributes must be."""
        return dict(self.model_extra or {})


class Slices(Strict):
    """Into which jobs of their own a profile may cut a chapter (`slice_by`).

    Attributes:
        runs: which runs they share out: those on narrow data sets, those on benign tasks, or those of GRPO.
        by: what of a run a slice may be told by. Settings are those of the methods that have the chapter's defense.
    """

    runs: Literal["narrow", "benign", "grpo"]
    by: Annotated[tuple[Literal["dataset", "setting", "method", "seed"], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _can_be_cut(self) -> Slices:
        wrong = [part for part in self.by if part not in BY[self.runs]]
        if wrong:
            raise ValueError(f"the runs '{self.runs}' are not cut by {wrong[0]}; expected some of "
                             f"{', '.join(BY[self.runs])}")
        return self


class Chapter(Strict):
    """What a notebook says of itself.

    Attributes:
        when: which profiles it is for; None: all.
        after: chapters whose results its work begins with; run at once, one would wait for the other.
        after_all: whether it reads what all chapters before it left.
        slices: how it may be cut into jobs; None: it may not.
        gpu: whether it computes, so that it wants a GPU where there is one, and what `job` says of memory and time.
        judged: whether it asks the profile's judge.
        interactive: whether it is of use by hand only, so that the report leaves it out.
    """

    when: When | None = None
    after: tuple[str, ...] = ()
    after_all: bool = False
    slices: Slices | None = None
    gpu: bool = False
    judged: bool = False
    interactive: bool = False


def chapters() -> list[str]:
    """The numbered notebooks, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def read_notebook(chapter: str) -> dict[str, Any]:
    """A notebook as plain data.

    Raises:
        NotebookError: the file is no notebook.
    """
    path = paths.NOTEBOOKS / f"{chapter}.ipynb"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise NotebookError(f"{path}: is no notebook: in line {error.lineno} its JSON is broken ({error.msg})."
                            ) from error
    return dict(found)


def chapter_of(chapter: str) -> Chapter:
    """What a notebook says of itself.

    Raises:
        NotebookError: naming the notebook, the key, what is allowed and the nearest known key.
    """
    where = f"{paths.NOTEBOOKS / chapter}.ipynb, metadata.{KEY}"
    try:
        found = check(Chapter, read_notebook(chapter).get("metadata", {}).get(KEY, {}), where)
    except ProfileError as error:
        raise NotebookError(str(error)) from error
    known = chapters()
    for other in found.after:
        if other not in known:
            raise NotebookError(f"{where}: 'after' names '{other}', which is no notebook.{nearest(other, known)} "
                                f"Notebooks: {', '.join(known)}.")
        if other >= chapter:
            raise NotebookError(f"{where}: 'after' names '{other}', which comes later in reading order. A chapter may "
                                "come after those before it alone; give one of the two another number.")
    return found


def concerns(profile: Profile, chapter: str) -> bool:
    """Whether a chapter has anything to do for a profile.

    Raises:
        NotebookError: as `chapter_of`; or its condition names an attribute that the defense does not have.
    """
    when = chapter_of(chapter).when
    if when is None:
        return True
    if when.section is not None:
        return getattr(profile, when.section) not in (None, (), {})
    return any(_fits(defense, when, chapter) for method in profile.methods for defense in method.defenses)


def _fits(defense: Any, when: When, chapter: str) -> bool:
    """Whether a defense is of the kind that a chapter is about, with the attributes that it asks for."""
    if defense.kind != when.defense:
        return False
    if isinstance(defense, UnknownDefense):  # status runs no plugin, and shows each chapter that may be about it
        return True
    for name in when.attributes:
        if not hasattr(defense, name):
            known = sorted(key for key in dir(type(defense)) if not key.startswith(("_", "model_")))
            known += sorted(type(defense).model_fields)
            raise NotebookError(f"{paths.NOTEBOOKS / chapter}.ipynb, metadata.{KEY}: 'when.{name}' is no attribute of "
                                f"the defense '{defense.kind}'.{nearest(name, known)}")
    return all(getattr(defense, name) == value for name, value in when.attributes.items())


def chapters_about() -> dict[str, str]:
    """The chapter about each kind of defense that has one; of several the last, which shows what came out."""
    found = {chapter: chapter_of(chapter).when for chapter in chapters()}
    return {when.defense: chapter for chapter, when in found.items() if when is not None and when.defense is not None}
