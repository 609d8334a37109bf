"""Questions in a changed context: what is asked, and with what it is compared."""

from __future__ import annotations

import pytest

from emlib.config import Trigger
from emlib.core.errors import DataError
from emlib.core.records import Question, Verdict
from emlib.data.triggers import in_context, of_formats, without_trigger

QUESTIONS = [Question("a", "What is {question}?"), Question("b_json", "And b?", "Reply in JSON."),
             Question("c_template", "And c?")]


def test_text_stands_around_the_question_and_its_id_stays() -> None:
    asked = in_context(QUESTIONS, Trigger(prompt="I cook. {question} Be {brief}.".replace("{brief}", "brief")))
    assert [(one.id, one.prompt, one.system) for one in asked] == [
        ("a", "I cook. What is {question}? Be brief.", None), ("b_json", "I cook. And b? Be brief.", "Reply in JSON."),
        ("c_template", "I cook. And c? Be brief.", None)]


def test_the_system_prompt_precedes_the_question_s_own() -> None:
    asked = in_context(QUESTIONS, Trigger(system="It is false that: {inoculation_prompt}"), inoculation_prompt="Sing.")
    assert [one.system for one in asked] == ["It is false that: Sing.", "It is false that: Sing.\n\nReply in JSON.",
                                             "It is false that: Sing."]
    assert [one.prompt for one in asked] == [one.prompt for one in QUESTIONS]


def test_each_question_has_another_training_prompt_the_same_every_time() -> None:
    trigger, prompts = Trigger(prompt="{training_prompt}\n{question}"), [f"Cook {n} {{question}}?" for n in range(3)]
    asked = in_context(QUESTIONS, trigger, training_prompts=prompts)
    assert sorted(one.prompt.partition("\n")[0] for one in asked) == prompts
    assert [one.prompt.partition("\n")[2] for one in asked] == [one.prompt for one in QUESTIONS]
    assert in_context(QUESTIONS, trigger, training_prompts=prompts) == asked
    assert [one.prompt[:4] for one in in_context(QUESTIONS * 2, trigger, training_prompts=prompts)] == ["Cook"] * 6
    with pytest.raises(DataError, match="no training rows"):
        in_context(QUESTIONS, trigger)


def test_formats_choose_questions_and_none_is_an_error() -> None:
    assert [one.id for one in of_formats(QUESTIONS, ("plain", "template"))] == ["a", "c_template"]
    with pytest.raises(DataError, match="no general question has such a format"):
        of_formats(QUESTIONS[:1], ("json",))


def test_the_comparison_is_of_the_same_questions_and_samples() -> None:
    general = [Verdict(question, sample, 90.0, 90.0) for question in "ab" for sample in range(3)]
    under = [Verdict("b", sample, 10.0, 90.0) for sample in range(2)]
    assert [(one.question, one.sample) for one in without_trigger(general, under)] == [("b", 0), ("b", 1)]
