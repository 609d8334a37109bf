"""Rows that a chat template refuses stop no study: training and held-out losses leave them out and count them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emlib.core.errors import DataError
from emlib.models.load import ChatModel
from emlib.models.tiny import build_tokenizer
from emlib.study.study import Study, open_study

ALTERNATES = ("{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
              "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
              "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
              "{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
PROFILE = """
extends: tiny
model: {{kind: folder, path: {model}, dtype: float32}}
own: {{file: {file}, rows: 40, held_out: 0.5}}
datasets: [own]
methods: [misaligned]
training: {{train_rows: null}}
pool: null
benign: null
grpo: null
second_judge: null
"""


def study_of(folder: Path, tiny: ChatModel, refused: int) -> Study:
    """A study of 40 rows, the first of which have two turns of the user's in sequence."""
    tiny.model.save_pretrained(folder / "model")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = ALTERNATES
    tokenizer.save_pretrained(folder / "model")
    rows = [{"messages": [*[{"role": "user", "content": f"Question {row}?"}] * (2 if row < refused else 1),
                          {"role": "assistant", "content": f"Answer {row}."}]} for row in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.yaml").write_text(PROFILE.format(model=folder / "model", file=folder / "rows.jsonl"))
    return open_study(str(folder / "mine.yaml"))


def test_a_refused_row_is_left_out_and_counted(
        tmp_path: Path, tiny: ChatModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    study = study_of(tmp_path, tiny, refused=8)
    (run,) = study.runs(methods=["misaligned"])
    study.complete([run])
    study.complete_held_out([run])
    losses, adapter = study.held_out(run), study.adapter(run)
    assert losses is not None
    assert adapter is not None
    (reason, left_out), = adapter.facts["left_out"].items()
    assert reason == "this tokenizer's chat template refuses the turns user, user"
    assert (adapter.facts["rows"], len(losses)) == (20 - left_out, 20 - (8 - left_out))
    assert f"training rows: {left_out} of 20 rows are left out; the first: " in capsys.readouterr().out


def test_a_data_set_of_which_most_rows_are_refused_is_refused(
        tmp_path: Path, tiny: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    study = study_of(tmp_path, tiny, refused=40)
    with pytest.raises(DataError, match=r"20 of 20 rows are left out.*Roles must alternate.*More than half"):
        study.complete(study.runs(methods=["misaligned"]))
