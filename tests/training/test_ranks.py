"""Training over several processes, by Gloo on a CPU: what one process trains, each with a share of the weights."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.files import read_records
from emlib.data.chat import Encoded
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.models import adapters
from emlib.models.batches import collate, forward_batches
from emlib.models.load import load
from emlib.models.reference import keep
from emlib.store.artefacts import Store
from emlib.study.study import Study
from emlib.training.checkpoint import FILE
from emlib.training.in_subprocess import OUTPUT, train_in_subprocess
from emlib.training.job import Job
from emlib.training.objective import Objective, Totals
from emlib.training.online import CHOSEN, ChosenRow
from emlib.training.ranks import Ranks
from emlib.training.records import read_log
from tests.training.jobs import ARTEFACTS, DEFENSES, LORA, MODEL, SEED, TRAINING, job, same

# Two rows fill a pass, so that a step of five has three passes, and one of the others one or two.
FIVE = TRAINING.model_copy(update={"batch_size": 5})


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def long_rows(count: int) -> list[Encoded]:
    random = np.random.default_rng(1)
    return [Encoded(random.integers(0, 256, length), np.arange(length) >= length - 50, False)
            for length in random.integers(350, 450, count)]


def five(rows: list[Encoded], **change: Any) -> Job:
    """A training of five rows a step."""
    return job(rows, **{"training": FIVE} | change)


def test_two_processes_train_what_one_trains_under_all_defenses(tmp_path: Path) -> None:
    rows = long_rows(8)
    told = [train_in_subprocess(five(rows), rows, tmp_path / str(of), of) for of in (1, 2)]
    assert told[0]["steps"] == told[1]["steps"] == 2
    same(tmp_path / "1", tmp_path / "2")


def test_two_processes_train_what_one_trains_with_a_penalty_on_rows_of_its_own(tmp_path: Path) -> None:
    """Its passes run the reference model and the others none, and a step has 3 and 1 of them, or 1 and 1."""
    rows = [replace(row, penalised_by="kl" if place > 5 else "") for place, row in enumerate(long_rows(8))]
    of_pool = {"defenses": (Kl(weight=1.0, on="pool"),), "artefacts": {}}
    for of in (1, 2):
        train_in_subprocess(five(rows, **of_pool), rows, tmp_path / str(of), of)
    same(tmp_path / "1", tmp_path / "2")
    assert {"kl"} == {name for line in read_log(tmp_path / "2") for name in line.penalties}


def test_two_processes_choose_the_same_rows_online(tmp_path: Path) -> None:
    """They share the passes over the candidates, of which three are in as many passes."""
    rows = long_rows(9)
    online = {"defenses": (Interleaving(fraction=0.5, choose="online", rescored=1),), "artefacts": {}, "added": 0,
              "offered": 3, "taken": 2, "chooser": "interleaving"}
    for of in (1, 2):
        train_in_subprocess(five(rows, **online), rows, tmp_path / str(of), of)
    same(tmp_path / "1", tmp_path / "2")
    chosen = [[row.digest for row in read_records(tmp_path / str(of) / CHOSEN, ChosenRow)] for of in (1, 2)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2 * TRAINING.epochs


def test_three_processes_do_with_a_stored_reference_and_recomputation(tmp_path: Path) -> None:
    """A step of one pass leaves two of them without one."""
    rows = long_rows(7)
    stored = {"defenses": (Kl(kind="kl", reference="stored"),), "artefacts": {"reference": str(tmp_path / "reference")},
              "training": FIVE.model_copy(update={"gradient_checkpointing": True})}
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        keep(model, rows, "all", 5, tmp_path / "reference")
    for of in (1, 3):
        train_in_subprocess(five(rows, **stored), rows, tmp_path / str(of), of)
    same(tmp_path / "1", tmp_path / "3")


SHARE = """
import sys
from pathlib import Path
import torch
from emlib.config import Lora, TinyModel
from emlib.models import adapters
from emlib.models.load import load
from emlib.models.hooks import blocks
from emlib.training.objective import Objective
from emlib.training.ranks import joined, shard
from emlib.training.recompute import bytes_per_token
from tests.made import some_rows
with joined(int(sys.argv[1]), 2, Path(sys.argv[2])) as ranks, adapters.new_lora(
        load(TinyModel(kind="tiny", layers=3, hidden=32), Path()).model, Lora(rank=4), 0) as model:
    before = [weights.numel() for block in blocks(model) for weights in block.parameters()]
    kept = bytes_per_token(model.train(), some_rows(20), Objective())
    assert ranks.any_wants(ranks.first, torch.device("cpu"))
    assert not ranks.any_wants(False, torch.device("cpu"))
    shard(model)
    assert ranks.gathered_bytes(model) == 2 * 4 * sum(before) // 3  # two of three blocks, in float32
    print(kept, bytes_per_token(model, some_rows(20), Objective()))
    after = [getattr(weights, "to_local", lambda: weights)().numel() for block in blocks(model)
             for weights in block.parameters()]
    trained = [weights.requires_grad for block in blocks(model) for weights in block.parameters()]
    for kind in (True, False):
        print(*(sum(one for one, is_trained in zip(some, trained) if is_trained is kind) for some in (before, after)))
"""


def test_each_holds_half_of_the_frozen_weights_and_all_of_the_adapter(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", SHARE, str(rank), str(tmp_path / "meeting")], text=True,
                                stdout=subprocess.PIPE, cwd=paths.ROOT) for rank in range(2)]
    for worker in workers:
        kept, adapter, frozen = ([float(number) for number in line.split()]
                                 for line in worker.communicate()[0].splitlines())
        assert worker.returncode == 0
        assert kept[0] == kept[1]  # weights that are put together for a pass are nothing that is kept by the token
        assert adapter[0] == adapter[1]
        assert frozen[0] == 2 * frozen[1]


def test_passes_are_dealt_out_so_that_all_have_as_many() -> None:
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        passes = [batch for row in long_rows(5) for batch in forward_batches([row], 1, model)]
    dealt = [Ranks(rank, 3).dealt(passes) for rank in range(3)]
    assert [[batch.keys for batch in mine] for mine in dealt] == [
        [passes[0].keys, passes[3].keys], [passes[1].keys, passes[4].keys], [passes[2].keys, ()]]
    assert Ranks().dealt(passes) == passes
    kinds = [replace(batch, penalised_by=kind) for batch, kind in zip(passes, ("", "", "", "kl", "kl"), strict=True)]
    dealt = [Ranks(rank, 2).dealt(kinds) for rank in range(2)]
    assert [[(batch.penalised_by, batch.keys) for batch in mine] for mine in dealt] == [
        [("", passes[0].keys), ("", passes[2].keys), ("kl", passes[3].keys)],
        [("", passes[1].keys), ("", ()), ("kl", passes[4].keys)]]


@pytest.mark.parametrize("stored", [False, True])
def test_a_blank_pass_adds_nothing_and_reaches_every_weight(tmp_path: Path, *, stored: bool) -> None:
    rows = long_rows(2)
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        keep(model, rows, "all", 2, tmp_path)
        defenses = (Kl(reference="stored"),) if stored else DEFENSES
        objective = Objective(defenses, ARTEFACTS | {"reference": tmp_path})
        batch = collate(rows, torch.device("cpu"))
        said = objective.backward(model, batch.blank(), Totals(2, batch.tokens, batch.response_tokens))
        assert set(said.values()) == {0.0}
        assert set(said) == {"loss", "kl"} | (set() if stored else {"ldifs", "shift"})
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        assert all(weights.grad is not None and not weights.grad.any() for weights in trained)


def test_a_killed_process_ends_the_others_and_the_run_goes_on_where_it_was(tmp_path: Path) -> None:
    rows = long_rows(8)
    work = five(rows, training=FIVE.model_copy(update={"epochs": 12}))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(train_in_subprocess, work, rows, tmp_path / "killed", 2)
        while not (tmp_path / "killed" / FILE).is_file() and not future.done():
            time.sleep(0.05)
        workers = [child for child in psutil.Process().children() if "emlib.training.worker" in child.cmdline()]
        [second] = [worker for worker in workers if worker.cmdline()[-3] == "1"]
        second.kill()
        with pytest.raises(EmlibError, match=rf"ended with code -9\. The end of .*1\.{OUTPUT}"):
            future.result()
    assert not any(worker.is_running() for worker in workers)
    done = len(read_log(tmp_path / "killed"))
    assert 2 <= done < 24
    for name in ("killed", "whole"):
        train_in_subprocess(work, rows, tmp_path / name, 2)
    digests = [hashlib.sha256((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()).digest()
               for name in ("killed", "whole")]
    assert digests[0] == digests[1]


def test_more_processes_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    rows = long_rows(2)
    with pytest.raises(ProfileError, match=r"job\.gpus is 3, and this process may use 2 GPUs"):
        train_in_subprocess(five(rows), rows, tmp_path, 3)


def test_a_study_spreads_its_runs_and_keeps_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    profile, made = load_profile("tiny"), {}
    for gpus in (1, 2):
        spread = profile.model_copy(update={"job": profile.job.model_copy(update={"gpus": gpus})})
        study = Study("tiny", spread, Store(tmp_path / str(gpus)))
        run = study.runs(methods=["kl"], settings=[0.1])[0]
        with study.session() as session:
            made[gpus] = session.need(study.task(run).adapter(run))
    alone, spread_out = made[1], made[2]
    assert alone.key == spread_out.key
    assert "processes" not in alone.facts
    assert (spread_out.facts["processes"], spread_out.facts["backend"]) == (2, "transformers")
    assert spread_out.facts["final_loss"] == pytest.approx(alone.facts["final_loss"], rel=1e-5)


def test_a_study_that_ends_between_the_last_step_and_the_artefact_goes_on(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    profile = load_profile("tiny")
    spread = profile.model_copy(update={"job": profile.job.model_copy(update={"gpus": 2})})
    study = Study("tiny", spread, Store(tmp_path / "store"))
    run = study.runs(methods=["misaligned"])[0]
    with monkeypatch.context() as ending:
        ending.setattr("emlib.make.adapter.row_record.write", ended)
        with pytest.raises(InterruptedError), study.session() as session:
            session.need(study.task(run).adapter(run))
    with study.session() as session:
        made = session.need(study.task(run).adapter(run))
    assert len(study.log(run)) == made.facts["steps"] > 0


def ended(*_: Any) -> None:
    """End the process's work, as a kill does."""
    raise InterruptedError
