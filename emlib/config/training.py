"""How a model is fine-tuned: LoRA and the optimizer. Defaults: the paper's Table 6."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from emlib.config.words import Factor, Few, Positive, Share, SmallCount, Tokens, no_repeats
from emlib.core.schema import Strict

MOST_KEPT = 1000  # adapters of a run


class Lora(Strict):
    """LoRA by PEFT. Defaults: Table 6."""

    rank: SmallCount = 32
    alpha: SmallCount = 64
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
        return no_repeats(names)


class Every(Strict):
    """Every so many steps of plain fine-tuning."""

    every: Positive


class Training(Strict):
    """Supervised fine-tuning. Defaults: Table 6, and transformers' where the paper gives none."""

    # What is saved on the way changes no adapter, and keys have the rows themselves.
    not_in_keys: ClassVar = frozenset({"checkpoint_every", "train_rows", "keep"})

    epochs: Few = 1
    max_seq_length: Tokens = 2048
    batch_size: SmallCount = 4
    gradient_accumulation: SmallCount = 4
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    scheduler: Literal["linear", "constant"] = "linear"
    optimizer: Literal["adamw_8bit", "adamw_torch"] = "adamw_8bit"
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 0.01
    max_grad_norm: Factor = 1.0
    # Recompute activations in the backward pass instead of saving them; `auto` does so if the saved ones would not fit
    # into memory. It changes results only by rounding.
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    checkpoint_every: Positive = 50
    # The number of a data set's training rows that runs are trained on, the first ones, or of the user's own data a
    # random choice (`own.seed`); None: all. It holds for benign tasks, too, unless their section states another number,
    # or null.
    train_rows: Positive | None = None
    # The shares of a run's steps after which its adapter is kept as well, or the number of equal parts of the run, or
    # `{every: n}`: every n steps of plain fine-tuning on `train_rows` rows, or on all of a data set that has fewer, and
    # the same shares of longer runs. It changes no adapter, and applies to the runs of `evaluation.trajectory`.
    keep: tuple[Share, ...] | Annotated[int, Field(gt=1, le=MOST_KEPT)] | Every = ()

    def _mistakes(self) -> Iterator[str]:
        if isinstance(self.keep, tuple):
            no_repeats(self.keep)
        if isinstance(self.keep, Every) and self.train_rows is None:
            yield ("'keep' counts the steps of plain fine-tuning, whose number follows from 'train_rows'. State it, "
                   "such as train_rows: 5400, or list shares, such as keep: [0.1, 0.5]")
        most = len(self.kept(self.train_rows or 0)) if isinstance(self.keep, Every) else 0
        if most >= MOST_KEPT:
            yield f"'keep' names {most} adapters a run; expected fewer than {MOST_KEPT}. Keep one in more steps"

    def kept(self, rows: int) -> tuple[float, ...]:
        """Return the shares of the steps after which the adapter is kept, in order, without the last step's.

        `{every: n}` counts the steps of plain fine-tuning on so many `rows`.
        """
        if isinstance(self.keep, tuple):
            return tuple(sorted(share for share in self.keep if share < 1))
        of, apart = (self.keep, 1) if isinstance(self.keep, int) else (self.plain_steps(rows), self.keep.every)
        return tuple(step / of for step in range(apart, of, apart))

    def plain_steps(self, rows: int) -> int:
        """Return the number of steps of plain fine-tuning on so many rows; each epoch's last one may be smaller."""
        return self.epochs * ceil(rows / self.rows_per_step)

    @property
    def rows_per_step(self) -> int:
        """The number of rows in one optimizer step."""
        return self.batch_size * self.gradient_accumulation

    @property
    def identity(self) -> dict[str, Any]:
        """The values that determine an adapter; `auto` counts as False, because keys do not depend on the device."""
        return super().identity | {"gradient_checkpointing": self.gradient_checkpointing is True}
