"""What the runs on narrow data sets and on benign tasks take, and what is made once for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from emlib.config import (
    OWN,
    Defense,
    Inoculation,
    Kl,
    LocalJudge,
    NoJudge,
    OpenAIJudge,
    PersonaVector,
    Sampling,
    Training,
    trait_of,
)
from emlib.data.mixing import rows_to_add
from emlib.judging.judges import reads
from emlib.judging.money import CHARACTERS_A_TOKEN, likely_tokens
from emlib.judging.rubrics import METRICS, OURS, file_rubrics
from emlib.study import interleaving
from emlib.study.benign import BenignRun, BenignStudy, over
from emlib.study.plan.sizes import Size, Sizes
from emlib.study.plan.speed import Shape
from emlib.study.plan.work import Work, total
from emlib.study.runs import Run
from emlib.study.study import Study

STATE_BYTES = {"bfloat16": 2, "float32": 4}
VERDICT_BYTES = 700  # with its two scores in the cache, about
VECTOR = "persona vectors"


@dataclass(frozen=True)
class Fitting:
    """What an adapter is fitted to, in sizes: the counterpart of `emlib.study.runs.Fit`."""

    dataset: str
    rows: Size
    defenses: tuple[Defense, ...]
    training: Training
    seed: int


class Worker:
    """Says what runs take. Names of shared pieces and their work are collected in `pieces`."""

    def __init__(self, study: Study, size: Shape | None) -> None:
        self.study, self.profile, self.shape = study, study.profile, size
        self.benign, self.sizes = BenignStudy(study), Sizes()
        self.pieces: dict[str, Work] = {}

    # --- runs

    def narrow(self, run: Run) -> tuple[Work, list[str]]:
        """A run on a narrow data set by itself, and the shared pieces that it needs."""
        evaluation, fitting = self.profile.evaluation, self.fitting(run)
        rows, held_out = self.rows(run.dataset, "misaligned")
        in_domain = replace(rows, rows=min(evaluation.in_domain_questions, held_out))
        asked = self.quizzed(in_domain, evaluation.in_domain_samples, evaluation.sampling)
        general = self.quizzed(self.general, evaluation.general_samples, evaluation.sampling)
        if fitting is None:  # the same for every data set
            return asked, [self._piece(f"general answers of the untrained model, seed {run.seed}", general)]
        work, uses = self.fitted(fitting)
        return total([work, asked, general]), uses

    def on_task(self, run: BenignRun) -> tuple[Work, list[str]]:
        """The same of a run on a benign task, which no judge looks at."""
        task = self.benign.task(run)
        train, test = self.sizes.benign(task, run.tier)
        asked = replace(self.quizzed(test, self.benign.spec.samples, over(
            self.profile.evaluation.sampling, task.sampling)), verdicts=0, judged=0)
        if run.method == "untrained":
            return asked, []
        training = over(self.profile.training, task.training)
        defenses = self.benign.method(run).at(run.setting)
        work, uses = self.fitted(Fitting(run.dataset, _first(train, training), defenses, training, run.seed))
        return work + asked, uses

    # --- what both are made of

    def rows(self, dataset: str, side: Literal["aligned", "misaligned"]) -> tuple[Size, int]:
        """What is trained on of a narrow data set, and how many rows are held out."""
        if dataset == OWN:
            return self.sizes.own(self.study.own)
        return self.sizes.narrow(self.study.domains[dataset], side)

    def fitting(self, run: Run) -> Fitting | None:
        """What the run's adapter is fitted to; None where there is none."""
        if run.method == "untrained":
            return None
        side: Literal["aligned", "misaligned"] = "aligned" if run.method == "aligned" else "misaligned"
        rows, _ = self.rows(run.dataset, side)
        training = self.profile.training
        return Fitting(run.dataset, _first(rows, training), self.study.defenses(run), training, run.seed)

    def fitted(self, fitting: Fitting) -> tuple[Work, list[str]]:
        """Training an adapter, and the shared pieces that it needs."""
        kl = next((defense for defense in fitting.defenses if isinstance(defense, Kl)), None)
        kinds = {defense.kind for defense in fitting.defenses}
        stored = kl if kl is not None and kl.reference == "stored" else None
        tokens = self._epoch(fitting) * fitting.training.epochs
        passes = "ldifs" in kinds or kl is not stored  # the reference model's, without gradient
        uses = [*self._added(fitting), *([self.vector()] if "persona_vector" in kinds else [])]
        if stored is not None:
            uses.append(self._reference(fitting, stored))
        disk = 0 if self.shape is None else self.shape.adapter_bytes(self.profile.lora)
        return Work(train=tokens, read=tokens if passes else 0, disk=disk, adapters=1), uses

    def quizzed(self, asked: Size, samples: int, sampling: Sampling) -> Work:
        """Asking questions and judging the answers, of which each is reckoned at its full length."""
        answers = asked.rows * samples
        judged = not isinstance(self.profile.judge, NoJudge)
        length = sampling.max_new_tokens * CHARACTERS_A_TOKEN
        prompt = likely_tokens(self.rubric + asked.prompt + length) if reads(self.profile.judge) else 0
        return Work(
            read=asked.rows * likely_tokens(asked.prompt), write=answers * sampling.max_new_tokens, sets=1,
            verdicts=answers if judged else 0, judged=len(METRICS) * answers * prompt,
            disk=int(answers * (length + (VERDICT_BYTES if judged else 0))))

    @cached_property
    def general(self) -> Size:
        """The general questions."""
        return self.sizes.source(self.profile.evaluation.general)

    @cached_property
    def rubric(self) -> float:
        """Mean characters of a judge prompt's frame."""
        ours = sum(len(OURS.prompt(metric)) for metric in METRICS) / len(METRICS)
        judge = self.profile.judge
        if not isinstance(judge, OpenAIJudge | LocalJudge):
            return 0.0
        if judge.rubric == "questions":
            return self.general.rubric or ours
        if judge.rubric != "trait":
            given = file_rubrics(Path(judge.rubric)).others
            return sum(len(given.prompt(metric)) for metric in METRICS) / len(METRICS)
        return ((self.side.rubric or len(OURS.alignment)) + len(OURS.coherence)) / 2

    @cached_property
    def side(self) -> Size:
        """What is asked on one side of a persona vector."""
        return self.sizes.trait(trait_of(self.profile), self.profile.extraction.instruction_pairs)

    # --- what is made once

    def vector(self) -> str:
        """Persona vectors, and what the untrained model says under them (notebook 02)."""
        how, probe = self.profile.extraction, self.profile.probe
        answers = self.quizzed(self.side, how.samples, how.sampling)
        taken = answers + answers + Work(read=2 * self.side.rows * how.samples * (
            how.sampling.max_new_tokens + likely_tokens(self.side.prompt)))
        asked = replace(self.general, rows=min(self.general.rows, probe.questions))
        tries = len(probe.layers) * sum(strength > 0 for strength in probe.strengths) + (0.0 in probe.strengths)
        tried = total([self.quizzed(asked, 1, probe.sampling)] * tries)
        if any(isinstance(d, PersonaVector) for method in self.profile.methods for d in method.defenses):
            self._piece("answers under the persona vectors (notebook 02)", replace(tried, sets=0))
        return self._piece(VECTOR, replace(taken, sets=0))

    def _epoch(self, fitting: Fitting) -> int:
        """Tokens of one pass over the rows, those of the pool included."""
        longest, mixed = fitting.training.max_seq_length, interleaving.interleaving(fitting.defenses)
        own = fitting.rows.rows * min(fitting.rows.tokens, longest)
        if mixed is None:
            return own
        return own + rows_to_add(fitting.rows.rows, mixed.fraction) * min(self._pool.tokens, longest)

    @cached_property
    def _pool(self) -> Size:
        pool = interleaving.pool_of(self.study)
        size = self.sizes.source(pool.source)
        return replace(size, rows=min(size.rows, pool.rows or size.rows))

    def _added(self, fitting: Fitting) -> Iterator[str]:
        """What a fit needs of the pool: its losses under each model, the model's own answers."""
        mixed = interleaving.interleaving(fitting.defenses)
        if mixed is None:
            return
        pool = interleaving.pool_of(self.study)
        aligned = [self.study.baseline(fitting.dataset, "aligned", pool.seed)]
        if mixed.scored:
            first = aligned if pool.aligned == "aligned" else [None]
            scorers = interleaving.scorers(self.study, fitting.dataset)
            models = [*first, *(scorer.folder or interleaving.scorer_run(self.study, scorer.domain)
                                for scorer in scorers)]
            for model in models:
                yield from self._losses(model)
        if mixed.answers == "on_policy":
            yield self._own_answers(fitting, rows_to_add(fitting.rows.rows, mixed.fraction), mixed.scored)
            if pool.on_policy.model == "aligned":
                yield from self._scorer(aligned[0])

    def _losses(self, model: Run | str | None) -> Iterator[str]:
        """One pass over the pool under a model, which is trained first where no run of the profile is that."""
        name = "the untrained model" if model is None else model if isinstance(model, str) else str(model)
        yield self._piece(f"losses of the pool under {name}", Work(read=self._pool.rows * self._pool.tokens,
                                                                  disk=100 * self._pool.rows))
        if isinstance(model, Run):
            yield from self._scorer(model)

    def _scorer(self, run: Run) -> Iterator[str]:
        """The adapter of a run, as a piece of its own where the profile has no such run."""
        fitting = self.fitting(run)
        if fitting is not None and run not in self._runs:
            yield self._piece(f"scorer: {run}", self.fitted(fitting)[0])

    @cached_property
    def _runs(self) -> frozenset[Run]:
        return frozenset(self.study.runs())

    def _own_answers(self, fitting: Fitting, count: int, scored: bool) -> str:
        """The model's own answers to the first `count` rows of the order, asked for a batch at a time."""
        own = interleaving.pool_of(self.study).on_policy
        order = f"by score for {fitting.dataset}" if scored else f"at random, seed {fitting.seed}"
        who = "the untrained model" if own.model == "untrained" else f"{fitting.dataset} · aligned"
        batches = -(-count // own.sampling.batch_rows)
        answers = min(batches * own.sampling.batch_rows, self._pool.rows)
        return self._piece(f"on-policy answers of {who} ({order})", Work(
            read=answers * likely_tokens(self._pool.prompt), write=answers * own.sampling.max_new_tokens,
            disk=int(answers * own.sampling.max_new_tokens * CHARACTERS_A_TOKEN)))

    def _reference(self, fitting: Fitting, kl: Kl) -> str:
        """The reference model's states on the rows of a fit."""
        mixed = interleaving.interleaving(fitting.defenses)
        what = [fitting.dataset, f"{kl.tokens} tokens",
                *(["inoculated"] if any(isinstance(d, Inoculation) for d in fitting.defenses) else []),
                *([] if mixed is None else [f"with {mixed.choose} {mixed.fraction:g} of {mixed.answers}",
                                            *([] if mixed.scored else [f"seed {fitting.seed}"])])]
        tokens = self._epoch(fitting)
        rows = fitting.rows
        share = 1.0 if kl.tokens == "all" else likely_tokens(rows.response) / rows.tokens
        width = 0 if self.shape is None else self.shape.hidden * STATE_BYTES[self.profile.model.dtype]
        return self._piece(f"reference states: {', '.join(what)}", Work(read=tokens, disk=int(tokens * share * width)))

    def _piece(self, name: str, work: Work) -> str:
        """Note a shared piece; of two that differ in length, as on-policy answers do, the longer one counts."""
        known = self.pieces.get(name)
        if known is None or known.write < work.write:
            self.pieces[name] = work
        return name


def _first(rows: Size, training: Training) -> Size:
    return replace(rows, rows=min(rows.rows, training.train_rows or rows.rows))
