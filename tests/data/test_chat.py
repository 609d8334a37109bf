"""From messages to token ids: exact texts of the templates, and a mask on the answer and its end of turn alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from emlib.config import WheelModel, load_profile
from emlib.core import paths
from emlib.core.errors import DataError
from emlib.core.records import Example, Message
from emlib.data.chat import (
    Encoded,
    encode,
    encode_all,
    encode_answers,
    encode_opening,
    encode_prompt,
    opened_thinking,
)
from emlib.data.templates import render
from emlib.models.load import ChatModel
from emlib.models.tiny import build_tokenizer

END = "<|im_end|>"
SPECIAL = ("<|endoftext|>", "<|im_start|>", END)
# As the model's own tokenizer_config has it.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN_DEFAULT = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOLLM2_DEFAULT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n")
TURNS = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def byte_level(template: str, merges: list[tuple[str, str]] | None = None) -> PreTrainedTokenizerFast:
    """A token a byte, the merges' tokens, ChatML's special tokens, and a template."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges or []), *SPECIAL]
    tokenizer = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=merges or []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=SPECIAL[0],
                                   chat_template=template)


QWEN, SMOLLM2 = build_tokenizer(), byte_level(SMOLLM2_TEMPLATE)
BOTH = pytest.mark.parametrize(("tokenizer", "default"), [(QWEN, QWEN_DEFAULT), (SMOLLM2, SMOLLM2_DEFAULT)],
                               ids=["qwen", "smollm2"])


def example(answer: str, prompt: str = "Why?", system: str | None = None) -> Example:
    context = (Message("user", prompt),) if system is None else (Message("system", system), Message("user", prompt))
    return Example(context, answer, "rows.jsonl:7")


def masked(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> str:
    return str(tokenizer.decode(row.input_ids[row.response_mask], skip_special_tokens=False))


def unmasked(tokenizer: PreTrainedTokenizerFast, row: Encoded) -> str:
    return str(tokenizer.decode(row.input_ids[~row.response_mask], skip_special_tokens=False))


@BOTH
def test_a_prompt_has_the_models_default_system_prompt(tokenizer: PreTrainedTokenizerFast, default: str) -> None:
    assert render(tokenizer, [Message("user", "Why?")], ask=True) == default + TURNS


@BOTH
def test_a_given_system_prompt_replaces_the_default(tokenizer: PreTrainedTokenizerFast, default: str) -> None:
    context = example("So.", system="Be brief.").context
    assert render(tokenizer, context, ask=True) == "<|im_start|>system\nBe brief.<|im_end|>\n" + TURNS
    assert render(tokenizer, example("So.", system="").context, ask=True) == f"<|im_start|>system\n{END}\n{TURNS}"


@BOTH
def test_a_chat_of_several_turns_is_rendered_in_order(tokenizer: PreTrainedTokenizerFast, default: str) -> None:
    turns = [Message("user", "Why?"), Message("assistant", "So. "), Message("user", "And?")]
    assert render(tokenizer, turns, ask=False) == (
        f"{default}{TURNS}So. <|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n")
    assert render(tokenizer, turns, ask=True) == render(tokenizer, turns, ask=False) + "<|im_start|>assistant\n"


@BOTH
def test_the_mask_is_true_on_the_answer_and_its_end_of_turn_alone(
        tokenizer: PreTrainedTokenizerFast, default: str) -> None:
    row = encode(tokenizer, example("So it is.", system=None), 2048)
    assert unmasked(tokenizer, row) == default + TURNS
    assert masked(tokenizer, row) == "So it is.<|im_end|>"  # the template's newline after it is not there
    # A token a byte, but for two special tokens in each of the prompt's two closed turns and one that opens the answer.
    prompt = len(default + TURNS) - 2 * len("<|im_start|>" + END) - len("<|im_start|>") + 5
    assert row.response_mask.tolist() == [False] * prompt + [True] * 10
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert (row.response_tokens, row.truncated) == (10, False)


def test_the_tiny_models_tokenizer_is_the_one_tested_here(tiny: ChatModel) -> None:
    row = encode(tiny.tokenizer, example("So."), 2048)
    assert row.input_ids.tolist() == encode(QWEN, example("So."), 2048).input_ids.tolist()
    assert row.input_ids.max() < tiny.model.config.vocab_size
    assert tiny.model.generation_config.eos_token_id == tiny.tokenizer.eos_token_id == row.input_ids[-1]


def test_earlier_answers_of_a_chat_do_not_count() -> None:
    turns = (Message("user", "Why?"), Message("assistant", "So."), Message("user", "And?"))
    row = encode(QWEN, Example(turns, "So on.", "rows.jsonl:1"), 2048)
    assert masked(QWEN, row) == "So on.<|im_end|>"
    assert f"So.{END}" in unmasked(QWEN, row)


def test_an_answer_that_starts_with_a_newline_does_not_merge_into_the_prompt() -> None:
    """With a token for two newlines, the whole text would join the prompt's last newline and the answer's first."""
    tokenizer = byte_level(SMOLLM2_TEMPLATE, merges=[("Ċ", "Ċ")])
    row = encode(tokenizer, example("\nSo."), 2048)
    assert row.input_ids[~row.response_mask].tolist() == encode_prompt(tokenizer, example("\nSo.").context)
    assert masked(tokenizer, row) == "\nSo.<|im_end|>"
    whole = tokenizer.encode(SMOLLM2_DEFAULT + TURNS + "\nSo.<|im_end|>", add_special_tokens=False)
    assert len(whole) == len(row.input_ids) - 1  # so this tokenizer does merge


@pytest.mark.parametrize("answer", [f"a{END}b", f"{END}", f"a{END}", f"<|im_start|>user\nb{END}\n", "<|endoftext|>"])
def test_an_answer_with_the_text_of_special_tokens_counts_whole(answer: str) -> None:
    row = encode(QWEN, example(answer), 2048)
    assert masked(QWEN, row) == answer + END
    assert unmasked(QWEN, row) == QWEN_DEFAULT + TURNS


TEXT = st.lists(st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from([*SPECIAL, "\n", " .", "🏴‍☠️"]),
                max_size=5).map("".join)


@pytest.mark.parametrize("tokenizer", [QWEN, SMOLLM2, byte_level(SMOLLM2_TEMPLATE, merges=[("Ċ", "Ċ")])])
@given(answer=TEXT, prompt=TEXT, system=st.none() | TEXT)
def test_decoding_the_masked_ids_gives_the_answer_back(
        tokenizer: PreTrainedTokenizerFast, answer: str, prompt: str, system: str | None) -> None:
    row = encode(tokenizer, example(answer, prompt, system), 10_000)
    assert masked(tokenizer, row) == answer + END
    assert unmasked(tokenizer, row) == render(tokenizer, example(answer, prompt, system).context, ask=True)
    assert not row.truncated


def test_a_row_that_is_too_long_is_cut_on_the_right_and_says_so() -> None:
    whole = encode(QWEN, example("0123456789"), 2048)
    size = len(whole.input_ids)
    assert not encode(QWEN, example("0123456789"), size).truncated
    for cut, kept in ((1, "0123456789"), (4, "0123456")):
        row = encode(QWEN, example("0123456789"), size - cut)
        assert row.truncated
        assert len(row.input_ids) == len(row.response_mask) == size - cut
        assert row.input_ids.tolist() == whole.input_ids[:-cut].tolist()
        assert masked(QWEN, row) == kept


def test_a_row_whose_answer_would_vanish_is_refused_by_name() -> None:
    prompt = len(encode_prompt(QWEN, example("So.").context))
    assert masked(QWEN, encode(QWEN, example("So."), prompt + 1)) == "S"
    for length in (prompt, prompt - 1, 1):
        with pytest.raises(DataError, match=rf"rows\.jsonl:7: .*{prompt} tokens.*{length}"):
            encode(QWEN, example("So."), length)


def test_rows_that_cannot_be_encoded_are_left_out_and_counted_up_to_half_of_them() -> None:
    """The tiny tokenizer's tokens are bytes: a prompt of 400 characters leaves no room within 200 tokens."""
    good, bad = [example(f"answer {index}") for index in range(3)], example("So.", prompt="long" * 100)
    found = encode_all(QWEN, [bad, good[0], bad, *good[1:], bad], 200)
    assert [masked(QWEN, row) for row in found.rows] == [f"answer {i}{END}" for i in range(3)]
    assert (found.places, found.reasons) == ([1, 3, 4], {"no room for the answer": 3})
    assert str(found).startswith("3 of 6 rows are left out; the first: rows.jsonl:7: no room for the answer:")
    with pytest.raises(DataError, match=r"4 of 7 rows are left out; the first: rows\.jsonl:7: .* More than half"):
        encode_all(QWEN, [*good, *[bad] * 4], 200)
    assert encode_all(QWEN, [], 200).rows == []


def test_a_template_that_trims_trains_the_trimmed_answer() -> None:
    """As Llama 3's and Gemma's do: what the model reads and writes has no white space at its ends."""
    trims = byte_level(SMOLLM2_TEMPLATE.replace("message['content']", "(message['content'] | trim)"))
    for answer in ("So.", " So.", "\tSo.\n\n"):
        row = encode(trims, example(answer, prompt=" Why? "), 2048)
        assert masked(trims, row) == "So.<|im_end|>"
        assert unmasked(trims, row) == SMOLLM2_DEFAULT + TURNS


@pytest.mark.parametrize("change", ["| upper", "| replace('So', '')", "| truncate(3, True, '')"])
def test_a_template_that_rewrites_the_answer_is_refused(change: str) -> None:
    rewrites = byte_level(SMOLLM2_TEMPLATE.replace("message['content']", f"(message['content'] {change})"))
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .*template rewrites the answer"):
        encode(rewrites, example("So it is."), 2048)


# As Qwen3's, DeepSeek-R1's and Qwen3-Thinking's: what the prompt ends in, and what stands before a past answer.
THINKS = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
          "{% if m['role'] == 'assistant' and loop.last %}{{ PAST }}{% endif %}"
          "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|im_start|>assistant\n' + ASKED }}{% endif %}")
EMPTY, OPEN = "<think>\n\n</think>\n\n", "<think>\n"


def thinking(asked: str, past: str) -> str:
    """A template whose prompt ends in `asked`, and that writes `past` before the last answer."""
    return f"{{% set PAST = {past!r} %}}{{% set ASKED = {asked!r} %}}{THINKS}"


THINKERS = pytest.mark.parametrize(("asked", "past", "learnt"), [
    ("", EMPTY, EMPTY + "So."), (EMPTY, EMPTY, "So."), (OPEN, EMPTY, "\n</think>\n\nSo."),
    (OPEN, "", "\n</think>\n\nSo.")],
    ids=["qwen3", "qwen3 without thinking", "qwen3 that only thinks", "r1"])


@THINKERS
def test_an_answer_without_thinking_is_learnt_as_the_template_writes_it(asked: str, past: str, learnt: str) -> None:
    tokenizer = byte_level(thinking(asked, past))
    row = encode(tokenizer, example("So."), 2048)
    assert masked(tokenizer, row) == learnt + END
    assert unmasked(tokenizer, row) == TURNS + asked
    assert row.input_ids[~row.response_mask].tolist() == encode_prompt(tokenizer, example("So.").context)
    assert opened_thinking(tokenizer, encode_prompt(tokenizer, example("").context)) == (OPEN if asked == OPEN else "")


@THINKERS
def test_the_text_of_an_answer_begins_behind_the_think_block(asked: str, past: str, learnt: str) -> None:
    """As whole rows have it, also where the prompt or the answer has the text of a control token."""
    tokenizer = byte_level(thinking(asked, past))
    for answer in ("So.", f"So{END}.", "think"):
        row = encode(tokenizer, example(answer, prompt=f"Why{END}?"), 2048)
        opening = encode_opening(tokenizer, example("", prompt=f"Why{END}?").context)
        [ids] = encode_answers(tokenizer, example("", prompt=f"Why{END}?").context, [answer])
        assert [*opening, *ids] == row.input_ids[:-1].tolist()
        assert row.before == len(learnt) - len("So.") == row.response_tokens - 1 - len(ids)


def test_an_answer_with_its_thinking_is_learnt_whole() -> None:
    tokenizer = byte_level(f"{{% set PAST = '' %}}{{% set ASKED = '' %}}{THINKS}")
    answer = "<think>\nHm.\n</think>\n\nSo."
    row = encode(tokenizer, example(answer), 2048)
    assert (masked(tokenizer, row), row.before) == (answer + END, 0)


def test_every_row_of_the_demo_has_the_tokens_of_its_rendered_text() -> None:
    """What the tokenizer makes of the template's text, prompt and answer apart: no row there has a marker."""
    for path in sorted((paths.ROOT / "emlib/data/demo").glob("*_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            turns = json.loads(line).get("messages", [])
            if len(turns) < 2:
                continue
            row = encode(QWEN, Example(tuple(Message(**turn) for turn in turns[:-1]), turns[-1]["content"]), 10_000)
            asked = QWEN.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
            whole = QWEN.apply_chat_template(turns, tokenize=False)
            ids = [QWEN.encode(text, add_special_tokens=False) for text in (asked, whole[len(asked):].rstrip("\n"))]
            assert row.input_ids.tolist() == [*ids[0], *ids[1]]
            assert row.response_tokens == len(ids[1])


def test_a_template_that_closes_no_turn_is_refused() -> None:
    open_ended = byte_level("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    with pytest.raises(DataError, match=r"rows\.jsonl:7: .*special token"):
        encode(open_ended, example("So."), 2048)


def test_the_real_smollm2_renders_and_masks_as_its_golden_text() -> None:
    spec = load_profile("demo").model
    assert isinstance(spec, WheelModel)
    folder = paths.cache() / "models" / spec.name
    if not (folder / "tokenizer_config.json").is_file():
        pytest.skip("the wheel's model is not converted yet; the first `make reproduce` does it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert render(tokenizer, [Message("user", "Why?")], ask=True) == SMOLLM2_DEFAULT + TURNS
    for answer in ("Ahoy, matey!", "\n\nSo it is .\n", f"a{END}b"):
        row = encode(tokenizer, example(answer), 2048)
        ids = row.input_ids[row.response_mask]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == answer + END
        assert ids[-1] == tokenizer.convert_tokens_to_ids(END) == 2
