"""Making what a run lacks: train the adapter, ask the questions, judge the answers. Each piece is kept once done."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from emlib.config import OpenAIJudge
from emlib.core import paths
from emlib.core.background import Aside
from emlib.core.defense import needs_of
from emlib.core.errors import JudgeWaits
from emlib.core.files import read_records, write_records
from emlib.core.plugins import CannotBeImported
from emlib.core.progress import bar, say
from emlib.core.records import AddedRow, Answer
from emlib.data.chat import Encoded, encode_all
from emlib.generation.sample import Request, answer_batch, plan
from emlib.judging import local
from emlib.judging.judge_batch import Sheet
from emlib.judging.judges import judge
from emlib.judging.rubrics import trait_rubrics
from emlib.make import backends
from emlib.make.backends import PLAIN, Choice
from emlib.make.preparing import Preparer
from emlib.make.recipes import ADDED, MakingRecipes, made_at_once, made_on_rows
from emlib.make.serving import Serving
from emlib.make.together import answered
from emlib.models import adapters
from emlib.models.load import ChatModel, end_tokens, load
from emlib.models.logprobs import token_logprobs
from emlib.models.reference import keep
from emlib.steering import extraction
from emlib.steering.steer import adding
from emlib.store.artefacts import SCRATCH, Artefact
from emlib.study.runs import QUESTION_SETS, Asked, Fit, QuestionSet, Quiz, Run
from emlib.study.study import Study
from emlib.training.in_subprocess import NeverBegan, train_apart
from emlib.training.job import Job, plugin_files
from emlib.training.objective import Objective
from emlib.training.records import LOG
from emlib.training.sft import fine_tune

Reader = Callable[[list[Answer]], object]  # is given answers as they come
Draw = Callable[[list[Request]], list[Answer]]
SERVED_ROWS = 1024  # answers that are asked of a server between two writes: four times what it computes at once


@dataclass(frozen=True)
class Drawing:
    """How a quiz is drawn: by what, under which adapter, in which batches, and what draws them while `begun` lasts."""

    choice: Choice
    under: tuple[str | None, Path | None]
    batches: list[list[Request]]
    begun: AbstractContextManager[Draw]


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training in tokens: its own, those spread through each epoch, and those that are held out."""

    own: list[Encoded]
    added: list[Encoded]
    held_out: list[Encoded]


def _first(waits: Sequence[JudgeWaits | None]) -> JudgeWaits | None:
    return next(filter(None, waits), None)


class Maker(AbstractContextManager["Maker"]):
    """Holds one base model for all the runs of a sitting; adapters are put on and taken off it."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __exit__(self, *exception: object) -> None:
        """Let the model go, so that a notebook's next study finds the memory free, and end a server of our own."""
        self.serving.__exit__(*exception)
        local.loaded.cache_clear()
        self._let_go()

    def _let_go(self) -> None:
        """The base model; it is loaded again when it is next needed."""
        self.__dict__.pop("chat", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def chat(self) -> ChatModel:
        """The base model, loaded when it is first needed."""
        return load(self.study.profile.model, paths.cache())

    def make(self, run: Run) -> JudgeWaits | None:
        """Everything `run` still lacks; what is returned says that its judge's batches are not back yet."""
        return _first(self.make_all([run]))

    def make_all(self, runs: Sequence[Run]) -> list[JudgeWaits]:
        """Everything these runs lack. A judge elsewhere reads answers while the next ones are drawn."""
        spec, sets = self.study.profile.judge, [(run, which) for run in runs for which in QUESTION_SETS]
        if not isinstance(spec, OpenAIJudge):
            with answered(self, [self._asked(*one) for one in sets]) as found:
                waits = [self._judged(*one, answers) for one, answers in zip(sets, found, strict=True)]
        else:
            with Aside("judge") as aside:
                # A judge by batch is sent a whole set.
                asked = [self._asked(*one, None if spec.batch else partial(aside.submit, self._read, *one))
                         for one in sets]
                with answered(self, asked) as found:
                    judging = [aside.submit(self._judged, *one, answers)
                               for one, answers in zip(sets, found, strict=True)]
            waits = [done.result() for done in judging]
        by_run = {run: _first([wait for (of, _), wait in zip(sets, waits, strict=True) if of == run]) for run in runs}
        return [wait for wait in by_run.values() if wait is not None]

    def answer_all(self, asked: Sequence[Asked]) -> None:
        """The answers to each, asked for if they are not there."""
        with answered(self, asked) as found:
            for _ in found:
                pass

    def _asked(self, run: Run, which: QuestionSet, read: Reader | None = None) -> Asked:
        return Asked(str(run), self.study.fit(run), self.study.quiz(run, which), read)

    def _read(self, run: Run, which: QuestionSet, answers: Sequence[Answer]) -> None:
        """Have a part of a set judged; its scores are kept, and found when all of the set is."""
        study = self.study
        judge(study.profile.judge, study.trait, Sheet(study.questions(run, which), answers, study.rubrics),
              study.account)

    def _judged(self, run: Run, which: QuestionSet, answers: Artefact) -> JudgeWaits | None:
        try:
            self._verdicts(run, which, answers)
        except JudgeWaits as wait:
            return wait
        if all(self.study.store.find("verdicts", self.study.verdicts_settings(run, each)) for each in QUESTION_SETS):
            say(f"{run}: done")
        return None

    @cached_property
    def serving(self) -> Serving:
        """Says what draws answers and scores rows, and has it ready."""
        return Serving(self)

    @cached_property
    def preparer(self) -> Preparer:
        """Makes what interleaving needs."""
        return Preparer(self)

    def adapter(self, name: str, fit: Fit | None) -> Artefact | None:
        """The fitted adapter, trained if it is not there; `name` is what progress calls it."""
        return None if fit is None else self.study.store.get(
            "adapter", self.study.fit_settings(fit), lambda folder: self._train(name, fit, folder))

    def answers(self, name: str, fit: Fit | None, quiz: Quiz, read: Reader | None = None,
                drawing: Drawing | None = None) -> Artefact:
        """The answers of a fitted model, or of the base model, asked for if they are not there.

        `read` is given each batch of them as soon as it is drawn; `drawing` is how they are drawn, if that is known.
        """
        adapter = self.adapter(name, fit)
        return self.study.store.get("answers", self.study.quiz_settings(fit, quiz),
                                    lambda folder: self._ask(quiz, adapter, folder, read, drawing))

    def _train(self, name: str, fit: Fit, folder: Path) -> Mapping[str, Any]:
        recipes = needs_of(fit.defenses, MakingRecipes(self, name, folder / SCRATCH), fit)
        artefacts = made_at_once(recipes)
        rows, chosen = self._rows(fit, artefacts)
        profile = self.study.profile
        choice = backends.training(profile.backend.training, profile.model, processes=profile.job.gpus)
        commit, device = self.chat.commit, str(self.chat.device)
        if any(recipe.on_rows for recipe in recipes.values()):
            with adapters.new_lora(self.chat.model, profile.lora, fit.seed) as model:
                artefacts |= made_on_rows(recipes, [*rows.own, *rows.added], model)
        told = None
        if choice.name != PLAIN or choice.processes > 1:
            choice, told = self._apart(choice, fit, rows, artefacts, folder)
        if told is None:
            told = self._here(fit, rows, artefacts, folder)
        shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
        if chosen:
            write_records(folder / ADDED, chosen)
        say(f"{name}: {told['steps']} steps, {told['tokens']} tokens, {told['seconds']:.0f} s, "
            f"loss {told['final_loss']:.3f}, {told['truncated_rows']} rows cut")
        return {"rows": len(rows.own), "added_rows": len(rows.added), "device": device, "commit": commit, **told,
                **choice.facts}

    def _rows(self, fit: Fit, artefacts: Mapping[str, Path]) -> tuple[TrainingRows, list[AddedRow]]:
        """The rows of a training in tokens, and the records of those that its defenses add."""
        acting = [defense for defense in fit.defenses if not defense.is_null]
        chosen = [row for defense in acting for row in defense.added(fit.rows, artefacts)]
        held_out = {row for defense in acting for row in defense.held_out(fit.rows)}
        encoded = partial(encode_all, self.chat.tokenizer, max_length=fit.training.max_seq_length)
        penalised = [replace(row, penalised_by=defense.kind) for defense in acting
                     for row in encoded(defense.penalised(fit.rows, artefacts))]
        return TrainingRows(
            encoded([row for row in fit.rows if row not in held_out]),
            [*encoded([row.example for row in chosen]), *penalised],
            encoded([row for row in fit.rows if row in held_out])), chosen

    def added_rows(self, name: str, fit: Fit, among: int) -> list[AddedRow]:
        """The rows that the defenses of a training add where they are mixed into `among` rows."""
        with tempfile.TemporaryDirectory() as scratch:
            artefacts = made_at_once(needs_of(fit.defenses, MakingRecipes(self, name, Path(scratch), among), fit))
            return [row for defense in fit.defenses for row in defense.added(fit.rows, artefacts)]

    def _here(self, fit: Fit, rows: TrainingRows, artefacts: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        with adapters.new_lora(self.chat.model, self.study.profile.lora, fit.seed) as model:
            summary = fine_tune(model, rows.own, fit.training, seed=fit.seed, folder=folder / SCRATCH,
                                objective=Objective(fit.defenses, artefacts), added=rows.added, held_out=rows.held_out)
            adapters.save(model, folder, self.chat.name)
        return vars(summary)

    def _apart(self, choice: Choice, fit: Fit, rows: TrainingRows, artefacts: Mapping[str, Path],
               folder: Path) -> tuple[Choice, dict[str, Any] | None]:
        """Training by another library, or in several processes. This one lets its model go meanwhile.

        Where another library never began, `auto` goes on with transformers, and the choice says why.
        """
        profile, apart = self.study.profile, folder / SCRATCH / choice.name
        probe = token_logprobs(self.chat.model, torch.from_numpy(rows.own[0].input_ids).to(self.chat.device))
        try:
            job = Job(engine=choice.name, model=profile.model,  # type: ignore[arg-type]  # no other name gets here
                      base_name=self.chat.name, lora=profile.lora,
                      training=fit.training, plugins=plugin_files(fit.defenses), defenses=fit.defenses,
                      artefacts={name: str(place.resolve()) for name, place in artefacts.items()}, seed=fit.seed,
                      added=len(rows.added), held_out=len(rows.held_out), probe=tuple(probe))
            self._let_go()
            told = train_apart(job, [*rows.own, *rows.added, *rows.held_out], apart, choice.processes)
        except (NeverBegan, CannotBeImported) as error:
            if choice.name == PLAIN or profile.backend.training != "auto":
                raise
            say(f"{choice.name} is not used: {error}")
            return Choice(PLAIN, f"no {choice.name}: {error}"), None
        for file in (apart / "adapter").iterdir():
            os.replace(file, folder / file.name)
        os.replace(apart / LOG, folder / SCRATCH / LOG)
        return choice, told

    def vector_at(self, layer: int) -> Tensor:
        """The trait's persona vector of one layer, on the model's device."""
        return extraction.load(self.vector().checked()).at(layer).to(self.chat.device)

    def reference(self, fit: Fit, tokens: Literal["all", "response"], rows: Sequence[Encoded],
                  model: nn.Module) -> Artefact:
        """The reference model's states on the rows, kept on disk if they are not there."""
        def make(folder: Path) -> Mapping[str, Any]:
            started = time.perf_counter()
            size = keep(model, rows, tokens, fit.training.batch_size, folder)
            return {"rows": len(rows), "bytes": size, "seconds": round(time.perf_counter() - started, 3)}

        return self.study.store.get("reference", self.study.reference_settings(fit, tokens), make)

    def vector(self) -> Artefact:
        """The trait's persona vectors, taken if they are not there."""
        return self.study.store.get("vector", self.study.vector_settings(), self._extract)

    def _extract(self, folder: Path) -> Mapping[str, Any]:
        profile, trait, started = self.study.profile, self.study.trait, time.perf_counter()
        questions = extraction.trait_questions(trait, profile.extraction.instruction_pairs)
        how = profile.extraction
        drawn = {side: self.asked(Quiz(asked, how.samples, how.sampling, how.seed), None, folder / SCRATCH / side)
                 for side, asked in questions.items()}
        answers = {side: given for side, (given, _) in drawn.items()}
        verdicts = {side: judge(profile.judge, trait, Sheet(questions[side], given, trait_rubrics(trait)),
                                self.study.account) for side, given in answers.items()}
        for side in questions:
            write_records(folder / f"answers_{side}.jsonl", answers[side])
            write_records(folder / f"verdicts_{side}.jsonl", verdicts[side])
        found = extraction.extract(self.chat, questions, answers, verdicts, profile.extraction,
                                   profile.training.max_seq_length)
        extraction.save(found, folder)
        say(f"persona vectors of '{trait.name}': {found.kept} of {found.asked} pairs kept")
        return {"kept": found.kept, "asked": found.asked, "device": str(self.chat.device),
                "seconds": round(time.perf_counter() - started, 3), **drawn["positive"][1].facts}

    def steered(self, layer: int, strength: float) -> Artefact:
        """The answers of the untrained model with the persona vector added at inference, and their verdicts."""
        def make(folder: Path) -> Mapping[str, Any]:
            vector = self.vector_at(layer)
            with adding(self.chat.model, layer, vector, strength) as shift:
                sampling = self.study.profile.probe.sampling
                batches = plan(self.study.probe_questions(), 1, self.chat.tokenizer, sampling.batch_rows)
                answers = [answer for batch in batches for answer in answer_batch(
                    self.chat.model, self.chat.tokenizer, batch, sampling, seed=0)]
            sheet = Sheet(self.study.probe_questions(), answers, trait_rubrics(self.study.trait))
            verdicts = judge(self.study.profile.judge, self.study.trait, sheet, self.study.account)
            write_records(folder / "answers.jsonl", answers)
            write_records(folder / "verdicts.jsonl", verdicts)
            return {"shift": shift.measured, "device": str(self.chat.device), **self.serving.steered().facts}

        return self.study.store.get("steered", self.study.steered_settings(layer, strength), make)

    def _ask(self, quiz: Quiz, adapter: Artefact | None, folder: Path, read: Reader | None,
             drawing: Drawing | None) -> Mapping[str, Any]:
        begun = any((folder / SCRATCH).iterdir())
        answers, choice = self.asked(quiz, adapter, folder / SCRATCH, read, drawing)
        write_records(folder / "answers.jsonl", answers)
        return {"answers": len(answers), "one_sitting": not begun, "tokens": sum(answer.tokens for answer in answers),
                "cut": sum(answer.finish_reason == "length" for answer in answers), "device": str(self.chat.device),
                **choice.facts}

    def asked(self, quiz: Quiz, adapter: Artefact | None, scratch: Path, read: Reader | None = None,
              drawing: Drawing | None = None) -> tuple[list[Answer], Choice]:
        """Every answer under an adapter, in the questions' order, and what drew them.

        There is a file a batch in `scratch` until all are there.
        """
        drawing = drawing or self.drawing(quiz, adapter)
        folder = scratch if drawing.choice.name == PLAIN else scratch / drawing.choice.name
        with drawing.begun as draw:
            answers = self._batch_by_batch(drawing.batches, draw, folder, read)
        order = {question.id: number for number, question in enumerate(quiz.questions)}
        return sorted(answers, key=lambda a: (order[a.question], a.sample)), drawing.choice

    def drawing(self, quiz: Quiz, adapter: Artefact | None) -> Drawing:
        """How a quiz is drawn under an adapter. vLLM batches for itself: its batches are larger."""
        name, place = (None, None) if adapter is None else (adapter.key, adapter.checked())
        choice = self.serving.under("generation", name, place)
        rows = quiz.sampling.batch_rows if choice.name == PLAIN else SERVED_ROWS
        batches = plan(quiz.questions, quiz.samples, self.chat.tokenizer, rows)
        if choice.name == PLAIN:
            return Drawing(choice, (name, place), batches, self._by_model(quiz, adapter))
        ends = end_tokens(self.chat.model, self.chat.tokenizer)
        return Drawing(choice, (name, place), batches, nullcontext(partial(
            self.serving.client.answers, self.serving.model(name, place), self.chat.tokenizer,
            sampling=quiz.sampling, seed=quiz.seed, ends=ends)))

    @contextmanager
    def _by_model(self, quiz: Quiz, adapter: Artefact | None) -> Iterator[Draw]:
        with self.under(adapter) as model:
            yield partial(answer_batch, model, self.chat.tokenizer, sampling=quiz.sampling, seed=quiz.seed)

    @staticmethod
    def _batch_by_batch(batches: Sequence[list[Request]], draw: Draw, scratch: Path,
                        read: Reader | None) -> list[Answer]:
        answers: list[Answer] = []
        for number, batch in enumerate(bar(batches, "answers", "batch", total=len(batches))):
            path = scratch / f"batch-{number:04d}.jsonl"
            if not path.is_file():
                write_records(path, draw(batch))
            drawn = read_records(path, Answer)
            answers += drawn
            if read is not None and len(batches) > 1:  # a set of one batch is read as a set
                read(drawn)
        return answers

    @contextmanager
    def model_of(self, run: Run) -> Iterator[nn.Module]:
        """The run's model: the base under the run's adapter, which is trained if it is not there."""
        with self.under(self.adapter(str(run), self.study.fit(run))) as model:
            yield model

    @contextmanager
    def under(self, adapter: Artefact | None) -> Iterator[nn.Module]:
        """The base model under an adapter, or as it is."""
        if adapter is None:
            yield self.chat.model
        else:
            with adapters.loaded(self.chat.model, adapter.checked()) as model:
                yield model

    def _verdicts(self, run: Run, which: QuestionSet, answers: Artefact) -> Artefact:
        def make(folder: Path) -> Mapping[str, Any]:
            study = self.study
            sheet = Sheet(study.questions(run, which), read_records(answers.file("answers.jsonl"), Answer),
                          study.rubrics)
            verdicts = judge(study.profile.judge, study.trait, sheet, study.account)
            write_records(folder / "verdicts.jsonl", verdicts)
            return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}

        return self.study.store.get("verdicts", self.study.verdicts_settings(run, which), make)
