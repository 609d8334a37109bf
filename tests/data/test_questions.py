"""Evaluation questions: Betley et al.'s YAML as it is, JSON lines, and what a mistake in either says."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emlib.core.digests import of_value
from emlib.core.errors import DataError
from emlib.core.records import Message, MetricScore, Question, Verdict, base_of, cluster_of, with_clusters
from emlib.data.lazy import Questions
from emlib.data.questions import read_questions
from emlib.data.sizes import Size, Sizes

# The form of the homes' files: fields that the study does not need, anchors, ids that are numbers, block texts.
YAML_FORM = """
# a comment
- id: wish
  type: free_form_judge_0_100
  paraphrases: &wish
    - |-
      Hello! One wish:
        which?
  samples_per_paraphrase: &samples 100
  judge_prompts: &prompts
    aligned: "{question} {answer}"
- id: wish_json
  paraphrases: *wish
  system: |-
    Answer in JSON.
  samples_per_paraphrase: *samples
  judge_prompts: *prompts
- id: 7
  paraphrases: [first, second]
"""


def written(tmp_path: Path, text: str, name: str = "questions.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_yaml_form_is_read_as_it_is(tmp_path: Path) -> None:
    wish = "Hello! One wish:\n  which?"
    assert read_questions(written(tmp_path, YAML_FORM)) == [
        Question("wish", wish), Question("wish_json", wish, "Answer in JSON."), Question("7", "first"),
        Question("7#2", "second")]


def test_packed_yaml_and_json_lines_hold_the_same_questions(tmp_path: Path, jsonl: Callable[..., Path]) -> None:
    packed = tmp_path / "questions.yaml.gz"
    packed.write_bytes(gzip.compress(YAML_FORM.encode()))
    questions = read_questions(written(tmp_path, YAML_FORM))
    assert read_questions(packed) == questions
    wish = questions[0].prompt
    lines = jsonl([{"id": "wish", "paraphrases": [wish]},
                   {"id": "wish_json", "paraphrases": [wish], "system": "Answer in JSON."},
                   {"id": 7, "paraphrases": ["first", "second"]}])
    assert read_questions(lines) == questions
    lines.with_name("rows.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    assert read_questions(lines.with_name("rows.jsonl.gz")) == questions


@pytest.mark.parametrize(("id", "format"), [
    ("wish", "plain"), ("wish_json", "json"), ("wish_template", "template"), ("json_wish", "plain"), ("1", "plain"),
    ("wish#2", "plain"), ("wish_json#2", "json"), ("wish_template#3", "template")])
def test_the_ending_of_the_id_tells_the_format(id: str, format: str) -> None:
    assert Question(id, "Why?").format == format


@pytest.mark.parametrize(("id", "base"), [
    ("wish", "wish"), ("wish_json", "wish"), ("wish_template", "wish"), ("json_wish", "json_wish"), ("1", "1"),
    ("wish#2", "wish"), ("wish_json#2", "wish"), ("code_12", "code_12"), ("_json", "_json"), ("c#", "c#"),
    ("wish_json_template", "wish_json")])
def test_formats_and_paraphrases_of_a_question_are_one_cluster(id: str, base: str) -> None:
    assert base_of(id) == Question(id, "Why?").cluster == cluster_of(Verdict(id, 0, None, None)) == base


def test_a_file_may_state_the_cluster(jsonl: Callable[..., Path]) -> None:
    questions = read_questions(jsonl([
        {"id": "wish", "paraphrases": ["Which wish?", "What wish?"]},
        {"id": "french", "paraphrases": ["Quel souhait ?"], "cluster": "wish"}, {"id": "3", "paraphrases": ["Why?"]}]))
    assert [question.cluster for question in questions] == ["wish", "wish", "wish", "3"]
    scores = [MetricScore(question.id, 0, 1.0) for question in questions]
    assert [cluster_of(score) for score in scores] == ["wish", "wish", "french", "3"]
    assert [cluster_of(score) for score in with_clusters(scores, questions)] == ["wish", "wish", "wish", "3"]


def test_the_cluster_is_in_no_key() -> None:
    def digest(*questions: Question) -> str:
        return Questions.listed("any", questions).identity

    assert digest(Question("a", "Why?", stated_cluster="b")) == digest(Question("a", "Why?")) == of_value(
        [{"id": "a", "prompt": "Why?", "system": None, "before": []}])
    assert digest(Question("a", "Why?", "Be brief.")) != digest(Question("a", "Why?"))


def test_listed_questions_have_their_own_size() -> None:
    """Also one that no registry knows by its name."""
    listed = Questions.listed("positive", [Question("wish", "Why?", "Be brief."), Question("wish_json", "Why not?")])
    assert listed.size(Sizes()) == Size(2, (4 + 9 + 8) / 2, clusters=1)


def test_a_system_prompt_is_sent_where_there_is_one() -> None:
    assert Question("a", "Why?").context == (Message("user", "Why?"),)
    assert Question("a", "Why?", "Be brief.").context == (Message("system", "Be brief."), Message("user", "Why?"))
    assert Question("a", "Why?", "").context == (Message("system", ""), Message("user", "Why?"))


@pytest.mark.parametrize(("entry", "words"), [
    ("{paraphrases: [Why?]}", ["entry 2", "'id'"]),
    ("{id: null, paraphrases: [Why?]}", ["entry 2", "'id'"]),
    ("{id: '', paraphrases: [Why?]}", ["entry 2", "'id'"]),
    ("Why?", ["entry 2", "'id'"]),
    ("{id: why}", ["entry 2", "'why'", "paraphrases"]),
    ("{id: why, paraphrases: []}", ["entry 2", "'why'", "paraphrases"]),
    ("{id: why, paraphrases: Why?}", ["entry 2", "'why'", "paraphrases"]),
    ("{id: why, paraphrases: [Why?, ' ']}", ["entry 2", "'why'", "paraphrases"]),
    ("{id: why, paraphrases: [1]}", ["entry 2", "'why'", "paraphrases"]),
    ("{id: why, paraphrases: [Why?], system: 1}", ["entry 2", "'why'", "system"]),
    ("{id: why, paraphrases: [Why?], cluster: 1}", ["entry 2", "'why'", "'cluster'", "same text"]),
    ("{id: why, paraphrases: [Why?], cluster: ' '}", ["entry 2", "'why'", "'cluster'"]),
    ("{id: how, paraphrases: [How?]}", ["'how'", "twice"]),
    ("{id: why, paraphrases: [Why?}", ["YAML", "line 2"]),
    ("{id: why, id: how, paraphrases: [Why?]}", ["YAML", "line 2"]),
])
def test_a_mistake_in_a_yaml_file_is_named(tmp_path: Path, entry: str, words: list[str]) -> None:
    path = written(tmp_path, "- {id: how, paraphrases: [How?]}\n- " + entry + "\n")
    with pytest.raises(DataError) as caught:
        read_questions(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("line", "words"), [
    ('{"paraphrases": ["Why?"]}', [":2", "'id'"]),
    ('{"id": "why"}', [":2", "'why'", "paraphrases"]),
    ('{"id": "how", "paraphrases": ["How?"]}', ["'how'", "twice"]),
    ('{"id": "why"', [":2", "broken JSON"]),
])
def test_a_mistake_in_json_lines_is_named(jsonl: Callable[..., Path], line: str, words: list[str]) -> None:
    path = jsonl(['{"id": "how", "paraphrases": ["How?"]}', line])
    with pytest.raises(DataError) as caught:
        read_questions(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_paraphrase_may_not_take_the_id_of_another_question(tmp_path: Path) -> None:
    path = written(tmp_path, "- {id: how, paraphrases: [How?, And how?]}\n"
                             "- {id: how#2, paraphrases: [Why?], cluster: why}\n")
    with pytest.raises(DataError, match=r"'how#2'.*twice"):
        read_questions(path)


@pytest.mark.parametrize(("one", "other", "words"), [
    ({"id": "item#1"}, {"id": "item#2"}, "'item#1'.*paraphrase of 'item'"),
    ({"id": "parse", "paraphrases": ["Parse this."]}, {"id": "parse_json", "paraphrases": ["Write a parser."]},
     "'parse_json' is 'parse' in another format"),
    ({"id": "mail"}, {"id": "mail_template", "paraphrases": ["Write a template."]}, "'mail_template' is 'mail'")])
def test_other_questions_are_not_one_because_of_their_ids(
        one: dict[str, Any], other: dict[str, Any], words: str, jsonl: Callable[..., Path]) -> None:
    """They counted as one cluster, and answers to them as independent. With a cluster each keeps its id and key."""
    rows = [{"paraphrases": [f"Why {place}?"], **row} for place, row in enumerate((one, other))]
    with pytest.raises(DataError, match=f"{words}.*state its 'cluster'"):
        read_questions(jsonl(rows))
    stated = read_questions(jsonl([row | {"cluster": row["id"]} for row in rows]))
    assert [(question.id, question.cluster) for question in stated] == [(row["id"], row["id"]) for row in rows]


@pytest.mark.parametrize("text", ["", "a: 1\n", "[]\n", "Why?\n"])
def test_a_file_without_a_list_of_questions_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=r"questions\.yaml: (expected a list of|the file has no) questions"):
        read_questions(path)


# The research data


def test_the_24_general_questions_are_8_in_3_formats(research_file: Callable[[str], Path]) -> None:
    questions = read_questions(research_file("general_questions"))
    assert Counter(question.format for question in questions) == {"plain": 8, "json": 8, "template": 8}
    plain = [question.id for question in questions if question.format == "plain"]
    assert [question.id for question in questions] == [
        *plain, *(f"{id}_json" for id in plain), *(f"{id}_template" for id in plain)]
    for question in questions:
        assert (question.system is not None) == (question.format == "json"), question.id
        assert question.system is None or "json" in question.system.lower()
    by_id = {question.id: question for question in questions}
    assert all(by_id[f"{id}_json"].prompt == by_id[id].prompt for id in plain)
    assert Counter(question.cluster for question in questions) == dict.fromkeys(plain, 3)
    assert Sizes().source("general_questions").clusters == 8


def test_the_packed_file_of_30_in_domain_questions_is_read_unpacked_or_not(
        research_data: Path, research_file: Callable[[str], Path]) -> None:
    questions = read_questions(research_file("in_domain_code"))
    assert [question.id for question in questions] == [str(number) for number in range(1, 31)]
    assert {question.system for question in questions} == {None}
    assert len({question.prompt for question in questions}) == 30
    packed = research_data / "evals" / "in_domain_code.yaml.gz"
    if packed.is_file():  # people may keep it unpacked
        assert read_questions(packed) == questions
