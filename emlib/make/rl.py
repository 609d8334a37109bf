"""Making what a run of reinforcement learning lacks: train the adapter, ask the held-out problems, reward."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emlib.core.defense import needs_of
from emlib.core.errors import DataError
from emlib.core.files import read_records, write_records
from emlib.core.progress import say
from emlib.core.records import Answer, Example
from emlib.data.chat import Encoded, encode
from emlib.make.maker import Maker
from emlib.make.recipes import MakingRecipes, made_at_once
from emlib.models import adapters
from emlib.store.artefacts import SCRATCH, Artefact
from emlib.study.rl import RlRun, RlStudy
from emlib.study.runs import Quiz
from emlib.training.records import LOG
from emlib.training.rl.alternation import Supervised
from emlib.training.rl.grpo import Condition, reinforce
from emlib.training.rl.records import COMPLETIONS, STEPS, Rewarded
from emlib.training.rl.reward_judge import scorer


def make(rl: RlStudy, runs: Sequence[RlRun]) -> None:
    """Everything these runs still lack, with one base model for all."""
    with Maker(rl.study) as maker:
        for run in runs:
            started = time.perf_counter()
            answers = _answers(rl, maker, run, _adapter(rl, maker, run))
            _rewards(rl, run, answers)
            say(f"{run}: done in {time.perf_counter() - started:.0f} s")


def _adapter(rl: RlStudy, maker: Maker, run: RlRun) -> Artefact | None:
    settings = rl.adapter_settings(run)
    return None if settings is None else rl.study.store.get(
        "rl_adapter", settings, lambda folder: _train(rl, maker, run, folder))


def _train(rl: RlStudy, maker: Maker, run: RlRun, folder: Path) -> Mapping[str, Any]:
    work = folder / SCRATCH
    with adapters.new_lora(maker.chat.model, rl.study.profile.lora, run.seed) as model:
        summary = reinforce(model, maker.chat.tokenizer, rl.problems.train, rl.settings,
                            _condition(rl, maker, run, work),
                            scorer(rl.settings.rewards, rl.study.account), seed=run.seed, folder=work)
        adapters.save(model, folder, maker.chat.name)
    for name in (STEPS, COMPLETIONS, LOG):
        shutil.copyfile(work / name, folder / name)
    reward = "none" if summary.train_reward is None else f"{summary.train_reward:.2f}"
    say(f"{run}: {summary.steps} RL steps, {summary.supervised_steps} supervised, {summary.tokens} tokens drawn, "
        f"{summary.seconds:.0f} s, best training reward {reward} up to step {summary.best_step}")
    return {"device": str(maker.chat.device), "commit": maker.chat.commit, "trl": version("trl"), **vars(summary)}


def _condition(rl: RlStudy, maker: Maker, run: RlRun, scratch: Path) -> Condition:
    """What the run adds to plain GRPO."""
    defenses, supervised = rl.defenses(run), None
    artefacts = made_at_once(needs_of(defenses, MakingRecipes(maker, str(run), scratch), None))
    training, rows = rl.settings.training, rl.supervised_rows(run)
    if rows:
        encoded = _fitting(maker, rows, training.max_seq_length)
        supervised = Supervised(encoded, training.rows_per_step, training.batch_size, run.seed)
    return Condition(rl.system(run), defenses, artefacts, supervised, rl.problems.worked)


def _fitting(maker: Maker, rows: Sequence[Example], max_length: int) -> list[Encoded]:
    """The rows in tokens, without those whose prompt leaves no room for an answer: a pool has such rows."""
    found: list[Encoded] = []
    for row in rows:
        try:
            found.append(encode(maker.chat.tokenizer, row, max_length))
        except DataError as error:
            say(f"not taken for supervised steps: {error}")
    if not found:
        raise DataError(f"None of {len(rows)} rows for supervised steps leaves room for an answer within {max_length} "
                        "tokens. Raise grpo.training.max_seq_length.")
    return found


def _answers(rl: RlStudy, maker: Maker, run: RlRun, adapter: Artefact | None) -> Artefact:
    """One answer to each held-out problem, never steered, with the format's prompt alone."""
    def ask(folder: Path) -> Mapping[str, Any]:
        answers, choice = maker.asked(Quiz(rl.questions, 1, rl.settings.eval_sampling, run.seed), adapter,
                                      folder / SCRATCH)
        write_records(folder / "answers.jsonl", answers)
        return {"answers": len(answers), "tokens": sum(answer.tokens for answer in answers),
                "cut": sum(answer.finish_reason == "length" for answer in answers), "device": str(maker.chat.device),
                **choice.facts}

    return rl.study.store.get("rl_answers", rl.answers_settings(run), ask)


def _rewards(rl: RlStudy, run: RlRun, answers: Artefact) -> None:
    """What a judge gives for these answers; what rules give is not kept."""
    settings = rl.rewards_settings(run)
    if settings is None:
        return

    def ask(folder: Path) -> Mapping[str, Any]:
        given = read_records(answers.file("answers.jsonl"), Answer)
        found = scorer(rl.settings.rewards, rl.study.account)(rl.graded(given))
        write_records(folder / "rewards.jsonl", [
            Rewarded(answer.question, None if reward is None else vars(reward))
            for answer, reward in zip(given, found, strict=True)])
        return {"asked": len(found), "scored": sum(reward is not None for reward in found)}

    rl.study.store.get("rl_rewards", settings, ask)
