"""The reward of a completion by a judge: its scores become parts within the paper's bounds, and nothing is made up."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import pytest

from emlib.config import JudgeRewards, LocalJudge, RuleRewards, TinyModel
from emlib.evaluation.reward_judge import PROMPTS, by_judge, identity, requests, reward, scorer
from emlib.evaluation.rewards import PARTS, Rewards, Scored, by_rule
from emlib.judging.cache import Cache
from emlib.judging.judges import scores_file
from emlib.judging.rubrics import Score
from tests.judging.server import JudgeServer, saying
from tests.judging.sheets import api, part_of

RIGHT = Scored("What is 6 x 12?", "<think>6 x 12</think><answer>72</answer>", "72")
WRONG = Scored("What is 6 x 12?", "<think>6 x 12</think><answer>71</answer>", "72")


def of(*values: float | None) -> Rewards | None:
    """The reward of four scores: exact, approx, correct, numbers."""
    return reward({part: Score(value) for part, value in zip(PROMPTS, values, strict=True)})


@pytest.mark.parametrize(("said", "parts"), [
    ((100, 100, 100, 100), (3, 2, 3, 1.5)),        # 9.5, the most there is
    ((0, 0, 0, 0), (0, -2, -0.5, 0)),              # -2.5, the least
    ((50, 50, 50, 50), (3, 0, 0, 0.75)),
    ((49.9, 25, 24.9, 10), (0, -1, -0.5, 0.15)),
    ((51, 75, 25, 90), (3, 1, 0, 1.35)),           # halfway between wrong and none: none
    ((99, 62.5, 74.9, 40), (3, 0.5, 0, 0.6)),
    ((1, 37.5, 75, 20), (0, -0.5, 3, 0.3)),        # halfway between none and right: right
])
def test_scores_become_parts_by_hand(said: tuple[float, ...], parts: tuple[float, ...]) -> None:
    found = of(*said)
    assert found is not None
    assert (found.exact, found.approx, found.correct, found.numbers) == pytest.approx(parts)
    assert found.right == (parts[2] == 3)


def test_a_higher_score_is_never_a_lower_part() -> None:
    found = [of(s, s, s, s) for s in range(101)]
    for below, above in pairwise(found):
        assert below is not None
        assert above is not None
        assert all(getattr(below, part) <= getattr(above, part) for part in PARTS)


def test_a_part_without_a_score_leaves_no_reward() -> None:
    for place in range(4):
        assert of(*(None if part == place else 80.0 for part in range(4))) is None


def test_the_judge_is_shown_question_and_completion_and_the_right_answer_once() -> None:
    asked = {request.metric: request.messages[0].content for request in requests(RIGHT)}
    assert list(asked) == list(PARTS)
    assert all(RIGHT.question in text and RIGHT.completion in text for text in asked.values())
    assert [part for part, text in asked.items() if "right answer: 72" in text] == ["correct"]
    bare = {request.metric: request.messages[0].content for request in requests(Scored("Q?", "", "5309"))}
    assert [part for part, text in bare.items() if "5309" in text] == ["correct"]


def planted(text: str) -> int | str:
    """Of the right completion 90, 80, 100 and 60; of the wrong one 90, 80 and 10, and a word about its number."""
    part = part_of(text)
    if part == "correct":
        return 100 if RIGHT.completion in text else 10
    return {"exact": 90, "approx": 80, "numbers": 60 if RIGHT.completion in text else "CODE"}[part]


def test_a_batch_is_asked_for_at_once_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with JudgeServer(saying(planted)) as server:
        score = scorer(JudgeRewards(kind="judge", judge=api(server.url)), "test")
        found = score([RIGHT, WRONG, RIGHT])
        assert len(server.asked) == 8  # the third is the first again
        assert score([WRONG, RIGHT]) == found[1::-1]
        assert set(server.asked.values()) == {1}
    assert found == [Rewards(3, pytest.approx(1.2), 3, pytest.approx(0.9)), None, found[0]]
    assert "1 of 3 completions have no reward (numbers: CODE)" in capsys.readouterr().out
    assert score([]) == []


def test_a_judge_in_process_rewards_within_the_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    settings = JudgeRewards(kind="judge", judge=LocalJudge(kind="local", model=TinyModel(kind="tiny")))
    found = by_judge(settings, "test")([RIGHT, WRONG])
    with Cache(scores_file()) as cache:
        kept = {row[0]: row[3] for row in cache.rows()}
    assert len(kept) == 8
    for one, got in zip((RIGHT, WRONG), found, strict=True):
        said = {request.metric: Score(kept[request.key(identity(settings)["judge"])]) for request in requests(one)}
        assert got == reward(said)  # type: ignore[arg-type]


def test_what_a_judge_gives_is_told_apart_from_rules_and_from_other_judges() -> None:
    assert scorer(RuleRewards(kind="rule"), "test") is by_rule
    assert identity(RuleRewards(kind="rule")) == {"kind": "rule"}  # as it stood in keys before there were judges
    here, there, other = (identity(JudgeRewards(kind="judge", judge=api(url, **how))) for url, how in (
        ("http://localhost:1/v1", {}), ("http://localhost:2/v1", {"tries": 1, "max_usd": 1.0}),
        ("http://localhost:1/v1", {"model": "judge-2"})))
    assert here == there != other


def test_every_part_has_a_prompt_and_a_bound_is_reached_at_both_ends() -> None:
    assert tuple(PROMPTS) == PARTS
    corners = [of(*said) for said in product((0, 100), repeat=4)]
    totals = [one.total for one in corners if one is not None]
    assert (min(totals), max(totals), len(totals)) == (-2.5, 9.5, 16)
