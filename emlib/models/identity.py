"""Which weights a result comes from, told without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emlib.config import FolderModel, ModelSpec
from emlib.core import digests, paths
from emlib.core.errors import SourceError

DETERMINING = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # weights, configuration, tokenizer, template


def identity(spec: ModelSpec) -> dict[str, Any]:
    """What stands for the model in store keys.

    A local folder is named by the digests of its weights, configuration and tokenizer, so that the same files elsewhere
    are the same model and other files at the same place are another.
    """
    if isinstance(spec, FolderModel):
        files = [path for path in sorted(model_folder(spec).iterdir()) if path.suffix in DETERMINING]
        return {"kind": "folder", "files": {path.name: digests.of_file(path) for path in files}, "dtype": spec.dtype}
    return spec.model_dump(mode="json", exclude=None if getattr(spec, "load_in_4bit", False) else {"load_in_4bit"})


def model_folder(spec: FolderModel) -> Path:
    """The folder of a local model, looked through for what it needs.

    Raises:
        SourceError: it lacks its configuration, its tokenizer or its weights.
    """
    folder = paths.ROOT / Path(spec.path).expanduser()  # a loaded profile has absolute paths
    missing = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing or not list(folder.glob("*.safetensors")):
        raise SourceError(f"{folder}: not a model folder, it lacks {', '.join(missing) or '*.safetensors'}. Expected "
                          "what `save_pretrained` writes for model and tokenizer.")
    return folder
