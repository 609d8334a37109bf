"""Further training of finished adapters: by hand, after a kill, in plan and cleaning, and when a defense is undone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file

from emlib.config import Profile, TinyModel, load_profile
from emlib.config.persistence import Attack
from emlib.core.defense import Defense
from emlib.core.errors import ProfileError
from emlib.core.records import Verdict
from emlib.core.schema import check
from emlib.data import row_record
from emlib.data.chat import encode_all
from emlib.data.mixing import plan_steps
from emlib.data.sizes import Sizes
from emlib.defenses.kl import Kl
from emlib.defenses.safe_lora import SafeLora
from emlib.models.tiny import build_model
from emlib.report.estimate import Estimate
from emlib.report.figures import conditions as figures
from emlib.report.tables import persistence, result_tables
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.study.plan.build import finished
from emlib.study.runs import TrajectoryPoint
from emlib.study.study import Study, open_study
from emlib.workflow.cleaning import steps_of
from tests.made import apart

PROFILE = """
extends: tiny
methods:
  - untrained
  - misaligned
  - {name: inoculation, defenses: [{kind: inoculation}]}
  - {name: kl, defenses: [{kind: kl, reference: stored}], sweep: [1.0]}
  - {name: interleaving, defenses: [{kind: interleaving, fraction: 0.25}]}
datasets: [cooking]
second_judge: null
grpo: null
benign: null
training: {keep: []}
evaluation: {triggers: null}
"""
ATTACKS = "persistence: {steps: 3, keep: [2, 1], methods: [untrained, inoculation]}\n"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    (tmp_path / "study.yaml").write_text(PROFILE + ATTACKS)
    return open_study(str(tmp_path / "study.yaml"))


def attacked(study: Study, method: str, attack: Attack) -> Adapter:
    [run] = study.runs(methods=[method])
    return study.recipes.attacked(attack, run.task, study.task(run).adapter(run), run.seed, f"{method}, {attack}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_runs_are_attacked_evaluated_on_the_way_and_do_not_change(study: Study, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(PROFILE)
    plain = open_study(str(tmp_path / "plain.yaml"))
    assert [study.run_key(run) for run in study.runs()] == [plain.run_key(run) for run in plain.runs()]
    untrained, misaligned, inoculation, *_ = study.runs()
    before = study.complete(study.runs())
    assert study.attacked(inoculation) is None  # not yet
    assert finished(study) == frozenset(study.runs()) - {untrained, inoculation}
    study.complete_attacks(study.runs())
    assert study.complete(study.runs()) == before
    assert study.attacked(misaligned) is None  # not among the methods
    found = study.attacked(inoculation) or {}
    assert list(found) == ["misaligned", "benign", "longer"]
    assert all([point.steps for point in points] == [0, 1, 2, 3] for points in found.values())
    assert list(study.attacked(untrained) or {}) == ["misaligned", "benign"]
    assert found["benign"][0].verdicts["in_domain"] == study.verdicts(inoculation, "in_domain")
    frame = persistence.persistence(study, study.runs())
    undone = persistence.undone(frame, 10)
    assert len(frame) == 20
    assert undone["attack"].tolist() == ["misaligned", "benign", "misaligned", "benign", "longer"]
    result_tables.write(undone, persistence.readable_undone(undone), tmp_path, "undone")
    tokens = Estimate(study).errors().set_index("of what is done").loc["tokens of 4 trained runs"]
    assert tokens["estimated"] == sum(step.cost(Sizes()).train for run in study.runs()
                                      if (step := study.task(run).adapter(run)) is not None)  # without the attacks'
    result_tables.write(frame, persistence.readable(frame), study.folder / "tables", "persistence")
    assert finished(study) == frozenset(study.runs())
    drawn = figures.persistence(frame).axes
    assert [axis.get_title() for axis in drawn] == ["attack: misaligned", "attack: benign", "attack: longer"]
    assert drawn[0].get_ylabel() == "misaligned, % of general answers\n(dashed: in domain)"
    alone = frame[[name for name in frame.columns if not name.startswith("in_domain")]]
    assert figures.persistence(alone).axes[0].get_ylabel() == "misaligned, % of general answers"


def test_the_longer_training_leaves_out_what_has_acted_on_the_finished_adapter(study: Study) -> None:
    """C of Safe LoRA is no projection: C C B is not C B."""
    kl, safe = Kl(weight=1.0), SafeLora(base=TinyModel(kind="tiny", seed=1), threshold=1.0)

    def longer(*defenses: Defense) -> tuple[Adapter, Adapter]:
        start = study.recipes.adapter(study.recipes.narrow("cooking", "misaligned", defenses, 0), "defended")
        return start, study.recipes.attacked("longer", "cooking", start, 0, "longer")

    (start, further), (plain, beyond) = longer(kl, safe), longer(safe)
    assert (start.spec.defenses, further.spec.defenses) == ((kl, safe), (kl,))
    assert beyond.spec.defenses == ()
    assert beyond.start == plain
    assert beyond.key != longer()[1].key  # it begins with another adapter


@pytest.mark.parametrize(("attack", "side"), [("misaligned", "misaligned"), ("benign", "aligned")])
def test_an_attack_is_further_training_by_hand(study: Study, attack: Attack, side: str) -> None:
    """With PEFT, torch's AdamW and its cross-entropy, from the saved adapter: three steps at the whole rate."""
    step, settings = attacked(study, "inoculation", attack), study.profile.training
    examples = getattr(study.data("cooking"), side).train[:settings.train_rows]
    with study.session() as session:
        assert step.start is not None
        ours, start = session.folder_of(step), session.folder_of(step.start)
        rows = encode_all(session.chat.tokenizer, examples, settings.max_seq_length).rows
    base = build_model(seed=0, layers=4, hidden=64, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    for numbers in plan_steps(len(rows), settings.rows_per_step, 2, seed=0)[:3]:
        chosen = [rows[number] for number in numbers]
        loss = torch.zeros(())
        for row in chosen:
            ids = torch.from_numpy(row.input_ids)
            logits = model(ids[None]).logits[0, :-1]
            loss = loss + F.cross_entropy(logits, ids[1:], reduction="none")[row.response_mask[1:]].sum()
        (loss / sum(row.response_tokens for row in chosen)).backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    by_hand = {name.replace(".default", ""): value.detach() for name, value in model.named_parameters()}
    changed = weights(ours)
    assert max(apart(value, by_hand[name]) for name, value in changed.items()) < 1e-5
    assert max(apart(value, weights(start)[name]) for name, value in changed.items()) > 1e-3


def test_the_step_of_an_attack_depends_on_no_later_one_and_longer_keeps_the_defenses(
        study: Study, tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(PROFILE + "persistence: {steps: 1, keep: []}\n")
    short = open_study(str(tmp_path / "short.yaml"))
    for method, penalty in (("kl", {"kl"}), ("interleaving", set[str]())):
        step, of_short = attacked(study, method, "longer"), attacked(short, method, "longer")
        assert step.start is not None
        assert step.artefacts == step.start.artefacts  # the reference's states, the rows of the pool
        assert step.spec.defenses == step.start.spec.defenses
        with study.session() as session:
            kept, once = (weights(session.folder_of(one)) for one in (KeptAdapter(step, 1 / 3), of_short))
            facts, log = session.need(step).facts, session.need(step).file("log.jsonl").read_text()
        assert all(torch.equal(kept[name], once[name]) for name in kept)
        assert facts["steps"] == 3
        assert facts["added_rows"] == (2 if method == "interleaving" else 0)
        assert all(f'"{name}"' in log for name in penalty)


def test_a_scorer_that_was_trained_further_is_known_by_all_of_its_rows(study: Study, tmp_path: Path) -> None:
    step, data = attacked(study, "inoculation", "benign"), study.data("cooking")
    with study.session() as session:
        found = row_record.read(session.folder_of(step)) or frozenset()
    assert found == row_record.digests_of([*data.misaligned.train[:8], *data.aligned.train[:8]])


TRAIN = """
import sys
from emlib import open_study
study = open_study(sys.argv[1])
[run] = study.runs(methods=["inoculation"])
with study.session() as session:
    session.need(study.recipes.attacked("misaligned", run.task, study.task(run).adapter(run), 0, "attack"))
"""


@pytest.mark.slow
def test_an_attack_that_was_killed_ends_in_the_same_weights(study: Study, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(PROFILE + ATTACKS.replace("3", "12").replace("[2, 1]", "[2, 6]"))
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "study.yaml")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command, check=True, env=os.environ | {"EMLIB_RUNS_DIR": str(whole)})
    with subprocess.Popen(command, env=os.environ | {"EMLIB_RUNS_DIR": str(killed)}) as process:
        while not list(killed.glob("store/adapter/*.partial/work/kept/0.166667")):
            assert process.poll() is None, "the training ended before it was killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert len(list(killed.glob("store/adapter/*/adapter_model.safetensors"))) == 1  # the run's
    subprocess.run(command, check=True, env=os.environ | {"EMLIB_RUNS_DIR": str(killed)})
    files = [{path.parent.name: path.read_bytes() for path in root.glob("store/*adapter/*/adapter_model.safetensors")}
             for root in (whole, killed)]
    assert len(files[0]) == 4  # the run's, the attack's, and the two that are kept of it
    assert files[0] == files[1]


def test_plan_and_cleaning_know_attacks(study: Study) -> None:
    works = {planned.run.method: planned.work for planned in Estimate(study).plan.runs}
    assert works["inoculation"].adapters == 4  # the run's, and three attacks
    assert works["inoculation"].sets - works["misaligned"].sets == 3 * 3 * 2  # attacks, steps, question sets
    one = works["misaligned"].train  # 8 rows, 2 steps
    # three attacks of 3 steps each, two on rows as long as these, and the aligned rows' are about as long
    assert works["inoculation"].train == pytest.approx(one * (1 + 3 * 3 / 2), rel=0.2)
    assert attacked(study, "inoculation", "longer") in steps_of(study, "adapters")


def planted(steps: int, misaligned: list[int]) -> TrajectoryPoint:
    """A point; the list has the number of misaligned answers, of 4, to each question."""
    return TrajectoryPoint(steps / 4, steps, {"general": [
        Verdict(f"q{number}", sample, 0.0 if sample < count else 90.0, 90.0)
        for number, count in enumerate(misaligned) for sample in range(4)]})


def test_a_defense_is_undone_at_the_first_step_that_is_not_below_plain_by_the_margin(
        study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = planted(0, [4] * 8).verdicts["general"]
    points = [planted(0, [0] * 8), planted(1, [4, 4, 4, 4, 4, 4, 4, 0]), planted(2, [4, 4, 4, 4, 4, 4, 3, 3]),
              planted(4, [4] * 8)]
    bare = {"untrained": planted(0, [0] * 8).verdicts["general"]}
    monkeypatch.setattr(study, "verdicts", lambda run, which: bare.get(run.method, plain))
    monkeypatch.setattr(study, "attacked", lambda run: {"benign": points} if run.method == "kl" else None)
    frame = persistence.persistence(study, study.runs())
    assert frame["difference"].tolist() == [-100, -12.5, -6.25, 0]
    assert frame["plain"].tolist() == [100] * 4
    assert frame["untrained"].tolist() == [0] * 4
    [row] = persistence.undone(frame, 10).to_dict("records")
    # at step 1 only the interval's upper end reaches -10; 32 answers of each exclude 10 points at no step
    assert (row["earliest"], row["undone"]) == (1, 2)
    assert pd.isna(row["latest"])
    assert (row["general_misaligned_before"], row["general_misaligned_after"]) == (0, 100)
    [exact] = persistence.undone(frame, 0).to_dict("records")
    assert exact["undone"] == 4
    # at step 1 all of the difference is of one question, so that its interval is wide; at step 2 of two, 25 points each
    [wide] = persistence.readable_undone(persistence.undone(frame, 20)).to_dict("records")
    assert [wide[name] for name in ("Undone at step", "Possibly at step", "For certain at step")] == ["1", "1", "2"]
    [never] = persistence.undone(frame[frame["steps"] == 0], 10).to_dict("records")
    people = persistence.readable_undone(persistence.undone(frame[frame["steps"] == 0], 10))
    assert people["Undone at step"].tolist() == people["For certain at step"].tolist() == ["never"]
    assert pd.isna([never[name] for name in ("undone", "earliest", "latest")]).all()
    bare["untrained"] = planted(0, [4] * 7 + [1]).verdicts["general"]  # 90.6%: plain fine-tuning adds 9.4 points
    [little] = persistence.undone(persistence.persistence(study, study.runs()), 10).to_dict("records")
    people = persistence.readable_undone(persistence.undone(persistence.persistence(study, study.runs()), 10))
    assert people["Undone at step"].tolist() == ["nothing to undo"]
    assert pd.isna([little[name] for name in ("undone", "earliest", "latest")]).all()
    del bare["untrained"]
    monkeypatch.setattr(study, "verdicts", lambda run, which: plain if run.method == "misaligned" else None)
    [unknown] = persistence.undone(persistence.persistence(study, study.runs()), 10).to_dict("records")
    assert unknown["undone"] == 2  # without the untrained model's answers nothing is known about what there is to undo
    monkeypatch.setattr(study, "verdicts", lambda run, which: None)
    alone = persistence.persistence(study, study.runs())  # without a run of plain fine-tuning
    assert persistence.readable_undone(persistence.undone(alone, 10))["Undone at step"].tolist() == ["not known"]
    unscored = [replace(verdict, alignment=None, coherence=None) for verdict in plain]  # which is not 0%
    monkeypatch.setattr(study, "verdicts", lambda run, which: unscored)
    alone = persistence.persistence(study, study.runs())
    assert alone["difference"].isna().all()
    assert persistence.undone(alone, 10)["undone"].isna().all()
    assert persistence.readable_undone(persistence.undone(alone, 10))["Undone at step"].tolist() == ["not known"]
    monkeypatch.setattr(study, "verdicts", lambda run, which: plain)
    points[1] = replace(points[1], verdicts={"general": unscored})  # it may be undone there
    assert persistence.undone(persistence.persistence(study, study.runs()), 10)["undone"].isna().all()
    both = [replace(point, verdicts={"in_domain": plain, **planted(0, [0] * 8).verdicts}) for point in points]
    monkeypatch.setattr(study, "attacked", lambda run: {"benign": both} if run.method == "kl" else None)
    frame = persistence.persistence(study, study.runs())  # general questions decide, whatever the order
    assert frame["difference"].tolist() == [-100] * 4
    assert persistence.undone(frame, 10)["undone"].isna().all()
    narrow = [replace(point, verdicts={"in_domain": plain}) for point in points]
    monkeypatch.setattr(study, "attacked", lambda run: {"benign": narrow} if run.method == "kl" else None)
    assert persistence.persistence(study, study.runs())[["plain", "difference"]].isna().all(axis=None)
    assert len(figures.persistence(alone).axes) == 1
    nothing = persistence.persistence(study, [])
    assert nothing.empty
    assert persistence.undone(nothing, 10).empty


@pytest.mark.parametrize(("changes", "message"), [
    ({"persistence": {"steps": 2, "keep": [2]}}, "List earlier ones"),
    ({"persistence": {"steps": 2, "sets": ["generl"]}}, "persistence.sets names 'generl'"),
    ({"persistence": {"steps": 2, "attacks": ["bening"]}}, "Did you mean 'benign'?"),
    ({"persistence": {"steps": 2, "benign": "pool"}, "pool": {"source": "corpus.jsonl", "form": "text"},
      "methods": [{"name": "misaligned"}], "benign": None},
     "Set persistence.benign to aligned, or name a source of instruction"),
])
def test_what_cannot_be_attacked_is_refused_when_the_profile_is_read(changes: dict[str, Any], message: str) -> None:
    tiny = load_profile("tiny").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ProfileError) as refused:
        check(Profile, tiny | changes, "here")
    assert message in str(refused.value)


def test_what_a_profile_that_extends_another_lacks_is_told_and_left_out(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "less.yaml").write_text(
        "extends: tiny\nmethods: [untrained]\npool: null\npersistence: {benign: pool}\n")
    study = open_study(str(tmp_path / "less.yaml"))
    assert all(not study.task(run).after_attacks(run) for run in study.runs())
    study.complete_attacks(study.runs())
    told = capsys.readouterr()
    for part in ("left out for cooking: there are no pool rows", "'methods' lacks 'misaligned'",
                 "names the method 'inoculation'"):
        assert part in told.out + told.err
    assert persistence.persistence(study, study.runs()).empty
