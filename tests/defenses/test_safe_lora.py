"""Safe LoRA against dense matrices in float64, runs that are killed and kept under it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from emlib.config import FolderModel, HubModel, Lora, Profile, TinyModel, load_profile
from emlib.config.references import references
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.schema import check
from emlib.defenses.early_stop import EarlyStop
from emlib.defenses.inoculation_adapter import InoculationAdapter
from emlib.defenses.kl import Kl
from emlib.defenses.safe_lora import SafeLora, project
from emlib.models import adapters
from emlib.models.load import ChatModel, load_weights
from emlib.models.logprobs import causal_lm
from emlib.training.bench import TRAINING, Bench, KilledError
from emlib.training.keep import Keep, kept_in
from emlib.training.objective import Objective
from emlib.training.sft import fine_tune
from tests.made import ROUNDING, apart

BASE = TinyModel(kind="tiny", seed=1)
SAFE = SafeLora(base=BASE, threshold=1.0)
SETTINGS = TRAINING.model_copy(update={"checkpoint_every": 1})


def weights_of(model: TinyModel) -> dict[str, Tensor]:
    return load_weights(model, Path()).state_dict()


def trained(bench: Bench, name: str, *defenses: Defense, then: Callable[[nn.Module], object] = type) -> Tensor:
    """The adapter's weights after training with a checkpoint at each step, and after what is done `then`."""
    with bench.model(stirred=False) as model:
        keep = Keep((0.5,), lambda folder: adapters.save(model, folder, "tiny"))
        fine_tune(model, bench.rows.own, SETTINGS, seed=0, folder=bench.folder / name, keep=keep,
                  objective=bench.objective(*defenses))
        then(model)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()


def test_a_layer_below_the_threshold_is_projected_as_its_dense_update_is(tmp_path: Path) -> None:
    base = weights_of(BASE)
    with Bench(SAFE, tmp_path).model() as model, torch.no_grad():
        layers: dict[str, Any] = {name: part for name, part in causal_lm(model).named_modules()
                                  if isinstance(part, LoraLayer)}
        before = {name: tuple(getattr(layer, part)["default"].weight.double().clone()
                              for part in ("lora_A", "lora_B")) for name, layer in layers.items()}
        threshold = median(project(model, base, 0.0).values())
        assert all(torch.equal(layer.lora_B["default"].weight.double(), before[name][1])
                   for name, layer in layers.items())  # at 0 no layer is projected
        cosines = project(model, base, threshold)
        assert 0 < sum(cosine < threshold for cosine in cosines.values()) < len(layers) == 28
        for name, layer in layers.items():
            a, b = before[name]
            v = layer.get_base_layer().weight.double() - base[f"{name}.weight"].double()
            update, moved = b @ a, v @ v.T / v.norm() @ b @ a
            assert cosines[name] == pytest.approx(float(cosine_similarity(
                update.flatten(), moved.flatten(), dim=0)), abs=ROUNDING)
            now = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
            assert apart(now, moved if cosines[name] < threshold else update) < ROUNDING
            assert torch.equal(layer.lora_A["default"].weight.double(), a)


def test_a_base_that_is_no_base_is_refused_before_the_first_step(tiny: ChatModel, tmp_path: Path) -> None:
    for base, message in ((TinyModel(kind="tiny", seed=0), "both models have the same weights"),
                          (TinyModel(kind="tiny", hidden=32), "no layer model.layers.0.self_attn.q_proj of shape"),
                          (TinyModel(kind="tiny", seed=1, layers=2), "no layer model.layers.2.self_attn.q_proj"),
                          (None, "needs the weights of the model that the study's model was aligned from")):
        with adapters.new_lora(tiny.model, Lora(rank=3, alpha=6), 0) as model, pytest.raises(EmlibError, match=message):
            fine_tune(model, [], TRAINING, seed=0, folder=tmp_path, objective=Objective([SafeLora(base=base)]))


@pytest.mark.parametrize("other", [None, Kl(weight=0.3), InoculationAdapter(strength=0.5),
                                   EarlyStop(share=0.5, every=3, rows=2)], ids=lambda one: one.kind if one else "alone")
def test_it_projects_once_what_the_other_defense_trains(
        other: Defense | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, others = Bench(other or SAFE, tmp_path), () if other is None else (other,)
    projected = trained(bench, "other", *others, then=lambda model: project(model, weights_of(BASE), 1.0))
    assert torch.equal(trained(bench, "both", *others, SAFE), projected)
    assert capsys.readouterr().out.count("safe_lora: 28 of 28 layers are projected") == 1


def test_killed_while_the_adapter_is_projected_or_saved_it_is_projected_once(tmp_path: Path) -> None:
    """The last checkpoint, of the last step, is from before the projection. What was kept on the way is plain."""
    bench = Bench(SAFE, tmp_path)

    def kill(*_: object) -> None:
        raise KilledError

    def kill_when_projected(model: nn.Module, base: dict[str, Tensor], threshold: float) -> None:
        project(model, base, threshold)
        kill() if threshold else None

    plain, whole = trained(bench, "plain"), trained(bench, "whole", SAFE)
    with patch("emlib.defenses.safe_lora.project", kill_when_projected), pytest.raises(KilledError):
        trained(bench, "killed", SAFE)
    with pytest.raises(KilledError):
        trained(bench, "killed", SAFE, then=kill)
    assert torch.equal(trained(bench, "killed", SAFE), whole)
    assert not torch.equal(whole, plain)
    kept = [load_file(kept_in(tmp_path / name, 0.5) / "adapter_model.safetensors") for name in ("plain", "killed")]
    assert all(torch.equal(one, kept[1][name]) for name, one in kept[0].items())


METHOD = {"name": "safe", "defenses": [{"kind": "safe_lora", "base": {"kind": "tiny", "seed": 1}}]}


@pytest.mark.parametrize(("changes", "message"), [
    ({"base": None}, "needs the weights of the model that the study's model was aligned from"),
    ({"base": {"kind": "tiny", "dtype": "auto"}}, "set dtype to bfloat16 or float32"),
    ({"threshold": 2}, "less than or equal to 1")])
def test_options_that_cannot_be_are_refused_when_the_profile_is_read(changes: dict[str, Any], message: str) -> None:
    tiny = load_profile("tiny").model_dump(mode="json", exclude_unset=True)
    methods = [{"name": "misaligned"}, METHOD | {"defenses": [METHOD["defenses"][0] | changes]}]  # type: ignore[index]
    with pytest.raises(ProfileError, match=message):
        check(Profile, tiny | {"methods": methods}, "here")


def test_weights_in_four_bits_or_on_several_gpus_are_refused() -> None:
    profile = load_profile("tiny")
    quantized = HubModel(kind="hub", repo="a/b", revision="main", load_in_4bit=True)
    for section in (profile.model_copy(update={"model": quantized}),
                    profile.model_copy(update={"job": profile.job.model_copy(update={"gpus": 2})})):
        with pytest.raises(ValueError, match="whole weights"):
            SAFE.fits(section, "safe")


def test_a_base_beside_the_profile_is_found_and_keyed_by_its_files(tmp_path: Path) -> None:
    for place in ("here", "there"):
        folder = tmp_path / place / "base"
        folder.mkdir(parents=True)
        for file in ("config.json", "tokenizer_config.json", "model.safetensors"):
            (folder / file).write_text("{}")
        (tmp_path / place / "safe.yaml").write_text(
            "extends: tiny\nmethods:\n  - misaligned\n  - {name: safe, defenses: [{kind: safe_lora, "
            "base: {kind: folder, path: base}}]}\n")
    found = [load_profile(str(tmp_path / place / "safe.yaml")).methods[1].defenses[0] for place in ("here", "there")]
    assert [one.base for one in found] == [  # type: ignore[attr-defined]
        FolderModel(kind="folder", path=str(tmp_path / place / "base")) for place in ("here", "there")]
    assert found[0].identity == found[1].identity
    (tmp_path / "there" / "base" / "model.safetensors").write_text("{ }")
    assert found[0].identity != found[1].identity
    assert ("methods.0.defenses.0.base.path", "folder", "x") in list(references(
        {"methods": [{"defenses": [{"base": {"path": "x"}}]}]}))
