"""KL to the reference model (section 3.1, equation 1); in reinforcement learning GRPO's own KL term (Table 9).

    L = L_CE + lambda * mean over tokens of D_KL(p || q)

p and q are the next-token distributions of the trained and of the reference model, which is the same weights with the
adapter off. Here it differs in one thing: the head computes cross-entropy and KL together, with their gradients in
closed form (`emlib.training.head`), so that the class declares a term and has no penalty of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from emlib.config.words import Weight
from emlib.core.defense import Artefacts, Defense, GrpoDefense, HeadKl, Recipes


class Beta(GrpoDefense):
    """The KL term of GRPO to the reference model (Table 9), `weight` times a token's estimate."""

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
    """KL to the reference model (equation 1). `tokens` are those whose next-token distributions are compared.

    `reference: stored` keeps the reference model's last hidden states on disk, so that other weights and seeds on the
    same rows do without its pass. Together with a defense that needs that pass in any case, it gains nothing.
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
        """The reference model's states on the rows that are trained on, where they are to be stored."""
        return {"reference": recipes.reference(spec, self.tokens)} if self.reference == "stored" else {}

    def head_kl(self, artefacts: Artefacts) -> HeadKl:
        """The term, with the states that are stored."""
        from emlib.models.reference import StoredReference

        stored = StoredReference(artefacts["reference"]) if self.reference == "stored" else None
        return HeadKl(self.weight, self.tokens, stored)
