"""What the runs of reinforcement learning take: completions drawn, learnt from, and supervised steps in between."""

from __future__ import annotations

from emlib.config import Additions, supervised_steps
from emlib.core.defense import needs_of
from emlib.judging.money import likely_tokens
from emlib.study.plan.narrow import Worker
from emlib.study.plan.sizes import Size
from emlib.study.plan.work import Work
from emlib.study.recipes import StageNames
from emlib.study.rl import RlRun, RlStudy

ADDITION = Size(100, len("What is 1 + 1?"), 2)


def reinforced(worker: Worker, rl: RlStudy, run: RlRun) -> tuple[Work, list[str]]:
    """A run by itself, and the shared pieces that it needs. Completions are reckoned at their full length."""
    grpo = rl.settings
    small = isinstance(grpo.data, Additions)
    worked = rl.problems.worked if small else ()  # made here, where GSM8K's would have to be fetched
    prompt = len(grpo.prompt) + sum(len(turn.content) for turn in worked)
    train, test = (ADDITION, ADDITION) if small else (worker.sizes.source("gsm8k_train"),
                                                      worker.sizes.source("gsm8k_test"))
    held_out = grpo.data.eval_items or test.rows
    asked = Work(read=held_out * likely_tokens(prompt + test.prompt),
                 write=held_out * grpo.eval_sampling.max_new_tokens, sets=1,
                 disk=held_out * grpo.eval_sampling.max_new_tokens * 4)
    if run.method == "untrained":
        return asked, []
    defenses = rl.defenses(run)
    drawn = grpo.data.train_items * grpo.training.epochs * grpo.generations
    learnt = drawn * (likely_tokens(prompt + train.prompt) + grpo.sampling.max_new_tokens)
    steps = drawn // grpo.training.rows_per_step
    rows = sum(supervised_steps(steps, found.share) * grpo.training.rows_per_step
               * worker.sizes.source(found.source).tokens
               for defense in defenses if (found := defense.supervision) is not None)
    compared = learnt if any(defense.grpo_beta > 0 for defense in defenses) else 0
    disk = 0 if worker.shape is None else worker.shape.adapter_bytes(worker.profile.lora)
    work = Work(train=learnt + rows, read=compared, write=drawn * grpo.sampling.max_new_tokens, disk=disk, adapters=1)
    return work + asked, [worker.vector()] if "vector" in needs_of(defenses, StageNames(), None).values() else []
