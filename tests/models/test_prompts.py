"""Prompts that are read together: each as if alone, with what they begin with read once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from emlib.core.errors import EmlibError
from emlib.generation.decoder import Decoder
from emlib.models.continuing import ByModel
from emlib.models.load import ChatModel
from emlib.models.logprobs import backbone, head
from emlib.models.prompts import read_distinct, read_prompts
from emlib.models.trees import read_tree, tree_of

SYSTEM = list(range(20, 32))  # twelve tokens that all prompts begin with
PROMPTS = [[*SYSTEM, 5], [*SYSTEM, 7, 8, 9, 10], [*SYSTEM, 5, 6], [*SYSTEM, 40, 41, 42, 43, 44, 45]]


def alone(model: Any, tokens: list[int]) -> torch.Tensor:
    """The logits after a text that is read by itself, without a cache."""
    with torch.inference_mode():
        hidden = backbone(model)(input_ids=torch.tensor([tokens])).last_hidden_state
        return head(model)(hidden[0, -1])


@pytest.mark.parametrize("prompts", [PROMPTS, [prompt[7:] for prompt in PROMPTS], PROMPTS[:1]],
                         ids=["a system prompt", "too little in common", "one prompt"])
@torch.inference_mode()
def test_each_prompt_is_read_and_continued_as_if_alone(prompts: list[list[int]], tiny: ChatModel) -> None:
    model, rows = tiny.model, [tuple(prompt) for prompt in (*prompts, prompts[0])]
    for make in (lambda read, of_row: ByModel(model, read, of_row),
                 lambda read, of_row: Decoder(model).begin(read, of_row, 2)):
        going = make(*read_distinct(model, rows))
        torch.testing.assert_close(going.logits(), torch.stack([alone(model, list(row)) for row in rows]),
                                   rtol=1e-4, atol=1e-4)
        going.take(torch.full((len(rows),), 11))
        torch.testing.assert_close(going.logits(), torch.stack([alone(model, [*row, 11]) for row in rows]),
                                   rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_what_prompts_have_in_common_passes_the_model_once(tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    core = backbone(tiny.model)
    original = core.forward
    monkeypatch.setattr(core, "forward", lambda *a, **k: seen.append(tuple(k["input_ids"].shape)) or original(*a, **k))
    read = read_prompts(tiny.model, PROMPTS)
    assert seen == [(1, 12), (4, 6)]
    assert read.attended.sum(1).tolist() == [13, 16, 14, 18]


@torch.inference_mode()
def test_layers_that_see_a_window_read_every_prompt_whole() -> None:
    """Padding behind a common prefix would move the prefix out of the window."""
    config = MistralConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, sliding_window=16,
                           num_attention_heads=2, num_key_value_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MistralForCausalLM(config).eval()
    read, of_row = read_distinct(model, [tuple(prompt) for prompt in PROMPTS])
    torch.testing.assert_close(ByModel(model, read, of_row).logits(), torch.stack([alone(model, p) for p in PROMPTS]),
                               rtol=1e-4, atol=1e-4)
    with pytest.raises(EmlibError, match="sliding_attention"):
        read_tree(model, read, tree_of([[1], [2]]))
    fitting = [(*SYSTEM, 5), (*SYSTEM, 7, 8, 9)]  # within the window of 16, but not with three more tokens
    going = ByModel(model, *read_distinct(model, fitting, 3))
    for _ in range(3):
        going.take(torch.full((2,), 11))
    expected = torch.stack([alone(model, [*prompt, 11, 11, 11]) for prompt in fitting])
    torch.testing.assert_close(going.logits(), expected, rtol=1e-4, atol=1e-4)
    short = read_prompts(model, [[5, 6, 7]])  # within the window
    assert read_tree(model, short, tree_of([[1], [2]])).shape == (1, 2, 16)
