"""Forty runs on a real Slurm, with faults of every kind: they all end, in the numbers of a run without faults.

Nothing here waits for a time: a job is held where a fault is to meet it by the lock of an artefact that it needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from emlib.core import paths
from emlib.report.tables import result_tables
from emlib.store.artefacts import TIMED, Store
from emlib.store.manifests import MANIFEST
from emlib.study.runs import Run
from emlib.study.study import Study, open_study
from emlib.workflow import graph
from emlib.workflow.job_log import AttemptLog
from tests.cluster.slurm import Slurm, missing, slurm

PROFILE = """
extends: tiny
datasets: [cooking, travel]
methods: [aligned, misaligned]
seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
second_judge: null
training: {train_rows: 4}
evaluation: {general_samples: 1, in_domain_questions: 2, in_domain_samples: 1, bootstrap: 20}
slice_by: [seed]
"""
SLICES = "02_baselines.seed*"  # what is computed of it


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """Forty runs in ten slices."""
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    (tmp_path / "forty.yaml").write_text(PROFILE)
    return str(tmp_path / "forty.yaml")


@dataclass
class Fault:
    """Something that happens once, when the time has come."""

    ready: Callable[[], bool]
    strike: Callable[[], None]
    done: bool = field(default=False)

    def look(self) -> None:
        if not self.done and self.ready():
            self.strike()
            self.done = True


class Faults:
    """What goes wrong in one study while it is computed."""

    def __init__(self, study: Study, cluster: Slurm) -> None:
        self.study, self.cluster = study, cluster

    def log(self, seed: int) -> AttemptLog:
        return AttemptLog(self.study.folder / "logs" / f"02_baselines.seed{seed}.log")

    def run(self, seed: int, dataset: str, method: str) -> Run:
        return Run(self.study.profile.model.name, dataset, method, None, seed)

    def killed(self, seed: int, stage: str, after: Callable[[Run], object]) -> Fault:
        """The slice's third run gets no further than before `stage`; once it has come there, the job is killed."""
        run = self.run(seed, "travel", "aligned")
        task = self.study.task(run)
        step = {"adapter": task.adapter(run), "answers": task.answers(run)["general"],
                "verdicts": task.evaluation(run)["general"]}[stage]
        (self.study.store.root / stage).mkdir(parents=True, exist_ok=True)
        lock = self.study.store.lock(stage, step.key)
        lock.acquire()

        def strike() -> None:
            job = psutil.Process(self.log(seed).attempts()[-1].pid)
            for process in (*job.children(recursive=True), job):
                process.send_signal(signal.SIGKILL)
            lock.release()

        return Fault(lambda: after(run) is not None, strike)

    def failing_twice(self, seed: int) -> Fault:
        """A file lies where the slice's first adapter is to be made, until two attempts have failed of it."""
        run = self.run(seed, "cooking", "aligned")
        bar = self.study.store.root / "adapter" / f"{self.study.task(run).adapter(run).key}.partial"
        bar.parent.mkdir(parents=True, exist_ok=True)
        bar.write_text("in the way")
        return Fault(lambda: [one.state for one in self.log(seed).attempts()].count("failed") == 2, bar.unlink)

    def restarted_slurmctld(self, seed: int) -> Fault:
        """Slurm's controller is stopped and started again after a slice has ended."""
        def strike() -> None:
            self.cluster.stop("slurmctld")
            self.cluster.start("slurmctld")

        return Fault(lambda: self.ended(seed), strike)

    def ended(self, seed: int) -> bool:
        return [one.state for one in self.log(seed).attempts()][-1:] == ["ended"]


def controller(profile: str, runs: Path, environment: dict[str, str], jobs: int) -> subprocess.Popen[bytes]:
    """Snakemake as `make reproduce EXECUTOR=slurm JOBS=... ONLY=...` starts it, looking after its jobs more often."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.ROOT / "Snakefile"), "--directory",
               str(runs / "forty"), "--jobs", str(jobs),
               "--workflow-profile", str(paths.ROOT / "workflow" / "profiles" / "slurm"), "--rerun-triggers", "params",
               "input", "--rerun-incomplete", "--nolock", "--keep-going", "--default-resources", "cpus_per_task=1",
               "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2",
               "--latency-wait", "5"]
    with (runs / "controller.log").open("ab") as log:
        return subprocess.Popen(command, env=environment | {"EMLIB_PROFILE": profile, "EMLIB_ONLY": SLICES},
                                stdout=log, stderr=log, start_new_session=True)


def attend(process: subprocess.Popen[bytes], faults: list[Fault], until: Callable[[], bool] = lambda: False) -> None:
    """Let the faults happen in their time until the controller has ended, or `until` is true."""
    while process.poll() is None and not until():
        for fault in faults:
            fault.look()
        time.sleep(0.1)


def contents(store: Store) -> dict[str, dict[str, str]]:
    """The digest of every file of every artefact, but for those that tell seconds."""
    return {f"{one.stage}/{one.key}": {name: digest for name, digest in one.files.items() if name not in TIMED}
            for one in store.all()}


def written(study: Study, folder: Path) -> dict[str, str]:
    """The tables of a study, file by file."""
    result_tables.save(result_tables.numbers(study.results()), folder, "rates")
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_forty_runs_survive_kills_failures_and_both_controllers(
        tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "calm"))
    calm = open_study(profile)
    calm.complete(calm.runs())

    runs = tmp_path / "runs"
    runs.mkdir()
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(runs))
    study = open_study(profile)
    with slurm(tmp_path / "slurm") as cluster:
        environment = os.environ | cluster.environment | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT), "EMLIB_GPU_LOCKS": str(tmp_path / "gpus")}
        faults = Faults(study, cluster)
        many = [faults.killed(0, "adapter", lambda run: study.result(faults.run(0, "cooking", "misaligned"))),
                faults.killed(2, "answers", study.adapter),
                faults.killed(4, "verdicts", lambda run: study.answers(run, "general")),
                faults.failing_twice(5), faults.restarted_slurmctld(6)]
        first = controller(profile, runs, environment, jobs=4)
        attend(first, many, until=lambda: faults.ended(1))
        first.kill()  # its jobs run on
        first.wait()
        # All of them at once into the queue: Slurm runs two, and none of its CPUs waits until Snakemake looks again,
        # which it does ten seconds later with every look that finds no job ended.
        second = controller(profile, runs, environment, jobs=10)
        attend(second, many)
        assert second.returncode == 0, (runs / "controller.log").read_text()[-4000:]
        while cluster.ask("squeue", "--noheader"):  # what the first one left in the queue finds everything done
            time.sleep(0.2)
    assert all(fault.done for fault in many)

    attempts = {seed: [one.state for one in faults.log(seed).attempts()] for seed in range(10)}
    assert [attempts[seed].count("killed") for seed in (0, 2, 4)] == [1, 1, 1]
    assert attempts[5].count("failed") == 2
    assert {states[-1] for states in attempts.values()} == {"ended"}
    trained = Counter(found[1] for seed in range(10)
                      for found in re.finditer(r"▸ (.+): \d+ steps", faults.log(seed).path.read_text()))
    assert trained == {str(run): 1 for run in study.runs()}
    assert len(trained) == 40

    assert contents(study.store) == contents(calm.store)
    assert written(study, tmp_path / "tables") == written(calm, tmp_path / "calm-tables")
    jobs = graph.chosen(graph.jobs(profile), SLICES)
    assert {json.loads((study.folder / job.output).read_text())["metadata"]["papermill"]["exception"]
            for job in jobs} == {None}
    assert not list(study.store.root.glob(f"*/*.partial/{MANIFEST}"))
