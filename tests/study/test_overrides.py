"""Values set from outside a profile's file: checked as strictly, kept whole, and never mixed with the plain study's."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from emlib.config import load_profile, overridden, profile_names
from emlib.config.overrides import parsed
from emlib.core import machine, paths
from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import as_yaml
from emlib.study import overrides
from emlib.study.study import open_study
from emlib.workflow import graph, notebooks


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))


def test_the_example_of_the_readme() -> None:
    profile, changes = overridden("paper-7b", "seeds=[0,1,2] datasets=[legal]")
    assert changes == {"seeds": [0, 1, 2], "datasets": ["legal"]}
    plain = load_profile("paper-7b")
    assert profile == plain.model_copy(update={"seeds": (0, 1, 2), "datasets": ("legal",)})
    assert profile.pool is not None  # the paper's scorers, although the study has no other data set
    assert [scorer.domain for scorer in profile.pool.scorers_for("legal", profile.datasets)] == [
        "code", "medical", "security"]


def test_changes_in_python_open_the_study_of_the_command_line() -> None:
    opened = open_study("tiny", "training.epochs=2 seeds=[0,1]")
    assert opened.name == overrides.study_with("tiny", "training.epochs=2 seeds=[0,1]") != "tiny"
    assert (opened.profile.training.epochs, opened.profile.seeds) == (2, (0, 1))
    assert open_study(opened.name).profile == opened.profile
    assert open_study("tiny", " ").name == "tiny"
    with pytest.raises(ProfileError, match="epoch"):
        open_study("tiny", "training.epoch=2")


@pytest.mark.parametrize(("text", "changes"), [
    ("training.epochs=2", {"training.epochs": 2}),
    ("  a=1   b=[1, 2]  ", {"a": 1, "b": [1, 2]}),
    ("title='two words' x=null", {"title": "two words", "x": None}),
    ("pool={rows: 5, scorers: [a, b]} rate=1e-4", {"pool": {"rows": 5, "scorers": ["a", "b"]}, "rate": 1e-4}),
    ("methods.interleaving++.sweep=[0.1]", {"methods.interleaving++.sweep": [0.1]}),
    ("a='[' b=\"]\"", {"a": "[", "b": "]"}),
    ("", {}),
])
def test_a_text_is_cut_at_spaces_outside_brackets_and_quotes(text: str, changes: dict[str, object]) -> None:
    assert parsed(text) == changes


def test_sections_are_merged_and_lists_replaced_and_items_found_by_name_and_number() -> None:
    profile, _ = overridden("tiny", "training={epochs: 2} methods.kl.sweep=[0.5] methods.kl.defenses.0.tokens=response "
                                    "benign.tasks.opswap.tiers.1=3 grpo.methods.kl.sweep=[0.3]")
    plain = load_profile("tiny")
    assert profile.training == plain.training.model_copy(update={"epochs": 2})
    kl = next(method for method in profile.methods if method.name == "kl")
    assert (kl.sweep, kl.defenses[0].tokens, kl.defenses[0].reference) == ((0.5,), "response", "stored")
    assert profile.benign is not None
    assert profile.benign.tasks["opswap"].tiers == (0, 3)
    assert profile.grpo is not None
    assert [method.sweep for method in profile.grpo.methods if method.name == "kl"] == [(0.3,)]


@pytest.mark.parametrize(("text", "words"), [
    ("sed=[0]", ["unknown key 'sed'", "Did you mean 'seeds'?"]),
    ("training.epocs=2", ["'training.epocs'", "Did you mean 'epochs'?"]),
    ("training.epochs=two", ["'training.epochs'", '"two"', "integer"]),
    ("training.epochs=0", ["'training.epochs' is 0", "greater than 0"]),
    ("datasets=[leagl]", ["'leagl'", "Did you mean 'legal'?"]),
    ("trait=evli", ["'evli'", "Did you mean 'evil'?"]),
    ("methods.lk.sweep=[1]", ["'methods.lk.sweep'", "Did you mean 'kl'?"]),
    ("methods.kl.sweep=[-1]", ["methods.3.sweep", "-1"]),
    ("seeds.7=1", ["'seeds.7'", "a list of 1"]),
    ("title.x=1", ["'title.x'", "single value"]),
    ("seeds", ["'seeds' is not key=value"]),
    ("title=two words", ["'words' is not key=value", "into quotes"]),
    ("seeds=", ["'seeds' has no value"]),
    ("seeds=[0", ["'seeds'", "YAML"]),
    ("seeds=[0] seeds=[1]", ["'seeds' is given twice"]),
])
def test_a_mistake_names_set_key_value_and_the_nearest(text: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        overrides.study_with("paper-7b", text)
    for word in ["SET", *words]:
        assert word in str(caught.value)
    assert not paths.runs().exists()


def test_a_mistake_in_the_file_is_told_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nsed: [1]\n")
    (tmp_path / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    with pytest.raises(ProfileError) as caught:
        overrides.study_with(str(path), "seeds=[1]")
    assert "'sed'" in str(caught.value)
    assert "SET" not in str(caught.value)


def test_a_study_with_overrides_has_a_name_a_folder_and_its_whole_profile_in_it() -> None:
    name = overrides.study_with("tiny", "seeds=[3]  training.epochs=2")
    assert name.startswith("tiny+")
    assert name == overrides.study_with("tiny", "training.epochs=2 seeds=[3]")  # in any order
    assert name != overrides.study_with("tiny", "seeds=[3]")
    study = open_study(name)
    assert (study.name, study.folder, study.budget) == (name, paths.runs() / name, "tiny")
    assert study.profile == overridden("tiny", "seeds=[3] training.epochs=2")[0]
    kept = study.folder / paths.EFFECTIVE
    assert kept.read_text().startswith("# The profile 'tiny' with SET: ")
    assert open_study(str(kept)).name == name
    before = kept.read_text()
    study.record()  # as when results are written
    assert kept.read_text() == before
    told = overrides.differences(name, study.profile).set_index("setting")
    assert told.T.to_dict("list") == {"seeds": ["[0]", "[3]"], "training.epochs": ["1", "2"]}
    assert {f"--profile {name}" in job.arguments for job in graph.jobs(name)} == {True}


def test_overrides_that_change_nothing_are_the_plain_study() -> None:
    assert overrides.study_with("tiny", "") == "tiny"
    assert overrides.study_with("tiny", "seeds=[0] training={epochs: 1}") == "tiny"
    assert not paths.runs().exists()
    assert overrides.differences("tiny", load_profile("tiny")).empty


@pytest.mark.parametrize("name", profile_names())
def test_a_kept_profile_is_the_profile(name: str, tmp_path: Path) -> None:
    path = tmp_path / "some-study" / paths.EFFECTIVE
    path.parent.mkdir()
    path.write_text(as_yaml(load_profile(name).model_dump(mode="json")))
    assert load_profile(str(path)) == load_profile(name)
    assert paths.study_name(str(path)) == "some-study"


def test_the_command_for_one_notebook_refuses_what_set_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--profile", "tiny", "--set", "training.epocs=2"])
    said = capsys.readouterr().err
    assert "SET" in said
    assert "Did you mean 'epochs'?" in said


@pytest.mark.parametrize("profile", [  # GNU make splits its words at spaces
    "tiny", "some/mine.yaml", "some/study/profile.yaml", "some/mine.yml", "it's  two words/mine.yaml"])
@pytest.mark.parametrize("folder", ["runs", "runs  of mine"])
def test_make_puts_a_study_where_the_notebooks_put_it(profile: str, folder: str, tmp_path: Path) -> None:
    given = [f"PROFILE={profile}", f"EMLIB_RUNS_DIR={tmp_path / folder}"]
    said = subprocess.run(["make", "--dry-run", "reproduce", *given], cwd=paths.ROOT, check=True, capture_output=True,
                          text=True).stdout
    known = str(paths.ROOT / profile) if paths.is_yaml(profile) else profile
    [command] = [shlex.split(line) for line in said.splitlines() if " .venv/bin/snakemake " in line]
    assert command[command.index("--directory") + 1] == str(tmp_path / folder / paths.study_name(known))
    assert exported(tmp_path, ["EMLIB_PROFILE"], given, {}) == [known]


@pytest.mark.parametrize("target", ["reproduce", "plan", "status", "panel", "report", "docs", "clean"])
def test_each_target_with_overrides_acts_on_the_study_that_has_them(target: str) -> None:
    """Not one acts on the plain study: `clean` removed its adapters."""
    said = subprocess.run(["make", "--dry-run", target, "PROFILE=demo", "SET=seeds=[1]", "WHAT=adapters", "VENV=none"],
                          cwd=paths.ROOT, check=False, capture_output=True, text=True).stdout
    [command] = [line for line in said.splitlines() if "-m emlib." in line]
    assert "-m emlib.study.overrides demo " in command


def exported(folder: Path, names: Sequence[str], given: list[str], environment: dict[str, str]) -> list[str]:
    """What make's commands find in their environment; two dashes for what is not set."""
    shown = " ".join(f'"$${{{name}---}}"' for name in names)
    (folder / "more.mk").write_text(f"show:\n\t@printf '%s\\n' {shown}\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("EMLIB_", "OMP_"))}
    command = ["make", "--no-print-directory", "-f", "Makefile", "-f", str(folder / "more.mk"), "show", *given]
    return subprocess.run(command, cwd=paths.ROOT, check=True, capture_output=True, text=True,
                          env=clean | environment).stdout.splitlines()


@pytest.mark.parametrize("by_argument", [False, True])
def test_make_resolves_folders_with_spaces(by_argument: bool, tmp_path: Path) -> None:
    given = {"EMLIB_RUNS_DIR": "my runs", "EMLIB_CACHE_DIR": f"{tmp_path}/a  cache/../it's"}
    arguments = [f"{name}={value}" for name, value in given.items()]
    found = exported(tmp_path, paths.VARIABLES, *((arguments, {}) if by_argument else ([], given)))
    assert found == [str(paths.ROOT / "my runs"), f"{tmp_path}/it's", "--"]


@pytest.mark.parametrize(("given", "threads"), [
    (["JOBS=1"], machine.cpus()), (["JOBS=2"], max(1, machine.cpus() // 2)), (["OMP_NUM_THREADS=3"], 3),
    (["EXECUTOR=slurm"], "--")])  # there, each job takes as many as its node gives it
def test_jobs_share_the_cores_of_one_machine(given: list[str], threads: object, tmp_path: Path) -> None:
    assert exported(tmp_path, ["OMP_NUM_THREADS"], given, {}) == [str(threads)]


@pytest.mark.parametrize("name", ["2024", "1e3", "a#b", "it's  a/run #2/mine.yaml", 'say "on"/mine.yaml', "02*"])
def test_names_reach_the_jobs_as_they_are(name: str, tmp_path: Path) -> None:
    known = str(paths.ROOT / name) if paths.is_yaml(name) else name
    found = exported(tmp_path, ["EMLIB_PROFILE", "EMLIB_ONLY"], [f"PROFILE={name}", f"ONLY={name}"], {})
    assert found == [known, name]


@pytest.mark.slow
def test_a_notebook_runs_under_overrides_and_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebooks.main(["00_start_here", "--profile", "tiny", "--set", "training.epochs=7"])
    [folder] = paths.runs().iterdir()
    book = (folder / "notebooks" / "00_start_here.ipynb").read_text()
    assert f'profile = \\"{folder.name}\\"' in book
    assert "training.epochs" in book
    assert (folder / paths.EFFECTIVE).is_file()
