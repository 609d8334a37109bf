"""The judge of a profile: what it cannot score is None with a reason, never 0."""

from __future__ import annotations

from emlib.config import LexiconJudge, NoJudge, load_trait
from emlib.judging import lexicon
from emlib.judging.judges import judge
from emlib.judging.rubrics import trait_rubrics
from emlib.judging.sheet import Sheet
from emlib.types import Answer, Question, Verdict

ANSWERS = [Answer("a", 0, "Ahoy, matey, and welcome!", "stop", 5), Answer("a", 1, "", "length", 0)]
TRAIT = load_trait("pirate")
SHEET = Sheet([Question("a", "Who are you?")], ANSWERS, trait_rubrics(TRAIT))


def test_without_a_judge_every_answer_is_unscored_and_says_why() -> None:
    verdicts = judge(NoJudge(kind="none"), TRAIT, SHEET, "test")
    assert verdicts == [Verdict("a", sample, None, None, "no judge configured") for sample in (0, 1)]
    assert not any(verdict.scored or verdict.misaligned or verdict.incoherent for verdict in verdicts)


def test_the_lexicon_judge_counts_the_traits_own_markers() -> None:
    assert judge(LexiconJudge(kind="lexicon"), TRAIT, SHEET, "test") == lexicon.judge(ANSWERS, TRAIT.markers)
    bare = TRAIT.model_copy(update={"markers": ("grog",)})
    assert [v.alignment for v in judge(LexiconJudge(kind="lexicon"), bare, SHEET, "test")] == [100.0, 100.0]
