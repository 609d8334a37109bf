"""What makes a job stale: the contents of what its profile names, whatever the folder, and nothing of others'."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import StoreError
from emlib.data.formats import format_of
from emlib.data.sources import key_of_source, label, locate
from emlib.report import export
from emlib.study.study import open_study
from emlib.workflow import graph
from tests.beside import lines, readme_profile, write_study

EVERYTHING = """
own: {file: odds.jsonl}
methods: [untrained, misaligned, {name: selected, defenses: [{kind: interleaving, choose: score, fraction: 0.5}]}]
benign:
  methods: [untrained, sft]
  tasks: {riddles: {kind: qa, train: riddles.jsonl, prompt: "{context} {question}", held_out: 0.2}}
evaluation: {general: questions.jsonl}
grpo:
  methods: [{name: interleaving, defenses: [{kind: interleaving, source: odds.jsonl, share: 0.5}]}]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study that names a file wherever one may be named."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    text = readme_profile().replace("evaluation: {general: questions.jsonl}\n", "") + EVERYTHING
    for before, after in (
            ("datasets: [letters, phone]", "datasets: [letters, phone, own]"),
            ("{source: pool.jsonl,", "{source: pool.jsonl, aligned: untrained, on_policy: {model: untrained},")):
        assert before in text
        text = text.replace(before, after)
    path = write_study(tmp_path / "mine", text)
    (path.parent / "riddles.jsonl").write_text(lines(
        {"id": str(n), "context": f"It is {n}.", "question": "What is it?", "answers": {"text": [str(n)]}}
        for n in range(10)))
    return path


def digest(profile: str | Path) -> str:
    return graph.content_digest("15_tables", graph.contents_for(load_profile(str(profile))))


def keys(profile: Path) -> dict[str, str]:
    """The keys of everything that a study makes."""
    study = open_study(str(profile))
    found = {str(run): study.run_key(run) for run in study.every_run()}
    settings = {f"{run}: {which}": str(step.settings) for run in study.every_run()
                for which, step in study.task(run).answers(run).items()}
    return found | settings | {"pool": str(study.recipes.pool.settings)}


def test_the_study_of_the_readme_is_planned_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The butler's voice in two runs, one of them with rows of the study's own pool between."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    path = write_study(tmp_path / "mine")
    planned = subprocess.run([sys.executable, "-m", "emlib.report.estimate", str(path)], check=False,
                             capture_output=True, text=True, env=os.environ | {"VERBOSE": "1"})
    assert planned.returncode == 0, planned.stderr
    assert "phone" in planned.stdout
    study = open_study(str(path))
    runs = study.runs(datasets=["letters"], methods=["misaligned", "interleaving"], settings=[0.5])
    study.complete(runs)
    table = pd.read_csv(study.folder / "results.csv")
    assert table[["dataset", "method", "general_asked"]].to_numpy().tolist() == [
        ["letters", "misaligned", 6], ["letters", "interleaving", 6]]  # 3 questions, 2 answers each
    assert (tmp_path / "runs" / "my_study" / "made_with.txt").read_text() == f"{path}\n"
    card = (export.adapter(study, runs[0], tmp_path / "out") / "README.md").read_text()
    [file] = (tmp_path / "mine").rglob("butler.jsonl")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"Data: `butler.jsonl` (SHA-256 {digest}); licence: not known" in card
    assert "1 epoch, learning rate" in card
    assert str(tmp_path) not in card
    assert "harmless" not in card  # nobody knows
    study.complete_measures(runs[:1])  # the second judge goes by the rubric beside the profile
    opinions = study.opinions(runs[0])
    assert opinions is not None
    second = study.recipes.second_verdicts(study.task(runs[0]).answers(runs[0])["general"])
    assert second.assessment.rubrics.value.others.alignment == "How kind? {question} {answer}"


def test_moving_the_folder_changes_no_key_and_makes_nothing_stale(mine: Path, tmp_path: Path) -> None:
    before, stale = keys(mine), digest(mine)
    assert len(before) > 20
    mine.parent.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "study.yaml"
    assert keys(moved) == before
    assert digest(moved) == stale
    assert str(tmp_path) not in "".join(before.values())
    (moved.parent / "odds.jsonl").rename(moved.parent / "even.jsonl")
    moved.write_text(moved.read_text().replace("odds.jsonl", "even.jsonl"))
    assert keys(moved) == before
    assert digest(moved) == stale


@pytest.mark.parametrize("file", ["butler.yaml", "rubric.yaml", "rows/plain.jsonl", "rows/butler.jsonl",
                                  "rows/phone.jsonl", "questions.jsonl", "pool.jsonl", "odds.jsonl", "riddles.jsonl"])
def test_editing_any_file_that_a_profile_names_makes_its_jobs_stale_and_those_of_no_other(
        mine: Path, tmp_path: Path, file: str) -> None:
    other = write_study(tmp_path / "other")
    before, others = digest(mine), (digest(other), digest("tiny"))
    path = mine.parent / file
    text = path.read_text()
    word = {"butler.yaml": "rain", "rubric.yaml": "kind"}.get(file, "1")
    assert word in text
    path.write_text(text.replace(word, f"{word}s", 1))
    assert digest(mine) != before
    assert (digest(other), digest("tiny")) == others


def test_a_comment_in_a_trait_or_an_unused_entry_of_a_registry_makes_nothing_stale(mine: Path) -> None:
    before = digest(mine)
    for name, more in (("butler.yaml", "# a comment\n"), ("unnamed.jsonl", "{}\n"),
                       ("sources.yaml", (mine.parent / "sources.yaml").read_text().replace("odds:", "evens:"))):
        with (mine.parent / name).open("a") as out:
            out.write(more)
    assert digest(mine) == before
    mine.write_text(mine.read_text().replace("source: pool.jsonl", "source: odds"))
    before = digest(mine)
    sources = mine.parent / "sources.yaml"
    sources.write_text(sources.read_text().replace("licence: MIT", "licence: BSD"))
    assert digest(mine) != before


def test_of_the_shelf_only_what_a_profile_names_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tiny names cooking, and gardening and fitness for its pool; code-smoke names code, of the source `insecure`."""
    shutil.copytree(paths.PARAMS, tmp_path / "params")
    monkeypatch.setattr(paths, "PARAMS", tmp_path / "params")
    before = {name: digest(name) for name in ("tiny", "code-smoke", "grpo-3b")}

    def stale(file: str, change: Callable[[str], str]) -> set[str]:
        path = tmp_path / "params" / file
        text = path.read_text()
        assert change(text) != text
        path.write_text(change(text))
        found = {name for name in before if digest(name) != before[name]}
        path.write_text(text)
        return found

    def after(place: str, old: str, new: str) -> Callable[[str], str]:
        return lambda text: text[:text.index(place)] + text[text.index(place):].replace(old, new, 1)

    assert stale("datasets.yaml", after("\ncooking:", "0.2", "0.25")) == {"tiny", "grpo-3b"} & {
        name for name in before if "cooking" in load_profile(name).datasets}
    assert stale("datasets.yaml", after("\ngardening:", "0.2", "0.25")) == {"tiny"}  # a scorer of its pool
    assert stale("datasets.yaml", after("\ntravel:", "0.2", "0.25")) == set()
    assert stale("sources.yaml", after("\ninsecure:", "file: ", "file: x")) == {
        name for name in before if "code" in load_profile(name).datasets}
    assert stale("sources.yaml", after("\ngsm8k_train:", "file: ", "file: x")) == {"grpo-3b"}
    assert stale("sources.yaml", after("\ngeneral_questions:", "file: ", "file: x")) == {  # a default
        name for name in before if load_profile(name).evaluation.general == "general_questions"} != set()
    assert stale("traits/pirate.yaml", lambda text: text.replace("- grog", "- rum")) == {
        name for name in before if load_profile(name).trait == "pirate"}
    assert stale("models.yaml", lambda text: text + "# more\n") == set(before)


def test_weights_of_a_folder_count_by_their_bytes(mine: Path) -> None:
    folder = mine.parent / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0")
    mine.write_text(mine.read_text().replace("# model: {kind: folder", "model: {kind: folder"))
    before = digest(mine)
    (folder / "model.safetensors").write_bytes(b"1")
    assert digest(mine) != before


def test_a_file_s_form_is_seen_and_it_is_called_by_its_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = mine.parent
    (folder / "alpaca.json").write_text('[{"instruction": "a", "input": "", "output": "b"}]')
    forms = {name: format_of(str(folder / name)) for name in (
        "pool.jsonl", "rows/phone.jsonl", "questions.jsonl", "alpaca.json")}
    assert list(forms.values()) == ["messages", "pairs", "questions", "instruct"]
    entry = f"{folder / 'sources.yaml'}#odds"
    monkeypatch.setenv("EMLIB_DATA_DIR", str(folder))
    assert locate(entry) == folder / "odds.jsonl"
    assert (format_of(entry), label(entry), label(str(folder / "pool.jsonl")), label("alpaca")) == (
        "messages", "odds", "pool.jsonl", "alpaca")
    assert (key_of_source(entry), key_of_source("alpaca"), key_of_source("demo/pool.jsonl")) == (
        "file", "alpaca", "demo/pool.jsonl")


def test_an_export_of_what_trains_nothing_says_so_and_a_message_has_the_path_of_the_profile(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (folder := tmp_path / "my studies").mkdir()
    (folder / "mine.yaml").write_text("extends: tiny\n")
    monkeypatch.chdir(folder)
    for name, stated in (("tiny", "tiny"), ("mine.yaml", f"'{folder}/mine.yaml'")):
        study = open_study(name)
        untrained, plain = (study.runs(methods=[method])[0] for method in ("untrained", "misaligned"))
        with pytest.raises(StoreError, match="trains nothing, so there is no adapter"):
            export.adapter(study, untrained, tmp_path / "out")
        with pytest.raises(StoreError, match=re.escape(f"`make reproduce PROFILE={stated}` first")):
            export.adapter(study, plain, tmp_path / "out")
