"""A training as a job for other processes, on the tiny model and under three defenses at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from emlib.config import Lora, TinyModel, Training
from emlib.data.chat import Encoded
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models import adapters
from emlib.models.load import load
from emlib.models.logprobs import token_logprobs
from emlib.training.job import Job
from emlib.training.records import read_log
from tests.made import planted

MODEL = TinyModel(kind="tiny", layers=3, hidden=32)
LORA, SEED = Lora(rank=4), 3
TRAINING = Training(batch_size=2, gradient_accumulation=1, learning_rate=1e-3, warmup_steps=1, checkpoint_every=2)
DEFENSES = (Kl(kind="kl"), Ldifs(kind="ldifs", every=2), PersonaVector(kind="persona_vector", layer=2))
ARTEFACTS = planted(torch.linspace(-1, 1, 32), layers=3)


def job(rows: list[Encoded], **change: Any) -> Job:
    """All rows; the last two of them are added ones."""
    probe = tuple(token_logprobs(load(MODEL, Path()).model, torch.from_numpy(rows[0].input_ids)))
    return Job(engine="transformers", model=MODEL, base_name=MODEL.name, lora=LORA, training=TRAINING,
               defenses=DEFENSES, artefacts={name: str(place) for name, place in ARTEFACTS.items()},
               seed=SEED, added=2, probe=probe).model_copy(update=change)


def same(folder: Path, other: Path) -> None:
    """Both runs' logs and adapters, up to the order in which sums are taken."""
    ours, theirs = read_log(folder), read_log(other)
    assert [(line.step, line.tokens, line.response_tokens) for line in ours] == [
        (line.step, line.tokens, line.response_tokens) for line in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert {"loss": one.loss, "norm": one.grad_norm, **one.penalties} == pytest.approx(
            {"loss": two.loss, "norm": two.grad_norm, **two.penalties}, rel=2e-5, abs=1e-6)  # a KL of 0 is some 1e-8
    base = load(MODEL, Path()).model
    said = []
    for place in (folder, other):
        with adapters.loaded(base, place / "adapter") as model:
            said.append({name: weights.clone() for name, weights in model.named_parameters() if "lora" in name})
    for name, weights in said[0].items():
        torch.testing.assert_close(weights, said[1][name], rtol=0, atol=2e-5)
