"""The typed-in tables: every number against the paper's text, and the sums and repetitions that the paper promises."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from emlib.config import BASELINES
from emlib.core.errors import DataError
from emlib.report.paper import published
from emlib.report.tables.result_tables import MEASURES

ROWS = {2: 44, 3: 36, 4: 9, 5: 8, 7: 32, 9: 13, 11: 7, 12: 24, 13: 24, 14: 24, 15: 20, 16: 20, 17: 20,
        18: 16, 19: 16, 20: 16, 21: 16, 22: 16}
LARGE = (7, 19, 20, 21, 22)
IN_WORDS = {"Untrained": "untrained", "Aligned": "aligned", "Misaligned": "misaligned", "KL-Div.": "kl", "KL": "kl",
            "LDIFS": "ldifs", "Persona Vectors": "persona_vector", "Pers. Vecs": "persona_vector",
            "Inoculation Prompting": "inoculation", "Inoc. Prompting": "inoculation", "Interleaving": "interleaving",
            "Interleaving+": "interleaving+", "Interleaving++": "interleaving++", "On-policy Int.": "on_policy",
            "Baseline": "untrained", "SFT": "sft", "SFT (Default)": "sft"}
OF_GRPO = {"No fine-tuning": ("untrained", None), "GRPO": ("grpo", None), "Steer": "persona_vector",
           "Persona Vectors": "persona_vector", "KL": "kl", "Interl.": "interleaving", "Interleaving": "interleaving",
           "Inoc. Prompt": ("inoculation", None), "Inoculation Prompt": ("inoculation", None)}


def above_caption(paper: str, number: int, first: str) -> list[str]:
    """The lines of a table whose caption stands below it, from the line that starts with `first`."""
    lines = paper.split("\n")
    end = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}: "))
    start = max(i for i, line in enumerate(lines[:end]) if line.startswith(first))
    return lines[start + 1:end]


def below_caption(paper: str, number: int, rows: int) -> list[str]:
    """The lines of a table whose caption stands above it, without its heading."""
    lines = paper.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}: "))
    return lines[start + 2:start + 2 + rows]


def number_in(text: str) -> float | None:
    """The setting in a label: `λ=0.1\\lambda=0.1` and `5%` are fractions or strengths."""
    share = re.search(r"(\d+)\\?%", text)
    strength = re.search(r"[{}a-z]=?\}?=?\}?([\d.]+)\)?$", text)
    return int(share[1]) / 100 if share else float(strength[1]) if strength else None


def cells(frame: pd.DataFrame, names: list[str]) -> list[tuple[object, ...]]:
    return [tuple(None if pd.isna(value) else value for value in row) for row in frame[names].itertuples(index=False)]


@pytest.mark.parametrize("number", published.RATES)
def test_misalignment_tables_are_the_papers(paper: str, number: int) -> None:
    expected, dataset = [], ""
    for line in above_caption(paper, number, "Adapter General In-Domain"):
        found = re.fullmatch(r"(\S.*?)((?: \d+\.\d\d){4})", line)
        if found:
            name, _, setting = found[1].partition(", ")
            expected.append((dataset, IN_WORDS[name], number_in(setting), *map(float, found[2].split())))
        elif line.istitle() and " " not in line:
            dataset = line.lower()
    typed = published.table(number)
    if number in (2, 7):  # they name no settings
        assert [row[:2] + row[3:] for row in expected] == cells(typed, ["dataset", "method", *MEASURES])
    else:
        assert expected == cells(typed, ["dataset", "method", "setting", *MEASURES])
    assert set(typed["model"]) == {published.LARGE if number in LARGE else published.SMALL}


@pytest.mark.parametrize("number", [3, 4])
def test_benign_tables_are_the_papers(paper: str, number: int) -> None:
    expected = []
    for line in below_caption(paper, number, 9):
        found = re.fullmatch(r"(.*?)((?: \d+\.\d\d)+)", line)
        assert found, line
        tiers = range(4) if number == 3 else [None]
        expected += [(IN_WORDS[found[1]], tier, float(value))
                     for tier, value in zip(tiers, found[2].split(), strict=True)]
    assert expected == cells(published.table(number), ["method", "tier", "exact_match"])


def test_table_11_is_the_papers(paper: str) -> None:
    expected = []
    for line in below_caption(paper, 11, 7):
        found = re.fullmatch(r"(.*?) (\d+\.\d\d)±(\d\.\d\d)\2\\pm \3", line)
        assert found, line
        method = {"No": "sft", "Inoculation": "inoculation", "Persona": "persona_vector"}[line.split()[0]]
        expected.append((method, number_in(found[1]), float(found[2]), float(found[3])))
    assert expected == cells(published.table(11), ["method", "setting", "exact_match", "std"])
    assert set(published.table(11)["n"]) == {5}


def of_grpo(text: str) -> tuple[str, float | None]:
    name = re.sub(r"^(GRPO )?\+ ", "", text)
    known = OF_GRPO.get(name) or OF_GRPO[name.partition(" (")[0]]
    return known if isinstance(known, tuple) else (known, number_in(name.replace("\\%", "%")))


def test_table_5_is_the_papers(paper: str) -> None:
    expected = []
    for line in above_caption(paper, 5, "Method Eval Acc"):
        found = re.fullmatch(r"(.*?) (\d+\.\d\d)(?:\2|\\mathbf\{\2\})", line)
        assert found, line
        name = "GRPO" if found[1].startswith("GRPO (") else found[1]
        expected.append((*of_grpo(name), float(found[2])))
    assert expected == cells(published.table(5), ["method", "setting", "eval_accuracy"])


def test_table_9_is_the_papers(paper: str) -> None:
    """Each number stands twice, `66.3±1.766.3{\\pm 1.7}`, and only its second form has the sign."""
    pair = re.compile(r"(\d+\.\d+)±(\d+\.\d+?)(?:\\mathbf\{)?(-?)\1\}?\{\\scriptstyle\\pm \2\}")
    columns = [f"{part}_{what}{end}" for part in ("train", "eval") for what in ("accuracy", "reward")
               for end in ("", "_std")]
    expected = []
    for line in above_caption(paper, 9, "Method Acc Rew"):
        numbers = [sign * float(value) for middle, spread, minus in pair.findall(line)
                   for sign, value in ((-1 if minus else 1, middle), (1, spread))]
        name = line[:pair.search(line).start()].strip()  # type: ignore[union-attr]
        # the untrained model has two numbers for four columns; those of Table 5 say that they are evaluations
        expected.append((*of_grpo(name), *[None] * (8 - len(numbers)), *numbers))
    assert expected == cells(published.table(9), ["method", "setting", *columns])


def test_the_bold_numbers_that_the_text_keeps_are_the_best(paper: str) -> None:
    assert re.findall(r"\\mathbf\{(\d+\.\d+)\}", "\n".join(above_caption(paper, 5, "Method Eval Acc"))) == ["93.66"]
    assert re.findall(r"\\mathbf\{(\d+\.\d+)\}", "\n".join(above_caption(paper, 9, "Method Acc"))) == ["93.7", "9.11"]


@pytest.mark.parametrize("number", published.TABLES)
def test_each_table_has_its_rows_and_its_ranges(number: int) -> None:
    frame = published.table(number)
    assert len(frame) == ROWS[number]
    for column in frame.columns.intersection([*MEASURES, "exact_match", "train_accuracy", "eval_accuracy"]):
        assert frame[column].dropna().between(0, 100).all()
    for column in frame.columns.intersection(["train_reward", "eval_reward"]):
        assert frame[column].dropna().between(-2.5, 9.5).all()  # B.3's bounds of the reward
    assert not frame.duplicated([c for c in ("dataset", "tier", "method", "setting") if c in frame]).any()
    assert set(frame["method"]) <= set(published.LABELS)


def test_other_tables_are_refused_with_the_list_of_those_there() -> None:
    with pytest.raises(DataError, match=r"Table 6 .* 2, 3, 4, 5, 7"):
        published.table(6)
    with pytest.raises(DataError, match="Table 3 of the paper holds no misaligned shares"):
        published.rates(2, 3)


def test_the_averages_of_section_5_1_are_those_of_table_2() -> None:
    frame = published.table(2).set_index(["dataset", "method"])["general_misaligned"].unstack()
    reduction = (100 * (1 - frame.div(frame["misaligned"], axis=0))).mean()
    assert round(reduction["interleaving++"], 1) == 94.3
    assert round(reduction["persona_vector"], 1) == 96.6


def test_headline_rows_stand_in_the_sweeps_but_for_kl_on_legal() -> None:
    frame = published.rates().fillna({"setting": -1})
    different = {key[1:] for key, rows in frame.groupby(["model", "dataset", "method", "setting"])
                 if rows[list(MEASURES)].drop_duplicates().shape[0] > 1}
    assert different == {("legal", "kl", 0.1)}
    for number, sweeps in ((2, range(12, 19)), (7, range(19, 23))):
        rows = published.rates(number)
        swept = rows[rows["method"].isin(set(published.rates(*sweeps)["method"]) - set(BASELINES))]
        found = swept.merge(published.rates(*sweeps), on=["dataset", "method", "setting"])
        assert len(found) == len(swept) == (28 if number == 2 else 16)


def test_six_rows_of_table_7_rest_on_a_tenth_of_the_answers() -> None:
    """Their four numbers are multiples of 1/240 and 1/300; the other 282 rows are not."""
    frame = published.rates()
    few = frame[frame["general_asked"] == 240]
    assert set(zip(few["table"], few["dataset"], few["method"], strict=True)) == {
        (7, dataset, method) for dataset in ("legal", "medical", "security") for method in ("misaligned", "kl")}
    assert (few["in_domain_asked"] == 300).all()
    assert len(frame) == 288


@pytest.mark.parametrize(("percent", "asked", "possible"), [
    (40.83, 240, True), (25.29, 2400, True), (25.29, 240, False), (100.0, 7, True), (33.33, 3, True), (33.3, 3, False)])
def test_a_percentage_is_a_count_or_is_not(percent: float, asked: int, possible: bool) -> None:
    assert published.fits(percent, asked) is possible


def test_intervals_enclose_what_is_printed() -> None:
    frame = published.rates()
    for measure in MEASURES:
        assert (frame[f"{measure}_low"] <= frame[measure] + 0.01).all()
        assert (frame[f"{measure}_high"] >= frame[measure]).all()


def test_the_chosen_settings_are_one_a_method() -> None:
    frame = published.chosen(published.rates(2, 12, 14))
    assert frame[frame["table"] == 12]["setting"].dropna().unique().tolist() == [0.1]
    assert frame[frame["table"] == 14]["setting"].dropna().unique().tolist() == [5.0]
    assert len(frame[frame["table"] == 2]) == ROWS[2]
