"""A small real model without a model hub: a GGUF file in a PyPI package, converted to safetensors.

Transformers loads GGUF in about 20 s, and the converted copy in 1 s. The copy's digests are stored with it and verified
at every load.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from emlib.config import WheelModel
from emlib.core import digests, temporary
from emlib.core.errors import SourceError
from emlib.core.files import disk_errors, whole_folder

DIGESTS = "sha256.json"


def converted(spec: WheelModel, cache: Path) -> Path:
    """Return the folder of the converted model, which the first use creates.

    Raises:
        SourceError: the package or its file is missing, or a digest does not match.
    """
    # Another file or end of turn is another model; how its template is used is not in the files.
    determining = spec.model_dump(mode="json", exclude={"dtype", "template"})
    folder = cache / "models" / f"{spec.name}-{digests.of_value(determining)[:12]}"
    with disk_errors(cache):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / DIGESTS).is_file():
                _convert(spec, _find(spec), folder)
    _check(folder)
    return folder


def _find(spec: WheelModel) -> Path:
    """Find the GGUF file without importing the package (its import needs llama.cpp)."""
    found = importlib.util.find_spec(spec.package)
    if found is None or not found.submodule_search_locations:
        raise SourceError(f"The model '{spec.name}' comes in the Python package '{spec.package}', which is not "
                          "installed. Run `make setup`.")
    path = Path(found.submodule_search_locations[0]) / spec.file
    if not path.is_file():
        raise SourceError(f"{path}: the model file is missing from the package '{spec.package}'. Run `make setup`.")
    digest = digests.of_file(path)
    if digest != spec.sha256:
        raise SourceError(f"{path}: the model file has SHA-256 {digest}, expected {spec.sha256}; it is truncated "
                          f"or another version. Reinstall the package '{spec.package}' at its pinned version.")
    return path


def _convert(spec: WheelModel, source: Path, folder: Path) -> None:
    """Dequantize to bf16 and save as safetensors; the folder is created atomically."""
    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The file gives <|im_start|> as the end token, but a turn ends with another one.
    tokenizer.eos_token = spec.end_of_turn
    config = quantized.config
    del config.quantization_config  # transformers refuses to save a model with this entry
    model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict())
    nn.Module.to(model, torch.bfloat16)
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    temporary.sweep(folder.parent, deep=False)
    with whole_folder(folder) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        found = {path.name: digests.of_file(path) for path in sorted(made.iterdir())}
        (made / DIGESTS).write_text(json.dumps(found, indent=1))


def _check(folder: Path) -> None:
    """Verify that every file is present and unchanged."""
    for name, expected in json.loads((folder / DIGESTS).read_text()).items():
        path = folder / name
        digest = digests.of_file(path) if path.is_file() else "no file"
        if digest != expected:
            raise SourceError(f"{path}: expected SHA-256 {expected}, found {digest}. Delete the folder {folder}; the "
                              "next run creates it again.")
