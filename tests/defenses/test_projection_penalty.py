"""The projection penalty against a second implementation, by hand, and the reference pass that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError, StoreError
from emlib.core.hooks import ForwardPass
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.defenses.projection_penalty import ProjectionPenalty, rise
from emlib.models.batches import collate
from emlib.models.hooks import blocks
from emlib.steering import extraction
from emlib.training.bench import Bench, step
from tests.defenses import naive
from tests.defenses.naive import see
from tests.made import apart, some_rows

ONE_SIDED, BOTH = ProjectionPenalty(weight=2.0, layers=(1, 3)), ProjectionPenalty(weight=2.0, layers=(2,), both=True)
STORED = ProjectionPenalty(weight=2.0, layers=(3, 1), reference="stored")
CPU = torch.device("cpu")


@pytest.mark.parametrize("defenses", [
    (ONE_SIDED,), (BOTH,), (ONE_SIDED, Kl(weight=0.3)), (STORED,), (STORED, Kl(weight=0.3))],
    ids=["one", "both", "kl", "stored", "stored, kl"])
def test_it_equals_a_naive_implementation_in_float64(defenses: Sequence[Any], tmp_path: Path) -> None:
    bench, penalty = Bench(defenses[0], tmp_path), defenses[0]
    vectors = extraction.load(bench.artefacts["vector"]).vectors.double()

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        total, rows = torch.zeros((), dtype=torch.float64), bench.all_rows
        for row in rows:
            ours, theirs = see(trained, row), see(reference, row)
            for layer in penalty.layers:
                z, z_ref = (side.outputs[layer] @ vectors[layer] / vectors[layer].norm() for side in (ours, theirs))
                change = z - z_ref if penalty.both else (z - z_ref).clamp_min(0)
                total = total + 2.0 * (change**2).sum() / len(penalty.layers) / naive.count(rows)
            total = total + naive.cross_entropy(ours, row) / naive.count(rows, response=True)
            if len(defenses) > 1:
                total = total + 0.3 * naive.kl(ours, theirs) / naive.count(rows)
        return total

    naive.agrees(loss, defenses, tmp_path)


def test_a_rise_by_hand() -> None:
    # along (0.6, 0.8): 5 against 1, 0 against 2, 1 against 1
    trained, reference = torch.tensor([[3.0, 4.0], [0.8, -0.6], [0.6, 0.8]]), torch.tensor(
        [[0.6, 0.8], [1.2, 1.6], [0.6, 0.8]])
    direction = torch.tensor([0.6, 0.8])
    assert rise(trained, reference, direction).tolist() == pytest.approx([16.0, 0.0, 0.0], abs=1e-5)
    assert rise(trained, reference, direction, both=True).tolist() == pytest.approx([16.0, 4.0, 0.0], abs=1e-5)


def test_the_reference_pass_ends_at_the_deepest_layer_that_is_read(tmp_path: Path) -> None:
    """With KL beside it the pass is whole, and the blocks are all there again after an exception."""
    bench, ran = Bench(ONE_SIDED, tmp_path), list[tuple[int, bool]]()
    batch = [collate(bench.all_rows, CPU)]
    with bench.model() as model:
        for place, block in enumerate(blocks(model), start=1):
            block.register_forward_hook(lambda *_, place=place: ran.append((place, torch.is_grad_enabled())))
        metrics, gradient = step(model, batch, bench.objective(ONE_SIDED))
        assert [place for place, trains in ran if not trains] == [1, 2, 3]
        ran.clear()
        again, same = step(model, batch, bench.objective(ONE_SIDED, Kl(weight=1e-9)))
        assert [place for place, trains in ran if not trains] == [1, 2, 3, 4]
        assert again["projection_penalty"] == pytest.approx(metrics["projection_penalty"], rel=1e-6)
        torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-6)
        with pytest.raises(EmlibError, match="layers 1 to 4"):
            step(model, batch, bench.objective(Ldifs(layers=(2, 9))))
        assert len(blocks(model)) == 4


def test_with_stored_projections_the_reference_model_does_not_run(tmp_path: Path) -> None:
    """Also beside steering, whose vector is in the trained model's outputs only; other rows are told."""
    steered, ran = PersonaVector(layer=2, strength=2.0), list[bool]()
    bench = Bench(STORED, tmp_path)
    batch = [collate(bench.all_rows, CPU)]
    with bench.model() as model:
        blocks(model)[0].register_forward_hook(lambda *_: ran.append(torch.is_grad_enabled()))
        found = {one.reference: step(model, batch, bench.objective(one, steered)) for one in (
            STORED, STORED.model_copy(update={"reference": "computed"}))}
        assert ran == [True, False, True]
        assert found["stored"][0] == pytest.approx(found["computed"][0], rel=1e-4)
        assert apart(found["stored"][1], found["computed"][1]) < 1e-4
        with pytest.raises(StoreError, match="of 3 of 3 rows"):
            step(model, [collate(some_rows(3), CPU)], bench.objective(STORED))


def test_reading_the_last_states_of_a_pass_that_ended_before_is_an_error(tmp_path: Path) -> None:
    class Careless(Defense):
        wants_reference: ClassVar = True
        reads_hidden: ClassVar = False
        kind: Literal["careless"] = "careless"

        def reads_layers(self, count: int) -> tuple[int, ...]:
            return (1,)

        def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
            return (trained.hidden - reference.hidden).square().sum()

    bench = Bench(Careless(), tmp_path)
    with bench.model() as model, pytest.raises(EmlibError, match="reads_hidden = False"):
        step(model, [collate(bench.all_rows, CPU)], bench.objective(bench.defense))


def test_a_vector_of_length_zero_is_refused(tmp_path: Path) -> None:
    extraction.save(extraction.PersonaVectors(torch.zeros(5, 64), 1, 1), tmp_path)
    with pytest.raises(EmlibError, match="layer 3 is zero"):
        ProjectionPenalty(layers=(3,)).prepare({"vector": tmp_path})
