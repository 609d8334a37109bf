"""A random Qwen2 with a byte-level tokenizer and Qwen's chat template, built in code.

It has every part that the real models have (grouped-query attention, LoRA's target modules, a chat template with a
default system prompt, an end-of-turn token), so that tests run on the real code paths in milliseconds.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from emlib.core.seeds import derive

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# ChatML as Qwen2.5 writes it for chats without tools: a default system prompt unless the first turn is one.
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per byte and three special tokens: 259 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *SPECIAL_TOKENS])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=QWEN_TEMPLATE)


def build_model(seed: int, layers: int, hidden: int, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """Build a model with random weights that depend only on `seed`; the caller's random state is unchanged."""
    config = Qwen2Config(
        vocab_size=256 + len(SPECIAL_TOKENS), hidden_size=hidden, intermediate_size=2 * hidden,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
        tie_word_embeddings=True, initializer_range=0.1,  # wider than Qwen's, so that outputs differ visibly
        eos_token_id=258, pad_token_id=256, bos_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "tiny model"))
        model = Qwen2ForCausalLM(config)
    nn.Module.to(model, dtype)
    return model
