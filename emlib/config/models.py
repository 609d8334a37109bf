"""Which chat model a study is about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from emlib.config.words import Dtype, Positive
from emlib.core.schema import Strict


class HubModel(Strict):
    """A chat model of the Hugging Face hub.

    `revision` is a commit; or a branch, such as `main`, where none is known: then the commit of its first use is
    written down beside the downloads and holds from then on (`emlib.models.hub`). `load_in_4bit` quantizes the frozen
    weights while they are loaded (bitsandbytes' NF4, as QLoRA does), for cards that are too small for them otherwise.
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
    """A random Qwen2 built in code with a byte-level tokenizer: for tests, it knows nothing."""

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
