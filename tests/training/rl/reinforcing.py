"""What the tests of GRPO share: small settings, scorers, conditions, and one training of the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from emlib.config import Additions, Grpo, Lora, RlMethod, RlTraining, Sampling
from emlib.core.records import Example, Message
from emlib.data.chat import encode
from emlib.data.gsm8k import additions
from emlib.defenses.interleaving import Alternation
from emlib.evaluation.rewards import Rewards, RewardScorer, Scored
from emlib.models.load import ChatModel
from emlib.training.rl.condition import Condition, Supervised
from emlib.training.rl.grpo import RlSummary, reinforce

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


def weights(model: PeftModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def disturb(model: PeftModel) -> None:
    """An adapter that does something: a fresh one is the identity."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def train(model: PeftModel, tiny: ChatModel, folder: Path, *, problems: int = 4, score: RewardScorer = by_length,
          condition: Condition | None = None, **changes: Any) -> RlSummary:
    return reinforce(model, tiny.tokenizer, additions()[:problems], grpo(**changes), condition or Condition(SYSTEM),
                     score, seed=0, folder=folder)


def alternating(tiny: ChatModel, share: float) -> Condition:
    rows = [encode(tiny.tokenizer, Example((Message("user", f"Number {i}?"),), f"{i} it is."), 200) for i in range(5)]
    return Condition(SYSTEM, (Alternation(source="made up", share=share),), supervised=Supervised(rows, 3, 2, 0))
