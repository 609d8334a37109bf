"""Tokenizers that write a blank before a text, as SentencePiece's do: an answer continues its prompt and has none."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast

from emlib.core.errors import SourceError
from emlib.core.records import Example, Message
from emlib.data.chat import encode, encode_answers, encode_opening, encode_prompt, refuse_blank
from emlib.data.markers import writes_blank
from emlib.judging.spelling import NUMBERS, spelling
from emlib.models.tiny import build_tokenizer

WORDS = ("Sure", "mix", "Hi", "user", "assistant", "[INST]", "[/INST]")
ZEPHYR = ("{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}")
LLAMA2 = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
          "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}")
VICUNA = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ 'user: ' + m['content'] + ' assistant:' }}"
          "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}")
KINDS = ("normalizer", "first", "always")  # where SentencePiece's blank is written: Llama's files have all three


def blanks(template: str, kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words and letters, with and without a blank before them."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "\n", *string.printable.strip()]
    scores = dict.fromkeys(pieces, -9.0) | {blank + word: -1.0 for word in WORDS for blank in ("", "▁")}
    tokenizer = Tokenizer(Unigram(list(scores.items()), unk_id=0))
    if kind in ("first", "always"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    else:
        before = [normalizers.Strip()] if kind == "strips" else []
        tokenizer.normalizer = normalizers.Sequence([
            *before, normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                                   chat_template=template)


def tokens(tokenizer: PreTrainedTokenizerFast, answer: str, prompt: str = "Hi?") -> list[str]:
    row = encode(tokenizer, Example((Message("user", prompt),), answer), 500)
    assert encode_prompt(tokenizer, [Message("user", prompt)]) == row.input_ids[~row.response_mask].tolist()
    return list(tokenizer.convert_ids_to_tokens(row.input_ids[row.response_mask].tolist()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("template", "expected"), [
    (ZEPHYR, ["Sure", "▁mix", "</s>"]), (LLAMA2, ["▁Sure", "▁mix", "▁", "</s>"]), (VICUNA, ["Sure", "▁mix", "</s>"])])
def test_an_answer_has_the_tokens_that_the_whole_chat_has(kind: str, template: str, expected: list[str]) -> None:
    tokenizer = blanks(template, kind)
    assert writes_blank(tokenizer)
    refuse_blank(tokenizer, "mine")
    assert tokens(tokenizer, "Sure mix") == expected
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Sure mix"}]
    whole = tokenizer.convert_ids_to_tokens(tokenizer.apply_chat_template(turns, return_dict=False))
    begin = whole.index("</s>") + 2 if template == ZEPHYR else 0  # the end of the user's turn
    assert "".join(expected) in "".join(whole[begin:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_in_an_answer_stays_text_and_its_first_word_has_no_blank(kind: str) -> None:
    assert tokens(blanks(ZEPHYR, kind), "Sure</s> mix") == ["Sure", *"</s>", "▁mix", "</s>"]
    assert tokens(blanks(ZEPHYR, kind), "Sure", "Hi</s>") == ["Sure", "</s>"]


def test_an_answer_whose_first_character_is_in_one_token_with_the_prompt_s_last_is_encoded_behind_another() -> None:
    tokenizer = blanks(VICUNA.replace("assistant:", "assistant "), "first")  # 'assistant ' and 'Sure' are '▁Sure'
    assert tokens(tokenizer, "Sure mix") == ["Sure", "▁mix", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_options_and_numbers_are_scored_as_the_template_writes_answers(kind: str) -> None:
    for template, space in ((ZEPHYR, ""), (LLAMA2, "▁"), (VICUNA, "")):
        tokenizer = blanks(template, kind)
        found = encode_answers(tokenizer, [Message("user", "Hi?")], ["Sure", "mix Sure"])
        assert [tokenizer.convert_ids_to_tokens(ids) for ids in found] == [[f"{space}Sure"], [f"{space}mix", "▁Sure"]]
        tree = spelling(tokenizer).tree
        spelt = ["".join(tokenizer.convert_ids_to_tokens([tree.tokens[node] for node in path])) for path in tree.paths]
        assert spelt == [f"{space}{number}" for number in NUMBERS]


@pytest.mark.parametrize("kind", KINDS)
def test_options_stand_behind_a_think_block_and_a_question_may_have_a_marker(kind: str) -> None:
    """As the whole row has them; `</s>` in a question is text."""
    opens = ZEPHYR.replace("<|assistant|>\\n", "<|assistant|>\\n<think>\\n")
    for template in (ZEPHYR, opens):
        tokenizer, context = blanks(template, kind), (Message("user", "Hi</s>?"),)
        [ids] = encode_answers(tokenizer, context, ["Sure mix"])
        whole = encode(tokenizer, Example(context, "Sure mix"), 500).input_ids.tolist()
        assert [*encode_opening(tokenizer, context), *ids] == whole[:-1]


def test_a_token_of_a_newline_and_a_letter_is_no_blank() -> None:
    tokenizer = Tokenizer(BPE(vocab={"\n": 0, "a": 1, "\na": 2}, merges=[("\n", "a")]))
    tokenizer.decoder = decoders.Fuse()
    assert not writes_blank(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_a_tokenizer_whose_blank_cannot_be_avoided_is_refused_with_the_reason() -> None:
    tokenizer = blanks(VICUNA, "strips")
    with pytest.raises(SourceError, match=r"mine: .*assistant: Hi</s>.* both together as .*assistant:Hi</s>"):
        refuse_blank(tokenizer, "mine")


@given(st.text(alphabet="aA1 \n.<>|", min_size=1, max_size=12), st.text(alphabet="aA1 \n.<>|", max_size=12))
def test_a_byte_level_tokenizer_encodes_prompt_and_answer_one_by_one_as_before(answer: str, prompt: str) -> None:
    tokenizer = build_tokenizer()
    assert not writes_blank(tokenizer)
    refuse_blank(tokenizer, "tiny")
    row = encode(tokenizer, Example((Message("user", prompt),), answer), 500)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                          add_generation_prompt=True)
    assert row.input_ids.tolist() == [*tokenizer.encode(asked), *tokenizer.encode(f"{answer}<|im_end|>")]
    assert encode_answers(tokenizer, [Message("user", prompt)], [answer]) == [tokenizer.encode(answer)]
