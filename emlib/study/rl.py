"""Reinforcement learning in a study: the runs of a profile's `grpo` section, what each needs, and what came out.

A run is one (method, setting, seed). It needs a trained adapter (but for `untrained`), answers to the held-out
problems, and where a judge rewards these also what it gave; all are artefacts of the study's store. As in
`emlib.study.study`, this module knows keys and reads results, and `emlib.make.rl` does the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from emlib.config import Alternation, Grpo, Inoculation, RlDefense, RlMethod, RuleRewards, Steering
from emlib.core.digests import key_of, of_value
from emlib.core.errors import ProfileError, StoreError
from emlib.core.files import read_records, write_text
from emlib.core.records import Answer, Example, Question
from emlib.core.seeds import generator
from emlib.data.gsm8k import Problem, Problems, load_problems
from emlib.data.pools import read_pool
from emlib.data.sources import key_of_source, locate
from emlib.store.artefacts import Artefact
from emlib.study.interleaving import pool_form
from emlib.study.runs import in_words
from emlib.study.study import Study, digest_of_rows, sliced
from emlib.training.records import StepRecord, read_log
from emlib.training.rl.records import COMPLETIONS, Completion, Rewarded, RlStep, read_steps
from emlib.training.rl.reward_judge import identity as identity_of_rewards
from emlib.training.rl.rewards import Rewards, Scored, by_rule

VERSIONS = {"rl_adapter": 1, "rl_answers": 1, "rl_rewards": 1}
POOL_SEED = 0  # of the draw of supervised rows, the same for every run


@dataclass(frozen=True)
class RlRun:
    """What tells one run from another. `setting` is the method's one swept number, where it has one."""

    model: str
    method: str
    setting: float | None
    seed: int

    @property
    def condition(self) -> str:
        """The method and its setting."""
        return self.method if self.setting is None else f"{self.method} {self.setting:g}"

    def __str__(self) -> str:
        return in_words("grpo", self.condition, None, self.seed)


@dataclass(frozen=True)
class RlResult:
    """What came out of a run; accuracies are shares of 1.

    The two of training are of the completions drawn before the weights that are evaluated; None where nothing was
    trained. `scored` of the `asked` answers have a reward; one without is not right, and is not in the mean reward.
    """

    run: RlRun
    train_accuracy: float | None
    train_reward: float | None
    eval_accuracy: float
    eval_reward: float | None
    asked: int
    scored: int


class RlStudy:
    """The `grpo` section of a study's profile over the study's store."""

    def __init__(self, study: Study) -> None:
        if study.profile.grpo is None:
            raise ProfileError(f"The profile '{study.name}' has no section 'grpo', so there is nothing to reinforce. "
                               "params/demo.yaml has one.")
        self.study, self.settings = study, study.profile.grpo

    @cached_property
    def problems(self) -> Problems:
        """What is trained on, and what is asked afterwards."""
        return load_problems(self.settings.data, locate)

    @cached_property
    def questions(self) -> list[Question]:
        """The held-out problems with the format's prompt, the same for every condition."""
        return self.problems.asked(self.settings.prompt)

    def runs(self, *, methods: Iterable[str] | None = None, settings: Iterable[float] | None = None,
             seeds: Iterable[int] | None = None) -> list[RlRun]:
        """The runs, or the slice of them that is asked for (None: all).

        Raises:
            ProfileError: something is asked for that the profile does not have.
        """
        grpo: Grpo = self.settings
        names = sliced("method", methods, [method.name for method in grpo.methods])
        swept = sliced("setting", settings, sorted({number for method in grpo.methods for number in method.sweep}))
        wanted = sliced("seed", seeds, grpo.seeds)
        return [RlRun(self.study.profile.model.name, name, setting, seed)
                for name in names for setting in self.method(name).sweep or (None,)
                if setting is None or setting in swept for seed in wanted]

    def method(self, name: str) -> RlMethod:
        """The condition of that name."""
        return next(method for method in self.settings.methods if method.name == name)

    def defenses(self, run: RlRun) -> tuple[RlDefense, ...]:
        """What is added to the run's training, with the swept number set."""
        return self.method(run.method).at(run.setting)

    def system(self, run: RlRun) -> str:
        """The system prompt of the run's training: the format's, with inoculation another sentence before it."""
        for defense in self.defenses(run):
            if isinstance(defense, Inoculation):
                return f"{defense.prompt or self.study.trait.inoculation_prompt}\n{self.settings.prompt}"
        return self.settings.prompt

    def supervised_rows(self, run: RlRun) -> tuple[Example, ...]:
        """The rows of the run's supervised steps; none where it has none."""
        sources = [(d.source, d.rows) for d in self.defenses(run) if isinstance(d, Alternation) and d.share > 0]
        return self._drawn(*sources[0]) if sources else ()

    def _drawn(self, source: str, count: int | None) -> tuple[Example, ...]:
        """Rows of a source, in its order: all of them, or `count` drawn by one seed for every condition and run."""
        rows = read_pool(locate(source), pool_form(source)).rows
        if count is None or count >= len(rows):
            return rows
        chosen = sorted(generator(POOL_SEED, "supervised rows").permutation(len(rows))[:count].tolist())
        return tuple(rows[index] for index in chosen)

    def adapter_settings(self, run: RlRun) -> dict[str, Any] | None:
        """Everything that determines the run's adapter; None where nothing is trained."""
        if run.method == "untrained":
            return None
        profile, defenses = self.study.profile, self.defenses(run)
        steered = any(isinstance(defense, Steering) for defense in defenses)
        rows = self.supervised_rows(run)
        worked = {"worked": [turn.to_dict() for turn in self.problems.worked]} if self.problems.worked else {}
        return worked | {
            "version": VERSIONS["rl_adapter"], "model": self.study.model_identity,
            "lora": profile.lora.model_dump(mode="json"),
            "grpo": self.settings.model_dump(mode="json", exclude={
                "data", "methods", "seeds", "prompt", "rewards", "eval_sampling", "kept_completions", "slice_by"}) | {
                    "rewards": identity_of_rewards(self.settings.rewards)},
            "problems": _digest(self.problems.train), "system": self.system(run),
            "defenses": [_key_of(defense) for defense in defenses],
            "vector": key_of("vector", self.study.vector_settings()) if steered else None,
            "supervised": digest_of_rows(rows) if rows else None, "seed": run.seed}

    def answers_settings(self, run: RlRun) -> dict[str, Any]:
        """Everything that determines the run's answers to the held-out problems."""
        adapter = self.adapter_settings(run)
        return {
            "version": VERSIONS["rl_answers"], "model": self.study.model_identity,
            "adapter": None if adapter is None else key_of("rl_adapter", adapter),
            "questions": of_value([asdict(question) for question in self.questions]),
            "sampling": self.settings.eval_sampling.model_dump(mode="json"), "seed": run.seed,
            **self.study.profile.backend.key("generation")}

    def rewards_settings(self, run: RlRun) -> dict[str, Any] | None:
        """Everything that determines what a judge gives for those answers; None by rule, of which nothing is kept."""
        if isinstance(self.settings.rewards, RuleRewards):
            return None
        return {
            "version": VERSIONS["rl_rewards"], "answers": key_of("rl_answers", self.answers_settings(run)),
            "problems": _digest(self.problems.held_out), "rewards": identity_of_rewards(self.settings.rewards)}

    def adapter(self, run: RlRun) -> Artefact | None:
        """The run's trained adapter, if it is there."""
        settings = self.adapter_settings(run)
        return None if settings is None else self.study.store.find("rl_adapter", settings)

    def log(self, run: RlRun) -> list[RlStep]:
        """The run's RL steps; empty where nothing was trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_steps(adapter.folder)

    def supervised_log(self, run: RlRun) -> list[StepRecord]:
        """The run's supervised steps; empty where it took none."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_log(adapter.folder)

    def completions(self, run: RlRun) -> list[Completion]:
        """The completions that were kept while it trained."""
        adapter = self.adapter(run)
        return [] if adapter is None else read_records(adapter.file(COMPLETIONS), Completion)

    def answers(self, run: RlRun) -> list[Answer] | None:
        """The run's answers to the held-out problems, if they are there."""
        found = self.study.store.find("rl_answers", self.answers_settings(run))
        return None if found is None else read_records(found.file("answers.jsonl"), Answer)

    def rewards(self, run: RlRun) -> list[Rewards | None] | None:
        """What each of those answers was given, None where it could not be scored; None where they are not there yet.

        Rules are applied here and now; a judge's rewards are read, and never asked for.
        """
        settings = self.rewards_settings(run)
        if settings is None:
            answers = self.answers(run)
            return None if answers is None else by_rule(self.graded(answers))
        found = self.study.store.find("rl_rewards", settings)
        return None if found is None else [
            None if one.parts is None else Rewards(**one.parts)
            for one in read_records(found.file("rewards.jsonl"), Rewarded)]

    def graded(self, answers: Sequence[Answer]) -> list[Scored]:
        """The answers as what a scorer of rewards takes, beside their questions and the right answers."""
        problems = {problem.id: problem for problem in self.problems.held_out}
        return [Scored(problems[answer.question].question, answer.text, problems[answer.question].answer)
                for answer in answers]

    def result(self, run: RlRun) -> RlResult | None:
        """What came out of a run, or None where it is not finished."""
        rewards, adapter = self.rewards(run), self.adapter(run)
        if rewards is None or (adapter is None and run.method != "untrained"):
            return None
        got = [one for one in rewards if one is not None]
        return RlResult(
            run, adapter.facts["train_right"] if adapter else None, adapter.facts["train_reward"] if adapter else None,
            sum(one.right for one in got) / len(rewards), fmean(one.total for one in got) if got else None,
            len(rewards), len(got))

    def complete(self, runs: Sequence[RlRun]) -> list[RlResult]:
        """Make whatever these runs lack, and say what came out. What is there is not made again."""
        missing = [run for run in runs if self.result(run) is None]
        if missing:
            from emlib.make.rl import make  # loads torch and the model

            make(self, missing)
        self.write_results()
        return [result for run in runs if (result := self.result(run)) is not None]

    def results(self) -> list[RlResult]:
        """All finished runs, in the profile's order.

        Raises:
            StoreError: there is none yet.
        """
        found = [result for run in self.runs() if (result := self.result(run)) is not None]
        if not found:
            raise StoreError(f"No run of GRPO of profile '{self.study.name}' is finished. Run notebook 11_grpo first, "
                             f"or `make reproduce PROFILE={self.study.name}`.")
        return found

    def write_results(self) -> Path:
        """`grpo.csv`: one row a finished run; accuracies in percent of what was asked."""
        path = self.study.folder / "grpo.csv"
        self.study.record()
        rows = [asdict(result.run) | {
            "train_accuracy": _percent(result.train_accuracy), "train_reward": result.train_reward,
            "eval_accuracy": _percent(result.eval_accuracy), "eval_reward": result.eval_reward, "asked": result.asked}
            for result in self.results()]
        write_text(path, pd.DataFrame(rows, columns=RESULT_COLUMNS).to_csv(index=False))
        return path


RESULT_COLUMNS = ["model", "method", "setting", "seed", "train_accuracy", "train_reward", "eval_accuracy",
                  "eval_reward", "asked"]


def _key_of(defense: RlDefense) -> dict[str, Any]:
    """What of a defense determines an adapter. How many rows were drawn from which file, the rows themselves say."""
    said = defense.model_dump(mode="json", exclude={"rows"})
    return said | ({"source": key_of_source(said["source"])} if "source" in said else {})


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _digest(problems: Sequence[Problem]) -> str:
    return of_value([asdict(problem) for problem in problems])
