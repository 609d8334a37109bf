"""Every pair of our defenses on the tiny model: it is refused with a reason, or both act in one step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from emlib.config import TinyModel, load_profile, profile_names
from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.errors import ProfileError
from emlib.core.hooks import Active, Artefacts, ForwardPass
from emlib.core.registry import kinds
from emlib.data.chat import Encoded
from emlib.defenses.concept_ablation import Ablation, ConceptAblation
from emlib.defenses.consistency import Consistency
from emlib.defenses.early_stop import EarlyStop
from emlib.defenses.filtering import Filtering
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.inoculation_adapter import Inoculated, InoculationAdapter
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Beta, Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector, Steering
from emlib.defenses.projection_penalty import Projected, ProjectionPenalty
from emlib.defenses.safe_lora import SafeLora
from emlib.models.batches import collate
from emlib.report.tables.kinds import at_defaults, compositions, name, reason
from emlib.study.by_hand import train
from emlib.study.study import open_study
from emlib.training.bench import Bench, TinyTrait, step
from emlib.training.objective import Objective

# One of each kind, for a model of 4 layers.
TINY: tuple[Defense, ...] = (
    Kl(weight=0.3), Kl(weight=0.3, on="pool"), Ldifs(every=2), PersonaVector(layer=2, strength=2.0), Inoculation(),
    Interleaving(fraction=0.5), Interleaving(fraction=0.5, choose="online"), Consistency(share=0.5),
    ConceptAblation(layers=(1,)), ConceptAblation(directions="components", count=2, layers=(1,)),
    ProjectionPenalty(layers=(3,), both=True), InoculationAdapter(strength=0.5), Filtering(share=0.4),
    EarlyStop(rows=2), SafeLora(base=TinyModel(kind="tiny", seed=1)))
LATE = ConceptAblation(layers=(3,))  # behind the layers that a penalty before it compares
PAIRS = [*(pair for pair in combinations(TINY, 2) if pair[0].kind != pair[1].kind),
         (LATE, Ldifs(layers=(1, 2))), (LATE, ProjectionPenalty(layers=(2,), both=True))]
CPU = torch.device("cpu")
# By hand, at the default options.
CANCELLED = {("concept_ablation", "kl"), ("concept_ablation", "ldifs"), ("concept_ablation", "projection_penalty"),
             ("inoculation_adapter", "kl"), ("inoculation_adapter", "ldifs"),
             ("inoculation_adapter", "projection_penalty"), ("kl", "persona_vector")}
REFUSED = CANCELLED | {("concept_ablation", "persona_vector")}


def gradient(defenses: Sequence[Defense], folder: Path) -> Tensor:
    """The gradient of one step on all rows under some defenses, made as training makes them."""
    benches = [Bench(defense, folder) for defense in defenses] or [Bench(Inoculation(), folder)]
    artefacts = {name: place for bench in benches for name, place in bench.artefacts.items()}
    rows = benches[0].examples
    for defense in defenses:
        rows = tuple(defense.change_rows(rows, TinyTrait()))
    encoded = benches[0].encoded
    filtered = {place for one in defenses for place in one.filtered(rows, artefacts)}
    rows = tuple(row for place, row in enumerate(rows) if place not in filtered)
    added = [row for one in defenses
             for row in (*one.added(rows, artefacts), *one.candidates(rows, artefacts).rows[:2])]
    trained: list[Encoded] = encoded([*rows, *(row.example for row in added)])
    others = [[replace(row, penalised_by=one.kind) for row in found] for one in defenses
              if (found := encoded(one.penalised(rows, artefacts)))]
    with benches[0].model() as model:
        metrics, found = step(model, [collate(group, CPU) for group in (trained, *others)],
                              Objective(defenses, artefacts))
    assert all(value == value for value in metrics.values())
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    every = {name(one): one for pair in PAIRS for one in pair}
    return {named: gradient((one,), tmp_path_factory.mktemp("alone")) for named, one in every.items()}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " and ".join(map(name, pair)))
def test_every_pair_acts_together_or_is_refused(
        pair: tuple[Defense, Defense], alone: dict[str, Tensor], tmp_path: Path) -> None:
    """Where both act in a step, the gradient is neither that of the one nor that of the other."""
    if why := reason(*pair):
        assert why == reason(*reversed(pair))
        assert tuple(sorted(one.kind for one in pair)) in CANCELLED
        assert LATE not in pair
        return
    both = gradient(pair, tmp_path)
    in_step = [one for one in pair if not (one.has("on_step") or one.acts_after())]
    if len(in_step) < len(pair):  # what acts between steps, or after them, leaves the step to the other one
        assert torch.equal(both, alone[name((*in_step, *pair)[0])])
        return
    for one in pair:
        assert float((both - alone[name(one)]).norm()) > 1e-4 * float(both.norm()), name(one)


def test_every_kind_of_ours_is_among_them() -> None:
    ours = {kind for kind, cls in kinds().items() if cls.__module__.startswith("emlib.defenses.")}
    assert {one.kind for one in TINY} == ours == {one.kind for one in at_defaults()}


def test_the_table_lists_what_is_refused_at_default_options_and_what_goes_with_all() -> None:
    rows = compositions()
    *refused, (kind, other, why) = rows.itertuples(index=False)
    assert {tuple(sorted(row[:2])) for row in refused} == REFUSED
    assert all(row[2].startswith("refused: ") for row in refused)
    assert rows["In one method"].str.len().min() > 40
    assert (kind, other) == ("safe_lora", "any other")
    assert "after the last step" in why
    assert not any(reason(SafeLora(), one) for one in at_defaults() if one.kind != kind)
    assert name(Kl(on="pool")) == "kl (on: pool)"


def test_a_refused_pair_is_refused_by_hand_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with pytest.raises(ProfileError, match="cannot be combined: the vector that one adds at layer 2"):
        train(open_study("tiny"), PersonaVector(layer=2), ConceptAblation(layers=(3,)))


class OnLogits(Defense):
    """A penalty on the outputs, as a user may write one."""

    listed: ClassVar = False
    wants_reference: ClassVar = True
    kind: Literal["on_logits"] = "on_logits"

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        return (trained.response_logits - reference.response_logits).square().sum()


@pytest.mark.parametrize("penalty", [Kl(), Kl(on="both"), OnLogits()])
@pytest.mark.parametrize("steering", [PersonaVector(), ConceptAblation(), InoculationAdapter()])
def test_a_penalty_on_outputs_would_only_cancel_what_changes_them_in_training(
        penalty: Defense, steering: Defense) -> None:
    with pytest.raises(ValueError, match=f"'{steering.kind}' changes the outputs.*learns to cancel the change"):
        refuse_exclusions([penalty, steering])
    refuse_exclusions([Kl(on="pool"), steering])
    refuse_exclusions([Kl(weight=0.0), steering])  # left out of the training
    refuse_exclusions([Ldifs(), PersonaVector()])  # LDIFS subtracts the vector
    with pytest.raises(ValueError, match=r"'persona_vector' changes the outputs .* and 'kl' compares them"):
        refuse_exclusions([Steering(), Beta()])
    refuse_exclusions([Steering(steer="rollout"), Beta()])


class Doubled(Defense):
    """A change of the passes that adds no vectors, as a user may write one."""

    listed: ClassVar = False
    kind: Literal["doubled"] = "doubled"

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        raise NotImplementedError


class FromLayer3(Doubled):
    kind: Literal["from_layer_3"] = "from_layer_3"

    def named_layers(self, count: int) -> tuple[int, ...]:
        return (3,)


@pytest.mark.parametrize(("change", "first"), [
    (InoculationAdapter(), 1), (Inoculated(), 1), (Doubled(), 1), (FromLayer3(), 3),
    (ConceptAblation(layers=(5, 3)), 3), (ConceptAblation(directions="components", layers=(3,)), 3),
    (Ablation(layers=(3,)), 3)])
def test_a_penalty_on_features_would_only_cancel_what_changes_them_in_training(change: Defense, first: int) -> None:
    for penalty in (Ldifs(every=2), Ldifs(layers=(first,)), ProjectionPenalty(layers=(1, 4)), Projected(layers=(3,)),
                    ProjectionPenalty(layers=(3,), reference="stored")):
        with pytest.raises(ValueError, match=f"'{change.kind}' changes the features .* '{penalty.kind}' com") as caught:
            refuse_exclusions([penalty, change])
        advice = f". Let it read only layers before layer {first}" if first > 1 else ""
        assert str(caught.value).endswith(f"cancel the change{advice}")
    for before in (Ldifs(layers=(1, 2)), ProjectionPenalty(layers=(2,)), Projected(layers=(2,))):
        if first > 1:
            refuse_exclusions([before, change])
    refuse_exclusions([Ldifs(weight=0.0), change])  # left out of the training
    refuse_exclusions([ProjectionPenalty(layers=(20,)), PersonaVector(layer=3)])


@pytest.mark.parametrize("profile", profile_names())
def test_no_profile_of_ours_has_a_refused_pair(profile: str) -> None:
    loaded = load_profile(profile)  # refuses it
    for method in (*loaded.fine_tuned, *(loaded.grpo.methods if loaded.grpo else ())):
        for setting in method.sweep or (None,):
            refuse_exclusions(method.at(setting))
