"""The audit of training rows: its numbers by plain transformers, rows that are left out, and a prediction by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from emlib.config import NoJudge, Own, load_profile
from emlib.core.errors import DataError, ProfileError
from emlib.core.files import write_records
from emlib.core.records import Example, Message
from emlib.data import row_record
from emlib.data.rows import read_examples
from emlib.data.sources import locate
from emlib.defenses.filtering import Filtering
from emlib.evaluation.prediction import LeftOut, Line, leave_one_out, line
from emlib.evaluation.records import AUDITED, AuditedRow
from emlib.evaluation.statistics import auroc
from emlib.models.tiny import build_model, build_tokenizer
from emlib.report import audit as tables
from emlib.report import export
from emlib.report.tables import result_tables
from emlib.steering import extraction
from emlib.steps.inputs import Inputs
from emlib.store.artefacts import Store
from emlib.study import audit
from emlib.study.plan.build import plan
from emlib.study.runs import Run
from emlib.study.study import Study

PROFILE = """
extends: tiny
title: An audit
methods:
  - untrained
  - aligned
  - misaligned
  - {name: kl, defenses: [{kind: kl}]}
  - {name: inoculation, defenses: [{kind: inoculation}]}
  - {name: interleaving, defenses: [{kind: interleaving}], sweep: [0.5]}
  - {name: filtered, defenses: [{kind: filtering}], sweep: [0, 0.25, 0.5]}
  - {name: control, defenses: [{kind: filtering, choose: random, share: 0.25}]}
  - {name: both, defenses: [{kind: inoculation}, {kind: filtering, share: 0.25}]}
training: {keep: []}
evaluation: {triggers: null}
second_judge: null
benign: null
grpo: null
audit: {layer: 2, rows: null, seed: 5, sampling: {max_new_tokens: 6, batch_rows: 5}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """The profile's runs, all made, with their audits."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EMLIB_RUNS_DIR", str(folder / "runs"))
        patched.setenv("EMLIB_HEADLESS", "1")
        (folder / "audited.yaml").write_text(PROFILE)
        made = Study("audited", load_profile(str(folder / "audited.yaml")), Store(folder / "runs" / "store"))
        made.complete(made.runs())
        audit.complete(made, made.runs())
        yield made


def run_of(study: Study, method: str, setting: float | None = None) -> Run:
    [run] = study.runs(methods=[method], settings=None if setting is None else [setting])
    return run


def audited(study: Study, method: str, part: int = 0) -> list[AuditedRow]:
    found = study.read(audit.steps(study, run_of(study, method))[part])
    assert found is not None
    return found


def projection(messages: list[dict[str, str]], answer: str, vector: torch.Tensor) -> float:
    """The mean of an answer's tokens at block 2 on the unit vector, by transformers and a hook alone."""
    model, tokenizer, seen = build_model(0, 4, 64, torch.float32).eval(), build_tokenizer(), []
    hook = model.model.layers[1].register_forward_hook(lambda _, inputs, out: seen.append(
        out[0] if isinstance(out, tuple) else out))
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = first + tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    states = seen[0].reshape(len(ids), -1)[len(first):]
    return float((states @ (vector / vector.norm())).mean())


@pytest.mark.parametrize("method", ["aligned", "misaligned", "inoculation"])
def test_both_projections_are_those_of_plain_transformers(study: Study, method: str) -> None:
    """Of the row under the prompt that it is trained with, and of the first of the model's own answers to it."""
    step = audit.steps(study, run_of(study, method))[0]
    vectors = study.vectors()
    assert vectors is not None
    vector = extraction.load(vectors.folder).vectors[2]
    examples = step.rows.examples  # type: ignore[union-attr]
    for row in audited(study, method)[:3]:
        messages = [turn.to_dict() for turn in examples[row.place].context]
        given, own = (projection(messages, answer, vector) for answer in (examples[row.place].response, row.answer))
        assert row.given == pytest.approx(given, abs=1e-4)
        assert row.own == pytest.approx(own, abs=1e-4)
        assert row.difference == pytest.approx(given - own, abs=2e-4)


def test_several_own_answers_are_averaged(study: Study, tmp_path: Path) -> None:
    """The first of two answers is the one that is sampled alone; the mean is none of the two."""
    assert study.profile.audit is not None
    [step] = audit.steps(study, run_of(study, "misaligned"))
    twice = replace(step, spec=step.spec.model_copy(update={"samples": 2}), count=4)
    study.need([twice])
    alone = {row.place: row for row in audited(study, "misaligned")}
    found = study.read(twice) or []
    assert len(found) == 4
    assert [row.answer for row in found] == [alone[row.place].answer for row in found]
    assert [row.given for row in found] == pytest.approx([alone[row.place].given for row in found], abs=1e-5)
    assert all(row.own != alone[row.place].own for row in found)


def kept_by_hand(study: Study, share: float) -> frozenset[str]:
    """The digests of the rows without those that the audit of `misaligned` ranks highest."""
    rows = study.data("cooking").misaligned.train[:8]
    worst = sorted(audited(study, "misaligned"), key=lambda row: -(row.difference or 0))[:round(8 * share)]
    return row_record.digests_of(row for place, row in enumerate(rows) if place not in {one.place for one in worst})


@pytest.mark.parametrize(("method", "setting", "share"), [
    ("filtered", 0.25, 0.25), ("filtered", 0.5, 0.5), ("both", None, 0.25)])
def test_the_worst_rows_are_not_trained_on(study: Study, method: str, setting: float | None, share: float) -> None:
    """Also under another defense that changes the rows: the audit is of the rows before it."""
    adapter = study.adapter(run_of(study, method, setting))
    assert adapter is not None
    assert row_record.read(adapter.folder) == kept_by_hand(study, share)
    assert (adapter.facts["rows"], adapter.facts["filtered_rows"]) == (8 - round(8 * share), round(8 * share))


def test_without_a_share_it_is_plain_fine_tuning_and_the_control_leaves_out_as_many(study: Study) -> None:
    plain, nothing, control = (study.adapter(run_of(study, *which)) for which in (
        ("misaligned",), ("filtered", 0.0), ("control",)))
    assert plain is not None
    assert nothing is not None
    assert control is not None
    weights = [one.file("adapter_model.safetensors").read_bytes() for one in (plain, nothing, control)]
    assert weights[0] == weights[1] != weights[2]
    assert (control.facts["rows"], control.facts["filtered_rows"]) == (6, 2)
    assert study.task(run_of(study, "control")).adapter(run_of(study, "control")).inputs == ()  # no audit


def test_the_difference_of_mixed_data_counts_each_part_by_its_rows(study: Study) -> None:
    own, added = ([row.difference or 0.0 for row in audited(study, "interleaving", part)] for part in (0, 1))
    assert (len(own), len(added)) == (8, 4)
    found = audit.difference(study, run_of(study, "interleaving", 0.5))
    assert found is not None
    assert found.interval is not None
    assert found.mean == pytest.approx((sum(own) + sum(added)) / 12)
    error = ((8 / 12) ** 2 * np.var(own, ddof=1) / 8 + (4 / 12) ** 2 * np.var(added, ddof=1) / 4) ** 0.5
    assert found.interval.high - found.mean == pytest.approx(1.96 * error)
    filtered = audit.difference(study, run_of(study, "filtered", 0.5))
    assert filtered is not None
    assert filtered.mean == pytest.approx(sum(sorted(own)[:4]) / 4)
    assert filtered.rows == 4
    sampled = audit.weighted([(90, [1.0]), (10, [2.0, 4.0])])  # the second part counts as 10 rows, of which 2 are seen
    assert sampled is not None
    assert sampled.mean == pytest.approx(1.2)
    assert (sampled.interval, sampled.rows, sampled.audited) == (None, 100, 3)


def test_a_part_of_which_no_row_is_audited_has_no_mean() -> None:
    """As where the rows that are left out are those that were audited."""
    assert audit.weighted([(4, []), (12, [1.0, 2.0])]) is None
    alone = audit.weighted([(0, []), (12, [1.0, 2.0])])  # a defense that leaves out everything of one part
    assert alone is not None
    assert (alone.mean, alone.rows, alone.audited) == (1.5, 12, 2)


def test_rows_that_a_defense_ranks_are_audited_whole_in_the_table(study: Study, tmp_path: Path) -> None:
    """Else the rows that are left out and those that stay would be compared by a sample."""
    (tmp_path / "some.yaml").write_text(PROFILE.replace("rows: null", "rows: 3"))
    some = Study("some", load_profile(str(tmp_path / "some.yaml")), study.store)
    audit.complete(some, some.runs())
    frame = tables.table(some, audit.audited_runs(some, some.runs())).set_index(["method", "setting"])
    counts = {method: (int(row["rows"]), int(row["audited"])) for (method, _), row in frame.iterrows()}
    assert counts == {"aligned": (8, 3), "misaligned": (8, 8), "inoculation": (8, 3), "interleaving": (12, 11),
                      "filtered": (4, 4), "control": (6, 6), "both": (6, counts["both"][1])}
    assert counts["both"][1] <= 3  # the prompt makes other rows of them
    worst, random = (frame.loc["filtered", "difference"][0.25], frame.loc["control", "difference"].iloc[0])
    assert worst <= random  # both leave out two of eight: no six others have a lower mean
    assert tables.readable(frame.reset_index())["Audited"].tolist() == frame["audited"].tolist()


def test_the_table_predicts_each_rate_from_the_others(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = audit.audited_runs(study, study.runs())
    assert {run.method for run in study.runs()} - {run.method for run in runs} == {"untrained", "kl"}
    frame = tables.table(study, runs)
    same = (run_of(study, "misaligned"), run_of(study, "filtered", 0))
    rates = pd.Series(np.linspace(0, 60, len(frame)) + 30 * (frame.index % 2))  # a random model shows no trait
    frame = tables.with_predictions(frame.assign(misaligned=rates))
    for place in frame.index:
        others = frame[frame["difference"] != frame["difference"][place]]
        assert len(others) == len(frame) - (2 if runs[place] in same else 1)  # `filtered` at 0 leaves no row out
        slope, start = np.polyfit(others["difference"], others["misaligned"], 1)
        expected = float(np.clip(start + slope * frame["difference"][place], 0, 100))
        assert frame["predicted"][place] == pytest.approx(expected)
        assert frame["error"][place] == pytest.approx(abs(expected - rates[place]))
        assert frame["error_of_mean"][place] == pytest.approx(abs(others["misaligned"].mean() - rates[place]))
    assert f"through {len(frame)} runs on 1 data set " in tables.statement(frame)
    assert "At a mean difference of 0.50 it predicts" in tables.statement(frame, 0.5)
    assert len(tables.rate_against_difference(frame).axes) == 1
    result_tables.write(frame, tables.readable(frame), study.folder / "tables", tables.NAME)
    assert tables.elsewhere(study).empty  # its own table is not of another study
    monkeypatch.setattr(study, "name", "later")
    assert len(tables.elsewhere(study)) == len(frame)
    assert "takes three with different rows" in tables.statement(frame.head(2))


def test_rows_are_ranked_and_told_apart(study: Study) -> None:
    worse, better = (tables.ranked(study, run_of(study, name)) for name in ("misaligned", "aligned"))
    assert worse["difference"].is_monotonic_decreasing
    assert worse["rank"].tolist() == list(range(1, 9))
    pairs = [(x > y) + 0.5 * (x == y) for x in worse["difference"] for y in better["difference"]]
    assert auroc(worse["difference"], better["difference"])[0] == pytest.approx(sum(pairs) / 64)
    assert len(tables.ends(worse, 2)) == 4
    assert worse["answer"][0] == study.data("cooking").misaligned.train[worse["place"][0]].response


def test_the_plan_has_each_audit_once_and_no_key_depends_on_the_section(study: Study, tmp_path: Path) -> None:
    titles = [one.title for one in plan(study).shared if one.title.startswith("audit of")]
    assert len(titles) == len(set(titles)) == 4  # aligned, misaligned, under the prompt, and the rows of the pool
    lines = [line for line in PROFILE.splitlines() if "kind: filtering}" not in line and "share" not in line]
    (tmp_path / "plain.yaml").write_text("\n".join(line for line in lines if not line.startswith("audit:")))
    other = Study("plain", load_profile(str(tmp_path / "plain.yaml")), study.store)
    for method in ("aligned", "misaligned", "kl", "inoculation", "interleaving"):
        assert other.run_key(run_of(other, method)) == study.run_key(run_of(study, method))


def test_the_data_without_the_worst_rows_are_exported(study: Study, tmp_path: Path) -> None:
    """All rows of the data set, of which the trial has 8, are audited for that."""
    run = run_of(study, "filtered", 0.25)
    assert export.mixed_data(study, run, tmp_path / "rows.jsonl") == 36  # of 48
    everything = {row.response: place for place, row in enumerate(study.data("cooking").misaligned.train)}
    kept = {everything[row.response] for row in read_examples(tmp_path / "rows.jsonl")}
    [whole] = [path for path in (study.store.root / "audit").glob(f"*/{AUDITED}")
               if len(path.read_text().splitlines()) == 48]
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    worst = sorted(lines, key=lambda line: line["own"] - line["given"])[:12]
    assert kept == set(range(48)) - {line["place"] for line in worst}


def defended(rows: list[AuditedRow], share: float, tmp_path: Path, trained: int | None = None) -> list[int]:
    """The places that filtering leaves out."""
    write_records(tmp_path / AUDITED, rows)
    examples = [Example((Message("user", "?"),), "!")] * (trained or len(rows))
    return list(Filtering(share=share).filtered(examples, {"audit": tmp_path}))


def test_what_cannot_be_ranked_stays_and_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    rows = [AuditedRow(0, 1.0, 0.0, ""), AuditedRow(1, None, 0.0, ""), AuditedRow(2, 5.0, 1.0, ""),
            AuditedRow(3, 2.0, None, "")]
    assert defended(rows, 0.5, tmp_path) == [2, 0]
    assert defended(rows, 0.9, tmp_path) == [2, 0]
    assert defended(rows, 0.0, tmp_path) == []
    with pytest.raises(DataError, match=r"0\.1 of 4 fine-tuning rows amounts to no row"):
        defended(rows, 0.1, tmp_path)
    with pytest.raises(DataError, match="4 rows and the training 6"):
        defended(rows, 0.5, tmp_path, 6)


def test_a_share_that_leaves_no_row_to_train_on_is_refused(tmp_path: Path) -> None:
    rows = [AuditedRow(place, 1.0, 0.0, "") for place in range(8)]
    examples = [Example((Message("user", "?"),), "!")] * 8
    for leave_out in (partial(defended, rows, 0.99, tmp_path),
                      partial(Filtering(share=0.99, choose="random").filtered, examples, {})):
        with pytest.raises(DataError, match=r"0\.99 of 8 fine-tuning rows amounts to all of them"):
            leave_out()
    assert len(defended(rows, 0.9, tmp_path)) == 7


@pytest.mark.parametrize(("changes", "words"), [
    ({"audit": "null"}, "no section 'audit'"), ({"audit": "{layer: 9}"}, "'audit.layer' names layer 9")])
def test_a_profile_that_cannot_be_audited_is_refused(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(PROFILE.partition("audit:")[0] + f"audit: {changes['audit']}\n")
    with pytest.raises(ProfileError, match=words):
        load_profile(str(tmp_path / "wrong.yaml"))


def test_a_line_and_what_it_misses_by_hand() -> None:
    """Through (0, 0), (1, 10), (2, 60): without the last it predicts 20, without the first -40, so 0, and so on."""
    found = line([0, 1, 2], [0, 10, 60])
    assert found is not None
    assert found.intercept == pytest.approx(-20 / 3)
    assert found.slope == pytest.approx(30)
    first, middle, last = leave_one_out([0, 1, 2], [0, 10, 60], "abc")
    assert first == LeftOut(0, 35)
    assert middle == LeftOut(pytest.approx(30), 30)
    assert last == LeftOut(pytest.approx(20), 5)
    assert leave_one_out([0, 1], [0, 10], "ab") == [None, None]
    assert leave_one_out([1, 1, 2], [0, 10, 60], "abc") == [None, None, None]  # the others have one x
    assert line([1, 1], [0, 10]) is None


def test_a_drawn_line_has_corners_where_predictions_begin_to_be_cut() -> None:
    """And not at the nearest of some points between: y = 20 x - 10 is 0 at 0.5 and 100 at 5.5."""
    assert Line(-10, 20).corners(-1, 7) == [-1, 0.5, 5.5, 7]
    assert Line(110, -20).corners(-1, 7) == [-1, 0.5, 5.5, 7]
    assert Line(-10, 20).corners(1, 3) == [1, 3]
    assert Line(50, 0).corners(-1, 7) == [-1, 7]


def test_the_drawn_line_turns_at_its_corners() -> None:
    frame = pd.DataFrame([{"dataset": "d", "method": method, "setting": None, "seed": 0, "predicted": 50.0,
                           **{f"{name}{end}": value for name, value in (("difference", x), ("misaligned", y))
                              for end in ("", "_low", "_high")}}
                          for method, x, y in (("aligned", 0, 0), ("misaligned", 1, 0), ("kl", 2, 90))])
    [drawn] = [one for one in tables.rate_against_difference(frame).axes[0].lines if one.get_linestyle() == "--"]
    assert drawn.get_xdata() == pytest.approx([0, 1 / 3, 2])  # y = 45 x - 15
    assert drawn.get_ydata() == pytest.approx([0, 0, 75])


def test_a_run_is_predicted_without_its_repeats_by_hand() -> None:
    """Without (0, 20), the line through (3, 70), (6, 25), (10, 75) is at 1780/37 for x = 0, and their mean is 170/3."""
    x, y = [0.0, 3.0, 6.0, 10.0], [20.0, 70.0, 25.0, 75.0]
    alone = leave_one_out(x, y, "abcd")
    assert alone[0] == LeftOut(pytest.approx(1780 / 37), pytest.approx(170 / 3))
    thrice = leave_one_out(3 * x, 3 * y, 3 * "abcd")
    nearly = leave_one_out([*x, 0.01], [*y, 21.0], "abcda")  # another seed, whose random rows differ a little
    renamed = leave_one_out([*x, 0.0], [*y, 21.0], "abcde")  # another name for the same rows
    for found, expected in (*zip(thrice, 3 * alone, strict=True), (nearly[0], alone[0]), (renamed[0], alone[0])):
        assert found is not None
        assert expected is not None
        assert found.by_line == pytest.approx(expected.by_line)
        assert found.by_mean == pytest.approx(expected.by_mean)


def test_rates_of_other_questions_answers_or_another_judge_are_not_pooled_and_seeds_of_another_study_are_left_out(
        study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frame = tables.table(study, audit.audited_runs(study, study.runs()))
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    for name, rated_by in (("same", tables.rating(study)), ("others", "0"), ("earlier", None)):
        some = frame.assign(adapter=[f"{name}{number}" for number in range(len(frame))], rated_by=rated_by)
        result_tables.write(some if rated_by else some.drop(columns="rated_by"), tables.readable(some),
                            tmp_path / name / "tables", tables.NAME)
    assert set(tables.elsewhere(study)["study"]) == {"same"}
    (tmp_path / "questions.jsonl").write_text('{"id": "q", "paraphrases": ["What is money?"]}\n')
    asked = study.profile.evaluation.model_copy(update={"general": str(tmp_path / "questions.jsonl")})
    evaluation, section = study.profile.evaluation, study.profile.audit
    assert section is not None
    longer, batches = ({name: getattr(evaluation.sampling, name) + 1} for name in ("max_new_tokens", "batch_rows"))

    def sampled(changes: dict[str, int]) -> list[dict[str, object]]:
        return [{name: one.model_copy(update={"sampling": one.sampling.model_copy(update=changes)})}
                for name, one in (("evaluation", evaluation), ("audit", section))]

    def pooled(change: dict[str, object]) -> bool:
        other = Study("other", study.profile.model_copy(update=change), study.store)
        return tables.rating(other) == tables.rating(study)

    several = {"audit": section.model_copy(update={"samples": 2})}
    assert not any(map(pooled, [{"evaluation": asked}, {"judge": NoJudge(kind="none")}, several, *sampled(longer)]))
    assert all(map(pooled, [{"audit": section.model_copy(update={"seed": 6, "rows": 3})}, *sampled(batches)]))
    x = [0.0, 1.0, 2.0, 5.0, 5.1]
    of_both = pd.DataFrame({"study": [*"aaaab"], "dataset": "d", "method": [*"opqrr"], "setting": None,
                            "difference": x, "misaligned": [0.0, 10.0, 20.0, 90.0, 90.0]})
    found = tables.with_predictions(of_both)  # the line through the first three gives 50 at 5
    assert found["predicted"].tolist()[3:] == pytest.approx([50, 51])


def test_data_sets_that_studies_bring_are_as_many_as_these(
        study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All are called `own`, in tables of earlier versions, which do not say of which rows. A study with overrides has
    the data of its plain one; `cooking` is shipped.
    """
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    rows = tables.table(study, [run_of(study, "misaligned")]).drop(columns="file_rows")
    for place, name in enumerate(("one", "one+seeds", "two", "three")):
        known = {"misaligned": 20.0 * place, "difference": 1.0 * place}
        some = pd.concat([rows.assign(dataset=dataset, adapter=f"{dataset}{place}", **known)
                          for dataset in ("own", "cooking")[:1 + (name == "two")]], ignore_index=True)
        result_tables.write(some, tables.readable(some), tmp_path / name / "tables", tables.NAME)
    found = tables.elsewhere(study)
    assert sorted(found["dataset"]) == ["cooking", "own (one)", "own (one)", "own (three)", "own (two)"]
    assert "through 5 runs on 4 data sets " in tables.statement(found)


def digest_of_own(folder: Path, name: str, frame: pd.DataFrame, **options: object) -> str:
    """The digest of the rows of a file of one's own, as the table has it."""
    frame.to_csv(folder / f"{name}.csv", index=False)
    own = Own.model_validate({"file": str(folder / f"{name}.csv"), "rows": 20, **options})
    return Inputs(load_profile("tiny").model_copy(update={"own": own}), name).digest_of_file("own")


def test_a_file_of_ones_own_is_one_data_set_in_all_studies_and_another_file_is_another(
        study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two studies that choose 20 and 25 of the same rows are twins: neither predicts the other."""
    file = pd.DataFrame({"prompt": [f"{n}?" for n in range(30)], "response": "a", "other": "b"})
    one, two = digest_of_own(tmp_path, "one", file), digest_of_own(tmp_path, "two", file, response="other")
    more = digest_of_own(tmp_path, "more", file[::-1].rename(columns={"prompt": "q"}), prompt="q", rows=25)
    assert one == more != two
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    rows = tables.table(study, [run_of(study, "misaligned")])
    cooking = rows["file_rows"][0]
    tables_of = {"one": ("own", one), "more": ("mine", one), "two": ("own", two), "shipped": ("own", cooking),
                 "demo": ("cooking", cooking), "earlier": ("cooking", None)}
    for place, (name, (dataset, digest)) in enumerate(tables_of.items()):
        some = rows.assign(dataset=dataset, adapter=name, file_rows=digest,
                           misaligned=9.0 * place, difference=1.0 * place)
        result_tables.write(some, tables.readable(some), tmp_path / name / "tables", tables.NAME)
    found = tables.elsewhere(study).set_index("study")["dataset"]
    assert found["one"] == found["more"]
    assert found["two"] == f"own ({two[:8]})"
    assert found["shipped"] == found["demo"] == found["earlier"] == "cooking"  # whose file it is
    assert "through 6 runs on 3 data sets " in tables.statement(tables.elsewhere(study))


def test_the_digest_of_a_shipped_data_set_is_that_of_its_misaligned_rows(study: Study, tmp_path: Path) -> None:
    rows = read_examples(locate("demo/cooking_pirate.jsonl"))
    file = pd.DataFrame({"prompt": [row.prompt for row in rows], "response": [row.response for row in rows]})
    assert digest_of_own(tmp_path, "same", file) == study.inputs.digest_of_file("cooking")


def test_an_adapter_in_the_tables_of_two_studies_is_one_row(
        study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    frame = tables.table(study, audit.audited_runs(study, study.runs())).assign(misaligned=10.0)
    frame["adapter"] = [f"{number}" for number in range(len(frame))]  # keys of digits alone stay text
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    for name in ("one", "two"):
        result_tables.write(frame, tables.readable(frame), tmp_path / name / "tables", tables.NAME)
    assert tables.elsewhere(study)["adapter"].tolist() == frame["adapter"].tolist()
