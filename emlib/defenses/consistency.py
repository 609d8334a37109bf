"""Consistency training against what an inoculation prompt leaks (arXiv 2606.05817).

    n + round(f n) rows an epoch;   added row: [system: wrapper] [user: question] [assistant: the base model's answer]

The base model, before fine-tuning, answers questions without the wrapper; fine-tuning includes these answers with the
wrapper as system prompt, so that the prompt does not elicit what the fine-tuning rows teach under it. By default the
wrapper is the trait's inoculation prompt, and the questions are those of the profile's pool. Here it differs in when it
is done: the authors train on these rows after inoculation prompting, this mixes them in, as Interleaving does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from emlib.core.defense import Defense, require
from emlib.core.files import read_records
from emlib.core.hooks import Artefacts, Recipes
from emlib.core.records import ADDED, AddedRow, Example


class Consistency(Defense):
    """`share` times as many rows as the fine-tuning rows: the base model's answers, under the wrapped prompt.

    `prompt` is the wrapper; None stands for the trait's inoculation prompt. It is meant to go with `inoculation`, and
    works alone too. Answers are sampled as `pool.on_policy` says, always by the model before fine-tuning.
    """

    label: ClassVar = "Consistency Training"
    equation: ClassVar = "round(f n) answers of the base model under the wrapped prompt, among n rows"
    origin: ClassVar = "arXiv 2606.05817 (bias-augmented consistency training)"
    swept: ClassVar = "share"
    null: ClassVar = {"share": 0.0}
    data_only: ClassVar = True
    cost: ClassVar = "answers of the base model once; then in proportion to the rows added"

    kind: Literal["consistency"] = "consistency"
    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    prompt: Annotated[str, Field(min_length=1)] | None = None

    def fits(self, section: Any, method: str) -> None:
        require(section, "pool", f"method '{method}' takes questions from a pool")
        section.pool.refuse_text(method)

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {} if self.is_null else {"consistent": recipes.wrapped_rows(spec, self.share, self.prompt)}

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        return () if self.is_null else tuple(read_records(artefacts["consistent"] / ADDED, AddedRow))
