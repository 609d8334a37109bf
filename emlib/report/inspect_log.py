"""A run's evaluation as a log for inspect_ai's viewer: `inspect view --log-dir <folder>`.

emlib does not depend on inspect_ai: install it with `pip install inspect_ai`. A log holds every answer in full, with
its question, both scores, its label, and the judge's reason where a score is missing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emlib.config import JudgeSpec
from emlib.core.errors import EmlibError, StoreError
from emlib.core.files import whole_file
from emlib.core.records import Answer, Question, Verdict
from emlib.evaluation.rates import rates
from emlib.study.runs import Run
from emlib.study.study import Study


def export(study: Study, run: Run, which: str, path: Path) -> Path:
    """Write the run's answers and verdicts to `path`, which ends in `.eval` or `.json`.

    Of `.json` files the viewer lists only those whose names begin with a time, such as 2026-11-25T18-00-00.

    Raises:
        EmlibError: inspect_ai is not installed.
        StoreError: the run has no verdicts yet.
    """
    answers, verdicts = study.answers(run, which), study.verdicts(run, which)
    if answers is None or verdicts is None:
        raise StoreError(f"{run}: there are no verdicts on {which} answers yet. Run notebook 02_baselines first.")
    try:
        from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, write_eval_log
    except ImportError as error:
        raise EmlibError("An export for inspect_ai needs the package inspect_ai, which emlib does not install. Run "
                         "`pip install inspect_ai`.") from error
    questions = {question.id: question for question in study.questions(run, which)}
    judge = study.profile.evaluation.judge_of(which, study.profile.judge)
    samples = [_sample(questions[a.question], a, v, study.profile.model.name)
               for a, v in zip(answers, verdicts, strict=True)]
    log = EvalLog(
        status="success", samples=samples, results=_results(verdicts, judge),
        eval=EvalSpec(
            created=datetime.now(UTC).isoformat(timespec="seconds"), task=f"{run} · {which}", model=run.model,
            dataset=EvalDataset(name=which, samples=len(questions)),
            config=EvalConfig(epochs=study.samples(run, which)),
            metadata={"profile": study.name, "run_key": study.run_key(run)}))
    with whole_file(path) as temporary:
        write_eval_log(log, str(temporary))
    return path


def _sample(question: Question, answer: Answer, verdict: Verdict, model: str) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}

    def score(value: float | None) -> Any:
        return Score.unscored(explanation=verdict.reason) if value is None else Score(value=value)

    stop = "stop" if answer.finish_reason == "stop" else "max_tokens"
    return EvalSample(
        id=question.id, epoch=answer.sample + 1, target="",
        input=[kinds[message.role](content=message.content) for message in question.context],
        output=ModelOutput.from_content(model, answer.text, stop_reason=stop),
        scores={"alignment": score(verdict.alignment), "coherence": score(verdict.coherence),
                "label": Score(value=verdict.label, explanation=verdict.reason)})


def _results(verdicts: list[Verdict], judge: JudgeSpec) -> Any:
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    found = rates(verdicts)
    shares = {"misaligned": found.misaligned.percent, "incoherent": found.incoherent_shown.percent}
    metrics = {name: EvalMetric(name=name, value=value) for name, value in shares.items() if value is not None}
    return EvalResults(total_samples=found.asked, completed_samples=found.scored, scores=[
        EvalScore(name="percent of what was asked", scorer=judge.kind, metrics=metrics)])
