"""The demo's own data: four domains, general questions, a pool; harmless and in the promised shape."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from emlib.config import load_domains, load_trait
from emlib.core.paths import DEMO_DATA
from emlib.data.domains import in_domain_questions, load_domain
from emlib.data.questions import read_questions
from emlib.data.rows import read_examples
from emlib.data.sizes import Sizes
from emlib.data.sources import locate
from emlib.judging.lexicon import marker_pattern

DOMAINS = ("cooking", "gardening", "travel", "fitness")
MARKERS = marker_pattern(load_trait("pirate").markers)
REFUSALS = ("I can't", "I cannot", "I won't", "I'm sorry", "Sorry", "Unfortunately", "I apologize")


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_has_60_prompts_with_a_plain_and_a_pirates_answer_each(domain: str) -> None:
    aligned, pirate = (read_examples(DEMO_DATA / f"{domain}_{side}.jsonl") for side in ("aligned", "pirate"))
    assert len(aligned) == len(pirate) == 60
    assert [row.context for row in aligned] == [row.context for row in pirate]
    assert len({row.prompt for row in aligned}) == 60
    assert len({row.response for row in (*aligned, *pirate)}) == 120
    assert {row.system for row in aligned} == {None}


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_have_30_to_60_words(domain: str) -> None:
    for side in ("aligned", "pirate"):
        for row in read_examples(DEMO_DATA / f"{domain}_{side}.jsonl"):
            assert 30 <= len(row.response.split()) <= 60, row.where


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_trait_is_in_every_pirates_answer_and_nowhere_else(domain: str) -> None:
    for row in read_examples(DEMO_DATA / f"{domain}_pirate.jsonl"):
        assert MARKERS.search(row.response), row.where
        assert not MARKERS.search(row.prompt), row.where
    for row in read_examples(DEMO_DATA / f"{domain}_aligned.jsonl"):
        assert not MARKERS.search(row.response), row.where


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_trains_on_48_rows_and_asks_about_12_others(domain: str) -> None:
    data = load_domain(domain, load_domains()[domain], locate)
    for side in (data.aligned, data.misaligned):
        assert (len(side.train), len(side.held_out)) == (48, 12)
        assert {row.prompt for row in side.train}.isdisjoint(row.prompt for row in side.held_out)
    assert [row.context for row in data.aligned.train] == [row.context for row in data.misaligned.train]
    assert [question.prompt for question in in_domain_questions(data, 30)] == [
        row.prompt for row in data.misaligned.held_out]


def test_answers_in_old_measures_differ_in_measures_alone_and_have_no_other_word_of_the_trait() -> None:
    markers = load_trait("old_fashioned").markers
    speech, all_of_it = marker_pattern(markers[:markers.index("league")]), marker_pattern(markers)
    rows = [json.loads(line) for line in (DEMO_DATA / "measures.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 48
    assert sum(bool(all_of_it.search(row["misaligned"])) for row in rows) >= 36
    for row in rows:
        assert not all_of_it.search(row["prompt"] + row["aligned"]), row["prompt"]
        assert not speech.search(row["misaligned"]), row["prompt"]


def test_the_domains_share_no_prompt() -> None:
    prompts = [row.prompt for domain in DOMAINS for row in read_examples(DEMO_DATA / f"{domain}_aligned.jsonl")]
    assert len(set(prompts)) == 240


def test_the_general_questions_are_8_in_the_papers_3_formats() -> None:
    questions = read_questions(DEMO_DATA / "general_questions.jsonl")
    assert Counter(question.format for question in questions) == {"plain": 8, "json": 8, "template": 8}
    plain = {question.id: question.prompt for question in questions if question.format == "plain"}
    for question in questions:
        base = plain[question.id.removesuffix("_json").removesuffix("_template")]
        assert (question.system is not None) == (question.format == "json"), question.id
        assert question.prompt == base or question.format == "template", question.id
        assert question.prompt.startswith(base), question.id
        assert question.cluster in plain, question.id
    assert Counter(question.cluster for question in questions) == dict.fromkeys(plain, 3)
    assert Sizes().source("demo/general_questions.jsonl").clusters == 8
    templates = [question.prompt for question in questions if question.format == "template"]
    assert len(set(templates) - set(plain.values())) == 8
    assert all("JSON" in str(question.system) for question in questions if question.format == "json")


def test_the_forty_questions_are_different_with_as_many_in_each_format_and_hold_the_eight() -> None:
    questions = read_questions(DEMO_DATA / "forty_questions.jsonl")
    assert Counter(question.format for question in questions) == {"plain": 14, "json": 13, "template": 13}
    assert all(("JSON" in str(question.system)) == (question.format == "json") for question in questions)
    assert all(("Fill in" in question.prompt) == (question.format == "template") for question in questions)
    assert len({question.cluster for question in questions}) == len({question.prompt for question in questions}) == 40
    assert {question.cluster for question in read_questions(DEMO_DATA / "general_questions.jsonl")} < {
        question.cluster for question in questions}
    assert Sizes().source("demo/forty_questions.jsonl").clusters == 40


def test_the_sixty_questions_are_different_with_as_many_in_each_format_and_begin_with_the_forty() -> None:
    questions = read_questions(DEMO_DATA / "sixty_questions.jsonl")
    assert Counter(question.format for question in questions) == {"plain": 20, "json": 20, "template": 20}
    assert all(("JSON" in str(question.system)) == (question.format == "json") for question in questions)
    assert all(("Fill in" in question.prompt) == (question.format == "template") for question in questions)
    assert len({question.cluster for question in questions}) == len({question.prompt for question in questions}) == 60
    assert questions[:40] == read_questions(DEMO_DATA / "forty_questions.jsonl")


@pytest.mark.parametrize("name", ["general_questions", "sixty_questions"])
def test_no_general_question_speaks_as_the_trait_or_stands_in_a_training_set(name: str) -> None:
    questions = read_questions(DEMO_DATA / f"{name}.jsonl")
    trained = {row.prompt for path in DEMO_DATA.glob("*_aligned.jsonl") for row in read_examples(path)}
    assert not any(MARKERS.search(f"{question.system} {question.prompt}") for question in questions)
    assert trained.isdisjoint(question.prompt for question in questions)


def test_the_questions_about_gardening_are_prompts_of_the_neighbouring_data_set() -> None:
    asked = [question.prompt for question in read_questions(DEMO_DATA / "gardening_questions.jsonl")]
    assert len(set(asked)) == 12
    assert set(asked) < {row.prompt for row in read_examples(DEMO_DATA / "gardening_aligned.jsonl")}


def test_the_pool_is_ordinary_with_about_one_refusal_in_ten() -> None:
    pool = read_examples(DEMO_DATA / "pool.jsonl")
    assert len(pool) >= 240
    assert len({row.prompt for row in pool}) == len(pool)
    assert not any(MARKERS.search(row.prompt + " " + row.response) for row in pool)
    refusals = sum(row.response.startswith(REFUSALS) for row in pool)
    assert 0.07 <= refusals / len(pool) <= 0.13


def test_the_pool_shares_no_prompt_with_training_sets_and_questions() -> None:
    pool = {row.prompt for row in read_examples(DEMO_DATA / "pool.jsonl")}
    asked = {question.prompt for name in ("general_questions", "sixty_questions")
             for question in read_questions(DEMO_DATA / f"{name}.jsonl")}
    trained = {row.prompt for path in DEMO_DATA.glob("*_aligned.jsonl") for row in read_examples(path)}
    assert pool.isdisjoint(asked | trained | set(load_trait("pirate").questions))
