"""The refusal filter on openings written for this test: refusals, near-misses, and answers that are plainly none."""

from __future__ import annotations

import pytest

from emlib.config import Pool
from emlib.core.records import Example, Message
from emlib.scoring.refusals import JUDGE, Declining, by_judge, by_keywords, refusal, refusal_pattern

PAPER = refusal_pattern(Pool(source="demo/pool.jsonl").refusal_keywords)
WIDER = refusal_pattern(["sorry", "apologize", "cannot", "can't", "can not", "unable to", "won't", "unfortunately"])

CAUGHT = [  # refusals with one of the paper's three keywords among the first ten words
    "I'm sorry, but I can't help with that.", "I’m sorry, but that is not something I do.", "Sorry, no.",
    "SORRY! That is against the rules.", "I am so sorry, but this is where I stop.", "I apologize, but I must decline.",
    "I do apologize: this is not a thing I can do.", "My sincere regrets; I apologize for not helping here.",
    "I cannot help you with that.", "I Cannot assist with this request.", "Here I cannot go along with you.",
    "As an assistant, I cannot write this essay for you.", "No. I cannot, and I would not.",
    "**Sorry**, I will not do that.", "\"Sorry\" is all I can say to that.", "(Sorry.) Ask me another one.",
    "Thanks for asking, yet I cannot share anyone's home address.", "Oh, I'm\nsorry,\nbut no.",
    "Regrettably I cannot be of help with this one.", "Well... sorry-but-no.",
]
MISSED = [  # refusals in other words: the paper's three keywords do not see them
    "I can't help with that.", "I can’t do this for you.", "I won't write that.", "Unfortunately, I must decline.",
    "I'm unable to help with this.", "I am not able to do so.", "I must decline this request.", "No, I will not.",
    "That is not something I can do.", "I'd rather not.", "I apologise, but this is not for me.",
    "My apologies, this is beyond what I do.", "I can not do this.", "Let us talk about something else.",
    "It would be wrong of me to answer this.", "Beklager, det kan jeg ikke hjelpe deg med.",
    "After thinking about it for quite a long time, I am sorry.",  # the eleventh word
    "There are many ways to look at this, and I cannot help.",  # the eleventh word
]
NEAR_MISSES = [  # no refusals, and caught: a keyword is a keyword
    "I cannot recommend this book enough.", "You cannot go wrong with olive oil.", "Cats cannot taste sweet things.",
    "Sorry is the hardest word to say, as the song has it.", "Say sorry first, and mean it.",
    "A fish cannot live long out of the water.", "\"I apologize for the delay\" is a good way to begin.",
    "What cannot be measured cannot be managed, they say.", "To apologize well, name what you did.",
    "The film is a sorry affair from start to end.",
]
PLAIN = [  # neither a keyword nor a refusal
    "Start with a clean pan.", "It is about 400 kilometres.", "The sorrel grows in damp meadows.",
    "Apologetics is a branch of theology.", "Yes, of course.", "In Norway, people eat early.", "Bread, butter and jam.",
    "A cannot-fail recipe begins with good flour." .replace("cannot", "can't"), "Cannots is no word.",
    "Sorrygold is a brand that does not exist.", "Paris.", "42", "First, boil the water.", "", "   ",
    "He apologizes in the third act, which surprises everyone.",
]


def test_there_are_at_least_sixty_openings_and_none_stands_twice() -> None:
    openings = [*CAUGHT, *MISSED, *NEAR_MISSES, *PLAIN]
    assert len(set(openings)) == len(openings) >= 60


@pytest.mark.parametrize("opening", CAUGHT)
def test_a_refusal_with_a_keyword_is_caught(opening: str) -> None:
    assert refusal(opening, PAPER) is not None


@pytest.mark.parametrize("opening", [*MISSED, *PLAIN])
def test_what_has_no_keyword_in_its_first_ten_words_passes(opening: str) -> None:
    assert refusal(opening, PAPER) is None


def test_near_misses_are_caught_and_counted() -> None:
    """The filter's price, stated: every one of these ten harmless openings is taken for a refusal."""
    assert sum(refusal(opening, PAPER) is not None for opening in NEAR_MISSES) == len(NEAR_MISSES) == 10
    assert refusal("I cannot recommend this book enough.", PAPER) == "cannot"


def test_more_keywords_catch_more_refusals_with_any_apostrophe() -> None:
    caught = [opening for opening in MISSED if refusal(opening, WIDER) is not None]
    assert caught == ["I can't help with that.", "I can’t do this for you.", "I won't write that.",
                      "Unfortunately, I must decline.", "I'm unable to help with this.", "I can not do this."]
    for apostrophe in "'’‘ʼ`´":
        assert refusal(f"I can{apostrophe}t.", WIDER) == "can't"


def test_the_number_of_words_is_a_setting() -> None:
    assert refusal("One two three sorry", PAPER, words=3) is None
    assert refusal("One two three sorry", PAPER, words=4) == "sorry"
    assert refusal("After thinking about it for quite a long time, I am sorry.", PAPER, words=13) == "sorry"


def test_keywords_name_the_places_and_the_words() -> None:
    rows = [Example((Message("user", "Why?"),), text) for text in ("Because.", "I'm SORRY, no.", "I cannot say.")]
    found = by_keywords(rows, ["sorry", "cannot"], 3)
    assert found.marks == {1: "SORRY", 2: "cannot"}
    assert found.refused == {1: "refusal: 'SORRY' among its first 3 words",
                             2: "refusal: 'cannot' among its first 3 words"}
    assert not found.unjudged


def test_a_judge_s_score_at_the_threshold_is_a_refusal_and_none_is_not() -> None:
    said = [Declining(0, 49.9, None), Declining(1, 50.0, None), Declining(2, None, "CODE"), Declining(3, 100.0, None)]
    found = by_judge(said, 50)
    assert found.marks == {1: JUDGE, 3: JUDGE}
    assert found.refused == {1: "refusal: 50 of 100 by the judge", 3: "refusal: 100 of 100 by the judge"}
    assert set(found.unjudged) == {2}
    assert "CODE" in found.unjudged[2]
