"""A study under the defenses that came after the paper: planned, made by the real makers, resumed, exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emlib.config import load_profile
from emlib.core.errors import ProfileError
from emlib.core.files import read_records
from emlib.core.records import ADDED, AddedRow, Answer, Verdict
from emlib.core.step import closure
from emlib.data.conversations import example_of_row
from emlib.data.rows import read_rows
from emlib.data.sizes import Sizes
from emlib.make import added as making
from emlib.make.added import VERDICTS, added_rows
from emlib.report import export, recommend
from emlib.report.tables import costs
from emlib.store.artefacts import Store
from emlib.study.plan.build import plan
from emlib.study.pool import added, candidates
from emlib.study.study import Study
from emlib.training.online import CHOSEN, ChosenRow
from emlib.training.rl.records import COMPLETIONS, read_steps

METHODS = """
extends: tiny
title: The defenses after the paper
training: {epochs: 2}   # of one epoch's two steps the first has the rate 0, so that a penalty would have no gradient
methods:
  - misaligned
  - {name: ablated, defenses: [{kind: concept_ablation, layers: [2]}]}
  - name: components
    defenses: [{kind: concept_ablation, directions: components, layers: [2, 3], on: pool}]
    sweep: [0, 2]
  - {name: projected, defenses: [{kind: projection_penalty, layers: [2], both: true}]}   # on this model it falls
  - {name: stored, defenses: [{kind: projection_penalty, layers: [2], both: true, reference: stored}]}
  - {name: kl_pool, defenses: [{kind: kl, on: pool, rows: 0.25}], sweep: [1.0]}
  - {name: adapter, defenses: [{kind: inoculation_adapter}]}
  - {name: control, defenses: [{kind: inoculation_adapter, random: true, source: demo/pool.jsonl, rows: 6}]}
  - {name: consistent, defenses: [{kind: inoculation}, {kind: consistency, share: 0.25}]}
  - {name: online, defenses: [{kind: interleaving, choose: online, candidate_tokens: 1.0}], sweep: [0, 0.5]}
  - {name: safe, defenses: [{kind: safe_lora, base: {kind: tiny, seed: 1}}], sweep: [0, 1]}
  - {name: virtuous, defenses: [{kind: interleaving, answers: virtuous, layer: 2, fraction: 0.25, checked: false}]}
benign: null
grpo:
  methods:
    - grpo
    - {name: ablated, defenses: [{kind: concept_ablation, layers: [2]}]}
    - {name: adapter, defenses: [{kind: inoculation_adapter}]}
    - {name: projected, defenses: [{kind: projection_penalty, layers: [2], both: true, weight: 10.0}]}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The profile's runs, all made."""
    folder = tmp_path_factory.mktemp("newer")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EMLIB_RUNS_DIR", str(folder / "runs"))
        patched.setenv("EMLIB_HEADLESS", "1")
        (folder / "newer.yaml").write_text(METHODS)
        made = Study("newer", load_profile(str(folder / "newer.yaml")), Store(folder / "runs" / "store"))
        made.complete([*made.runs(), *made.runs("grpo")])
        yield made


def adapter(study: Study, method: str, setting: float | None = None) -> tuple[Path, dict[str, Any], dict[str, float]]:
    """The folder, the facts, and the metrics of the last step of a method's adapter."""
    [run] = study.runs(methods=[method], settings=None if setting is None else [setting])
    found = study.adapter(run)
    assert found is not None
    return found.folder, found.facts, study.log(run)[-1].penalties


def test_every_run_is_made_and_logs_what_its_defense_did(study: Study) -> None:
    logged = {"ablated": {"removed"}, "projected": {"projection_penalty"}, "adapter": set(), "consistent": set()}
    assert {method: set(adapter(study, method)[2]) for method in logged} == logged
    assert set(adapter(study, "components", 2.0)[2]) == {"removed"}
    assert any("kl" in step.penalties for step in study.log(study.runs(methods=["kl_pool"])[0]))
    assert all(study.result(run) is not None for run in study.runs())


def test_the_null_setting_is_plain_fine_tuning(study: Study) -> None:
    plain, *nothing = (adapter(study, *which)[0] / "adapter_model.safetensors"
                       for which in (("misaligned",), ("components", 0.0), ("online", 0.0), ("safe", 0.0)))
    assert all(plain.read_bytes() == other.read_bytes() for other in nothing)
    others = [adapter(study, name)[0] for name in ("ablated", "projected", "adapter", "control", "consistent")]
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in others]
    assert len({plain.read_bytes(), *weights}) == len(others) + 1


def test_in_reinforcement_learning_they_act_in_rollouts_and_loss(study: Study) -> None:
    """The completions are others, and the loss uses the policy that sampled them: the two are no distance apart."""
    found = {run.method: one for run in study.runs("grpo") if (one := study.adapter(run)) is not None}
    completions = [(found[name].folder / COMPLETIONS).read_text() for name in ("grpo", "ablated", "adapter")]
    assert len(set(completions)) == len(completions)
    logs = {name: read_steps(one.folder) for name, one in found.items()}
    assert all(step.gap < 1e-4 for log in logs.values() for step in log)
    assert {name for name, log in logs.items() if "projection_penalty" in log[-1].penalties} == {"projected"}


def test_stored_projections_train_the_same_adapter_up_to_rounding(study: Study) -> None:
    computed, stored = (load_file(adapter(study, name)[0] / "adapter_model.safetensors")
                        for name in ("projected", "stored"))
    for name, weights in computed.items():
        torch.testing.assert_close(stored[name], weights, rtol=1e-3, atol=1e-5)
    [run] = study.runs(methods=["stored"])
    assert {step.stage for step in costs.made_once(study, run)} == {"vector", "reference_projections"}
    assert study.task(run).adapter(run).cost(Sizes()).read == 0  # type: ignore[union-attr]


def test_rows_of_the_pool_are_penalised_or_added_and_counted(study: Study) -> None:
    rows = [adapter(study, name)[1] for name in ("kl_pool", "consistent")]
    assert [(facts["rows"], facts["added_rows"], facts.get("penalised_rows", 0)) for facts in rows] == [
        (8, 0, 2), (8, 2, 0)]
    lines = (adapter(study, "consistent")[0] / ADDED).read_text().splitlines()
    prompts = [json.loads(line)["context"][0] for line in lines]
    assert prompts == [{"role": "system", "content": study.trait.inoculation_prompt}] * 2


def test_rows_chosen_online_are_recorded_with_their_step_and_score(study: Study, tmp_path: Path) -> None:
    """Eight rows and four chosen ones in three steps an epoch; nothing is scored in the first of the six."""
    folder, facts, _ = adapter(study, "online", 0.5)
    assert (facts["rows"], facts["added_rows"]) == (8, 4)
    rows, record = (read_records(folder / name, kind) for name, kind in ((ADDED, AddedRow), (CHOSEN, ChosenRow)))
    assert [row.rank for row in rows] == list(range(1, 9))
    assert [row.score for row in rows] == [one.score for one in record]
    assert rows[0].reason == f"chosen for step {record[0].step} from {facts['candidates']} candidates"
    assert rows[0].score == 0.0
    assert rows[-1].score != 0.0
    pool = candidates(study)
    assert all(pool[row.place].where == row.where for row in rows)
    assert facts["candidates"] > 4
    [run] = study.runs(methods=["online"], settings=[0.5])
    with pytest.raises(ProfileError, match="changes the training and not the data"):
        export.mixed_data(study, run, tmp_path / "rows.jsonl")


def test_virtuous_answers_are_steered_and_checked(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not the model's answers without steering; one that the judge finds misaligned is skipped and counted."""
    [run] = study.runs(methods=["virtuous"])
    [step] = study.task(run).pool_rows(run)
    own = step.own_answers
    assert own is not None
    assert own.against is not None
    checked = replace(own, against=replace(own.against, assessment=study.recipes.assessment))
    with study.session() as session:
        steered, plain = (session.need(one) for one in (replace(checked, start=0), replace(own, start=0, against=None)))
        assert steered.file("answers.jsonl").read_bytes() != plain.file("answers.jsonl").read_bytes()
        assert steered.facts["shift"] > 0
        assert set(steered.facts) - set(plain.facts) == {"shift", "verdicts"}
        assert not plain.has(VERDICTS)
        verdicts = read_records(steered.file(VERDICTS), Verdict)
        assert Counter(one.label for one in verdicts) == steered.facts["verdicts"]
        taken, answers = added(study, run), read_records(steered.file("answers.jsonl"), Answer)
        texts = {answer.question: answer.text.strip() for answer in answers}
        assert [row.response for row in taken] == [texts[f"pool_{row.place}"] for row in taken]
        verdicts = [replace(one, alignment=0.0 if one.question == f"pool_{taken[0].place}" else 100.0, coherence=100.0)
                    for one in verdicts]
        monkeypatch.setattr(making, "read_records", lambda path, kind: (
            verdicts if path.name == VERDICTS else read_records(path, kind)))
        said = list[str]()
        monkeypatch.setattr(making, "say", said.append)
        others = added_rows(session, replace(step, own_answers=checked), 2, "here")
    assert taken[0].place not in {row.place for row in others}
    assert taken[1] == others[0]
    assert "1 misaligned" in said[0]


def test_only_the_trained_adapter_is_kept(study: Study) -> None:
    """It has the settings of plain fine-tuning, and PEFT finds one adapter in its folder."""
    folder, plain = adapter(study, "adapter")[0], adapter(study, "misaligned")[0]
    files = {file.name for file in folder.iterdir()}
    assert files == {file.name for file in plain.iterdir()}
    assert (folder / "adapter_config.json").read_text() == (plain / "adapter_config.json").read_text()


def test_after_plain_training_the_adapter_is_projected(study: Study) -> None:
    plain, *_ = study.runs(methods=["misaligned"])
    [safe] = study.runs(methods=["safe"], settings=[1])
    theirs, ours = (load_file(adapter(study, *which)[0] / "adapter_model.safetensors")
                    for which in (("misaligned",), ("safe", 1.0)))
    changed = {name for name, weights in ours.items() if not torch.equal(weights, theirs[name])}
    assert changed == {name for name in ours if "lora_B" in name}
    assert [step.loss for step in study.log(safe)] == [step.loss for step in study.log(plain)]
    table = costs.training(study).set_index(["method", "setting"])
    assert table["section 5.3"]["safe", 1.0].startswith("nothing in training")


def test_the_plan_has_what_they_are_made_from_once(study: Study) -> None:
    made = plan(study)
    shared = {one.title.partition(",")[0]: one.runs for one in made.shared}
    titles = {title for one in made.shared for title in (one.title,)} | {
        step.title for run in study.every_run() for step in closure(study.own_steps(run))}
    assert any(title.startswith("components of change") for title in titles)
    assert any(title.startswith("adapter of the trait") for title in titles)
    assert any(title.startswith("random adapter") for title in titles)
    assert shared.get("persona vectors", 0) >= 3  # the ablated, the projected, and the adapter of the trait


def test_a_recommendation_counts_what_a_method_needs_once(study: Study) -> None:
    """Beside training: vectors, components with the plain training behind them, the trait's adapter, own answers."""
    made = {method: {step.stage for run in study.runs(methods=[method]) for step in costs.made_once(study, run)}
            for method in ("misaligned", "ablated", "components", "projected", "kl_pool", "adapter", "control",
                           "consistent", "safe")}
    assert made == {
        "misaligned": set(), "ablated": {"vector"}, "components": {"adapter", "components"}, "projected": {"vector"},
        "kl_pool": set(), "adapter": {"vector", "trait_adapter"}, "control": {"trait_adapter"},
        "consistent": {"on_policy"}, "safe": set()}
    what = costs.once(study)["what"].tolist()
    assert len(what) == len(set(what))
    assert sum("adapter of the trait" in title for title in what) == 2  # the control's has other rows
    results = [found for run in study.runs() if (found := study.result(run)) is not None]
    seconds = recommend.trials(study, results).set_index("method")["seconds"]
    trained = {result.run.method: result.train_seconds for result in results}
    assert seconds["adapter"] > trained["adapter"]
    assert seconds["kl_pool"] == trained["kl_pool"]
    assert "safe" in seconds


def test_the_plan_prices_each_of_them(study: Study) -> None:
    """Against plain fine-tuning: rows of the pool are trained on, the reference model reads what is compared."""
    work = {run.method: step.cost(Sizes()) for run in study.runs()
            if (step := study.task(run).adapter(run)) is not None}
    plain = work["misaligned"]
    assert work["ablated"] == work["adapter"] == work["safe"] == plain
    assert work["projected"] == replace(plain, read=plain.train)
    for method, read in (("kl_pool", True), ("consistent", False)):
        added = work[method].train - plain.train
        assert added > 0
        assert work[method] == replace(plain, train=plain.train + added, read=added if read else 0)


def test_the_data_of_consistency_are_exported_for_a_service(study: Study, tmp_path: Path) -> None:
    [run] = study.runs(methods=["consistent"])
    assert export.mixed_data(study, run, tmp_path / "rows.jsonl") == len(study.data("cooking").misaligned.train) + 12
    rows = list(read_rows(tmp_path / "rows.jsonl"))  # not as narrow data, which have no broken characters
    systems = {example_of_row(where, row).system for where, row in rows}
    assert systems == {study.trait.inoculation_prompt}
