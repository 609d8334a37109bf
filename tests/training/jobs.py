"""A training as a job for other processes, on the tiny model and under three defenses at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from emlib.config import Lora, TinyModel, Training
from emlib.data.chat import Encoded
from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.models.load import load
from emlib.models.logprobs import token_logprobs
from emlib.training.job import Job
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
