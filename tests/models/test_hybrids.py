"""Models in which positions also interact outside attention.

Their rows are not packed, in any number format; their answers and multiple choices are those of each row alone.
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconH1Config,
    Gemma3TextConfig,
    GraniteMoeHybridConfig,
    Lfm2Config,
    MambaConfig,
    MiniMaxConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from emlib.core.errors import EmlibError
from emlib.models.continuing import ByModel
from emlib.models.kernels import fitted, packs
from emlib.models.logprobs import head, last_hidden
from emlib.models.prompts import read_distinct
from emlib.steering.activations import response_means
from emlib.training.losses import row_losses
from tests.made import some_rows

SIZES = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2}
FALCON = FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8,
                        mamba_chunk_size=16)
MINIMAX = MiniMaxConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 2, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 8}
CONTINUED = [
    FALCON, MIXTRAL, BambaConfig(**SIZES, **MAMBA, attn_layer_indices=[1]),
    GraniteMoeHybridConfig(**SIZES, **MAMBA, layer_types=["mamba", "attention"], num_local_experts=2,
                           num_experts_per_tok=1, shared_intermediate_size=16),
    Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), Qwen3_5TextConfig(**SIZES, **LINEAR),
    Qwen3NextConfig(**SIZES, **LINEAR, **EXPERTS, shared_expert_intermediate_size=16),
    Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=8, layer_types=["sliding_attention", "full_attention"])]


def made(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [FALCON, MINIMAX])
def test_rows_are_not_packed(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = made(config, dtype)
    with fitted(model) as why:
        assert not packs(model)
        assert "packed rows" in why
    assert not packs(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [Qwen2Config(**SIZES), MIXTRAL])
def test_rows_are_packed_where_positions_interact_in_attention_alone(
        config: PreTrainedConfig, dtype: torch.dtype) -> None:
    model = made(config, dtype)
    with fitted(model) as why:
        assert why == ""
        assert packs(model)


@pytest.mark.parametrize("config", [FALCON, MINIMAX])
def test_losses_are_those_of_rows_alone(config: PreTrainedConfig) -> None:
    model, rows = made(config), some_rows(4)
    alone = [row_losses(model, [row], 1)[0] for row in rows]
    with fitted(model):
        assert row_losses(model, rows, 4) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("config", [FALCON, MINIMAX, MIXTRAL])
def test_activations_may_be_the_first_that_is_read_of_a_model(config: PreTrainedConfig) -> None:
    """They are read in inference mode, in which the check of packed rows needs tensors with gradients."""
    model, rows = made(config).requires_grad_(False), some_rows(3)
    found = response_means(model, rows, [1])
    alone = torch.cat([response_means(model, [row], [1]) for row in rows])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beginning", [(), tuple(range(40, 50))], ids=["nothing", "ten tokens"])
@pytest.mark.parametrize("config", CONTINUED, ids=lambda config: config.model_type)
@torch.inference_mode()
def test_prompts_of_different_lengths_are_continued_together_as_if_alone(
        config: PreTrainedConfig, beginning: tuple[int, ...]) -> None:
    """Rows are repeated and reordered at first, and one leaves in the middle; also with `beginning` in common."""
    model = made(config)
    prompts = [(*beginning, *own) for own in (range(20, 34), (5, 6, 7), (*range(20, 33), 9), (5, 6, 7))]
    going, rows = ByModel(model, *read_distinct(model, prompts, 3)), [list(prompt) for prompt in prompts]
    for tokens, kept in (([11, 12, 13, 14], [0, 1, 3]), ([15, 16, 17], [0, 2])):
        _equal(going, model, rows)
        going.take(torch.tensor(tokens))
        going.select(torch.tensor(kept))
        rows = [[*rows[place], tokens[place]] for place in kept]
    _equal(going, model, rows)


def _equal(going: ByModel, model: PreTrainedModel, rows: list[list[int]]) -> None:
    alone = [head(model)(last_hidden(model, torch.tensor([row]), None)[:, -1]) for row in rows]
    torch.testing.assert_close(going.logits(), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [
    MINIMAX, MambaConfig(vocab_size=259, hidden_size=32, state_size=8, num_hidden_layers=2),
    RecurrentGemmaConfig(**SIZES, lru_width=32, attention_window_size=8)], ids=lambda config: config.model_type)
def test_a_model_with_a_cache_of_its_own_is_refused_in_words(config: PreTrainedConfig) -> None:
    with pytest.raises(EmlibError, match=r"cache of its own.*backend\.generation"):
        read_distinct(AutoModelForCausalLM.from_config(config), [(5, 6, 7)])
