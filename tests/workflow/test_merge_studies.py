"""Merging what studies ran on another machine: their slices, with the attempts at them, and their data types."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from emlib.core import machine
from emlib.core.errors import StoreError
from emlib.core.files import write_records
from emlib.scoring.loss_cache import LossCache
from emlib.store.artefacts import Store
from emlib.study import precision
from emlib.study.ownership import RECORD, claim
from emlib.study.study import open_study
from emlib.workflow import graph, merge
from emlib.workflow.job_log import Attempt, AttemptLog
from emlib.workflow.status import stale
from tests.beside import write_study
from tests.store.test_store import left


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    (tmp_path / "ours" / "store").mkdir(parents=True)
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "theirs" / "store").mkdir(parents=True)
    return tmp_path / "theirs"


def test_finished_slices_come_along_if_they_ran_what_would_run_here(ours: Path, theirs: Path) -> None:
    jobs = [job for job in graph.jobs("paper-7b") if job.part][:3]
    for job, digest in zip(jobs, (jobs[0].digest, "another", jobs[2].digest), strict=True):
        log, out = AttemptLog(theirs / "paper-7b" / job.log), theirs / "paper-7b" / job.output
        with log.alone(), log.writing(gpu=None, digest=digest):
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text("theirs")
    mine = ours / "paper-7b" / jobs[2].output
    mine.parent.mkdir(parents=True)
    mine.write_text("ours")
    assert merge.merge(theirs, ours).slices == 1
    assert (ours / "paper-7b" / jobs[0].output).read_text() == "theirs"
    assert AttemptLog(ours / "paper-7b" / jobs[0].log).ended_with(jobs[0].digest)
    assert not (ours / "paper-7b" / jobs[1].output).exists()
    assert mine.read_text() == "ours"


def test_slices_of_a_profile_that_lies_elsewhere_come_along_by_its_name(
        ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine has it in another folder; here it is known because it has claimed its results."""
    path = write_study(tmp_path / "here")
    path.write_text(path.read_text() + "slice_by: [dataset]\n")
    job = next(job for job in graph.jobs(str(path)) if job.part)
    log, out = AttemptLog(theirs / "my_study" / job.log), theirs / "my_study" / job.output
    with log.alone(), log.writing(gpu=None, digest=job.digest):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("theirs")
    (theirs / "my_study" / RECORD).write_text("/their/folder/study.yaml\n")
    assert merge.merge(theirs, ours).slices == 0  # nobody here knows what my_study is
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(ours))
    claim(str(path))
    assert merge.merge(theirs, ours).slices == 1
    assert (ours / "my_study" / job.output).read_text() == "theirs"


def test_a_slice_whose_notebook_was_not_copied_is_left_out(ours: Path, theirs: Path) -> None:
    """Its log says that it ended; as after a copy of the logs alone."""
    jobs = [job for job in graph.jobs("paper-7b") if job.part][:2]
    for job in jobs:
        ended_there(theirs, job)
    (theirs / "paper-7b" / jobs[0].output).unlink()
    assert merge.merge(theirs, ours).slices == 1
    assert not (ours / "paper-7b" / jobs[0].log).exists()
    assert (ours / "paper-7b" / jobs[1].output).is_file()


def test_an_invalid_profile_of_one_study_leaves_out_its_slices_alone(
        ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
        ) -> None:
    path = write_study(tmp_path / "here")
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(ours))
    claim(str(path))
    path.write_text(path.read_text() + "seads: [0]\n")
    (theirs / "my_study" / "logs").mkdir(parents=True)
    ended_there(theirs, next(job for job in graph.jobs("paper-7b") if job.part))
    assert merge.merge(theirs, ours).slices == 1
    assert "my_study: its executed slices are not copied. " in (told := capsys.readouterr().out)
    assert "seads" in told


def test_a_slice_that_came_along_runs_again_if_its_content_changes(ours: Path, theirs: Path) -> None:
    """Snakemake has not run it, and compares nothing."""
    job = next(job for job in graph.jobs("paper-7b") if job.part)
    ended_there(theirs, job)
    merge.merge(theirs, ours)
    assert stale(ours / "paper-7b", [job]) == []
    assert stale(ours / "paper-7b", [replace(job, digest="edited")]) == [job.output]


def ended_there(theirs: Path, job: graph.Job) -> AttemptLog:
    """The log of a slice that ended on the other machine."""
    log, out = AttemptLog(theirs / "paper-7b" / job.log), theirs / "paper-7b" / job.output
    with log.alone(), log.writing(gpu="their GPU", digest=job.digest):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("theirs")
    return log


def failed_here(ours: Path, job: graph.Job) -> AttemptLog:
    """The log of a slice that failed here after ten hours, and was then killed after one."""
    log = AttemptLog(ours / "paper-7b" / job.log)
    log.path.parent.mkdir(parents=True)
    write_records(log.records, [Attempt(state, began, seconds, "here", 1, "our GPU", job.digest, error)
                                for state, began, seconds, error in (("failed", 0.0, 36000.0, "OOM"),
                                                                     ("killed", 40000.0, 0.0, ""))])
    log.path.write_text("ten hours of ours")
    os.utime(log.path, (43600.0, 43600.0))
    return log


def test_our_attempts_at_a_slice_stay_before_theirs(ours: Path, theirs: Path) -> None:
    """The hours that a GPU spent here count in `make status`; their last attempt says how the slice ended."""
    job = next(job for job in graph.jobs("paper-7b") if job.part)
    there, here = ended_there(theirs, job), failed_here(ours, job)
    for _ in range(2):  # as after a merge that was interrupted before it copied the notebook
        assert merge.merge(theirs, ours).slices == 1
        assert [(one.state, one.gpu, one.seconds) for one in here.attempts()[:2]] == [
            ("failed", "our GPU", 36000.0), ("killed", "our GPU", 3600.0)]
        assert here.attempts()[2:] == there.attempts()
        assert here.ended_with(job.digest)
        assert here.path.read_text() == "ten hours of ours\n" + there.path.read_text()
        (ours / "paper-7b" / job.output).unlink()


def test_a_slice_that_runs_here_is_left_alone(ours: Path, theirs: Path) -> None:
    job = next(job for job in graph.jobs("paper-7b") if job.part)
    ended_there(theirs, job)
    here = failed_here(ours, job)
    before = left(ours)
    with here.alone():
        assert merge.merge(theirs, ours).slices == 0
    assert {name: text for name, text in left(ours).items() if not name.endswith(".lock")} == before


def test_the_data_type_of_a_study_comes_along_so_that_its_artefacts_are_found(
        ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor there computes in bfloat16, and the one here does not."""
    def adapter_at(root: Path, *, bfloat16: bool) -> tuple[Store, bool]:
        monkeypatch.setenv("EMLIB_RUNS_DIR", str(root))
        monkeypatch.setattr(machine, "computes_bfloat16", lambda: bfloat16)
        monkeypatch.setattr(precision.gpus, "devices", lambda: [])
        study = open_study("demo")
        run = study.runs(methods=["misaligned"])[0]
        step = study.task(run).adapter(run)
        assert step is not None
        if bfloat16:
            study.record()
            study.store.get(step, lambda folder: {"file": (folder / "weights").write_text("w")})
        return study.store, study.store.find(step) is not None

    assert adapter_at(theirs, bfloat16=True)[1]
    assert not adapter_at(ours, bfloat16=False)[1]
    assert merge.merge(theirs, ours).artefacts == 1
    assert adapter_at(ours, bfloat16=False)[1]
    assert precision.recorded(ours / "demo") == "bfloat16"


def record(root: Path, types: Mapping[str, str]) -> None:
    for study, dtype in types.items():
        (root / study).mkdir(exist_ok=True)
        (root / study / precision.RECORD).write_text(f"{dtype}\n")


def test_studies_of_two_data_types_are_refused_by_name_and_nothing_is_copied(ours: Path, theirs: Path) -> None:
    record(ours, {"same": "float32", "mine": "float32", "differs": "float32"})
    record(theirs, {"same": "float32", "new": "bfloat16", "differs": "bfloat16"})
    before = left(ours)
    with pytest.raises(StoreError, match=rf"(?s)Nothing was copied.\n{ours / 'differs' / precision.RECORD}: ours "
                                         r"float32, theirs bfloat16.\nWrite the type"):
        merge.merge(theirs, ours)
    assert left(ours) == before
    record(theirs, {"differs": "float64"})
    with pytest.raises(StoreError, match="'float64' is no data type"):
        merge.merge(theirs, ours)
    record(theirs, {"differs": "float32"})
    merge.merge(theirs, ours)
    assert {name: precision.recorded(ours / name) for name in ("same", "mine", "new", "differs")} == {
        "same": "float32", "mine": "float32", "new": "bfloat16", "differs": "float32"}


def test_losses_of_pool_rows_that_stay_there_are_counted(
        ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Their file does not say of which training of an adapter they are, so that two could be mixed."""
    for root, name, loss in ((ours, "both", 1.0), (theirs, "both", 1.0), (theirs, "theirs", 2.0)):
        cache = LossCache(root / "store" / "nll" / f"{name}.jsonl")
        with cache.opened():
            cache.append({"row": loss})
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(ours))
    merge.main([str(theirs)])
    assert "1 file with losses of pool rows (store/nll) was not copied" in capsys.readouterr().out
    assert sorted(path.name for path in ours.rglob("*.jsonl")) == ["both.jsonl"]
