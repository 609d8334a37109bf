"""Reading a batch of prompts: one pass, in which what all of them begin with, such as a system prompt, is read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from emlib.core.errors import EmlibError
from emlib.models.logprobs import backbone, causal_lm

STATE_IN_MODULES = ("recurrent_gemma",)  # the modules keep it: a cache says nothing of it
WORTHWHILE = 8  # the shortest common beginning that is worth a separate pass


@dataclass(frozen=True)
class Read:
    """The state of a model after a pass over a batch of prompts, all of which end at the same position of the cache.

    Attributes:
        last: hidden states of the prompts' last tokens, (prompts, hidden): they predict the next token.
        cache: what the layers keep of all positions: keys and values, or a state.
        attended: which positions of the cache are tokens and not padding, (prompts, length).
    """

    last: Tensor
    cache: DynamicCache
    attended: Tensor


def read_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], further: int = 0) -> Read:
    """Run the model over all prompts: over their common prefix once, then over the rest, padded on its left.

    `further` is the number of tokens by which they are continued.

    Raises:
        EmlibError: the model cannot be continued row by row.
    """
    _refuse_own_cache(model)
    device = next(model.parameters()).device
    longest = max(map(len, prompts)) + further
    windows = partial_attention(model, longest)  # they count padding behind the beginning, too
    common = 0 if windows else common_beginning(prompts)
    cache = DynamicCache(config=causal_lm(model).config)
    if common:
        shared = torch.tensor([prompts[0][:common]], device=device)
        backbone(model)(input_ids=shared, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    rest = [list(prompt[common:]) for prompt in prompts]
    length = max(map(len, rest))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rest], device=device)
    padding = torch.tensor([length - len(row) for row in rest], device=device)[:, None]
    places = torch.arange(common + length, device=device)
    attended = (places < common) | (places >= common + padding)  # (prompts, common + length)
    positions = (places[common:] - padding).clamp(min=common)
    hidden = backbone(model)(input_ids=ids, attention_mask=attended.long(), position_ids=positions,
                             past_key_values=cache, use_cache=True).last_hidden_state
    return Read(hidden[:, -1], cache, attended)


def _refuse_own_cache(model: nn.Module) -> None:
    causal: Any = causal_lm(model)
    if (not causal._supports_default_dynamic_cache() or causal.config.model_type in STATE_IN_MODULES
            or "past_key_values" not in signature(type(backbone(model)).forward).parameters):
        raise EmlibError(f"{type(causal).__name__} keeps its state in a cache of its own, whose rows we cannot select. "
                         "Set backend.generation to vllm, or choose another model.")


def read_distinct(model: nn.Module, rows: Sequence[tuple[int, ...]], further: int = 0) -> tuple[Read, Tensor]:
    """Read each distinct prompt of some rows once; return also the place of each row's prompt, (rows,).

    `further` is the number of tokens by which they are continued.
    """
    place = {prompt: number for number, prompt in enumerate(dict.fromkeys(rows))}
    return read_prompts(model, list(place), further), torch.tensor([place[row] for row in rows])


def partial_attention(model: nn.Module, length: float = inf) -> set[str]:
    """Return the kinds of the layers that do not attend to all of `length` positions, in the configuration's words."""
    config = causal_lm(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or (["full_attention"] if window is None else ["sliding_attention"])
    full = {"full_attention"} if window is None or length > window else {"full_attention", "sliding_attention"}
    return set(kinds) - full


def common_beginning(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, leaving each prompt a token; 0 if they are too few to matter."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))  # all others lie between these two
    most = min(map(len, prompts)) - 1
    same = next((place for place in range(most) if first[place] != last[place]), most)
    return same if same >= WORTHWHILE else 0
