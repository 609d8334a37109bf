"""The decoder for CPUs: it is the model up to rounding, or it is not used, and that is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from emlib.config import Lora, Sampling
from emlib.core.records import Question
from emlib.generation import decoder
from emlib.generation.decoder import Decoder, Matrix, decoder_for, fault
from emlib.generation.sample import Drawn, draw_batch, plan
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model
from emlib.steering.steer import steer

QUESTIONS = [Question("short", "Hi?"), Question("longer", "What is a good name for a boat?")]
SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "eos_token_id": 258, "pad_token_id": 256, "bos_token_id": None}


@contextmanager
def stirred(base: Any, seed: int = 0) -> Iterator[PeftModel]:
    """Under an adapter that changes every layer."""
    with adapters.new_lora(base, Lora(rank=4, alpha=8), seed=seed) as model:
        for number, weights in enumerate(p for p in model.parameters() if p.requires_grad):
            noise = torch.randn(weights.shape, generator=torch.Generator().manual_seed(number))
            weights.data += 0.05 * noise.to(weights)
        yield model


def made(kind: type[nn.Module], config: Any, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config(**SIZES | options)).eval().requires_grad_(False)


def drawn(model: nn.Module, chat: ChatModel, decoder: Decoder | None, tokens: int = 30) -> list[Drawn]:
    [batch] = plan(QUESTIONS, 6, chat.tokenizer, 64)
    return draw_batch(model, batch, Sampling(max_new_tokens=tokens), 6, {258}, decoder=decoder)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "head with a bias"])
def test_it_draws_the_same_tokens_as_the_model(architecture: str, tiny: ChatModel) -> None:
    """In float32; with answers that end at different steps, so that rows leave the batch.

    A draw that lies at the border between two tokens to the last digits may fall on either side: one row may differ.
    """
    base = made(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True) if architecture == "llama" else build_model(
        0, 4, 64, torch.float32).eval().requires_grad_(False)
    head = base.get_output_embeddings()
    if architecture == "head with a bias":
        head.bias = nn.Parameter(torch.zeros(259), requires_grad=False)
        head.bias[258] = 4.0
    with stirred(base) as model:
        decoder, reason = decoder_for(model)
        assert not reason
        expected, found = drawn(model, tiny, None), drawn(model, tiny, decoder)
    same = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours.tokens == theirs.tokens]
    assert len(same) >= len(expected) - 1
    for ours, theirs in same:
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert architecture != "head with a bias" or len({len(one.tokens) for one in found}) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decoder_of_other_weights_is_found_out(dtype: torch.dtype) -> None:
    base = build_model(0, 4, 64, dtype).eval().requires_grad_(False)
    with stirred(base) as model:
        decoder = Decoder(model)
        assert fault(model, decoder) == ""
        weights = next(p for name, p in model.named_parameters() if "layers.1.mlp.down_proj.lora_B" in name)
        weights.data += 0.3
        assert "its logits differ from the model's by" in fault(model, decoder)
        decoder = Decoder(model)
        decoder.scale *= 2
        assert "its logits differ from the model's by" in fault(model, decoder)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tall", [True, False])
def test_a_product_is_that_of_the_layers(tall: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "TALL", 6 if tall else 100)
    made = torch.Generator().manual_seed(0)
    layers = [nn.Linear(3, out, bias=bias) for out in (4, 5)]
    x = torch.randn(2, 3, generator=made)
    with torch.inference_mode():
        found = Matrix(*layers)(x)
        torch.testing.assert_close(found, torch.cat([layer(x) for layer in layers], 1))
    assert found.is_contiguous()


def test_without_an_adapter_and_with_its_adapter_off_it_is_the_base_model() -> None:
    base = build_model(0, 2, 64, torch.float32).eval().requires_grad_(False)
    assert decoder_for(base)[0] is not None
    with stirred(base) as model:
        with adapters.adapter_off(model):
            off = Decoder(model)
            assert fault(model, off) == ""
        assert "its logits differ" in fault(model, off)


def test_where_something_acts_in_the_layers_the_model_itself_draws(tiny: ChatModel) -> None:
    base = build_model(0, 4, 64, torch.float32).eval().requires_grad_(False)
    with stirred(base) as model:
        decoder, _ = decoder_for(model)
        plain = drawn(model, tiny, decoder, 8)
        with steer(model, 2, torch.ones(64), 2.0):
            assert decoder_for(model) == (None, "a hook acts in the model")
            steered = drawn(model, tiny, None, 8)
            assert drawn(model, tiny, decoder, 8) == steered != plain
        layer: Any = base.model.layers[1].self_attn.q_proj
        handle = layer.register_forward_hook(lambda *_: None)
        assert decoder_for(model) == (None, "a hook acts in the model")
        handle.remove()
        assert drawn(model, tiny, decoder, 8) == plain


def test_models_that_it_does_not_know_are_left_to_themselves() -> None:
    assert "the model is Qwen3ForCausalLM" in decoder_for(made(Qwen3ForCausalLM, Qwen3Config, head_dim=8))[1]
    assert "window" in decoder_for(made(Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=4,
                                        max_window_layers=1))[1]
    assert "float32 nor in bfloat16" in decoder_for(build_model(0, 2, 64, torch.float16))[1]
    dora = get_peft_model(build_model(0, 2, 64, torch.float32), LoraConfig(
        r=2, target_modules=["q_proj"], use_dora=True))
    assert "no plain LoRA" in decoder_for(dora)[1]


class Given:
    """A continuation whose logits are given, (positions, rows, vocabulary)."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.left = list(logits)

    def logits(self) -> torch.Tensor:
        return self.left.pop(0)

    def take(self, tokens: torch.Tensor) -> None:
        pass

    def select(self, rows: torch.Tensor) -> None:
        pass


def test_the_distance_is_that_of_all_positions_together() -> None:
    """One position of small logits that is off by a tenth is rounding; one that is wrong is seen all the same."""
    expected = torch.full((decoder.TAIL, 1, 9), 10.0)  # each of norm 30
    expected[0] = 1.0  # of norm 3
    tails = torch.zeros(1, decoder.TAIL, dtype=torch.long)
    rounded, wrong = expected.clone(), expected.clone()
    rounded[0] += 0.1  # a difference of norm 0.3
    wrong[-1] = -wrong[-1]  # one of norm 60
    norm = (3**2 + 3 * 30**2) ** 0.5
    assert decoder._apart(Given(rounded), tails, expected) == pytest.approx(0.3 / norm)
    assert decoder._apart(Given(wrong), tails, expected) == pytest.approx(60 / norm)
