"""A training run's state between steps, as one safetensors file that is written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.models import tensors as files

FILE = "checkpoint.safetensors"
Line = TypeVar("Line")


def save(folder: Path, step: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
         states: Mapping[str, Any] | None = None) -> None:
    """Write trained weights and optimizer state after `step` steps, and the state of each defense by its kind."""
    tensors = {f"weight {name}": parameter.detach() for name, parameter in parameters.items()}
    trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for index, parameter in enumerate(trained):  # not `state_dict`, in which 8-bit AdamW wraps some tensors again
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer {index} {key}": torch.as_tensor(value) for key, value in state.items()}
    files.save(folder / FILE, tensors, {"step": step, "defenses": json.dumps(states or {})})


def up_to(step: int, records: list[Line], folder: Path, what: str = "steps") -> list[Line]:
    """Return the log's records up to a checkpoint after `step` steps; later ones are repeated, and were not read.

    Raises:
        EmlibError: the log has fewer.
    """
    if len(records) != step:
        raise EmlibError(f"{folder}: the checkpoint holds {step} {what} and the log {len(records)}; they do not belong "
                         "together. Delete this folder, and the run starts again.")
    return records


def states_of_defenses(folder: Path) -> dict[str, Any]:
    """Return the state of each defense in the last checkpoint, by its kind; empty where there is no checkpoint."""
    if not (folder / FILE).is_file():
        return {}
    with files.opened(folder / FILE) as stored:
        return dict(json.loads(files.metadata_of(stored).get("defenses", "{}")))


def restore(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Restore the last checkpoint of `folder`; return its number of steps, 0 where there is none."""
    if not (folder / FILE).is_file():
        return 0
    tensors, metadata = files.load(folder / FILE)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"weight {name}"])
    state: dict[int, dict[str, Tensor | int]] = {}
    for key, tensor in tensors.items():
        kind, *rest = key.split(" ")
        if kind == "optimizer":
            whole = not tensor.ndim and not tensor.is_floating_point()  # a count of steps, kept as a number
            state.setdefault(int(rest[0]), {})[rest[1]] = int(tensor) if whole else tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])
