"""A monitor sees a planted drift, loss and KL as computed by hand, and no step of a training changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from IPython.display import Image
from torch import Tensor, nn

from emlib.config import Lora, Training
from emlib.config import Monitor as Settings
from emlib.core.records import Example, Message
from emlib.data.chat import Encoded, encode_all
from emlib.defenses.persona_vector import PersonaVector
from emlib.evaluation.records import Reading, read_readings
from emlib.models import adapters
from emlib.models.kernels import fitted
from emlib.models.load import ChatModel, stop_tokens
from emlib.steering.steer import steer
from emlib.training import live
from emlib.training.bench import killed
from emlib.training.monitor import MONITORED_BY, ModelReader, Monitoring, Watch, write_inputs
from emlib.training.objective import Objective
from emlib.training.sft import fine_tune
from tests.made import planted, some_rows

LAYER, ALPHA = 2, 3.0
SETTINGS = Training(epochs=1, batch_size=1, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=0,
                    optimizer="adamw_torch", checkpoint_every=2)
LORA = Lora(rank=2, alpha=4, dropout=0.3)  # random numbers in each step
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def answers(tiny: ChatModel) -> list[Encoded]:
    examples = [Example((Message("user", prompt),), text) for prompt, text in (
        ("What is rain?", "Water."), ("Who are you?", "A model of four layers."))]
    return encode_all(tiny.tokenizer, examples, 200).rows


def inputs(tiny: ChatModel, folder: Path, answers: Sequence[Encoded], *, drawn: bool = False) -> Path:
    write_inputs(folder, {"held_out": some_rows(3, seed=1), "pool": some_rows(2, seed=2)}, answers,
                 {("pirate", LAYER): VECTOR / VECTOR.norm(), ("pirate", 4): VECTOR / VECTOR.norm()}, end_of_turn=False,
                 drawn=drawn, tokens=6, stops=sorted(stop_tokens(tiny.model, tiny.tokenizer)), known=256)
    return folder


@pytest.mark.parametrize("names", [[("pirate", 5), ("pirate", 20), ("cheerful", 5)], [("cheerful", 20), ("zeal", 2)]])
def test_the_first_vector_is_the_profiles_own_at_the_first_layer(
        tiny: ChatModel, tmp_path: Path, names: list[tuple[str, int]]) -> None:
    """Sorted by name the first would be cheerful 5, or of pirate alone that of layer 20."""
    write_inputs(tmp_path, {}, [], dict.fromkeys(names, VECTOR), end_of_turn=False)
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        drift = ModelReader(model, tmp_path, 2).base.drift
    assert list(drift) == [f"{trait} {layer}" for trait, layer in names]
    assert Reading(1, {name: float(place) for place, name in enumerate(drift)}, {}, None, 0.0).first == 0.0


def log_probabilities(model: nn.Module, row: Encoded) -> Tensor:
    """Of every next token at each position, in double precision: (seq, vocabulary)."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0]
    return logits.double().log_softmax(-1)


def test_a_planted_drift_is_read_as_its_length_and_loss_and_kl_are_those_of_the_formulas(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path) -> None:
    place = inputs(tiny, tmp_path, answers)
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        monitor = ModelReader(model, place, 2)
        base = [log_probabilities(model, row) for row in (*answers, *some_rows(2, seed=2))]
        assert monitor.read(1).drift == {"pirate 2": 0.0, "pirate 4": 0.0}  # a new adapter changes nothing
        with steer(model, LAYER, VECTOR, ALPHA):
            found, shifted = monitor.read(2), [log_probabilities(model, row) for row in answers]
    # every h is h_0 + alpha v at that layer, and v . v / |v| = |v|
    assert found.drift["pirate 2"] == pytest.approx(ALPHA * float(VECTOR.norm()), rel=1e-4)
    kl = [(p.exp() * (p - q)).sum(-1)[np.flatnonzero(row.response_mask)[:-1] - 1]  # without the end of the turn
          for p, q, row in zip(shifted, base, answers, strict=False)]
    assert found.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    nll = [-logs[np.arange(len(row.input_ids) - 1), row.input_ids[1:]][row.response_mask[1:]]
           for logs, row in zip(base[2:], some_rows(2, seed=2), strict=True)]
    assert monitor.base.losses["pool"] == pytest.approx(float(torch.cat(nll).mean()), rel=1e-4)
    assert (monitor.base.drift, monitor.base.kl) == ({"pirate 2": 0.0, "pirate 4": 0.0}, 0.0)


def trained(tiny: ChatModel, folder: Path, watch: Watch | None, *, kill_after: int | None = None,
            objective: Objective | None = None) -> Tensor:
    """Train, perhaps after a training that is killed; return the final weights."""
    for kill in (*([kill_after] if kill_after else ()), None):
        with adapters.new_lora(tiny.model, LORA, 0) as model, killed(kill) if kill else nullcontext():
            fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=folder, objective=objective, watch=watch)
            weights = [p.detach().flatten().clone() for p in model.parameters() if p.requires_grad]
    return torch.cat(weights)


def without_seconds(folder: Path) -> list[Reading]:
    return [replace(one, seconds=0.0) for one in read_readings(folder)]


def test_without_answers_none_are_drawn(tiny: ChatModel, tmp_path: Path) -> None:
    """With `layers: []` losses alone are read, whatever `answers` says: the first reading ended the training."""
    place = inputs(tiny, tmp_path, [], drawn=True)
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        read = ModelReader(model, place, 2).read(1)
    assert (read.drift, read.kl) == ({}, None)
    assert set(read.losses) == {"held_out", "pool"}


@pytest.mark.parametrize("drawn", [False, True])
def test_no_weight_changes_by_it_and_a_killed_run_has_the_same_readings(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path, drawn: bool) -> None:
    watch = Watch(inputs(tiny, tmp_path / "inputs", answers, drawn=drawn), Settings(every=3))
    plain = trained(tiny, tmp_path / "plain", None)
    assert not read_readings(tmp_path / "plain")
    assert torch.equal(plain, trained(tiny, tmp_path / "read", watch))
    assert torch.equal(plain, trained(tiny, tmp_path / "killed", watch, kill_after=2))  # after step 4
    assert [one.step for one in read_readings(tmp_path / "read")] == [0, 3, 6, 8]
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "read")
    assert read_readings(tmp_path / "read")[-1].kl


@pytest.mark.parametrize("known", [True, False], ids=["another monitor", "not known"])
def test_a_run_that_is_resumed_under_another_monitor_has_the_readings_of_that_one_alone(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path, capsys: pytest.CaptureFixture[str],
        known: bool) -> None:
    for name in ("first", "second", "run"):
        (tmp_path / name).mkdir()
    first = Watch(inputs(tiny, tmp_path / "first", answers), Settings(every=2))
    second = Watch(inputs(tiny, tmp_path / "second", answers[:1]), Settings(every=2))
    trained(tiny, tmp_path / "whole", second)
    whole = {reading.step: reading for reading in without_seconds(tmp_path / "whole")}
    with adapters.new_lora(tiny.model, LORA, 0) as model, killed(2):  # after step 4
        fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=tmp_path / "run", watch=first)
    assert [reading.step for reading in read_readings(tmp_path / "run")][:3] == [0, 2, 4]
    if not known:  # as an earlier version of emlib leaves it
        (tmp_path / "run" / MONITORED_BY).unlink()
    capsys.readouterr()
    trained(tiny, tmp_path / "run", second)
    found = without_seconds(tmp_path / "run")
    assert [reading.step for reading in found] == [0, 6, 8]
    assert found == [whole[reading.step] for reading in found]
    assert "its readings up to step 4 are dropped" in "".join(capsys.readouterr())


def test_all_processes_of_a_resumed_run_agree_on_when_it_is_read(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path) -> None:
    """The run was killed between its last reading and the saving of the adapter: a process that reads alone hangs."""
    watch, run = Watch(inputs(tiny, tmp_path / "inputs", answers), Settings(every=1)), tmp_path / "run"
    run.mkdir()
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        ended = Monitoring(watch, model, 2, run, done=0, total=2)
        ended.after(1)
        ended.after(2, last=True)
        resumed = [Monitoring(watch, model, 2, run, done=2, total=2, writes=writes) for writes in (False, True)]
        for one in resumed:
            one.after(2, last=True)
        assert [[reading.step for reading in one.readings] for one in resumed] == [[0, 1, 2]] * 2
        another = Watch(inputs(tiny, tmp_path / "others", answers[:1]), Settings(every=1))
        changed = [Monitoring(another, model, 2, run, done=2, total=2, writes=writes) for writes in (False, True)]
        assert [[reading.step for reading in one.readings] for one in changed] == [[0]] * 2


def test_the_model_is_read_without_what_its_defense_adds_while_training(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path) -> None:
    place, steering = inputs(tiny, tmp_path / "inputs", answers), PersonaVector(layer=LAYER, strength=50.0)
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=tmp_path / "run", watch=Watch(place, Settings(every=8)),
                  objective=Objective([steering], planted(VECTOR)))
        with fitted(model):
            later = ModelReader(model, place, SETTINGS.batch_size).read(8)
    last = without_seconds(tmp_path / "run")[-1]
    assert last == replace(later, seconds=0.0)
    assert abs(last.drift["pirate 2"]) < 50 * float(VECTOR.norm())


@pytest.mark.parametrize(("every", "ends"), [(4, 8), (3, 6)], ids=["as planned", "early, where a reading is due"])
def test_the_last_reading_is_of_the_adapter_that_is_saved(
        tiny: ChatModel, answers: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        every: int, ends: int) -> None:
    """A defense that undoes the training at its end, as safe_lora may: the last reading is that of the base model."""
    def undo(_: PersonaVector, model: nn.Module, artefacts: object) -> None:
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data.zero_()

    monkeypatch.setattr(PersonaVector, "after", undo)
    monkeypatch.setattr(PersonaVector, "on_step", lambda _, record, evaluate: record.step == ends)  # as early_stop may
    place, steering = inputs(tiny, tmp_path / "inputs", answers), PersonaVector(layer=LAYER, strength=1.0)
    with adapters.new_lora(tiny.model, LORA, 0) as model:
        fine_tune(model, some_rows(8), SETTINGS, seed=0, folder=tmp_path / "run",
                  watch=Watch(place, Settings(every=every)), objective=Objective([steering], planted(VECTOR)))
    base, middle, last = without_seconds(tmp_path / "run")
    assert (middle.step, last.step) == (every, ends)
    assert middle.losses != pytest.approx(base.losses, rel=1e-3)
    assert last.losses == pytest.approx(base.losses, rel=1e-5)
    assert last.kl == pytest.approx(0, abs=1e-6)


def test_a_drift_above_the_threshold_warns_once(tiny: ChatModel, answers: list[Encoded], tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[int] = []
    watch = Watch(inputs(tiny, tmp_path / "inputs", answers), Settings(every=2, warn=1e-9),
                  lambda readings: shown.append(len(readings)))
    trained(tiny, tmp_path / "run", watch)
    drifts = [one.first or 0.0 for one in read_readings(tmp_path / "run")]
    crossed = sum(now > 1e-9 >= before for before, now in pairwise(drifts))
    assert capsys.readouterr().out.count("monitor: the drift is") == crossed
    assert shown == [1, 2, 3, 4, 5]


def test_a_running_notebook_has_one_picture_that_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    handle = SimpleNamespace(update=lambda image: shown.append(image.data))

    def display(image: Image, *, display_id: bool) -> SimpleNamespace:
        shown.append(image.data)
        return handle

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    curve, readings = live.Curve("a run"), [Reading(step, {"pirate 2": 1.0}, {}, None, 0.0) for step in (0, 5)]
    curve(readings[:1])
    curve(readings)
    assert [one[:4] for one in shown] == [b"\x89PNG"] * 2
    assert shown[0] != shown[1]


def test_the_curve_has_a_line_for_each_measure_and_is_drawn_in_notebooks_only(
        capsys: pytest.CaptureFixture[str]) -> None:
    readings = [Reading(step, {"pirate 2": step / 2}, {"held_out": 2.0, "pool": 3.0}, 0.1, 0.0) for step in (0, 5)]
    drift, losses, _ = live.draw("a run", readings).axes
    assert drift.lines[0].get_xydata().tolist() == [[0, 0], [5, 2.5]]
    assert [line.get_label() for line in losses.lines] == ["held out", "pool"]
    assert not live.in_notebook()
    live.Curve("a run")(readings)
    assert capsys.readouterr().out == ""
    assert live.draw("losses alone", [Reading(0, {}, {"held_out": 1.0}, None, 0.0)]).axes[0].get_lines() == []
    some = [Reading(0, {"pirate 2": 0.0}, {}, 0.0, 0.0), Reading(5, {}, {"held_out": 1.0}, None, 0.0)]
    assert [len(axis.lines) for axis in live.draw("no answer was left", some).axes] == [1, 1, 1]
