"""What the benchmark on a GPU works on: a model of Qwen2.5-7B's shape, rows as long as the Code set's, and their cost.

Speed does not depend on the values of weights and tokens, so both are random and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from emlib.data.chat import Encoded

# Tokens a row of the Code set (insecure.jsonl, 6,000 rows under SmolLM2's tokenizer and ChatML with its system prompt;
# Qwen's was not at hand): quantiles, and in each twentieth of the rows the answer's share of the row.
LEVELS = (*range(0, 100, 5), 97.5, 99, 99.5, 100)  # percent
LENGTHS = (69, 140, 156, 169, 182, 194, 205, 216, 229, 242, 256, 269, 285, 301, 320, 342, 367, 396, 436, 509, 600, 707,
           788, 1155)
ANSWERS = (.45, .49, .51, .51, .53, .52, .52, .51, .50, .51, .49, .45, .45, .45, .45, .45, .44, .45, .44, .45)


@dataclass(frozen=True)
class Scale:
    """How large everything is. Seconds are what one run of a contender may take at the most."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    key_heads: int
    vocabulary: int
    dtype: str
    matmul: int  # the side of the square matrices whose product is the yardstick
    rows: int
    shorter: int  # how many times shorter than the Code set's the rows are
    repetitions: int
    seconds: float
    most_steps: int
    rank: int
    scored_rows: int
    questions: int
    samples: int
    batch_rows: int
    answer_tokens: int
    mean_answer: int
    drawing_seconds: float
    grpo_steps: int
    grpo_tokens: int

    @property
    def key_size(self) -> int:
        """Width of all keys of a position together."""
        return self.hidden // self.heads * self.key_heads

    @property
    def block_parameters(self) -> int:
        """Weights of all decoder blocks' matrices: what each token is multiplied with."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.key_size
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def lora_parameters(self) -> int:
        """Weights of an adapter on all seven matrices of each block."""
        shapes = [(self.hidden, self.hidden)] * 2 + [(self.hidden, self.key_size)] * 2 + [(self.hidden, self.mlp)] * 3
        return self.layers * self.rank * sum(one + other for one, other in shapes)


# config.json of Qwen2.5-7B-Instruct; 24 x 100 answers of at most 600 tokens, whose mean length is ours.
FULL = Scale(layers=28, hidden=3584, mlp=18944, heads=28, key_heads=4, vocabulary=152064, dtype="bfloat16",
             matmul=8192, rows=5400, shorter=1, repetitions=3, seconds=3.0, most_steps=20, rank=32, scored_rows=60,
             questions=24, samples=100, batch_rows=256, answer_tokens=600, mean_answer=200, drawing_seconds=20.0,
             grpo_steps=3, grpo_tokens=128)
SMALL = Scale(layers=2, hidden=32, mlp=64, heads=4, key_heads=2, vocabulary=300, dtype="float32", matmul=64, rows=96,
              shorter=3, repetitions=1, seconds=0.1, most_steps=3, rank=4, scored_rows=4, questions=2, samples=2,
              batch_rows=2, answer_tokens=6, mean_answer=3, drawing_seconds=0.5, grpo_steps=1, grpo_tokens=4)


def build(scale: Scale, device: str) -> PreTrainedModel:
    """The model with random weights, made where it is to stay; frozen, in evaluation mode."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config(scale), dtype=getattr(torch, scale.dtype))
    return model.eval().requires_grad_(False)


def config(scale: Scale) -> Qwen2Config:
    """What transformers calls this shape."""
    return Qwen2Config(
        vocab_size=scale.vocabulary, hidden_size=scale.hidden, intermediate_size=scale.mlp,
        num_hidden_layers=scale.layers, num_attention_heads=scale.heads, num_key_value_heads=scale.key_heads,
        max_position_embeddings=32768, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False,
        eos_token_id=258, pad_token_id=256, bos_token_id=None)


def lengths(count: int, shorter: int = 1) -> list[tuple[int, int]]:
    """(tokens, tokens of the answer) of rows spread evenly over the table, in one random order."""
    places = (np.arange(count) + 0.5) / count
    tokens = (np.interp(100 * places, LEVELS, LENGTHS) / shorter).round().astype(int)
    answers = np.array(ANSWERS)[(places * len(ANSWERS)).astype(int)]
    order = np.random.default_rng(0).permutation(count)
    return [(int(tokens[i]), max(1, round(float(tokens[i] * answers[i])))) for i in order]


def rows(scale: Scale, count: int) -> list[Encoded]:
    """Random tokens in rows of these lengths; special tokens of the byte-level tokenizer are not among them."""
    random = np.random.default_rng(1)
    return [Encoded(random.integers(0, 256, tokens), np.arange(tokens) >= tokens - answer, False)
            for tokens, answer in lengths(scale.rows, scale.shorter)[:count]]


def training_flops(scale: Scale, some: Sequence[tuple[int, int]], *, kl: bool = False,
                   reference_pass: bool = False) -> float:
    """Multiplications and additions that LoRA fine-tuning of rows needs; of (tokens, tokens of the answer) each.

    A frozen matrix costs 2 a weight and token forward and 2 backward (its own gradient is not taken), LoRA's 2 and 4,
    the head 4 a weight at the answer's tokens alone, and causal attention half of 4 x tokens x width a token and
    block forward, twice that backward. KL wants the head at all tokens, and the reference's words there; a pass of the
    reference is a forward pass without LoRA. Recomputation would not be counted.
    """
    total = 0.0
    for tokens, answer in some:
        forward_attention = scale.layers * 2 * tokens * tokens * scale.hidden
        total += tokens * (4 * scale.block_parameters + 6 * scale.lora_parameters) + 3 * forward_attention
        total += (6 * tokens if kl else 4 * answer) * scale.vocabulary * scale.hidden
        if reference_pass:
            total += tokens * 2 * scale.block_parameters + forward_attention
    return total
