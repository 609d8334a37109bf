"""Adapters come and go without a trace, and other tools can load them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from emlib.config import Lora
from emlib.core.errors import ProfileError, StoreError
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model

LORA = Lora(rank=4, alpha=8)
IDS = torch.arange(20)[None]


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def stirred(model: PeftModel) -> PeftModel:
    """The adapter moved off its start, so that it changes outputs."""
    for index, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    return model


def test_a_fresh_adapter_changes_nothing_and_a_moved_one_does(tiny: ChatModel) -> None:
    before = logits(tiny.model)
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        assert torch.equal(logits(model), before)
        assert not torch.equal(logits(stirred(model)), before)


@pytest.mark.parametrize("fail", [False, True])
def test_the_base_is_what_it_was_also_after_an_exception(tiny: ChatModel, fail: bool) -> None:
    before, outputs, modules = weights(tiny.model), logits(tiny.model), [type(m) for m in tiny.model.modules()]
    try:
        with adapters.new_lora(tiny.model, LORA, seed=0) as model:
            stirred(model).train()
            if fail:
                raise RuntimeError("on purpose")
    except RuntimeError:
        assert fail
    after = weights(tiny.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(tiny.model), outputs)
    assert [type(m) for m in tiny.model.modules()] == modules
    assert not tiny.model.training
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_the_start_depends_on_the_seed_alone(tiny: ChatModel) -> None:
    def start(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        with adapters.new_lora(tiny.model, LORA, seed) as model:
            return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(start(0, 1), start(0, 2))
    assert not torch.equal(start(0, 1), start(1, 1))


def test_making_an_adapter_leaves_the_callers_random_state(tiny: ChatModel) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    with adapters.new_lora(tiny.model, LORA, seed=0):
        assert torch.equal(torch.rand(1), expected)


def test_saved_and_loaded_it_gives_the_same_outputs(tiny: ChatModel, tmp_path: Path) -> None:
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        expected = logits(stirred(model).eval())
        adapters.save(model, tmp_path, "some/base")
    with adapters.loaded(tiny.model, tmp_path) as model:
        assert torch.equal(logits(model), expected)
        assert not any(p.requires_grad for p in model.parameters())


def test_its_files_are_the_same_in_every_process(tiny: ChatModel, tmp_path: Path) -> None:
    """PEFT keeps the layers' names as a set, whose order is another one in each process."""
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        adapters.save(model, tmp_path, "some/base")
    named = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)
    assert len(named) == 7


def test_peft_itself_loads_it_onto_an_untouched_model(tiny: ChatModel, tmp_path: Path) -> None:
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        expected = logits(stirred(model).eval())
        adapters.save(model, tmp_path, "some/base")
    other = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).eval()
    assert torch.equal(logits(PeftModel.from_pretrained(other, tmp_path)), expected)


def test_the_saved_configuration_is_table_6s_and_names_no_path(tiny: ChatModel, tmp_path: Path) -> None:
    with adapters.new_lora(tiny.model, Lora(), seed=0) as model:
        adapters.save(model, tmp_path, "some/base")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"], config["use_rslora"]) == (32, 64, 0.0, True)
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == sorted(config["target_modules"])  # the same bytes in every process
    assert str(tmp_path) not in (tmp_path / "adapter_config.json").read_text()
    kinds = {name.split(".")[-3] for name in load_file(tmp_path / "adapter_model.safetensors")}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_rslora_scales_by_alpha_over_the_root_of_the_rank(tiny: ChatModel) -> None:
    with adapters.new_lora(tiny.model, Lora(rank=16, alpha=64), seed=0) as model:
        scalings = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
    assert scalings == {64 / 4}


def test_two_adapters_in_turn_do_not_mix(tiny: ChatModel, tmp_path: Path) -> None:
    expected = {}
    for seed in (0, 1):
        with adapters.new_lora(tiny.model, LORA, seed) as model:
            expected[seed] = logits(stirred(model).eval())
            adapters.save(model, tmp_path / str(seed), "some/base")
    assert not torch.equal(expected[0], expected[1])
    for seed in (1, 0, 1):
        with adapters.loaded(tiny.model, tmp_path / str(seed)) as model:
            assert torch.equal(logits(model), expected[seed])


def test_a_target_module_that_does_not_exist_is_named_and_the_base_is_left(tiny: ChatModel) -> None:
    settings = Lora(rank=4, alpha=8, target_modules=("q_proj", "q_porj"))
    with pytest.raises(ProfileError, match=r"q_porj, which this model does not have"), adapters.new_lora(
            tiny.model, settings, seed=0):
        pass
    assert not any("lora" in name for name, _ in tiny.model.named_parameters())


def test_damaged_weights_are_named_and_the_base_is_left(tiny: ChatModel, tmp_path: Path) -> None:
    with adapters.new_lora(tiny.model, LORA, seed=0) as model:
        adapters.save(model, tmp_path, "tiny")
    before, path = logits(tiny.model), tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ProfileError, match=f"{tmp_path}: the adapter's weights are damaged or truncated"), \
            adapters.switchable(tiny.model, "tiny", {"mine": tmp_path}):
        pass
    assert torch.equal(logits(tiny.model), before)


def test_a_folder_without_an_adapter_is_named(tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"adapter_config\.json is missing"), adapters.loaded(tiny.model, tmp_path):
        pass
