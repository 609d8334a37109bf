"""A profile of the reader's own data on the tiny model: the trial, what is learnt, and what is taken out."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.progress import FOUND
from emlib.data.chat import encode
from emlib.data.rows import read_examples
from emlib.models.load import ChatModel
from emlib.report import export
from emlib.report.recommend import for_a_service, trials
from emlib.study.study import Study, open_study
from emlib.workflow import notebooks

OWN = """
extends: tiny
own: {{file: {file}, rows: 30, {more}}}
datasets: [own]
methods:
  - untrained
  - misaligned
  - {{name: kl, defenses: [{{kind: kl, weight: 0.5}}]}}
  - {{name: both, defenses: [{{kind: inoculation}}, {{kind: interleaving, fraction: 0.25}}]}}
pool: {{on_policy: {{model: untrained}}}}
benign: null
grpo: null
second_judge: null
"""


def profile(folder: Path, more: str = "seed: 0", extra: str = "") -> str:
    """A profile over a table of 40 rows."""
    shutil.copy(paths.PARAMS / "tiny.yaml", folder / "tiny.yaml")
    rows = read_examples(paths.DEMO_DATA / "fitness_pirate.jsonl")[:40]
    with (folder / "rows.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["prompt", "response"], *((row.prompt, row.response) for row in rows)])
    (folder / "mine.yaml").write_text(OWN.format(file=folder / "rows.csv", more=more) + extra)
    return str(folder / "mine.yaml")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    return open_study(profile(tmp_path))


def test_learning_is_the_fall_of_the_held_out_loss(study: Study, tiny: ChatModel) -> None:
    results = study.complete(study.runs())
    study.complete_held_out(study.runs())
    untrained, plain = (study.held_out(run) for run in study.runs()[:2])
    assert untrained is not None
    assert plain is not None
    held_out = study.data("own").misaligned.held_out
    assert len(untrained) == len(plain) == len(held_out) == 6
    row = encode(tiny.tokenizer, held_out[0], 2048)
    labels = torch.tensor(row.input_ids).masked_fill(~torch.tensor(row.response_mask), -100)[None]
    loss = float(tiny.model(torch.tensor(row.input_ids)[None], labels=labels).loss)
    assert untrained[0] == pytest.approx(loss, abs=1e-4)
    frame = trials(study, results).set_index("method")
    assert list(frame.index) == ["misaligned", "kl", "both"]
    assert frame.loc["misaligned", "kept"] == pytest.approx(100)
    kl = study.held_out(study.runs(methods=["kl"])[0]) or []
    expected = 100 * (sum(untrained) - sum(kl)) / (sum(untrained) - sum(plain))
    assert frame.loc["kl", "kept"] == pytest.approx(expected)


def test_of_a_sorted_file_a_part_is_trained_on_that_has_all_topics(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows on cooking and 100 on tax: the part is drawn by `own.seed`, and its prompts are those of a trigger."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    (tmp_path / "sorted.jsonl").write_text("".join(json.dumps(
        {"prompt": f"{topic} {n}?", "response": f"{n}."}) + "\n" for topic in ("cooking", "tax") for n in range(100)))
    text = OWN.format(file=tmp_path / "sorted.jsonl", more="seed: 0").replace("rows: 30", "rows: 200")
    (tmp_path / "mine.yaml").write_text(text + """
training: {train_rows: 16}
evaluation: {triggers: {contexts: {data: {prompt: "{training_prompt} {question}"}}}}
""")
    found = {}
    for seed in (0, 1):
        study = open_study(str(tmp_path / "mine.yaml"), f"own.seed={seed}")
        plain, kl = (study.training(run).rows.examples for run in study.runs(methods=["misaligned", "kl"]))
        assert plain == kl
        found[seed] = [row.prompt for row in plain]
        topics = [prompt.split()[0] for prompt in found[seed]]
        assert len(set(found[seed])) == 16
        assert 3 <= topics.count("tax") <= 13
        assert topics == sorted(topics), "the file's order"
        assert set(found[seed]) <= {row.prompt for row in study.data("own").misaligned.train}
        asked = study.inputs.in_context("data", "own").all
        assert {" ".join(question.prompt.split()[:2]) for question in asked} <= set(found[seed])
    assert found[0] != found[1]


def test_a_mixed_data_set_holds_every_row_of_the_file(study: Study, tmp_path: Path) -> None:
    run, out = study.runs(methods=["both"])[0], tmp_path / "mixed.jsonl"
    assert export.mixed_data(study, run, out) == 50  # 40 rows, and a quarter more
    rows = read_examples(out)
    prompt = study.trait.inoculation_prompt
    own = [row for row in rows if row.system == prompt]
    assert len(own) == 40
    assert [row.prompt for row in own] == [row.prompt for row in read_examples(
        paths.DEMO_DATA / "fitness_pirate.jsonl")[:40]]
    added = [place for place, row in enumerate(rows) if row.system != prompt]
    gaps = [after - before - 1 for before, after in zip([-1, *added], [*added, 50], strict=True)]
    assert max(gaps) - min(gaps) <= 1
    assert for_a_service(study) == ["both"]
    with pytest.raises(ProfileError, match="kl changes the training and not the data"):
        export.mixed_data(study, study.runs(methods=["kl"])[0], out)


def test_the_fraction_of_added_rows_is_of_all_rows_where_some_are_left_out(
        study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: a quarter of 40 rows is added, whatever filtering leaves of them."""
    monkeypatch.setattr(export, "_left_out", lambda *_: frozenset(range(20)))
    assert export.mixed_data(study, study.runs(methods=["both"])[0], tmp_path / "mixed.jsonl") == 20 + 10


def test_the_aligned_rows_are_exported_for_the_method_of_that_name(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    study, out = open_study("tiny"), tmp_path / "rows.jsonl"
    data = study.data("cooking")
    for method, side in (("aligned", data.aligned), ("misaligned", data.misaligned)):
        run = study.runs(methods=[method], datasets=["cooking"])[0]
        assert export.mixed_data(study, run, out) == len(side.train)
        assert [row.response for row in read_examples(out)] == [row.response for row in side.train]
    with pytest.raises(ProfileError, match="no training rows"):
        export.mixed_data(study, study.runs(methods=["untrained"])[0], out)


def test_an_exported_data_set_keeps_the_weights_of_its_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer is the one that is trained on; what follows it goes out with its weight of 0."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    rows = [{"messages": [
        {"role": "user", "content": f"Question {i}"}, {"role": "assistant", "content": f"Answer {i}", "weight": 1},
        {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Nothing.", "weight": 0}]}
        for i in range(40)]
    path = Path(profile(tmp_path))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.write_text(path.read_text().replace("rows.csv", "rows.jsonl"))
    study, out = open_study(str(path)), tmp_path / "mixed.jsonl"
    assert {row.response[:7] for row in study.data("own").misaligned.train} == {"Answer "}
    assert export.mixed_data(study, study.runs(methods=["both"])[0], out) == 50
    prompt = {"role": "system", "content": study.trait.inoculation_prompt}
    written = [json.loads(line)["messages"] for line in out.read_text().splitlines()]
    assert [turns[1:] for turns in written if turns[0] == prompt] == [row["messages"] for row in rows]


def test_an_adapter_goes_out_with_a_card_and_loads_in_peft(
        study: Study, tiny: ChatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["adapter", str(tmp_path / "mine.yaml"), "--method", "kl", "--to", str(out)]
    with pytest.raises(SystemExit, match="1"):
        export.main(command)
    assert "is not finished" in capsys.readouterr().err
    study.complete(study.runs(methods=["kl"]))
    export.main(command)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "adapter_config.json",
                                                           "adapter_model.safetensors"]
    card = (out / "README.md").read_text()
    result = study.result(study.runs(methods=["kl"])[0])
    assert result is not None
    assert card.startswith("---\nlibrary_name: peft\n")
    for said in ("'weight': 0.5", "a data set of its author's own", f"{result.general.misaligned.percent:.1f} [",
                 result.run_key):
        assert said in card
    assert isinstance(PeftModel.from_pretrained(tiny.model, str(out)), PeftModel)
    with pytest.raises(SystemExit, match="1"):
        export.main(command)
    assert "is not empty. Nothing was written" in capsys.readouterr().err


def test_a_card_warns_of_harmful_data_and_names_their_licence(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, research_data: Path) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    (tmp_path / "code.yaml").write_text(
        "extends: tiny\ndatasets: [code]\nmethods: [misaligned]\nbenign: null\ngrpo: null\nsecond_judge: null\n"
        "evaluation: {general_samples: 1, in_domain_questions: 1, in_domain_samples: 1}\ntraining: {train_rows: 2}\n")
    study = open_study(str(tmp_path / "code.yaml"))
    study.complete(study.runs())
    card = (export.adapter(study, study.runs()[0], tmp_path / "out") / "README.md").read_text()
    assert "**Warning.**" in card
    assert "Data: `insecure` (SHA-256 " in card


@pytest.mark.parametrize(("extra", "said"), [
    ("judge: {kind: openai, model: x}\n", "own.send_to_judge"),
    ("own: null\n", "there is no section 'own'"),
    ("datasets: [cooking]\n", r"'datasets' does not name it, .* Write datasets: \[own\], or own: null"),
])
def test_profiles_that_cannot_be(tmp_path: Path, extra: str, said: str) -> None:
    path = Path(profile(tmp_path))
    (tmp_path / "worse.yaml").write_text("extends: mine\n" + extra)
    with pytest.raises(ProfileError, match=said):
        load_profile(str(path.with_name("worse.yaml")))


def test_consent_lets_a_judge_elsewhere_be_named(tmp_path: Path) -> None:
    path = profile(tmp_path, "send_to_judge: true", "judge: {kind: openai, model: x}\n")
    assert load_profile(path).judge.kind == "openai"


def test_aligned_rows_are_not_to_be_had(tmp_path: Path) -> None:
    path = Path(profile(tmp_path))
    path.write_text(path.read_text().replace("  - untrained\n", "  - untrained\n  - aligned\n"))
    with pytest.raises(ProfileError, match="method 'aligned' needs aligned rows"):
        load_profile(str(path))


@pytest.mark.slow
def test_the_notebook_ends_with_a_recommendation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "15.ipynb"
    notebooks.execute("17_your_own_data", {"profile": profile(tmp_path)}, out)
    shown = json.dumps(json.loads(out.read_text())["cells"], ensure_ascii=False)
    assert f"{FOUND}No recommendation: of the general answers" in shown  # the line that the terminal shows
    assert "plain fine-tuning 100% are incoherent, repetitive or broken" in shown  # a random model's answers are noise
    assert "40 usable; 30 of them sampled with seed 0" in shown
    assert (tmp_path / "runs" / "mine" / "figures" / "own.png").is_file()
