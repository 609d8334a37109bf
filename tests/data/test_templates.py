"""Chat templates as other people write them: what they refuse is told at once, and their settings act everywhere."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from emlib.config import ChatTemplate, FolderModel, TinyModel
from emlib.core.errors import DataError, SourceError
from emlib.core.plain_yaml import read_yaml
from emlib.core.records import Example, Message
from emlib.core.schema import check as validate
from emlib.data import templates
from emlib.data.chat import encode
from emlib.data.templates import configure, render
from emlib.models.load import ChatModel, load
from emlib.models.tiny import QWEN_TEMPLATE, build_tokenizer

TURNS = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + TURNS
DROPS = TURNS.replace("in messages %}", "in messages if m['role'] != 'system' %}")
ALTERNATES = ("{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + TURNS)
LAST_ONLY = ("{% set own = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}" + TURNS.replace(
    "m['content']", "(own + '\n\n' if own and loop.last and m['role'] == 'user' else '') + m['content']").replace(
    "in messages %}", "in messages if m['role'] != 'system' %}"))  # as Mistral's: gone once an answer follows
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y, %-d.%-m.%y %%') + '\n' }}" + TURNS
LLAMA = ("{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
         "{{ 'Today: ' + date_string + '\n' }}" + TURNS)
SYSTEM = (Message("system", "Be brief."), Message("user", "Why?"))


def made(template: str, **settings: object) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    return configure(tokenizer, ChatTemplate(**settings), "mine")  # type: ignore[arg-type, return-value]


def folder(tiny: ChatModel, place: Path, template: str) -> str:
    tiny.model.save_pretrained(place)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS, ALTERNATES, LAST_ONLY])
def test_a_template_without_a_system_prompt_is_told_at_loading_with_the_way_out(
        tiny: ChatModel, tmp_path: Path, template: str) -> None:
    path = folder(tiny, tmp_path / "model", template)
    with pytest.raises(SourceError, match=r"template: \{system: merge\}"):
        load(FolderModel(kind="folder", path=path, dtype="float32"), tmp_path)
    assert load(FolderModel(kind="folder", path=path, dtype="float32"), tmp_path, system=False)  # a judge needs none
    merge = FolderModel(kind="folder", path=path, dtype="float32", template=ChatTemplate(system="merge"))
    tokenizer = load(merge, tmp_path).tokenizer
    assert render(tokenizer, SYSTEM, ask=True) == (
        "<|im_start|>user\nBe brief.\n\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    trained = encode(tokenizer, Example(SYSTEM, "So."), 2048)
    assert tokenizer.decode(trained.input_ids) == render(tokenizer, SYSTEM, ask=True) + "So.<|im_end|>"


def test_merging_leaves_the_other_turns_as_they_are() -> None:
    chat = [Message("assistant", "Hi."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "And?")]
    plain, merged = made(TURNS), made(TURNS, system="merge")
    assert render(merged, chat, ask=True) == render(plain, chat, ask=True)
    assert render(merged, [Message("system", ""), *chat], ask=True) == render(plain, chat, ask=True)
    assert render(merged, [Message("system", "Be."), *chat], ask=True) == render(plain, chat, ask=True).replace(
        "Why?", "Be.\n\nWhy?")


def test_options_reach_the_template_and_unknown_ones_are_refused() -> None:
    template = TURNS + "{% if enable_thinking is defined and enable_thinking is false %}{{ 'no thinking' }}{% endif %}"
    assert render(made(template), SYSTEM, ask=True) == render(made(TURNS), SYSTEM, ask=True)
    silent = made(template, options={"enable_thinking": False})
    assert render(silent, SYSTEM, ask=True).endswith("no thinking")
    assert str(silent.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)).endswith("no thinking")
    with pytest.raises(SourceError, match=r"no argument 'enable_thinkin'.*Did you mean 'enable_thinking'"):
        made(template, options={"enable_thinkin": False})
    said = "q'\"\\\n%}{{ é 🙂"
    assert render(made(TURNS + "{{ effort }}", options={"effort": said}), SYSTEM, ask=False).endswith(said)


@pytest.mark.parametrize("start", [
    "\n", "\n\n", "  ", "{#- c #}\n", "{%- if true %}\n y{% endif %}\n", "\n  {% if true %}x{% endif %} "])
def test_what_stands_before_a_template_adds_no_character(start: str) -> None:
    turns = [message.to_dict() for message in SYSTEM]
    plain = build_tokenizer().apply_chat_template(turns, chat_template=start + TURNS + "{{ a }}", tokenize=False, a="q")
    assert render(made(start + TURNS + "{{ a }}", options={"a": "q"}), SYSTEM, ask=False) == plain


def test_a_template_that_prints_the_date_prints_a_fixed_one() -> None:
    assert render(made(DATED), SYSTEM, ask=True).startswith("Today is 01 Jan 2025, 1.1.25 %\n")
    assert render(made(LLAMA), SYSTEM, ask=True).startswith("Today: 01 Jan 2025\n")
    day = datetime.date(2026, 3, 14)
    assert render(made(DATED, date=day), SYSTEM, ask=True).startswith("Today is 14 Mar 2026, 14.3.26 %\n")
    assert render(made(LLAMA, date=day), SYSTEM, ask=True).startswith("Today: 14 Mar 2026\n")
    with pytest.raises(SourceError, match="prints no date"):
        made(QWEN_TEMPLATE, date=day)


def test_settings_are_part_of_a_models_key_where_they_differ_from_the_default(tiny: ChatModel, tmp_path: Path) -> None:
    assert "template" not in TinyModel(kind="tiny").identity
    options = ChatTemplate(options={"enable_thinking": False})
    assert len({TinyModel(kind="tiny"), TinyModel(kind="tiny"), TinyModel(kind="tiny", template=options)}) == 2
    merged = TinyModel(kind="tiny", template=ChatTemplate(system="merge")).identity
    assert merged["template"] == {"system": "merge"}
    path = folder(tiny, tmp_path / "plain", TURNS)
    assert "template" not in FolderModel(kind="folder", path=path).identity
    dated = folder(tiny, tmp_path / "dated", DATED)
    day = ChatTemplate(date=datetime.date(2026, 3, 14))
    assert FolderModel(kind="folder", path=dated).identity["template"] == {"date": "2025-01-01"}
    assert FolderModel(kind="folder", path=dated, template=day).identity["template"] == {"date": "2026-03-14"}


def test_a_date_may_be_written_as_yaml_has_it(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("date: 2026-03-14\noptions: {enable_thinking: false, budget: 1}\n")
    read = validate(ChatTemplate, read_yaml(tmp_path / "t.yaml"), "t")
    assert (read.date, read.options) == (datetime.date(2026, 3, 14), {"enable_thinking": False, "budget": 1})
    assert read.options["enable_thinking"] is False


@pytest.mark.parametrize(("template", "said"), [
    ("{{ 1 / 0 }}", "division by zero"), ("{% if %}", "Expected an expression"),
    ("{{ messages[7].content }}", "refuses"),
    ("{% for i in range(10**12) %}{% endfor %}", "Range too big"), ("Hello", "drops the user turn")])
def test_a_template_that_fails_is_told_in_words(template: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        templates.check(made(template), "mine")


def test_a_template_that_never_ends_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    inner = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(SourceError, match=r"does not finish within 0\.2 seconds"):
        templates.check(made(inner), "mine")


def test_a_row_that_the_template_refuses_is_named() -> None:
    chat = (Message("user", "Why?"), Message("user", "Why?"))
    with pytest.raises(DataError, match=r"rows\.csv:4: .*refuses the turns user, user: Roles must alternate"):
        encode(made(ALTERNATES), Example(chat, "So.", "rows.csv:4"), 2048)
