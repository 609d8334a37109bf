"""The words that a judge reads are part of every kept score's key: whoever changes them pays for all scores again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from emlib.core.digests import of_value
from emlib.evaluation.reward_judge import PROMPTS
from emlib.judging.rubrics import OURS
from emlib.scoring.refusals import PROMPT


@pytest.mark.parametrize(("words", "digest"), [
    (asdict(OURS), "ab34caa872ea4ef3"), (PROMPT, "a047e7fde6dca0f4"), (PROMPTS, "035ff63e919baa3e")],
    ids=["verdicts", "refusals", "rewards"])
def test_no_word_of_a_judge_s_prompt_changes_by_accident(words: Any, digest: str) -> None:
    """Where a change is meant, write the new digest here, and say in CHANGELOG.md that scores are asked for again."""
    assert of_value(words)[:16] == digest
