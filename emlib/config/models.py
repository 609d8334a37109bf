"""The chat model of a study.

`dtype: auto` is bfloat16 where the machine computes in it, else float32. A study decides it once
(`emlib.study.precision`).
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from emlib.config.words import Dtype, Few, Seed
from emlib.core.errors import shortened
from emlib.core.names import Name, PathInside, Repository, Revision
from emlib.core.schema import Strict

TAKEN = ("messages", "tools", "documents", "add_generation_prompt", "date_string", "strftime_now", "raise_exception")
OPTION = r"[A-Za-z][A-Za-z0-9_]{0,79}"  # the name of a template's argument


class ChatTemplate(Strict):
    """How the model's chat template is used, in training and evaluation alike."""

    # `merge` writes a system prompt in front of the first user turn, for templates without a system role; `template`
    # leaves it to the template.
    system: Literal["template", "merge"] = "template"
    # The template's own arguments, such as `enable_thinking: false` (Qwen3) or `reasoning_effort: low`.
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    date: datetime.date | None = None  # printed instead of today's date; None: `emlib.data.templates.DATE`

    def __hash__(self) -> int:
        return hash((self.system, tuple(sorted(self.options.items())), self.date))

    @field_validator("options")
    @classmethod
    def _own_arguments(cls, options: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        wrong = [name for name in options if name in TAKEN or not re.fullmatch(OPTION, name)]
        if wrong:
            raise ValueError(f"'{shortened(wrong[0])}' is not an argument of the template's own. Expected a name such "
                             "as enable_thinking; the date is set by model.template.date")
        return options


class ModelBase(Strict):
    """What all kinds of models have."""

    template: ChatTemplate = ChatTemplate()


class HubModel(ModelBase):
    """A chat model on the Hugging Face hub."""

    kind: Literal["hub"]
    repo: Repository
    # A commit, or a branch such as `main` if no commit is known: then the commit of its first use is stored beside the
    # downloads and used from then on (`emlib.models.hub`).
    revision: Revision
    dtype: Dtype = "bfloat16"
    # Quantizes the frozen weights when they are loaded (bitsandbytes' NF4, as in QLoRA), for GPUs with little memory.
    load_in_4bit: bool = False

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self.repo


class FolderModel(ModelBase):
    """A chat model in a local folder, as `save_pretrained` writes it (safetensors only)."""

    kind: Literal["folder"]
    path: str
    dtype: Dtype = "bfloat16"

    @property
    def name(self) -> str:
        """What tables call the model."""
        return Path(self.path).name


class WheelModel(ModelBase):
    """A GGUF file inside a PyPI package, converted once to safetensors."""

    kind: Literal["wheel"]
    name: Name
    package: Name
    file: PathInside
    sha256: str
    end_of_turn: str
    dtype: Dtype = "bfloat16"


class TinyModel(ModelBase):
    """A Qwen2 with random weights, built in code with a byte-level tokenizer: for tests."""

    kind: Literal["tiny"]
    seed: Seed = 0
    layers: Few = 4
    hidden: Annotated[Few, Field(multiple_of=8)] = 64  # four heads, each of an even width
    dtype: Dtype = "float32"

    @property
    def name(self) -> str:
        """What tables call the model."""
        return f"tiny-{self.layers}x{self.hidden}"


ModelSpec = Annotated[HubModel | FolderModel | WheelModel | TinyModel, Field(discriminator="kind")]
