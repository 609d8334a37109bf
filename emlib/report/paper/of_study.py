"""A study's runs in the paper's tables and figures, and compared with its numbers: for notebooks 15 and 16.

Benign tasks and reinforcement learning are included as far as the study has run them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emlib.config import BASELINES
from emlib.config.methods import SweptMethod
from emlib.report import benign, grpo
from emlib.report.figures import plots
from emlib.report.paper import compare, likeness, overview, paper_figures, published
from emlib.report.paper.draw import FIGURES, numbers
from emlib.report.paper.paper_figures import Sources
from emlib.report.paper.paper_tables import Cell, label
from emlib.report.tables import costs, pairs
from emlib.report.tables.averages import marked_seeds, over_datasets, over_tasks
from emlib.report.tables.result_tables import MISALIGNED
from emlib.report.tables.rows import cell, p_value
from emlib.study.runs import Run, RunResult, Section
from emlib.study.study import Study

BARE = (*BASELINES, "sft", "grpo")  # methods without a defense
STEERED = "persona_vector"


def with_numbers(frame: pd.DataFrame, methods: Iterable[SweptMethod]) -> pd.DataFrame:
    """Return `frame` with the setting of every run whose method has one, even if the profile does not sweep it."""
    known = {method.name: method.number for method in methods}
    return frame.assign(setting=frame["setting"].astype(float).fillna(
        frame["method"].map(known).astype(float)))


def benign_numbers(study: Study) -> pd.DataFrame:
    """Return `benign.numbers` of finished runs, with settings; empty if the profile has no benign tasks."""
    return benign.numbers(study, _with_settings(study, "benign"))


def rl_numbers(study: Study) -> pd.DataFrame:
    """Return `grpo.numbers` of finished runs, with settings; empty if the profile has no section `grpo`."""
    return grpo.numbers(_with_settings(study, "grpo")).astype({"setting": float})


def _with_settings(study: Study, section: Section) -> list[RunResult]:
    """Return a section's results, each with the setting of its own task's method, even if that is not swept."""
    return [replace(one, run=replace(one.run, setting=study.task(one.run).number(one.run)))
            for one in study.finished(section)]


def with_paper(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """Compare every run that the paper also has (`compare.COLUMNS`); `frame` is `result_tables.numbers`.

    Runs on other data, of another trait or with other options are left out, and named (`likeness`).
    A number that the paper prints in several tables appears once, with the first of them.
    """
    frame = with_numbers(frame, study.profile.methods)
    rates = compare.beside_paper(frame, published.rates())
    found = [rates.drop_duplicates([*compare.COLUMNS[:6], "paper"]),
             compare.benign_beside_paper(benign_numbers(study), pd.concat(map(published.table, published.BENIGN))),
             compare.grpo_beside_paper(rl_numbers(study), published.table(9))]
    there = [each for each in found if len(each)]
    if not there:
        return pd.DataFrame(columns=compare.COLUMNS)
    every = pd.concat(there, ignore_index=True)
    return every[likeness.alike(study, every)].reset_index(drop=True)


def criteria(study: Study, frame: pd.DataFrame, bounds: overview.Bounds) -> pd.DataFrame:
    """Return the numbers that Table 1 is derived from (`overview.measured`), one row per method and setting."""
    rates, tasks, reinforced = (_settings_as_methods(each) for each in (
        with_numbers(frame, study.profile.methods), benign_numbers(study), rl_numbers(study)))
    known = rates.dropna(subset=list(MISALIGNED))
    if "misaligned" not in set(known["method"]):
        return pd.DataFrame(columns=["method", *overview.CRITERIA, *overview.SEEDS])
    with_baseline = rates[rates["dataset"].isin(rates.loc[rates["method"] == "misaligned", "dataset"])]
    return overview.measured(with_baseline, tasks, reinforced, bounds)


def _settings_as_methods(frame: pd.DataFrame) -> pd.DataFrame:
    names = [method if method in BARE else label(method, setting)
             for method, setting in zip(frame["method"], frame["setting"], strict=True)]
    return frame.assign(method=pd.Series(names, index=frame.index, dtype=str))


def seeds(means: pd.DataFrame) -> pd.DataFrame:
    """Format `pairs.over_seeds` as a table of cells, with a column for each question set.

    A cell says so where its set was scored for fewer seeds than others of its row.
    """
    most = means.groupby(pairs.TRAINED, dropna=False)["seeds"].transform("max")
    marked = means.assign(most=most, fewer=marked_seeds(means["seeds"], most))
    headings = {name: f"{name.replace('_', '-').capitalize()} misaligned %" for name in means["set"].unique()}
    rows: dict[tuple[str, str], dict[str, Cell]] = {}
    for row in marked.to_dict("records"):
        name = label(row["method"], row["setting"])
        cells = rows.setdefault((row["dataset"], name), {
            "Data set": Cell(row["dataset"]), "Method": Cell(name), "Seeds": Cell(str(row["most"])),
            **dict.fromkeys(headings.values(), Cell("–"))})
        cells[headings[row["set"]]] = Cell(cell(row["percent"], row["low"], row["high"]) + row["fewer"])
    return pd.DataFrame(list(rows.values()))


def paired(differences: pd.DataFrame, against: str) -> pd.DataFrame:
    """Format the rows of `pairs.paired` that compare with `against` as cells; bold: adjusted p < 5%."""
    return pd.DataFrame([{
        "Data set": Cell(row["dataset"]), "Method": Cell(label(row["method"], row["setting"])),
        "Against": Cell(label(against, row["against_setting"])), "Seeds": Cell(str(row["seeds"])),
        "Points": Cell("–" if pd.isna(row["difference"]) else
                       f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]",
                       frozenset({"bold"} if row["p_adjusted"] < 0.05 else ())),
        "p": Cell(p_value(row["p"])), "p adjusted": Cell(p_value(row["p_adjusted"]))}
        for row in differences[differences["against"] == against].to_dict("records")])


def sources(study: Study, frame: pd.DataFrame) -> Sources:
    """Return the sources of the figures: the paper's numbers if it has this model, trait and data, and ours.

    Empty if no run was scored. Our `cost` is counted: the extra work of training (`costs.training`), in percent of
    `misaligned`'s on the same data, and 0 for less work; one-time costs are left out, as they are in the paper. It is
    NaN where an adapter was removed, so that a data set has none.
    """
    frame = with_numbers(frame, study.profile.methods)
    ours = over_datasets(frame, same_questions=True)
    if ours["general_misaligned"].isna().all():
        return {}
    ours = ours.merge(_cost(study), on=["method", "setting"], how="left")
    name = study.profile.model.name.rpartition("/")[2]
    datasets = set(frame["dataset"])
    same = name in (published.SMALL, published.LARGE) and datasets == set(published.rates(2)["dataset"]) and not any(
        likeness.unlike(study, Run(name, dataset, "misaligned", None, 0)) for dataset in datasets)
    paper = {"paper": numbers(name)} if same else {}
    return {**paper, "this study": ours.assign(cost=ours["cost"].mask(ours["method"] == "untrained", 0.0))}


def _cost(study: Study) -> pd.DataFrame:
    trained = costs.training(study)
    if trained.empty:
        return pd.DataFrame(columns=["method", "setting", "cost"]).astype({"setting": float})
    trained = with_numbers(trained, study.profile.methods).assign(
        cost=(100 * trained["work"] - 100).clip(lower=0))
    return over_tasks(trained, ["cost"]).reset_index()


def draw(name: str, drawn: Sources, folder: Path) -> None:
    """Show one of `FIGURES` and save it, or say why there is nothing to draw.

    Coherence is drawn of those sources whose judge measures it.
    """
    lacking = "No defense has been scored."
    if name == "figure1a" and drawn:
        drawn = {source: frame for source, frame in drawn.items() if frame["general_incoherent"].notna().any()}
        lacking = lacking if drawn else "The judge does not measure coherence."
    there = any((~frame["method"].isin(BASELINES)).any() for frame in drawn.values())
    plots.show(FIGURES[name](drawn) if there else plots.nothing(lacking), folder, name)


def draw_questions(verdicts: pairs.Verdicts, folder: Path) -> None:
    """Show and save misalignment by question, a figure per data set; settings and seeds of a method are pooled.

    Figures of other data sets are removed.
    """
    for path in folder.glob("questions_*"):
        path.unlink()
    if not verdicts:
        plots.show(plots.nothing("No general answers have been scored."))
    for dataset in dict.fromkeys(where for where, _, _ in verdicts):
        there = list(dict.fromkeys(method for where, method, _ in verdicts if where == dataset))
        methods = sorted(there, key=lambda method: method != "misaligned")  # the first one orders the questions
        figure = paper_figures.by_question(pairs.question_shares(verdicts, dataset, methods))
        plots.show(figure, folder, f"questions_{dataset}")


def draw_rewards(study: Study, folder: Path) -> None:
    """Show and save Figures 2 and 3: conditions of reinforcement learning without, then with a persona vector."""
    steered = {method.name for method in (study.profile.grpo.methods if study.profile.grpo else ())
               if any(defense.kind == STEERED for defense in method.defenses)}
    for name, wanted in (("figure2", False), ("figure3", True)):
        log = _rewards(study, [run for run in study.runs("grpo") if (run.method in steered) == wanted])
        lacking = f"No run of reinforcement learning with{'' if wanted else 'out'} a persona vector was trained."
        plots.show(paper_figures.reward_curves(log) if len(log) else plots.nothing(lacking), folder, name)


def _rewards(study: Study, runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for run in runs:
        rows += [(number, step.reward, run.method, study.task(run).number(run), run.seed)
                 for number, step in enumerate(study.grpo_log(run), 1)]  # without supervised steps
    return pd.DataFrame(rows, columns=["step", "reward", "method", "setting", "seed"]).astype({"reward": float})
