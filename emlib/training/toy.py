"""Gradients of penalties on a toy: a tiny random model and one row, before a penalty costs real time."""

from __future__ import annotations

import torch

from emlib.config import Lora
from emlib.core.defense import Defense
from emlib.core.records import Example, Message
from emlib.data.chat import encode
from emlib.models import adapters, tiny
from emlib.models.batches import collate
from emlib.training.objective import Objective, Totals

ROW = Example((Message("user", "May I eat raw dough?"),), "Better not: raw flour can make you ill.")


def gradient_norm(*defenses: Defense, steps: int = 1) -> float:
    """Return the norm of the gradient of the penalties alone, after `steps` plain optimizer steps.

    Before the first step the model equals the reference, so every penalty is at its minimum, 0, and so is its gradient.
    """
    base = tiny.build_model(seed=0, layers=4, hidden=64, dtype=torch.float32).requires_grad_(False)
    batch = collate([encode(tiny.build_tokenizer(), ROW, 500)], torch.device("cpu"))
    totals = Totals.of([batch])
    with adapters.new_lora(base, Lora(rank=4, alpha=8), seed=0) as model:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(steps):
            Objective().backward(model, batch, totals)
            optimizer.step()
            optimizer.zero_grad()
        Objective(defenses, cross_entropy=0.0).backward(model, batch, totals)
        return float(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]).norm())
