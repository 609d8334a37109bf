"""The memory of a GPU that fine-tuning takes, estimated from the model's shape alone; no GPU has measured it.

    weights + 1.15 x (adapter, gradient and moments + activations of the largest pass + a chunk of logits)

With emlib's layers (`emlib.models.kernels`) a block saves six vectors of the model's width, three of its feed-forward
part's and two of its keys' for each token: 4.4 MB a token for 28 blocks of Qwen2.5-7B, where 4.5 were measured on a CPU
(benchmarks/README.md). With gradient checkpointing one vector a block is saved, and the activations of one block.
"""

from __future__ import annotations

from dataclasses import dataclass

from emlib.config import Lora, ModelSpec, Profile, Training
from emlib.config.models import HubModel
from emlib.config.shapes import Shape, shape
from emlib.training.budget import CHUNK, MARGIN

HALF, FULL = 2, 4  # bytes of a number in bfloat16 and in float32
FOUR_BIT = 0.5 + FULL / 64  # bytes of a quantized weight: half a byte, and a float32 scale for 64 of them


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one GPU in training: with all activations saved, and with gradient checkpointing."""

    saved: float
    recomputed: float


def training_memory(profile: Profile, *, four_bit: bool | None = None) -> TrainingMemory | None:
    """Estimate the memory of plain fine-tuning on one GPU; None if the model's size is not known.

    A pass is taken to have `batch_size` rows of `max_seq_length` tokens, the most that the profile allows. The weights
    are divided among `job.gpus`. `four_bit`: with quantized weights; None: as the profile says.
    """
    size = shape(profile.model)
    if size is None:
        return None
    if four_bit is None:
        four_bit = isinstance(profile.model, HubModel) and profile.model.load_in_4bit
    training = profile.training
    tokens = training.batch_size * training.max_seq_length
    weights = _weights(size, four_bit=four_bit) / profile.job.gpus
    words = (size.parameters - size.inside) / size.hidden  # at most: embeddings and head may be one matrix or two
    fixed = _trained(size, profile.lora, training) + CHUNK * words * (HALF + FULL)
    block = HALF * (6 * size.hidden + 3 * size.mlp + 2 * size.keys)  # saved by a block for a token
    every, inputs = size.layers * block, size.layers * HALF * size.hidden
    return TrainingMemory(weights + MARGIN * (fixed + tokens * every),
                          weights + MARGIN * (fixed + tokens * (inputs + block)))


def loaded_memory(spec: ModelSpec) -> float | None:
    """Return the bytes of a loaded model's weights, such as a local judge's; None if its size is not known."""
    size = shape(spec)
    return None if size is None else _weights(size, four_bit=isinstance(spec, HubModel) and spec.load_in_4bit)


def cache_memory(spec: ModelSpec, rows: int, tokens: int) -> float | None:
    """Return the bytes of keys and values while `rows` answers of `tokens` tokens, prompts included, are sampled."""
    size = shape(spec)
    return None if size is None else 2 * HALF * size.layers * size.keys * rows * tokens


def _weights(size: Shape, *, four_bit: bool) -> float:
    """Return the bytes of the frozen weights; quantization leaves embeddings and head as they are."""
    inside = FOUR_BIT if four_bit else HALF
    return HALF * (size.parameters - size.inside) + inside * size.inside


def _trained(size: Shape, lora: Lora, training: Training) -> float:
    """Return the bytes of the adapter in float32, its gradient, and two moments."""
    moments = 2 * (1 if training.optimizer == "adamw_8bit" else FULL)
    return size.adapter_bytes(lora) * (2 * FULL + moments) / FULL
