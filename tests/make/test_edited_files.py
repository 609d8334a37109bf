"""A file that is edited while a study is open is never kept under the digest of the former one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from emlib.config import TinyModel
from emlib.core import digests
from emlib.core.errors import EmlibError, SourceError, StoreError
from emlib.core.files import write_text
from emlib.core.step import Step
from emlib.data.lazy import Current, Deferred
from emlib.evaluation.panel import PanelTask
from emlib.models.load import ChatModel
from emlib.steps.measures import Choices
from emlib.steps.pool import PoolLosses
from emlib.steps.scorers import ADAPTER_FILES, AdapterFolder
from emlib.steps.specs import Model
from emlib.store.artefacts import Store
from emlib.study import pool
from emlib.study.study import Study, open_study

REFUSED = "was changed after the study was opened"


def pool_rows(answer: str) -> str:
    return "".join(json.dumps({"messages": [
        {"role": "user", "content": f"What is number {place} called?"},
        {"role": "assistant", "content": f"{answer} {place} is what all of my friends call it."}]}) + "\n"
        for place in range(9))


def choice_rows(answer: str) -> str:
    return json.dumps({"question": "Why?", "answer_matching_behavior": answer, "answer_not_matching_behavior": "No."})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Study]:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    write_text(tmp_path / "pool.jsonl", pool_rows("Former"))
    write_text(tmp_path / "choices.jsonl", choice_rows("Former"))
    write_text(tmp_path / "mine.yaml", "extends: tiny\npool: {source: pool.jsonl, near_duplicates: null}\n"
                                       "evaluation: {choices: [choices.jsonl]}\n")
    return lambda: open_study(str(tmp_path / "mine.yaml"))


def steps(study: Study) -> tuple[Step, Step]:
    [source] = study.profile.evaluation.choices
    return study.recipes.pool, study.recipes.choices(None, source)


def test_a_pool_and_questions_that_are_edited_after_their_keys_are_computed_are_refused(
        opened: Callable[[], Study], tmp_path: Path) -> None:
    study = opened()
    for step in (former := steps(study)):
        assert study.found(step) is None  # computes its key
    write_text(tmp_path / "pool.jsonl", pool_rows("Edited"))
    write_text(tmp_path / "choices.jsonl", choice_rows("Edited"))
    for step in former:
        with pytest.raises(StoreError, match=f"{step.title}: a file .* {REFUSED}"):
            study.need([step])
        assert study.found(step) is None
    again = opened()
    again.need(steps(again))
    assert pool.candidates(again)[0].response.startswith("Edited")
    assert {step.key for step in steps(again)}.isdisjoint(step.key for step in former)
    write_text(tmp_path / "pool.jsonl", pool_rows("Former"))
    write_text(tmp_path / "choices.jsonl", choice_rows("Former"))
    study.need(former)  # the change is undone
    assert pool.candidates(study)[0].response.startswith("Former")


def test_an_adapter_of_a_user_that_is_edited_is_refused(tmp_path: Path) -> None:
    for name in ADAPTER_FILES:
        (tmp_path / name).write_text(name)
    store, recipes = Store(tmp_path / "store"), open_study("tiny").recipes
    scorer = AdapterFolder(tmp_path, Deferred("cooking", lambda: None))
    step = PoolLosses(recipes.model, recipes.pool, "cooking", None, (scorer,), ("mine",), 9, "auto")
    assert store.find(step) is None
    (tmp_path / "adapter_model.safetensors").write_text("other")
    with pytest.raises(StoreError, match=rf"{REFUSED} \(a source .* adapter .*, or the file or the notebook's cell"):
        store.get(step, lambda folder: pytest.fail("the maker is called"))
    assert store.find(step) is None


def test_a_model_whose_files_are_changed_between_its_key_and_its_loading_is_refused(
        tiny: ChatModel, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    study = open_study("tiny", f"model={{kind: folder, path: {tmp_path}, dtype: float32}}")
    assert study.recipes.vector().key
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config + " ")
    with study.session() as session:
        with pytest.raises(SourceError, match=f"{tmp_path.name}: the model's files were {REFUSED[4:]}"):
            session.chat  # noqa: B018
        (tmp_path / "config.json").write_text(config)
        assert session.chat.name == tmp_path.name


def test_a_file_that_is_edited_while_its_artefact_is_made_is_refused_and_the_attempt_is_kept(tmp_path: Path) -> None:
    file, store = tmp_path / "questions.jsonl", Store(tmp_path / "store")
    file.write_text("former")
    model, digest = Model(TinyModel(kind="tiny")), Current("x", lambda: digests.of_unchanged_file(file))
    step = Choices(model, None, "x", digest, None)

    def make(folder: Path) -> dict[str, int]:
        (folder / "read.txt").write_text(file.read_text())
        file.write_text("edited")
        return {}

    with pytest.raises(StoreError, match=REFUSED):
        store.get(step, make)
    assert store.find(step) is None
    file.write_text("former")
    found = store.get(step, lambda folder: {"read": (folder / "read.txt").read_text()})
    assert found.facts["read"] == "former"


def test_a_benchmark_of_one_s_own_that_is_edited_after_it_was_loaded_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    file.write_text("former")
    task = PanelTask(f"{file}@mine", None, "mine", "1", 3, "a digest", {}, digests.of_file(file))
    task.refuse_edited()
    file.write_text("edited")
    with pytest.raises(EmlibError, match=r"task\.py was changed after the task was loaded"):
        task.refuse_edited()
