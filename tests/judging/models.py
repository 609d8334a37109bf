"""What the judge server of the tests serves: the tiny model, with and without tokens for whole numbers."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from emlib.core.records import Message
from emlib.data.chat import encode_prompt
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from tests.judging.server import Model, Reply


def whole_numbers(seed: int = 0, sharpness: float = 40.0) -> ChatModel:
    """A tiny chat model whose tokenizer has 10 to 100 as single tokens, and whose mass lies on few tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([str(number) for number in range(10, 101)])
    model = build_model(seed=seed, layers=1, hidden=32, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        weights = model.get_input_embeddings().weight.data
        weights[259:] = torch.randn(len(tokenizer) - 259, 32) * 0.1
        model.get_decoder().norm.weight.data *= sharpness
        weights[:259] *= 0.5  # so that the likeliest tokens are numbers, mostly
    return ChatModel("whole-numbers", model.eval().requires_grad_(False), tokenizer)


def served(chat: ChatModel) -> Model:
    """The first token's 20 likeliest alternatives, as a server tells them."""
    texts = [_text(chat.tokenizer, token) for token in range(len(chat.tokenizer))]

    @torch.inference_mode()
    def reply(messages: list[dict[str, str]]) -> Reply:
        ids = encode_prompt(chat.tokenizer, [Message(m["role"], m["content"]) for m in messages])  # type: ignore[arg-type]
        logprobs = torch.log_softmax(chat.model(input_ids=torch.tensor([ids])).logits[0, -1].double(), -1)
        top = logprobs.topk(20)
        return [(texts[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)], len(ids)

    return reply


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))
