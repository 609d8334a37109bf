"""The size of a model without loading it: `params/models.yaml`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emlib.config.models import ModelSpec
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
