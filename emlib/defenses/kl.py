"""KL to the reference model (section 3.1, equation 1); in reinforcement learning GRPO's own KL term (Table 9).

    L = L_CE + lambda * mean over tokens of D_KL(p || q)

p and q are the next-token distributions of the trained and of the reference model, which is the same weights with the
adapter off. One difference in the implementation: the head computes cross-entropy and KL together, with their gradients
in closed form (`emlib.training.head`), so the class declares a term and defines no separate penalty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from emlib.config.words import Weight
from emlib.core.defense import Artefacts, Defense, GrpoDefense, HeadKl, Recipes


class Beta(GrpoDefense):
    """GRPO's KL term to the reference model (Table 9): `weight` times the estimate of each token."""

    label: ClassVar = "KL-Div."
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}

    kind: Literal["kl"] = "kl"
    weight: Weight = 0.1

    @property
    def grpo_beta(self) -> float:
        """The weight of the term."""
        return self.weight


class Kl(Defense):
    """Penalises the KL divergence from the reference model (equation 1), over all or over response `tokens`.

    `reference: stored` keeps the reference model's last hidden states on disk, which saves its pass for other weights
    and seeds on the same rows. It saves nothing in combination with a defense that needs that pass anyway.
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

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        """Return the recipe of the reference model's states on the training rows, with `reference: stored`."""
        return {"reference": recipes.reference(spec, self.tokens)} if self.reference == "stored" else {}

    def head_kl(self, artefacts: Artefacts) -> HeadKl:
        """Return the term, with the stored states if there are any."""
        from emlib.models.reference import StoredReference

        stored = StoredReference(artefacts["reference"]) if self.reference == "stored" else None
        return HeadKl(self.weight, self.tokens, stored)
