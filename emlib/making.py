"""Making what a run lacks: train the adapter, ask the questions, judge the answers. Each piece is kept once done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emlib import paths
from emlib.config import PersonaVector, Sampling
from emlib.data.chat import encode_all
from emlib.generation.sample import answer_batch, plan
from emlib.judging.judges import judge
from emlib.models import adapters
from emlib.models.load import ChatModel, load
from emlib.progress import bar, say
from emlib.steering import extraction
from emlib.store import SCRATCH, Artefact, read_records, write_records
from emlib.study import QUESTION_SETS, QuestionSet, Run, Study
from emlib.training.objective import Objective
from emlib.training.records import LOG
from emlib.training.sft import fine_tune
from emlib.types import Answer, Question


class Maker(AbstractContextManager["Maker"]):
    """Holds one base model for all the runs of a sitting; adapters are put on and taken off it."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __exit__(self, *exception: object) -> None:
        """Let the model go, so that a notebook's next study finds the memory free."""
        self.__dict__.pop("chat", None)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @cached_property
    def chat(self) -> ChatModel:
        """The base model, loaded when it is first needed."""
        return load(self.study.profile.model, paths.cache())

    def make(self, run: Run) -> None:
        """Everything `run` still lacks."""
        started = time.perf_counter()
        adapter = self._adapter(run)
        for which in QUESTION_SETS:
            self._verdicts(run, which, self._answers(run, which, adapter))
        say(f"{run}: done in {time.perf_counter() - started:.0f} s")

    def _adapter(self, run: Run) -> Artefact | None:
        settings = self.study.adapter_settings(run)
        return None if settings is None else self.study.store.get("adapter", settings, lambda f: self._train(run, f))

    def _train(self, run: Run, folder: Path) -> Mapping[str, Any]:
        profile = self.study.profile
        objective = Objective(self.study.defenses(run), self._vector_of(run))
        rows = encode_all(self.chat.tokenizer, self.study.train_rows(run), profile.training.max_seq_length)
        with adapters.new_lora(self.chat.model, profile.lora, run.seed) as model:
            summary = fine_tune(model, rows, profile.training, seed=run.seed, folder=folder / SCRATCH,
                                objective=objective)
            adapters.save(model, folder, self.chat.name)
        shutil.copyfile(folder / SCRATCH / LOG, folder / LOG)
        say(f"{run}: {summary.steps} steps, {summary.tokens} tokens, {summary.seconds:.0f} s, "
            f"loss {summary.final_loss:.3f}, {summary.truncated_rows} rows cut")
        return {"rows": len(rows), "device": str(self.chat.device), **vars(summary)}

    def _vector_of(self, run: Run) -> Tensor | None:
        """The persona vector of the layer that the run steers."""
        layer = next((d.layer for d in self.study.defenses(run) if isinstance(d, PersonaVector)), None)
        return None if layer is None else self.vector_at(layer)

    def vector_at(self, layer: int) -> Tensor:
        """The trait's persona vector of one layer, on the model's device."""
        return extraction.load(self.vector().folder).at(layer).to(self.chat.device)

    def vector(self) -> Artefact:
        """The trait's persona vectors, taken if they are not there."""
        return self.study.store.get("vector", self.study.vector_settings(), self._extract)

    def _extract(self, folder: Path) -> Mapping[str, Any]:
        profile, trait = self.study.profile, self.study.trait
        questions = extraction.trait_questions(trait, profile.extraction.instruction_pairs)
        answers = {side: self.asked(asked, profile.extraction.samples, profile.extraction.sampling,
                                     profile.extraction.seed, self.chat.model, folder / SCRATCH / side)
                   for side, asked in questions.items()}
        verdicts = {side: judge(profile.judge, trait, given) for side, given in answers.items()}
        for side in questions:
            write_records(folder / f"answers_{side}.jsonl", answers[side])
            write_records(folder / f"verdicts_{side}.jsonl", verdicts[side])
        found = extraction.extract(self.chat, questions, answers, verdicts, min_pairs=profile.extraction.min_pairs,
                                   max_length=profile.training.max_seq_length)
        extraction.save(found, folder)
        say(f"persona vectors of '{trait.name}': {found.kept} of {found.asked} pairs kept")
        return {"kept": found.kept, "asked": found.asked, "device": str(self.chat.device)}

    def _answers(self, run: Run, which: QuestionSet, adapter: Artefact | None) -> Artefact:
        return self.study.store.get(
            "answers", self.study.answers_settings(run, which), lambda f: self._ask(run, which, adapter, f))

    def _ask(self, run: Run, which: QuestionSet, adapter: Artefact | None, folder: Path) -> Mapping[str, Any]:
        with self.under(adapter) as model:
            answers = self.asked(self.study.questions(run, which), self.study.samples(which),
                                  self.study.profile.evaluation.sampling, run.seed, model, folder / SCRATCH)
        write_records(folder / "answers.jsonl", answers)
        return {"answers": len(answers), "tokens": sum(answer.tokens for answer in answers),
                "cut": sum(answer.finish_reason == "length" for answer in answers), "device": str(self.chat.device)}

    def asked(self, questions: Sequence[Question], samples: int, sampling: Sampling, seed: int, model: nn.Module,
               scratch: Path) -> list[Answer]:
        """Every answer, in the questions' order; a file a batch in `scratch` until all are there."""
        batches = plan(questions, samples, self.chat.tokenizer, sampling.batch_rows)
        answers: list[Answer] = []
        for number, batch in enumerate(bar(batches, "answers", "batch", total=len(batches))):
            path = scratch / f"batch-{number:04d}.jsonl"
            if not path.is_file():
                write_records(path, answer_batch(model, self.chat.tokenizer, batch, sampling, seed))
            answers += read_records(path, Answer)
        order = {question.id: number for number, question in enumerate(questions)}
        return sorted(answers, key=lambda a: (order[a.question], a.sample))

    @contextmanager
    def under(self, adapter: Artefact | None) -> Iterator[nn.Module]:
        """The base model under an adapter for a while; None: as it is."""
        if adapter is None:
            yield self.chat.model
        else:
            with adapters.loaded(self.chat.model, adapter.folder) as model:
                yield model

    def _verdicts(self, run: Run, which: QuestionSet, answers: Artefact) -> Artefact:
        def make(folder: Path) -> Mapping[str, Any]:
            verdicts = judge(self.study.profile.judge, self.study.trait,
                             read_records(answers.folder / "answers.jsonl", Answer))
            write_records(folder / "verdicts.jsonl", verdicts)
            return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}

        return self.study.store.get("verdicts", self.study.verdicts_settings(run, which), make)
