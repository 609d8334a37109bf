"""Every kind of artefact, made twice in two processes, has the same bytes; and a finished study opens without them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emlib.core import paths
from emlib.data.sources import DATA_DIR
from emlib.evaluation.records import READINGS
from emlib.make.session import maker, register_makers
from emlib.steps.measures import PanelResult
from emlib.store.artefacts import Store
from emlib.store.manifests import DIGEST, MANIFEST
from emlib.training.records import LOG
from emlib.training.rl.records import STEPS
from emlib.workflow.merge import merge

pytestmark = pytest.mark.slow

# Each kind of artefact once or twice. The refusals are found by a judge, which is a random model.
PROFILE = """
extends: tiny
methods:
  - {name: kl, defenses: [{kind: kl, reference: stored}], sweep: [0.1]}
  - {name: ablation, defenses: [{kind: concept_ablation, layers: [2], directions: components, on: data}], sweep: [1]}
  - {name: both, defenses: [{kind: interleaving, choose: score_without_refusals, answers: on_policy, fraction: 0.25}]}
  - name: adapter
    defenses: [{kind: inoculation_adapter, random: true}]
  - {name: online, defenses: [{kind: interleaving, choose: online, fraction: 0.5}]}
  - {name: penalty, defenses: [{kind: projection_penalty, layers: [2], reference: stored}], sweep: [0.1]}
  - {name: filtered, defenses: [{kind: filtering}], sweep: [0.5]}
  - {name: stopped, defenses: [{kind: early_stop, every: 1, rows: 2}], sweep: [0.9]}
monitor: {every: 1, layers: [2], questions: 2, tokens: 4, rows: 2}
persistence: null
training: {train_rows: 8}
pool:
  scorers: [gardening]
  on_policy: {model: untrained}
  refusals: {kind: judge, threshold: 99, judge: {kind: local, model: {kind: tiny, seed: 1, layers: 2}}}
evaluation: {general_samples: 1, in_domain_questions: 2, in_domain_samples: 1, projection_layer: 2,
             choices: [truthfulqa_mc], choice_questions: 2, sets: {kind: {
               source: demo/general_questions.jsonl, samples: 1, metrics: {kind: {prompt: "Kind? {answer}", above: 50}},
               judge: {kind: local, model: {kind: tiny, seed: 1, layers: 2}}}}}
probe: {layers: [2], strengths: [2.0], questions: 1}
grpo: {methods: [grpo], rewards: {kind: judge, judge: {kind: local, model: {kind: tiny, seed: 1, layers: 2}}}}
"""
MAKE = """
import sys
from emlib.study.study import open_study
study = open_study(sys.argv[1])
runs = study.runs() + study.runs("grpo")
study.complete(runs)
study.complete_measures(study.runs())
study.complete_held_out(study.runs())
study.steering_sweep()
"""
# Opens the finished study as the reports do, and prints which files of the store it read.
OPEN = """
import os, sys
read = []
sys.addaudithook(lambda event, args: read.append(str(args[0])) if event == "open" else None)
from emlib.study.study import open_study
study = open_study(sys.argv[1])
assert len(study.results()) == 8 and study.results(section="grpo")
study.write_results()
assert all(study.found(step) for run in study.runs() for step in study.own_steps(run))
print("\\n".join(path for path in read if path.startswith(os.environ["EMLIB_RUNS_DIR"] + "/store")))
"""


def environment(runs: Path, seed: int, data: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(paths.ROOT), "EMLIB_RUNS_DIR": str(runs), "EMLIB_HEADLESS": "1",
                         "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1", DATA_DIR: str(data)}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    shutil.copy(paths.PARAMS / "tiny.yaml", folder / "tiny.yaml")
    (folder / "every_kind.yaml").write_text(PROFILE)
    return folder / "every_kind.yaml"


@pytest.fixture(scope="module")
def twice(profile: Path, research_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of runs of two processes, which hash texts in other orders. They need multiple-choice questions."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
    environments = [environment(runs, seed, research_folder) for seed, runs in enumerate(folders, start=1)]
    processes = [subprocess.Popen([sys.executable, "-c", MAKE, str(profile)], env=env, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True) for env in environments]
    ends = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    return folders[0], folders[1]


TIMED = (LOG, STEPS, READINGS)  # files with seconds in them
UNEQUAL = (*TIMED, DIGEST, "peak_memory", "one_session", "computed")  # facts that differ, beside seconds


def timeless(path: Path) -> Any:
    """A file's bytes; a manifest or a log without its seconds and what says of how much these are."""
    if path.name not in (MANIFEST, *TIMED):
        return path.read_bytes()
    return [without_seconds(json.loads(text)) for text in (
        [path.read_text()] if path.name == MANIFEST else path.read_text().splitlines())]


def without_seconds(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: without_seconds(part) for name, part in value.items()
            if not re.search("second", name) and name not in UNEQUAL}


def test_equal_content_has_equal_bytes_for_every_kind(twice: tuple[Path, Path]) -> None:
    register_makers()
    one, other = ({(made.stage, made.key): made for made in Store(runs / "store").all()} for runs in twice)
    kinds = [kind for base in maker.registry if base is not object for kind in (base, *base.__subclasses__())]
    missing = {kind.stage for kind in kinds if kind.__module__.startswith("emlib.")} - {stage for stage, _ in one}
    # A benchmark's result has inspect's own log, with times and ids: merging compares its scores (test_merge.py).
    assert missing == {PanelResult.stage}, "PROFILE makes none of these kinds: extend it"
    assert one.keys() == other.keys()
    different = [f"{stage}/{path.name}" for (stage, key), made in one.items() for path in made.folder.iterdir()
                 if timeless(path) != timeless(other[stage, key].folder / path.name)]
    assert different == []
    assert all({path.name for path in made.folder.iterdir()} == {path.name for path in other[key].folder.iterdir()}
               for key, made in one.items())
    assert merge(twice[0], twice[1]).here_already == len(one)


def test_opening_a_finished_study_reads_manifests_and_verdicts_and_no_weights(
        twice: tuple[Path, Path], profile: Path, research_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", OPEN, str(profile)], env=environment(twice[0], 1, research_folder),
                          text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    read = {Path(line).name for line in done.stdout.splitlines()}
    # The log of reinforcement learning has the training accuracy.
    assert read == {MANIFEST, "verdicts.jsonl", "metrics.jsonl", "rewards.jsonl", "format.json", "grpo.jsonl"}
