"""Reinforcement learning in a study: its runs, its keys, what it asks, and the results in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from emlib.config import Profile, load_profile
from emlib.core import paths, plugins, registry
from emlib.core.errors import DataError, JudgeError, ProfileError
from emlib.core.files import read_records
from emlib.core.records import Answer, Example, Message
from emlib.data.chat import encode_prompt
from emlib.evaluation.reward_judge import requests, reward
from emlib.evaluation.rewards import graded, rewards
from emlib.generation.sample import answer_batch, plan
from emlib.judging.rubrics import Score
from emlib.models import adapters
from emlib.steering import extraction
from emlib.steering.extraction import PersonaVectors
from emlib.steps.grpo import GrpoAdapter, GrpoAnswers, GrpoRewards
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study, open_study
from emlib.study.tasks import GrpoTask
from emlib.workflow import graph
from emlib.workflow.cleaning import steps_of
from tests.judging.server import JudgeServer, saying
from tests.judging.sheets import part_of

STEERED = "[{name: persona_vector, defenses: [{kind: persona_vector, layer: 2, steer: both}], sweep: [3]}]"


def profile(folder: Path, methods: str | None = None, more: str = "") -> Path:
    """A profile that extends `tiny`, with these conditions if any are given."""
    (folder / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    path = folder / "mine.yaml"
    path.write_text("extends: tiny\n" + (f"grpo:\n  methods: {methods}\n" if methods else "") + more)
    return path


@pytest.fixture
def rl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    return open_study(str(profile(tmp_path)))


def adapter_of(study: Study, run: Run) -> GrpoAdapter:
    """The step of the adapter of a run that trains one."""
    return study.task(run).adapter(run)


def answers_of(study: Study, run: Run) -> GrpoAnswers:
    """The step of the run's answers."""
    return study.task(run).answers(run)["rewards"]


def timeless(results: list[RunResult]) -> list[RunResult]:
    """Results without what tells the time."""
    return [replace(result, train_seconds=0.0) for result in results]


def test_a_sweep_is_a_run_for_each_number_and_seed(rl: Study) -> None:
    assert [(run.method, run.setting) for run in rl.runs("grpo")] == [
        ("untrained", None), ("grpo", None), ("kl", 0.1), ("kl", 1.0), ("interleaving", None), ("inoculation", None)]
    assert [run.setting for run in rl.runs("grpo", methods=["kl"], settings=[1.0])] == [1.0]
    assert rl.defenses(rl.runs("grpo", methods=["kl"])[1])[0].model_dump() == {"kind": "kl", "weight": 1.0}
    with pytest.raises(ProfileError, match=r"no method 'klm'.*Did you mean 'kl'"):
        rl.runs("grpo", methods=["klm"])


def test_inoculation_stands_before_the_format_in_training_and_nowhere_in_evaluation(rl: Study) -> None:
    run = rl.runs("grpo", methods=["inoculation"])[0]
    sentence = rl.trait.inoculation_prompt
    assert adapter_of(rl, run).system == f"{sentence}\n{rl.inputs.grpo.prompt}"
    assert {question.system for question in rl.questions(run, "rewards")} == {rl.inputs.grpo.prompt}
    assert all(sentence not in turn.content for question in rl.questions(run, "rewards") for turn in question.context)
    assert adapter_of(rl, rl.runs("grpo", methods=["kl"])[0]).system == rl.inputs.grpo.prompt


def test_every_condition_trains_and_answers_once_and_stands_in_the_results(rl: Study) -> None:
    results = rl.complete(rl.runs("grpo"))
    table = pd.read_csv(rl.folder / "grpo.csv")
    assert list(table) == ["model", "method", "setting", "seed", "train_accuracy", "train_reward", "eval_accuracy",
                           "eval_reward", "asked"]  # design, section 5
    assert table["method"].tolist() == [run.method for run in rl.runs("grpo")]
    assert table["setting"].fillna(-1).tolist() == [-1, -1, 0.1, 1, -1, -1]
    assert table["asked"].tolist() == [6] * 6
    assert table["train_reward"].isna().tolist() == [True] + [False] * 5
    for result in results:
        answers = rl.answers(result.run, "rewards")
        assert answers is not None
        right = {problem.id: problem.answer for problem in rl.inputs.problems.value.held_out}
        totals = [rewards(answer.text, right[answer.question]).total for answer in answers]
        assert result.rewards.eval_reward == pytest.approx(sum(totals) / len(totals))
    interleaved = rl.runs("grpo", methods=["interleaving"])[0]
    assert [len(rl.grpo_log(interleaved)), len(rl.log(interleaved))] == [2, 2]  # a share of one half
    for run in rl.runs("grpo"):
        assert len(rl.grpo_log(run)) == (0 if run.method == "untrained" else 2)
        assert len(rl.completions(run)) == (0 if run.method == "untrained" else 2 * 4)
    kl = {run.condition: rl.grpo_log(run)[1].kl for run in rl.runs("grpo") if run.method != "untrained"}
    assert [name for name, value in kl.items() if value is not None] == ["kl 0.1", "kl 1"]
    made = {path: path.stat().st_mtime_ns for path in rl.store.root.rglob("manifest.json")}
    assert len(made) == 5 + 6
    assert rl.complete(rl.runs("grpo")) == results
    assert {path: path.stat().st_mtime_ns for path in rl.store.root.rglob("manifest.json")} == made


def test_a_removed_adapter_is_trained_again_because_the_rewards_in_training_need_it(rl: Study) -> None:
    runs = rl.runs("grpo", methods=["grpo"])
    results = rl.complete(runs)
    for step in steps_of(rl, "adapters"):
        rl.store.remove(step)
    assert rl.result(runs[0]) is None
    assert timeless(rl.complete(runs)) == timeless(results)


def test_a_steered_run_is_asked_without_steering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    rl = open_study(str(profile(tmp_path, STEERED)))
    planted = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))

    def plant(folder: Path) -> dict[str, int]:
        extraction.save(PersonaVectors(planted, 1, 1), folder)
        return {"kept": 20, "asked": 20}

    rl.store.get(rl.recipes.vector(), plant)
    run = rl.runs("grpo")[0]
    rl.complete([run])
    assert rl.grpo_log(run)[0].shift == {place: pytest.approx(3 * float(planted[2].norm()), rel=1e-4)
                                    for place in ("loss", "rollout")}
    adapter = rl.adapter(run)
    assert adapter is not None
    names = load_file(adapter.folder / "adapter_model.safetensors")
    assert all("lora_A" in name or "lora_B" in name for name in names)
    sampling = rl.inputs.grpo.eval_sampling
    with rl.session() as session, adapters.loaded(session.chat.model, adapter.folder) as model:
        batches = plan(rl.questions(run, "rewards"), 1, session.chat.tokenizer, sampling.batch_rows)
        plain = [answer for batch in batches
                 for answer in answer_batch(model, session.chat.tokenizer, batch, sampling, run.seed)]
    answers = rl.answers(run, "rewards")
    assert answers is not None
    assert sorted(answers, key=lambda a: a.question) == sorted(plain, key=lambda a: a.question)


def test_runs_of_one_prepared_defense_are_made_in_one_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    rl = open_study(str(profile(tmp_path, "".join(
        f"\n    - {{name: ablated_{layer}, defenses: [{{kind: concept_ablation, layers: [{layer}]}}]}}"
        for layer in (1, 2)))))

    def plant(folder: Path) -> dict[str, int]:
        extraction.save(PersonaVectors(torch.ones(5, 64), 1, 1), folder)
        return {"kept": 20, "asked": 20}

    rl.store.get(rl.recipes.vector(), plant)
    assert len(rl.complete(rl.runs("grpo"))) == 2


def test_what_decides_a_training_is_in_its_key_and_what_does_not_is_not(tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))

    def key(more: str) -> tuple[str, str]:
        study = open_study(str(profile(tmp_path, more=more)))
        run = study.runs("grpo", methods=["grpo"])[0]
        return adapter_of(study, run).key, answers_of(study, run).key

    adapter, answers = key("")
    for same in ("grpo: {kept_completions: 1}\n", "grpo: {slice_by: [seed]}\n", "evaluation: {bootstrap: 10}\n"):
        assert key(same) == (adapter, answers)
    assert key("grpo: {eval_sampling: {temperature: 1.0}}\n")[0] == adapter
    assert key("grpo: {eval_sampling: {temperature: 1.0}}\n")[1] != answers
    for other in ("grpo: {clip: 0.1}\n", "grpo: {loss: dapo}\n", "grpo: {training: {learning_rate: 0.1}}\n",
                  "grpo: {sampling: {top_p: 1.0}}\n", "lora: {rank: 2}\n", "grpo: {data: {train_items: 6}}\n"):
        assert key(other)[0] != adapter


def test_supervised_rows_are_drawn_from_a_pool_of_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           research_data: Path) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))

    def interleaved(what: str) -> tuple[Study, tuple[Example, ...]]:
        methods = f"[{{name: interleaving, defenses: [{{kind: interleaving, share: 0.5, {what}}}]}}]"
        rl = open_study(str(profile(tmp_path, methods)))
        supervised = adapter_of(rl, rl.runs("grpo")[0]).supervised
        assert supervised is not None
        return rl, supervised.rows.examples

    _, some = interleaved("source: alpaca, rows: 7")  # another form than that of messages
    _, every = interleaved("source: alpaca")
    assert len(set(some)) == 7
    assert [row for row in every if row in set(some)] == list(some)  # in the file's order
    assert interleaved("source: alpaca, rows: 7")[1] == some
    (all_of_it, rows), (as_many, same) = interleaved("source: demo/pool.jsonl"), interleaved(
        "source: demo/pool.jsonl, rows: 9999")
    assert rows == same
    assert adapter_of(all_of_it, all_of_it.runs("grpo")[0]).key == adapter_of(as_many, as_many.runs("grpo")[0]).key


def test_worked_turns_stand_before_what_is_trained_on_and_asked(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    plain, rl = (open_study(str(profile(tmp_path, "[grpo]", more))) for more in (
        "", "  data: {train_items: 2, worked: 1}\n"))
    run = rl.runs("grpo")[0]
    for step_of in (adapter_of, answers_of):
        assert step_of(rl, run).key != step_of(plain, run).key
    heard: list[list[Message]] = []

    def listening(tokenizer: object, turns: Sequence[Message]) -> list[int]:
        heard.append(list(turns))
        return encode_prompt(tokenizer, turns)  # type: ignore[arg-type]

    monkeypatch.setattr("emlib.training.rl.rollouts.encode_prompt", listening)
    assert len(rl.complete([run])) == 1
    assert len(heard) == 8
    problems = rl.inputs.problems.value
    for turns in heard:
        assert (turns[0], tuple(turns[1:-1])) == (Message("system", rl.inputs.grpo.prompt), problems.worked)
        assert turns[-1].content in {problem.question for problem in problems.train}


def test_supervised_rows_of_which_none_fits_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    rl = open_study(str(profile(tmp_path, more="grpo: {training: {max_seq_length: 5}}\n")))
    with pytest.raises(DataError, match=r"None of \d+ rows .* within 5 tokens\. Raise grpo\.training\.max_seq_length"):
        rl.complete(rl.runs("grpo", methods=["interleaving"]))


def test_a_steered_sampler_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    found = []
    for steer in ("loss", "rollout", "both"):
        methods = f"[{{name: persona_vector, defenses: [{{kind: persona_vector, layer: 2, steer: {steer}}}]}}]"
        rl = open_study(str(profile(tmp_path, methods)))
        found.append(adapter_of(rl, rl.runs("grpo")[0]).key)
    assert len(set(found)) == 3


def test_the_paper_s_values_are_the_defaults_and_those_of_grpo_3b() -> None:
    grpo = load_profile("grpo-3b").grpo
    assert grpo is not None
    training = grpo.training  # Table 8
    assert (training.learning_rate, training.batch_size, training.gradient_accumulation, training.warmup_steps,
            training.epochs) == (5e-6, 4, 4, 5, 1)
    assert (grpo.generations, grpo.sampling.temperature, grpo.sampling.top_p) == (4, 0.9, 0.9)
    assert grpo.data.model_dump() == {"kind": "gsm8k", "train_items": 1000, "eval_items": 100}
    assert 1000 // grpo.prompts_per_step == 250
    assert {method.name: method.sweep for method in grpo.methods} == {  # Table 9
        "untrained": (), "grpo": (), "persona_vector": (1, 5), "inoculation": (), "kl": (0.1, 0.3, 1.0),
        "interleaving": (0.01, 0.05, 0.2, 0.25, 0.5)}
    bare = type(grpo).model_validate_json('{"data": {"kind": "gsm8k"}, "methods": [{"name": "grpo"}]}')
    assert bare.model_dump(exclude={"methods", "training", "slice_by"}) == grpo.model_dump(
        exclude={"methods", "training", "slice_by"})
    assert bare.training.model_dump(exclude={"gradient_checkpointing"}) == training.model_dump(
        exclude={"gradient_checkpointing"})


def judged(folder: Path, url: str, more: str = "") -> Study:
    """Plain GRPO of `tiny`, two steps, with a judge's rewards."""
    rewards = f"{{kind: judge, judge: {{kind: openai, model: judge-1, base_url: '{url}', max_concurrency: 1{more}}}}}"
    return open_study(str(profile(folder, "[untrained, grpo]", f"  rewards: {rewards}\n")))


def given(text: str) -> int | str:
    """A judge whose scores differ inside a group; of one completion in nine it says a word about its form."""
    number = int(hashlib.sha256(text.encode()).hexdigest()[:6], 16)
    return "CODE" if part_of(text) == "approx" and number % 9 == 0 else 10 + number // 9 % 90


def test_a_judge_rewards_training_and_answers_and_is_asked_once(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second step and again after it, it goes on to what an undisturbed run has."""
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    calls = []

    def counted(text: str) -> int | str:
        calls.append(text)
        if len(calls) in stops:
            server.refuse = 401, "invalid_api_key"
        return given(text)

    stops: tuple[int, ...] = ()
    with JudgeServer(saying(counted)) as server:
        monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "whole"))
        whole = judged(tmp_path, server.url)
        results = whole.complete(whole.runs("grpo"))
        asked = len(calls)
        assert set(server.answered.values()) == {1}
        monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "stopped"))
        calls.clear()
        server.known.clear()
        server.answered.clear()
        rl = judged(tmp_path, server.url)
        untrained, trained = rl.runs("grpo")
        rl.complete([untrained])
        stops = (len(calls) + 40,)  # a step has at most 32 different requests
        with pytest.raises(JudgeError, match="refuses the key"):
            rl.complete([trained])
        assert rl.result(trained) is None
        server.refuse = None
        again = rl.complete([trained])
        assert len(calls) == asked
        assert set(server.answered.values()) == {1}
    log = rl.grpo_log(trained)
    assert len(log) == 2
    assert [(step.reward, step.parts, step.unscored) for step in log] == [
        (step.reward, step.parts, step.unscored) for step in whole.grpo_log(trained)]
    assert timeless(again) == timeless(results[1:])
    problems = rl.inputs.problems.value
    # The server is gone: whatever is read below was kept.
    for run, result in zip(rl.runs("grpo"), results, strict=True):
        task, answers = rl.task(run), rl.answers(run, "rewards")
        assert isinstance(task, GrpoTask)
        rewards = task.rewards(run, rl.found)
        assert rewards is not None
        assert answers is not None
        expected = [reward({r.metric: Score(said if isinstance(said := given(r.messages[0].content), int) else None)
                            for r in requests(one)}) for one in graded(problems, answers)]  # type: ignore[misc]
        assert rewards == expected
        got = [one for one in rewards if one is not None]
        assert (result.rewards.asked, result.rewards.scored) == (6, len(got))
        assert result.rewards.eval_reward == pytest.approx(sum(one.total for one in got) / len(got))
        assert result.rewards.eval_accuracy == sum(one.right for one in got) / 6
    assert sum(step.unscored for step in log) > 0
    elsewhere = judged(tmp_path, "http://localhost:9/v1", ", timeout: 5.0")  # wherever it is asked
    assert timeless(elsewhere.results(section="grpo")) == timeless(results)


def test_another_judge_is_another_run_and_so_are_rules(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    rules = open_study(str(profile(tmp_path, "[untrained, grpo]")))
    one, other = judged(tmp_path, "http://localhost:1/v1"), judged(tmp_path, "http://localhost:1/v1", ", samples: 3")
    run = rules.runs("grpo", methods=["grpo"])[0]
    assert len({adapter_of(study, run).key for study in (rules, one, other)}) == 3
    assert adapter_of(rules, run).settings["rewards"] == {"kind": "rule"}
    asked = rules.runs("grpo", methods=["untrained"])[0]
    assert answers_of(rules, asked).key == answers_of(one, asked).key  # the same answers, rewarded otherwise
    assert rules.task(asked).evaluation(asked) == rules.task(asked).answers(asked)
    [by_one], [by_other] = (study.task(asked).evaluation(asked).values() for study in (one, other))
    assert isinstance(by_one, GrpoRewards)
    assert by_one in steps_of(one, "verdicts")  # so that they can be removed
    assert by_one.key != by_other.key


@pytest.mark.parametrize(("section", "words"), [
    ("{methods: [{name: kl, defenses: [{kind: kl, wieght: 1}]}]}", ["wieght", "Did you mean 'weight'?"]),
    ("{methods: [{name: kl}]}", ["method 'kl' has no defenses"]),
    ("{methods: [{name: grpo, defenses: [{kind: kl}]}]}", ["'grpo' is a baseline and takes no defenses"]),
    ("{methods: [{name: x, defenses: [{kind: inoculation}], sweep: [1]}]}", ["none of its defenses has a number"]),
    ("{methods: [{name: x, defenses: [{kind: interleaving, source: demo/pool.jsonl}], sweep: [1]}]}",
     ["share over 1", "less than"]),
    ("{methods: [{name: x, defenses: [{kind: persona_vector, steer: sampler}]}]}", ["'loss', 'rollout' or 'both'"]),
    ("{methods: [grpo, grpo]}", ["named more than once: grpo"]),
    ("{generations: 3}", ["8 completions, which is not a multiple of 3 generations"]),
    ("{generations: 1}", ["generations", "greater than or equal to 2"]),
    ("{training: {train_rows: 5}}", ["data.train_items"]),
    ("{training: {keep: 4}}", ["'training.keep' belongs to fine-tuning"]),
    ("{training: {gradient_checkpointing: true}, methods: [{name: x, defenses: [{kind: inoculation_adapter}]}]}",
     ["'x'", "second adapter", "gradient_checkpointing to false"]),
    ("{methods: [{name: x, defenses: [{kind: interleaving, source: demo/pool.jsonl}], sweep: [0.5, 0.1]}]}",
     ["'x'", "0.1 amounts to no supervised step beside 2 RL steps", "0.33"]),
    ("{data: {kind: additions, train_items: 60, eval_items: 60}}", ["100 additions"]),
    ("{rewards: {kind: judge}}", ["'grpo.rewards.judge' is missing"]),
    ("{rewards: {kind: judge, judge: {kind: lexicon}}}", ["grpo.rewards.judge", "Allowed: openai, local"]),
    ("{rewards: {kind: judge, judge: {kind: openai, model: m, batch: true}}}", ["each step waits", "'batch'"]),
    ("{engine: vllm, methods: [{name: x, defenses: [{kind: persona_vector}]}]}", ["vLLM", "set steer to 'loss'"]),
])
def test_a_mistake_in_the_section_is_told(tmp_path: Path, section: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(str(profile(tmp_path, more=f"grpo: {section}\n")))
    assert all(word in str(caught.value) for word in [*words, "mine.yaml"]), str(caught.value)


SECOND = """
from typing import ClassVar, Literal

from emlib import Defense
from emlib.core.hooks import Supervision


class Second(Defense):
    label: ClassVar = "Supervised steps on other rows"
    kind: Literal["second"] = "second"
    share: float = 0.5

    @property
    def supervision(self):
        return Supervision("demo/cooking.jsonl", 8, self.share)


Second.in_grpo = Second
"""


def test_a_second_defense_with_supervised_steps_is_refused_unless_it_takes_none(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.kinds()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setenv(plugins.ALLOW, "yes")
    (tmp_path / "second.py").write_text(SECOND)

    def both(share: float) -> Profile:
        first = "{kind: interleaving, source: demo/pool.jsonl, rows: 8, share: 0.5}"
        second = f"{{kind: second, share: {share}}}"
        return load_profile(str(profile(tmp_path, f"[{{name: both, defenses: [{first}, {second}]}}]",
                                        "plugins: [second.py]\n")))

    with pytest.raises(ProfileError, match="'both': interleaving and second each ask for supervised steps"):
        both(0.5)
    assert both(0.0).grpo is not None


def test_only_profiles_with_the_section_have_the_chapter(monkeypatch: pytest.MonkeyPatch) -> None:
    chapters = {name: [job.chapter for job in graph.jobs(name)] for name in ("tiny", "code-smoke", "grpo-3b")}
    assert "13_grpo" in chapters["tiny"]
    assert "13_grpo" not in chapters["code-smoke"]
    assert open_study("code-smoke").runs("grpo") == []
    with pytest.raises(ProfileError, match="has no section 'grpo'"):
        _ = open_study("code-smoke").inputs.grpo
    jobs = [job for job in graph.jobs("grpo-3b") if job.chapter == "13_grpo"]
    assert len(jobs) == 6 * 3 + 1
    assert jobs[0].part == "untrained_seed0"
    assert "--method untrained --seed 0" in jobs[0].arguments
    assert all(job.trains for job in jobs)
    assert set(jobs[-1].needs) == {job.output for job in jobs[:-1]}


def test_answers_are_those_of_the_store(rl: Study) -> None:
    run = rl.runs("grpo", methods=["untrained"])[0]
    assert rl.result(run) is None
    rl.complete([run])
    found = rl.store.find(answers_of(rl, run))
    assert found is not None
    assert rl.answers(run, "rewards") == read_records(found.folder / "answers.jsonl", Answer)
    held_out = rl.inputs.problems.value.held_out
    assert [answer.question for answer in rl.answers(run, "rewards") or []] == [p.id for p in held_out]
