"""The identity of a model's weights in keys, without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emlib.config import FolderModel, ModelSpec
from emlib.core import digests, paths
from emlib.core.errors import SourceError
from emlib.data.templates import DATE, DATED

TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")  # the files that may hold the template
DETERMINING = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # weights, configuration, tokenizer, template


def identity(spec: ModelSpec) -> dict[str, Any]:
    """Return the model's entry in store keys.

    A local folder is identified by the digests of its weights, configuration and tokenizer, so that the same files in
    another folder are the same model, and other files in this folder are another.
    """
    template = _template(spec)
    found = {"template": template} if template else {}
    if isinstance(spec, FolderModel):
        files = [path for path in sorted(model_folder(spec).iterdir()) if path.suffix in DETERMINING]
        return found | {"kind": "folder", "dtype": spec.dtype,
                        "files": {path.name: digests.of_unchanged_file(path) for path in files}}
    unsaid = {"template"} if getattr(spec, "load_in_4bit", False) else {"template", "load_in_4bit"}
    return found | spec.model_dump(mode="json", exclude=unsaid)


def _template(spec: ModelSpec) -> dict[str, Any]:
    """Return how the chat template is used, as far as it differs from the default.

    A folder's template is at hand: where it prints the date, the date is part of the key, even if it is the default.
    """
    said = spec.template.model_dump(mode="json", exclude_defaults=True)
    if isinstance(spec, FolderModel) and any(
            word in path.read_text(encoding="utf-8", errors="replace")
            for path in model_folder(spec).iterdir() if path.name in TEMPLATES for word in DATED):
        said["date"] = (spec.template.date or DATE).isoformat()
    return said


def model_folder(spec: FolderModel) -> Path:
    """Return the folder of a local model, after checking its files.

    Raises:
        SourceError: the configuration, the tokenizer or the weights are missing.
    """
    folder = paths.ROOT / Path(spec.path).expanduser()  # a loaded profile has absolute paths
    if (folder / "adapter_config.json").is_file():
        raise SourceError(f"{folder}: this folder holds an adapter (adapter_config.json), which would be loaded with "
                          "the model without a word. Merge it into the weights (PEFT's merge_and_unload) and save them "
                          "to a folder of their own, or remove adapter_config.json.")
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise SourceError(f"{folder}: not a model folder: it lacks {', '.join(missing) or '*.safetensors'}. Expected "
                          "the files that `save_pretrained` writes for model and tokenizer.")
    return folder
