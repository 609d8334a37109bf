"""The chat model of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from emlib.config.words import Dtype, Positive
from emlib.core.schema import Strict


class HubModel(Strict):
    """A chat model on the Hugging Face hub.

    `revision` is a commit, or a branch such as `main` if no commit is known: then the commit of its first use is stored
    beside the downloads and used from then on (`emlib.models.hub`). `load_in_4bit` quantizes the frozen weights when
    they are loaded (bitsandbytes' NF4, as in QLoRA), for GPUs with too little memory.
    """

    kind: Literal["hub"]
    repo: str
    revision: str
    dtype: Dtype = "bfloat16"
    load_in_4bit: bool = False

    @property
    def name(self) -> str:
        """What tables call the model."""
        return self.repo


class FolderModel(Strict):
    """A chat model in a local folder, as `save_pretrained` writes it (safetensors only)."""

    kind: Literal["folder"]
    path: str
    dtype: Dtype = "bfloat16"

    @property
    def name(self) -> str:
        """What tables call the model."""
        return Path(self.path).name


class WheelModel(Strict):
    """A GGUF file inside a PyPI package, converted once to safetensors."""

    kind: Literal["wheel"]
    name: str
    package: str
    file: str
    sha256: str
    end_of_turn: str
    dtype: Dtype = "bfloat16"


class TinyModel(Strict):
    """A Qwen2 with random weights, built in code with a byte-level tokenizer: for tests."""

    kind: Literal["tiny"]
    seed: int = 0
    layers: Positive = 4
    hidden: Positive = 64
    dtype: Dtype = "float32"

    @property
    def name(self) -> str:
        """What tables call the model."""
        return f"tiny-{self.layers}x{self.hidden}"


ModelSpec = Annotated[HubModel | FolderModel | WheelModel | TinyModel, Field(discriminator="kind")]
