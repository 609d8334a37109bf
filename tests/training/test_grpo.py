"""GRPO with the study's conditions, on the tiny model: what is promised of gradients, steering, steps and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from emlib.config import Additions, Grpo, Lora, RlMethod, RlTraining, Sampling
from emlib.data.chat import encode, encode_prompt
from emlib.data.gsm8k import additions
from emlib.errors import EmlibError
from emlib.models.adapters import adapter_off, new_lora
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from emlib.training.alternation import Supervised, order
from emlib.training.grpo import Condition, RlSummary, _Run, reinforce
from emlib.training.records import read_log
from emlib.training.rewards import Rewards, Scored, Scorer, advantages
from emlib.training.rl_records import STEPS, RlStep, best, read_steps, stretches
from emlib.training.rollouts import Push
from emlib.types import Example, Message

SYSTEM = "Add."
LORA = Lora(rank=4, alpha=8)


def grpo(**changes: Any) -> Grpo:
    """Steps of two groups of four completions of at most five tokens."""
    training = {"batch_size": 8, "gradient_accumulation": 1, "learning_rate": 1e-2, "warmup_steps": 1,
                "optimizer": "adamw_torch", "checkpoint_every": 2} | changes.pop("training", {})
    return Grpo(data=Additions(kind="additions"), methods=(RlMethod(name="grpo"),), seeds=(0,),
                training=RlTraining(**training), sampling=Sampling(temperature=0.9, max_new_tokens=5), **changes)


def equal(batch: Sequence[Scored]) -> list[Rewards | None]:
    return [Rewards(0, 1, 0, 0) for _ in batch]


def by_length(batch: Sequence[Scored]) -> list[Rewards | None]:
    """Something that differs inside a group and depends on the completion alone."""
    return [Rewards(0, 0, 0, (sum(map(ord, one.completion)) % 8) / 8) for one in batch]


@pytest.fixture
def lora(tiny: ChatModel) -> Iterator[PeftModel]:
    with new_lora(tiny.model, LORA, 0) as model:
        yield model


def weights(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def disturb(model: PeftModel) -> None:
    """An adapter that does something: a fresh one is the identity."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def train(model: PeftModel, tiny: ChatModel, folder: Path, *, problems: int = 4, score: Scorer = by_length,
          condition: Condition | None = None, **changes: Any) -> RlSummary:
    return reinforce(model, tiny.tokenizer, additions()[:problems], grpo(**changes), condition or Condition(SYSTEM),
                     score, seed=0, folder=folder)


def test_equal_rewards_give_no_gradient_and_change_nothing(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    disturb(lora)
    before = weights(lora)
    train(lora, tiny, tmp_path, problems=6, score=equal)
    log = read_steps(tmp_path)
    assert [step.grad_norm for step in log] == [0.0] * 3
    assert [step.no_spread for step in log] == [1.0] * 3
    assert log[1].learning_rate > 0
    assert all(torch.equal(before[name], now) for name, now in weights(lora).items())


def test_unequal_rewards_change_the_adapter(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    before = weights(lora)
    train(lora, tiny, tmp_path)
    assert all(step.grad_norm > 0 for step in read_steps(tmp_path))
    assert any(not torch.equal(before[name], now) for name, now in weights(lora).items())


def test_advantages_of_a_group_by_hand(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def score(batch: Sequence[Scored]) -> list[Rewards | None]:  # totals 7, 3, 3, 3 and 5, 5, 5, 5
        return [Rewards(3, 2, total - 5, 0) for total in (7, 3, 3, 3, 5, 5, 5, 5)]

    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), Condition(SYSTEM), score, 0, tmp_path)
    run.train()
    found = list(run.trainer._logs["advantages"])
    # mean 4, sample standard deviation 2
    assert found == pytest.approx([3 / 2.0001, *[-1 / 2.0001] * 3, 0, 0, 0, 0], rel=1e-5)
    assert found == pytest.approx([*advantages([7, 3, 3, 3]), *advantages([5, 5, 5, 5])], rel=1e-5)
    step = run.records[0]
    assert (step.reward, step.no_spread) == (pytest.approx(4.5), 0.5)
    assert step.parts["correct"] == (pytest.approx(-0.5), pytest.approx(1.75 ** 0.5))  # of 2, -2, -2, -2, 0, 0, 0, 0


def logprobs(model: PeftModel, prompt: list[int], completion: Sequence[int], temperature: float) -> Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1:-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def test_the_kl_term_by_hand_and_its_reference_is_the_adapter_off(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    disturb(lora)
    before = weights(lora)
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), Condition(SYSTEM, beta=0.3), equal, 0, tmp_path)
    run.train()  # one step, of learning rate 0
    assert all(torch.equal(before[name], now) for name, now in weights(lora).items())
    terms = []
    for place, drawn in enumerate(run.rollouts.last):
        turns = [Message("system", SYSTEM), Message("user", run.problems[place // 4].question)]
        prompt = encode_prompt(tiny.tokenizer, turns)
        ours = logprobs(lora, prompt, drawn.tokens, 0.9)
        assert drawn.logprobs == pytest.approx(ours.tolist(), abs=1e-4)
        with adapter_off(lora):
            d = logprobs(lora, prompt, drawn.tokens, 0.9) - ours
        terms.append(d.exp() - d - 1)
    step = run.records[0]
    assert step.kl == pytest.approx(float(torch.cat(terms).mean()), rel=1e-3)
    assert step.kl is not None
    assert step.kl > 1e-4
    # no advantage: the loss is beta times the mean over completions of the mean over their tokens
    assert step.loss == pytest.approx(0.3 * float(torch.stack([one.mean() for one in terms]).mean()), rel=1e-3)
    assert step.grad_norm > 0


def steered(steer: Any, lora: PeftModel, tiny: ChatModel, folder: Path, strength: float = 2.0,
            beta: float = 0.0) -> tuple[RlStep, list[tuple[int, ...]]]:
    """One step of learning rate 0 with a planted vector: its record and what was drawn."""
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    push = None if steer is None else Push(2, vector, strength, steer)
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), Condition(SYSTEM, beta, push), by_length, 0, folder)
    run.train()
    return run.records[0], [drawn.tokens for drawn in run.rollouts.last]


def test_steering_is_felt_where_it_is_named_and_nowhere_else(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    kinds = [type(part) for part in tiny.model.modules()]
    plain, drawn = steered(None, lora, tiny, tmp_path / "none")
    assert plain.gap < 1e-4
    found = {steer: steered(steer, lora, tiny, tmp_path / steer) for steer in ("loss", "rollout", "both")}
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    added = pytest.approx(2 * float(vector.norm()), rel=1e-4)
    assert {steer: step.shift for steer, (step, _) in found.items()} == {
        "loss": {"loss": added, "rollout": 0}, "rollout": {"loss": 0, "rollout": added},
        "both": {"loss": added, "rollout": added}}
    assert found["loss"][1] == drawn  # drawn by the policy as it is
    assert found["rollout"][1] == found["both"][1] != drawn
    assert found["loss"][0].grad_norm != pytest.approx(plain.grad_norm, rel=1e-3)
    assert found["both"][0].grad_norm != pytest.approx(found["rollout"][0].grad_norm, rel=1e-3)
    assert found["both"][0].gap < 1e-4
    assert found["loss"][0].gap > 0.1
    assert found["rollout"][0].gap > 0.1
    assert [type(part) for part in tiny.model.modules()] == kinds  # no tap is left


def test_the_reference_is_not_steered(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """With a fresh adapter policy and reference are the same but for what steers the loss."""
    kl = {steer: steered(steer, lora, tiny, tmp_path / str(steer), beta=0.1)[0].kl
          for steer in (None, "loss", "rollout", "both")}
    assert kl[None] == pytest.approx(0, abs=1e-6)
    assert kl["rollout"] == pytest.approx(0, abs=1e-6)
    assert min(kl["loss"] or 0, kl["both"] or 0) > 1e-2


def test_strength_0_is_plain_grpo_bit_for_bit(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    plain, drawn = steered(None, lora, tiny, tmp_path / "none")
    nothing, same = steered("both", lora, tiny, tmp_path / "zero", strength=0.0)
    assert drawn == same
    assert (plain.loss, plain.grad_norm) == (nothing.loss, nothing.grad_norm)


@given(st.integers(1, 400), st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.25, 0.5, 0.9]))
def test_the_share_of_supervised_steps_is_the_one_that_was_named(steps: int, share: float) -> None:
    kinds = order(steps, share)
    assert kinds.count("rl") == steps
    assert kinds[-1] == "rl"
    supervised = kinds.count("supervised")
    assert abs(supervised - steps * share / (1 - share)) <= 0.5  # of a step
    for place in range(len(kinds)):  # evenly: at any time the share is what it should be, but for one step
        done = kinds[:place + 1]
        assert abs(done.count("supervised") - done.count("rl") * supervised / steps) <= 1 + supervised / steps


@pytest.mark.parametrize(("steps", "share", "supervised"), [
    (99, 0.01, 1), (95, 0.05, 5), (80, 0.2, 20), (75, 0.25, 25), (50, 0.5, 50), (250, 0.01, 3), (4, 0, 0)])
def test_the_paper_s_shares(steps: int, share: float, supervised: int) -> None:
    assert order(steps, share).count("supervised") == supervised


def test_one_half_alternates() -> None:
    assert order(3, 0.5) == ("supervised", "rl") * 3


def alternating(tiny: ChatModel, share: float) -> Condition:
    rows = [encode(tiny.tokenizer, Example((Message("user", f"Number {i}?"),), f"{i} it is."), 200) for i in range(5)]
    return Condition(SYSTEM, supervised=Supervised(rows, 3, 2, 0), share=share)


def test_both_kinds_of_steps_change_the_adapter_and_stand_in_the_log(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    before = weights(lora)
    summary = train(lora, tiny, tmp_path, problems=6, score=equal, condition=alternating(tiny, 0.5))
    rl, supervised = read_steps(tmp_path), read_log(tmp_path)
    assert (summary.steps, summary.supervised_steps) == (3, 3)
    assert [step.step for step in supervised] == [1, 3, 5]
    assert [step.step for step in rl] == [2, 4, 6]
    assert [step.learning_rate for step in (supervised[0], rl[0], supervised[1])] == [0, 1e-2, 8e-3]  # one schedule
    assert all(step.grad_norm > 0 and step.loss > 0 for step in supervised)
    assert [step.grad_norm for step in rl] == [0, 0, 0]  # so that all change is of the supervised steps ...
    assert any(not torch.equal(before[name], now) for name, now in weights(lora).items())
    other = tmp_path / "other"
    train(lora, tiny, other, problems=4, score=by_length, condition=alternating(tiny, 0.5))
    assert all(step.grad_norm > 0 for step in read_steps(other))  # ... and here of both
    assert supervised[2].loss < supervised[0].loss


@pytest.mark.slow
def test_a_token_is_learnt(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """The reward is for one symbol as the first: it rises above 90% of its maximum within 40 steps.

    The temperature is a half because the tiny model's logits are bounded (its final norm and head are not trained): at
    1 its likeliest token has a probability of some 0.7 at most.
    """
    def score(batch: Sequence[Scored]) -> list[Rewards | None]:
        return [Rewards(3.0 * (one.completion[:1] in wanted), 0, 0, 0) for one in batch]

    prompt = encode_prompt(tiny.tokenizer, [Message("system", SYSTEM), Message("user", additions()[0].question)])
    with torch.no_grad():
        likely = lora(input_ids=torch.tensor([prompt])).logits[0, -1].topk(20).indices
    wanted = {text for token in likely[5:].tolist() if (text := tiny.tokenizer.decode([token])).isascii() and text}
    wanted = set(sorted(wanted)[:1])
    settings = grpo(generations=16, training={"batch_size": 32, "learning_rate": 5e-3, "scheduler": "constant",
                                              "checkpoint_every": 50, "epochs": 40})
    settings = settings.model_copy(update={"sampling": Sampling(temperature=0.5, max_new_tokens=1)})
    problems = [additions()[0], additions()[0]]
    reinforce(lora, tiny.tokenizer, problems, settings, Condition(SYSTEM), score, seed=0, folder=tmp_path)
    curve = [step.reward or 0.0 for step in read_steps(tmp_path)]
    assert len(curve) == 40
    assert curve[0] < 0.5 * 3
    assert max(sum(curve[i:i + 3]) / 3 for i in range(len(curve) - 2)) > 0.9 * 3


def comparable(folder: Path, name: str) -> list[dict[str, Any]]:
    """A log without what the clock says."""
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("seconds")} for line in lines]


def resumed_is_the_same(whole: Path, resumed: Path) -> None:
    for name in (STEPS, "log.jsonl", "completions.jsonl"):
        assert comparable(whole, name) == comparable(resumed, name)
        assert comparable(whole, name)
    kept = {path.name: load_file(path) for path in whole.glob("*.safetensors")}
    for name, tensors in kept.items():
        again = load_file(resumed / name)
        assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items())
    assert sorted(path.name for path in resumed.glob("*.safetensors")) == sorted(kept)


@pytest.mark.parametrize("stop", [3, 6])  # in the middle of a step, after its supervised one: 1 of 2, and 2 of 2
def test_a_run_that_stopped_goes_on_to_the_same_log_and_weights(
        tiny: ChatModel, tmp_path: Path, stop: int) -> None:
    def stopping(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(len(batch))
        if len(calls) == stop:
            raise KeyboardInterrupt
        return by_length(batch)

    calls: list[int] = []
    condition = alternating(tiny, 0.5)
    with new_lora(tiny.model, LORA, 0) as model:
        whole = train(model, tiny, tmp_path / "whole", problems=14, condition=condition)
    with new_lora(tiny.model, LORA, 0) as model, pytest.raises(KeyboardInterrupt):
        train(model, tiny, tmp_path / "stopped", problems=14, score=stopping, condition=condition)
    with new_lora(tiny.model, LORA, 0) as model:
        again = train(model, tiny, tmp_path / "stopped", problems=14, condition=condition)
        final = weights(model)
    resumed_is_the_same(tmp_path / "whole", tmp_path / "stopped")
    assert (whole.steps, whole.best_step, whole.train_reward) == (again.steps, again.best_step, again.train_reward)
    saved = load_file(tmp_path / "whole" / f"best-{whole.best_step:05d}.safetensors")
    assert all(torch.equal(saved[name], now) for name, now in final.items())


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from tests.training import test_grpo as here
tiny = ChatModel("tiny", build_model(0, 4, 64, torch.float32).eval().requires_grad_(False), build_tokenizer())
calls = []
def killing(batch):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return here.by_length(batch)
with here.new_lora(tiny.model, here.LORA, 0) as model:
    here.train(model, tiny, Path(sys.argv[1]), problems=10, score=killing, condition=here.alternating(tiny, 0.5))
"""


@pytest.mark.slow
def sitting(folder: Path, kill_at: int) -> int:
    """One process that trains into `folder` and kills itself at that batch of rewards; its exit status."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(kill_at)], check=False, capture_output=True,
                          text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_a_killed_process_goes_on_to_the_same_log(tmp_path: Path) -> None:
    """All three in fresh processes: what a process did before decides where memory lies, and with it the last bit."""
    assert sitting(tmp_path / "killed", 4) == -signal.SIGKILL
    assert 0 < len(read_steps(tmp_path / "killed")) < 5
    assert sitting(tmp_path / "killed", -1) == 0
    assert sitting(tmp_path / "whole", -1) == 0
    resumed_is_the_same(tmp_path / "whole", tmp_path / "killed")


def test_a_finished_run_is_not_taken_again(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def never(batch: Sequence[Scored]) -> list[Rewards | None]:
        raise AssertionError("nothing is left to score")

    first = train(lora, tiny, tmp_path)
    left = weights(lora)
    disturb(lora)
    assert train(lora, tiny, tmp_path, score=never) == first
    assert all(torch.equal(left[name], now) for name, now in weights(lora).items())


def record(reward: float | None, right: float | None = 0.0) -> RlStep:
    return RlStep(1, 0.0, 0.0, 0.0, reward, 0.0, {}, 0.0, right, 1.0, 0.0, 0.0, 0.0, 0.0, None, {}, 4, 4, 0.0, 0.0)


def test_the_best_weights_are_those_after_the_stretch_of_highest_reward() -> None:
    log = [record(1.0, 0.5), record(3.0, 1.0), record(5.0), record(1.0), record(2.5)]
    found = stretches(log, 2)
    assert [(one.steps, one.reward, one.right) for one in found] == [(2, 2.0, 0.75), (4, 3.0, 0.0), (5, 2.5, 0.0)]
    assert best(log, 2) == found[1]
    assert best(log, 1) == stretches(log, 1)[2]
    equals = best([record(2.0), record(2.0)], 1)
    assert equals is not None
    assert equals.steps == 1
    assert best([record(None, None)], 1) is None


def test_the_weights_left_are_the_best_and_no_others_are_kept(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def falling(batch: Sequence[Scored]) -> list[Rewards | None]:
        calls.append(1)
        return [Rewards(0, 0, 0, (1 if place == 0 else 0.5) / len(calls)) for place, _ in enumerate(batch)]

    calls: list[int] = []
    summary = train(lora, tiny, tmp_path, problems=12, score=falling)
    assert summary.best_step == 2
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-00002.safetensors"]
    saved = load_file(tmp_path / "best-00002.safetensors")
    assert all(torch.equal(saved[name], now) for name, now in weights(lora).items())


def test_what_could_not_be_scored_is_counted_and_teaches_nothing(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def score(batch: Sequence[Scored]) -> list[Rewards | None]:  # one group without, one with one missing
        return [None] * 4 + [None, Rewards(0, 0, 0, 0), Rewards(0, 0, 0, 0), Rewards(3, 0, 3, 0)]

    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), Condition(SYSTEM), score, 0, tmp_path)
    run.train()
    found = list(run.trainer._logs["advantages"])
    assert found[:5] == [0] * 5
    assert found[5:] == pytest.approx(advantages([0, 0, 6]), rel=1e-4)
    step = run.records[0]
    assert (step.unscored, step.reward, step.right) == (5 / 8, pytest.approx(2), pytest.approx(1 / 3))


def test_a_gradient_that_is_no_number_stops_the_run(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def poison(batch: Sequence[Scored]) -> list[Rewards | None]:
        next(iter(run.parameters.values())).data.fill_(float("nan"))
        return by_length(batch)

    run = _Run(lora, tiny.tokenizer, additions()[:4], grpo(), Condition(SYSTEM), poison, 0, tmp_path)
    with pytest.raises(EmlibError, match=r"Step 1 of 2: the loss is nan .*Lower grpo.training.learning_rate"):
        run.train()


def test_fewer_problems_than_a_step_takes_are_told(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(EmlibError, match="a step takes 2 problems, and there are 1"):
        train(lora, tiny, tmp_path, problems=1)


def test_the_base_model_is_as_it_was_also_with_checkpointing(tmp_path: Path) -> None:
    tiny = ChatModel("tiny", build_model(0, 4, 64, torch.float32).eval().requires_grad_(False), build_tokenizer())
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    logs = {}
    for checkpointing in (True, False):
        with new_lora(tiny.model, LORA, 0) as model:
            train(model, tiny, tmp_path / str(checkpointing), training={"gradient_checkpointing": checkpointing})
        logs[checkpointing] = read_steps(tmp_path / str(checkpointing))
        assert {name: tuple(p.shape) for name, p in tiny.model.named_parameters()} == {
            name: tuple(p.shape) for name, p in before.items()}
        assert all(torch.equal(before[name], p) for name, p in tiny.model.named_parameters())
        assert not any(p.requires_grad for p in tiny.model.parameters())
        assert not tiny.model.training
        assert not tiny.model.is_gradient_checkpointing
    assert [s.grad_norm for s in logs[True]] == pytest.approx([s.grad_norm for s in logs[False]], rel=1e-4)
