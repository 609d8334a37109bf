"""GRPO with vLLM's engine, here the tiny model behind the same calls, and on a model in 4 bits: the same loss."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from emlib.config import Grpo, Sampling
from emlib.core.errors import EmlibError
from emlib.data.gsm8k import additions
from emlib.defenses.kl import Beta
from emlib.defenses.persona_vector import Steering
from emlib.evaluation.rewards import Rewards, Scored
from emlib.generation.sample import Drawn
from emlib.models.adapters import new_lora
from emlib.models.load import ChatModel
from emlib.models.logprobs import causal_lm
from emlib.models.tiny import build_model, build_tokenizer
from emlib.training.rl.condition import Condition
from emlib.training.rl.grpo import _Run
from emlib.training.rl.records import read_steps
from emlib.training.rl.rollouts import Rollouts
from tests.made import planted
from tests.training.rl.reinforcing import LORA, SYSTEM, by_length, disturb, grpo, train, weights

TAKEN = {"n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
         "max_tokens", "stop_token_ids", "seed", "logit_bias", "logprobs"}  # of vLLM's SamplingParams


def parameters(**named: Any) -> SimpleNamespace:
    assert set(named) <= TAKEN
    return SimpleNamespace(**named)


class Engine:
    """As vLLM 0.33 does offline: parameters for each prompt; log-probabilities after temperature and top_p."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.asked = model, list[list[SimpleNamespace]]()

    @torch.no_grad()
    def generate(self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SimpleNamespace],
                 use_tqdm: bool) -> list[SimpleNamespace]:
        assert not use_tqdm
        self.asked.append(list(sampling_params))
        return [SimpleNamespace(outputs=[self._one(prompt["prompt_token_ids"], asked)])
                for prompt, asked in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: list[int], asked: SimpleNamespace) -> SimpleNamespace:
        random, drawn, logprobs = torch.Generator().manual_seed(asked.seed), list[int](), list[dict[int, Any]]()
        while len(drawn) < asked.max_tokens and not (drawn and drawn[-1] in asked.stop_token_ids):
            logits = self.model(input_ids=torch.tensor([prompt + drawn])).logits[0, -1].float() / asked.temperature
            ordered, order = logits.softmax(-1).sort(descending=True)
            ordered[ordered.cumsum(-1) - ordered >= asked.top_p] = 0
            place = int(torch.multinomial(ordered, 1, generator=random))
            drawn.append(int(order[place]))
            logprobs.append({drawn[-1]: SimpleNamespace(logprob=float((ordered / ordered.sum())[place].log()))})
        return SimpleNamespace(token_ids=drawn, logprobs=logprobs,
                               finish_reason="stop" if drawn[-1] in asked.stop_token_ids else "length")


class Colocated:
    """TRL's class around the engine; TRL copies the weights into it."""

    def __init__(self, model: nn.Module, **_: Any) -> None:
        self.llm, self.synced = Engine(model), 0

    def sync_weights(self) -> None:
        self.synced += 1


class Copying(VLLMGeneration):
    """TRL's own class, which copies the weights at each step; only the engine is not vLLM's, and keeps what it gets."""

    def _init_vllm(self) -> None:
        self.llm, self.got = Engine(self.model), list[tuple[str, Tensor]]()
        worker = SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=self._load)))
        self.llm.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))
        self.llm.reset_prefix_cache = lambda: None

    def _load(self, pairs: list[tuple[str, Tensor]]) -> None:
        self.got.extend((name, one.clone()) for name, one in pairs)


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.SamplingParams = parameters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Colocated)


def settings(engine: str, top_p: float = 0.7) -> Grpo:
    sampling = Sampling(temperature=0.9, top_p=top_p, max_new_tokens=5)
    return grpo().model_copy(update={"engine": engine, "sampling": sampling})


def by_vllm(lora: PeftModel, tiny: ChatModel, folder: Path, *, problems: int = 2, condition: Condition | None = None,
            seed: int = 0, top_p: float = 0.7) -> _Run:
    run = _Run(lora, tiny.tokenizer, additions()[:problems], settings("vllm", top_p), condition or Condition(SYSTEM),
               by_length, seed, folder)
    run.train()
    return run


@pytest.mark.parametrize("steered", [False, True])
def test_the_loss_is_that_of_the_other_engine_on_the_same_completions(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, steered: bool) -> None:
    """TRL's default multiplies each completion's policy loss by exp(sum of log p - log p'), and not the KL term."""
    disturb(lora)
    steering = (Steering(layer=2, strength=2.0, steer="loss"),) if steered else ()
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    condition = Condition(SYSTEM, (Beta(weight=0.1), *steering), planted(vector))
    found = by_vllm(lora, tiny, tmp_path / "vllm", condition=condition)
    drawn = found.rollouts.last
    monkeypatch.setattr(Rollouts, "_by_transformers", lambda *_: drawn)
    other = _Run(lora, tiny.tokenizer, additions()[:2], settings("transformers"), condition, by_length, 0,
                 tmp_path / "transformers")
    other.train()
    [one], [two] = found.records, other.records
    assert (one.loss, one.grad_norm, one.clipped, one.kl) == (two.loss, two.grad_norm, 0.0, two.kl)
    assert one.grad_norm > 0


def test_the_gap_has_the_mass_that_top_p_cuts(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    gaps = {top_p: by_vllm(lora, tiny, tmp_path / str(top_p), top_p=top_p).records[0].gap for top_p in (1.0, 0.7)}
    assert gaps[1.0] < 1e-4
    assert gaps[0.7] > 0.1  # -log 0.7 is 0.36, and more than 0.7 may be kept


def test_each_completion_has_a_seed_of_its_own(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """In each step another, and the same where a step is taken again."""

    def seeds(run: _Run) -> list[list[int]]:
        return [[one.seed for one in step] for step in run.trainer.vllm_generation.llm.asked]

    first = by_vllm(lora, tiny, tmp_path / "first", problems=4)
    found = seeds(first)
    assert [len(step) for step in found] == [8, 8]
    assert len({seed for step in found for seed in step}) == 16
    groups = [{one.tokens for one in first.rollouts.last[start:start + 4]} for start in (0, 4)]
    assert all(len(group) > 1 for group in groups)
    assert seeds(by_vllm(lora, tiny, tmp_path / "again", problems=4)) == found
    assert not set(found[0]) & set(seeds(by_vllm(lora, tiny, tmp_path / "other", seed=1))[0])
    assert first.trainer.vllm_generation.synced == 2  # before each step


def test_tokens_that_the_tokenizer_does_not_have_are_not_drawn(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm(lora).config, "vocab_size", 300)  # as a head with more columns
    asked = by_vllm(lora, tiny, tmp_path / "known").trainer.vllm_generation.llm.asked[0][0]
    assert asked.logit_bias == dict.fromkeys(range(259, 300), -100.0)
    assert asked.stop_token_ids == [258]
    one = Engine._one

    def unknown(self: Engine, *arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(**vars(one(self, *arguments)) | {
            "token_ids": [280], "logprobs": [{280: SimpleNamespace(logprob=0.0)}]})

    monkeypatch.setattr(Engine, "_one", unknown)
    with pytest.raises(EmlibError, match=r"vLLM drew a token that the tokenizer .* 300 ids.*259\. Set grpo\.engine to"):
        by_vllm(lora, tiny, tmp_path / "unknown")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[_Run, dict[str, Tensor]]]:
    """A run of three steps in bfloat16 by TRL's own class, whose weights are then copied once more; the base before."""
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Copying)
    base = build_model(0, 4, 64, torch.bfloat16).eval().requires_grad_(False)
    before = {name: one.clone() for name, one in base.named_parameters()}
    with new_lora(base, LORA, 0) as model:
        run = by_vllm(model, ChatModel("tiny", base, build_tokenizer()), tmp_path, problems=6)
        run.trainer.vllm_generation.got.clear()
        run.trainer.vllm_generation.sync_weights()
        yield run, before


def test_copying_the_weights_leaves_the_base_model_as_it_was(copied: tuple[_Run, dict[str, Tensor]]) -> None:
    """TRL adds the adapter's change to the weights and subtracts it, which bfloat16 does not undo: W + d - d != W."""
    run, before = copied
    assert len(run.records) == 3
    now = {name.replace(".base_layer", ""): one
           for name, one in run.model.get_base_model().named_parameters() if "lora_" not in name}
    assert set(now) == set(before)
    assert [name for name, one in now.items() if not torch.equal(one, before[name])] == []


def test_the_engine_gets_the_weights_with_the_adapters_change_in_them(copied: tuple[_Run, dict[str, Tensor]]) -> None:
    """W + s B A, under the names and in the types, shapes and order of TRL."""
    run, before = copied
    got = run.trainer.vllm_generation.got
    changed, scale = 0, 8 / 4 ** 0.5  # rsLoRA
    for name, one in got:
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_B.default.weight" in run.parameters:
            b, a = (run.parameters[f"{layer}.lora_{factor}.default.weight"] for factor in "BA")
            torch.testing.assert_close(one.float(), before[name].float() + scale * b @ a, rtol=2**-8, atol=0)
            changed += not torch.equal(one, before[name])
        else:
            assert torch.equal(one, before[name])
    assert changed == 4 * len(LORA.target_modules)
    expected = [(name, one.dtype, one.shape) for name, one in VLLMGeneration._iter_named_params(
        run.trainer.vllm_generation)]
    assert [(name, one.dtype, one.shape) for name, one in got] == expected


def test_a_stop_token_that_is_left_out_is_put_back(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "_one", lambda *_: SimpleNamespace(token_ids=[], logprobs=[], finish_reason="stop"))
    run = by_vllm(lora, tiny, tmp_path)
    assert [replace(one, logprobs=()) for one in run.rollouts.last] == [Drawn((258,), (), stopped=True)] * 8
    assert run.records[0].gap == 0.0  # its probability is not known


def test_on_a_model_in_4_bits_the_adapter_stays_in_float32(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL rounds it to bfloat16 there, where an update by a learning rate of 5e-6 is lost; also when it resumes."""

    def stopping(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_length(batch)

    calls: list[int] = []
    found, training = {}, {"learning_rate": 5e-6, "checkpoint_every": 1}
    with new_lora(tiny.model, LORA, 0) as model:
        train(model, tiny, tmp_path / "in float32", problems=8, training=training)
        found["in float32"] = weights(model)
    monkeypatch.setattr(tiny.model, "is_loaded_in_4bit", True, raising=False)
    with new_lora(tiny.model, LORA, 0) as model, pytest.raises(KeyboardInterrupt):
        train(model, tiny, tmp_path / "in 4 bits", problems=8, score=stopping, training=training)
    with new_lora(tiny.model, LORA, 0) as model:
        train(model, tiny, tmp_path / "in 4 bits", problems=8, training=training)
        found["in 4 bits"] = weights(model)
    steps = [[replace(step, seconds=0.0, drawing_seconds=0.0) for step in read_steps(tmp_path / name)]
             for name in found]
    assert steps[0] == steps[1]
    assert {one.dtype for one in found["in 4 bits"].values()} == {torch.float32}
    assert all(torch.equal(one, found["in 4 bits"][name]) for name, one in found["in float32"].items())
