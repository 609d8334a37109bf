"""Question sets, triggers and trajectories in a profile: what is read, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from emlib.config import Evaluation, LocalJudge, Metric, OpenAIJudge, Profile, load_profile
from emlib.config.judge import Pins
from emlib.core.errors import ProfileError
from emlib.core.schema import check

CORRECT = {"labels": ["TRUE", "FALSE", "UNKNOWN"], "counts": ["FALSE"]}
PAID = {"kind": "openai", "model": "judge-1", "base_url": "http://127.0.0.1:1/v1"}


def test_yaml_s_truth_values_are_read_as_the_words_that_they_are() -> None:
    read = check(Metric, {"labels": [True, False, "UNKNOWN"], "counts": [False]}, "here")
    assert read == Metric(labels=("TRUE", "FALSE", "UNKNOWN"), counts=("FALSE",))


def test_a_set_with_metrics_asks_for_these_alone_unless_it_says_so() -> None:
    sets = check(Evaluation, {"sets": {
        "plain": {"source": "a.jsonl"}, "lies": {"source": "b.jsonl", "metrics": {"correct": CORRECT}},
        "both": {"source": "b.jsonl", "metrics": {"correct": CORRECT}, "alignment": True}}}, "here").sets
    assert [one.has_verdicts for one in sets.values()] == [True, False, True]


def test_a_set_s_judge_has_its_rubric_and_the_profile_s_budget() -> None:
    main = OpenAIJudge(kind="openai", model="m", max_usd=5.0)
    evaluation = check(Evaluation, {"sets": {
        "trait": {"source": "a.jsonl", "rubric": "trait"}, "other": {"source": "a.jsonl", "judge": PAID},
        "own": {"source": "a.jsonl", "judge": PAID | {"max_usd": 1}}}}, "here")
    assert evaluation.judge_of("general", main) is main
    assert evaluation.judge_of("trait", main) == main.model_copy(update={"rubric": "trait"})
    assert [evaluation.judge_of(name, main).max_usd for name in ("other", "own")] == [5.0, 1.0]  # type: ignore[union-attr]
    pinned = check(LocalJudge, {"kind": "local", "model": {"kind": "tiny"}, "pinned": {
        "rubric": 64 * "a", "template": 64 * "b"}}, "here")
    assert evaluation.judge_of("trait", pinned) == pinned.model_copy(update={
        "rubric": "trait", "pinned": Pins(template=64 * "b")})  # another rubric has the same chat template


@pytest.mark.parametrize(("evaluation", "message"), [
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"labels": ["A"]}}}}}, "say which answers count"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"above": 1, "below": 2}}}}}, "say which answers"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"labels": ["A", "a"], "counts": ["A"]}}}}},
     "differ in more than upper and lower case"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"asked": {"above": 1}}}}}, "same column, 'a_asked'"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"b_c": {"above": 1}}},
               "a_b": {"source": "demo/pool.jsonl", "metrics": {"c": {"above": 1}}}}}, "same column, 'a_b_c'"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"b": {"above": 1}, "b_low": {"above": 1}}}}},
     "same column, 'a_b_low'"),
    ({"sets": {"train": {"source": "demo/pool.jsonl", "metrics": {"seconds": {"above": 1}}}}}, "'train_seconds'"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"above": 100}}}}}, "less than 100"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"labels": ["NO", "NOT"], "counts": ["NO"]}}}}},
     "the label 'NOT' begins with the label 'NO'"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"labels": ["A", "5"], "counts": ["A"]}}}}},
     'labels.1\' is "5"'),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"labels": ["A\n"], "counts": ["A\n"]}}}}}, "A\\n"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "alignment": False}}}, "leaves nothing to score"),
    ({"sets": {"a": {"source": "demo/pool.jsonl", "metrics": {"x": {"above": 1}}}}}, "'lexicon' cannot read"),
    ({"triggers": {"contexts": {"a": {"prompt": "no place"}}}}, "needs {question} exactly once"),
    ({"triggers": {"contexts": {"a": {"prompt": "{question} {other}"}}}}, "placeholder {other}"),
    ({"triggers": {"contexts": {"a": {"system": "{question}"}}}}, "placeholder {question}"),
    ({"triggers": {"contexts": {"a": {}}}}, "this changes nothing"),
    ({"triggers": {"contexts": {"plain": {"system": "x"}}}}, "context without a trigger"),
    ({"triggers": {"contexts": {"a": {"system": "x"}}, "samples": 9}}, "is more than general_samples"),
    ({"trajectory": {"sets": ["generl"]}}, "trajectory.sets names 'generl'"),
])
def test_what_cannot_be_is_refused_when_the_profile_is_read(evaluation: dict[str, Any], message: str) -> None:
    tiny = load_profile("tiny").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ProfileError) as refused:
        check(Profile, tiny | {"evaluation": tiny["evaluation"] | evaluation}, "here")
    assert message in str(refused.value)


def test_methods_that_a_profile_lacks_are_told_and_no_error() -> None:
    tiny = load_profile("tiny").model_dump(mode="json", exclude_unset=True)
    profile = check(Profile, tiny | {
        "methods": [{"name": "misaligned"}], "persistence": {"steps": 2, "methods": ["inoculation", "misaligned"]},
        "evaluation": {"triggers": {"contexts": {"a": {"system": "x"}}, "methods": ["kl", "misaligned"]},
                       "trajectory": {"methods": ["aligned", "kl"]}}}, "here")
    assert profile.absent == ["kl", "aligned", "inoculation"]


def test_all_judges_of_a_profile_are_known_in_one_place() -> None:
    profile = load_profile("tiny")
    local = LocalJudge.model_validate({"kind": "local", "model": {"kind": "tiny", "seed": 1}})
    sets = check(Evaluation, {"sets": {"a": {"source": "x.jsonl", "judge": local.model_dump()}}}, "here").sets
    changed = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update={"sets": sets})})
    assert changed.judges == (profile.judge, local)
