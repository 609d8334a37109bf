"""The judge of a profile: what it cannot score is None with a reason, never 0."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.config import LexiconJudge, LlmJudge, LocalJudge, NoJudge, TinyModel, load_trait
from emlib.core.errors import JudgeError
from emlib.core.records import Answer, Question, Verdict
from emlib.judging import lexicon
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge, scores, scores_file
from emlib.judging.rubrics import JudgeRequest, Rubric, Rubrics, Score, trait_rubrics
from tests.judging.server import JudgeServer, saying
from tests.judging.sheets import api

ANSWERS = [Answer("a", 0, "Ahoy, matey, and welcome!", "stop", 5), Answer("a", 1, "", "length", 0)]
TRAIT = load_trait("pirate")
SHEET = JudgeBatch([Question("a", "Who are you?")], ANSWERS, trait_rubrics(TRAIT))


def test_without_a_judge_every_answer_is_unscored_and_says_why() -> None:
    verdicts = judge(NoJudge(kind="none"), TRAIT, SHEET, "test")
    assert verdicts == [Verdict("a", sample, None, None, "no judge configured") for sample in (0, 1)]
    assert not any(verdict.scored or verdict.misaligned or verdict.incoherent for verdict in verdicts)


def test_the_lexicon_judge_counts_the_traits_own_markers() -> None:
    assert judge(LexiconJudge(kind="lexicon"), TRAIT, SHEET, "test") == lexicon.judge(ANSWERS, TRAIT.markers)
    bare = TRAIT.model_copy(update={"markers": ("grog",)})
    assert [v.alignment for v in judge(LexiconJudge(kind="lexicon"), bare, SHEET, "test")] == [100.0, 100.0]


def test_what_an_answer_thinks_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by counting words nor by a model; an answer that only thinks is unscored, and no request is made."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    texts = ["<think>\nAhoy matey arr arr?\n</think>\n\nGood day to you.", "<think>\nAhoy, but", "Ahoy, ahoy, arr!"]
    answers = [Answer("a", sample, text, "stop", 9) for sample, text in enumerate(texts)]
    batch = JudgeBatch([Question("a", "Who are you?")], answers, trait_rubrics(TRAIT))
    thought, cut, pirate = judge(LexiconJudge(kind="lexicon"), TRAIT, batch, "test")
    assert (thought.alignment, cut.alignment, cut.coherence) == (100.0, None, None)
    assert not cut.scored
    assert "never closes" in str(cut.reason)
    assert pirate.misaligned
    with JudgeServer(saying(lambda _: 90)) as server:
        asked = judge(api(server.url), TRAIT, batch, "test")
        assert not any("<think>" in prompt or "matey" in prompt for prompt in server.asked)
        assert sum(server.asked.values()) == 4
    assert [verdict.coherence for verdict in asked] == [90, None, 90]
    assert [verdict.sample for verdict in asked] == [0, 1, 2]


@pytest.mark.parametrize(("text", "final"), [
    ("So.", "So."), ("<think>\n\n</think>\n\n    x = 1", "    x = 1"), (" <think>a</think>b<think>c", "b<think>c"),
    ("<think>a</think>\n<think>b</think>So.", "So."), ("[THINK]a[/THINK]So.", "So."), ("<think>a", None),
    ("<think>a</think>", ""), ("The tag </think> closes.", "The tag </think> closes.")])
def test_an_answer_is_what_follows_its_thinking(text: str, final: str | None) -> None:
    answer = Answer("a", 0, text, "stop", 1)
    assert (answer.final, answer.without_thinking().text) == (final, final or "")


SINGLE = [JudgeRequest("refusal", "Declines? {question} {answer}", Question("a", "Why?"), "No."),
          JudgeRequest("correct", "Right? {answer} or {reference}?", Question("b", "How many?"), "72", "{answer}"),
          JudgeRequest("refusal", "Declines? {question} {answer}", Question("c", "Why?"), "No.")]


def test_single_scores_are_had_in_order_and_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    texts = {"Declines? Why? No.": 90, "Right? 72 or {answer}?": "REFUSAL"}  # what is filled in has no places
    with JudgeServer(saying(texts.__getitem__)) as server:
        found = [scores(api(server.url), SINGLE, "test") for _ in range(2)]
        assert sorted(server.asked.values()) == [1, 1]  # the first and the last are the same question
    assert found[0] == found[1]
    assert [(score.value, score.reason) for score in found[0]] == [(90, None), (None, "REFUSAL"), (90, None)]
    with Cache(scores_file()) as cache:
        assert sorted(row[2] for row in cache.rows()) == ["correct", "refusal"]


def test_a_judge_at_another_address_is_told_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name identifies it, so that what another model of this name has scored elsewhere is taken for its own."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with JudgeServer(saying(lambda _: 90)) as one, JudgeServer(saying(lambda _: 10)) as other:
        told = []
        for url in (one.url, one.url, other.url, other.url, one.url):
            assert [score.value for score in scores(api(url), SINGLE, "test")] == [90] * 3
            told.append("is asked at" in capsys.readouterr().out)
        assert told == [False, False, True, False, False]


def test_scores_that_could_not_be_had_stop_everything_or_are_none(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with JudgeServer(saying(lambda _: 90), fault=lambda *_: "500") as server:
        with pytest.raises(JudgeError, match=r"3 of 3 requests to the judge failed: .*status 500"):
            scores(api(server.url, tries=1), SINGLE, "test")
        given_up = scores(api(server.url, tries=1, unanswered="unscored"), SINGLE, "test")
        assert [score.value for score in given_up] == [None] * 3
        server.fault = lambda *_: None
        assert [score.value for score in scores(api(server.url), SINGLE, "test")] == [90] * 3


def test_a_judge_in_process_gives_single_scores_as_it_gives_verdicts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric is a name in the books: the same prompt has the same score under any."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    spec: LlmJudge = LocalJudge(kind="local", model=TinyModel(kind="tiny"))
    prompt, question = SINGLE[0].prompt, Question("a", "Who are you?")
    [refusal] = scores(spec, [JudgeRequest("refusal", prompt, question, "Ahoy!")], "test")
    sheet = JudgeBatch([question], [Answer("a", 0, "Ahoy!", "stop", 2)], Rubrics(Rubric(prompt, prompt)))
    [verdict] = judge(spec, TRAIT, sheet, "test")
    assert refusal == Score(verdict.alignment, refusal.mass, refusal.reason, tokens=refusal.tokens)
    assert verdict.alignment == verdict.coherence
    assert refusal.reason is None or f"alignment: {refusal.reason}" in str(verdict.reason)
