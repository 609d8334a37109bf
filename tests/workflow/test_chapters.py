"""What notebooks say of themselves: the jobs it makes, how strictly it is read, and a notebook that somebody adds."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import NotebookError
from emlib.core.registry import kinds
from emlib.report.book.claims import chapters_of_methods
from emlib.workflow import graph
from emlib.workflow.chapters import Chapter, chapter_about, chapter_of, chapters, concerns

# By hand: a chapter, after which others it comes (ALL: all before it), whether it takes a GPU and a judge's place.
OWN = """
00_start_here        -                                     .    .
01_data              -                                     .    .
02_baselines         -                                     gpu  .
03_persona_vectors   -                                     gpu  .
05_kl                02_baselines                          gpu  .
07_persona_steering  03_persona_vectors,02_baselines       gpu  .
08_inoculation       02_baselines                          gpu  .
09_interleaving      02_baselines                          gpu  .
14_costs             ALL                                   .    .
15_tables            ALL                                   .    .
16_figures           ALL                                   .    .
17_your_own_data     ALL                                   gpu  .
18_your_own_defense  -                                     .    .
19_explore           ALL                                   .    .
21_data_audit        03_persona_vectors,02_baselines,08_inoculation,09_interleaving  gpu  .
"""
# Every kind of defense, and a judge that costs money. A slice comes after the chapters that its own comes after.
PAPER = """
00_start_here        -                                     .    .
01_data              -                                     .    .
02_baselines         -                                     gpu  judge
03_persona_vectors   -                                     gpu  judge
04_data_selection    -                                     gpu  judge
05_kl                02_baselines                          gpu  judge
06_ldifs             02_baselines                          gpu  judge
07_persona_steering  03_persona_vectors,02_baselines       gpu  judge
08_inoculation       02_baselines                          gpu  judge
09_interleaving      04_data_selection,02_baselines        gpu  judge
12_benign_tasks      03_persona_vectors,04_data_selection  gpu  .
14_costs             ALL                                   .    .
15_tables            ALL                                   .    .
16_figures           ALL                                   .    .
18_your_own_defense  -                                     .    .
19_explore           ALL                                   .    .
"""
WHOLE = {f"{number:02}": 1 for number in range(22) if number not in (10, 17)}
# How many jobs each chapter is, by hand. paper-7b has 4 data sets and 5 settings of each penalty, 4 of interleaving;
# opswap's 4 tiers and foqa; grpo-3b has 6 conditions and 3 seeds. One more each for the chapter itself.
COUNTS = {
    "demo": WHOLE, "tiny": WHOLE,
    "own": {"00": 1, "01": 1, "02": 1, "03": 1, "05": 1, "07": 1, "08": 1, "09": 1, "14": 1, "15": 1, "16": 1,
            "17": 1, "18": 1, "19": 1, "21": 1},
    "paper-7b": {"00": 1, "01": 1, "02": 5, "03": 1, "04": 5, "05": 21, "06": 21, "07": 21, "08": 5, "09": 17,
                 "12": 6, "14": 1, "15": 1, "16": 1, "18": 1, "19": 1},
    "benign-7b": {"00": 1, "01": 1, "02": 5, "12": 6, "14": 1, "15": 1, "16": 1, "18": 1, "19": 1},
    "grpo-3b": {"00": 1, "01": 1, "02": 1, "13": 19, "14": 1, "15": 1, "16": 1, "18": 1, "19": 1}}


@pytest.mark.parametrize(("profile", "table"), [("own", OWN), ("paper-7b", PAPER)])
def test_the_jobs_of_a_profile_are_those_found_by_hand(profile: str, table: str) -> None:
    jobs, expected = graph.jobs(profile), [line.split() for line in table.strip().split("\n")]
    assert list(dict.fromkeys(job.chapter for job in jobs)) == [line[0] for line in expected]
    for chapter, after, gpu, judge in expected:
        first = next(place for place, job in enumerate(jobs) if job.chapter == chapter)
        before = [job for job in jobs[:first] if not job.part and (after == "ALL" or job.chapter in after.split(","))]
        slices = [job for job in jobs if job.chapter == chapter and job.part]
        whole = next(job for job in jobs if job.chapter == chapter and not job.part)
        assert all(set(job.needs) == {other.output for other in before} for job in slices), chapter
        assert set(whole.needs) == {other.output for other in (*before, *slices)}, chapter
        for job in (*slices, whole):
            assert (job.trains, job.pays) == (gpu == "gpu", judge == "judge"), job.name


@pytest.mark.parametrize("profile", COUNTS)
def test_a_profile_has_as_many_jobs_a_chapter_as_counted_by_hand(profile: str) -> None:
    jobs = graph.jobs(profile)
    assert Counter(job.chapter[:2] for job in jobs) == COUNTS[profile]
    assert [job.chapter for job in jobs] == sorted(job.chapter for job in jobs)  # in reading order
    for chapter in chapters():
        parts = [bool(job.part) for job in jobs if job.chapter == chapter]
        assert parts == sorted(parts, reverse=True)  # the whole after its slices
    assert len({job.output for job in jobs}) == len(jobs)


def test_slices_are_told_apart_as_by_hand() -> None:
    parts = {name: [job.part for job in graph.jobs(name) if job.part] for name in ("paper-7b", "grpo-3b")}
    assert parts["paper-7b"][:10] == [*("code", "legal", "medical", "security") * 2, "code_0.01", "code_0.03"]
    assert parts["paper-7b"][-5:] == ["opswap-0", "opswap-1", "opswap-2", "opswap-3", "foqa"]
    assert parts["grpo-3b"][:4] == ["untrained_seed0", "untrained_seed1", "untrained_seed2", "grpo_seed0"]
    arguments = {job.name: job.arguments for job in graph.jobs("paper-7b")}
    assert arguments["05_kl (code_0.01)"] == "--profile paper-7b --dataset code --setting 0.01"


def test_the_graph_names_no_kind_of_defense_and_no_chapter() -> None:
    for module in ("workflow/graph", "workflow/chapters", "study/stamps"):
        code = ast.parse((paths.ROOT / "emlib" / f"{module}.py").read_text())
        texts = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
        kinds = {"kl", "ldifs", "persona_vector", "inoculation", "interleaving"}
        assert not texts & {*kinds, *chapters()}, module


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the notebooks that a test may add to."""
    copy = shutil.copytree(paths.NOTEBOOKS, tmp_path / "notebooks")
    monkeypatch.setattr(paths, "NOTEBOOKS", copy)
    return copy


def add(folder: Path, name: str, said: Any) -> None:
    """Add a notebook that says this of itself."""
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("profile = 'tiny'\nseeds = None", metadata={"tags": ["parameters"]}),
               nbformat.v4.new_code_cell("print(profile, seeds)")],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                  **({} if said is None else {"emlib": said})})
    (folder / f"{name}.ipynb").write_text(nbformat.writes(book), encoding="utf-8")


@pytest.mark.parametrize(("said", "words"), [
    ({"gpus": True}, ["unknown key 'gpus'", "Did you mean 'gpu'?"]),
    ({"gpu": "yes"}, ["'gpu'", "boolean"]),
    ({"after": ["04_baseline"]}, ["'after' names '04_baseline'", "Did you mean '02_baselines'?"]),
    ({"after": ["98_later"]}, ["'98_later'", "comes later in reading order"]),
    ({"when": {"section": "bening"}}, ["no section 'bening'", "Did you mean 'benign'?"]),
    ({"when": {}}, ["'section'", "'defense'"]),
    ({"when": {"section": "benign", "defense": "kl"}}, ["'section'", "'defense'"]),
    ({"when": {"section": "benign", "scored": True}}, ["no further keys", "'scored'"]),
    ({"slices": {"runs": "narow", "by": ["seed"]}}, ["'slices.runs'", "Did you mean 'narrow'?"]),
    ({"slices": {"runs": "benign", "by": ["setting"]}}, ["cannot be sliced by setting", "dataset, seed"]),
    ({"slices": {"runs": "narrow"}}, ["'slices.by' is missing"]),
    ({"slices": {"runs": "narrow", "by": ["seed"], "of": 1}}, ["'slices.of'", "by, runs"]),
    (["02_baselines"], ["expected keys and values"]),
])
def test_a_mistake_in_what_a_notebook_says_is_named(notebooks: Path, said: Any, words: list[str]) -> None:
    add(notebooks, "97_added", said)
    add(notebooks, "98_later", None)
    with pytest.raises(NotebookError) as caught:
        graph.jobs("tiny")
    for word in ["97_added.ipynb, metadata.emlib", *words]:
        assert word in str(caught.value)


def test_an_attribute_that_the_defense_does_not_have_is_named_with_the_nearest(notebooks: Path) -> None:
    add(notebooks, "97_added", {"when": {"defense": "interleaving", "scord": True}})
    with pytest.raises(NotebookError, match=r"97_added.*'when\.scord'.*'interleaving'.*Did you mean 'scored'\?"):
        graph.jobs("tiny")
    assert "97_added" not in [job.chapter for job in graph.jobs("code-smoke")]  # which has no such defense


def test_a_file_that_is_no_notebook_is_named(notebooks: Path) -> None:
    (notebooks / "97_added.ipynb").write_text('{"cells": [')
    with pytest.raises(NotebookError, match=r"97_added\.ipynb: is no notebook"):
        graph.jobs("tiny")


def test_a_defense_s_attributes_decide_whether_a_chapter_is_needed(notebooks: Path) -> None:
    tiny = load_profile("tiny")
    for place, (when, needed) in enumerate((
            ({"choose": "random"}, True), ({"scored": False, "answers": "on_policy"}, True),
            ({"scored": True, "answers": "on_policy"}, False), ({"fraction": 0.25}, True), ({"fraction": 1.0}, False))):
        add(notebooks, f"9{place}_added", {"when": {"defense": "interleaving", **when}})
        assert concerns(tiny, f"9{place}_added") == needed, when


def test_each_kind_of_defense_has_a_chapter_that_trains_it() -> None:
    """Filtering needs the section `audit`, which notebook 21 is about."""
    assert [kind for kind in kinds() if chapter_about(kind) is None] == ["filtering"]
    assert not concerns(load_profile("tiny"), "10_newer_defenses")  # a chapter about no method of a profile is left out


def test_a_chapter_may_be_about_parts_of_sections(notebooks: Path) -> None:
    tiny = load_profile("tiny")
    for place, (section, needed) in enumerate((
            ("evaluation.triggers", True), ("evaluation.sets", False), (["evaluation.sets", "training.keep"], True))):
        add(notebooks, f"9{place}_added", {"when": {"section": section}})
        assert concerns(tiny, f"9{place}_added") == needed, section
    add(notebooks, "97_added", {"when": {"section": "evaluation.trigers"}})
    with pytest.raises(NotebookError, match=r"no section 'evaluation.trigers'.*Did you mean 'triggers'"):
        graph.jobs("tiny")


def test_what_says_nothing_is_run_for_everybody_in_one_piece() -> None:
    assert chapter_of("01_data") == Chapter()
    assert all(concerns(load_profile(name), "01_data") for name in ("tiny", "grpo-3b"))


def test_of_chapters_about_a_defense_the_last_one_shows_what_came_out() -> None:
    paper = {"persona_vector": "07_persona_steering", "interleaving": "09_interleaving", "kl": "05_kl",
             "ldifs": "06_ldifs", "inoculation": "08_inoculation"}
    newer = ("concept_ablation", "consistency", "early_stop", "inoculation_adapter", "projection_penalty", "safe_lora",
             "of_a_plugin")
    for kind, chapter in (paper | dict.fromkeys(newer, "10_newer_defenses")).items():
        assert chapter_about(kind) == chapter
    assert chapter_about("filtering") is None  # notebook 21 is about the section that it needs
    assert chapters_of_methods(load_profile("own"))["kl"] == "05_kl"
    assert chapters_of_methods(load_profile("own"))["misaligned"] == "02_baselines"


ADDED = """
import sys
from pathlib import Path
from emlib.core import paths
paths.NOTEBOOKS = Path(sys.argv[1])
from emlib.workflow import graph, notebooks
job = next(job for job in graph.jobs("tiny") if job.chapter == "97_added" and job.part)
notebooks.main([job.chapter, *job.arguments.split(), "--out", sys.argv[2]])
"""


def test_a_notebook_that_somebody_adds_runs_by_what_it_says_alone(
        notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(notebooks, "97_added", {
        "when": {"defense": "kl"}, "after": ["05_kl"], "gpu": True, "slices": {"runs": "grpo", "by": ["seed"]}})
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    grpo = load_profile("tiny").grpo
    assert grpo is not None
    sliced = tmp_path / "tiny.yaml"
    sliced.write_text((paths.PARAMS / "tiny.yaml").read_text().replace(
        "  seeds: [0]                                   # ours\n", "  seeds: [3]\n  slice_by: [seed]\n"))
    part, whole = [job for job in graph.jobs(str(sliced)) if job.chapter == "97_added"]
    assert (part.part, part.trains, part.pays) == ("seed3", True, False)
    assert part.needs == ("notebooks/05_kl.ipynb",)
    assert whole.needs == ("notebooks/05_kl.ipynb", part.output)
    out = tmp_path / "out.ipynb"
    code = ADDED.replace('"tiny"', repr(str(sliced)))
    done = subprocess.run([sys.executable, "-c", code, str(notebooks), str(out)], check=False, capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)})
    assert done.returncode == 0, done.stderr
    said = json.loads(out.read_text())["cells"][-1]["outputs"][0]["text"]
    assert "".join(said) == f"{sliced} [3]\n"
