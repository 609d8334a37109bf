"""Notebooks: clean in the repository, strict about parameters, and run to the end by the one command."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from papermill.exceptions import PapermillExecutionError

from emlib.config import load_profile
from emlib.core import paths, plugins
from emlib.core.errors import NotebookError, ProfileError
from emlib.study import stamps
from emlib.study.study import open_study
from emlib.workflow import graph, notebooks, status
from emlib.workflow.chapters import former_names
from emlib.workflow.job_log import WATCHED

CHAPTERS = graph.chapters()
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as in conftest, for the kernels


def cells(chapter: str, kind: str) -> list[Any]:
    book = nbformat.read(paths.NOTEBOOKS / f"{chapter}.ipynb", as_version=4)
    return [cell for cell in book.cells if cell.cell_type == kind]


DEFENSES = "18_your_own_defense"  # the one chapter that defines classes


def test_the_chapters_of_this_study_are_there() -> None:
    assert CHAPTERS[:2] == ["00_start_here", "01_data"]
    assert {"02_baselines", "15_tables", "16_figures"} <= set(CHAPTERS)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_notebook_is_prose_with_short_cells_and_no_outputs(chapter: str) -> None:
    code = cells(chapter, "code")
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len(cells(chapter, "markdown")) >= 0.8 * len(code)
    for cell in code:
        defines = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(
            node, ast.FunctionDef | ast.ClassDef | ast.Lambda)]
        assert not defines or chapter == DEFENSES
        classes = [node for node in defines if isinstance(node, ast.ClassDef)]
        assert all((node.end_lineno or 0) - node.lineno < 25 for node in classes)
        imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(cell.source).body)
        assert len(cell.source.splitlines()) <= (30 if classes else 14 if imports else 10)
        assert "sys.path" not in cell.source
        assert not cell.source.lstrip().startswith(("!", "%pip"))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_notebook_has_primitive_parameters_with_a_profile_as_default(chapter: str) -> None:
    tagged = [cell for cell in cells(chapter, "code") if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(tagged[0].source).body}
    others = {"17_your_own_data": "own", "10_newer_defenses": "demo-newer"}  # what `demo` has nothing for
    assert values.pop("profile") == others.get(chapter, "demo")
    assert values.pop("trial", "tiny") == "tiny"  # the study that DEFENSES trains in, whatever the profile
    assert values.pop("layer", 2) == 2  # one that `trial` has
    assert values.pop("scored_only", False) is False
    assert all(value is None for value in values.values())


def test_shares_of_scored_answers_are_in_one_table_of_notebook_15_alone() -> None:
    """All others are of the answers asked for: two denominators in one file, or side by side, compare nothing."""
    parameters, cell = [cell.source for cell in cells("15_tables", "code") if "scored_only" in cell.source]
    assert "rates_scored" not in parameters
    assert '"rates_scored"' in cell
    assert "frame" not in cell


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_notebook_can_be_copied_from(chapter: str) -> None:
    """One cell has the imports, everything that is named is used, and no statement is a conditional expression."""
    trees = [ast.parse(cell.source) for cell in cells(chapter, "code")]
    imports = (ast.Import, ast.ImportFrom)
    assert [tree for tree in trees if any(isinstance(node, imports) for node in ast.walk(tree))] == trees[1:2]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    named = {alias.asname or alias.name for node in nodes if isinstance(node, imports) for alias in node.names}
    named |= {target.id for tree in trees for node in tree.body if isinstance(node, ast.Assign)
              for target in node.targets if isinstance(target, ast.Name)}
    assert named <= read
    assert not [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.IfExp)]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_a_notebook_saves_is_of_all_finished_runs(chapter: str) -> None:
    """A slice of it, or a part that is run by hand, would write its own runs over the whole study's."""
    source = "\n".join(cell.source for cell in cells(chapter, "code"))
    chosen = "datasets=datasets" in source or "methods=methods, settings" in source
    if chosen and "study.folder /" in source:
        assert "study.finished(" in source or "study.runs()" in source, chapter


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_notebook_leads_on_to_the_next(chapter: str) -> None:
    last = cells(chapter, "markdown")[-1].source
    following = CHAPTERS[(CHAPTERS.index(chapter) + 1) % len(CHAPTERS)]
    assert f"({following}.ipynb)" in last


def test_an_unknown_parameter_is_an_error_that_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(NotebookError, match=r"15_tables has no parameter 'profil'\. Did you mean 'profile'\?"):
        notebooks.execute("15_tables", {"profil": "tiny"}, tmp_path / "out.ipynb")
    with pytest.raises(NotebookError, match=r"no notebook '04_baseline'\. Did you mean '02_baselines'\?"):
        notebooks.execute("04_baseline", {}, tmp_path / "out.ipynb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", [False, True])
def test_an_executed_notebook_has_the_stamp_of_its_profile(
        fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a report tells it from one that ran before the profile was edited."""
    def executed(chapter: str, parameters: dict[str, Any], out: Path) -> None:
        out.write_text(json.dumps({"cells": [], "metadata": {"kernelspec": {"name": "python3"}}}))
        if fails:
            raise PapermillExecutionError(1, 1, "x", "ValueError", "wrong", [])

    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(notebooks, "_papermill", executed)
    with pytest.raises(NotebookError) if fails else nullcontext():
        notebooks.execute("15_tables", {"profile": "tiny"}, tmp_path / "15_tables.ipynb")
    [book] = tmp_path.glob("*.ipynb")
    assert book.name == ("15_tables.failed.ipynb" if fails else "15_tables.ipynb")
    assert json.loads(book.read_text())["metadata"]["kernelspec"] == {"name": "python3"}
    study = open_study("tiny")
    assert stamps.of_file(book) == stamps.stamp_of(study.profile, study.name)


def test_the_log_of_a_failed_job_has_the_traceback_and_the_message_the_plugins_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "mine.py"
    lines = ["\x1b[31mAttributeError\x1b[0m Traceback (most recent call last)",
             f"File {plugin}:5, in Mine.active(model)",
             f"File {plugin}:7, in Mine.hook(self)", "File ~/library.py:9, in call(x)", "AttributeError: no such"]

    def executed(chapter: str, parameters: dict[str, Any], out: Path) -> None:
        out.write_text(json.dumps({"cells": [], "metadata": {}}))
        raise PapermillExecutionError(1, 1, "x", "AttributeError", "no such", lines)

    monkeypatch.setattr(plugins, "_loaded", {plugin: ""})
    monkeypatch.setattr(notebooks, "_papermill", executed)
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "logs" / "job.log"
    with pytest.raises(NotebookError) as caught:
        notebooks.run_job("15_tables", {"profile": "tiny"}, Path("15_tables.ipynb"), log)
    assert str(caught.value).splitlines() == [
        "15_tables, cell 1: AttributeError: no such", f"Its last line in a plugin: {plugin}, line 7",
        f"The notebook up to this cell: {tmp_path / '15_tables.failed.ipynb'}"]
    assert f"AttributeError Traceback (most recent call last)\nFile {plugin}:5, in Mine.active" in log.read_text()


@pytest.mark.parametrize("watched", [False, True])
def test_a_watched_job_leaves_its_error_to_who_watches(
        watched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise NotebookError("this failed")

    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.delenv(WATCHED, raising=False)
    if watched:
        monkeypatch.setenv(WATCHED, "1")
    monkeypatch.setattr(notebooks, "run_job", fails)
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--profile", "tiny", "--log", str(tmp_path / "a.log")])
    assert ("this failed" in capsys.readouterr().err) is not watched


def test_a_notebook_is_found_under_the_name_that_it_had_before(capsys: pytest.CaptureFixture[str]) -> None:
    old = former_names()
    assert old["04_baselines"] == "02_baselines"
    assert set(old.values()) <= set(CHAPTERS)
    assert not set(old) & set(CHAPTERS)
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["13_tables", "--profile", "tiny", "--dataset", "cooking"])
    assert "Notebook 15_tables has no parameter 'datasets'" in capsys.readouterr().err


def test_the_kernel_is_this_python_whatever_kernel_is_called_python3_and_however_long_tmpdir_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = notebooks._ThisPython(kernel_name="python3")
    assert manager.kernel_spec_manager.get_kernel_spec("python3").argv[0] == "/bin/false"  # what Jupyter would start
    assert manager.kernel_spec.argv[0] == sys.executable
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import sys; print(sys.executable)")])
    (tmp_path / "one.ipynb").write_text(nbformat.writes(book))
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    long = tmp_path / ("x" * (104 - len(str(tmp_path))))
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))  # the kernel's sockets would have paths of over 107 bytes there
    notebooks._papermill("one", {}, tmp_path / "out.ipynb")
    assert sys.executable in (tmp_path / "out.ipynb").read_text()


def test_the_command_line_fails_with_the_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--dataset", "cooking", "--profile", "tiny"])
    assert "15_tables has no parameter 'datasets'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--profile", "dmo"])
    err = capsys.readouterr().err
    assert "Did you mean 'demo'?" in err
    assert "Traceback" not in err


SLICED = """
extends: tiny
datasets: [cooking, travel]
methods: [untrained, aligned, misaligned]
slice_by: [dataset]
"""


def sliced(folder: Path) -> str:
    """A profile of two slices."""
    shutil.copy(paths.PARAMS / "tiny.yaml", folder / "tiny.yaml")
    (folder / "sliced.yaml").write_text(SLICED)
    return str(folder / "sliced.yaml")


def test_a_chapter_is_cut_into_the_slices_its_profile_asks_for(tmp_path: Path) -> None:
    jobs = {job.name: job for job in graph.jobs(sliced(tmp_path))}
    slices = ["02_baselines (cooking)", "02_baselines (travel)"]
    assert [name for name in jobs if name.startswith("02")] == [*slices, "02_baselines"]
    assert jobs["02_baselines"].needs == tuple(jobs[name].output for name in slices)
    assert "--dataset travel" in jobs[slices[1]].arguments
    assert jobs["02_baselines"].output in jobs["15_tables"].needs
    assert jobs["15_tables"].output in jobs["16_figures"].needs
    assert [job.name for job in graph.jobs("demo") if "02_b" in job.name] == ["02_baselines"]
    assert not [job for job in graph.jobs("code-smoke") if job.chapter in ("04_data_selection", "09_interleaving")]
    with pytest.raises(ProfileError, match="Did you mean 'tiny'"):
        graph.jobs("tyni")


def test_a_profile_may_cut_by_seed_and_each_job_has_a_log_of_its_own(tmp_path: Path) -> None:
    profile = Path(sliced(tmp_path))
    profile.write_text(profile.read_text().replace("[dataset]", "[dataset, seed]") + "seeds: [0, 7]\n")
    jobs = [job for job in graph.jobs(str(profile)) if job.chapter == "02_baselines" and job.part]
    assert [job.part for job in jobs] == ["cooking_seed0", "cooking_seed7", "travel_seed0", "travel_seed7"]
    assert jobs[1].arguments.endswith("--dataset cooking --seed 7")
    every = graph.jobs(str(profile))
    assert len({job.log for job in every}) == len(every)
    assert jobs[1].log == "logs/02_baselines.cooking_seed7.log"


def test_jobs_are_chosen_by_a_pattern_of_their_logs_names(tmp_path: Path) -> None:
    jobs = graph.jobs(sliced(tmp_path))
    assert graph.chosen(jobs) == jobs
    assert [job.name for job in graph.chosen(jobs, "02*.travel")] == ["02_baselines (travel)"]
    assert [job.name for job in graph.chosen(jobs, "02*")] == [
        "02_baselines (cooking)", "02_baselines (travel)", "02_baselines"]
    assert [job.name for job in graph.chosen(jobs, "04_baselines.tr*")] == ["02_baselines (travel)"]  # its former name
    with pytest.raises(ProfileError, match="No job is named like '02'"):
        graph.chosen(jobs, "02")


def test_a_job_asks_for_what_it_needs_and_that_changes_no_content(tmp_path: Path) -> None:
    before = {job.name: job for job in graph.jobs("paper-7b")}
    assert before["02_baselines"].resources == {"mem_mb": 48 * 1024, "runtime": 24 * 60, "gpu": 1, "judge": 1}
    assert before["15_tables"].resources == {"mem_mb": 4 * 1024, "runtime": 60}
    benign = {job.name: job for job in graph.jobs("benign-7b")}
    assert "judge" not in benign["12_benign_tasks"].resources
    assert graph.jobs("tiny")[4].resources.get("judge") is None  # its judge costs nothing
    profile = Path(sliced(tmp_path))
    profile.write_text(profile.read_text() + "grpo: null\n")  # it trains on one GPU
    digest = graph.jobs(str(profile))[0].digest
    profile.write_text(profile.read_text() + "job: {memory_gib: 9, hours: 0.5, gpus: 2}\n")
    changed = {job.name: job for job in graph.jobs(str(profile))}
    assert changed["02_baselines"].resources == {"mem_mb": 9 * 1024, "runtime": 30, "gpu": 2}
    assert changed["00_start_here"].digest == digest


def test_a_touched_file_makes_nothing_stale_and_a_changed_one_does(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("emlib", "params", "notebooks"):
        shutil.copytree(paths.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, folder in (("ROOT", tmp_path), ("PARAMS", tmp_path / "params"), ("NOTEBOOKS", tmp_path / "notebooks")):
        monkeypatch.setattr(paths, name, folder)

    def digest(chapter: str = "01_data") -> str:
        return graph.content_digest(chapter, graph.contents_for(load_profile("demo")))

    def replace(file: str, old: str, new: str) -> None:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new, 1))

    before, other = digest(), digest("15_tables")
    (tmp_path / "params" / "demo.yaml").touch()
    replace("params/demo.yaml", "# Table 6", "# as Table 6 has it")  # a comment
    replace("params/tiny.yaml", "hidden: 64", "hidden: 32")  # another profile
    replace("notebooks/02_baselines.ipynb", "fine-tune", "fine-tuning")  # another notebook
    replace("notebooks/01_data.ipynb", '"outputs": []', '"outputs": [{"output_type": "stream"}]')  # saved in JupyterLab
    assert digest() == before
    replace("notebooks/01_data.ipynb", "Each data set is split once", "Each set is split once")
    assert digest() != before
    assert digest("15_tables") == other
    for file, old, new in (("params/demo.yaml", "epochs: 3", "epochs: 4"),
                           ("emlib/core/seeds.py", "import", "import  "),
                           ("params/traits/pirate.yaml", "- grog", "- rum")):
        before = digest()
        replace(file, old, new)
        assert digest() != before


@pytest.mark.parametrize("target", ["reproduce", "plan"])
def test_a_typo_in_the_profile_stops_make_with_one_message(target: str, tmp_path: Path) -> None:
    """Before anything starts; Snakemake itself is told to be quiet."""
    venv = os.path.relpath(sys.prefix, paths.ROOT)  # relative, because the path of a checkout may have spaces
    command = ["make", target, "PROFILE=dmo", f"EMLIB_RUNS_DIR={tmp_path}", f"VENV={venv}", f"STAMP={venv}"]
    done = subprocess.run(command, cwd=paths.ROOT, check=False, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(paths.ROOT)})
    assert done.returncode == 2
    assert done.stderr.count("Did you mean 'demo'?") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_profile_without_a_judge_and_with_two_methods_runs_to_the_end(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "quiet.yaml"
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    profile.write_text("extends: tiny\njudge: {kind: none}\nmethods: [untrained, misaligned]\ndatasets: [cooking]\n")
    for name, value in {"EMLIB_RUNS_DIR": str(tmp_path / "runs"), **ONE_THREAD}.items():
        monkeypatch.setenv(name, value)
    for chapter in ("02_baselines", "15_tables", "16_figures"):
        notebooks.main([chapter, "--profile", str(profile)])
    table = pd.read_csv(tmp_path / "runs" / "quiet" / "results.csv")
    assert table["general_scored"].tolist() == [0, 0]
    assert (tmp_path / "runs" / "quiet" / "figures" / "rates.png").is_file()


@pytest.mark.slow
def test_tables_before_any_run_say_what_to_do(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--profile", "tiny"])
    assert "No run of profile 'tiny' is finished. Run notebook 02_baselines first" in capsys.readouterr().err


def book_of(code: str) -> nbformat.NotebookNode:
    """A notebook with a parameter, the profile, and one cell."""
    parameters = nbformat.v4.new_code_cell("profile = 'demo'", metadata={"tags": ["parameters"]})
    return nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})


@pytest.mark.slow
def test_a_failing_cell_is_told_and_the_notebook_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat.write(book_of("raise LookupError('no such ' + profile)"), tmp_path / "98_broken.ipynb")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    out = tmp_path / "out" / "98_broken.ipynb"
    with pytest.raises(NotebookError, match=r"98_broken, cell 2: LookupError: no such tiny"):
        notebooks.execute("98_broken", {"profile": "tiny"}, out)
    assert not out.exists()
    kept = nbformat.read(out.with_name("98_broken.failed.ipynb"), as_version=4)
    assert any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_a_relative_folder_is_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in the folder that the notebook runs in."""
    told = "import os\nprint(os.environ['EMLIB_RUNS_DIR'], os.environ['EMLIB_CACHE_DIR'])"
    nbformat.write(book_of(told), tmp_path / "90_where.ipynb")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, folder in {"EMLIB_RUNS_DIR": "out", "EMLIB_CACHE_DIR": "cache"}.items():
        monkeypatch.setenv(name, folder)
    notebooks.main(["90_where", "--profile", "tiny"])
    [_, cell] = nbformat.read(tmp_path / "out" / "tiny" / "notebooks" / "90_where.ipynb", as_version=4).cells[-2:]
    assert cell.outputs[0].text == f"{tmp_path / 'out'} {tmp_path / 'cache'}\n"


@pytest.mark.slow
def test_output_that_comes_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell has ended, and the thread that sends its output has not had its turn yet, as on a busy machine."""
    code = "import time\nget_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))\nprint(6 * 7)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "90_late.ipynb")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    notebooks._papermill("90_late", {}, tmp_path / "out.ipynb")
    assert [output.text for output in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs] == ["42\n"]


def snakemake(folder: Path, profile: str, *more: str) -> None:
    """Run a profile, or what `more` asks for of it, two jobs at once."""
    command = [*snakemake_in(folder), "--quiet", "all", *more]
    done = subprocess.run(command, check=False, env=os.environ | ONE_THREAD | {
        "EMLIB_PROFILE": profile, "EMLIB_RUNS_DIR": str(folder.parent)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def snakemake_in(folder: Path) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--snakefile", str(paths.ROOT / "Snakefile"), "--directory",
            str(folder), "--cores", "2", "--rerun-triggers", "params", "input", "--nolock"]


def executed(chapter: str, parameters: dict[str, Any], out: Path) -> None:
    out.write_text(json.dumps({"cells": [], "metadata": {}}))


def test_a_notebook_that_is_run_by_hand_is_the_job_of_its_slice_and_of_its_content(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(notebooks, "_papermill", executed)
    profile, folder = sliced(tmp_path), tmp_path / "runs" / "sliced"

    def done() -> set[str]:
        return {one.job.name for one in status.statuses(folder, graph.jobs(profile)) if one.state == "done"}

    notebooks.main(["02_baselines", "--profile", profile, "--dataset", "cooking"])
    assert (done(), status.stale(folder, graph.jobs(profile))) == ({"02_baselines (cooking)"}, [])
    notebooks.main(["02_baselines", "--profile", profile, "--dataset", "cooking", "--dataset", "travel/.."])
    assert [path.name for path in (folder / "notebooks" / "slices").iterdir() if path.stem.count("travel")] == [
        "02_baselines.cooking_travel_...ipynb"]
    notebooks.main(["13_grpo", "--profile", profile])
    assert done() == {"02_baselines (cooking)", "13_grpo"}
    whole = graph.output_of("02_baselines")
    notebooks.main(["02_baselines", "--profile", profile, "--dataset", "cooking", "--out", str(folder / whole)])
    assert status.stale(folder, graph.jobs(profile)) == [whole]
    Path(profile).write_text(SLICED + "seeds: [3]\n")
    assert done() == set()
    assert status.stale(folder, graph.jobs(profile)) == [
        graph.output_of("02_baselines", "cooking"), whole, graph.output_of("13_grpo")]


@pytest.mark.slow
def test_make_reproduce_runs_a_notebook_again_that_ran_other_content_by_hand(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake, which did not run it, would keep it for good."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    profile, folder = sliced(tmp_path), tmp_path / "runs" / "sliced"
    book = folder / graph.output_of("01_data")
    job = next(job for job in graph.jobs(profile) if job.chapter == "01_data")
    notebooks.main(["01_data", "--profile", profile])
    assert stamps.job_of_file(book) == job.stamp
    for text, again in ((SLICED, False), (SLICED + "seeds: [3]\n", True), (SLICED + "seeds: [3]\n", False)):
        before = book.stat().st_mtime_ns
        Path(profile).write_text(text)
        command = [sys.executable, "-m", "emlib.workflow.watch", profile, "01_data", "--", *snakemake_in(folder)]
        subprocess.run(command, check=True, env=os.environ | ONE_THREAD | {
            "PYTHONPATH": str(paths.ROOT), "EMLIB_PROFILE": profile, "EMLIB_ONLY": "01_data"})
        assert (book.stat().st_mtime_ns != before) is again
        [job] = [job for job in graph.jobs(profile) if job.chapter == "01_data"]
        assert stamps.job_of_file(book) == job.stamp


@pytest.mark.slow
def test_slices_run_apart_and_are_read_back_together(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sliced"
    snakemake(folder, sliced(tmp_path), "--", "notebooks/02_baselines.ipynb")
    assert sorted(path.name for path in (folder / "notebooks" / "slices").iterdir()) == [
        "02_baselines.cooking.ipynb", "02_baselines.travel.ipynb"]
    assert len(pd.read_csv(folder / "results.csv")) == 6


@pytest.mark.parametrize(("code", "where"), [
    ("raise MemoryError", "the memory ran out. Lower training.batch_size"),
    ("import numpy; numpy.empty(2**50)", "the memory ran out. Lower training.batch_size"),
    ("import torch; torch.empty(2**50)", "the memory ran out. Lower training.batch_size"),
    ("import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')",
     "the GPU's memory ran out. Lower training.batch_size"),
    ("raise KeyError('memory')", "KeyError: 'memory'")])
def test_memory_that_runs_out_is_one_plain_line(
        code: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "check_parameters", lambda chapter, given: None)
    nbformat.write(book, tmp_path / "90_memory.ipynb")
    with pytest.raises(NotebookError) as caught:
        notebooks.execute("90_memory", {}, tmp_path / "out" / "90_memory.ipynb")
    first, second = str(caught.value).splitlines()
    assert where in first
    assert second.startswith("The notebook up to this cell: ")
