"""How answers are sampled, and how persona vectors are extracted and tried."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emlib.config.words import AtLeastOne, Few, Positive, Seed, Share, SmallCount, Tokens, Weight
from emlib.core.errors import EmlibError
from emlib.core.schema import Strict


class Sampling(Strict):
    """How answers are sampled. Defaults: Betley et al.'s, as the paper follows them (section 4.3)."""

    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    top_p: Share = 1.0
    max_new_tokens: Tokens = 600
    batch_rows: SmallCount = 64


class Extraction(Strict):
    """How a persona vector is extracted. Defaults: Chen et al.'s, which section 3.1 follows."""

    not_in_keys: ClassVar = frozenset({"min_pairs"})  # each profile checks its own number

    samples: SmallCount = 10
    keep: Literal["judged", "all"] = "judged"  # the pairs of answers that the judge confirms, or all without a judge
    instruction_pairs: Positive | None = None
    min_pairs: Positive = 20
    # Whether the token that ends the turn counts among an answer's tokens. It does not in Chen et al.'s code, which
    # reads the answer's text after the prompt.
    end_of_turn: bool = False
    sampling: Sampling = Sampling(max_new_tokens=1000)
    seed: Seed = 0

    def refuse_few(self, kept: int, asked: int) -> None:
        """Raise EmlibError, with what to change, if fewer than `min_pairs` pairs of those `asked` are kept."""
        if kept < self.min_pairs:
            what, more = ("have text on both sides", "give the trait more questions") if self.keep == "all" else (
                "show the trait under the positive system prompt only", "sharpen the trait's system prompts")
            raise EmlibError(f"{kept} of {asked} pairs of answers {what}, and {self.min_pairs} are wanted. Ask for "
                             f"more samples, {more}, or lower extraction.min_pairs.")

    def refuse_few_asked(self, questions: int, trait: str) -> None:
        """Raise EmlibError if not even all answers would make `min_pairs` pairs, before any is sampled.

        `questions` are those of one side: each of the trait's, under each of its system prompts.
        """
        if (asked := questions * self.samples) < self.min_pairs:
            raise EmlibError(f"The persona vectors of the trait '{trait}' would be of {asked} pairs of answers at most "
                             f"(questions under each pair of system prompts: {questions}, extraction.samples: "
                             f"{self.samples}), and {self.min_pairs} are wanted. Give the trait more questions or "
                             "pairs of system prompts, raise extraction.samples, or lower extraction.min_pairs.")


class Probe(Strict):
    """The steering sweep at inference: each strength at each layer (notebook 03)."""

    layers: AtLeastOne[Few] = (20,)
    strengths: AtLeastOne[Weight] = (0.0, 2.0, 5.0)
    questions: Positive = 8
    sampling: Sampling = Sampling(max_new_tokens=200)
