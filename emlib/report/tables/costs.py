"""Measured costs of the defenses: seconds, tokens and memory of runs relative to plain fine-tuning (section 5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from math import isnan
from typing import Any

import pandas as pd

from emlib.config import MISALIGNED
from emlib.core.step import Step, closure
from emlib.report.markdown import listed
from emlib.report.tables.rows import identity_of, whole
from emlib.scoring.gap import as_printed, overhead
from emlib.steps.adapter import Adapter
from emlib.steps.added import OwnAnswers
from emlib.steps.pool import PoolLosses
from emlib.store.artefacts import Artefact
from emlib.study.pool import losses_step
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study

SURE = 10.0  # percent by which runs of equal work may differ in their time before times are called noise
FORWARD = 1 / 3  # the work of a forward pass, in that of a forward and a backward one


def training(study: Study) -> pd.DataFrame:
    """Compare each finished run's training with `misaligned` on the same data set and seed.

    `work`, `time`, `time a token` and `memory` are ratios to that run; NaN if it is missing or did not record them.
    `work` is counted: the tokens trained on, and a third of those that a reference model reads or on which candidates
    are scored. What `early_stop` or a plugin reads to look at the model is in the times alone. Times are measured, and
    as good as the machine was quiet (`noise`). On a CPU the memory is that of the whole process, including what earlier
    runs of a session allocated; the benchmarks measure it in separate processes.
    """
    found = {run: artefact.facts for run in study.runs() if (artefact := study.adapter(run)) is not None}
    rows = []
    for run, facts in found.items():
        plain = found.get(run.baseline(MISALIGNED), {})
        a_token = _ratio(_per_token(facts), _per_token(plain))
        rows.append(identity_of(run) | {
            "seconds": facts["seconds"], "tokens": facts["tokens"], "peak MiB": facts["peak_memory"],
            "work": _ratio(_work(study, run, facts, plain.get("tokens", 0)), plain.get("tokens")),
            "time": _ratio(facts["seconds"], plain.get("seconds")), "time a token": a_token,
            "memory": _ratio(facts["peak_memory"], plain.get("peak_memory")),
            "section 5.3": "; ".join(dict.fromkeys(defense.cost for defense in study.defenses(run)))})
    return pd.DataFrame(rows)


def _work(study: Study, run: Run, facts: Mapping[str, Any], plain: int) -> float:
    """Return a run's work in tokens trained on; the reference model's passes over all or over added rows count too.

    So do passes over the candidates that training chooses from; runs trained before that was recorded have 0 of them.
    `plain` is the tokens of `misaligned`: what a run that stops early trains on beyond its part of them is added.
    """
    tokens, planned = facts["tokens"], facts.get("planned_steps")
    part = facts["steps"] / planned if planned else 1.0
    read = {"all": tokens, "added": max(0.0, tokens - part * plain), "none": 0}[study.task(run).adapter(run).reads]
    return tokens + FORWARD * (read + facts.get("scored_tokens", 0))


def noise(study: Study) -> tuple[float, list[list[str]]]:
    """Return by how many percent the times of runs of equal work differ, and the methods that are compared together.

    These are runs on one data set with as many steps and no computation besides plain fine-tuning: the baselines, and
    defenses that change only the data. Their time a token should be equal: the slowest is compared with the fastest.
    NaN where no data set has two such runs.
    """
    rows = [(run.task, found.facts.get("steps"), run.method, _per_token(found.facts)) for run in study.runs()
            if all(defense.data_only for defense in study.defenses(run))
            and (found := study.adapter(run)) is not None and found.facts["seconds"]]
    frame = pd.DataFrame(rows, columns=["dataset", "steps", "method", "time"])
    times = frame.groupby(["dataset", "steps"], dropna=False)["time"]
    apart = 100 * (times.max() / times.min() - 1)[times.size() > 1]
    groups = dict.fromkeys(tuple(runs["method"].unique()) for _, runs in frame.groupby(
        ["dataset", "steps"], dropna=False, sort=False) if len(runs) > 1)
    return float(apart.max()), list(map(list, groups))


def readable(frame: pd.DataFrame, apart: float) -> pd.DataFrame:
    """Format `training` for readers: times that differ from plain fine-tuning's by no more than `noise` in brackets."""
    def time(ratio: float) -> str:
        if isnan(ratio):
            return "–"
        return f"({ratio:.1f})" if 100 * (max(ratio, 1 / ratio) - 1) <= apart else f"{ratio:.1f}"

    return frame.assign(work=[f"{ratio:.2f}" for ratio in frame["work"]],
                        **{name: frame[name].map(time) for name in ("time", "time a token")})


def statement(apart: float, groups: Sequence[Sequence[str]]) -> str:
    """State how far the measured times can be trusted; the arguments are those of `noise`."""
    quiet = "`benchmarks/README.md` has measurements on a quiet machine, in separate processes."
    if isnan(apart):
        return f"No two runs here do equal work, so it is not known how far their times can be trusted. {quiet}"
    alike = "; ".join(listed([f"`{name}`" for name in methods]) for methods in groups)
    found = ("Runs of one data set with equal numbers of steps that compute nothing besides plain fine-tuning "
             f"({alike}) differ by up to {whole(apart)}% in their time a token: smaller differences between defenses "
             "mean nothing. Runs with other numbers of steps train on other rows, and are not compared with them.")
    return f"{found} {'' if apart <= SURE else 'So these times do not rank the defenses. '}{quiet}"


def made_once(study: Study, run: Run) -> dict[Step, Artefact]:
    """Return what is made once for a run's method, before its training, with measured seconds: each artefact once.

    Adapters that score a pool are not counted: they are trained on other data sets, and serve all.
    """
    parts = (part for step in _shared(study, run) for part in _parts(study, step))
    found = {step: study.found(step) for step in once_each(parts)}
    return {step: artefact for step, artefact in found.items() if artefact is not None and "seconds" in artefact.facts}


def once_each(steps: Iterable[Step]) -> list[Step]:
    """Return the first step of each artefact: data sets with the same scorers have one, under steps that differ."""
    found: dict[tuple[str, str], Step] = {}
    for step in steps:
        found.setdefault((step.stage, step.key), step)
    return list(found.values())


def _shared(study: Study, run: Run) -> list[Step]:
    """Return the steps that a run's training needs, without adapters that score a pool."""
    adapter = study.task(run).adapter(run)
    steps = [] if adapter is None else list(closure(adapter.inputs))
    scorers = {scorer for step in steps if isinstance(step, PoolLosses) for scorer in step.inputs}
    return [step for step in steps if step not in scorers]


def seconds(study: Study, result: RunResult) -> float:
    """Return the seconds of a run's training and of what is made once before it.

    NaN if an adapter was removed, or most losses of the pool were known before (`_whole`).
    """
    gone = any(isinstance(step, Adapter) and study.found(step) is None for step in _shared(study, result.run))
    if result.train_seconds is None or gone:
        return float("nan")
    return result.train_seconds + sum(_whole(one.facts) for one in made_once(study, result.run).values())


def _whole(facts: Mapping[str, Any]) -> float:
    """Return the seconds that an artefact takes if all of it is computed.

    The losses of a pool share caches: those of a model that scored it before, for another data set or study, took no
    time. The seconds of the others stand for all; NaN if they are fewer than one model's, or were not counted.
    """
    if "models" not in facts:
        return float(facts["seconds"])
    losses, computed = facts.get("losses", 0), facts.get("computed", 0)
    known = computed and computed * len(facts["models"]) >= losses
    return float(facts["seconds"]) * losses / computed if known else float("nan")


def _parts(study: Study, step: Step) -> Iterator[Step]:
    """Yield the step, or each batch of the model's own answers that was sampled."""
    if not isinstance(step, OwnAnswers):
        yield step
        return
    for start in count(0, step.sampling.batch_rows):
        batch = replace(step, start=start)
        if study.found(batch) is None:
            return
        yield batch


def once(study: Study) -> pd.DataFrame:
    """Return the one-time costs of the methods, which runs share: vectors, stored states, losses, own answers, ..."""
    made = {step: artefact for run in study.runs() for step, artefact in made_once(study, run).items()
            if not isinstance(step, Adapter)}
    rows = pd.DataFrame([(step.title, _whole(made[step].facts), made[step].size / 2**20) for step in once_each(made)],
                        columns=["what", "seconds", "MiB on disk"])
    return rows.groupby("what", sort=False, as_index=False).sum(min_count=1)


def scoring(study: Study) -> pd.DataFrame:
    """Return equation 10: the cost of scoring a pool, in percent of the fine-tuning runs that use it (Appendix E).

    The first row is the paper's example; the others are this study's data sets whose pool is scored. `runs` is the
    number of runs on all data sets that use these losses. R is measured: the seconds of a row in training divided by
    its seconds in scoring, under one model; NaN where other data sets' scoring had computed the losses.
    """
    rows = [("Appendix E's example", 3, 6000, 10_000, 9.0, 100)]
    used = {run: step for run in study.runs() if (step := losses_step(study, run)) is not None}
    for dataset in study.profile.datasets:
        step = next((step for run, step in used.items() if run.task == dataset), None)
        plain = study.adapter(Run(study.profile.model.name, dataset, MISALIGNED, None, study.profile.seeds[0]))
        scores = study.found(step)
        if plain is None or scores is None or step is None:
            continue
        served = [run for run, other in used.items() if other.key == step.key]
        trained = plain.facts["rows"] * study.profile.training.epochs
        passes = scores.facts["rows"] * len(scores.facts["models"])
        ratio = plain.facts["seconds"] / trained / (_whole(scores.facts) / passes)
        rows.append((dataset, len(scores.facts["models"]) - 1, trained, scores.facts["rows"], ratio, len(served)))
    columns = ["of", "K", "rows trained on", "candidates", "R", "runs"]
    return pd.DataFrame([(*row, 100 * overhead(*row[1:]), 100 * as_printed(*row[1:])) for row in rows],
                        columns=[*columns, "equation 10, %", "as printed, %"])


def _per_token(facts: Mapping[str, Any]) -> float | None:
    return facts["seconds"] / facts["tokens"] if facts else None


def _ratio(value: float | None, plain: float | None) -> float:
    return value / plain if value and plain else float("nan")
