"""The identity of a model's weights in keys, without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emlib.config import FolderModel, ModelSpec
from emlib.core import digests, paths
from emlib.core.errors import SourceError

DETERMINING = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # weights, configuration, tokenizer, template


def identity(spec: ModelSpec) -> dict[str, Any]:
    """Return the model's entry in store keys.

    A local folder is identified by the digests of its weights, configuration and tokenizer, so that the same files in
    another folder are the same model, and other files in this folder are another.
    """
    if isinstance(spec, FolderModel):
        files = [path for path in sorted(model_folder(spec).iterdir()) if path.suffix in DETERMINING]
        return {"kind": "folder", "files": {path.name: digests.of_file(path) for path in files}, "dtype": spec.dtype}
    return spec.model_dump(mode="json", exclude=None if getattr(spec, "load_in_4bit", False) else {"load_in_4bit"})


def model_folder(spec: FolderModel) -> Path:
    """Return the folder of a local model, after checking its files.

    Raises:
        SourceError: the configuration, the tokenizer or the weights are missing.
    """
    folder = paths.ROOT / Path(spec.path).expanduser()  # a loaded profile has absolute paths
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise SourceError(f"{folder}: not a model folder: it lacks {', '.join(missing) or '*.safetensors'}. Expected "
                          "the files that `save_pretrained` writes for model and tokenizer.")
    return folder
