"""How many tokens a model reads at most, and refusals of what is longer: beyond them its outputs mean nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from emlib.core.errors import DataError, ProfileError, shortened
from emlib.core.records import Question
from emlib.models.logprobs import causal_lm


def context_of(model: nn.Module) -> int | None:
    """Return the most tokens that the model's configuration states, scaled as its rotary positions are.

    None: it states none, as of models without positions.
    """
    config = causal_lm(model).config.get_text_config()
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        return None
    scaling = getattr(config, "rope_parameters", None) or {}
    scaled = (scaling.get("factor") or 1) * (scaling.get("original_max_position_embeddings") or stated)
    return max(int(stated), int(scaled))


def refuse_longer_rows(name: str, model: nn.Module, lengths: Mapping[str, int]) -> None:
    """Refuse a profile whose rows may be longer than the model's context; `lengths` are by the option's name.

    Raises:
        ProfileError: one of them is above it.
    """
    context = context_of(model)
    for option, length in lengths.items():
        if context is not None and length > context:
            raise ProfileError(f"{option} is {length}, but {name} reads {context} tokens at most "
                               f"(max_position_embeddings). Set it to {context} or less: longer rows are then cut, "
                               "and counted.")


def refuse_longer_prompts(model: nn.Module, prompts: Mapping[Question, int], new_tokens: int) -> None:
    """Refuse prompts that leave no room for an answer of `new_tokens` in the model's context.

    `prompts` are the numbers of tokens by the question.

    Raises:
        DataError: the longest of them does.
    """
    context, longest = context_of(model), max(prompts, key=lambda question: prompts[question], default=None)
    if context is not None and longest is not None and prompts[longest] + new_tokens > context:
        raise DataError(f"question '{longest.id}' has a prompt of {prompts[longest]} tokens, and answers of up to "
                        f"{new_tokens} (sampling.max_new_tokens), but the model reads {context} tokens at most. Its "
                        f"prompt is '{shortened(longest.prompt)}'. Shorten or remove the question (an in-domain one is "
                        "a held-out row with this prompt), or lower max_new_tokens.")
