"""GRPO (Shao et al. 2024) by TRL's trainer, with the study's conditions around it (sections 4.2 and 5.2, appendix B.3).

    A_i = (r_i - mean(r)) / (sd(r) + 1e-4)                   over the completions i of one prompt
    L   = -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta (exp(d) - d - 1),    d = log pi_ref - log pi

The gradient of the KL term is that of the estimate, (1 - exp(d)) grad log pi for each token, as in Shao et al. TRL
computes advantages, loss and gradient. This module adds: completions sampled, steered and seeded by the study;
steering and penalties in the loss; on a CPU, one pass over a step's rows as a tree (`shared`); the reference model as
the adapter switched off; supervised steps in between; a log; and checkpoints from which a killed run resumes to the
same numbers (with vLLM up to rounding). rho is 1 with each engine, because a step takes one update on its completions:
the engine's own log-probabilities are only logged.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from emlib.config import Grpo
from emlib.core.defense import restore, states
from emlib.core.errors import EmlibError
from emlib.core.files import append_record, read_appended, write_records, write_text
from emlib.core.hooks import Active
from emlib.core.progress import bar
from emlib.core.records import Message
from emlib.core.seeds import derive
from emlib.data.chat import encode_prompt, opened_thinking
from emlib.data.gsm8k import Problem
from emlib.data.mixing import plan_steps
from emlib.evaluation.rewards import RewardScorer
from emlib.generation.sample import text_of
from emlib.models import tensors
from emlib.models.adapters import merged_parameters
from emlib.models.load import stop_tokens
from emlib.training import checkpoint
from emlib.training.finite import refuse_not_finite
from emlib.training.monitor import Evaluator
from emlib.training.ranks import ALONE
from emlib.training.records import LOG, StepRecord, read_log
from emlib.training.rl.condition import Condition, order
from emlib.training.rl.penalties import Penalties
from emlib.training.rl.records import COMPLETIONS, STEPS, Completion, RlStep, best, read_steps, stretches
from emlib.training.rl.rollouts import Marking, Rollouts, shift_of
from emlib.training.rl.shared import against, completion_terms, shared_tree
from emlib.training.sft import learning_rate, make_optimizer

STOPPED = "stopped.txt"  # the number of RL steps after which a defense stopped the run


@dataclass(frozen=True)
class RlSummary:
    """Totals of a run. `train_reward` and `train_right` are of the stretch of steps whose weights the model keeps."""

    steps: int
    supervised_steps: int
    tokens: int
    seconds: float
    best_step: int
    train_reward: float | None
    train_right: float | None
    optimizer: str


def reinforce(model: PeftModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], settings: Grpo,
              condition: Condition, score: RewardScorer, *, seed: int, folder: Path) -> RlSummary:
    """Train the adapter of `model`, and leave it with the weights of the highest training reward.

    Log, completions and checkpoints are in `folder`, where an interrupted run resumes.

    Raises:
        EmlibError: there are fewer problems than a step takes, or the loss or a gradient is NaN or infinite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, tokenizer, problems, settings, condition, score, seed, folder)
    if run.done < run.steps and not run.stopped:
        run.train()
    return run.finish()


class _Run:
    """One training: the plan of its steps, the state that a checkpoint holds, and the records."""

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem],
                 settings: Grpo, condition: Condition, score: RewardScorer, seed: int, folder: Path) -> None:
        self.model, self.tokenizer, self.settings, self.condition = model, tokenizer, settings, condition
        self.seed, self.folder = seed, folder
        training = settings.training
        whole = [step for step in plan_steps(len(problems), settings.prompts_per_step, training.epochs, seed)
                 if len(step) == settings.prompts_per_step]
        if not whole:
            raise EmlibError(f"a step takes {settings.prompts_per_step} problems, and there are {len(problems)}. Lower "
                             "grpo.training.batch_size, or train on more problems.")
        self.problems = [problems[index] for step in whole for index in step]
        self.steps = len(whole)
        self.kinds = order(self.steps, condition.share if condition.supervised else 0.0)
        self.places = [place for place, kind in enumerate(self.kinds) if kind == "rl"]
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(list(self.parameters.values()), training)
        self.done = checkpoint.restore(folder, self.parameters, self.optimizer)
        restore(condition.acting, checkpoint.states_of_defenses(folder))
        self.records, self.supervised_records = self._records_until(self.done)
        said = folder / STOPPED
        self.stopped = said.is_file() and said.read_text(encoding="utf-8") == str(self.done)
        self.evaluate = Evaluator(model, (), training.batch_size, ALONE, condition.artefacts.get("monitor_inputs"),
                                   self.steps)
        prompt = encode_prompt(tokenizer, [Message("system", condition.system), Message("user", problems[0].question)])
        read = partial(text_of, tokenizer, stop_tokens(model, tokenizer))
        self.marking = Marking(score, read, opened_thinking(tokenizer, prompt))
        self.rollouts = Rollouts(tokenizer, settings, partial(condition.active, "rollout"), seed, self.done)

    def rate(self, place: int) -> float:
        """Return the learning rate of an optimizer step, counted over RL and supervised steps."""
        return learning_rate(place, len(self.kinds), self.settings.training)

    def train(self) -> None:
        """Take the remaining steps."""
        before = [Message("system", self.condition.system), *self.condition.worked]
        rows = [{"prompt": [turn.to_dict() for turn in (*before, Message("user", problem.question))],
                 "question": problem.question, "answer": problem.answer}
                for problem in self.problems[self.done * self.settings.prompts_per_step:]]
        with warnings.catch_warnings(), _as_they_are(self.parameters.values()):
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")  # TRL's version is pinned
            trainer = _Trainer(
                self.model, [self.marking], _arguments(self.settings, self.condition.beta, self.seed, self.folder),
                Dataset.from_list(rows), processing_class=self.tokenizer, rollout_func=self.rollouts,
                callbacks=[_Watch(self)],
                optimizers=(self.optimizer, LambdaLR(self.optimizer, _unchanged)))
        if self.settings.engine == "vllm":  # TRL's own way writes the base, which bfloat16 does not undo
            engine: Any = trainer.vllm_generation
            engine._iter_named_params = partial(merged_parameters, self.model)
        trainer.active = partial(self.condition.active, "loss")
        trainer.penalties = Penalties(self.condition, self.rollouts)
        trainer.shares = not (trainer.aux_loss_enabled or against(self.model))  # TRL's pass has the experts' own loss
        trainer.remove_callback(PrinterCallback)
        if "ref" in self.model.peft_config:  # TRL's copy of the fresh adapter; the adapter switched off is the same
            self.model.delete_adapter("ref")
        self.tokenizer.clean_up_tokenization_spaces = False  # else TRL's decoding warns
        self.trainer = trainer
        try:
            trainer.train()
        finally:
            if self.settings.training.gradient_checkpointing:
                self.model.gradient_checkpointing_disable()
                self.model.disable_input_require_grads()
            self.model.eval()

    def before(self, step: int) -> None:
        """Take the supervised steps that are due before RL step `step` (from 0)."""
        first = self.places[step - 1] + 1 if step else 0
        supervised = self.condition.supervised
        for place in range(first, self.places[step]):
            assert supervised is not None, "only a condition with rows has supervised steps"
            torch.manual_seed(derive(self.seed, "supervised", place))
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(place)
            record = supervised.take(self.model, self.optimizer, len(self.supervised_records), place + 1,
                                     self.settings.training.max_grad_norm)
            refuse_not_finite(place, len(self.kinds), record.loss, record.grad_norm, {}, self.folder / LOG)
            self.supervised_records.append(record)
            append_record(self.folder / LOG, record)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.places[step])
        torch.manual_seed(derive(self.seed, "step", step))  # TRL shuffles the step's completions

    def after(self, metrics: dict[str, float], seconds: float) -> None:
        """Record a finished RL step; write a checkpoint where one is due."""
        place, drawn = self.places[len(self.records)], self.rollouts.last
        penalties, rewards = self.trainer.penalties.taken(), self.marking.rewards
        refuse_not_finite(place, len(self.kinds), metrics["own"], metrics["grad_norm"], penalties, self.folder / STEPS,
                          "completions")
        record = RlStep(
            place + 1, metrics["loss"], self.rate(place), metrics["grad_norm"], self.marking.of_total(fmean),
            self.marking.of_total(pstdev), self.marking.parts(), 1 - len(rewards) / len(drawn),
            fmean(one.right for one in rewards) if rewards else None, fmean(len(one.tokens) for one in drawn),
            fmean(not one.stopped for one in drawn), self.marking.no_spread(self.settings.generations),
            metrics["clip_ratio/region_mean"], metrics["gap"], metrics.get("kl"),
            {"loss": metrics["shift"], "rollout": self.rollouts.shift}, len(drawn),
            sum(len(one.tokens) for one in drawn), round(seconds, 4), round(self.rollouts.seconds, 4), penalties)
        record = self._shown(record)
        self.records.append(record)
        for completion in self._kept(place + 1):
            append_record(self.folder / COMPLETIONS, completion)
        append_record(self.folder / STEPS, record)
        done = len(self.records)
        if self.stopped:  # said before the checkpoint: a run that is killed in between decides the same again
            write_text(self.folder / STOPPED, str(done))
        if self.stopped or done % self.settings.training.checkpoint_every == 0 or done == self.steps:
            self._checkpoint()

    def _shown(self, record: RlStep) -> RlStep:
        """Show a finished step to the defenses, which may stop the run; return it with the time that they took."""
        started = time.perf_counter()
        counted = replace(record, step=len(self.records) + 1)  # supervised steps between RL steps are not looked at
        stops = [defense.on_step(counted, self.evaluate) for defense in self.condition.acting]
        self.stopped = any(stops)  # of a list: each of them sees the step
        return replace(record, seconds=round(record.seconds + time.perf_counter() - started, 4))

    def finish(self) -> RlSummary:
        """Give the model the weights of the best stretch."""
        found = best(self.records, self.settings.training.checkpoint_every)
        if found is not None:
            weights, _ = tensors.load(self._weights(found.steps))
            for name, parameter in self.parameters.items():
                parameter.data.copy_(weights[name])
        return RlSummary(
            len(self.records), len(self.supervised_records), sum(record.tokens for record in self.records),
            round(sum(r.seconds for r in self.records) + sum(r.seconds for r in self.supervised_records), 3),
            found.steps if found else len(self.records), found.reward if found else None,
            found.right if found else None, type(self.optimizer).__name__)

    def _checkpoint(self) -> None:
        """Save the weights if they are the best so far, then the state; then delete the former best weights."""
        every, done = self.settings.training.checkpoint_every, len(self.records)
        found = best(self.records, every)
        if found is not None and found.steps == done:
            tensors.save(self._weights(done), self.parameters)
        checkpoint.save(self.folder, done, self.parameters, self.optimizer, states(self.condition.acting))
        for stretch in stretches(self.records, every):
            if found is not None and stretch.steps != found.steps:
                self._weights(stretch.steps).unlink(missing_ok=True)

    def _weights(self, steps: int) -> Path:
        return self.folder / f"best-{steps:05d}.safetensors"

    def _kept(self, step: int) -> list[Completion]:
        pairs = list(zip(self.marking.scored, self.marking.last, strict=True))[:self.settings.kept_completions]
        return [Completion(step, one.question, one.answer, one.completion, None if got is None else got.total,
                           None if got is None else got.right, None if got is None else vars(got))
                for one, got in pairs]

    def _records_until(self, done: int) -> tuple[list[RlStep], list[StepRecord]]:
        """Read both logs up to a checkpoint. Later steps are repeated, so their lines are dropped."""
        supervised = self.kinds[:self.places[done - 1]].count("supervised") if done else 0
        steps = checkpoint.up_to(done, read_steps(self.folder, done), self.folder, "RL steps")
        others = checkpoint.up_to(supervised, read_log(self.folder, supervised), self.folder, "supervised steps")
        write_records(self.folder / STEPS, steps)
        write_records(self.folder / LOG, others)
        kept = self.folder / COMPLETIONS
        last = steps[-1].step if steps else 0
        write_records(kept, [one for one in read_appended(kept, Completion) if one.step <= last])
        return steps, others


class _Trainer(GRPOTrainer):
    """TRL's trainer with a steered loss; it measures the distance between the policies of loss and sampler."""

    active: Callable[[nn.Module], AbstractContextManager[list[Active]]]
    penalties: Penalties
    shares: bool  # whether one pass reads what a step's rows have in common once
    sums: Tensor | None = None  # of a step: |log p - log p'| over its tokens, their number, and TRL's loss
    shift: float = 0.0

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False,
                     num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Compute TRL's loss and the penalties with the defenses active; reference passes run before, without them."""
        reference = self.penalties.reference(model, inputs)
        with self.active(model) as shown, self.penalties.read(model) as outputs:
            own = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = own + self.penalties.of(model, inputs, outputs, reference)
        self.shift = shift_of(shown)
        drawn = inputs["sampling_per_token_logps"]
        counts = inputs["completion_mask"].bool() & ~drawn.isnan()  # vLLM gives NaN for some tokens
        distance = (self.logprobs - drawn).abs()[counts]
        found = torch.stack([distance.sum(), counts.sum().to(distance), own.detach().to(distance)])
        self.sums = found if self.sums is None else self.sums + found
        return loss

    def _get_per_token_logps_and_entropies(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor,
                                           logits_to_keep: int, batch_size: int | None = None,
                                           **named: Any) -> tuple[Tensor, Any, Any]:
        """Compute the completions' log-probabilities and entropies; keep the former, which TRL exposes nowhere else.

        The reference's are computed for the rows of a whole step, `batch_size` at a time as in the loss.
        """
        size = batch_size or len(input_ids)
        found = [self._of_batch(model, ids, attended, logits_to_keep, **named)
                 for ids, attended in zip(input_ids.split(size), attention_mask.split(size), strict=True)]
        logps = torch.cat([of_rows for of_rows, _, _ in found])
        entropies = [entropy for _, entropy, _ in found if entropy is not None]
        losses = [loss for _, _, loss in found if loss is not None]
        self.logprobs = logps.detach().float()
        return (logps, torch.cat(entropies) if len(entropies) == len(found) else None,
                torch.stack(losses).mean() if losses else None)

    def _of_batch(self, model: nn.Module, ids: Tensor, attended: Tensor, kept: int,
                  **named: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tree = shared_tree(model, ids, attended) if self.shares else None
        if tree is not None:
            return *completion_terms(model, tree, attended, kept, self.temperature), None
        found: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
            model, ids, attended, kept, **named)
        return found


class _Watch(TrainerCallback):
    """Calls the run's methods at the steps of TRL's trainer."""

    def __init__(self, run: _Run) -> None:
        self.run, self.started, self.seconds = run, 0.0, 0.0
        self.bar = bar(range(run.steps), "reinforcing", "step", total=run.steps, done=run.done)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the due supervised steps, and then start the clock of the RL step."""
        self.run.before(self.run.done + state.global_step)
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop the clock: the weights are updated."""
        self.seconds = time.perf_counter() - self.started

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Record the step from TRL's logs. Its last log, about the whole training, has no reward."""
        logs: dict[str, float] = named["logs"]
        if "reward" in logs:
            trainer = self.run.trainer
            assert trainer.sums is not None, "a step without a loss"
            distance, tokens, own = trainer.sums.tolist()
            trainer.sums = None
            self.run.after(logs | {"gap": distance / max(tokens, 1), "shift": trainer.shift, "own": own}, self.seconds)
            self.bar.update()
            control.should_training_stop |= self.run.stopped

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the progress bar."""
        self.bar.close()


@contextmanager
def _as_they_are(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Give the parameters their values back at the end: TRL rounds those on a model in 4 bits to bfloat16.

    A learning rate of 5e-6 is below the rounding of bfloat16, so that most updates would be lost.
    """
    values = [parameter.data for parameter in parameters]
    yield
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value


def _arguments(settings: Grpo, beta: float, seed: int, folder: Path) -> GRPOConfig:
    """Return TRL's settings. The study controls order, seeds, checkpoints and logs, so TRL's are off."""
    training, gpu = settings.training, torch.cuda.is_available()
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=not gpu, dataloader_pin_memory=gpu, report_to="none",
        save_strategy="no", logging_steps=1, logging_nan_inf_filter=False, disable_tqdm=True, shuffle_dataset=False,
        seed=derive(seed, "trl") % 2**31, num_train_epochs=1, per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.gradient_accumulation, max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing, bf16=False,  # weights as loaded, no autocast
        num_generations=settings.generations, max_completion_length=settings.sampling.max_new_tokens,
        temperature=settings.sampling.temperature, top_p=settings.sampling.top_p, beta=beta, epsilon=settings.clip,
        loss_type=settings.loss, scale_rewards=settings.scale_advantages, use_vllm=settings.engine == "vllm",
        vllm_mode="colocate", vllm_importance_sampling_correction=False,  # vLLM's log p is that after top_p
        use_bias_correction_kl=False)  # TRL's default multiplies the KL term by rho, which changes its gradient
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device per run: else the model is copied to all visible ones
    return arguments


def _unchanged(_: int) -> float:
    """Return 1: TRL requires a scheduler, but `_Run` sets the rate, which depends on supervised steps too."""
    return 1.0
