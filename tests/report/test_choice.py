"""Which defense to try first: the numbers are those of the paper's tables, by hand."""

from __future__ import annotations

import pytest

from emlib.report.paper import choice
from emlib.report.paper.summary import LARGER, mean_shares


def cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_box_has_the_papers_numbers() -> None:
    head, _, many, own, one, prompt, none = choice.box().splitlines()
    assert {line.count("|") for line in (head, many, own, one, prompt, none)} == {7}
    assert cells(many)[2:5] == ["94/87", "102/91", "13/8"]  # the 7B and the 32B model
    assert cells(own)[2] == "88/97"  # Tables 18 and 22, at 20%
    assert cells(one)[2:5] == ["87/82", "99/91", "18/7"]
    assert cells(prompt)[2:4] == ["42/80", "93/66"]
    assert cells(none)[2:] == ["–/–", "–/–", "18/8", ""]


def test_what_random_and_selected_rows_remove_in_the_larger_model() -> None:
    """Table 7: at 5% Interleaving+ removes less than random rows, and Interleaving++ more, on average."""
    lines = choice.by_fraction().splitlines()
    [five] = [line for line in lines if line.startswith("| 32B") and " 5% " in line]
    assert [cell.split()[0] for cell in five.split("|")[3:7]] == ["82", "70", "87", "86"]
    assert len(lines) == 2 + 8


def test_every_defense_of_the_paper_is_compared_and_ldifs_was_not_tried_in_the_larger_model() -> None:
    lines = choice.comparison().splitlines()
    assert len(lines) == 2 + 12  # with three baselines, and on-policy rows at two fractions
    [ldifs] = [line for line in lines if "LDIFS" in line]
    assert ldifs.count("/–") == 5
    [plain] = [line for line in lines if "no defense" in line]
    assert cells(plain)[1:] == ["–/–", "–/–", "18/8", "18.8/30.3", "35.7/44.4"]
    assert "91% without a defense, 91% with interleaving (5%), 91% with inoculation, 88% with KL" in choice.reinforced()


def test_a_reduction_of_the_larger_model_by_hand() -> None:
    found = mean_shares(LARGER, baseline=LARGER).set_index("method").loc["interleaving++", "reduction"]
    by_hand = [100 - 100 * share/plain for share, plain in (
        (0.33, 4.18), (4.01, 40.83), (7.89, 35.42), (5.68, 40.83))]
    assert found == pytest.approx(sum(by_hand)/4)
