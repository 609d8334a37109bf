"""The number of a model's decoder blocks, where it is known without loading the model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emlib.config.methods import SweptMethod
from emlib.config.models import FolderModel, ModelSpec, TinyModel
from emlib.config.sampling import Probe
from emlib.config.shapes import shape


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
