"""Every defense of ours keeps the promises that anyone's has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from emlib.config import TinyModel
from emlib.core.defense import Defense
from emlib.core.registry import kinds
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.consistency import Consistency
from emlib.defenses.early_stop import EarlyStop
from emlib.defenses.filtering import Filtering
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.inoculation_adapter import InoculationAdapter
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.defenses.projection_penalty import ProjectionPenalty
from emlib.defenses.safe_lora import SafeLora
from emlib.training.bench import Bench
from emlib.training.conformance import NonconformingDefense, _gradient, check

OURS: list[tuple[type[Defense], dict[str, Any]]] = [
    (Kl, {"weight": 0.3}), (Kl, {"weight": 0.3, "tokens": "response"}), (Kl, {"weight": 0.3, "reference": "stored"}),
    (Ldifs, {"every": 2}), (Ldifs, {"every": 2, "normalize": True}), (PersonaVector, {"layer": 2, "strength": 2.0}),
    (Inoculation, {}), (Interleaving, {"fraction": 0.5}), (Interleaving, {"fraction": 0.5, "choose": "online"}),
    (Interleaving, {"fraction": 0.5, "answers": "virtuous", "layer": 2}),
    (Kl, {"weight": 0.3, "on": "pool"}), (Kl, {"weight": 0.3, "on": "both"}), (ConceptAblation, {"layers": (1, 3)}),
    (ConceptAblation, {"directions": "components", "count": 3, "layers": (2,)}),
    (InoculationAdapter, {"strength": 0.5}), (Consistency, {"share": 0.5}),
    (Filtering, {"share": 0.4}), (Filtering, {"share": 0.4, "choose": "random"}),
    (EarlyStop, {"share": 0.5, "every": 3, "rows": 2}),
    (EarlyStop, {"share": None, "drift": 9.0, "layer": 2, "every": 1}),
    (ProjectionPenalty, {"layers": (1, 3)}), (ProjectionPenalty, {"layers": (1, 3), "reference": "stored"}),
    (ProjectionPenalty, {"layers": (2,), "both": True}),
    (SafeLora, {"base": TinyModel(kind="tiny", seed=1), "threshold": 1.0})]


@pytest.mark.parametrize(("cls", "options"), OURS, ids=lambda value: str(getattr(value, "__name__", value)))
def test_ours_conform(cls: type[Defense], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    assert len(check(cls, **options).lines) == 6  # what it acts by, and a line for each of the five tests


def test_every_kind_of_ours_is_among_them() -> None:
    assert {cls for cls, _ in OURS} == {cls for cls in kinds().values() if cls.__module__.startswith("emlib.defenses.")}


def test_a_penalty_without_its_gradient_is_found() -> None:
    with pytest.raises(NonconformingDefense, match="detached from the graph"):
        check(Ldifs, every=2, variant="published")


def test_a_penalty_that_is_always_the_same_is_found(tmp_path: Path) -> None:
    class Constant(Ldifs):
        listed: ClassVar = False

        def penalty(self, trained: Any, reference: Any) -> Any:
            return 0.0 * super().penalty(trained, reference)

    with pytest.raises(NonconformingDefense, match="does not change with the weights"):
        _gradient(Bench(Constant(every=2), tmp_path))


