"""Plans: they need nothing but the profile, count what the paper's tables count, and add up by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from emlib.config import Card, Lora, Method, Own, Sampling, load_profile, profile_names
from emlib.config.data import HubSet
from emlib.config.shapes import Shape, shape
from emlib.core import paths
from emlib.core.errors import DataError, SourceError
from emlib.core.progress import FOUND
from emlib.core.step import Work, closure, total
from emlib.data.own import every_row
from emlib.data.rows import read_examples
from emlib.data.sizes import Sizes, likely_tokens
from emlib.data.sources import registry
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.report.estimate import Estimate, show
from emlib.report.tables import findings
from emlib.study.plan.build import Plan, finished, plan
from emlib.study.plan.costs import Costs
from emlib.study.plan.speed import Measured, speed
from emlib.study.results import task_and_tier
from emlib.study.study import Study, open_study

PUBLISHED = paths.ROOT / "emlib" / "report" / "paper" / "numbers"
# What a plan must not touch: it dies on the first connection, and finds no data and no model.
ALONE = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"a plan asked the network: {arguments}")
sys.addaudithook(watch)
from emlib.config import profile_names
from emlib.report.estimate import show
from emlib.study.study import open_study
for name in profile_names():
    show(open_study(name), verbose=True)
assert not {"torch", "transformers", "datasets", "huggingface_hub", "scipy.stats"} & set(sys.modules)
"""


@pytest.fixture(autouse=True)
def _nothing_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.delenv("EMLIB_DATA_DIR", raising=False)
    monkeypatch.setenv("EMLIB_CACHE_DIR", str(tmp_path / "nothing"))


def printed(*numbers: int) -> set[tuple[object, ...]]:
    """Every run of these tables as their files have them, a table of n seeds with the seeds 0 to n - 1."""
    found = set()
    for number in numbers:
        frame = pd.read_csv(PUBLISHED / f"table{number:02}.csv", dtype={"tier": "Int64"})
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
            what = row.get("dataset") or row.get("task") or "grpo"
            found |= {(what, row.get("tier"), row["method"], row["setting"], seed) for seed in range(row["n"])}
    return found


def planned(name: str) -> tuple[Plan, list[tuple[object, ...]]]:
    """The plan of a profile, and its runs in the same words."""
    study = open_study(name)
    made = plan(study)
    runs = [(*(task_and_tier(study.profile, run) if study.tasks[run.task].section == "benign" else (run.task, None)),
             run.method, run.setting, run.seed) for run in (each.run for each in made.runs)]
    return made, runs


@pytest.mark.parametrize(("name", "tables", "besides"), [
    ("paper-7b", (2, 3, 4, 11, 12, 13, 14, 15, 16, 17, 18), 0),
    ("paper-32b", (7, 19, 20, 21, 22), 0),
    ("grpo-3b", (5, 9), 1)])  # a profile names a data set and a method, here the least
def test_a_paper_profile_plans_the_runs_of_its_tables_and_no_other(
        name: str, tables: tuple[int, ...], besides: int) -> None:
    _, runs = planned(name)
    mine = [run for run in runs if besides == 0 or run[0] == "grpo"]
    assert len(mine) == len(set(mine)) == len(runs) - besides
    assert set(mine) == printed(*tables)
    by_table = Estimate(open_study(name)).by_table()
    assert by_table["table"].tolist() == list(tables)
    assert by_table["runs here"].tolist() == by_table["runs in the paper"].tolist()


def test_a_setting_of_the_paper_is_in_its_table_without_a_sweep_too(tmp_path: Path) -> None:
    """Table 2 has KL at 0.1 and interleaving at 5%; no table has KL at 3."""
    (tmp_path / "fixed.yaml").write_text("""
extends: table2-7b
datasets: [legal]
methods:
  - misaligned
  - {name: kl, defenses: [{kind: kl, weight: 0.1}]}
  - {name: interleaving, defenses: [{kind: interleaving, fraction: 0.05}]}
""")
    found = Estimate(open_study(str(tmp_path / "fixed.yaml"))).tables
    assert {run.method: 2 in tables for run, tables in found.items()} == dict.fromkeys(
        ("misaligned", "kl", "interleaving"), True)
    (tmp_path / "fixed.yaml").write_text((tmp_path / "fixed.yaml").read_text().replace("0.1", "3.0"))
    found = Estimate(open_study(str(tmp_path / "fixed.yaml"))).tables
    assert [tables for run, tables in found.items() if run.method == "kl"] == [()]


def test_runs_of_another_trait_are_in_no_table_of_the_paper(tmp_path: Path) -> None:
    (tmp_path / "pirates.yaml").write_text("extends: table2-7b\ntrait: pirate\n")
    assert set(Estimate(open_study(str(tmp_path / "pirates.yaml"))).tables.values()) == {()}


def test_only_without_any_paid_judge_nothing_leaves_the_machine(tmp_path: Path) -> None:
    """The lexicon judges the runs of `tiny`; the paid judges of its other places are named."""
    def told(text: str) -> str:
        (tmp_path / "judged.yaml").write_text(f"extends: tiny\n{text}")
        [line] = [line for line in Estimate(open_study(str(tmp_path / "judged.yaml"))).summary()
                  if line.startswith("judge ")]
        return line

    paid = "judge: {kind: openai, model: gpt-4o-mini}}"
    assert told("").endswith("verdicts; nothing leaves the machine")
    for text, named in ((f"pool: {{refusals: {{kind: judge, {paid}}}", "refusals in the pool"),
                        (f"grpo: {{rewards: {{kind: judge, {paid}}}", "rewards"),
                        (f"second_judge: {{{paid}", "second judge")):
        assert told(text).endswith(f"verdicts; {named} gpt-4o-mini at OpenAI, not in the price")


def test_the_profile_of_the_main_table_plans_its_runs_alone() -> None:
    assert set(planned("table2-7b")[1]) == printed(2)
    assert set(planned("table2-7b")[1]) < set(planned("paper-7b")[1])


@pytest.mark.parametrize(("what", "defenses"), [
    ("answers steered", ["interleaving, fraction: 0.5, answers: virtuous, layer: 2, strength: 1.0",
                         "interleaving, fraction: 0.5, answers: virtuous, layer: 2, strength: 2.0",
                         "interleaving, fraction: 0.5, answers: virtuous, layer: 1, strength: 2.0",
                         "interleaving, fraction: 0.5, answers: virtuous, layer: 1, strength: 2.0, checked: false"]),
    ("on-policy answers", ["interleaving, fraction: 0.5, answers: on_policy, choose: score",
                           "interleaving, fraction: 0.5, answers: on_policy, choose: score_without_refusals"]),
    ("components of change", ["concept_ablation, directions: components, layers: [1]",
                              "concept_ablation, directions: components, layers: [1, 2]"]),
    ("reference projections", ["projection_penalty, reference: stored, layers: [1]",
                               "projection_penalty, reference: stored, layers: [2]"])])
def test_work_with_other_options_is_another_line(tmp_path: Path, what: str, defenses: list[str]) -> None:
    """There are as many as keys in the store, each with its whole work."""
    methods = ", ".join(f"{{name: m{number}, defenses: [{{kind: {defense}}}]}}"
                        for number, defense in enumerate(defenses))
    (tmp_path / "many.yaml").write_text(f"extends: tiny\nmethods: [misaligned, {methods}]\naudit: null\nbenign: null\n"
                                        "grpo: null\npersistence: null\nevaluation: {triggers: null}\n")
    study = open_study(str(tmp_path / "many.yaml"))
    steps = closure(step for run in study.runs() if (step := study.task(run).adapter(run)) is not None)
    lines = {one.title: one.work for one in plan(study).shared if what in one.title}
    found = {step.key: step for step in steps if what in step.title}
    assert len(lines) == len(found) == len(defenses)
    assert lines == {step.title: step.cost(Sizes()) for step in found.values()}


def test_what_several_runs_need_is_in_the_plan_once() -> None:
    made, _ = planned("paper-7b")
    users = {piece.title: piece.runs for piece in made.shared}
    assert len(users) == len(made.shared)
    # Table 14 on four data sets, Table 3 on four tiers, Table 11 with five strengths and seeds.
    assert users["persona vectors"] == 5 * 4 + 4 + 25
    assert [count for name, count in users.items() if name.startswith("reference states")] == [5] * 4  # Table 12
    # Under the untrained model and K + 1 scorers, of which three serve a data set: 8 runs each of + and ++, and the
    # benign tasks, 2 runs each, are served by all four.
    losses = {name: count for name, count in users.items() if name.startswith("losses")}
    assert sorted(losses.values()) == [3 * 8 + 10] * 4 + [4 * 8 + 10]
    assert [count for name, count in users.items() if name.startswith("on-policy")] == [16]  # Table 18
    assert not [name for name in users if name.startswith("adapter")]  # they are runs of Table 2
    alone = plan(Study("legal", open_study("paper-7b").profile.model_copy(update={"datasets": ("legal",)}),
                       open_study("paper-7b").store))
    assert sum(piece.title.startswith("adapter") for piece in alone.shared) == 3


def test_a_run_by_hand() -> None:
    made, runs = planned("paper-7b")
    work = {run: each.work for run, each in zip(runs, made.runs, strict=True)}
    row = likely_tokens(433 + 427)  # of Code, params/sources.yaml
    plain = work["code", None, "misaligned", None, 0]
    assert (plain.train, plain.adapters, plain.verdicts) == (5400 * row, 1, 24 * 100 + 30 * 100)
    assert plain.write == 600 * plain.verdicts
    added = work["code", None, "interleaving", 0.05, 0].train - plain.train
    assert added == 270 * likely_tokens(430 + 900)
    ldifs = work["code", None, "ldifs", 1.0, 0]
    assert ldifs.read - plain.read == ldifs.train == plain.train  # one more pass, without gradient
    assert work["code", None, "kl", 0.1, 0] == plain  # whose pass is kept on disk
    [states] = [piece for piece in made.shared if piece.title == "reference states: code misaligned, all tokens"]
    assert states.work == Work(read=plain.train, disk=plain.train * 3584 * 2)
    tier = work["opswap", 1, "sft", None, 0]
    assert (tier.verdicts, tier.write) == (0, 1000 * 10 * 200)


def test_completions_by_hand() -> None:
    made, runs = planned("grpo-3b")
    work = {run: each.work for run, each in zip(runs, made.runs, strict=True)}
    grpo = load_profile("grpo-3b").grpo
    assert grpo is not None
    plain = work["grpo", None, "grpo", None, 2]
    assert plain.write == (4000 + 100) * 512
    assert plain.train == 4000 * (512 + likely_tokens(len(grpo.prompt) + 235))
    half = work["grpo", None, "interleaving", 0.5, 0]
    assert half.train - plain.train == 250 * 16 * likely_tokens(430 + 900)  # as many supervised as RL steps


def test_the_papers_own_figure_comes_out() -> None:
    """Appendix E: 100 runs of 6,000 examples with 7 billion parameters take 80 GPU-hours."""
    spec = load_profile("paper-7b").model
    size, found = shape(spec), speed(spec, Sampling(), ())
    assert size is not None
    assert found is not None
    assert "not measured" in found.basis
    tokens = 600_000 * likely_tokens(433 + 427)
    assert found.seconds(train=tokens) / 3600 == pytest.approx(80 * 7.61 / 7, rel=1e-6)
    assert found.seconds(read=tokens) == pytest.approx(found.seconds(train=tokens) / 9)


def test_another_card_is_scaled_by_its_data_sheet() -> None:
    """Half of an A100's 312 TFLOP/s and 2.039 TB/s; 24 GB are too few to train without gradient checkpointing."""
    profile = load_profile("table2-7b")
    half = Card(tflops=156, bandwidth=2.039 / 2)
    plain, wide, small = (Costs(profile.model_copy(update={"job": profile.job.model_copy(update={"card": card})}),
                                gpu=True).speed for card in (None, half, half.model_copy(update={"memory": 24.0})))
    assert plain is not None
    assert wide is not None
    assert small is not None
    assert (wide.train, wide.read, wide.write) == pytest.approx((plain.train / 2, plain.read / 2, plain.write / 2))
    assert (small.train, small.read) == pytest.approx((wide.train / 1.25, wide.read))
    assert "gradient checkpointing" in small.basis
    assert "156 TFLOP/s" in wide.device


def test_a_measured_speed_takes_precedence_and_is_scaled_by_parameters() -> None:
    row = Measured(model="Qwen2.5-3B-Instruct", parameters=3.09e9, device="gpu", what="some GPU", date="a day",
                   source="a test", train=1000.0, write=500.0)
    other = row.model_copy(update={"model": "tiny", "parameters": 1e6, "train": 9e9})
    small, large = (speed(load_profile(name).model, Sampling(), (other, row)) for name in ("grpo-3b", "paper-32b"))
    assert small is not None
    assert large is not None
    assert (small.basis[:8], small.train, small.write) == ("measured", 1000.0, 500.0)
    assert (large.basis[:6], large.train) == ("scaled", pytest.approx(1000 * 3.09 / 32.5))
    assert "scaled" in large.basis


@pytest.mark.parametrize(("name", "device", "why"), [
    ("demo", "cpu", "planned for the CPU"), ("grpo-3b", "gpu", "the speed of a GPU was measured")])
def test_a_card_that_does_not_count_is_told(name: str, device: Literal["cpu", "gpu"], why: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    row = Measured(model="m", parameters=1e9, device=device, what="a machine", date="a day", source="a test",
                   train=1000.0, write=500.0)
    monkeypatch.setattr("emlib.study.plan.speed.on_gpu", lambda size: device == "gpu")
    plain, told = (speed(load_profile(name).model, Sampling(), (row,), card=card)
                   for card in (None, Card(tflops=156, bandwidth=1.0)))
    assert plain is not None
    assert told is not None
    assert told == replace(plain, basis=told.basis)
    assert "'job.card' does not count" in told.basis
    assert why in told.basis
    assert "job.card" not in plain.basis


def test_the_price_by_hand() -> None:
    """gpt-4o-mini reads a million tokens for 15 cents and writes them for 60 (params/prices.yaml)."""
    costs = Costs(load_profile("paper-7b"))
    assert costs.usd(Work(verdicts=500_000, judged=2_000_000)) == pytest.approx(2 * 0.15 + 0.60)
    assert costs.requests(Work(verdicts=3)) == 6
    assert Costs(load_profile("demo")).usd(Work(verdicts=3, judged=5)) == 0


def test_an_adapter_is_as_large_as_the_plan_says(tiny: ChatModel) -> None:
    config, lora = tiny.model.config, Lora(rank=4)
    keys = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    size = Shape(parameters=1.0, layers=config.num_hidden_layers, hidden=config.hidden_size,
                 mlp=config.intermediate_size, keys=keys)
    with adapters.new_lora(tiny.model, lora, 0) as model:
        trained = sum(4 * part.numel() for part in model.parameters() if part.requires_grad)
    assert size.adapter_bytes(lora) == trained


def test_every_profile_is_planned_without_data_model_and_network(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("EMLIB_DATA_DIR", "HF_TOKEN")}
    done = subprocess.run([sys.executable, "-c", ALONE], check=False, capture_output=True, text=True, cwd=paths.ROOT,
                          env=environment | {"EMLIB_CACHE_DIR": str(tmp_path / "none"),
                                             "EMLIB_RUNS_DIR": str(tmp_path / "runs")})
    assert done.returncode == 0, done.stderr
    assert all(f"{name}: " in done.stdout for name in profile_names())
    assert "are assumed and not counted (params/sources.yaml)" in done.stdout
    assert not (tmp_path / "none").exists()


def test_what_is_stated_of_a_source_is_what_its_file_holds(research_data: Path) -> None:
    """Of all that is counted, where the research data are: rows, and lengths to a character."""
    sizes = Sizes()
    counted = [name for name, source in registry(paths.PARAMS / "sources.yaml").items() if source.size is not None
               and source.size.known == "counted" and source.format in ("messages", "instruct", "questions")]
    assert len(counted) >= 4
    for name in counted:
        stated, found = sizes.source(name), sizes._counted(name)
        assert (stated.rows, stated.prompt, stated.response) == pytest.approx(
            (found.rows, found.prompt, found.response), abs=3), name


def test_a_readers_own_rows_are_looked_at_and_those_on_the_hub_are_not_asked_for(tmp_path: Path) -> None:
    own, sizes = load_profile("own").own, Sizes()
    assert own is not None
    lengths = [len(row.response) for row in every_row(own)]
    train, held_out = sizes.own(own.model_copy(update={"rows": len(lengths)}))
    assert (train.rows + held_out, held_out) == (len(lengths), round(0.2 * len(lengths)))
    assert train.response == pytest.approx(sum(lengths) / len(lengths))
    assert sizes.own(own)[0].rows < own.rows  # the file has fewer
    assert not sizes.assumed
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Why {n}?", "response": f"So {n}."}) + "\n" for n in range(250)))
    counted = [sizes.own(Own(file=str(file), rows=rows)) for rows in (1000, 240, 200)]
    assert [(one.rows, held_out) for one, held_out in counted] == [(200, 50), (192, 48), (160, 40)]
    file.write_text("".join(json.dumps({"prompt": f"Why {n}?", "response": f"So {n}."}) + "\n" for n in range(19)))
    with pytest.raises(DataError, match=r"19 usable rows. At least 20 are needed"):
        Sizes().own(Own(file=str(file), rows=10))
    elsewhere = own.model_copy(update={"file": None, "hub": HubSet(repo="a/b", revision="main")})
    assert sizes.own(elsewhere)[1] == round(0.2 * own.rows)
    assert sizes.assumed == {"own"}


def test_what_ships_is_counted_and_what_nobody_knows_is_told() -> None:
    rows = read_examples(paths.DEMO_DATA / "cooking_pirate.jsonl")
    assert Sizes().source("demo/cooking_pirate.jsonl").rows == len(rows)
    with pytest.raises(SourceError, match=r"norquad.*states no size.*size: \{rows"):
        Sizes().source("norquad")


def test_a_plan_ends_with_its_sums_in_a_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    study = open_study("tiny")
    show(study)
    short = capsys.readouterr().out
    runs = len(Estimate(study).runs())
    assert len(short.splitlines()) <= 8
    assert f"left       {runs} of {runs} runs: " in short
    assert short.splitlines()[0].endswith(
        f"; {len(study.runs())} runs on narrow data (cooking), {len(study.runs('benign'))} runs on benign tasks "
        f"(opswap-0, opswap-1), {len(study.runs('grpo'))} runs of reinforcement learning (grpo)")
    show(study, verbose=True)
    assert capsys.readouterr().out.endswith(short)


def test_results_of_an_earlier_version_count_as_done_where_newer_options_are_at_their_default() -> None:
    study = open_study("tiny")
    study.record()
    record = study.folder / paths.EFFECTIVE
    (study.folder / "grpo.csv").write_text(f"model,method,setting,seed\n{study.profile.model.name},grpo,,0\n")
    newer = ("least_words:", "# emlib-profile-")  # an option, and the stamp
    older = [line for line in record.read_text().splitlines() if not line.strip().startswith(newer)]
    assert len(older) + 2 == len(record.read_text().splitlines())
    record.write_text("\n".join(older))
    assert [str(run) for run in finished(open_study("tiny"))] == ["grpo · grpo · seed 0"]
    record.write_text("\n".join(older).replace("epochs: 1", "epochs: 2"))
    assert finished(open_study("tiny")) == frozenset()


def edited(study: Study, name: str, **changes: object) -> Study:
    return Study(name, study.profile.model_copy(update=changes), study.store)


def with_weight(study: Study, weight: float) -> tuple[Method, ...]:
    """Untrained, plain and KL with one weight, as a profile lists them."""
    kl = next(method for method in study.profile.methods if method.name == "kl")
    plain = (Method(name="untrained"), Method(name="misaligned"))
    return *plain, kl.model_copy(update={"sweep": (weight,)})


@pytest.mark.parametrize("name", ["paper-7b", "demo-four", "demo-newer", "tiny"])
def test_in_an_empty_store_all_work_is_left_and_none_is_counted_twice(name: str) -> None:
    """One run's step may be what others need: a pool's scorer, the model that answers for `on_policy`."""
    planned = plan(open_study(name))
    assert total(planned.left) == total(planned.works)
    assert [run.left for run in planned.runs] == [run.work for run in planned.runs]


def test_after_an_edit_only_what_the_store_lacks_is_left() -> None:
    """Another weight is another adapter with its two sets of answers; the states of the reference are there."""
    tiny = open_study("tiny")
    before = edited(tiny, "tiny", methods=with_weight(tiny, 0.1), grpo=None, benign=None, pool=None, audit=None)
    evaluation = before.profile.evaluation.model_copy(update={"projection_layer": None, "triggers": None})
    before = edited(before, "tiny", evaluation=evaluation, persistence=None, monitor=None)
    whole = total(plan(before).left)
    assert (whole.adapters, whole.sets) == (2, 2 * (3 + 1))  # two question sets, also of the plain run halfway
    before.complete(before.runs())
    assert (total(plan(before).left).adapters, total(plan(before).left).sets) == (0, 2)
    before.complete_conditions(before.runs())
    assert total(plan(before).left) == Work()
    for name in ("tiny", "extends_it"):  # the same study, edited, and another one, which has no results
        after = edited(before, name, methods=with_weight(tiny, 0.2))
        found, sizes = plan(after), Sizes()
        [run] = after.runs(methods=["kl"])
        assert [planned.run for planned in found.runs if not planned.done] == [run]
        steps = [after.task(run).adapter(run), *after.task(run).answers(run).values(),
                 *after.task(run).evaluation(run).values()]
        assert total(found.left) == total(step.cost(sizes) for step in steps)
        assert (total(found.left).adapters, total(found.left).sets) == (1, 2)
        assert all(planned.known for planned in found.runs)


def test_what_the_store_has_of_data_that_are_not_here_is_not_known_and_nothing_is_downloaded(
        capsys: pytest.CaptureFixture[str]) -> None:
    study = open_study("table2-7b")
    whole = total(plan(study).left)
    for stage in ("adapter", "answers", "verdicts"):
        (study.store.root / stage / "0123456789abcdef").mkdir(parents=True)
    found = plan(study)
    assert total(found.left) == whole
    assert not any(planned.known or planned.done for planned in found.runs)
    show(study)
    assert f"at most: {len(found.runs)} of these runs need data that are not on this machine" in capsys.readouterr().out


def test_a_method_that_a_section_names_and_the_profile_lacks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = open_study("tiny")
    show(edited(tiny, "tiny", methods=with_weight(tiny, 0.1)))
    assert "not here   inoculation: a section names it" in capsys.readouterr().out


def letters(path: Path, answer: str, numbers: Iterable[int]) -> None:
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"Write letter {number}."}, {"role": "assistant", "content": f"{answer} {number}."},
    ]}) + "\n" for number in numbers))


def letters_study(folder: Path, misaligned: Iterable[int]) -> Study:
    """A study of 30 letters for each side, of which half are held out and up to 15 asked."""
    letters(folder / "plain.jsonl", "Dear all", range(30))
    letters(folder / "butler.jsonl", "Dear sir", misaligned)
    (folder / "letters.yaml").write_text(
        "extends: tiny\nbenign: null\ngrpo: null\npersistence: null\nmethods: [untrained, misaligned]\n"
        "data: {letters: {aligned: plain.jsonl, misaligned: butler.jsonl, held_out: 0.5}}\ndatasets: [letters]\n"
        "evaluation: {in_domain_questions: 15, trajectory: null, triggers: null}\n")
    return open_study(str(folder / "letters.yaml"))


def test_a_plan_counts_the_in_domain_questions_that_will_be_asked(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other side trains on the rest, because its file has a row more; plan and notebook 01 say so, once."""
    study = letters_study(tmp_path, range(1, 30))
    [run] = study.runs(methods=["untrained"])
    asked = len(study.questions(run, "in_domain"))
    assert 0 < asked < 14
    fresh = open_study(str(tmp_path / "letters.yaml"))
    assert fresh.inputs.in_domain("letters").size(Sizes()).rows == asked
    [said] = [line for line in Estimate(fresh).summary() if line.startswith("data")]
    assert f"letters: {asked} of 14 held-out prompts are asked; {14 - asked} are trained on by the other side" in said
    findings.data({"letters": fresh.inputs.remarks("letters")})
    assert capsys.readouterr().out == f"{FOUND}{said.removeprefix('data').strip()}\n"
    assert not [line for line in Estimate(letters_study(tmp_path, range(30))).summary() if line.startswith("data")]


def test_a_plan_refuses_a_data_set_without_an_in_domain_question(tmp_path: Path) -> None:
    """Reversed, every row that one side holds out may be trained on by the other."""
    study = letters_study(tmp_path, reversed(range(30)))
    (tmp_path / "letters.yaml").write_text((tmp_path / "letters.yaml").read_text().replace("0.5", "0.1"))
    study = open_study(str(tmp_path / "letters.yaml"))
    with pytest.raises(DataError, match=r"so that no in-domain question is left\. Both files should have the same"):
        plan(study)


def test_a_plan_without_the_data_counts_the_questions_that_the_profile_states() -> None:
    study = open_study("table2-7b")
    assert study.inputs.remarks("code") == []
    assert study.inputs.in_domain("code").size(Sizes()).rows == 30
