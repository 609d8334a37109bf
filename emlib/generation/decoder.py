"""A decoder for the many small steps of sampling on a CPU, for models such as Llama and Qwen2.

It computes what the model's own forward pass does, from a copy of the weights: the adapter merged into them (W + s B A,
in float32, then rounded), q, k, v and gate, up as one matrix each, and in bfloat16 packed once for few rows by oneDNN.
Keys and values have their memory from the start, and grouped queries share a head without copies of it. Prompts are
read by the model itself. It knows the plain model only: where a hook acts in a layer, it is not used. It is proved
against the model on random rows before it is used, under each adapter, and left alone where it disagrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from emlib.core.errors import first_line
from emlib.models.adapters import merged
from emlib.models.continuing import ByModel, Continuation
from emlib.models.kernels.proof import TIMES, TOLERANCE
from emlib.models.logprobs import backbone, causal_lm, head, last_hidden
from emlib.models.prompts import Read, partial_attention, read_prompts

KNOWN = ("LlamaForCausalLM", "Qwen2ForCausalLM")
LARGEST = 4 * 2**30  # bytes of a model that is copied
TALL = 8192  # outputs of a matrix, as the head has them, above which W x^T is the faster product for a few rows x
LENGTHS, TAIL = (9, 24), 4  # the two prompts of a proof, and the tokens that follow each


class Matrix:
    """The weights of some layers side by side, under the active adapter: (rows, in) -> (rows, out)."""

    def __init__(self, *layers: nn.Module) -> None:
        weight = torch.cat([merged(layer) for layer in layers])
        biases = [bias for layer in layers if (bias := _linear(layer).bias) is not None]
        self.bias = torch.cat(biases) if biases else None
        self.packed = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self.tall = len(weight) > TALL
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.packed else (
            weight if self.tall else weight.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows by the matrix: (rows, in) -> (rows, out)."""
        if self.packed:
            found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return found
        if self.tall:
            found = (self.weight @ x.T).T.contiguous()
            return found if self.bias is None else found.add_(self.bias)
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class Block:
    """One decoder block."""

    before_attention: Tensor
    qkv: Matrix
    out: Matrix
    before_mlp: Tensor
    gate_up: Matrix
    down: Matrix

    @classmethod
    def of(cls, layer: Any) -> Block:
        """Copy a block of the model."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(layer.input_layernorm.weight, Matrix(attention.q_proj, attention.k_proj, attention.v_proj),
                   Matrix(attention.o_proj), layer.post_attention_layernorm.weight,
                   Matrix(mlp.gate_proj, mlp.up_proj), Matrix(mlp.down_proj))


class Decoder:
    """The copy of a model under its active adapter. It is of no use once the weights have changed."""

    def __init__(self, model: nn.Module) -> None:
        core: Any = backbone(model)
        config = core.config
        with torch.inference_mode():
            self.blocks = [Block.of(layer) for layer in core.layers]
            self.head = Matrix(causal_lm(model).get_output_embeddings())
        self.embed, self.rotary, self.norm = core.embed_tokens, core.rotary_emb, core.norm.weight
        self.heads, self.shared = config.num_attention_heads, config.num_key_value_heads
        self.epsilon, self.scale = config.rms_norm_eps, core.layers[0].self_attn.scaling

    def begin(self, read: Read, of_row: Tensor, steps: int) -> Continuation:
        """Continue prompts by at most `steps` tokens; `of_row` is the place of each row's prompt."""
        return _Rows(self, read, of_row, steps)

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply a norm by the root mean square."""
        return F.rms_norm(x, x.shape[-1:], weight, self.epsilon)


class _Rows:
    """Rows of a decoder, with memory for the keys and values of all their positions."""

    def __init__(self, decoder: Decoder, read: Read, row: Tensor, steps: int) -> None:
        self.decoder, self.hidden, attended = decoder, read.last[row], read.attended[row]
        self.end = attended.shape[1]
        self.bias = torch.zeros(len(row), 1, 1, self.end + steps, dtype=self.hidden.dtype)
        self.bias[:, 0, 0, :self.end].masked_fill_(~attended, float("-inf"))
        self.positions = attended.sum(1)
        self.memory = []
        layers: Any = read.cache.layers
        for layer in layers:
            pair = tuple(torch.empty(len(row), part.shape[1], self.end + steps, part.shape[3], dtype=part.dtype)
                         for part in (layer.keys, layer.values))
            for part, of_prompts in zip(pair, (layer.keys, layer.values), strict=True):
                part[:, :, :self.end] = of_prompts[row]
            self.memory.append(pair)

    def logits(self) -> Tensor:
        """Compute the logits of each row's next token."""
        return self.decoder.head(self.hidden)

    def take(self, tokens: Tensor) -> None:
        """Run the blocks over one more position."""
        decoder = self.decoder
        x = decoder.embed(tokens)
        cos, sin = decoder.rotary(x[:, None], self.positions[:, None])  # (rows, 1, width)
        for block, memory in zip(decoder.blocks, self.memory, strict=True):
            x = x + self._attention(block, memory, decoder.normed(x, block.before_attention), cos, sin)
            gate, up = block.gate_up(decoder.normed(x, block.before_mlp)).chunk(2, -1)
            x = x + block.down(F.silu(gate) * up)
        self.hidden = decoder.normed(x, decoder.norm)
        self.positions, self.end = self.positions + 1, self.end + 1

    def _attention(self, block: Block, memory: tuple[Tensor, ...], x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, shared = self.decoder.heads, self.decoder.shared
        keys, values = memory
        mixed = block.qkv(x).view(len(x), heads + 2 * shared, -1)
        turned = _rotated(mixed[:, :heads + shared], cos, sin)
        keys[:, :, self.end], values[:, :, self.end] = turned[:, heads:], mixed[:, heads + shared:]
        query = turned[:, :heads].reshape(len(x), shared, heads // shared, -1)  # the queries of a head as positions
        found = F.scaled_dot_product_attention(
            query, keys[:, :, :self.end + 1], values[:, :, :self.end + 1], scale=self.decoder.scale,
            attn_mask=self.bias[..., :self.end + 1].expand(-1, 1, heads // shared, -1))
        return block.out(found.reshape(len(x), -1))

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in the memory that there is."""
        for part in (part for pair in self.memory for part in pair):
            part[:len(rows), :, :self.end] = part[rows, :, :self.end]
        self.memory = [tuple(part[:len(rows)] for part in pair) for pair in self.memory]
        self.hidden, self.bias, self.positions = self.hidden[rows], self.bias[rows], self.positions[rows]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to (rows, heads, width); cos and sin are (rows, 1, width)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _linear(layer: nn.Module) -> Any:
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def decoder_for(model: nn.Module, *, prove: bool = True) -> tuple[Decoder | None, str]:
    """Return a decoder that agrees with the model, or None with the reason, which is empty on a GPU."""
    if any(weights.device.type != "cpu" for weights in model.parameters()):
        return None, ""
    if reason := _against(model):
        return None, reason
    try:
        decoder = Decoder(model)
        reason = fault(model, decoder) if prove else ""
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        return None, f"it does not run here: {first_line(error)}"
    return (None, reason) if reason else (decoder, "")


def acts_inside(model: nn.Module) -> bool:
    """Whether a hook reads or changes a layer of the model, or a block is wrapped, as defenses and steering do."""
    core: Any = backbone(model)
    return any(not hasattr(layer, "self_attn") for layer in core.layers) or any(
        part._forward_hooks or part._forward_pre_hooks for part in core.layers.modules())


def _against(model: nn.Module) -> str:
    causal, weights = causal_lm(model), list(model.parameters())
    config = causal.config
    if type(causal).__name__ not in KNOWN or config.hidden_act != "silu":
        return f"it knows {' and '.join(KNOWN)}, and the model is {type(causal).__name__}"
    if {one.dtype for one in backbone(model).parameters()} - {torch.float32, torch.bfloat16}:
        return "the weights are neither in float32 nor in bfloat16"
    if partial_attention(model):
        return "some layers attend to a window only"
    if sum(one.numel() * one.element_size() for one in weights) > LARGEST:
        return f"a copy of the weights would take more than {LARGEST / 2**30:.0f} GiB"
    if any(isinstance(part, LoraLayer) and (part.merged or any(part.use_dora.values())) for part in model.modules()):
        return "the adapter is no plain LoRA adapter"
    return "a hook acts in the model" if acts_inside(model) else ""


@torch.inference_mode()
def fault(model: nn.Module, decoder: Decoder) -> str:
    """Return how the decoder's logits differ from those of the model's forward pass; empty if by rounding only.

    Two random prompts of different lengths are continued by given tokens, together. Allowed is what the kernel of
    packed rows is allowed, or twice by what the model's own passes with a cache differ.
    """
    made, words = torch.Generator().manual_seed(0), causal_lm(model).config.vocab_size
    rows = [torch.randint(0, words, (length + TAIL,), generator=made) for length in LENGTHS]
    whole = [head(model)(last_hidden(model, row[None], None)[0, -TAIL - 1:-1]) for row in rows]
    expected, prompts = torch.stack(whole, dim=1), [row[:-TAIL].tolist() for row in rows]
    tails, each = torch.stack([row[-TAIL:] for row in rows]), torch.arange(len(rows))
    usual = _apart(ByModel(model, read_prompts(model, prompts), each), tails, expected)
    found = _apart(decoder.begin(read_prompts(model, prompts), each, TAIL), tails, expected)
    allowed = max(TOLERANCE[expected.dtype], TIMES * usual)
    return "" if found <= allowed else (
        f"its logits differ from the model's by {found:.2g} of their norm, where {allowed:.2g} is allowed")


def _apart(rows: Continuation, tails: Tensor, expected: Tensor) -> float:
    """Return the distance of the logits of all positions, as a share of their norm.

    In bfloat16 rounding alone moves single positions by 2 to 12% of their norm, and all together by 1 to 2%.
    """
    found = []
    for place in range(TAIL):
        found.append(rows.logits())
        if place + 1 < TAIL:
            rows.take(tails[:, place])
    return float((torch.stack(found).float() - expected.float()).norm() / expected.float().norm())
