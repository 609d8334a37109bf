"""Asks the base model and trained adapters the user's question, with or without steering.

The model is loaded for the first question and kept for the next ones; `close` frees it. Nothing is trained here: only
runs with an adapter in the store can be asked.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emlib.config import UNTRAINED, Sampling
from emlib.core.errors import StoreError
from emlib.core.records import Answer, Question
from emlib.store.artefacts import Artefact
from emlib.study.runs import Run
from emlib.study.study import Study

if TYPE_CHECKING:
    from emlib.make.session import Session

BASE = "the base model"


@dataclass(frozen=True)
class Steering:
    """`strength` times the trait's persona vector, added to the output of `layer` while answers are sampled."""

    layer: int
    strength: float


@dataclass
class Talk:
    """A conversation with one loaded base model and its adapters."""

    study: Study
    _session: Session | None = field(default=None, init=False)

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded."""
        return self._session is not None and "chat" in vars(self._session)

    def ask(self, question: Question, runs: list[Run | None], sampling: Sampling, steering: Steering | None = None,
            sample: int = 0) -> dict[str, Answer]:
        """Return each run's answer by the run's name; None is the base model.

        The same question and `sample` give the same answer; another `sample` gives another one.

        Raises:
            StoreError: a run has no adapter yet, or the trait's persona vector is not in the store.
            EmlibError: the model has no such layer.
        """
        adapters = {BASE if run is None else str(run): self._adapter(run) for run in runs}
        if steering is not None and self.study.vectors() is None:
            raise StoreError(f"Profile '{self.study.name}' has no persona vector yet. Run notebook 03_persona_vectors.")
        from emlib.data.chat import encode_prompt
        from emlib.generation.sample import Request, answer_batch  # loads torch
        from emlib.steering.steer import steer

        self._session = session = self._session or self.study.session()
        request = Request(question, sample, tuple(encode_prompt(session.chat.tokenizer, question.context)))
        answers = {}
        vector = session.vector(self.study.recipes.vector(), steering.layer) if steering else None
        for name, adapter in adapters.items():
            with session.model_under(adapter) as model, (
                    steer(model, steering.layer, vector, steering.strength)
                    if steering is not None and vector is not None else nullcontext()):
                [answers[name]] = answer_batch(model, session.chat.tokenizer, [request], sampling, seed=0)
        return answers

    def close(self) -> None:
        """Free the model."""
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None

    def _adapter(self, run: Run | None) -> Artefact | None:
        if run is None or run.method == UNTRAINED:
            return None
        found = self.study.adapter(run)
        if found is None:
            raise StoreError(f"{run}: its adapter is not trained yet. Run `{self.study.command}`.")
        return found


def trained(study: Study) -> list[Run]:
    """Return the runs whose adapter is in the store."""
    return [run for run in study.runs() if study.adapter(run) is not None]
