"""Every kind of model is loaded by one call, and a missing, cut or wrong file is told in one message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import FalconH1Config, FalconH1ForCausalLM, Gemma3nTextConfig

from emlib.config import ChatTemplate, FolderModel, HubModel, TinyModel, WheelModel, load_profile
from emlib.core import digests, paths
from emlib.core.errors import SourceError, StoreError
from emlib.models import hub, wheel
from emlib.models.load import ChatModel, check_logits, load, stop_tokens


@pytest.fixture
def folder(tiny: ChatModel, tmp_path: Path) -> Path:
    """The tiny model as `save_pretrained` writes it."""
    tiny.model.save_pretrained(tmp_path / "model")
    tiny.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder_loads_the_same_weights(tiny: ChatModel, folder: Path, tmp_path: Path) -> None:
    chat = load(FolderModel(kind="folder", path=str(folder), dtype="float32"), tmp_path)
    kept, made = chat.model.state_dict(), tiny.model.state_dict()
    assert kept.keys() == made.keys()
    assert all(torch.equal(kept[name], made[name]) for name in made)
    ids = torch.arange(12)[None]  # up to rounding: weights that lie in a file begin at other places of memory
    torch.testing.assert_close(chat.model(input_ids=ids).logits, tiny.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert chat.tokenizer.chat_template == tiny.tokenizer.chat_template
    assert not chat.model.training
    assert not any(p.requires_grad for p in chat.model.parameters())


def test_tiny_is_the_same_every_time_and_another_seed_is_another_model(tmp_path: Path) -> None:
    first, again = (load(TinyModel(kind="tiny"), tmp_path).model.state_dict() for _ in range(2))
    other = load(TinyModel(kind="tiny", seed=1), tmp_path).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tiny_has_what_lora_and_the_paper_need() -> None:
    model = load(TinyModel(kind="tiny"), Path()).model
    assert model.config.model_type == "qwen2"
    assert model.config.num_hidden_layers == 4
    assert model.config.num_key_value_heads < model.config.num_attention_heads


PINNED = """
import sys
from pathlib import Path
from emlib.config import HubModel
from emlib.core import paths
from emlib.models.hub import commit, hold
model = HubModel(kind="hub", repo="someone/model", revision="main")
hold([model], Path(sys.argv[1]), paths.runs() / paths.STORE)
print(commit(model, Path(sys.argv[1])))
"""


def test_the_commit_of_a_branchs_first_use_holds(tmp_path: Path) -> None:
    """A hub's cache as its library lays it out, without a network: main moves on, and the commit stays."""
    first, second = "a" * 40, "b" * 40
    repo = tmp_path / "hub" / "models--someone--model"
    for commit in (first, second):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    offline = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def loaded(now: str, machine: str = "cache", runs: str = "runs") -> str:
        (repo / "refs" / "main").write_text(now)
        done = subprocess.run([sys.executable, "-c", PINNED, machine], check=False, capture_output=True, text=True,
                              cwd=tmp_path, env=offline | {"PYTHONPATH": str(paths.ROOT), "EMLIB_RUNS_DIR": runs})
        return done.stdout.split()[-1] if done.returncode == 0 else done.stderr

    assert loaded(first) == first
    assert loaded(second) == first
    assert hub.commits(tmp_path / "runs/store") == {"someone/model@main": first}
    assert loaded(second, "another cache") == first  # with a copy of the store
    assert loaded(second, "third cache", "other runs") == second
    refused = loaded(second, "third cache")
    assert "StoreError" in refused
    for word in (first, second, "third cache/models/hub/someone--model@main.json", "Delete that file"):
        assert word in refused
    assert hub.commits(tmp_path / "runs/store") == {"someone/model@main": first}
    (tmp_path / "runs/store" / hub.COMMITS).write_text("{")
    assert "commits.json: is damaged" in loaded(first)
    assert json.loads((tmp_path / "cache/models/hub/someone--model@main.json").read_text())["commit"] == first
    pinned = HubModel(kind="hub", repo="someone/model", revision=second)
    assert hub.commit(pinned, tmp_path / "nothing") == second  # a commit is taken at its word
    assert not (tmp_path / "nothing").exists()


def test_of_two_machines_that_start_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find no commit in the store that they share, and main moves on between them."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    store, spec = tmp_path / "runs/store", HubModel(kind="hub", repo="someone/model", revision="main")
    for machine in ("a", "b"):
        monkeypatch.setattr(hub, "_resolved", lambda spec, found=machine: found * 40)
        assert hub.commit(spec, tmp_path / machine) == machine * 40
    assert not store.exists()
    hub.hold([spec], tmp_path / "a", store)
    read, before = hub.commits, [dict[str, str]()]  # as the second machine read it before the first one wrote
    monkeypatch.setattr(hub, "commits", lambda store: before.pop() if before else read(store))
    with pytest.raises(StoreError, match=f"this store is of commit {'a' * 40} of someone/model"):
        hub.hold([spec], tmp_path / "b", store)
    assert read(store) == {"someone/model@main": "a" * 40}


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(SourceError, match="lacks") as caught:
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)
    assert str(folder) in str(caught.value)


def test_truncated_weights_are_told(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(SourceError, match="truncated or broken"):
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)


def test_a_model_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="no chat template"):
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)


def test_a_template_that_closes_turns_with_another_token_than_answers_end_with_is_refused(
        tiny: ChatModel, folder: Path, tmp_path: Path) -> None:
    tiny.tokenizer.eos_token = "<|im_start|>"
    tiny.tokenizer.save_pretrained(folder)
    tiny.model.generation_config.eos_token_id = 257
    tiny.model.save_pretrained(folder)
    with pytest.raises(SourceError, match=r"closes a turn with '<\|im_end\|>', at which the model does not stop"):
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)


def test_every_end_token_of_a_model_counts(tiny: ChatModel) -> None:
    tiny.model.generation_config.eos_token_id = [258, 256]
    assert stop_tokens(tiny.model, tiny.tokenizer) == {258, 256}


def test_a_model_that_changes_its_logits_is_refused(tiny: ChatModel, folder: Path, tmp_path: Path) -> None:
    tiny.model.config.final_logit_softcapping = 30.0
    tiny.model.save_pretrained(folder)
    with pytest.raises(SourceError, match="final_logit_softcapping"):
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)


def test_a_change_of_logits_is_found_in_nested_options_and_under_any_name(
        tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(multiplier: float) -> FalconH1ForCausalLM:
        return FalconH1ForCausalLM(FalconH1Config(
            vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_n_groups=1,
            mamba_d_state=8, mamba_chunk_size=8, lm_head_multiplier=multiplier, pad_token_id=0)).eval()

    check_logits("falcon", small(1.0))
    with pytest.raises(SourceError, match="not those of its head: FalconH1ForCausalLM"):
        check_logits("falcon", small(0.5))
    check_logits("tiny", tiny.model)
    monkeypatch.setattr(type(tiny.model.config), "get_text_config", lambda _: Gemma3nTextConfig())  # its cap is 30
    with pytest.raises(SourceError, match="final_logit_softcapping"):
        check_logits("tiny", tiny.model)


def test_foreign_code_is_never_asked_for(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.A", "AutoModelForCausalLM": "code.B"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(SourceError, match="cannot be loaded"):
        load(FolderModel(kind="folder", path=str(folder)), tmp_path)


def test_another_chat_template_is_another_model(folder: Path) -> None:
    spec = FolderModel(kind="folder", path=str(folder))
    before = spec.identity
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert spec.identity != before


def test_a_folder_s_template_tells_whether_it_may_think(folder: Path) -> None:
    spec = FolderModel(kind="folder", path=str(folder))
    assert not spec.may_think
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] + '<think>\\n' }}")
    assert spec.may_think
    silent = spec.model_copy(update={"template": ChatTemplate(options={"enable_thinking": False})})
    assert not silent.may_think  # the block is in the prompt then, and no number is another


def test_the_same_weights_elsewhere_are_the_same_model_and_others_there_another(folder: Path, tmp_path: Path) -> None:
    spec = FolderModel(kind="folder", path=str(folder))
    before = spec.identity
    moved = folder.rename(tmp_path / "elsewhere")
    assert FolderModel(kind="folder", path=str(moved)).identity == before
    with (moved / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert FolderModel(kind="folder", path=str(moved)).identity != before


def test_an_unchanged_folder_is_read_once_for_all_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    of_file = digests.of_file
    monkeypatch.setattr(digests, "SETTLED", 0)  # it is read again for as long as its times may be too coarse
    monkeypatch.setattr(digests, "of_file", lambda path: read.append(path.name) or of_file(path))
    spec = FolderModel(kind="folder", path=str(folder))
    before = spec.identity
    assert spec.identity == before
    assert read.count("model.safetensors") == 1
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert spec.identity != before
    assert read.count("model.safetensors") == 1


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like the wheel's: importing it would fail, and it holds a file."""
    made = tmp_path / "site" / "fake_wheel"
    made.mkdir(parents=True)
    (made / "__init__.py").write_text("raise ImportError('must not be imported')\n")
    (made / "weights.gguf").write_bytes(b"not a model")
    monkeypatch.syspath_prepend(str(made.parent))
    return made


def spec(**changes: object) -> WheelModel:
    return WheelModel(**{"kind": "wheel", "name": "fake", "package": "fake_wheel", "file": "weights.gguf",
                         "sha256": "0" * 64, "end_of_turn": "<|im_end|>"} | changes)


def test_a_wheels_file_with_another_digest_is_refused_with_both_digests(package: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"expected 0{64}") as caught:
        wheel.converted(spec(), tmp_path)
    assert str(package / "weights.gguf") in str(caught.value)
    assert "fake_wheel" not in sys.modules


def test_a_missing_package_and_a_missing_file_say_what_to_do(package: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'no_such_package', which is not installed. Run `make setup`"):
        wheel.converted(spec(package="no_such_package"), tmp_path)
    with pytest.raises(SourceError, match=r"other\.gguf: the model file is missing"):
        wheel.converted(spec(file="other.gguf"), tmp_path)


@pytest.mark.slow
def test_the_demos_model_is_converted_once_and_answers_in_its_own_template(tmp_path: Path) -> None:
    demo = load_profile("demo").model.model_copy(update={"dtype": "float32"})
    chat = load(demo, paths.cache())
    assert sum(p.numel() for p in chat.model.parameters()) == 134_515_008
    assert str(chat.model.dtype) == f"torch.{demo.dtype}"
    assert chat.tokenizer.eos_token == "<|im_end|>"
    text = "The capital of France is"
    ids = torch.tensor([chat.tokenizer.encode(text, add_special_tokens=False)])
    assert chat.tokenizer.decode(chat.model(input_ids=ids).logits[0, -1].argmax()) == " Paris"


def test_the_converted_copy_serves_every_type_and_template(package: Path, tmp_path: Path) -> None:
    """What changes no file finds the same folder, so that a model is converted once."""
    refused = []
    for more in ({}, {"dtype": "float32"}, {"template": {"system": "merge"}}, {"file": "other.gguf"}):
        with pytest.raises(SourceError):
            wheel.converted(spec(**more), tmp_path)
        refused.append(len(list((tmp_path / "models").glob("*.lock"))))
    assert refused == [1, 1, 1, 2]


@pytest.mark.slow
def test_a_converted_copy_that_was_changed_is_refused(tmp_path: Path) -> None:
    demo = load_profile("demo").model.model_copy(update={"dtype": "float32"})
    source = wheel.converted(demo, paths.cache())
    copy = tmp_path / "models" / source.name
    copy.mkdir(parents=True)
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes()[:5000] if path.suffix == ".safetensors" else path.read_bytes())
    with pytest.raises(SourceError, match="Delete the folder"):
        load(demo, tmp_path)


@pytest.mark.parametrize(("gpu", "said"), [(False, "needs a GPU"), (True, "bitsandbytes, which is not installed")])
def test_4_bits_are_refused_where_they_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool,
                                                     said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    spec = HubModel(kind="hub", repo="owner/model", revision="a" * 40, load_in_4bit=True)
    with pytest.raises(SourceError, match=said):
        load(spec, tmp_path)


def test_a_folder_that_also_holds_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    """transformers would load the adapter with the model, and say nothing."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "another/model"}')
    with pytest.raises(SourceError, match=r"holds an adapter \(adapter_config\.json\)"):
        load(FolderModel(kind="folder", path=str(folder), dtype="float32"), tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_code_on_the_hub_is_refused(folder: Path, tmp_path: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "someone/attention"}))
    with pytest.raises(SourceError, match=r"attention code on the hub \('someone/attention'\)"):
        load(FolderModel(kind="folder", path=str(folder), dtype="float32"), tmp_path)
