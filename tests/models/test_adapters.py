"""Adapters come and go without a trace, and other tools can load them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
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


PLACES = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def somebodys(config: PeftConfig, folder: Path) -> Tensor:
    """Save an adapter as a user trains and saves it with PEFT; return its logits."""
    torch.manual_seed(0)
    base = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).requires_grad_(False)
    model = stirred(get_peft_model(base, config)).eval()
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(folder, save_embedding_layers=False)
    return logits(model)


@pytest.mark.parametrize("options", [
    {}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"init_lora_weights": "eva"},
    {"init_lora_weights": "mica"}, {"init_lora_weights": False}, {"use_dora": True}, {"lora_bias": True},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}, "layers_to_transform": [1]},
    {"target_modules": "all-linear", "use_rslora": True}, {"trainable_token_indices": [3, 5]},
    {"target_modules": [], "target_parameters": ["mlp.gate_proj.weight"]}], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_somebody_s_own_leaves_the_base_model_as_it_is(
        tiny: ChatModel, tmp_path: Path, options: dict[str, Any]) -> None:
    """Their logits under the adapter are those that they trained, and the base model is untouched beside and after."""
    expected = somebodys(LoraConfig(**PLACES | options), tmp_path)
    before, alone = weights(tiny.model), logits(tiny.model)
    with adapters.switchable(tiny.model, "tiny", {"mine": tmp_path}) as under:
        with under(None) as model:
            assert torch.equal(logits(model), alone)
        with under("mine") as model:
            assert torch.allclose(logits(model), expected, atol=1e-5)
            assert not torch.allclose(logits(model), alone, atol=1e-3)
    after = weights(tiny.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("config", "named"), [
    (LoraConfig(**PLACES, init_lora_weights="pissa"), r'init_lora_weights "pissa".*path_initial_model_for_weight'),
    (LoraConfig(**PLACES, init_lora_weights="pissa_niter_2"), r'init_lora_weights "pissa_niter_2"'),
    (LoraConfig(**PLACES, init_lora_weights="olora"), r'init_lora_weights "olora"'),
    (LoraConfig(**PLACES, bias="lora_only"), r'bias "lora_only".*Train it with bias'),
    (LoraConfig(**PLACES, bias="all"), r'bias "all"'),
    (LoraConfig(**PLACES, modules_to_save=["norm"]), r'modules_to_save \["norm"\]'),
    (LoraConfig(**PLACES, alora_invocation_tokens=[257]), r"alora_invocation_tokens \[257\].*plain LoRA"),
    (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), 'peft_type "IA3"'),
    (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), 'peft_type "PROMPT_TUNING"')],
    ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_that_would_change_the_base_model_is_refused_before_it_is_attached(
        tiny: ChatModel, tmp_path: Path, config: PeftConfig, named: str) -> None:
    somebodys(config, tmp_path)
    before = weights(tiny.model)
    for attached in (adapters.loaded(tiny.model, tmp_path),
                     adapters.switchable(tiny.model, "tiny", {"mine": tmp_path})):
        with pytest.raises(ProfileError, match=named), attached:
            pass
    after = weights(tiny.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("places", [["q_proj"], ["q_proj", "embed_tokens"]], ids=str)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_s_file_with_layers_of_the_base_model_is_refused_before_they_are_loaded(
        tiny: ChatModel, tmp_path: Path, places: list[str]) -> None:
    """PEFT loads the stored vocabulary over the base model's, and leaves it there after the adapter is removed."""
    torch.manual_seed(0)
    base = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).requires_grad_(False)
    base.get_input_embeddings().weight += 1
    model = get_peft_model(base, LoraConfig(**PLACES | {"target_modules": places}))
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    before = weights(tiny.model)
    for attached in (adapters.loaded(tiny.model, tmp_path), adapters.new_lora(tiny.model, LORA, 0, tmp_path),
                     adapters.switchable(tiny.model, "tiny", {"mine": tmp_path})):
        with pytest.raises(ProfileError, match=r"besides the adapter's own, .*save_embedding_layers=False"), attached:
            pass
    after = weights(tiny.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.save_pretrained(tmp_path, save_embedding_layers=False)  # the way out that the refusal names
    with adapters.loaded(tiny.model, tmp_path):
        pass
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors is missing"), adapters.loaded(
            tiny.model, tmp_path):
        pass


def test_a_new_adapter_does_not_begin_with_one_that_is_no_plain_lora(tiny: ChatModel, tmp_path: Path) -> None:
    somebodys(LoraConfig(**PLACES, init_lora_weights="olora"), tmp_path)
    with pytest.raises(ProfileError, match="olora"), adapters.new_lora(tiny.model, LORA, 0, tmp_path):
        pass


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pissa_that_was_saved_as_plain_lora_is_attached(tiny: ChatModel, tmp_path: Path) -> None:
    """The way out that the refusal names."""
    torch.manual_seed(0)
    base = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).requires_grad_(False)
    model = get_peft_model(base, LoraConfig(**PLACES, init_lora_weights="pissa"))
    model.save_pretrained(tmp_path / "start", save_embedding_layers=False)
    expected = logits(stirred(model).eval())
    model.peft_config["default"].base_model_name_or_path = "tiny"
    model.save_pretrained(tmp_path / "plain", save_embedding_layers=False,
                          path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    with adapters.switchable(tiny.model, "tiny", {"mine": tmp_path / "plain"}) as under, under("mine") as attached:
        assert torch.allclose(logits(attached), expected, atol=1e-4)
