"""How a model is fine-tuned: LoRA and the optimizer. Defaults: the paper's Table 6."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from emlib.config.words import Positive
from emlib.core.schema import Strict


class Lora(Strict):
    """LoRA by PEFT. Defaults: Table 6."""

    rank: Positive = 32
    alpha: Positive = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    rslora: bool = True
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

    @field_validator("target_modules")
    @classmethod
    def _between_embeddings_and_head(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse to train embeddings and head: the losses assume that both models share a frozen head."""
        for name in names:
            if name in ("lm_head", "embed_tokens"):
                raise ValueError(f"{name} stays frozen in this study. Name layers of the decoder blocks")
        return names


class Training(Strict):
    """Supervised fine-tuning. Defaults: Table 6, and transformers' where the paper gives none.

    `gradient_checkpointing`: recompute activations in the backward pass instead of saving them; `auto` does so if the
    saved activations would not fit into memory. It changes results only by rounding.
    """

    epochs: Positive = 1
    max_seq_length: Positive = 2048
    batch_size: Positive = 4
    gradient_accumulation: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    scheduler: Literal["linear", "constant"] = "linear"
    optimizer: Literal["adamw_8bit", "adamw_torch"] = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    checkpoint_every: Positive = 50
    train_rows: Positive | None = None

    @property
    def rows_per_step(self) -> int:
        """The number of rows in one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    @property
    def key(self) -> dict[str, Any]:
        """The values that determine an adapter; `auto` counts as False, because keys do not depend on the device."""
        return self.model_dump(mode="json", exclude={"checkpoint_every", "train_rows"}) | {
            "gradient_checkpointing": self.gradient_checkpointing is True}
