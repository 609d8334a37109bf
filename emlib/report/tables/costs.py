"""Measured costs of the defenses: seconds, tokens and memory of runs relative to plain fine-tuning (section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emlib.scoring.cost import as_printed, overhead
from emlib.steps.adapter import ReferenceStates
from emlib.store.artefacts import Artefact
from emlib.study.pool import losses_step
from emlib.study.runs import Run
from emlib.study.study import Study


def training(study: Study) -> pd.DataFrame:
    """Compare each finished run's training with `misaligned` on the same data set and seed.

    `time`, `time a token` and `memory` are ratios to that run; NaN if it is missing or did not record them. On a CPU
    the memory is that of the whole process, including what earlier runs of a session allocated; the benchmarks measure
    it in separate processes.
    """
    found = {run: artefact.facts for run in study.runs() if (artefact := study.adapter(run)) is not None}
    rows = []
    for run, facts in found.items():
        plain = found.get(Run(run.model, run.task, "misaligned", None, run.seed), {})
        a_token = _ratio(facts["seconds"] / facts["tokens"], _per_token(plain))
        rows.append({
            "dataset": run.task, "method": run.method, "setting": run.setting, "seed": run.seed,
            "seconds": facts["seconds"], "tokens": facts["tokens"], "peak MiB": facts["peak_memory"],
            "time": _ratio(facts["seconds"], plain.get("seconds")), "time a token": a_token,
            "memory": _ratio(facts["peak_memory"], plain.get("peak_memory")),
            "section 5.3": "; ".join(dict.fromkeys(defense.cost for defense in study.defenses(run)))})
    return pd.DataFrame(rows)


def once(study: Study) -> pd.DataFrame:
    """Return the one-time costs that runs share: persona vectors, and the reference model's states per data set."""
    rows = []
    vectors = study.vectors()
    if vectors is not None:
        rows.append({"what": f"persona vectors of '{study.trait.name}'", "seconds": vectors.facts["seconds"],
                     "MiB on disk": _mib(vectors)})
    kept = {artefact.key: (run, artefact) for run in study.runs()
            if (adapter := study.task(run).adapter(run)) is not None for step in adapter.inputs
            if isinstance(step, ReferenceStates) and (artefact := study.found(step)) is not None}
    for run, artefact in kept.values():
        rows.append({"what": f"reference states, {run.task}", "seconds": artefact.facts["seconds"],
                     "MiB on disk": _mib(artefact)})
    return pd.DataFrame(rows, columns=["what", "seconds", "MiB on disk"])


def scoring(study: Study) -> pd.DataFrame:
    """Return equation 10: the cost of scoring a pool, in percent of the fine-tuning runs that use it (Appendix E).

    The first row is the paper's example; the others are this study's data sets whose pool is scored, with the measured
    R: the seconds of a row in training divided by its seconds in scoring, under one model.
    """
    rows = [("Appendix E's example", 3, 6000, 10_000, 9.0, 100)]
    for dataset in study.profile.datasets:
        served = [run for run in study.runs(datasets=[dataset]) if losses_step(study, run) is not None]
        plain = study.adapter(Run(study.profile.model.name, dataset, "misaligned", None, study.profile.seeds[0]))
        scores = study.found(losses_step(study, served[0])) if served else None
        if plain is None or scores is None:
            continue
        trained = plain.facts["rows"] * study.profile.training.epochs
        passes = scores.facts["rows"] * len(scores.facts["models"])
        ratio = plain.facts["seconds"] / trained / (scores.facts["seconds"] / passes)
        rows.append((dataset, len(scores.facts["models"]) - 1, trained, scores.facts["rows"], ratio, len(served)))
    columns = ["of", "K", "rows trained on", "candidates", "R", "runs"]
    return pd.DataFrame([(*row, 100 * overhead(*row[1:]), 100 * as_printed(*row[1:])) for row in rows],
                        columns=[*columns, "equation 10, %", "as printed, %"])


def _per_token(facts: Mapping[str, Any]) -> float | None:
    return facts["seconds"] / facts["tokens"] if facts else None


def _ratio(value: float | None, plain: float | None) -> float:
    return value / plain if value and plain else float("nan")


def _mib(artefact: Artefact) -> float:
    return artefact.size / 2**20
