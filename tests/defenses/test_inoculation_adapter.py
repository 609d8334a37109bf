"""The frozen second adapter against a second implementation, its random control, and that it is never left out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.inoculation_adapter import InoculationAdapter
from emlib.defenses.kl import Kl
from emlib.models.logprobs import last_hidden
from emlib.models.second_adapter import LowRank, read, second_adapter, write_random
from emlib.steering import extraction
from emlib.training.bench import Bench
from tests.defenses import naive
from tests.defenses.naive import see

DEFENSE = InoculationAdapter(strength=0.5)
ABLATION, POOL = ConceptAblation(layers=(2,)), Kl(weight=0.3, on="pool")


@pytest.mark.parametrize("others", [(), (ABLATION,), (POOL,)], ids=["alone", "ablation", "kl on pool"])
def test_it_equals_merged_weights_in_float64(others: Sequence[Any], tmp_path: Path) -> None:
    """On the fine-tuning rows the frozen weights hold the second adapter; on rows of the pool they do not."""
    bench = Bench((*others, DEFENSE)[0], tmp_path)
    frozen = Bench(DEFENSE, tmp_path).artefacts["trait_adapter"]
    own, *pool = bench.groups
    changes = {}
    if ABLATION in others:
        v = extraction.load(bench.artefacts["vector"]).at(2).double()
        changes = {2: lambda hidden: hidden - (hidden @ v)[..., None] * v / v.square().sum()}

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        kl = sum(naive.kl(see(trained, row), see(reference, row)) for row in pool[0]) / naive.count(
            pool[0]) if pool else 0.0
        naive.merge(trained, frozen, DEFENSE.strength)
        ours = sum(naive.cross_entropy(see(trained, row, changes), row) for row in own)
        return ours / naive.count(own, response=True) + 0.3 * kl  # type: ignore[return-value]

    naive.agrees(loss, (*others, DEFENSE), tmp_path)


def test_the_control_is_random_and_has_each_layer_s_norm(tmp_path: Path) -> None:
    trained = Bench(DEFENSE, tmp_path).artefacts["trait_adapter"]
    (tmp_path / "random").mkdir()
    write_random(trained, tmp_path / "random", seed=3)
    theirs, ours = read(trained), read(tmp_path / "random")
    assert theirs.scale == ours.scale == 4.0  # 8 / sqrt(4)
    assert len(ours.layers) == 4 * 7
    for name, (a, b) in theirs.layers.items():
        product, random = b @ a, ours.layers[name][1] @ ours.layers[name][0]
        assert float(random.norm()) == pytest.approx(float(product.norm()), rel=1e-4)
        assert abs(float((random * product).sum())) < 0.2 * float(product.norm())**2


def test_it_is_gone_after_an_exception_and_missed_aloud(tmp_path: Path) -> None:
    bench = Bench(DEFENSE, tmp_path)
    adapter, ids = read(bench.artefacts["trait_adapter"]), torch.arange(9)[None]
    with bench.model() as model, torch.no_grad():
        before = last_hidden(model, ids, None)
        with suppress(InterruptedError), second_adapter(model, adapter, 1.0):
            assert not torch.equal(last_hidden(model, ids, None), before)
            raise InterruptedError
        assert torch.equal(last_hidden(model, ids, None), before)
        with pytest.raises(EmlibError, match="28 of 28 layers did not call"), second_adapter(model, adapter, 1.0):
            pass  # as in kernels that pass over hooks
        other = LowRank({"base_model.model.elsewhere": next(iter(adapter.layers.values()))}, 1.0)
        with pytest.raises(EmlibError, match="does not have, such as"), second_adapter(model, other, 1.0):
            pass


def test_a_number_of_rows_needs_a_source() -> None:
    with pytest.raises(ValidationError, match="there is no source"):
        InoculationAdapter(rows=3)
