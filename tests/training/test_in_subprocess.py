"""Training in a process of its own: the same training, and never begun where it is not the same model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from emlib.config import FolderModel, load_profile
from emlib.core import plugins, registry
from emlib.core.errors import EmlibError
from emlib.core.files import read_records
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.ldifs import Ldifs
from emlib.make import backends
from emlib.make.backends import Machine
from emlib.models import adapters
from emlib.models.load import load
from emlib.models.tiny import build_model, build_tokenizer
from emlib.store.artefacts import Store
from emlib.study.study import Study
from emlib.training import work
from emlib.training.in_subprocess import OUTPUT, BackendUnavailable, train_in_subprocess
from emlib.training.job import plugin_files, read_rows, sources, write_rows
from emlib.training.objective import Objective
from emlib.training.online import CHOSEN, ChosenRow, Offered
from emlib.training.records import read_log
from emlib.training.sft import fine_tune
from tests.made import some_rows
from tests.training.jobs import ARTEFACTS, DEFENSES, LORA, MODEL, SEED, TRAINING, job, same


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = some_rows(3)
    write_rows(tmp_path / "rows.json", rows)
    assert [(row.key, row.truncated) for row in read_rows(tmp_path / "rows.json")] == [
        (row.key, row.truncated) for row in rows]


def test_another_process_trains_the_same_adapter(tmp_path: Path) -> None:
    """Up to rounding: what a process did before may decide where memory lies, and with it the order of sums."""
    rows = some_rows(8)
    told = train_in_subprocess(job(rows), rows, tmp_path / "apart")
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        summary = fine_tune(model, rows[:6], TRAINING, seed=SEED, folder=tmp_path / "here",
                            objective=Objective(DEFENSES, ARTEFACTS), added=rows[6:])
        adapters.save(model, tmp_path / "here" / "adapter", MODEL.name)
    assert (told["steps"], told["tokens"], told["device"]) == (summary.steps, summary.tokens, "cpu")
    assert told["final_loss"] == pytest.approx(summary.final_loss, rel=2e-5)
    same(tmp_path / "apart", tmp_path / "here")


def test_another_process_chooses_the_same_rows_online(tmp_path: Path) -> None:
    """Of the last four rows, which stand behind one that is held out, two are chosen in each epoch."""
    online, rows = Interleaving(fraction=0.5, choose="online", rescored=2), some_rows(11)
    alone = {"defenses": (online,), "artefacts": {}, "added": 0, "held_out": 1, "offered": 4, "taken": 2}
    train_in_subprocess(job(rows, chooser="interleaving", **alone), rows, tmp_path / "apart")
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        fine_tune(model, rows[:6], TRAINING, seed=SEED, folder=tmp_path / "here", objective=Objective((online,)),
                  held_out=rows[6:7], offered=Offered(rows[7:], 2, "interleaving"))
        adapters.save(model, tmp_path / "here" / "adapter", MODEL.name)
    same(tmp_path / "apart", tmp_path / "here")
    chosen = [[(row.step, row.digest) for row in read_records(tmp_path / name / CHOSEN, ChosenRow)]
              for name in ("apart", "here")]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 2 * TRAINING.epochs


def test_another_model_is_not_trained(tmp_path: Path) -> None:
    rows = some_rows(8)
    other = MODEL.model_copy(update={"seed": 1})
    with pytest.raises(BackendUnavailable, match=r"transformers: its log-probabilities.*differ from those of"):
        train_in_subprocess(job(rows, model=other), rows, tmp_path)
    assert not read_log(tmp_path)


def test_a_training_that_stops_is_no_training_that_never_began(tmp_path: Path) -> None:
    rows, wild = some_rows(8), TRAINING.model_copy(update={"learning_rate": 10.0, "max_grad_norm": 1e6})
    with pytest.raises(EmlibError, match="Lower learning_rate") as caught:
        train_in_subprocess(job(rows, training=wild), rows, tmp_path)
    assert not isinstance(caught.value, BackendUnavailable)


def test_a_missing_library_is_told_with_the_end_of_what_was_said(tmp_path: Path) -> None:
    rows = some_rows(2)
    with pytest.raises(BackendUnavailable, match=r"(?s)ended with code 1.*unsloth"):
        train_in_subprocess(job(rows, engine="unsloth"), rows, tmp_path)


def test_unsloth_writes_into_the_job_s_folder_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, imported by the real worker: what it finds set before anything else."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "unsloth.py").write_text(
        "import os, sys\nassert 'transformers' not in sys.modules\n"
        "print(*(f'{key}={value}' for key, value in os.environ.items() if key.startswith('UNSLOTH')), sep='\\n')\n"
        "raise ImportError('a stand-in')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "there"))
    rows, folder = some_rows(2), tmp_path / "run"
    with pytest.raises(BackendUnavailable, match="a stand-in"):
        train_in_subprocess(job(rows, engine="unsloth"), rows, folder)
    said = (folder / OUTPUT).read_text().splitlines()
    assert f"UNSLOTH_COMPILE_LOCATION={folder / 'compiled'}" in said
    assert "UNSLOTH_DISABLE_STATISTICS=1" in said


def test_an_adapter_that_gets_no_gradient_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(2)
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        work.prove(job(rows), model, rows[0], Objective(DEFENSES, ARTEFACTS))
        assert not any(weights.grad is not None and weights.grad.any() for weights in model.parameters())
        dead = next(module for name, module in model.named_modules() if name.endswith("q_proj.lora_B.default"))
        monkeypatch.setattr(dead, "forward", lambda x: torch.zeros(*x.shape[:-1], 32))
        with pytest.raises(EmlibError, match=r"1 of the adapter's matrices have no gradient.*q_proj"):
            work.prove(job(rows), model, rows[0], Objective())


def test_features_without_a_gradient_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a recomputation that runs a block, and the tap around it, without a gradient first."""
    rows = some_rows(2)
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED) as model:
        ids, wanted = torch.from_numpy(rows[0].input_ids), Ldifs(every=2).reads_layers(3)
        assert work.reaches(model, ids, wanted)
        with torch.no_grad():
            assert not work.reaches(model, ids, wanted)


def test_a_study_goes_on_with_transformers_where_unsloth_never_began(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have a GPU and Unsloth, and has neither; what is trained is what transformers trains."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    build_model(0, 2, 32, torch.bfloat16).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    profile = load_profile("tiny").model_copy(update={
        "model": FolderModel(kind="folder", path=str(tmp_path / "model"))})
    made = {}
    for seeming in (False, True):
        machine = Machine(gpu=seeming, unsloth=True, vllm=None)
        monkeypatch.setattr(backends.Machine, "here", classmethod(lambda _, machine=machine: machine))
        study = Study("tiny", profile, Store(tmp_path / f"store-{seeming}"))
        run = study.runs(methods=["kl"], settings=[0.1])[0]
        with study.session() as session:
            made[seeming] = session.need(study.task(run).adapter(run))
    plain, seeming_one = made[False], made[True]
    assert plain.files["adapter_model.safetensors"] == seeming_one.files["adapter_model.safetensors"]
    assert "there is no GPU" in plain.facts["backend_why"]
    assert "No module named 'unsloth'" in seeming_one.facts["backend_why"]


STAND_IN = """
import peft, torch, transformers


class FastLanguageModel:
    @staticmethod
    def from_pretrained(source, dtype, **rest):
        return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype), None

    @staticmethod
    def get_peft_model(base, random_state, use_gradient_checkpointing, **rest):
        torch.manual_seed(random_state + 1)
        return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **rest))
"""


def test_one_seed_is_one_adapter_under_both_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for Unsloth, which draws other weights for a new adapter; the training begins with PEFT's."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "unsloth.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'there'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    build_model(0, 2, 32, torch.bfloat16).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    profile = load_profile("tiny").model_copy(update={
        "model": FolderModel(kind="folder", path=str(tmp_path / "model"))})
    weights = []
    for seeming in (False, True):
        machine = Machine(gpu=seeming, unsloth=True, vllm=None)
        monkeypatch.setattr(backends.Machine, "here", classmethod(lambda _, machine=machine: machine))
        study = Study("tiny", profile, Store(tmp_path / f"store-{seeming}"))
        [run] = study.runs(methods=["misaligned"], datasets=[study.profile.datasets[0]])
        with study.session() as session:
            made = session.need(study.task(run).adapter(run))
        assert made.facts["backend"] == ("unsloth" if seeming else "transformers")
        weights.append(load_file(made.file("adapter_model.safetensors")))
    for name, ours in weights[0].items():  # two steps move them by some 0.001, and another draw is some 0.1 away
        torch.testing.assert_close(ours, weights[1][name], rtol=0, atol=0.01)


def test_another_process_trains_a_saved_adapter_further(tmp_path: Path) -> None:
    rows, training = some_rows(8), TRAINING.model_copy(update={"warmup_steps": 0})
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED + 1) as model:
        fine_tune(model, rows[:4], training, seed=1, folder=tmp_path / "first")
        adapters.save(model, tmp_path / "start", MODEL.name)
    further = job(rows, start=str(tmp_path / "start"), limit=2, training=training)
    assert train_in_subprocess(further, rows, tmp_path / "apart")["steps"] == 2
    with adapters.new_lora(load(MODEL, Path()).model, LORA, SEED, tmp_path / "start") as model:
        fine_tune(model, rows[:6], training, seed=SEED, folder=tmp_path / "here", limit=2,
                  objective=Objective(DEFENSES, ARTEFACTS), added=rows[6:])
        adapters.save(model, tmp_path / "here" / "adapter", MODEL.name)
    same(tmp_path / "apart", tmp_path / "here")


EDITED = """
from typing import ClassVar, Literal
from emlib.core.defense import Defense

class Stretching(Defense):
    listed: ClassVar = True
    kind: Literal["stretching"] = "stretching"

    def penalty(self, trained, reference):
        return 1.0 * trained.hidden.square().sum()
"""


def test_a_plugin_that_was_edited_since_its_key_was_derived_is_not_trained(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    monkeypatch.setattr(registry, "_classes", dict(registry.kinds()))
    monkeypatch.setattr(plugins, "_loaded", {})
    file, rows = tmp_path / "stretching.py", some_rows(8)
    file.write_text(EDITED)
    plugins.load([file])
    defenses = (registry.kinds()["stretching"](),)
    work = job(rows, defenses=defenses, artefacts={}, plugins=plugin_files(defenses), sources=sources(defenses))
    assert work.sources == {"stretching": registry.source_digest(type(defenses[0]))}
    assert train_in_subprocess(work, rows, tmp_path / "as it was")["steps"] > 0
    file.write_text(EDITED.replace("1.0", "2.0"))
    with pytest.raises(BackendUnavailable, match="source of the defense 'stretching' was changed after the st"):
        train_in_subprocess(work, rows, tmp_path / "edited")
    assert not read_log(tmp_path / "edited")
    sys.modules.pop("emlib_plugin_stretching", None)
