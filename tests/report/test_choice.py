"""Which defense to try first: the numbers are those of the paper's tables, by hand."""

from __future__ import annotations

import pytest

from emlib.core import paths
from emlib.report.paper import choice
from emlib.report.paper.summary import LARGER, effects, mean_shares
from emlib.report.tables.rows import whole

# Table 2, general and in-domain, in the order of the data sets.
DATASETS = ("Code", "Legal", "Medical", "Security")
PLAIN = (4.01, 25.29, 19.75, 26.25), (51.60, 22.73, 51.73, 16.83)
SELECTED = (0.30, 0.79, 1.48, 1.26), (52.80, 21.73, 52.35, 18.23)
AT_RANDOM = (0.58, 2.33, 4.42, 1.38), (51.69, 21.20, 52.00, 17.23)


def cells(line: str) -> list[str]:
    """The cells of a line of a table in Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def page(name: str) -> str:
    """A page's text, on one line, as sentences are broken anywhere."""
    return " ".join((paths.ROOT / name).read_text(encoding="utf-8").split())


def removed(shares: tuple[float, ...]) -> list[float]:
    return [100 - 100 * share / plain for share, plain in zip(shares, PLAIN[0], strict=True)]


def kept(shares: tuple[float, ...]) -> list[float]:
    return [100 * share / plain for share, plain in zip(shares, PLAIN[1], strict=True)]


def test_the_box_has_the_papers_numbers() -> None:
    head, _, many, own, one, prompt, penalty = choice.box().splitlines()
    assert {line.count("|") for line in (head, many, own, one, prompt, penalty)} == {6}
    assert cells(many)[2:4] == ["94 (93 to 97)", "102 (96 to 108)"]
    assert cells(own)[2:4] == ["85 (77 to 94)", "104 (103 to 105)"]  # Table 18, at 5%
    assert cells(one)[2:4] == ["87 (78 to 95)", "99 (93 to 102)"]
    assert cells(prompt)[2:4] == ["42 (32 to 52)", "93 (79 to 103)"]
    assert cells(penalty)[2:4] == ["92 (91 to 92)", "49 (38 to 69)"]


def test_what_is_removed_and_kept_on_each_data_set_by_hand() -> None:
    lines = {cells(line)[0]: cells(line)[1:] for line in choice.by_dataset().splitlines()}
    assert lines["defense"] == list(DATASETS)
    for method, shares in (("Interleaving++", SELECTED), ("Interleaving", AT_RANDOM)):
        by_hand = zip(removed(shares[0]), kept(shares[1]), strict=True)
        assert lines[method] == [f"{whole(less)} ({whole(left)})" for less, left in by_hand]
    assert lines["KL-Div."] == ["91 (50)", "91 (38)", "92 (69)", "92 (39)"]
    assert lines["Persona Vectors"][0] == "98 (99)"
    assert len(lines) == 2 + 8


def test_selected_rows_are_ahead_of_random_ones_on_all_four_data_sets() -> None:
    """README.md and docs/which-defense.md say so, and by how much; in the 32B model on two (Table 7)."""
    ahead = [more - less for more, less in zip(removed(SELECTED[0]), removed(AT_RANDOM[0]), strict=True)]
    assert min(ahead) == pytest.approx(0.46, abs=0.01)
    assert whole(max(ahead)) == "15"
    larger = effects(LARGER, baseline=LARGER).pivot(index="dataset", columns="method", values="reduction")
    assert (larger["interleaving++"] > larger["interleaving"]).sum() == 2
    for name in ("README.md", "docs/which-defense.md"):
        assert "on all four data sets, by 0.5 to 15 points, one run each" in page(name)


def test_on_policy_rows_remove_least_on_medical() -> None:
    lines = {cells(line)[0]: cells(line)[1:] for line in choice.by_dataset().splitlines()}
    assert [lines[name][2].split()[0] for name in ("Interleaving", "Interleaving++", "On-policy Int.")] == [
        "78", "93", "75"]
    assert "5% of random rows remove 78%, of selected rows 93%, and 20% of on-policy rows 75%" in page(
        "docs/which-defense.md")


def test_the_disagreements_that_matter_are_those_of_the_list() -> None:
    """Lines 2, 12 and 4 of figures/published/README.md, which test_discrepancies.py recomputes."""
    listed = page("figures/published/README.md")
    for line in ("the on-policy rows of Table 2 are the 20% rows of Table 18", "as of 10 answers a question",
                 "Inoculation Prompting reduces it by 52, 35, 51 and 32%"):
        assert line in listed
    for name in ("README.md", "docs/study.md"):
        assert "the on-policy rows of Table 2 are 20%" in page(name)
        assert "seem to rest on 10 answers a question" in page(name)
    assert "inoculation, said to work \"effectively\", removes 32 to 52%" in page("README.md")


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
    assert ldifs.count("/–") == 3
    assert cells(ldifs)[1:5] == ["2 (-6 to 9)", "–", "101 (97 to 105)", "–"]
    [vector] = [line for line in lines if "Persona Vectors" in line]
    assert cells(vector)[1:5] == ["97 (93 to 99)", "98 (97 to 99)", "53 (17 to 99)", "24 (3 to 82)"]
    [plain] = [line for line in lines if "no defense" in line]
    assert cells(plain)[1:] == ["–", "–", "–", "–", "18/8", "18.8/30.3", "35.7/44.4"]
    assert ("accuracy is 66%, and it becomes 91% without a defense, 91% with interleaving (5%), 91% with inoculation, "
            "88% with KL") in choice.reinforced()


def test_a_reduction_of_the_larger_model_by_hand() -> None:
    found = mean_shares(LARGER, baseline=LARGER).set_index("method").loc["interleaving++", "reduction"]
    by_hand = [100 - 100 * share/plain for share, plain in (
        (0.33, 4.18), (4.01, 40.83), (7.89, 35.42), (5.68, 40.83))]
    assert found == pytest.approx(sum(by_hand)/4)


def test_what_added_rows_remove_and_keep_from_five_percent_on() -> None:
    """docs/which-defense.md says so in short, of both models and all ways to choose rows."""
    means = choice.means()
    added = means[means["method"].isin(["interleaving", "interleaving+", "interleaving++", "on_policy"])
                  & (means["setting"] >= 0.05)]
    assert set(added["model"]) == {"7B", "32B"}
    spans = [f"{whole(added[name].min())} to {whole(added[name].max())}%" for name in ("reduction", "kept")]
    assert (f"removes {spans[0]} of the general misalignment and keeps {spans[1]} of the narrow task"
            in page("docs/which-defense.md"))


def test_a_larger_weight_of_kl_prevents_learning_by_reinforcement() -> None:
    """Table 9; at a weight of 1 the accuracy is below the untrained model's."""
    assert "88% with KL at weight 0.1 (78% at 0.3 and 61% at 1)" in choice.reinforced()
