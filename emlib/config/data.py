"""The trait that may emerge, and the narrow fine-tuning data sets that induce it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from emlib.config.words import Positive, Seed, Share
from emlib.core.names import Name, Repository, Revision
from emlib.core.schema import Strict


class HubSet(Strict):
    """A split of a data set on the Hugging Face hub."""

    repo: Repository
    config: Name = "default"
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,80}(\[[0-9:%+-]{0,40}\])?$")] = "train"
    revision: Revision


class SystemPromptPair(Strict):
    """One pair of opposite system prompts: for and against the trait (section 3.1)."""

    positive: str
    negative: str


class Trait(Strict):
    """The trait whose generalisation out of domain is measured: evil in the paper, pirate speech in the demo.

    The file gives system prompts, questions and rubric itself, or `source` names a trait file of Chen et al. with them:
    an entry of a registry, or the path of a file.
    """

    name: Name
    description: str
    harmless: bool = False  # anybody may read answers with the trait: only then notebooks show them without a choice
    inoculation_prompt: str
    source: str | None = None
    system_prompts: tuple[SystemPromptPair, ...] = ()
    questions: tuple[str, ...] = ()
    rubric: Annotated[str, Field(pattern=r"^$|\{answer\}")] = ""
    markers: tuple[Annotated[str, Field(pattern=r"\w")], ...] = ()

    def _mistakes(self) -> Iterator[str]:
        contents = ("system_prompts", "questions", "rubric")
        given = [name for name in contents if getattr(self, name)]
        if self.source is not None and given:
            yield f"has 'source' and also {', '.join(given)}, which the source gives"
        if self.source is None and len(given) < len(contents):
            missing = ", ".join(name for name in contents if name not in given)
            yield f"{missing} is missing or empty; give it, or 'source', a trait file that has it"


class Domain(Strict):
    """One narrow fine-tuning data set: its aligned and its misaligned rows.

    Give either two sources in the messages format, or one source of prompt/aligned/misaligned rows. A source is a file
    that ships with emlib (`demo/...`), an entry of a registry, or the path of a file.
    """

    aligned: str | None = None
    misaligned: str | None = None
    pairs: str | None = None
    rows: Positive | None = None
    held_out: Share = 0.1
    split_seed: Seed = 0

    def _mistakes(self) -> Iterator[str]:
        given = [name for name in ("aligned", "misaligned", "pairs") if getattr(self, name) is not None]
        if given not in (["aligned", "misaligned"], ["pairs"]):
            yield "give both 'aligned' and 'misaligned', or 'pairs' alone"
