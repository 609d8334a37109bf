"""Reinforcement learning: training the adapter, and a judge's rewards for the answers to held-out problems."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from emlib.core.errors import DataError
from emlib.core.progress import say
from emlib.core.records import Example
from emlib.data.chat import Encoded, encode_or_drop
from emlib.data.left_out import Dropped
from emlib.evaluation.reward_judge import scorer
from emlib.evaluation.rewards import Rewarded, graded
from emlib.make.session import Session, maker
from emlib.models import adapters
from emlib.steps.grpo import GrpoAdapter, GrpoRewards
from emlib.store.artefacts import SCRATCH, Facts
from emlib.training.records import LOG
from emlib.training.rl.condition import Condition, Supervised
from emlib.training.rl.records import COMPLETIONS, STEPS


@maker.register
def make(step: GrpoAdapter, session: Session, folder: Path) -> Facts:
    """Train an adapter by GRPO, and save it with its logs and some completions."""
    from emlib.training.rl.grpo import reinforce  # imported here alone, because TRL takes a second to import

    work = folder / SCRATCH
    condition = _condition(step, session)
    with adapters.new_lora(session.chat.model, step.lora, step.seed) as model:
        summary = reinforce(model, session.chat.tokenizer, step.problems.value.train, step.grpo, condition,
                            scorer(step.grpo.rewards, session.budget), seed=step.seed, folder=work)
        adapters.save(model, folder, session.chat.name)
    for name in (STEPS, COMPLETIONS, LOG):
        shutil.copyfile(work / name, folder / name)
    reward = "none" if summary.train_reward is None else f"{summary.train_reward:.2f}"
    say(f"{step.name}: {summary.steps} RL steps, {summary.supervised_steps} supervised steps, "
        f"{summary.tokens} tokens sampled, {summary.seconds:.0f} s, "
        f"best training reward {reward} up to step {summary.best_step}")
    return {**session.facts, "commit": session.chat.commit, "trl": version("trl"), **vars(summary)}


@maker.register
def rewards(step: GrpoRewards, session: Session, folder: Path) -> Facts:
    """Have a judge reward the answers."""
    answers = session.read(step.answers)
    found = scorer(step.rewards, session.budget)(graded(step.problems.value, answers))
    step.records.write(folder, [
        Rewarded(answer.question, None if reward is None else vars(reward))
        for answer, reward in zip(answers, found, strict=True)])
    return {"asked": len(found), "scored": sum(reward is not None for reward in found)}


def _condition(step: GrpoAdapter, session: Session) -> Condition:
    """Return what the step adds to plain GRPO: the system prompt, defenses, supervised rows and worked examples."""
    artefacts = {name: session.folder_of(needed) for name, needed in step.artefacts}
    training, supervised = step.grpo.training, None
    if step.supervised is not None:
        encoded = _fitting(session, step.supervised.rows.examples, training.max_seq_length)
        supervised = Supervised(encoded, training.rows_per_step, training.batch_size, step.seed)
    return Condition(step.system, step.defenses, artefacts, supervised, step.problems.value.worked)


def _fitting(session: Session, rows: Sequence[Example], max_length: int) -> list[Encoded]:
    """Tokenise the rows, without those of a pool whose prompt leaves no room for an answer."""
    every = [encode_or_drop(session.chat.tokenizer, row, max_length) for row in rows]
    for row in every:
        if isinstance(row, Dropped):
            say(f"left out of the supervised steps: {row.where}: {row.reason}")
    found = [row for row in every if isinstance(row, Encoded)]
    if not found:
        raise DataError(f"None of {len(rows)} rows for supervised steps leaves room for an answer within {max_length} "
                        "tokens. Raise grpo.training.max_seq_length.")
    return found
