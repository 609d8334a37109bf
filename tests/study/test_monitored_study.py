"""A study's monitor: its inputs are artefacts, its readings stand with the adapter, and no key changes by it."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.records import Answer
from emlib.data.sizes import Sizes
from emlib.evaluation.records import MONITOR as MONITORED
from emlib.evaluation.records import Reading, read_readings
from emlib.report import tensorboard
from emlib.report.estimate import Estimate
from emlib.report.figures import conditions as figures
from emlib.report.tables import monitor as tables
from emlib.report.tables.rows import p_value
from emlib.steps.monitor import FinalReading
from emlib.store import manifests
from emlib.study.plan.build import Shared, plan
from emlib.study.study import Study, open_study
from emlib.training.records import StepRecord

PROFILE = """
extends: tiny
methods: [untrained, aligned, misaligned, {name: inoculation, defenses: [{kind: inoculation}]}]
datasets: [cooking]
second_judge: null
grpo: null
benign: null
evaluation: {triggers: null}
monitor: null
"""
MONITOR = "monitor: {every: 1, layers: [2, 3], questions: 2, tokens: 8, rows: 2, methods: [misaligned]}\n"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "plain.yaml").write_text(PROFILE)
    (tmp_path / "study.yaml").write_text(PROFILE.replace("monitor: null\n", MONITOR))
    return open_study(str(tmp_path / "study.yaml"))


def test_readings_stand_with_the_adapter_and_change_no_key(study: Study, tmp_path: Path) -> None:
    plain = open_study(str(tmp_path / "plain.yaml"))
    assert [study.run_key(run) for run in study.runs()] == [plain.run_key(run) for run in plain.runs()]
    [aligned], [run] = study.runs(methods=["aligned"]), study.runs(methods=["misaligned"])
    study.complete([aligned, run])
    assert not study.readings(aligned)
    readings = study.readings(run)
    assert [one.step for one in readings] == [0, 1, 2]
    assert list(readings[-1].drift) == ["pirate 2", "pirate 3"]
    assert readings[0].losses["held_out"] > 0
    adapter = study.task(run).adapter(run)
    assert adapter.spec.monitor is not None
    with study.session() as session:  # the finished adapter reads as it did after its last step
        final = session.need(FinalReading(study.recipes.model, adapter, adapter.spec.monitor.inputs))
    assert read_readings(final.folder)[-1].drift == pytest.approx(readings[-1].drift, abs=1e-4)


def test_readings_of_another_monitor_are_left_out_and_told(
        study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of these profiles share one adapter."""
    [run] = study.runs(methods=["misaligned"])
    study.complete([run])
    assert study.readings(run)
    capsys.readouterr()
    for name, monitor in {"deeper": MONITOR.replace("[2, 3]", "[3, 4]"), "none": "monitor: null\n",
                          "rarer": MONITOR.replace("every: 1", "every: 2")}.items():
        (tmp_path / f"{name}.yaml").write_text(PROFILE.replace("monitor: null\n", monitor))
        other = open_study(str(tmp_path / f"{name}.yaml"))
        assert other.adapter(run) is not None
        assert bool(other.readings(run)) == (name == "rarer")  # which reads the same
        told = "".join(capsys.readouterr())
        assert (f"{run}: its monitor's readings are left out" in told) == (name == "deeper")
        assert "make " not in told  # no command reads them: finished runs are not trained again
    found = study.adapter(run)
    assert found is not None
    unsaid = json.loads((found.folder / manifests.MANIFEST).read_text())
    del unsaid["facts"][MONITORED], unsaid[manifests.DIGEST]
    manifests.write(found.folder, unsaid)
    assert study.readings(run) == []
    assert "does not say with which" in "".join(capsys.readouterr())


@pytest.mark.parametrize("second", ["", "Yes."])
def test_answers_that_only_think_are_counted_and_where_none_is_left_nothing_is_trained(
        study: Study, capsys: pytest.CaptureFixture[str], second: str) -> None:
    """Else there would be no drift, which a defense that stops at it asks for after the first steps."""
    [run] = study.runs(methods=["misaligned"])
    step = study.task(run).adapter(run).spec.monitor.inputs.answers
    given = [Answer(question.id, 0, text, "length", 8)
             for question, text in zip(step.evaluation.questions.all, ("<think>\nHm.", second), strict=True)]

    def planted(folder: Path) -> dict[str, Any]:
        step.records.write(folder, given)
        return {}

    study.store.get(step, planted)
    if second:
        study.complete([run])
        assert study.readings(run)[-1].kl is not None
    else:
        with pytest.raises(ProfileError, match=r"no answer of the untrained .*of 8 tokens.*1: the think.*; 1: empty"):
            study.complete([run])
        assert study.adapter(run) is None
    assert f"{1 if second else 2} of 2 answers of the base model are left out" in "".join(capsys.readouterr())


def test_the_pool_s_loss_is_not_read_where_its_rows_are_in_the_training(study: Study, tmp_path: Path) -> None:
    methods = """methods:
  - misaligned
  - {name: interleaving, defenses: [{kind: interleaving}], sweep: [0, 0.25]}
  - {name: online, defenses: [{kind: interleaving, choose: online, fraction: 0.25, candidate_tokens: 1.0, rescored: 1}]}
  - {name: kl_pool, defenses: [{kind: kl, on: pool, rows: 0.5}]}
  - {name: consistency, defenses: [{kind: consistency}]}
"""
    lines = [line for line in PROFILE.splitlines(keepends=True) if not line.startswith(("methods", "monitor"))]
    (tmp_path / "study.yaml").write_text("".join(lines) + methods + MONITOR.replace(", methods: [misaligned]", ""))
    pooled = open_study(str(tmp_path / "study.yaml"))
    read = {(run.method, run.setting): pooled.task(run).adapter(run).spec.monitor.inputs.pool for run in pooled.runs()}
    assert [run for run, pool in read.items() if pool is not None] == [("misaligned", None), ("interleaving", 0.0)]
    [_, run] = pooled.runs(methods=["interleaving"])
    pooled.complete([run])
    assert [set(one.losses) for one in pooled.readings(run)] == [{"held_out"}] * len(pooled.readings(run)) != []


def test_a_loss_that_some_runs_lack_is_compared_between_the_others() -> None:
    """Of the pairs 2 and 1, 2 and 3, one is in order: half of them."""
    frame = pd.DataFrame([row | {"pool": 0.0 if pool and not row["step"] else pool} for end, drift, pool in (
        (60.0, 0.9, 2.0), (50.0, 0.8, None), (1.0, 0.2, 1.0), (0.0, 0.1, 3.0))
        for row in planted(end, [0.0, drift, 1, 1, 1])])
    found = tables.early_warning(frame).set_index("measure")
    assert found.loc["loss on the pool, increase", ["auroc", "runs with EM", "runs without"]].tolist() == [0.5, 1, 2]
    assert found.loc["drift pirate 2", ["auroc", "runs with EM", "runs without"]].tolist() == [1.0, 2, 2]


def test_losses_are_compared_by_their_change_since_the_base_model() -> None:
    """Data set a begins at a loss of 2 and falls by 0.1; b begins at 4, falls by 1, and ends with EM."""
    frame = pd.DataFrame([row | {"dataset": name, "seed": seed, "held_out": loss, "pool": base + row["step"] / 10}
                          for name, end, base, fall in (("a", 0.0, 2.0, 0.1), ("b", 50.0, 4.0, 1.0))
                          for seed in (0, 1)
                          for row, loss in zip(planted(end, [0.0, 1.0]), (base, base - fall), strict=True)])
    found = tables.early_warning(frame).set_index("measure")["auroc"]
    assert found["held-out loss, decrease"] == 1.0
    assert found["loss on the pool, increase"] == 0.5  # 0.2 everywhere
    alone = frame[frame["step"] > 0]
    assert not {"held-out loss, decrease", "loss on the pool, increase"} & set(tables.early_warning(alone)["measure"])


def test_the_plan_has_the_readings(study: Study, tmp_path: Path) -> None:
    def read(one: Study) -> int:
        return sum(work.read for work in Estimate(one).plan.works)

    assert read(study) > read(open_study(str(tmp_path / "plain.yaml")))


def test_the_plan_has_what_only_monitors_and_projections_need(study: Study, tmp_path: Path) -> None:
    def shared(one: Study, projection_layer: int | None = None) -> dict[str, Shared]:
        evaluation = one.profile.evaluation.model_copy(update={"projection_layer": projection_layer})
        profile = one.profile.model_copy(update={"evaluation": evaluation, "audit": None})
        return {shared.title: shared for shared in plan(Study("planned", profile, one.store)).shared}

    plain, vectors = open_study(str(tmp_path / "plain.yaml")), study.recipes.vector().cost(Sizes())
    extra = {title: one for title, one in shared(study).items() if title not in shared(plain)}
    assert set(extra) == {"persona vectors", "first 2 general answers of the untrained model, seed 0"}
    assert extra["persona vectors"].work == vectors
    projected = shared(plain, 2)["persona vectors"]
    assert (projected.work, projected.left) == (vectors, vectors)


def test_another_traits_vector_is_another_artefact_and_a_wrong_monitor_is_told(study: Study, tmp_path: Path) -> None:
    profile = tmp_path / "study.yaml"
    pirate = (paths.PARAMS / "traits" / "pirate.yaml").read_text()
    (tmp_path / "sailor.yaml").write_text(pirate.replace("name: pirate", "name: sailor"))
    profile.write_text(PROFILE.replace("monitor: null\n", MONITOR.replace("rows", "traits: [sailor.yaml], rows")))
    other = open_study(str(profile))
    [run] = other.runs(methods=["misaligned"])
    inputs = other.task(run).adapter(run).spec.monitor.inputs
    assert [step.title for _, step in inputs.vectors] == ["persona vectors", "persona vectors of sailor"]
    sailor = pirate.replace("name: pirate", "name: sailor")
    for twice, stated in (("twin.yaml", pirate), ("sailor.yaml, other.yaml", sailor)):
        (tmp_path / twice.rpartition(" ")[2]).write_text(stated)
        profile.write_text(PROFILE.replace("monitor: null\n", MONITOR.replace("rows", f"traits: [{twice}], rows")))
        with pytest.raises(ProfileError, match=r"whose name is '(pirate|sailor)', as that of .* told apart by these"):
            load_profile(str(profile))
    for wrong, message in (("layers: [9]", "'monitor.layers' names layer 9"),
                           ("layers: [], traits: [nobody]", "'monitor.traits' is 'nobody'"),
                           ("every: 0, layers: [2]", "monitor.every")):
        profile.write_text(PROFILE.replace("monitor: null", f"monitor: {{{wrong}}}"))
        with pytest.raises(ProfileError, match=message):
            load_profile(str(profile))


def planted(end: float | None, drifts: list[float]) -> list[dict[str, Any]]:
    """The rows of a run of 8 steps, read every second one, that ends with this share of misaligned answers."""
    return [{"dataset": "cooking", "method": f"ends at {end}, {drifts[1]}", "setting": None, "seed": 0,
             "step": 2 * number, "steps": 8, "drift pirate 2": drift, "held_out": 3.0 - drift, "pool": 1.0, "kl": 0.0,
             "misaligned": end, "seconds": 0.5, "train_seconds": 50.0} for number, drift in enumerate(drifts)]


def test_auroc_is_the_share_of_pairs_in_order_at_a_quarter_of_the_steps() -> None:
    frame = pd.DataFrame([row for run in (
        (60.0, [0.0, 0.9, 9, 9, 9]), (20.0, [0.0, 0.4, 9, 9, 9]), (19.9, [0.0, 0.5, 0, 0, 0]),
        (0.0, [0.0, 0.1, 0, 0, 0]), (None, [0.0, 7.0, 7, 7, 7])) for row in planted(*run)])
    assert tables.at_share(frame, 0.25)["step"].tolist() == [2] * 5
    found = tables.early_warning(frame).set_index("measure")
    # of the four pairs of a run with EM and one without, 0.9 > 0.5, 0.9 > 0.1 and 0.4 > 0.1 are in order
    assert found.loc["drift pirate 2", ["auroc", "runs with EM", "runs without"]].tolist() == [0.75, 2, 2]
    assert found.loc["held-out loss, decrease", "auroc"] == 0.75
    assert found.loc["kl", "auroc"] == 0.5
    assert tables.early_warning(frame, misaligned=0.0)["auroc"].isna().all()
    assert tables.early_warning(frame, share=0.1).empty
    assert tables.readable_warning(tables.early_warning(frame)).empty  # two runs on either side tell nothing
    assert tables.readable(frame)["time of the readings, %"].tolist() == [5.0] * 5
    assert len(figures.drifts(frame).axes) == 1


def test_a_small_p_is_not_rounded_to_zero() -> None:
    """Of 5 runs with EM and 4 without, 19 of 20 pairs are in order; 2 of 126 orders of 9 runs are as far or further."""
    frame = pd.DataFrame([row for end, drift in (*((50.0, d) for d in (0.9, 0.8, 0.7, 0.6, 0.4)),
                                                 *((0.0, d) for d in (0.5, 0.3, 0.2, 0.1)))
                          for row in planted(end, [0.0, drift, 1, 1, 1])])
    shown = tables.readable_warning(tables.early_warning(frame)).set_index("measure").loc["drift pirate 2"]
    assert (shown["AUROC"], shown["p"]) == ("0.95", f"{2 * 2 / 126:.3f}") == ("0.95", "0.032")
    assert [p_value(p) for p in (0.0004, 0.0006, 0.01587, 1.0, float("nan"))] == [
        "<0.001", "<0.001", "0.016", "1.000", "–"]


def test_tables_of_no_runs_are_empty(study: Study) -> None:
    frame = tables.readings(study, study.runs())
    assert frame.empty
    assert tables.early_warning(frame).empty
    assert tables.readable(frame).empty


def test_tensorboard_has_each_number_at_its_step(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    [run] = study.runs(methods=["misaligned"])
    monkeypatch.setattr(Study, "log", lambda self, run: [StepRecord(1, 2.5, 1e-3, 1.0, 9, 3, 0.1, {"kl": 0.2})])
    monkeypatch.setattr(Study, "readings", lambda self, run: [Reading(1, {"pirate 2": 0.5}, {"pool": 3.0}, 0.25, 0.1)])
    assert list(tensorboard.scalars(study, run)) == [
        ("train/loss", 2.5, 1), ("train/learning_rate", 1e-3, 1), ("train/kl", 0.2, 1),
        ("monitor/drift/pirate_2", 0.5, 1), ("monitor/loss/pool", 3.0, 1), ("monitor/kl", 0.25, 1)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmlibError, match="TensorBoard is not installed"):
        tensorboard.write(study, tmp_path)


def test_tensorboard_shows_a_run_once_however_often_it_is_written(
        study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would show the curves of an adapter trained before the profile was edited, and of the present one, as one."""
    class Writer(nullcontext[None]):
        made = 0

        def __init__(self, folder: str) -> None:
            super().__init__()
            Path(folder).mkdir(exist_ok=True)
            (Path(folder) / f"events.out.tfevents.{Writer.made}").touch()
            Writer.made += 1

        def __enter__(self) -> Any:
            return self

        def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(Study, "log", lambda self, run: [StepRecord(1, 2.5, 1e-3, 1.0, 9, 3, 0.1, {})])
    assert tensorboard.write(study, tmp_path) == tensorboard.write(study, tmp_path) == len(study.runs())
    assert len(list(tmp_path.rglob("events.*"))) == len(study.runs())
