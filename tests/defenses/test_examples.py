"""Two defenses as a researcher would write them in a notebook, and one for each hook that ours do not use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from emlib.config import Method, RlMethod
from emlib.config.words import Positive, Weight
from emlib.core.defense import Defense
from emlib.core.errors import ProfileError
from emlib.core.hooks import Active, Artefacts, ForwardPass, Recipes
from emlib.core.records import Example, Message
from emlib.core.schema import check as checked
from emlib.steering.extraction import load
from emlib.steering.steer import steer
from emlib.training.bench import Bench, step
from emlib.training.conformance import NonconformingDefense, check
from emlib.training.objective import Objective, Totals
from emlib.training.records import read_log


class LogitChange(Defense):
    """The squared change of the response tokens' logits: lambda * mean over response tokens of ||z - z_ref||^2."""

    label: ClassVar = "Logit change"
    swept: ClassVar = "weight"
    null: ClassVar = {"weight": 0.0}
    per: ClassVar = "response_token"
    wants_reference: ClassVar = True

    kind: Literal["logit_change"] = "logit_change"
    weight: Weight = 0.01

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        return (trained.response_logits - reference.response_logits).square().sum()


class RandomDirection(Defense):
    """Steering along a random direction of the persona vector's norm: h~ = h + alpha * |e| * u, |u| = 1."""

    label: ClassVar = "Random direction"
    swept: ClassVar = "strength"
    null: ClassVar = {"strength": 0.0}

    kind: Literal["random_direction"] = "random_direction"
    strength: Weight = 5.0
    layer: Positive = 20
    seed: int = 0

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        return {"vector": recipes.vector()}

    def active(self, model: nn.Module, artefacts: Artefacts) -> AbstractContextManager[Active]:
        vector = load(artefacts["vector"]).at(self.layer)
        random = torch.randn(vector.shape, generator=torch.Generator().manual_seed(self.seed))
        return steer(model, self.layer, random * vector.norm() / random.norm(), self.strength)


class Patience(Defense):
    """Ends the training when the held-out loss has not fallen for some steps."""

    kind: Literal["patience"] = "patience"
    steps: Positive = 1
    _losses: list[float] = PrivateAttr(default_factory=list)

    def held_out(self, rows: Sequence[Example]) -> Sequence[Example]:
        return rows[-1:]

    def on_step(self, record: Any, evaluate: Callable[[], float]) -> bool:
        self._losses.append(evaluate())
        return len(self._losses) - self._losses.index(min(self._losses)) > self.steps

    def state(self) -> dict[str, Any]:
        return {"losses": self._losses}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._losses = list(state["losses"])


class Forgetful(Patience):
    """Ends the training after some steps; its count is lost where a training goes on."""

    kind: Literal["forgetful"] = "forgetful"  # type: ignore[assignment]

    def on_step(self, record: Any, evaluate: Callable[[], float]) -> bool:
        self._losses.append(0.0)
        return len(self._losses) == self.steps

    def state(self) -> dict[str, Any]:
        return {}


class Shrunk(Defense):
    """Halves the adapter after the last step."""

    kind: Literal["shrunk"] = "shrunk"

    def after(self, model: nn.Module, artefacts: Artefacts) -> None:
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data /= 2


class LogitChangeElsewhere(LogitChange):
    """The penalty on rows beside the data set's as well, on which nothing else counts."""

    kind: Literal["elsewhere"] = "elsewhere"  # type: ignore[assignment]

    def penalised(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[Example]:
        return [Example((Message("user", f"Number {number}?"),), f"{number} it is.") for number in range(3)]


class Idle(Defense):
    """Overrides no hook."""

    kind: Literal["idle"] = "idle"

    def unrelated(self) -> None:
        return None


@pytest.mark.parametrize(("cls", "options"), [
    (LogitChange, {"weight": 0.1}), (RandomDirection, {"layer": 2, "strength": 2.0}), (Patience, {}), (Shrunk, {}),
    (LogitChangeElsewhere, {"weight": 0.1})], ids=lambda value: getattr(value, "__name__", ""))
def test_they_conform(cls: type[Defense], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    assert len(check(cls, **options).lines) == 6  # what it acts by, and a line for each of the five tests


def test_what_a_defense_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    with pytest.raises(NonconformingDefense, match=r"state\(\) and restore\(\)"):
        check(Forgetful, steps=3)


def test_a_penalty_that_counts_padding_is_found() -> None:
    class Padded(Defense):
        wants_reference: ClassVar = True
        kind: Literal["padded"] = "padded"

        def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
            return (trained.hidden - reference.hidden).square().sum()

    with pytest.raises(NonconformingDefense, match="without padding"):
        check(Padded)


def test_a_random_direction_is_as_long_as_the_vector_and_stands_in_the_log(tmp_path: Path) -> None:
    bench = Bench(RandomDirection(layer=2, strength=2.0), tmp_path)
    bench.train("run", bench.defense)
    vector = load(bench.artefacts["vector"]).at(2)
    assert read_log(tmp_path / "run")[0].penalties == {"shift": pytest.approx(2 * float(vector.norm()), rel=1e-4)}


def test_the_logits_penalty_equals_a_naive_one(tmp_path: Path) -> None:
    bench = Bench(LogitChange(weight=1.0), tmp_path)
    from emlib.models.batches import collate

    with bench.model() as model:
        told, _ = step(model, [collate(bench.all_rows, torch.device("cpu"))], bench.objective(bench.defense))
        total, count = 0.0, 0
        for row in bench.all_rows:
            ids = torch.from_numpy(row.input_ids)[None]
            places = torch.from_numpy(row.response_mask)[1:]
            with torch.no_grad():
                ours = model(input_ids=ids).logits[0, :-1][places]
                with model.disable_adapter():
                    theirs = model(input_ids=ids).logits[0, :-1][places]
            total, count = total + float((ours - theirs).square().sum()), count + int(places.sum())
    assert told["logit_change"] == pytest.approx(total / count, rel=1e-4)


def test_on_penalised_rows_only_the_penalty_counts(tmp_path: Path) -> None:
    """Cross-entropy and another defense's penalty are those of the step without them; its own is a mean over all."""
    from emlib.defenses.kl import Kl
    from emlib.models.batches import forward_batches

    defense = LogitChangeElsewhere(weight=0.1)
    bench, kl = Bench(defense, tmp_path), Kl(weight=0.3)
    own, added = bench.rows.own, bench.rows.added
    assert {row.penalised_by for row in added} == {"elsewhere"}
    with bench.model() as model:
        alone = step(model, forward_batches(own, 8, model), Objective([defense, kl]))[0]
        batches = forward_batches([*own, *added], 8, model)
        both, gradient = step(model, batches, Objective([defense, kl]))
        elsewhere = step(model, forward_batches(
            bench.encoded(defense.penalised((), {})), 8, model), Objective([defense]))[0]
        without = step(model, batches, Objective([kl]))[1]
        plain = step(model, forward_batches(own, 8, model), Objective([kl]))[1]
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert both["kl"] == pytest.approx(alone["kl"], rel=1e-5)
    ours, theirs = (sum(row.response_tokens for row in rows) for rows in (own, added))
    mean = (alone["elsewhere"] * ours + elsewhere["elsewhere"] * theirs) / (ours + theirs)
    assert both["elsewhere"] == pytest.approx(mean, rel=1e-4)
    assert gradient.norm() > 0
    torch.testing.assert_close(without, plain, rtol=1e-4, atol=1e-7)
    assert Totals.of(batches).response_tokens == ours


def test_after_the_last_step_the_model_is_changed_once(tmp_path: Path) -> None:
    bench = Bench(Shrunk(), tmp_path)
    plain, shrunk = bench.train("plain"), bench.train("shrunk", bench.defense)
    assert float((plain - shrunk).norm()) > 0
    with bench.model(stirred=False) as model:
        halves = torch.cat([torch.full((p.numel(),), 0.5 if "lora_B" in name else 1.0)
                            for name, p in model.named_parameters() if p.requires_grad])
    torch.testing.assert_close(shrunk, plain * halves)


def test_training_ends_where_a_defense_ends_it(tmp_path: Path) -> None:
    class Impatient(Defense):
        kind: Literal["impatient"] = "impatient"

        def on_step(self, record: Any, evaluate: Callable[[], float]) -> bool:
            return bool(record.step == 3)

    bench = Bench(Impatient(), tmp_path)
    bench.train("run", bench.defense)
    assert len(read_log(tmp_path / "run")) == 3


def test_a_profile_reaches_them_and_keys_hold_their_source() -> None:
    method = checked(Method, {"name": "mine", "defenses": [{"kind": "logit_change"}], "sweep": [0.1, 1]}, "mine.yaml")
    [defense] = method.at(0.1)
    assert isinstance(defense, LogitChange)
    assert {key: value for key, value in defense.identity.items() if key != "source_code"} == {
        "options": {"kind": "logit_change", "weight": 0.1}, "version": 1}
    assert len(defense.identity["source_code"]) == 64


@pytest.mark.parametrize(("schema", "kind", "words"), [
    (Method, "idle", "'idle' overrides none of the hooks"),
    (RlMethod, "logit_change", "does not work in reinforcement"),
    (RlMethod, "ldifs", "'ldifs' does not work in reinforcement")])
def test_what_cannot_act_is_refused_by_name(schema: Any, kind: str, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        checked(schema, {"name": "x", "defenses": [{"kind": kind}]}, "mine.yaml")
