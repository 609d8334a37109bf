"""The trait that may emerge, the narrow fine-tuning data sets that induce it, and the user's own data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from emlib.config.words import Percent, Positive, Seed, Share
from emlib.core.names import Name, Repository, Revision
from emlib.core.schema import Strict

OWN = "own"  # the name of the user's data set in a profile's `datasets`


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
        elif self.pairs is None and self.aligned == self.misaligned:
            yield (f"'aligned' and 'misaligned' name the same file, {self.aligned}, so that nothing tells the sides "
                   "apart; name a file for each, or one with both answers to each prompt as 'pairs'")


class Bounds(Strict):
    """Limits for a defense, in percent."""

    general_misaligned: Percent = 10.0  # the highest share of misaligned answers to the general questions
    learning_lost: Percent = 30.0  # the highest share of what plain fine-tuning learns from the data that may be lost


class Own(Strict):
    """The user's data set, without an aligned counterpart."""

    # JSON Lines, JSON, CSV or Parquet, plain or compressed (`emlib.data.opening` lists the endings), or a pattern of
    # several files, such as `part-*.jsonl`; a relative path is resolved from the profile's folder
    # (`emlib.config.references`).
    file: str | None = None
    hub: HubSet | None = None  # a data set on the hub, instead of a file
    # The names of the columns; conversations (`messages`, `conversations`) need none.
    prompt: str = "prompt"
    response: str = "response"
    system: str | None = None
    encoding: str = "utf-8"  # of the file
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","  # of the columns of a CSV file
    rows: Positive = 200  # chosen at random by `seed`, for the checks and the trial
    held_out: Share = 0.2  # of these rows, not trained on
    seed: Seed = 0
    bounds: Bounds = Bounds()
    send_to_judge: bool = False  # whether held-out prompts, and answers to them, may be sent to an external judge

    def _mistakes(self) -> Iterator[str]:
        if (self.file is None) == (self.hub is None):
            yield "give either 'file', a path, or 'hub', a data set on the hub"
        named = [name for name in (self.prompt, self.response, self.system) if name is not None]
        if len(set(named)) < len(named):
            yield f"'prompt', 'response' and 'system' must name different columns; found {', '.join(named)}"
