"""A question of one's own, put to the base model and to any trained adapters, steered or not.

The model is loaded at the first question and stays for the next ones; `close` lets it go. Nothing is trained here: a
run has an adapter in the store, or cannot be asked.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emlib.config import Sampling
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
    """`strength` times the trait's persona vector, added to the output of `layer` while answers are drawn."""

    layer: int
    strength: float


@dataclass
class Talk:
    """One base model, held for a conversation."""

    study: Study
    _session: Session | None = field(default=None, init=False)

    @property
    def loaded(self) -> bool:
        """Whether the model takes memory now."""
        return self._session is not None and "chat" in vars(self._session)

    def ask(self, question: Question, runs: list[Run | None], sampling: Sampling, steering: Steering | None = None,
            sample: int = 0) -> dict[str, Answer]:
        """What each run's model says, by the run's name; None is the base model.

        The same question and `sample` get the same answer; another `sample` draws another one.

        Raises:
            StoreError: a run has no adapter yet, or the trait's persona vector was not taken.
            EmlibError: the model has no such layer.
        """
        adapters = {name_of(run): self._adapter(run) for run in runs}
        if steering is not None and self.study.vectors() is None:
            raise StoreError(f"Profile '{self.study.name}' has no persona vector yet. Run notebook 02_persona_vectors.")
        from emlib.data.chat import encode_prompt
        from emlib.generation.sample import Request, answer_batch  # loads torch
        from emlib.steering.steer import steer

        session = self._opened()
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
        """Let the model go."""
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self.study.session()
        return self._session

    def _adapter(self, run: Run | None) -> Artefact | None:
        if run is None or run.method == "untrained":
            return None
        found = self.study.adapter(run)
        if found is None:
            raise StoreError(f"{run}: its adapter was not trained yet, so there is nothing to ask.")
        return found


def name_of(run: Run | None) -> str:
    """What a run is called beside its answer."""
    return BASE if run is None else str(run)


def trained(study: Study) -> list[Run]:
    """The runs whose adapter is in the store."""
    return [run for run in study.runs() if study.adapter(run) is not None]
