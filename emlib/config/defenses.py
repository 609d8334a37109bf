"""Fine-tuning methods: baselines and named lists of defenses. The defenses are in `emlib/defenses/`."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emlib.config.methods import SweptMethod
from emlib.config.words import Distinct, Seed
from emlib.core.of_kind import AnyDefense

BASELINES = ("untrained", "aligned", "misaligned")
SFT = "sft"  # plain fine-tuning on a benign task, as Table 3 calls it


class Method(SweptMethod):
    """One condition of the study: a baseline, or a named list of defenses on the misaligned data.

    `seeds` replaces the seeds of the profile, or of its section `benign`, for this method.
    """

    baselines: ClassVar = (*BASELINES, SFT)

    defenses: tuple[AnyDefense, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Distinct] | None = None
