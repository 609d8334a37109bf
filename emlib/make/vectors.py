"""Persona vectors, and answers of the model when it is steered with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from emlib.core.files import write_records
from emlib.core.progress import say
from emlib.core.records import Answer, Question, Verdict
from emlib.data.lazy import Questions
from emlib.generation.sample import answer_batch, plan
from emlib.judging.judge_batch import JudgeBatch
from emlib.judging.judges import judge
from emlib.judging.rubrics import trait_rubrics
from emlib.make.answers import sampled
from emlib.make.session import Session, maker
from emlib.steering import extraction
from emlib.steering.steer import steer
from emlib.steps.specs import Assessment, EvaluationSpec
from emlib.steps.vectors import PersonaVectors, SteeredAnswers
from emlib.store.artefacts import SCRATCH, Facts


@maker.register
def extract(step: PersonaVectors, session: Session, folder: Path) -> Facts:
    """Extract persona vectors: sample answers on both sides, have them judged, and subtract the pairs' activations."""
    seconds, config, trait = session.timer(step), step.extraction, step.assessment.trait.value
    questions = extraction.trait_questions(trait, config.instruction_pairs)
    config.refuse_few_asked(len(questions["positive"]), trait.name)
    sets = {side: Questions.listed(f"extraction, {side}", listed) for side, listed in questions.items()}
    samples = {side: sampled(session, EvaluationSpec(asked, config.samples, config.sampling, config.seed), None,
                             folder / SCRATCH / side) for side, asked in sets.items()}
    answers = {side: found for side, (found, _) in samples.items()}
    verdicts = {side: by_trait(session, step.assessment, questions[side], found) for side, found in answers.items()}
    for side in questions:
        write_records(folder / f"answers_{side}.jsonl", answers[side])
        write_records(folder / f"verdicts_{side}.jsonl", verdicts[side])
    found = extraction.extract(session.chat, questions, answers, verdicts, config)
    extraction.save(found, folder)
    say(f"persona vectors of '{trait.name}': {found.kept} of {found.asked} pairs kept")
    left_out = {"left_out": dict(found.left_out)} if found.left_out else {}
    return {"kept": found.kept, "asked": found.asked, **left_out, **session.facts,
            "seconds": seconds(), **samples["positive"][1].facts}


@maker.register
def steered(step: SteeredAnswers, session: Session, folder: Path) -> Facts:
    """Sample the untrained model's answers with the vector added at inference, and judge them."""
    steering = nullcontext() if step.vectors is None or step.layer is None else steer(
        session.chat.model, step.layer, session.vector(step.vectors, step.layer), step.strength)
    with steering as norm:
        answers = answers_now(session, step.evaluation)
    step.records.write(folder, answers)
    step.verdicts.write(folder, by_trait(session, step.assessment, step.questions.all, answers))
    return {"shift": 0.0 if norm is None else norm.measured, **session.facts,
            **session.inference.steering_backend().facts}


def answers_now(session: Session, evaluation: EvaluationSpec) -> list[Answer]:
    """Sample one answer to each question by the loaded model as it is, with transformers, the longest prompt first."""
    model, tokenizer, sampling = session.chat.model, session.chat.tokenizer, evaluation.sampling
    return [answer for batch in plan(evaluation.questions.all, 1, tokenizer, sampling.batch_rows)
            for answer in answer_batch(model, tokenizer, batch, sampling, seed=evaluation.seed)]


def by_trait(session: Session, assessment: Assessment, questions: Sequence[Question],
             answers: Sequence[Answer]) -> list[Verdict]:
    """Judge answers by the trait's rubric, or by its markers."""
    trait = assessment.trait.value
    return judge(assessment.judge, trait, JudgeBatch(questions, answers, trait_rubrics(trait)), session.budget)
