"""The user's own data set: where it is, how to read it, and the limits for a defense on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from emlib.config.data import HubSet
from emlib.config.words import Percent, Positive, Seed, Share
from emlib.core.schema import Strict

OWN = "own"  # its name in a profile's `datasets`


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
