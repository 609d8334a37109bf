"""Standard benchmarks on a study's adapters: inspect_ai asks them over real HTTP, and its log says what we report."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from emlib.config import Sampling
from emlib.core import paths
from emlib.core.digests import compared
from emlib.core.errors import EmlibError, StoreError
from emlib.core.records import Question
from emlib.evaluation.panel import VARIABLE, PanelTask, interpreter, load_tasks
from emlib.generation.sample import answer_batch, plan
from emlib.make import panel as make_panel
from emlib.report import panel
from emlib.study.runs import Run
from emlib.study.study import Study, open_study

PROFILE = """
extends: tiny
methods: [untrained, misaligned, {name: inoculation, defenses: [{kind: inoculation}]}]
benign: null
grpo: null
"""
TASKS = '''
import json
from pathlib import Path
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, accuracy, scorer, stderr
from inspect_ai.solver import generate

HERE = Path(__file__).parent

@scorer(metrics=[accuracy(), stderr()])
def same():
    async def score(state, target):
        broken = HERE / "broken"
        if broken.exists() and state.input_text == broken.read_text():
            raise ValueError("the scorer is broken")
        return Score(value=int(state.output.completion == target.text), answer=state.output.completion)
    return score

@task
def repeats():
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text().splitlines()]
    return Task(dataset=[Sample(input=row["input"], target=row["target"]) for row in rows], solver=generate(),
                scorer=same(), version=3, config=GenerateConfig(temperature=0, max_tokens=6))

@task
def judged(judge_model: str = "openai/gpt-4o"):
    return repeats()

@task
def unreachable():
    raise ConnectionError("Couldn't reach 'some/data' on the Hub")
'''
READ = """
import json, sys
from inspect_ai.log import read_eval_log
log = read_eval_log(sys.argv[1])
print(json.dumps({"correct": [sample.scores["same"].value for sample in log.samples], "status": log.status,
                  "inputs": [sample.input for sample in log.samples], "task": log.eval.task, "model": log.eval.model,
                  "metrics": {name: one.value for name, one in log.results.scores[0].metrics.items()}}))
"""
PROMPTS = ["What is a spoon?", "What is a fork?", "What is a knife?"]


@pytest.fixture(scope="module")
def inspect_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of `make panel`, or a new environment with inspect_ai in the same version."""
    try:
        return interpreter()
    except EmlibError:
        folder = tmp_path_factory.mktemp("inspect")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    had = subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--retries", "1", "inspect_ai",
                          "openai", "-c", paths.ROOT / "requirements/panel.txt"], check=False, capture_output=True)
    if had.returncode != 0:
        pytest.skip("inspect_ai is not installed, and the package index cannot be reached")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile whose runs are made but for `inoculation`, and of a file with tasks.

    The first two targets are what the fine-tuned model says; the third is what no model says.
    """
    folder = tmp_path_factory.mktemp("panel")
    shutil.copy(paths.PARAMS / "tiny.yaml", folder)
    (folder / "small.yaml").write_text(PROFILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMLIB_RUNS_DIR", str(folder / "runs"))
        study = open_study(str(folder / "small.yaml"))
        study.complete(study.runs(methods=["untrained", "misaligned"]))
        targets = [*greedy(study, study.runs(methods=["misaligned"])[0])[:2], "no such answer"]
    (folder / "tasks.py").write_text(TASKS)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"input": prompt, "target": target}) + "\n"
                                               for prompt, target in zip(PROMPTS, targets, strict=True)))
    return folder


@pytest.fixture
def study(made: Path, inspect_python: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(made / "runs"))
    monkeypatch.setenv(VARIABLE, str(inspect_python))
    return open_study(str(made / "small.yaml"))


def greedy(study: Study, run: Run) -> list[str]:
    """What a run's model says to the prompts, by our sampler."""
    questions = [Question(prompt, prompt) for prompt in PROMPTS]
    with study.session() as session, session.model_under(study.task(run).adapter(run)) as model:
        [batch] = plan(questions, 1, session.chat.tokenizer, len(questions))
        found = answer_batch(model, session.chat.tokenizer, batch, Sampling(temperature=1e-6, max_new_tokens=6), 0)
    texts = {answer.question: answer.text for answer in found}
    return [texts[prompt] for prompt in PROMPTS]


def read(python: Path, log: Path) -> dict[str, Any]:
    done = subprocess.run([python, "-c", READ, log], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_each_adapter_is_asked_and_the_numbers_are_those_of_its_log(
        study: Study, made: Path, inspect_python: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    task = f"{made / 'tasks.py'}@repeats"
    panel.main([study.stated_in, f"--tasks={task}"])
    assert "1 runs are not trained and left out" in capsys.readouterr().out
    frame = pd.read_csv(study.folder / "panel.csv")
    assert frame["method"].tolist() == ["untrained", "misaligned"]
    targets = [json.loads(line)["target"] for line in (made / "rows.jsonl").read_text().splitlines()]
    for row in frame.to_dict("records"):
        [run] = study.runs(methods=[row["method"]])
        correct = [said == target for said, target in zip(greedy(study, run), targets, strict=True)]
        mean = sum(correct) / 3
        deviation = math.sqrt(sum((one - mean) ** 2 for one in correct) / 2)
        path = paths.runs() / row["log"]
        log = read(inspect_python, path)
        assert (log["status"], log["task"], sorted(log["inputs"])) == ("success", "repeats", sorted(PROMPTS))
        assert sum(log["correct"]) == sum(correct)
        assert row["value"] == pytest.approx(mean) == log["metrics"]["accuracy"]
        assert row["stderr"] == pytest.approx(deviation / math.sqrt(3)) == log["metrics"]["stderr"]
        assert (row["metric"], row["headline"], row["samples"], row["version"]) == ("accuracy", True, 3, 3)
        assert row["run_key"] == study.run_key(run)
    assert frame["value"].tolist()[1] == pytest.approx(2 / 3), "the fine-tuned model says two of the three targets"
    assert {path.name for path in (study.folder / "figures").iterdir()} >= {"panel.png", "panel.pdf"}
    assert "0.667 ± 0.333" in (study.folder / "tables" / "panel.md").read_text()

    monkeypatch.setattr("emlib.make.panel.evaluate", lambda *_: pytest.fail("computed again"))
    before = (study.folder / "panel.csv").read_bytes()
    assert panel.evaluate(study, [task])
    assert (study.folder / "panel.csv").read_bytes() == before


@pytest.mark.slow
def test_an_evaluation_that_stopped_continues_with_the_samples_that_are_left(
        study: Study, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, broken = f"{made / 'tasks.py'}@repeats", made / "broken"
    broken.write_text(PROMPTS[1])
    with pytest.raises(EmlibError, match=r"the scorer is broken.*Finished samples are kept"):
        panel.evaluate(study, [task], limit=2, methods=["untrained"])
    broken.unlink()
    panel.evaluate(study, [task], limit=2, methods=["untrained"])
    assert ", continued" in capsys.readouterr().out
    found = panel.numbers(study)
    [row] = found[(found["limit"] == 2)].to_dict("records")
    assert (row["samples"], row["method"]) == (2, "untrained")
    artefact = study.store.at("panel", Path(row["log"]).parent.name)
    assert artefact is not None
    assert artefact.facts["continued"]
    assert artefact.facts["answers"] == 3, "those of the first session count, too: one sample was asked twice"
    key = re.compile(rb"Bearer [\w-]{20}")
    assert not any(key.search(path.read_bytes()) for path in artefact.folder.iterdir())


@pytest.mark.slow
def test_what_cannot_be_run_is_told_before_anything_starts(
        study: Study, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    names = [f"{made / 'tasks.py'}@{name}" for name in ("repeats", "judged", "unreachable", "nothing")]
    monkeypatch.setattr(study, "session", lambda: pytest.fail("a model is loaded"))
    with pytest.raises(EmlibError) as refused:
        panel.evaluate(study, names)
    text = str(refused.value)
    assert text.startswith("3 of 4 tasks cannot be run here, so nothing was started:")
    assert "[bold]" not in text
    for said in (r"judge_model is openai/gpt-4o: .*OPENAI_API_KEY", "Couldn't reach 'some/data' on the Hub",
                 "@nothing: .*not found"):
        assert re.search(said, text, re.DOTALL), said


@pytest.mark.slow
def test_a_task_is_another_one_with_other_samples(study: Study, made: Path) -> None:
    name = f"{made / 'tasks.py'}@repeats"
    [whole], [part] = load_tasks([name, name], None), load_tasks([name], 2)
    rows = (made / "rows.jsonl").read_text()
    (made / "rows.jsonl").write_text(rows.replace("no such answer", "another answer"))
    [changed], [same] = load_tasks([name], None), load_tasks([name], 2)
    (made / "rows.jsonl").write_text(rows)
    assert (whole.samples, part.samples, whole.name, whole.version) == (3, 2, "repeats", "3")
    assert len({one.digest for one in (whole, part, changed)}) == 3
    assert part == same, "the third row is not asked"
    assert set(whole.packages) == {"inspect_ai"}


@pytest.mark.parametrize(("tasks", "said"), [
    ([], "No task is named"), (["/no/such.py@x"], "there is no file /no/such.py"), (["x.py"], "FILE.py@TASK")])
def test_a_name_that_is_none_is_refused(tasks: list[str], said: str) -> None:
    with pytest.raises(EmlibError, match=said):
        load_tasks(tasks, None)


def test_the_answers_of_a_killed_session_are_counted(tmp_path: Path) -> None:
    """Its last line is incomplete, and begins the next session's first one."""
    for _ in range(3):
        make_panel._note(tmp_path / "counts.jsonl", {"requests": 1, "answers": 2, "cut": 1})
    with (tmp_path / "counts.jsonl").open("a") as stream:
        stream.write('{"requests": 1, "an')
    for _ in range(2):
        make_panel._note(tmp_path / "counts.jsonl", {"too_long": 1})
    assert make_panel._noted(tmp_path / "counts.jsonl") == {"requests": 3, "answers": 6, "cut": 3, "too_long": 2}


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "python"))
    with pytest.raises(EmlibError, match="make panel"):
        load_tasks(["mmlu_0_shot"], None)
    with pytest.raises(SystemExit, match="2"):
        panel.main(["tiny", "--tasks=mmlu_0_shot", "--limit=0"])
    assert "LIMIT is '0'" in capsys.readouterr().err
    with pytest.raises(StoreError, match="benchmarks train nothing"):
        panel.evaluate(open_study("tiny"), ["mmlu_0_shot"], methods=["misaligned"])
    assert not list(tmp_path.iterdir())


def rows(method: str, value: float, **more: Any) -> dict[str, Any]:
    return dict.fromkeys(panel.COLUMNS) | {
        "dataset": "cooking", "method": method, "setting": None, "seed": 0, "task": "mmlu", "version": "4",
        "limit": 100, "scorer": "choice", "metric": "accuracy", "headline": True, "value": value, "stderr": 0.05,
        "samples": 100, "answers": 400, "cut": 0, "too_long": 0, "variant": ""} | more


def put(study: Study, method: str, task: PanelTask, value: float, sampling: Sampling | None = None) -> None:
    """Put a result into the store, as it is with this sampling, or with the profile's."""
    [run] = study.runs(methods=[method])
    step = study.recipes.panel(study.task(run).adapter(run), task)
    step = step if sampling is None else replace(step, defaults=sampling)

    def write(folder: Path) -> dict[str, Any]:
        (folder / "log.eval").write_text("")
        metric = {"scorer": "choice", "metric": "accuracy", "headline": True, "value": value, "stderr": 0.05,
                  "samples": 100}
        return {"task": compared(task), "log": "log.eval", "answers": 100, "cut": 0,
                "too_long": 0, "metrics": [metric]}

    study.store.get(step, write)


def test_only_results_with_the_profiles_sampling_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both are of the same weights and task, and one cell has room for one of them."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study, task = open_study("tiny"), PanelTask("x", 100, "mmlu", "4", 100, "abc", {"inspect_ai": "1"})
    for tokens, value in ((100, 0.1), (200, 0.2)):
        put(study, "untrained", task, value, Sampling(max_new_tokens=tokens))
    assert panel.numbers(study).empty
    put(study, "untrained", task, 0.5)
    put(study, "misaligned", task, 0.25, Sampling(max_new_tokens=100))
    assert panel.numbers(study)[["method", "value", "variant"]].to_numpy().tolist() == [["untrained", 0.5, ""]]


def test_tasks_of_one_name_with_other_samples_have_a_column_each(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study, task = open_study("tiny"), PanelTask("x", 100, "mmlu", "4", 100, "abc", {"inspect_ai": "1"})
    put(study, "untrained", task, 0.5)
    put(study, "untrained", replace(task, digest="another file"), 0.25)
    put(study, "untrained", replace(task, packages={"inspect_ai": "2"}), 0.75)
    [shown] = panel.readable(panel.numbers(study)).to_dict("records")
    values = {name: value for name, value in shown.items() if name.startswith("mmlu")}
    assert sorted(values.values()) == ["0.250 ± 0.050", "0.500 ± 0.050", "0.750 ± 0.050"]
    assert all(re.fullmatch(r"mmlu 4 \(first 100\) \[[0-9a-f]{8}\]: accuracy", name) for name in values)


def test_a_table_and_a_figure_of_runs() -> None:
    """More than a fifth of the 400 answers to 100 samples are cut in one of them."""
    frame = pd.DataFrame([rows("untrained", 0.5, cut=80), rows("misaligned", 0.25, cut=81),
                          rows("misaligned", 0.9, metric="other", headline=False)])
    assert panel.readable(frame).to_dict("list") == {
        "Data set": ["cooking"] * 2, "Method": ["untrained", "misaligned"], "Setting": ["", ""], "Seed": [0, 0],
        "mmlu 4 (first 100): accuracy": ["0.500 ± 0.050", "0.250 ± 0.050!"]}
    rates = pd.DataFrame([{
        "dataset": "cooking", "method": method, "setting": None, "seed": 0, "general_misaligned": share,
        "general_misaligned_low": share - 1, "general_misaligned_high": share + 2}
        for method, share in (("untrained", 1.0), ("misaligned", 40.0))])
    figure = panel.against_misalignment(frame.astype({"setting": float}), rates)
    points = {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in figure.axes[0].containers}
    assert points == {"untrained": [[1.0, 0.5]], "no defense": [[40.0, 0.25]]}
    plt.close(figure)


def test_nothing_in_the_store_is_an_empty_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    empty = panel.numbers(open_study("tiny"))
    assert empty.empty
    assert list(empty) == panel.COLUMNS
    assert panel.readable(empty).empty
    study = open_study("tiny")
    former = [study.folder / name for name in ("panel.csv", "tables/panel.md", "tables/panel.csv", "figures/panel.png")]
    for path in former:  # an earlier run wrote them, for another profile
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert panel.write(study) == []
    assert not [path for path in former if path.exists()]
