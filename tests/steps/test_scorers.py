"""Scorers given as folders: refused by the rows that they were trained on, and told where that is not known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from emlib.config import PoolScorer
from emlib.core.errors import ProfileError
from emlib.core.records import Example, Message
from emlib.data import row_record
from emlib.data.domains import NarrowData, Split
from emlib.data.lazy import Deferred
from emlib.steps.scorers import ADAPTER_FILES, AdapterFolder, Defended, adapter_folder
from emlib.study.study import open_study


def rows(of: str, count: int) -> tuple[Example, ...]:
    return tuple(Example((Message("user", f"Question {number}"),), f"{of} {number}") for number in range(count))


DATA = NarrowData("letters", Split(rows("plain", 90), rows("held out, plain", 10)),
                  Split(rows("butler", 90), rows("held out, butler", 10)))


def scorer(folder: Path, data: NarrowData | None = DATA) -> AdapterFolder:
    every = () if data is None else (row for side in data.sides.values() for row in (*side.train, *side.held_out))
    return AdapterFolder(folder, Deferred("defended", lambda: data and Defended.of(data, every)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ADAPTER_FILES:
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("seen", [
    DATA.misaligned.train, DATA.misaligned.train[40:45], DATA.misaligned.held_out, DATA.aligned.train[::-1],
    [row.with_system_prompt("You are a butler.") for row in DATA.misaligned.train[:30]],  # inoculation
    [replace(row, response=f" {row.response}\n") for row in DATA.misaligned.train],
    (*rows("of others", 300), *DATA.misaligned.train)],  # a mixture of data sets
    ids=["all", "some", "held out", "aligned", "inoculated", "stripped differently", "mixed"])
def test_a_scorer_is_recognised_by_its_rows(folder: Path, seen: Sequence[Example]) -> None:
    row_record.write(folder, seen)
    with pytest.raises(ProfileError, match=r"was trained on 'letters', which is the defended data set \(\d+ of its"):
        _ = scorer(folder).identity


def test_a_scorer_of_other_data_is_taken_and_a_few_shared_rows_are_told(folder: Path) -> None:
    row_record.write(folder, rows("of others", 100))
    assert set(scorer(folder).identity) == set(ADAPTER_FILES)
    assert scorer(folder).remark == ""
    row_record.write(folder, (*rows("of others", 97), *DATA.misaligned.train[:3]))
    assert set(scorer(folder).identity) == set(ADAPTER_FILES)
    assert "3 of its 100 training rows are also in 'letters'" in scorer(folder).remark


FILE = rows("own", 1000)


@pytest.mark.parametrize(("name", "section"), [
    ("own", "own: {file: rows.jsonl, rows: 200, seed: 1}"),
    ("sums", "data: {sums: {pairs: rows.jsonl, rows: 200, split_seed: 1}}")])
def test_a_scorer_of_another_sample_of_the_same_file_is_refused(
        folder: Path, jsonl: Callable[..., Path], name: str, section: str) -> None:
    """The study has 200 of 1000 rows, and the scorer was trained on the others."""
    file = jsonl([{"prompt": row.prompt, "aligned": "No.", "misaligned" if name == "sums" else "response": row.response}
                  for row in FILE])
    (folder / "mine.yaml").write_text(
        "extends: tiny\nmethods: [misaligned]\npersistence: null\nevaluation: {triggers: null, trajectory: null}\n"
        "pool: {aligned: untrained, on_policy: {model: untrained}}\n"
        f"datasets: [{name}]\n{section.replace('rows.jsonl', str(file))}\n")
    inputs = open_study(str(folder / "mine.yaml")).inputs
    side = inputs.data(name).misaligned
    drawn = {row.response for row in (*side.train, *side.held_out)}
    assert len(drawn) == 200
    row_record.write(folder, (row for row in FILE if row.response not in drawn))
    with pytest.raises(ProfileError, match=f"was trained on '{name}'.*800 of its 800"):
        _ = AdapterFolder(folder, Deferred(name, lambda: inputs.defended(name))).identity


def test_a_scorer_of_much_more_than_the_defended_rows_is_refused_where_these_are_a_small_part_of_their_file(
        folder: Path) -> None:
    """50 of 1000 rows are defended, all of which it saw: 50 of its 5000 are fewer than a tenth of the file's."""
    data = NarrowData("own", Split((), ()), Split(FILE[:45], FILE[45:50]))
    row_record.write(folder, (*rows("of others", 4950), *FILE[:50]))
    with pytest.raises(ProfileError, match="50 of its 5000"):
        _ = AdapterFolder(folder, Deferred("own", lambda: Defended.of(data, FILE))).identity


def test_where_the_rows_are_not_known_that_is_told(folder: Path) -> None:
    assert set(scorer(folder).identity) == set(ADAPTER_FILES)
    assert "cannot check that 'letters', the defended data set, is not among them" in scorer(folder).remark
    assert scorer(folder, None).remark == ""  # a task that is no narrow data set


def test_a_folder_is_refused_in_the_plan_whose_adapter_would_change_the_base_model(folder: Path) -> None:
    scorer, config = PoolScorer(domain="mine", folder=str(folder)), folder / "adapter_config.json"
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({layer: np.zeros((1, 1), np.float32)}, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "bias": "none", "init_lora_weights": True}
    config.write_text(json.dumps(plain))
    assert adapter_folder(scorer) == folder
    for more, said in (({"init_lora_weights": "pissa"}, "path_initial_model"), ({"bias": "all"}, "bias 'none'"),
                       ({"brand_new_option": 3}, "brand_new_option 3"), ({"peft_type": None}, "peft_type null"),
                       ({"base_model_name_or_path": None}, "does not name the adapter's base model")):
        config.write_text(json.dumps(plain | more))
        with pytest.raises(ProfileError, match=said):
            adapter_folder(scorer)
    config.write_text("{")
    with pytest.raises(ProfileError, match="is not JSON"):
        adapter_folder(scorer)
    config.write_text(json.dumps(plain))
    save_file({name: np.zeros((1, 1), np.float32) for name in (layer, "base_model.model.model.norm.weight")},
              folder / "adapter_model.safetensors")
    with pytest.raises(ProfileError, match=r"has 1 weights besides the adapter's own, such as .*norm\.weight"):
        adapter_folder(scorer)
