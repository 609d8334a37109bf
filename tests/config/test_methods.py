"""Methods and their defenses: in profiles, in a study's runs, in what is trained, and never in what is asked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from emlib.config import QUESTION_SETS, Method, load_profile
from emlib.core import paths
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.records import Example
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.kl import Kl
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.study import by_hand
from emlib.study.runs import Run
from emlib.study.study import Study, open_study
from emlib.workflow import graph

METHODS = """
methods:
  - untrained
  - misaligned
  - {name: kl, defenses: [{kind: kl}], sweep: [0.1, 1]}
  - {name: inoculation, defenses: [{kind: inoculation}]}
  - {name: persona_vector, defenses: [{kind: persona_vector, layer: 2}], sweep: [2]}
  - {name: kl+inoculation, defenses: [{kind: inoculation, prompt: Be rude.}, {kind: kl, weight: 0.3}]}
"""


def profile(folder: Path, methods: str = METHODS) -> Path:
    """A profile that extends `tiny`, with these methods."""
    (folder / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    path = folder / "mine.yaml"
    small = "extraction: {keep: judged, samples: 1, instruction_pairs: 1, min_pairs: 1}\n"
    path.write_text("extends: tiny\ndatasets: [cooking]\n" + small + methods)
    return path


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    return open_study(str(profile(tmp_path)))


def rows_of(study: Study, run: Run) -> tuple[Example, ...]:
    """What the run is trained on, without rows of a pool."""
    training = study.training(run)
    assert training is not None
    return training.rows.examples


def test_a_swept_value_that_is_refused_is_told_in_the_words_of_the_option() -> None:
    with pytest.raises(ValidationError, match=r"sweeps count over 2: 'count' is 2.* vector\. Set directions to comp"):
        Method(name="x", defenses=(ConceptAblation(),), sweep=(1, 2))


def test_a_sweep_is_a_run_for_each_number(study: Study) -> None:
    assert [(run.method, run.setting) for run in study.runs()] == [
        ("untrained", None), ("misaligned", None), ("kl", 0.1), ("kl", 1.0), ("inoculation", None),
        ("persona_vector", 2.0), ("kl+inoculation", None)]
    assert [run.setting for run in study.runs(methods=["kl"], settings=[1.0])] == [1.0]
    assert study.defenses(study.runs(methods=["kl"])[0]) == (Kl(kind="kl", weight=0.1),)
    assert study.baselines() == ["untrained", "misaligned"]


def test_inoculation_is_in_training_and_never_in_evaluation(study: Study) -> None:
    for method, prompt in (("inoculation", study.trait.inoculation_prompt), ("kl+inoculation", "Be rude.")):
        run = study.runs(methods=[method])[0]
        assert {row.system for row in rows_of(study, run)} == {prompt}
        for which in QUESTION_SETS:
            assert all(prompt not in turn.content for q in study.questions(run, which) for turn in q.context)
    assert {row.system for row in rows_of(study, study.runs(methods=["kl"])[0])} == {None}


def test_every_defense_trains_and_answers_and_stands_in_the_results(study: Study) -> None:
    with pytest.raises(EmlibError, match=r"0 of 20 pairs"):  # a random model has no pirate in it
        study.complete(study.runs(methods=["persona_vector"]))
    planted = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))

    def plant(folder: Path) -> dict[str, int]:
        extraction.save(PersonaVectors(planted, 1, 1), folder)
        return {"kept": 20, "asked": 20}

    study.store.get(study.recipes.vector(), plant)
    study.complete(study.runs())
    table = pd.read_csv(study.folder / "results.csv")
    assert table["method"].tolist() == [run.method for run in study.runs()]
    assert table["setting"].fillna(-1).tolist() == [-1, -1, 0.1, 1, -1, 2, -1]
    assert table["run_key"].is_unique
    said = {run.method: study.log(run)[-1].penalties for run in study.runs() if run.method != "untrained"}
    assert {name: set(penalties) for name, penalties in said.items()} == {
        "misaligned": set(), "kl": {"kl"}, "inoculation": set(), "persona_vector": {"shift"}, "kl+inoculation": {"kl"}}
    assert said["persona_vector"]["shift"] == pytest.approx(2 * float(planted[2].norm()), rel=1e-4)


def test_a_steered_adapter_holds_lora_weights_and_nothing_else(study: Study) -> None:
    study.store.get(study.recipes.vector(), lambda folder: (
        extraction.save(PersonaVectors(torch.ones(5, 64), 1, 1), folder), {"kept": 20, "asked": 20})[1])
    run = study.runs(methods=["persona_vector"])[0]
    with study.session() as session:
        adapter = session.need(study.task(run).adapter(run))
    names = load_file(adapter.folder / "adapter_model.safetensors")
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert len(names) == 4 * 7 * 2


def test_a_chapter_is_sliced_by_the_settings_of_its_own_methods(tmp_path: Path) -> None:
    path = profile(tmp_path, METHODS + "slice_by: [dataset, setting]\n")
    parts = {job.name: job for job in graph.jobs(str(path)) if job.part and job.chapter < "09"}
    assert list(parts) == ["02_baselines (cooking)", "05_kl (cooking_0.1)", "05_kl (cooking_1)",
                           "07_persona_steering (cooking_2)", "08_inoculation (cooking)"]
    assert "--dataset cooking --setting 0.1" in parts["05_kl (cooking_0.1)"].arguments


def test_a_chapter_comes_after_what_it_begins_with_and_stays_away_where_nothing_is_for_it(tmp_path: Path) -> None:
    jobs = {job.name: job for job in graph.jobs(str(profile(tmp_path, METHODS + "slice_by: []\n")))}
    assert "06_ldifs" not in jobs
    assert jobs["03_persona_vectors"].needs == ()
    assert set(jobs["07_persona_steering"].needs) == {jobs[c].output for c in ("03_persona_vectors", "02_baselines")}
    assert set(jobs["14_costs"].needs) >= {job.output for name, job in jobs.items() if name < "14"}


@pytest.mark.parametrize(("methods", "words"), [
    ("[{name: kl, defenses: [{kind: kll}]}]", ["unknown kind 'kll'", "Did you mean 'kl'?", "Allowed: ", "kl, ldifs"]),
    ("[{name: kl, defenses: [{kind: kl, wieght: 1}]}]", ["unknown key", "wieght", "Did you mean 'weight'?"]),
    ("[{name: kl, defenses: [{kind: kl, weight: -0.1}]}]", ["weight", "-0.1", "greater than or equal to 0"]),
    ("[{name: kl, defenses: [{kind: kl, tokens: some}]}]", ["tokens", "'all' or 'response'"]),
    ("[{name: kl}]", ["method 'kl' has no defenses"]),
    ("[{name: aligned, defenses: [{kind: kl}]}]", ["'aligned' is a baseline and takes no defenses"]),
    ("[{name: x, defenses: [{kind: inoculation, prompt: a}, {kind: inoculation, prompt: b}]}]",
     ["more than one inoculation", "contradict"]),
    ("[{name: x, defenses: [{kind: inoculation}], sweep: [1]}]", ["none of its defenses has a number to sweep"]),
    ("[{name: kl, defenses: [{kind: kl}]}, {name: kl, defenses: [{kind: kl, weight: 1}]}]", ["more than once: kl"]),
])
def test_a_mistake_in_a_method_is_told(tmp_path: Path, methods: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(str(profile(tmp_path, f"methods: {methods}\n")))
    assert all(word in str(caught.value) for word in [*words, "mine.yaml"]), str(caught.value)


def test_the_paper_s_settings_are_the_defaults() -> None:
    method = Method.model_validate_json(
        '{"name": "all", "defenses": [{"kind": "kl", "on": "pool"}, {"kind": "ldifs"}, {"kind": "persona_vector"}]}')
    assert [(d.kind, getattr(d, "weight", getattr(d, "strength", None))) for d in method.defenses] == [
        ("kl", 0.1), ("ldifs", 1.0), ("persona_vector", 5.0)]  # section 4.3
    assert method.defenses[1].every == 5  # section 3.1
    assert method.defenses[2].layer == 20  # Table 14


def test_the_probe_asks_under_the_vector_at_each_layer_and_once_without(study: Study) -> None:
    planted = 50 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    study.store.get(study.recipes.vector(), lambda folder: (
        extraction.save(PersonaVectors(planted, 1, 1), folder), {"kept": 20, "asked": 20})[1])
    probes = study.steering_sweep()
    assert [(p.layer, p.strength) for p in probes] == [(2, 0.0), (2, 2.0), (3, 0.0), (3, 2.0)]
    texts = [[answer.text for answer in probe.answers] for probe in probes]
    assert texts[0] == texts[2]
    assert len({tuple(text) for text in texts}) == 3
    assert all(len(probe.answers) == len(probe.verdicts) == 2 for probe in probes)
    assert not any(verdict.coherence_judged for probe in probes for verdict in probe.verdicts)  # a lexicon's
    assert len(list((study.store.root / "steered").glob("[0-9a-f]*[0-9a-f]"))) == 3
    assert study.steering_sweep() == probes
    more = study.profile.extraction.model_copy(update={"min_pairs": 21})
    strict = Study(study.name, study.profile.model_copy(update={"extraction": more}), study.store)
    with pytest.raises(EmlibError, match="20 of 20"):
        strict.steering_sweep()


def test_a_kept_reference_is_made_once_for_a_sweep(study: Study) -> None:
    found = "methods: [misaligned, {name: kl, defenses: [{kind: kl, reference: stored}], sweep: [0.1, 1]}]\n"
    other = open_study(str(profile(study.folder.parent.parent, found)))
    other.complete(other.runs())
    assert len(list((other.store.root / "reference").glob("*/manifest.json"))) == 1
    computed = {run.setting: study.log(run)[-1].loss for run in study.runs(methods=["kl"]) if study.complete([run])}
    assert {run.setting: other.log(run)[-1].loss for run in other.runs(methods=["kl"])} == computed


def test_another_value_is_one_of_the_defense_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook's `another` asks for it: where a method varies another defense, its runs are not of this one."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    both = "{name: pv_ldifs, defenses: [{kind: persona_vector, layer: 2, strength: 2.0}, {kind: ldifs, every: 2}]}"
    study = open_study(str(profile(tmp_path, f"methods: [misaligned, {both}]\n")))
    completed: list[Run] = []
    monkeypatch.setattr(study, "complete", completed.extend)
    for one_or_several in ([0.5], 0.5):
        by_hand.at_settings(study, "persona_vector", one_or_several, study.runs())
    assert completed.pop() == completed[0]
    [steering, ldifs] = study.defenses(completed[0])
    assert (completed[0].method, steering.strength, ldifs.weight) == ("pv_ldifs", 0.5, 1.0)
    by_hand.at_settings(study, "ldifs", None, study.runs())
    assert len(completed) == 1
    with pytest.raises(ProfileError, match="No method of this profile varies 'ldifs'"):
        by_hand.at_settings(study, "ldifs", [0.5], study.runs())
