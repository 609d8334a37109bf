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
    """Limits for a defense, in percent.

    Attributes:
        general_misaligned: the highest share of misaligned answers to the general questions.
        learning_lost: the highest share of what plain fine-tuning learns from the data that may be lost.
    """

    general_misaligned: Percent = 10.0
    learning_lost: Percent = 30.0


class Own(Strict):
    """The user's data set, without an aligned counterpart.

    Attributes:
        file: JSON Lines, JSON, CSV or Parquet, plain or compressed (`emlib.data.opening` lists the endings), or a
            pattern of several files, such as `part-*.jsonl`; a relative path is resolved from the profile's folder
            (`emlib.config.references`).
        hub: a data set on the hub, instead of a file.
        prompt, response, system: the names of these columns; conversations (`messages`, `conversations`) need none.
        encoding: the encoding of the file.
        delimiter: the separator of the columns of a CSV file.
        rows: the number of rows that are chosen at random by `seed`, for the checks and the trial.
        held_out: the share of them that is not trained on.
        send_to_judge: whether held-out prompts, and models' answers to them, may be sent to an external judge.
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
    seed: Seed = 0
    bounds: Bounds = Bounds()
    send_to_judge: bool = False

    def _mistakes(self) -> Iterator[str]:
        if (self.file is None) == (self.hub is None):
            yield "give either 'file', a path, or 'hub', a data set on the hub"
