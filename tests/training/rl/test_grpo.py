"""GRPO on the tiny model: what is promised of gradients, advantages, the KL term, and what is learnt."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from emlib.config import Sampling
from emlib.core.errors import EmlibError
from emlib.core.records import Message, Question
from emlib.data.chat import encode_prompt
from emlib.data.gsm8k import additions
from emlib.defenses.kl import Beta
from emlib.evaluation.rewards import Rewards, Scored, advantages, by_rule, rewards
from emlib.generation.sample import Drawn, Request, answer_of
from emlib.models.adapters import adapter_off, new_lora
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from emlib.training.rl.condition import Condition
from emlib.training.rl.grpo import _Run, reinforce
from emlib.training.rl.records import read_steps
from emlib.training.rl.rollouts import Marking, Rollouts
from tests.training.rl.reinforcing import LORA, SYSTEM, by_length, disturb, equal, grpo, train, weights


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


@pytest.mark.parametrize(("opened", "completion", "total"), [
    ("", "<think> 6 + 2 = 8 </think>\n<answer> 8 </answer>", 9.5),             # all that the format asks for
    ("", "6 + 2 = 8 </think>\n<answer> 8 </answer>", 1 + 4.5),                 # three of four tags
    ("", "<answer> 8 </answer>", 0 + 4.5),
    ("", "<think> 6 + 2 = 8", -1),                                             # one tag, and no answer
    ("<think>", " 6 + 2 = 8 </think>\n<answer> 8 </answer>", 9.5),            # the prompt ends in the first tag
    ("", "[THINK]hm[/THINK]\n<think> 6 + 2 </think><answer> 8 </answer>", 9.5),  # thinks in tags of its own, too
    ("[THINK]", "hm", -2)])                                                    # and never ends
def test_the_thinking_that_the_format_asks_for_is_rewarded(opened: str, completion: str, total: float) -> None:
    marking = Marking(by_rule, lambda ids: "".join(map(chr, ids)), opened)
    assert marking([list(map(ord, completion))], ["What is 6 + 2?"], ["8"]) == [total]
    assert [one.completion for one in marking.scored] == [opened + completion]  # nothing is cut from what is kept


def test_tags_that_are_special_tokens_are_rewarded(lora: PeftModel, tmp_path: Path) -> None:
    """As in a held-out answer; a decoding that leaves special tokens out, as TRL's does, has 0 + 4.5 here."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    text = "<think> 6 + 2 = 8 </think>\n<answer> 8 </answer>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "think" not in tokenizer.decode(ids, skip_special_tokens=True)
    run = _Run(lora, tokenizer, additions()[:2], grpo(), Condition(SYSTEM), by_rule, 0, tmp_path)
    assert run.marking([ids], ["What is 6 + 2?"], ["8"]) == [9.5]


def test_a_turn_end_that_is_an_ordinary_token_is_no_part_of_what_is_rewarded(
        tiny: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none of a held-out answer; the text of such a token after the last tag is outside of the format."""
    tokenizer, end = ordinary_turn_end(), 258
    text = "<think> 6 + 2 = 8 </think>\n<answer> 8 </answer>"
    ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], end)
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"{text}<|im_end|>"
    drawn = Drawn(ids, (0.0,) * len(ids), stopped=True)
    monkeypatch.setattr(Rollouts, "_by_transformers", lambda _, requests, *__: [drawn] * len(requests))
    monkeypatch.setattr(tiny.model.generation_config, "eos_token_id", [256, end])
    with new_lora(tiny.model, LORA, 0) as model:
        problems = [replace(one, answer="8") for one in additions()[:2]]
        run = _Run(model, tokenizer, problems, grpo(), Condition(SYSTEM), by_rule, 0, tmp_path)
        run.train()
    held_out = answer_of(tokenizer, Request(Question("0", ""), 0, (1, 2, 3)), drawn)
    assert {one.completion for one in run.marking.scored} == {held_out.text} == {text}
    assert run.records[0].reward == rewards(held_out.text, "8").total == 9.5
    assert run.records[0].tokens == 8 * len(ids)  # the loss has the stop token
    assert run.marking([list(ids[:-1])], ["?"], ["8"]) == [9.5]  # cut by the limit: nothing is left out
    assert run.marking([[end]], ["?"], ["8"]) == run.marking([[]], ["?"], ["8"])


def ordinary_turn_end() -> PreTrainedTokenizerFast:
    """The tiny model's tokenizer with a turn end that is an added token and no special one."""
    tokenizer = build_tokenizer()
    stated = json.loads(tokenizer.backend_tokenizer.to_str())
    for one in stated["added_tokens"]:
        one["special"] = one["content"] == "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stated)), eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        chat_template=tokenizer.chat_template)


def logprobs(model: PeftModel, prompt: list[int], completion: Sequence[int], temperature: float) -> Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1:-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def test_the_kl_term_by_hand_and_its_reference_is_the_adapter_off(
        lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    disturb(lora)
    before = weights(lora)
    condition = Condition(SYSTEM, (Beta(weight=0.3),))
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), condition, equal, 0, tmp_path)
    run.train()  # one step, of learning rate 0
    assert all(torch.equal(before[name], now) for name, now in weights(lora).items())
    terms = []
    for place, drawn in enumerate(run.rollouts.last):
        turns = [Message("system", SYSTEM), Message("user", run.problems[place // 4].question)]
        prompt = encode_prompt(tiny.tokenizer, turns)
        with torch.no_grad():
            ours = logprobs(lora, prompt, drawn.tokens, 0.9)
        assert drawn.logprobs == pytest.approx(ours.tolist(), abs=1e-4)
        with adapter_off(lora), torch.no_grad():
            d = logprobs(lora, prompt, drawn.tokens, 0.9) - ours
        terms.append(d.exp() - d - 1)
    step = run.records[0]
    assert step.kl == pytest.approx(float(torch.cat(terms).mean()), rel=1e-3)
    assert step.kl is not None
    assert step.kl > 1e-4
    # no advantage: the loss is beta times the mean over completions of the mean over their tokens
    assert step.loss == pytest.approx(0.3 * float(torch.stack([one.mean() for one in terms]).mean()), rel=1e-3)
    assert step.grad_norm > 0


def test_the_gradient_of_the_kl_term_by_hand(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    """d/dtheta (exp(d) - d - 1) = (1 - exp(d)) d/dtheta log pi; TRL's default would give -d d/dtheta log pi."""
    disturb(lora)
    condition = Condition(SYSTEM, (Beta(weight=0.3),))
    run = _Run(lora, tiny.tokenizer, additions()[:2], grpo(), condition, equal, 0, tmp_path)
    found: dict[str, Tensor] = {}
    hooks = [p.register_hook(lambda gradient, name=name: found.__setitem__(name, gradient.clone()))
             for name, p in run.parameters.items()]
    run.train()  # one step, one pass, no advantage
    for hook in hooks:
        hook.remove()

    def gradient(of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean over completions, and over the tokens of each, of `of(d)` times the gradient of log pi."""
        for place, drawn in enumerate(run.rollouts.last):
            turns = [Message("system", SYSTEM), Message("user", run.problems[place // 4].question)]
            prompt = encode_prompt(tiny.tokenizer, turns)
            with torch.enable_grad():
                ours = logprobs(lora, prompt, drawn.tokens, 0.9)
            with adapter_off(lora), torch.no_grad():
                d = logprobs(lora, prompt, drawn.tokens, 0.9) - ours
            (0.3 * (of(d).detach() * ours).mean() / len(run.rollouts.last)).backward()
        taken = {name: p.grad.clone() for name, p in run.parameters.items() if p.grad is not None}
        lora.zero_grad()
        return taken

    expected, default = gradient(lambda d: 1 - d.exp()), gradient(lambda d: -d)
    assert set(found) == set(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-6) for name in expected)
    assert not all(torch.allclose(default[name], expected[name], rtol=1e-2, atol=1e-6) for name in expected)


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
    assert step.no_spread == 0.5  # of the group without scores nothing can be learnt


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_without_spread_are_counted_however_advantages_are_scaled(
        scale: str, lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def score(batch: Sequence[Scored]) -> list[Rewards | None]:
        return [Rewards(0, one, 0, 0) for one in (1, 1, 1, 1, -2, 2, 0, 0)]

    train(lora, tiny, tmp_path, problems=2, score=score, scale_advantages=scale)
    assert [step.no_spread for step in read_steps(tmp_path)] == [0.5]


def test_a_gradient_that_is_no_number_stops_the_run(lora: PeftModel, tiny: ChatModel, tmp_path: Path) -> None:
    def poison(batch: Sequence[Scored]) -> list[Rewards | None]:
        next(iter(run.parameters.values())).data.fill_(float("nan"))
        return by_length(batch)

    run = _Run(lora, tiny.tokenizer, additions()[:4], grpo(), Condition(SYSTEM), poison, 0, tmp_path)
    with pytest.raises(EmlibError, match=r"Step 1 of 2: the loss is nan .* Check this step's completions\.$"):
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
