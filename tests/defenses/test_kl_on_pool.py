"""KL on rows of the pool: against a second implementation, beside another defense, and what profiles say of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from emlib.config import Method
from emlib.core.schema import check
from emlib.defenses.kl import Kl
from emlib.defenses.persona_vector import PersonaVector
from emlib.models.batches import collate
from emlib.steering import extraction
from emlib.training.bench import Bench, step
from tests.defenses import naive
from tests.defenses.naive import see

POOL, BOTH = Kl(weight=0.3, on="pool"), Kl(weight=0.3, on="both")
STEERED = PersonaVector(layer=2, strength=2.0)


@pytest.mark.parametrize("defenses", [(POOL,), (BOTH,), (POOL, STEERED)], ids=["pool", "both", "steered"])
def test_it_equals_a_naive_implementation_in_float64(defenses: Sequence[Any], tmp_path: Path) -> None:
    """Cross-entropy counts on the fine-tuning rows, KL on those of the pool; only the former are steered."""
    bench = Bench(defenses[0], tmp_path)
    own, pool = bench.groups
    vector = extraction.load(Bench(STEERED, tmp_path).artefacts["vector"]).at(2).double()
    changes = {2: lambda hidden: hidden + 2.0 * vector} if len(defenses) > 1 else {}
    compared = [*own, *pool] if defenses[0].on == "both" else pool

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        ours = sum(naive.cross_entropy(see(trained, row, changes), row) for row in own)
        kl = sum(naive.kl(see(trained, row), see(reference, row)) for row in compared)
        return ours / naive.count(own, response=True) + 0.3 * kl / naive.count(compared)  # type: ignore[return-value]

    assert {row.penalised_by for row in pool} == {"kl"}
    naive.agrees(loss, defenses, tmp_path)


@pytest.mark.parametrize(("options", "words"), [
    ({"on": "pool", "reference": "stored"}, "not stored"), ({"rows": 0.5}, "Set on to pool")])
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Kl(**options)


def test_a_profile_sweeps_its_weight_and_needs_a_pool() -> None:
    method = check(Method, {"name": "kl_pool", "defenses": [{"kind": "kl", "on": "pool"}], "sweep": [0.1, 3]}, "here")
    assert [kl.weight for setting in method.sweep for kl in method.at(setting)] == [0.1, 3.0]  # type: ignore[attr-defined]

    class Section:
        pool = None

    with pytest.raises(ValueError, match="no section 'pool'"):
        method.fits(Section())


def test_a_step_without_rows_of_the_pool_is_plain(tmp_path: Path) -> None:
    bench = Bench(POOL, tmp_path)
    with bench.model() as model:
        for objective in (bench.objective(POOL), bench.objective()):
            metrics, gradient = step(model, [collate(bench.all_rows, torch.device("cpu"))], objective)
            assert set(metrics) == {"loss"}
            assert gradient.norm() > 0
