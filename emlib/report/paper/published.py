"""The paper's published numbers: Tables 2-5, 7, 9 and 11-22 of Kaczér et al. (arXiv 2508.06249v3), with emlib's names.

`numbers/` has one file per table, with the columns of `results.csv`, `benign.csv` or `grpo.csv`, the standard
deviations that the paper prints (`*_std`) and `n`, the number of training runs behind a number. `setting` is the value
in the caption, section 4.3 or B.1; interleaved shares are fractions, as in profiles. The one exception is the on-policy
row of Table 2: its sixteen numbers are those of 20% in Table 18, and not of the stated 5%, so its setting here is 0.2.

Nothing here is measured by this project. `figures/published/README.md` lists where the paper contradicts itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from emlib.core.errors import DataError
from emlib.evaluation.statistics import wilson
from emlib.study.results import read_table
from emlib.study.runs import Run

FOLDER = Path(__file__).parent / "numbers"
RATES = (2, 7, *range(12, 23))
BENIGN = (3, 4, 11)
GRPO = (5, 9)
TABLES = tuple(sorted((*RATES, *BENIGN, *GRPO)))
SMALL, LARGE = "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct"
# The paper's names of the methods (Table 2), in its order.
LABELS = {
    "untrained": "Untrained", "aligned": "Aligned", "misaligned": "Misaligned", "sft": "SFT", "grpo": "GRPO",
    "kl": "KL-Div.", "ldifs": "LDIFS", "persona_vector": "Persona Vectors", "inoculation": "Inoculation Prompting",
    "interleaving": "Interleaving", "interleaving+": "Interleaving+", "interleaving++": "Interleaving++",
    "on_policy": "On-policy Int."}
INTERLEAVING = ("interleaving", "interleaving+", "interleaving++", "on_policy")
# The methods that others are compared with, question by question.
REFERENCES = ("misaligned", "interleaving")
# Section 4.3 and B.1, which also state an on-policy share of 5%.
CHOSEN = {"kl": 0.1, "ldifs": 1.0, "persona_vector": 5.0} | dict.fromkeys(INTERLEAVING, 0.05)
# Answers behind a share: 24 or 30 questions, 100 times each (section 4.3), which fits the last digits of most rows.
QUESTIONS = {"general": 24, "in_domain": 30}
ANSWERS, FEW_ANSWERS = 100, 10


def table(number: int) -> pd.DataFrame:
    """Return one table of the paper, one row per line, with its number in the column `table`.

    Raises:
        DataError: the table holds no results (1 is derived from the others; 6, 8 and 10 are settings and examples).
    """
    if number not in TABLES:
        raise DataError(f"Table {number} of the paper holds no results. These tables do: "
                        f"{', '.join(map(str, TABLES))}.")
    return read_table(FOLDER / f"table{number:02}.csv").assign(table=number)


def rates(*numbers: int) -> pd.DataFrame:
    """Return misaligned and incoherent shares of these tables (default: all) in the columns of `result_tables.numbers`.

    A setting in several tables has one row for each. The paper prints no errors: `<measure>_low` and `_high` are
    Wilson's 95% intervals for the probable number of answers behind a share (`<where>_asked`). They ignore the
    variation between questions and training seeds, and are a lower bound of the error.

    Raises:
        DataError: one of these tables holds no shares.
    """
    for number in numbers:
        if number not in RATES:
            raise DataError(f"Table {number} of the paper holds no misaligned shares; these do: {RATES}.")
    frame = pd.concat([table(number) for number in numbers or RATES], ignore_index=True).assign(seed=0)
    few = _few_answers(frame)
    for where, questions in QUESTIONS.items():
        frame[f"{where}_asked"] = [questions * (FEW_ANSWERS if row else ANSWERS) for row in few]
        for measure in (f"{where}_misaligned", f"{where}_incoherent"):
            ends = [wilson(percent / 100 * asked, asked)
                    for percent, asked in frame[[measure, f"{where}_asked"]].itertuples(index=False)]
            frame[f"{measure}_low"] = [each.low for each in ends]
            frame[f"{measure}_high"] = [each.high for each in ends]
    return frame


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the setting of section 4.3 and B.1, and those of methods without a setting."""
    setting = frame["method"].map(CHOSEN)
    # Table 2 prints on-policy interleaving at 20% instead
    fits = frame["setting"].isna() | (frame["setting"] == setting) | frame["table"].isin((2, 7))
    return frame[fits].reset_index(drop=True)


def _few_answers(frame: pd.DataFrame) -> pd.Series:
    """Return whether each row's last digits imply that every question was asked 10 times and not 100.

    A number with two decimals is a multiple of 1/240 by chance once in 42 times, so all four of a row practically
    never are. Two of them must be above zero, because zero fits everything.
    """
    shares = {f"{where}_{kind}": questions * FEW_ANSWERS
              for where, questions in QUESTIONS.items() for kind in ("misaligned", "incoherent")}
    fitting = pd.DataFrame({name: [fits(percent, asked) for percent in frame[name]] for name, asked in shares.items()})
    return fitting.all(axis=1) & ((frame[list(shares)] > 0).sum(axis=1) > 1)


def fits(percent: float, asked: int) -> bool:
    """Return whether a percentage printed with two decimals can be a count out of `asked`."""
    return abs(100 * round(percent * asked / 100) / asked - percent) <= 0.005 + 1e-9


def in_paper(planned: Mapping[Run, float | None]) -> dict[Run, tuple[int, ...]]:
    """Return the numbers of the tables that contain each run; a table with n seeds has the seeds 0 to n - 1.

    `planned` has each run's hyperparameter value, also one that it does not sweep (`Task.number`).
    """
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for number in TABLES:
        for row in table(number).to_dict("records"):
            tier, task = row.get("tier"), row.get("dataset", row.get("task", "grpo"))
            named = task if tier is None or pd.isna(tier) else f"{task}-{int(tier)}"
            setting = None if pd.isna(row["setting"]) else float(row["setting"])
            found.setdefault((row["model"], named, row["method"], setting), []).append((number, int(row["n"])))
    of_runs = {run: found.get((run.model.rpartition("/")[2], run.task, run.method, value), ())
               for run, value in planned.items()}
    return {run: tuple(number for number, seeds in tables if run.seed < seeds) for run, tables in of_runs.items()}
