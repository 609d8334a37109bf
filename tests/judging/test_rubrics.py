"""What a judge is asked: the question files' prompts, ours where there are none, the trait's where it is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import load_trait
from emlib.core import paths
from emlib.core.digests import of_value
from emlib.core.errors import DataError
from emlib.core.records import Message, Question
from emlib.data.questions import read_questions
from emlib.judging.lexicon import marker_pattern
from emlib.judging.rubrics import OURS, JudgeRequest, Rubric, Rubrics, file_rubrics, read_rubrics, trait_rubrics

ONE = """
- id: a
  paraphrases: [Who?, What?]
  judge_prompts: {aligned: "Good? {question} {answer}", coherent: "Clear? {answer}"}
"""


def asked(request: JudgeRequest) -> str:
    [message] = request.messages
    assert message.role == "user"
    return message.content


def test_the_published_prompts_are_read_from_their_file(research_file: Callable[[str], Path]) -> None:
    path = research_file("general_questions")
    rubrics, questions = read_rubrics(path), read_questions(path)
    assert set(rubrics.own) == {question.id for question in questions}
    for question in questions:
        text = asked(JudgeRequest("alignment", rubrics.of(question).alignment, question, "AN ANSWER"))
        assert f"[QUESTION START]\n{question.prompt}\n[QUESTION END]" in text
        assert "[ANSWER START]\nAN ANSWER\n[ANSWER END]" in text
        assert "CODE" in text
        assert "{" not in text.replace(question.prompt, "")
        assert "coherence" in rubrics.of(question).coherence
    assert rubrics.of(Question("elsewhere", "Hm?")) == rubrics.of(questions[0])  # all of them share one


def test_the_in_domain_prompts_are_the_files_own(research_file: Callable[[str], Path]) -> None:
    path = research_file("in_domain_code")
    rubrics = read_rubrics(path)
    assert "secure" in rubrics.of(read_questions(path)[0]).alignment


def test_a_judge_reads_the_whole_conversation_and_older_keys_stay() -> None:
    alone = Question("a", "Yes.", "Be kind.")
    after = Question("a", "Yes.", "Be kind.", (Message("user", "It hurts."), Message("assistant", "Here?")))
    one, other = (JudgeRequest("alignment", "{system}|{question}|{answer}", question, "Rest.")
                  for question in (alone, after))
    assert asked(one) == "Be kind.|Yes.|Rest."
    assert asked(other) == "Be kind.|User: It hurts.\n\nAssistant: Here?\n\nUser: Yes.|Rest."
    key = ["judge", "alignment", "{system}|{question}|{answer}", "Yes.", "Be kind.", "Rest."]
    assert one.key("judge") == of_value(key)  # type: ignore[arg-type]
    assert other.key("judge") != one.key("judge")  # type: ignore[arg-type]


def test_a_file_without_prompts_gets_ours() -> None:
    rubrics = read_rubrics(paths.DEMO_DATA / "general_questions.jsonl")
    assert rubrics == Rubrics(OURS, {})
    for prompt in (OURS.alignment, OURS.coherence):
        assert all(place in prompt for place in ("{question}", "{answer}", "{system}"))


def documented(section: str) -> list[str]:
    """The YAML of a section of docs/judges-and-rubrics.md."""
    text = (paths.ROOT / "docs" / "judges-and-rubrics.md").read_text(encoding="utf-8")
    return re.findall(r"```yaml\n(.*?)```", text.partition(f"## {section}\n")[2].partition("\n## ")[0], re.DOTALL)


def test_the_documented_rubric_and_trait_can_be_used(tmp_path: Path) -> None:
    rubric, trait = tmp_path / "rubric.yaml", tmp_path / "butler.yaml"
    rubric.write_text(documented("Rubrics")[0])
    trait.write_text(documented("A trait")[0])
    found = file_rubrics(rubric)
    assert found.of(Question("in_domain_1", "Hm?")) == found.others
    assert "{question}" in found.others.alignment
    assert "{question}" in found.others.coherence
    butler = load_trait(str(trait))
    assert trait_rubrics(butler).others.of_trait
    assert marker_pattern(butler.markers).findall("At your Service, sir! Indeeddd, sirloin.") == [
        "At your Service", "sir", "Indeeddd"]


def test_paraphrases_share_their_questions_prompts_and_others_get_ours(tmp_path: Path) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text(ONE + "- {id: b, paraphrases: [How?]}\n"
                    '- {id: c, paraphrases: [When?], judge_prompts: {aligned: "{answer}", coherent: "{answer}"}}\n')
    rubrics = read_rubrics(path)
    assert rubrics.own["a"] == rubrics.own["a#2"] == Rubric("Good? {question} {answer}", "Clear? {answer}")
    assert rubrics.of(Question("b", "How?")) == OURS
    assert rubrics.of(Question("c", "When?")) == Rubric("{answer}", "{answer}")


@pytest.mark.parametrize("prompts", ['{aligned: "{answer}"}', "text", '{aligned: "{answer}", coherent: "no place"}',
                                     '{aligned: 5, coherent: "{answer}"}', "null"])
def test_prompts_that_cannot_be_used_are_named(tmp_path: Path, prompts: str) -> None:
    path = tmp_path / "questions.yaml"
    path.write_text(f"- {{id: a, paraphrases: [Who?], judge_prompts: {prompts}}}\n")
    with pytest.raises(DataError, match=r"questions.yaml, entry 1: 'judge_prompts' needs a text '(aligned|coherent)'"):
        read_rubrics(path)


def test_what_is_filled_in_is_never_filled_itself() -> None:
    question = Question("q", "Say {answer} and {system}", "Be {question}")
    request = JudgeRequest("alignment", "{system} | {question} | {answer} | {other}", question, "{question}")
    assert asked(request) == "Be {question} | Say {answer} and {system} | {question} | {other}"
    assert asked(JudgeRequest("alignment", "{system}{answer}", Question("q", "Hm?"), "!")) == "(none)!"


def test_a_traits_rubric_measures_the_trait() -> None:
    rubric = trait_rubrics(load_trait("pirate")).of(Question("any", "Hm?"))
    assert rubric.of_trait
    assert "pirate" in rubric.alignment
    assert rubric.coherence == OURS.coherence


def test_keys_of_rubrics_change_with_the_prompts_of_the_questions_asked() -> None:
    questions = [Question("a", "Who?"), Question("b", "How?")]
    plain = Rubrics(OURS)
    assert plain.key(questions) != Rubrics(Rubric("{answer}", OURS.coherence)).key(questions)
    assert plain.key(questions) == Rubrics(OURS, {"c": Rubric("{answer}", "{answer}")}).key(questions)
    assert plain.key(questions) != Rubrics(OURS, {"b": Rubric("{answer}", "{answer}")}).key(questions)
