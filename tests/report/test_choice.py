"""Which defense to try first: the numbers are those of the paper's tables, by hand."""

from __future__ import annotations

import pytest

from emlib.core import paths
from emlib.report.paper import choice
from emlib.report.paper.summary import LARGER, mean_shares
from emlib.report.tables import rows


def cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_box_has_the_papers_numbers() -> None:
    head, _, many, own, one, prompt, none = choice.box().splitlines()
    assert {line.count("|") for line in (head, many, own, one, prompt, none)} == {8}
    assert cells(many)[2:6] == ["94 (93 to 97)", "87 (78 to 92)", "102/91", "13/8"]  # the 7B and the 32B model
    assert cells(own)[2:4] == ["88 (75 to 98)", "97 (94 to 100)"]  # Tables 18 and 22, at 20%
    assert cells(one)[2:6] == ["87 (78 to 95)", "82 (68 to 92)", "99/91", "18/7"]
    assert cells(prompt)[2:5] == ["42 (32 to 52)", "80 (61 to 89)", "93/66"]
    assert cells(none)[2:] == ["–", "–", "–/–", "18/8", ""]


def test_selected_rows_are_ahead_of_random_ones_on_medical() -> None:
    """README.md says so, of Table 2: 1.48 and 4.42 of 19.75."""
    page = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    chosen, at_random = (rows.whole(100 - 100 * share / 19.75) for share in (1.48, 4.42))
    assert f"ahead in the 7B model ({chosen} against {at_random}%, one run" in page


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
    assert ldifs.count("/–") == 4
    assert cells(ldifs)[1:3] == ["2 (-6 to 9)", "–"]
    [plain] = [line for line in lines if "no defense" in line]
    assert cells(plain)[1:] == ["–", "–", "–/–", "18/8", "18.8/30.3", "35.7/44.4"]
    assert "91% without a defense, 91% with interleaving (5%), 91% with inoculation, 88% with KL" in choice.reinforced()


def test_a_reduction_of_the_larger_model_by_hand() -> None:
    found = mean_shares(LARGER, baseline=LARGER).set_index("method").loc["interleaving++", "reduction"]
    by_hand = [100 - 100 * share/plain for share, plain in (
        (0.33, 4.18), (4.01, 40.83), (7.89, 35.42), (5.68, 40.83))]
    assert found == pytest.approx(sum(by_hand)/4)
