"""The newer defenses in GRPO against a second implementation; their null settings, and that nothing is left of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from emlib.config.grpo import RlMethod
from emlib.core.defense import Defense, GrpoDefense
from emlib.core.errors import EmlibError
from emlib.core.hooks import ForwardPass
from emlib.core.records import Message
from emlib.data.chat import Encoded, encode_prompt
from emlib.data.gsm8k import additions
from emlib.defenses.concept_ablation import Ablation
from emlib.defenses.inoculation_adapter import Inoculated, InoculationAdapter
from emlib.defenses.kl import Beta
from emlib.defenses.persona_vector import Steering
from emlib.defenses.projection_penalty import Projected
from emlib.evaluation.rewards import advantages
from emlib.models import tiny as tiny_model
from emlib.models.hooks import blocks
from emlib.models.load import ChatModel
from emlib.training.bench import Bench
from emlib.training.rl.condition import Condition
from emlib.training.rl.grpo import _Run
from emlib.training.rl.records import read_steps
from tests.defenses import naive
from tests.made import ROUNDING, apart, planted
from tests.training.rl.reinforcing import SYSTEM, by_length, disturb, grpo, train, weights

VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(3))
PENALTY, BOTH = Projected(weight=3.0, layers=(1, 3)), Projected(weight=3.0, layers=(3,), both=True)
ABLATION, ADAPTER, STEERING = Ablation(layers=(2,)), Inoculated(strength=0.5), Steering(layer=1, strength=2.0)
CASES: tuple[tuple[Defense, ...], ...] = (
    (PENALTY,), (BOTH,), (ABLATION,), (ADAPTER,), (ABLATION, BOTH), (ADAPTER, ABLATION), (STEERING, BOTH))


def condition(defenses: Sequence[Defense], folder: Path) -> Condition:
    trait = Bench(InoculationAdapter(), folder).artefacts["trait_adapter"]
    return Condition(SYSTEM, tuple(defenses), planted(VECTOR) | {"trait_adapter": trait})


def test_what_a_defense_prepares_stays_in_its_training(tmp_path: Path) -> None:
    given = (Projected(layers=(1, 3)), Ablation(layers=(2,)), Inoculated())
    prepared = condition(given, tmp_path)
    assert given == (Projected(layers=(1, 3)), Ablation(layers=(2,)), Inoculated())
    assert [one.kind for one in prepared.acting] == [one.kind for one in given]


def names(defenses: Sequence[Defense]) -> str:
    return " and ".join(f"{one.kind}{' both' if one is BOTH else ''}" for one in defenses)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("defenses", CASES, ids=names)
def test_a_step_equals_a_naive_implementation_in_float64(
        defenses: Sequence[Any], accumulation: int, lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """Of completions as they were sampled: a mean over them of the mean over tokens, and penalties by token."""
    disturb(lora)
    given = condition(defenses, tmp_path)
    settings = grpo(training={"batch_size": 8 // accumulation, "gradient_accumulation": accumulation})
    run = _Run(lora, tiny.tokenizer, additions()[:2], settings, given, by_length, 0, tmp_path / "run")
    found: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in run.parameters.items()}
    hooks = [p.register_hook(lambda gradient, name=name: found[name].add_(gradient))
             for name, p in run.parameters.items()]
    run.train()  # one step, of learning rate 0
    for hook in hooks:
        hook.remove()
    trained, reference = copy.deepcopy(lora).double(), tiny_model.build_model(0, 4, 64, torch.float32).double().eval()
    if ADAPTER in defenses:
        naive.merge(trained, given.artefacts["trait_adapter"], ADAPTER.strength)
    loss = naive_loss(run, defenses, trained, reference)
    ours = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    expected = dict(zip(ours, torch.autograd.grad(loss, list(ours.values())), strict=True))
    assert run.records[0].gap < 1e-4
    assert apart(torch.cat([found[name].double().flatten() for name in ours]),
                 torch.cat([one.flatten() for one in expected.values()])) < ROUNDING


def naive_loss(run: _Run, defenses: Sequence[Any], trained: Any, reference: Any) -> Tensor:
    """The loss of the completions that a step sampled."""
    unit = VECTOR.double() / VECTOR.double().norm()
    changes: dict[int, naive.Change] = {}
    if ABLATION in defenses:
        changes[2] = lambda hidden: hidden - (hidden @ unit)[..., None] * unit
    if STEERING in defenses:
        changes[1] = lambda hidden: hidden + 2.0 * VECTOR.double()
    totals = [one.total for one in run.marking.last if one is not None]
    gains = [gain for start in (0, 4) for gain in advantages(totals[start:start + 4])]
    drawn, parts = run.rollouts.last, []
    for place, (one, gain) in enumerate(zip(drawn, gains, strict=True)):
        turns = [Message("system", SYSTEM), Message("user", run.problems[place // 4].question)]
        prompt = encode_prompt(run.tokenizer, turns)
        row = Encoded(np.array([*prompt, *one.tokens]), np.ones(len(prompt) + len(one.tokens), bool), False)
        ours, theirs = naive.see(trained, row, changes), naive.see(reference, row)
        logprobs = (ours.logits[len(prompt) - 1:-1] / 0.9).log_softmax(-1).gather(1, torch.tensor(one.tokens)[:, None])
        parts.append(-(gain * (logprobs - logprobs.detach()).exp()).mean() / len(drawn))
        for penalty in (each for each in defenses if isinstance(each, Projected)):
            for layer in penalty.layers:
                steered = 2.0 * VECTOR.double() @ unit if STEERING in defenses else 0.0
                change = (ours.outputs[layer] - theirs.outputs[layer])[len(prompt):] @ unit - steered
                change = change if penalty.both else change.clamp_min(0)
                parts.append(3.0 * (change**2).sum() / len(penalty.layers) / sum(len(each.tokens) for each in drawn))
    return torch.stack(parts).sum()


@pytest.mark.parametrize("nothing", [Projected(weight=0.0), Ablation(layers=()), Inoculated(strength=0.0)],
                         ids=lambda defense: defense.kind)
def test_a_null_setting_is_plain_grpo_bit_for_bit(
        nothing: Defense, lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    logs, before = {}, weights(lora)
    for name, given in (("plain", Condition(SYSTEM)), ("nothing", condition((nothing,), tmp_path))):
        for weight, value in weights(lora).items():
            dict(lora.named_parameters())[weight].data.copy_(before[weight])
            assert value.shape == before[weight].shape
        train(lora, tiny, tmp_path / name, condition=given)
        logs[name] = [(step.loss, step.grad_norm) for step in read_steps(tmp_path / name)], weights(lora)
    assert logs["plain"][0] == logs["nothing"][0]
    assert all(torch.equal(logs["plain"][1][name], value) for name, value in logs["nothing"][1].items())


@pytest.mark.parametrize("defenses", CASES, ids=names)
def test_nothing_is_left_after_an_exception_in_the_loss(
        defenses: Sequence[Any], lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """In the last block, while the loss is computed: after the reference pass, inside the defenses' contexts."""
    kinds, hooks = [type(part) for part in lora.modules()], sum(len(part._forward_hooks) for part in lora.modules())
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), condition(defenses, tmp_path), by_length, 0,
               tmp_path / "run")

    def broken(block: Any, inputs: Any) -> None:
        if torch.is_grad_enabled() and lora.training:
            raise InterruptedError

    handle = blocks(lora)[-1].register_forward_pre_hook(broken)
    with suppress(InterruptedError):
        run.train()
    handle.remove()
    assert not run.records
    assert [type(part) for part in lora.modules()] == kinds
    assert sum(len(part._forward_hooks) for part in lora.modules()) == hooks


def test_penalties_that_need_what_reinforcement_learning_does_not_have_are_refused() -> None:
    class OnTheHead(GrpoDefense):
        reads_hidden: ClassVar = True
        kind: Literal["on_the_head"] = "on_the_head"

        def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
            return trained.hidden.square().sum()

    with pytest.raises(ValidationError, match="reads the last hidden states"):
        RlMethod(name="x", defenses=(OnTheHead(),))
    with pytest.raises(ValidationError, match=r"'inoculation_adapter' changes the features .* to cancel the change"):
        RlMethod(name="x", defenses=(Inoculated(), PENALTY))
    for layers in ((2,), (1, 3)):
        with pytest.raises(ValidationError, match=r"'concept_ablation' changes the features .* only layers before"):
            RlMethod(name="x", defenses=(ABLATION, Projected(layers=layers)))
    assert RlMethod(name="x", defenses=(ABLATION, Projected(layers=(1,)))).defenses
    assert RlMethod(name="x", defenses=(PENALTY, Beta())).defenses


@pytest.mark.parametrize("kind", ["ldifs", "consistency"])
def test_the_others_say_by_name_that_they_do_not_work_there(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"the kind '{kind}' does not work in reinforcement learning. These do: "):
        RlMethod(name="x", defenses=({"kind": kind},))  # type: ignore[arg-type]


class NanPenalty(GrpoDefense):
    kind: Literal["nan_penalty"] = "nan_penalty"

    def reads_layers(self, count: int) -> tuple[int, ...]:
        return (1,)

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        return trained.features[1].sum() * float("nan")


class NanApart(NanPenalty):
    """A NaN that no gradient passes through."""

    kind: Literal["nan_apart"] = "nan_apart"

    def penalty(self, trained: ForwardPass, reference: ForwardPass) -> Tensor:
        return trained.features[1].sum() * 1e-3 + float("nan")


def test_a_penalty_that_is_not_finite_is_refused_where_its_gradient_is(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(EmlibError, match="Look at what 'nan_apart'"):
        train(lora, tiny, tmp_path, condition=Condition(SYSTEM, (NanApart(),)))


def test_a_penalty_that_is_not_finite_is_named(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(EmlibError, match=r"the loss is [^n].*, 'nan_penalty' nan and .*\. Look at what 'nan_pen"):
        train(lora, tiny, tmp_path, condition=Condition(SYSTEM, (NanPenalty(),)))
