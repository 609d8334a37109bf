"""The chapters of a study: the numbered notebooks, which describe themselves in their metadata.

    "metadata": {"emlib": {"when": {"defense": "kl"}, "after": ["02_baselines"], "gpu": true, "judged": true,
                           "slices": {"runs": "narrow", "by": ["dataset", "setting", "seed"]}}, ...}

A notebook added to `notebooks/` runs by its metadata. Without metadata it runs for every profile, in any order, as one
job, without a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from emlib.config import Evaluation, Profile, Training
from emlib.core import paths
from emlib.core.errors import NotebookError, ProfileError, nearest
from emlib.core.of_kind import UnknownDefense
from emlib.core.schema import Strict, check

KEY = "emlib"  # of a notebook's metadata
PARTS: dict[str, type[Strict]] = {"evaluation": Evaluation, "training": Training}  # of which a chapter may name a part
BY = {"narrow": ("dataset", "setting", "seed"), "benign": ("dataset", "seed"), "grpo": ("method", "seed")}
Names = Annotated[tuple[str, ...], BeforeValidator(  # one name may stand alone
    lambda value: (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value)]


class When(Strict):
    """The condition for a chapter: the profile has a section, or a method with a defense of some kind or kinds.

    A section may be a part of another (`evaluation.triggers`); of a list of sections one suffices. Further keys are
    compared with the defense's attributes of that name: `{defense: interleaving, scored: true}`. The chapter with
    `defense_other_than` is about all other kinds, such as those of a plugin.
    """

    model_config = ConfigDict(extra="allow")

    section: Names = ()
    defense: Names = ()
    defense_other_than: Names = ()

    def _mistakes(self) -> Iterator[str]:
        if sum(map(bool, (self.section, self.defense, self.defense_other_than))) != 1:
            yield ("give either 'section', a section of the profile, or 'defense', a kind of defense, or "
                   "'defense_other_than', the kinds that other chapters are about")
        for section in self.section:
            first, _, rest = section.partition(".")
            known = sorted(Profile.model_fields)
            if first in PARTS and rest:
                first, known = rest, sorted(PARTS[first].model_fields)
            if first not in known:
                yield f"profiles have no section '{section}'.{nearest(first, known)} Known: {', '.join(known)}"
        if self.attributes and not self.defense:
            yield ("'section' and 'defense_other_than' take no further keys, and there is "
                   f"'{next(iter(self.attributes))}'; only the attributes of a 'defense' are compared")

    def is_about(self, kind: str) -> bool:
        """Return whether the chapter is about a kind of defense."""
        return kind in self.defense or (bool(self.defense_other_than) and kind not in self.defense_other_than)

    @property
    def attributes(self) -> dict[str, Any]:
        """The values that the defense's attributes must have."""
        return dict(self.model_extra or {})


class Slices(Strict):
    """The separate jobs into which a profile may slice a chapter (`slice_by`).

    Attributes:
        runs: the runs that the slices divide: those on narrow data sets, those on benign tasks, or those of GRPO.
        by: the properties of a run by which it may be sliced. Settings are those of methods with the chapter's defense.
    """

    runs: Literal["narrow", "benign", "grpo"]
    by: Annotated[tuple[Literal["dataset", "setting", "method", "seed"], ...], Field(min_length=1)]

    def _mistakes(self) -> Iterator[str]:
        wrong = [part for part in self.by if part not in BY[self.runs]]
        if wrong:
            yield (f"the runs '{self.runs}' cannot be sliced by {wrong[0]}; expected some of "
                   f"{', '.join(BY[self.runs])}")


class Chapter(Strict):
    """A notebook's metadata.

    Attributes:
        when: the profiles that it runs for; None for all.
        after: the chapters that must run first, because its work uses their results.
        after_all: whether it runs after all chapters before it, because it reads their results.
        slices: how it may be sliced into jobs; None if it may not.
        gpu: whether it computes, so that its job gets a GPU if there is one, and the limits of the section `job`.
        judged: whether it uses the profile's judge.
        interactive: whether it is only useful by hand, so that the report leaves it out.
        formerly: the name that it had before, under which commands and links still find it.
    """

    when: When | None = None
    after: tuple[str, ...] = ()
    after_all: bool = False
    slices: Slices | None = None
    gpu: bool = False
    judged: bool = False
    interactive: bool = False
    formerly: str | None = None


def chapters() -> list[str]:
    """Return the numbered notebooks, in reading order."""
    return sorted(path.stem for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def former_names() -> dict[str, str]:
    """Return the notebook of each name that a notebook had before."""
    return {was: chapter for chapter in chapters() if (was := chapter_of(chapter).formerly) is not None}


def read_notebook(chapter: str) -> dict[str, Any]:
    """Read a notebook as plain data."""
    path = paths.NOTEBOOKS / f"{chapter}.ipynb"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise NotebookError(f"{path}: is no notebook, because its JSON is invalid in line {error.lineno} ({error.msg})."
                            ) from error
    return dict(found)


def chapter_of(chapter: str) -> Chapter:
    """Read a notebook's metadata.

    Raises:
        NotebookError: the metadata are invalid; it names the notebook, the key, what is allowed and the nearest key.
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
            raise NotebookError(f"{where}: 'after' names '{other}', which comes later in reading order. A chapter can "
                                "only run after chapters with a lower number; give one of the two another number.")
    return found


def concerns(profile: Profile, chapter: str) -> bool:
    """Whether a chapter runs for a profile."""
    when = chapter_of(chapter).when
    if when is None:
        return True
    if when.section:
        return any(attrgetter(section)(profile) not in (None, (), {}) for section in when.section)
    return any(_fits(defense, when, chapter) for method in profile.methods for defense in method.defenses)


def _fits(defense: Any, when: When, chapter: str) -> bool:
    """Whether a defense has the kind and the attributes of a chapter's condition."""
    if not when.is_about(defense.kind):
        return False
    if isinstance(defense, UnknownDefense):  # status runs no plugin, and lists every chapter that may be about it
        return True
    for name in when.attributes:
        if not hasattr(defense, name):
            known = sorted(key for key in dir(type(defense)) if not key.startswith(("_", "model_")))
            known += sorted(type(defense).model_fields)
            raise NotebookError(f"{paths.NOTEBOOKS / chapter}.ipynb, metadata.{KEY}: 'when.{name}' is no attribute of "
                                f"the defense '{defense.kind}'.{nearest(name, known)}")
    return all(getattr(defense, name) == value for name, value in when.attributes.items())


def chapter_about(kind: str) -> str | None:
    """Return the chapter about a kind of defense; of several the last one, which shows the results."""
    found = {chapter: chapter_of(chapter).when for chapter in chapters()}
    return next((chapter for chapter, when in reversed(found.items()) if when and when.is_about(kind)), None)
