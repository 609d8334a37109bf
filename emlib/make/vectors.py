"""Taking persona vectors, and trying them on the untrained model."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from emlib.core.files import write_records
from emlib.core.progress import say
from emlib.data.lazy import Questions
from emlib.generation.sample import answer_batch, plan
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge
from emlib.judging.rubrics import trait_rubrics
from emlib.make.answers import sampled
from emlib.steering import extraction
from emlib.steering.steer import steer
from emlib.steps.specs import EvaluationSpec
from emlib.steps.vectors import PersonaVectors, SteeredAnswers
from emlib.store.artefacts import SCRATCH, Facts

if TYPE_CHECKING:
    from emlib.make.session import Session


def extract(step: PersonaVectors, session: Session, folder: Path) -> Facts:
    """Ask on both sides, judge the answers, and take the difference of the activations of those pairs that count."""
    started, how, trait = time.perf_counter(), step.extraction, step.assessment.trait.value
    questions = extraction.trait_questions(trait, how.instruction_pairs)
    drawn = {side: sampled(session, EvaluationSpec(_given(side, asked), how.samples, how.sampling, how.seed), None,
                           folder / SCRATCH / side) for side, asked in questions.items()}
    answers = {side: given for side, (given, _) in drawn.items()}
    verdicts = {side: judge(step.assessment.judge, trait, JudgeBatch(questions[side], given, trait_rubrics(trait)),
                            session.budget) for side, given in answers.items()}
    for side in questions:
        write_records(folder / f"answers_{side}.jsonl", answers[side])
        write_records(folder / f"verdicts_{side}.jsonl", verdicts[side])
    found = extraction.extract(session.chat, questions, answers, verdicts, how,
                               session.profile.training.max_seq_length)
    extraction.save(found, folder)
    say(f"persona vectors of '{trait.name}': {found.kept} of {found.asked} pairs kept")
    return {"kept": found.kept, "asked": found.asked, **session.facts,
            "seconds": round(time.perf_counter() - started, 3), **drawn["positive"][1].facts}


def steered(step: SteeredAnswers, session: Session, folder: Path) -> Facts:
    """Answers of the untrained model with the vector added at inference, and their verdicts."""
    model, tokenizer = session.chat.model, session.chat.tokenizer
    questions, trait = step.questions.all, step.assessment.trait.value
    steering = nullcontext() if step.vectors is None or step.layer is None else steer(
        model, step.layer, session.vector(step.vectors, step.layer), step.strength)
    with steering as shift:
        answers = [answer for batch in plan(questions, 1, tokenizer, step.sampling.batch_rows)
                   for answer in answer_batch(model, tokenizer, batch, step.sampling, seed=0)]
    verdicts = judge(step.assessment.judge, trait, JudgeBatch(questions, answers, trait_rubrics(trait)), session.budget)
    write_records(folder / "answers.jsonl", answers)
    write_records(folder / "verdicts.jsonl", verdicts)
    return {"shift": 0.0 if shift is None else shift.measured, **session.facts, **session.inference.steered().facts}


def _given(side: str, questions: list) -> Questions:
    return Questions(f"extraction, {side}", lambda: questions, lambda sizes: sizes.source(side))
