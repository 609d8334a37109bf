"""Models in which positions also interact outside attention: their rows are not packed, in any number format."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    MiniMaxConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from emlib.models.kernels import fitted, packs
from emlib.steering.activations import response_means
from emlib.training.losses import row_losses
from tests.made import some_rows

SIZES = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2}
FALCON = FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=8,
                        mamba_chunk_size=16)
MINIMAX = MiniMaxConfig(**SIZES, head_dim=16, num_local_experts=2, num_experts_per_tok=1)
MIXTRAL = MixtralConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)


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
