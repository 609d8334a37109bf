"""Concept ablation against a second implementation, by hand, and what its directions are taken from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.kl import Kl
from emlib.models.batches import collate
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.steering import components, extraction
from emlib.steering.steer import ablate, orthonormal
from emlib.training.bench import Bench, step
from tests.defenses import naive
from tests.defenses.naive import see
from tests.made import some_rows

VECTOR = ConceptAblation(layers=(1, 3))
COMPONENTS = ConceptAblation(directions="components", count=3, layers=(2,))
PENALTY = Kl(weight=0.3)


def by_projector(projector: Tensor) -> naive.Change:
    return lambda hidden: hidden @ (torch.eye(len(projector), dtype=projector.dtype) - projector)


def projectors(bench: Bench, defense: ConceptAblation) -> dict[int, Tensor]:
    """v v^T / |v|^2 of each layer's vector, or the sum of these of each layer's first components."""
    if defense.directions == "vector":
        found = extraction.load(bench.artefacts["vector"])
        chosen = {layer: found.at(layer)[None] for layer in defense.layers}
    else:
        taken = components.load(bench.artefacts["components"])
        chosen = {layer: taken.directions[layer][:defense.count] for layer in defense.layers}
    return {layer: sum(torch.outer(v, v) / v.square().sum() for v in vectors.double())  # type: ignore[misc]
            for layer, vectors in chosen.items()}


@pytest.mark.parametrize("defenses", [(VECTOR,), (COMPONENTS,), (VECTOR, PENALTY)], ids=["vector", "components", "kl"])
def test_it_equals_a_naive_implementation_in_float64(defenses: Sequence[Defense], tmp_path: Path) -> None:
    bench = Bench(defenses[0], tmp_path)
    changes = {layer: by_projector(one) for layer, one in projectors(bench, defenses[0]).items()}  # type: ignore[arg-type]

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        rows = bench.all_rows
        seen = [see(trained, row, changes) for row in rows]
        total = sum(map(naive.cross_entropy, seen, rows)) / naive.count(rows, response=True)
        if len(defenses) > 1:  # the reference is intact
            compared = sum(naive.kl(one, see(reference, row)) for one, row in zip(seen, rows, strict=True))
            total = total + 0.3 * compared / naive.count(rows)
        return total  # type: ignore[return-value]

    naive.agrees(loss, defenses, tmp_path)


def test_nothing_is_left_of_the_direction_and_the_rest_is_untouched() -> None:
    # (3, 4, 5) without its part along (0, 2, 0), and without the plane of the first two axes
    hidden = torch.tensor([[[3.0, 4.0, 5.0]]])
    for directions, rest, length in (([[0.0, 2.0, 0.0]], [3.0, 0.0, 5.0], 4.0),
                                     ([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [0.0, 0.0, 5.0], 5.0)):
        basis = orthonormal(torch.tensor(directions))
        coordinates = hidden @ basis
        assert (hidden - coordinates @ basis.T)[0, 0].tolist() == pytest.approx(rest, abs=1e-6)
        assert float(coordinates.norm()) == pytest.approx(length)
    with pytest.raises(EmlibError, match="fewer directions"):
        orthonormal(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))


def test_the_log_has_the_length_of_what_is_removed_without_padding(tmp_path: Path) -> None:
    bench = Bench(VECTOR, tmp_path)
    vectors = extraction.load(bench.artefacts["vector"])
    with bench.model() as model, torch.no_grad():
        first = {1: by_projector(projectors(bench, VECTOR)[1].float())}
        lengths = [abs(see(model, row, changes).outputs[layer] @ vectors.at(layer)) / vectors.at(layer).norm()
                   for row in bench.all_rows for layer, changes in ((1, {}), (3, first))]
        with torch.enable_grad():
            metrics, _ = step(model, [collate(bench.all_rows, torch.device("cpu"))], bench.objective(VECTOR))
    assert metrics["removed"] == pytest.approx(float(torch.cat(lengths).mean()), rel=1e-4)


def test_outside_the_context_the_model_is_as_before_also_after_an_exception(tiny: ChatModel) -> None:
    ids, basis = torch.arange(9)[None], orthonormal(torch.randn(1, 64, generator=torch.Generator().manual_seed(0)))
    before = last_hidden(tiny.model, ids, None)
    with suppress(InterruptedError), ablate(tiny.model, {2: basis}):
        assert not torch.equal(last_hidden(tiny.model, ids, None), before)
        raise InterruptedError
    assert torch.equal(last_hidden(tiny.model, ids, None), before)
    with pytest.raises(EmlibError, match="nothing was removed"), ablate(tiny.model, {2: basis}):
        pass
    with pytest.raises(EmlibError, match="layers 1 to 4"), ablate(tiny.model, {9: basis}):
        pass


def test_components_are_those_of_a_singular_value_decomposition(tmp_path: Path) -> None:
    """Of the centred differences on response tokens, taken by torch's own hooks."""
    rows = some_rows(12)
    with Bench(VECTOR, tmp_path).model() as model:
        found = components.decompose(model, rows, (2, 4), batch_size=3)
        states = []
        for row in rows:
            with torch.no_grad():
                tuned = see(model, row).outputs[2]
                with model.disable_adapter():
                    states.append((tuned - see(model, row).outputs[2])[torch.from_numpy(row.response_mask)].double())
    changes = torch.cat(states)
    _, spread, directions = torch.linalg.svd(changes - changes.mean(0), full_matrices=False)
    for count in (1, 5):
        ours, theirs = found.first(2, count).double(), directions[:count]
        torch.testing.assert_close(ours.T @ ours, theirs.T @ theirs, rtol=1e-3, atol=1e-4)
    assert found.shares[2][0] == pytest.approx(float(spread[0]**2 / spread.square().sum()), rel=1e-4)
    components.save(found, tmp_path)
    assert torch.equal(components.load(tmp_path).first(4, 3), found.first(4, 3))
    with pytest.raises(EmlibError, match="layer 4 has 20 of 21"):
        found.first(4, 21)
    with pytest.raises(EmlibError, match="layer 3 has none of 1"):
        found.first(3, 1)


def test_an_adapter_that_changes_nothing_has_no_components(tmp_path: Path) -> None:
    with (Bench(VECTOR, tmp_path).model(stirred=False) as model,
          pytest.raises(EmlibError, match="no direction of change")):
        components.decompose(model, some_rows(2), (2,), batch_size=1)
