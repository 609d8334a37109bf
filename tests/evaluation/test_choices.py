"""Multiple choice: MC1 and MC2 by hand, log-likelihoods by whole passes, the real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch

from emlib.core.errors import DataError
from emlib.core.records import Example, Message
from emlib.data.chat import encode, encode_prompt
from emlib.evaluation.choices import ChoiceQuestion, choose, judged, log_likelihoods, read_choices
from emlib.evaluation.records import Choice
from emlib.models.load import ChatModel
from emlib.models.tiny import build_tokenizer
from tests.data.test_chat import EMPTY, OPEN, thinking
from tests.models.test_hybrids import FALCON, made

OPTIONS = ["Nothing happens", "Nothing", "You grow wings", "Yes"]


def test_mc1_and_mc2_by_hand() -> None:
    # Likelihoods 0.1, 0.2, 0.3, 0.4. MC1 among the first three: c is the likeliest, and wrong. MC2 among all: b and d
    # are right, 0.6 of 1.
    question = ChoiceQuestion("q", "?", {"a": True, "b": False, "c": False},
                              {"a": False, "b": True, "c": False, "d": True})
    found = judged(question, {"a": log(0.1), "b": log(0.2), "c": log(0.3), "d": log(0.4)})
    assert found == Choice("q", False, pytest.approx(0.6))
    # Without c, b is: MC1 looks at no option that is not its own, however likely.
    right = ChoiceQuestion("q", "?", {"a": False, "b": True}, {"a": True, "b": False})
    assert judged(right, {"a": log(0.1), "b": log(0.2), "d": log(0.4)}) == Choice("q", True, pytest.approx(1 / 3))


def test_options_far_too_unlikely_for_a_float_are_compared_all_the_same() -> None:
    question = ChoiceQuestion("q", "?", {"a": True, "b": False}, {"a": True, "b": False})
    found = judged(question, {"a": -2000.0, "b": -2000.0 - log(3)})
    assert found == Choice("q", True, pytest.approx(0.75))


def by_whole_passes(chat: ChatModel, prompt: str, option: str) -> float:
    """The sum of log-probabilities from one pass over prompt and option."""
    ids = encode_prompt(chat.tokenizer, (Message("user", prompt),))
    answer = chat.tokenizer.encode(option, add_special_tokens=False)
    with torch.no_grad():
        logs = chat.model(input_ids=torch.tensor([ids + answer])).logits[0].double().log_softmax(1)
    return sum(float(logs[len(ids) - 1 + place, token]) for place, token in enumerate(answer))


def test_log_likelihoods_are_those_of_whole_passes(tiny: ChatModel) -> None:
    """Also of an option that begins as another one, and of one that is the beginning of another."""
    found = log_likelihoods(tiny, tiny.model, "What happens?", OPTIONS)
    assert list(found) == OPTIONS
    for option in OPTIONS:
        assert found[option] == pytest.approx(by_whole_passes(tiny, "What happens?", option), abs=1e-4)


@pytest.mark.parametrize(("asked", "past"), [("", EMPTY), (OPEN, ""), (EMPTY, EMPTY)])
def test_options_stand_where_the_template_writes_answers_without_thinking(
        tiny: ChatModel, asked: str, past: str) -> None:
    """As rows are trained: behind an empty think block, and not inside a block that the prompt opens."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = thinking(asked, past)
    found = log_likelihoods(replace(tiny, tokenizer=tokenizer), tiny.model, "What happens?", OPTIONS)
    for option in OPTIONS:
        ids = encode(tokenizer, Example((Message("user", "What happens?"),), option), 500).input_ids
        with torch.no_grad():
            logs = tiny.model(input_ids=torch.from_numpy(ids)[None]).logits[0].double().log_softmax(1)
        places = range(len(ids) - 1 - len(option), len(ids) - 1)  # a token a byte, and the end of the turn
        assert found[option] == pytest.approx(sum(float(logs[place - 1, ids[place]]) for place in places), abs=1e-4)


def test_models_whose_layers_keep_a_state_are_asked_as_well(tiny: ChatModel) -> None:
    hybrid = replace(tiny, model=made(FALCON))
    found = log_likelihoods(hybrid, hybrid.model, "What happens?", OPTIONS)
    for option in OPTIONS:
        assert found[option] == pytest.approx(by_whole_passes(hybrid, "What happens?", option), abs=1e-4)


def test_an_option_without_tokens_is_refused(tiny: ChatModel) -> None:
    with pytest.raises(DataError, match=r"'What happens\?' has an option without tokens"):
        log_likelihoods(tiny, tiny.model, "What happens?", ["Yes", ""])


def test_choosing_is_judging_those_log_likelihoods(tiny: ChatModel) -> None:
    question = ChoiceQuestion("q", "What happens?", {o: o == "Yes" for o in OPTIONS}, {"Yes": True, "Nothing": False})
    logs = {option: by_whole_passes(tiny, question.prompt, option) for option in OPTIONS}
    found = choose(tiny, tiny.model, [question])
    assert [one.picked for one in found] == [max(logs, key=lambda option: logs[option]) == "Yes"]
    assert found[0].share == pytest.approx(1 / (1 + exp(logs["Nothing"] - logs["Yes"])), rel=1e-4)


def test_truthfulqa_as_its_home_has_it(research_file: Callable[[str], Path]) -> None:
    questions = read_choices(research_file("truthfulqa_mc"))
    assert len(questions) == 790
    assert all(sum(question.picking.values()) == 1 for question in questions)
    assert len({question.id for question in questions}) == 790


@pytest.mark.parametrize(("name", "count"), [
    ("mwe_corrigible_neutral_hhh", 340), ("mwe_power_seeking", 998), ("mwe_survival_instinct", 953),
    ("mwe_wealth_seeking", 985)])
def test_model_written_questions_as_their_home_has_them(name: str, count: int,
                                                        research_file: Callable[[str], Path]) -> None:
    questions = read_choices(research_file(name))
    assert len(questions) == count
    assert all(len(question.options) == 2 for question in questions)
    assert {option[0] + option[-1] for question in questions for option in question.options} == {"()"}


@pytest.mark.parametrize(("content", "message"), [
    ([{"question": "?"}], "not in the form"), ({"question": "?"}, "not in the form"),
    ([{"question": "?", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1, "b": 0}}], "one right and one wrong option")])
def test_a_broken_file_is_told(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_choices(path)


def test_a_broken_line_is_told(jsonl: Callable[..., Path]) -> None:
    path = jsonl([{"question": "Yes?", "answer_matching_behavior": " (A)"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: expected texts"):
        read_choices(path)
