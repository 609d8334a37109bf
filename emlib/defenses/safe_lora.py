"""Safe LoRA (Hsu et al. 2024, arXiv 2405.16833): projects the finished adapter onto the alignment subspace.

    V = W_aligned - W_base        C = V V^T / |V|_F        dW = s B A
    B <- C B        in each layer where cos(C dW, dW) < threshold

W_aligned is a layer's matrix in the study's model, W_base that in the model from which it was aligned (`base`), and
|.|_F the Frobenius norm. It acts once, after the last step, on the trained adapter: C (B A) = (C B) A keeps the rank.
As in the authors' code, C is no exact projection: it divides by |V|_F, and not by the squares of V's singular values,
and so changes the update's length too. C has no negative eigenvalue, so that no cosine is below 0. Here it differs in
two points: a cosine equal to the threshold is left alone, so that a threshold of 0 is plain fine-tuning; and layers are
chosen by the threshold alone, where the authors' code can also take a number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from emlib.config import HubModel, ModelSpec
from emlib.core import paths
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.hooks import Artefacts
from emlib.core.progress import say

if TYPE_CHECKING:
    from torch import Tensor, nn

WITHOUT_BASE = ("safe_lora needs the weights of the model that the study's model was aligned from. Name it, such as "
                "base: {kind: hub, repo: Qwen/Qwen2.5-7B, revision: main}")


class SafeLora(Defense):
    """Projects each layer of the finished adapter whose cosine with its projection is below `threshold`.

    `base` is the model that the study's model was aligned from, written as `model` in a profile. A higher `threshold`
    projects more layers, 1 all of them. Adapters that are kept on the way are those of plain fine-tuning.
    """

    label: ClassVar = "Safe LoRA (after training)"
    equation: ClassVar = "B <- V V^T B / |V| where cos(C dW, dW) < threshold; V = W_aligned - W_base"
    origin: ClassVar = "arXiv 2405.16833"
    swept: ClassVar = "threshold"
    null: ClassVar = {"threshold": 0.0}
    not_in_grpo: ClassVar = "it projects an adapter after the last step, and GRPO has no such moment"
    cost: ClassVar = "nothing in training; twice the base model's weights are read, once a few products a layer"

    kind: Literal["safe_lora"] = "safe_lora"
    base: ModelSpec | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    @field_validator("base")
    @classmethod
    def _whole_weights(cls, base: ModelSpec | None) -> ModelSpec | None:
        if base is not None and (base.dtype == "auto" or (isinstance(base, HubModel) and base.load_in_4bit)):
            raise ValueError("the base model's weights are subtracted from the study's: set dtype to bfloat16 or "
                             "float32, and load_in_4bit to false")
        return base

    def fits(self, section: Any, method: str) -> None:
        """Check that there is a base model, and that both models' weights are whole and on one device."""
        if self.base is None:
            raise ValueError(f"method '{method}': {WITHOUT_BASE}")
        if section.job.gpus > 1 or (isinstance(section.model, HubModel) and section.model.load_in_4bit):
            raise ValueError(f"method '{method}': safe_lora subtracts the model's whole weights. Set job.gpus to 1 and "
                             "model.load_in_4bit to false")

    def before(self, model: nn.Module, artefacts: Artefacts) -> None:
        """Check that the base model can be loaded and has the same layers with other weights."""
        self._project(model, 0.0)

    def after(self, model: nn.Module, artefacts: Artefacts) -> None:
        cosines = self._project(model, self.threshold)
        say(f"safe_lora: {sum(value < self.threshold for value in cosines.values())} of {len(cosines)} layers are "
            f"projected (cosines from {min(cosines.values()):.2f} to {max(cosines.values()):.2f})")

    def _project(self, model: nn.Module, threshold: float) -> dict[str, float]:
        from emlib.models.load import load_weights

        if self.base is None:
            raise ProfileError(WITHOUT_BASE)
        return project(model, load_weights(self.base, paths.cache()).state_dict(), threshold)


def project(model: nn.Module, base: Mapping[str, Tensor], threshold: float) -> dict[str, float]:
    """Project B of each LoRA layer whose cosine is below `threshold`; return all cosines by layer.

    `base` has the base model's weights by name. The cosine of a layer without an update is 1.

    Raises:
        EmlibError: the base model lacks a layer, has another shape of it, or the same weights.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    from emlib.models.logprobs import causal_lm

    found = {}
    for name, layer in causal_lm(model).named_modules():
        if not issubclass(type(layer), LoraLayer):
            continue
        a, b = (getattr(layer, part)["default"].weight.detach().float() for part in ("lora_A", "lora_B"))
        aligned, other = layer.get_base_layer().weight.detach().float(), base.get(f"{name}.weight")
        if other is None or other.shape != aligned.shape:
            raise EmlibError(f"safe_lora: the base model has no layer {name} of shape {tuple(aligned.shape)}. Set "
                             "`base` to the model from which the study's model was aligned.")
        v = aligned - other.to(aligned)  # (out, in)
        norm = v.norm()
        if not norm:
            raise EmlibError(f"safe_lora: both models have the same weights in {name}, so that there is no alignment "
                             "subspace. Set `base` to the model from which the study's model was aligned.")
        projected = v @ (v.T @ b) / norm  # (out, rank)
        found[name] = _cosine(projected, b, a @ a.T)
        if found[name] < threshold:
            with torch.no_grad():
                layer.lora_B["default"].weight.copy_(projected)
    return found


def _cosine(one: Tensor, two: Tensor, gram: Tensor) -> float:
    """Return the cosine of X A and Y A as vectors, by gram = A A^T: <X A, Y A> = tr(X^T Y A A^T)."""
    def inner(x: Tensor, y: Tensor) -> float:
        return float(((x.T @ y) * gram).sum())

    first, second = inner(one, one), inner(two, two)
    return inner(one, two) / (first * second) ** 0.5 if first > 0 and second > 0 else 1.0
