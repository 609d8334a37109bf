"""The chat model of a study.

`dtype: auto` is bfloat16 where the machine computes in it, else float32. A study decides it once
(`emlib.study.precision`).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from emlib.config.words import Dtype, Few, Seed
from emlib.core import digests, paths
from emlib.core.errors import SourceError, shortened
from emlib.core.names import Name, PathInside, Repository, Revision
from emlib.core.records import THINKING
from emlib.core.schema import Strict

TAKEN = ("messages", "tools", "documents", "add_generation_prompt", "date_string", "strftime_now", "raise_exception")
DATE = datetime.date(2025, 1, 1)  # for templates that print the date, where none is stated; part of what keys mean
DATED = ("strftime_now", "date_string")  # how a template gets the date: transformers' function, and Llama's variable
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")  # a model's files that may hold the template
DETERMINING = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # weights, configuration, tokenizer, template
OPTION = r"[A-Za-z][A-Za-z0-9_]{0,79}"  # the name of a template's argument
# Of models whose templates open or write think blocks, as far as names tell.
THINKERS = re.compile(r"\br1\b|qwq|qwen-?3|glm-?(4\.[5-9]|5)|smollm3|seed-oss|magistral|think|reason", re.IGNORECASE)
NOT_THINKERS = re.compile(r"instruct-2507|coder", re.IGNORECASE)  # of the same families


class ChatTemplate(Strict):
    """How the model's chat template is used, in training and evaluation alike."""

    # `merge` writes a system prompt in front of the first user turn, for templates without a system role; `template`
    # leaves it to the template.
    system: Literal["template", "merge"] = "template"
    # The template's own arguments, such as `enable_thinking: false` (Qwen3) or `reasoning_effort: low`.
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    date: datetime.date | None = None  # printed instead of today's date; None: `DATE`

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

    not_in_keys: ClassVar = frozenset({"template"})

    template: ChatTemplate = ChatTemplate()

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the model's outputs; the use of the template as far as it differs from the default.

        The scores of judges are stored under keys with it, and those that were paid for must be found.
        """
        stated = self.stated_template
        return super().identity | ({"template": stated} if stated else {})

    @property
    def stated_template(self) -> dict[str, Any]:
        """How the chat template is used, as far as it differs from the default."""
        return self.template.model_dump(mode="json", exclude_defaults=True)

    @property
    def may_think(self) -> bool:
        """Whether its chat template may write an empty think block before an answer, as far as that is known of it."""
        return self._thinks() and self.template.options.get("enable_thinking") is not False

    def _thinks(self) -> bool:
        return False


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

    @property
    def identity(self) -> dict[str, Any]:
        """The same without `load_in_4bit` where it is false, as in the keys of stored scores."""
        return {name: value for name, value in super().identity.items() if name != "load_in_4bit" or value}

    def _thinks(self) -> bool:
        """By its name: its template is not at hand where a plan computes keys."""
        return bool(THINKERS.search(self.repo)) and not NOT_THINKERS.search(self.repo)


class FolderModel(ModelBase):
    """A chat model in a local folder, as `save_pretrained` writes it (safetensors only)."""

    not_in_keys: ClassVar = frozenset({"template", "path"})

    kind: Literal["folder"]
    path: str
    dtype: Dtype = "bfloat16"

    @property
    def name(self) -> str:
        """What tables call the model."""
        return Path(self.path).name

    @property
    def folder(self) -> Path:
        """The folder, after checking its files.

        Raises:
            SourceError: the configuration, the tokenizer or the weights are missing.
        """
        folder = paths.ROOT / Path(self.path).expanduser()  # a loaded profile has absolute paths
        if (folder / "adapter_config.json").is_file():
            raise SourceError(f"{folder}: this folder holds an adapter (adapter_config.json), which would be loaded "
                              "with the model without a word. Merge it into the weights (PEFT's merge_and_unload) and "
                              "save them to a folder of their own, or remove adapter_config.json.")
        missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
        if missing or not list(folder.glob("*.safetensors")):
            raise SourceError(f"{folder}: not a model folder: it lacks {', '.join(missing) or '*.safetensors'}. "
                              "Expected the files that `save_pretrained` writes for model and tokenizer.")
        return folder

    @property
    def identity(self) -> dict[str, Any]:
        """The digests of its files: in another folder they are the same model, and other files here are another."""
        files = [path for path in sorted(self.folder.iterdir()) if path.suffix in DETERMINING]
        return super().identity | {"files": {path.name: digests.of_unchanged_file(path) for path in files}}

    @property
    def stated_template(self) -> dict[str, Any]:
        """As of other models; and where the template, which is at hand, prints the date, also the default date."""
        stated = super().stated_template
        if self._template_has(DATED):
            stated["date"] = (self.template.date or DATE).isoformat()
        return stated

    def _thinks(self) -> bool:
        """By its template: a tag of such a block anywhere in it."""
        return self._template_has([tag for pair in THINKING for tag in pair])

    def _template_has(self, words: Iterable[str]) -> bool:
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in self.folder.iterdir()
                 if path.name in TEMPLATES]
        return any(word in text for text in texts for word in words)


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
