"""The size of a model and the number of its layers, without loading it: `params/models.yaml`, or its configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from emlib.config.methods import SweptMethod
from emlib.config.models import FolderModel, ModelSpec, TinyModel
from emlib.config.sampling import Probe
from emlib.config.training import Lora
from emlib.config.words import Number
from emlib.core import paths
from emlib.core.plain_yaml import read_yaml
from emlib.core.schema import Strict, check


class Shape(Strict):
    """A model's size: `keys` is the width of its keys (and values), `mlp` that of its feed-forward layers."""

    parameters: Number
    layers: Annotated[int, Field(gt=0)]
    hidden: Annotated[int, Field(gt=0)]
    mlp: Annotated[int, Field(gt=0)]
    keys: Annotated[int, Field(gt=0)]

    @property
    def inside(self) -> float:
        """The parameters of the decoder blocks' matrices: all but embeddings, head, biases and norms."""
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * self.keys + 3 * self.hidden * self.mlp)

    def adapter_bytes(self, lora: Lora) -> int:
        """Compute the bytes of a saved adapter, whose weights are float32."""
        h, m, k = self.hidden, self.mlp, self.keys
        sides = {"q_proj": 2 * h, "k_proj": h + k, "v_proj": h + k, "o_proj": 2 * h, "gate_proj": h + m,
                 "up_proj": h + m, "down_proj": h + m}
        return 4 * lora.rank * self.layers * sum(sides.get(name, 2 * h) for name in lora.target_modules)


class _Shapes(Strict):
    models: dict[str, Shape]


def shape(spec: ModelSpec) -> Shape | None:
    """Return a model's size from `params/models.yaml`, or None."""
    path = paths.PARAMS / "models.yaml"
    return check(_Shapes, {"models": read_yaml(path)}, str(path)).models.get(spec.name.rpartition("/")[2])


def layer_count(spec: ModelSpec) -> int | None:
    """Return the number of decoder blocks that a model's configuration or `params/models.yaml` states, or None."""
    if isinstance(spec, TinyModel):
        return spec.layers
    if isinstance(spec, FolderModel):
        return _of_folder(Path(spec.path))
    found = shape(spec)
    return None if found is None else found.layers


def _of_folder(folder: Path) -> int | None:
    """Return the number in a folder's `config.json`; None if there is none, which loading the model reports."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = config.get("num_hidden_layers", config.get("text_config", {}).get("num_hidden_layers"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, int) else None


def missing_layers(model: ModelSpec, methods: Sequence[SweptMethod], probe: Probe,
                   read: Mapping[str, int | None]) -> Iterator[str]:
    """Yield which layers the model lacks that a defense or the steering sweep names, or that are `read` (by key).

    A penalty on layers that uses none of the model's is a mistake as well: its run would be plain fine-tuning.
    """
    count = layer_count(model)
    if count is None:
        return
    defenses = [(method, defense) for method in methods for defense in method.defenses]
    for method, defense in defenses:
        if defense.reads_nothing(count):
            yield (f"the defense {defense.kind} of method '{method.name}' uses none of the {count} layers of the model "
                   f"{model.name}: the run would be plain fine-tuning. Name one of them, or lower the distance between "
                   "layers")
    named = [(f"the defense {defense.kind} of method '{method.name}'", layer)
             for method, defense in defenses for layer in defense.named_layers(count)]
    steered = any(defense.has("active") for _, defense in defenses)
    if steered or probe.layers != Probe().layers:  # nothing else looks at the default
        named += [("'probe.layers'", layer) for layer in probe.layers]
    for key, layer in (*named, *((f"'{key}'", layer) for key, layer in read.items() if layer is not None)):
        if layer > count:
            yield f"{key} names layer {layer}, but the model {model.name} has {count}, counted from 1"
