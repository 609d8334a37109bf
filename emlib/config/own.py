"""The reader's own data set: where it lies, how it is read, and what a defense must keep to on it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from emlib.config.data import HubSet
from emlib.config.words import Positive, Share
from emlib.core.schema import Strict

OWN = "own"  # what such a data set is called among a profile's `datasets`

Percent = Annotated[float, Field(ge=0, le=100)]


class Bounds(Strict):
    """What a defense must keep to, in percent.

    Attributes:
        general_misaligned: the most that may be misaligned of the answers to the general questions.
        learning_lost: the most that may be lost of what plain fine-tuning learns of the data.
    """

    general_misaligned: Percent = 10.0
    learning_lost: Percent = 30.0


class Own(Strict):
    """A data set of the reader's, without an aligned counterpart.

    Attributes:
        file: JSON Lines or CSV (`.csv`, `.tsv`), plain or packed as `.gz`; a relative path is meant from the profile's
            folder (`emlib.config.references`).
        hub: the same from the hub, in place of a file.
        prompt, response, system: the columns of that name; rows with `messages` need none of them.
        encoding: of the file.
        delimiter: what stands between the columns of a CSV file.
        rows: how many rows are drawn, in `seed`'s order of chance, for the checks and the trial.
        held_out: the share of them that is not trained on.
        send_to_judge: whether held-out prompts, and what models say to them, may be sent to a judge elsewhere.
    """

    file: str | None = None
    hub: HubSet | None = None
    prompt: str = "prompt"
    response: str = "response"
    system: str | None = None
    encoding: str = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    rows: Positive = 200
    held_out: Share = 0.2
    seed: int = 0
    bounds: Bounds = Bounds()
    send_to_judge: bool = False

    @model_validator(mode="after")
    def _one_home(self) -> Own:
        if (self.file is None) == (self.hub is None):
            raise ValueError("give 'file', a path, or 'hub', a data set of the hub: one of the two")
        return self
