"""KL to the reference model (section 3.1, equation 1); in reinforcement learning GRPO's own KL term (Table 9).

    L = L_CE + lambda * mean over tokens of D_KL(p || q)

p and q are the next-token distributions of the trained and of the reference model, which is the same weights with the
adapter off. One difference in the implementation: the head computes cross-entropy and KL together, with their gradients
in closed form (`emlib.training.head`), so the class declares a term and defines no separate penalty.

With `on: pool` the mean is over tokens of general instruction rows, as Soligo et al. do (arXiv 2602.07852): their
penalty on text of other domains keeps the narrow task. It differs in the rows, which are rows of the profile's pool
here, prompts and answers; they are spread through each epoch, and cross-entropy counts on the fine-tuning rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from emlib.config.words import Share, Weight
from emlib.core.defense import Defense, GrpoDefense, require
from emlib.core.files import read_records
from emlib.core.hooks import Artefacts, HeadKl, Recipes
from emlib.core.records import ADDED, AddedRow, Example


class Beta(GrpoDefense):
    """GRPO's KL term to the reference model (Table 9): `weight` times the estimate of each token."""

    label: ClassVar = "KL-Div."
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}

    kind: Literal["kl"] = "kl"
    weight: Weight = 0.1

    @property
    def grpo_beta(self) -> float:
        return self.weight


class Kl(Defense):
    """Penalises the KL divergence from the reference model (equation 1), over all or over response `tokens`.

    `on` names the rows that the term counts on: the fine-tuning rows (`data`), `rows` times as many rows of the
    profile's pool (`pool`), or `both` as one mean. On rows of the pool no other defense acts, so that the KL is that of
    the model as it answers later. The first rows of the pool's random order are taken, as Interleaving does: with both
    defenses, the term is on rows that are trained on as well.

    `reference: stored` keeps the reference model's last hidden states on disk, which saves its pass for other weights
    and seeds on the same rows. It saves nothing in combination with a defense that needs that pass anyway, and is for
    `on: data`.
    """

    label: ClassVar = "KL-Div."
    equation: ClassVar = "lambda * D_KL(p || q)"
    origin: ClassVar = "section 3.1, equation 1"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    cost: ClassVar = "negligible"
    in_grpo: ClassVar = Beta

    kind: Literal["kl"] = "kl"
    weight: Weight = 0.1
    tokens: Literal["all", "response"] = "all"
    reference: Literal["computed", "stored"] = "computed"
    on: Literal["data", "pool", "both"] = "data"
    rows: Share = 0.2

    def _mistakes(self) -> Iterator[str]:
        if self.on != "data" and self.reference == "stored":
            yield (f"with 'on: {self.on}' the reference model's states are not stored: they are those of the "
                   "fine-tuning rows. Set reference to computed")
        if self.on == "data" and self.rows != type(self).model_fields["rows"].default:
            yield "'rows' is the number of the pool's rows; with 'on: data' there are none. Set on to pool"

    @property
    def runs_reference(self) -> bool:
        """Whether the reference model's states are not on disk."""
        return self.reference == "computed"

    @property
    def penalises_data(self) -> bool:
        """Whether it counts on the fine-tuning rows."""
        return self.on != "pool"

    def fits(self, section: Any, method: str) -> None:
        if self.on != "data":
            require(section, "pool", f"method '{method}' penalises KL on rows of a pool")

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        if self.on != "data":
            return {"penalised": recipes.pool_rows(spec, fraction=self.rows, choose="random", answers="pool")}
        return {"reference": recipes.reference(spec, self.tokens)} if self.reference == "stored" else {}

    def penalised(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[Example]:
        if self.on == "data":
            return ()
        return tuple(row.example for row in read_records(artefacts["penalised"] / ADDED, AddedRow))

    def head_kl(self, artefacts: Artefacts) -> HeadKl:
        from emlib.models.reference import StoredReference

        stored = StoredReference(artefacts["reference"]) if self.reference == "stored" else None
        return HeadKl(self.weight, self.tokens, stored)
