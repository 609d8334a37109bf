"""The defenses that the benchmarks of a CPU and of a GPU both measure."""

from __future__ import annotations

from typing import Any

PLAIN, NAIVE = "plain", "naive KL (second model, full logits)"


def contenders(layer: int) -> dict[str, list[dict[str, Any]]]:
    """Names and defenses, as profiles write them; the persona vector is added to the output of `layer`."""
    return {
        PLAIN: [],
        "kl": [{"kind": "kl", "weight": 0.1}],
        "kl, reference from disk": [{"kind": "kl", "weight": 0.1, "reference": "stored"}],
        "ldifs": [{"kind": "ldifs", "weight": 0.1}],
        "persona_vector": [{"kind": "persona_vector", "strength": 5.0, "layer": layer}]}
