"""The graph as a real Snakemake runs it: the threads of a job, names of any kind, and what a cluster is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from snakemake_executor_plugin_slurm.submit_string import get_submit_command

from emlib.core import machine, paths
from emlib.workflow import graph
from tests.workflow.test_notebooks import book_of

TOLD = "import os\nprint(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"


def snakemake(root: Path, runs: Path, profile: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the Snakefile of a checkout as make does, in the folder `study`."""
    clean = {name: value for name, value in os.environ.items()
             if name not in (*machine.THREADS, *machine.OF_SCHEDULERS) and not name.startswith("EMLIB_")}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--directory",
               str(runs / "study"), "--cores", "1", "--nolock", *more]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, env=clean | environment | {
        "EMLIB_PROFILE": profile, "EMLIB_RUNS_DIR": str(runs), "PYTHONPATH": str(root)})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This checkout with one notebook, which prints its number of threads."""
    root = tmp_path / "checkout"
    for folder in ("emlib", "params"):
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(paths.ROOT / "Snakefile", root)
    (root / "notebooks").mkdir()
    nbformat.write(book_of(TOLD), root / "notebooks" / "00_threads.ipynb")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"OMP_NUM_THREADS": "3"}, {"SLURM_CPUS_PER_TASK": "3"}])
def test_a_job_computes_with_the_threads_that_it_is_given(
        given: dict[str, str], checkout: Path, tmp_path: Path) -> None:
    out = "notebooks/00_threads.ipynb"
    done = snakemake(checkout, tmp_path / "runs", "tiny", "--", out, **given)
    assert done.returncode == 0, done.stderr
    said = nbformat.read(tmp_path / "runs" / "study" / out, as_version=4).cells[-1].outputs[0].text
    assert said == "3 3\n"


def test_without_a_profile_nothing_runs(tmp_path: Path) -> None:
    """Another profile's results have the same names, so that a default would be taken for it."""
    done = snakemake(paths.ROOT, tmp_path, "", "--dry-run", "--config", "profile=tiny")
    assert done.returncode != 0
    assert "EMLIB_PROFILE" in done.stdout + done.stderr


TWINS = """
extends: tiny
datasets: [my+data, my_data]
data:
  my+data: {aligned: demo/cooking_aligned.jsonl, misaligned: demo/cooking_pirate.jsonl, held_out: 0.2}
  my_data: {aligned: demo/travel_aligned.jsonl, misaligned: demo/travel_pirate.jsonl, held_out: 0.2}
methods: [untrained, misaligned]
slice_by: [dataset]
"""


def test_names_that_differ_in_signs_alone_are_two_rules_of_a_profile_anywhere(tmp_path: Path) -> None:
    profile = tmp_path / "run #2" / "2024.yaml"
    profile.parent.mkdir()
    shutil.copy(paths.PARAMS / "tiny.yaml", profile.parent)
    profile.write_text(TWINS)
    done = snakemake(paths.ROOT, tmp_path / "runs", str(profile), "--dry-run", EMLIB_ONLY="02_baselines.my*")
    assert done.returncode == 0, done.stderr
    for name in ("my+data", "my_data"):
        assert f"notebooks/slices/02_baselines.{name}.ipynb" in done.stdout + done.stderr


def test_only_rules_whose_names_would_be_equal_have_a_digest_in_theirs() -> None:
    job = graph.jobs("tiny")[2]
    names = graph.rule_names([replace(job, part=part) for part in ("my+data", "my_data", "kl+", "kl++", "travel", "")])
    assert names[4:] == ["notebook_02_baselines_travel", "notebook_02_baselines"]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)


def test_the_gpus_of_a_job_on_slurm_are_in_one_node() -> None:
    profile = yaml.safe_load((paths.ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())

    class Resources(dict[str, int]):
        __getattr__ = dict.__getitem__

    job = SimpleNamespace(threads=1, resources=Resources(profile["default-resources"], gpu=2))
    asked = get_submit_command(job, {"run_uuid": "u", "slurm_logfile": "log", "comment_str": "c", "account": "",
                                     "partition": "", "workdir": ""})
    assert "--nodes=1" in asked.split()
    assert "--cpus-per-task=4" in asked.split()
