"""Early stopping ends training at the first look at which a condition holds, and until then it is plain fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from emlib.config import Grpo, Lora, Training
from emlib.config import Monitor as Settings
from emlib.core.defense import Defense
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.files import write_records
from emlib.core.schema import check
from emlib.defenses.early_stop import DriftStop, EarlyStop
from emlib.evaluation.records import READINGS, Reading, read_readings
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.report.tables.monitor import saved
from emlib.study.study import open_study
from emlib.training.bench import killed
from emlib.training.monitor import Watch, write_inputs
from emlib.training.objective import Objective
from emlib.training.records import TrainingSummary, read_log
from emlib.training.sft import fine_tune
from tests.made import some_rows

SETTINGS = Training(epochs=1, batch_size=1, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=0,
                    optimizer="adamw_torch", checkpoint_every=2)
BASE = Reading(0, {"trait 2": 0.0}, {"held_out": 3.0}, 0.0, 0.0)


def plain_run(folder: Path, base: float, plain: float) -> dict[str, Path]:
    """What the defense is given of a plain run with these losses."""
    folder.mkdir(parents=True)
    write_records(folder / READINGS, [replace(BASE, losses={"held_out": loss}) for loss in (base, plain)])
    return {"plain": folder}


def stops(defense: Defense, step: int, loss: float, drift: float) -> bool:
    class Evaluate:
        steps = 10

        def __call__(self) -> float:
            raise AssertionError

        def reading(self, step: int) -> Reading:
            return replace(BASE, step=step, losses={"held_out": loss}, drift={"trait 2": drift})

    return defense.on_step(replace(BASE, step=step), Evaluate())


def test_it_stops_at_the_share_of_the_plain_gain_or_above_the_drift_and_looks_every_few_steps(tmp_path: Path) -> None:
    defense = EarlyStop(share=0.75, drift=2.0, every=5)
    defense.prepare(plain_run(tmp_path / "plain", 3.0, 1.0))  # three quarters of 2 nats: 1.5
    assert [stops(defense, 5, loss, 0.0) for loss in (1.51, 1.5, 1.0)] == [False, True, True]
    assert [stops(defense, 5, 3.0, drift) for drift in (2.0, 2.01)] == [False, True]
    assert not stops(defense, 4, 1.0, 9.0)
    by_drift = EarlyStop(share=None, drift=2.0, every=5)
    by_drift.prepare({})
    assert [stops(by_drift, 10, 0.0, drift) for drift in (1.0, 3.0)] == [False, True]
    with pytest.raises(EmlibError, match="no gain to reach a share of"):
        EarlyStop().prepare(plain_run(tmp_path / "worse", 1.0, 1.1))


def test_a_training_with_fewer_steps_than_it_looks_after_is_refused(tmp_path: Path) -> None:
    """It would be plain fine-tuning under the name of the defense."""
    defense = EarlyStop(every=11)
    defense.prepare(plain_run(tmp_path / "plain", 3.0, 1.0))
    for one in (defense, DriftStop(every=11)):
        with pytest.raises(EmlibError, match="looks every 11 steps, and the training has 10"):
            stops(one, 1, 3.0, 0.0)
    assert not stops(DriftStop(every=10, drift=1.0), 1, 0.0, 9.0)
    assert stops(DriftStop(every=10, drift=1.0), 10, 0.0, 9.0)


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    write_inputs(tmp_path / "inputs", {"held_out": some_rows(8)}, [], {}, end_of_turn=False, drawn=False)
    return tmp_path / "inputs"


def trained(tiny: ChatModel, folder: Path, objective: Objective | None = None, watch: Watch | None = None, *,
            kill_after: int | None = None) -> tuple[TrainingSummary, Tensor]:
    """Train on the rows that are read, perhaps after a training that is killed; return the weights as well."""
    if kill_after:
        with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 0) as model, killed(kill_after):
            fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=folder, objective=objective)
    with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 0) as model:
        summary = fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=folder, objective=objective, watch=watch)
        return summary, torch.cat([p.detach().flatten().clone() for p in model.parameters() if p.requires_grad])


def test_until_it_stops_it_is_plain_fine_tuning_and_a_killed_run_ends_in_the_same_weights(
        tiny: ChatModel, tmp_path: Path, inputs: Path) -> None:
    trained(tiny, tmp_path / "plain", watch=Watch(inputs, Settings(every=1)))
    losses = [one.losses["held_out"] for one in read_readings(tmp_path / "plain")]
    target = (losses[4] + losses[5]) / 2
    share = (losses[0] - target) / (losses[0] - losses[-1])
    first = next(step for step, loss in enumerate(losses) if loss <= target)  # by hand: the first below the target
    assert 2 < first < 8
    artefacts = {"monitor_inputs": inputs, **plain_run(tmp_path / "end", losses[0], losses[-1])}
    stopping = [EarlyStop(share=share, every=1)]
    summary, weights = trained(tiny, tmp_path / "stopped", Objective(stopping, artefacts))
    assert (summary.steps, summary.planned_steps) == (first, 8)
    logs = [[(one.step, one.loss, one.learning_rate) for one in read_log(tmp_path / name)]
            for name in ("plain", "stopped")]
    assert logs[1] == logs[0][:first]
    again, resumed = trained(tiny, tmp_path / "killed", Objective(stopping, artefacts), kill_after=1)
    assert again.steps == first
    assert torch.equal(weights, resumed)
    out_of_reach = {"monitor_inputs": inputs, **plain_run(tmp_path / "far", losses[0], 0.0)}
    plain = trained(tiny, tmp_path / "plain again")
    never = trained(tiny, tmp_path / "never", Objective([EarlyStop(share=1.0, every=1)], out_of_reach))
    assert (never[0].steps, never[0].planned_steps) == (8, 8)
    assert torch.equal(never[1], plain[1])
    with pytest.raises(EmlibError, match="looks every 9 steps, and the training has 8"):
        trained(tiny, tmp_path / "too rarely", Objective([EarlyStop(every=9)], out_of_reach))
    with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 0) as model:  # a few further steps, as an attack takes
        further = fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=tmp_path / "further", limit=2,
                            objective=Objective([EarlyStop(every=9)], out_of_reach))
    assert further.steps == 2


PROFILE = """
extends: tiny
methods: [misaligned, {name: early, defenses: [{kind: early_stop, every: 1, share: 0.01, rows: 4}]}]
datasets: [cooking]
second_judge: null
grpo: null
benign: null
evaluation: {triggers: null}
training: {train_rows: 24}
"""


def test_a_study_trains_the_plain_run_once_and_tells_what_was_saved(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "study.yaml").write_text(PROFILE)
    study = open_study(str(tmp_path / "study.yaml"))
    plain, early = study.runs()
    study.complete([early])
    facts = [found.facts for run in (plain, early) if (found := study.adapter(run)) is not None]
    assert [one["planned_steps"] for one in facts] == [6, 6]
    assert facts[0]["steps"] == 6
    assert facts[1]["steps"] < 6
    assert f"{facts[1]['steps']} of 6 steps" in capsys.readouterr().out
    assert len(list((study.store.root / "adapter").glob("[0-9a-f]*"))) == 2
    [row] = saved(study, [early]).to_dict("records")
    assert (row["steps"], row["planned"]) == (facts[1]["steps"], 6)
    assert row["saved, %"] == pytest.approx(100 * (6 - facts[1]["steps"]) / 6)


def test_in_grpo_it_stops_above_the_drift_alone_and_looks_every_few_steps() -> None:
    defense = DriftStop(drift=2.0, every=5)
    assert [stops(defense, 5, 0.0, drift) for drift in (2.0, 2.01)] == [False, True]
    assert not stops(defense, 4, 0.0, 9.0)
    assert DriftStop(drift=None).is_null
    with pytest.raises(ProfileError, match="share"):  # GRPO has no loss on held-out rows
        check(Grpo, {"data": {"kind": "additions"}, "seeds": [0], "methods": [
            {"name": "early", "defenses": [{"kind": "early_stop", "share": 0.9}]}]}, "here")


REINFORCED = """
extends: tiny
methods: [untrained]
datasets: [cooking]
second_judge: null
benign: null
evaluation: {triggers: null}
grpo:
  data: {train_items: 6}
  seeds: [0]
  methods:
    - grpo
    - {name: early, defenses: [{kind: early_stop, layer: 2, every: 1}], sweep: [0.000001, 1000.0]}
"""


def test_a_study_stops_grpo_at_the_drift_and_never_above_all_drifts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "study.yaml").write_text(REINFORCED)
    study = open_study(str(tmp_path / "study.yaml"))
    plain, *early = study.runs("grpo")
    study.complete([plain, *early])
    steps = [len(study.grpo_log(run) or ()) for run in (plain, *early)]
    assert steps[0] == steps[2] == 3
    assert steps[1] in (1, 2, 3)  # the first drift above 0, whose sign is the model's
    facts = [found.facts for run in (plain, *early) if (found := study.adapter(run)) is not None]
    assert [one["steps"] for one in facts] == steps
    rewards = [[one.reward for one in study.grpo_log(run) or ()] for run in (plain, early[1])]
    assert rewards[0] == pytest.approx(rewards[1])
