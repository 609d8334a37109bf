"""Making the checks of a study: the second judge's verdicts, projections, multiple choice. Each is kept once done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emlib.core.files import write_records
from emlib.core.progress import say
from emlib.data.chat import encode_all
from emlib.data.sources import locate
from emlib.evaluation.choices import choose, read_choices
from emlib.evaluation.projection import projections
from emlib.evaluation.records import Projected
from emlib.judging.judge_batch import Sheet
from emlib.judging.judges import judge
from emlib.make.maker import Maker
from emlib.scoring.loss_cache import Ledger
from emlib.scoring.nll import score
from emlib.steering import extraction
from emlib.store.artefacts import SCRATCH
from emlib.study import checks
from emlib.study.runs import Run
from emlib.study.study import Study

TOKENS_A_PASS = 2048  # of held-out rows, padding included


def check_runs(study: Study, runs: Sequence[Run]) -> None:
    """Everything of the profile's checks that these runs lack."""
    evaluation = study.profile.evaluation
    with Maker(study) as maker:
        for run in runs:
            if (wait := maker.make(run)) is not None:
                raise wait
            if study.profile.second_judge is not None:
                study.store.get("second_verdicts", checks.second_settings(study, run),
                                partial(_second_verdicts, study, run))
            if evaluation.projection_layer is not None:
                study.store.get("projections", checks.projection_settings(study, run),
                                partial(_projections, maker, run))
            for source in evaluation.choices:
                study.store.get("choices", checks.choices_settings(study, run, source),
                                partial(_choices, maker, run, source))


def hold_out(study: Study, runs: Sequence[Run]) -> None:
    """How well these runs' models predict the held-out rows of their data sets."""
    with Maker(study) as maker:
        for run in runs:
            study.store.get("held_out", checks.held_out_settings(study, run), partial(_held_out, maker, run))


def _held_out(maker: Maker, run: Run, folder: Path) -> Mapping[str, Any]:
    held_out = maker.study.data(run.dataset).misaligned.held_out
    rows = encode_all(maker.chat.tokenizer, held_out, maker.study.profile.training.max_seq_length)
    with maker.model_of(run) as model:
        losses = score(model, rows, Ledger(folder / SCRATCH / "nll.jsonl"), TOKENS_A_PASS, f"{run}: held-out rows")
    say(f"{run}: {len(losses)} held-out rows, {sum(losses) / len(losses):.3f} nats a token")
    return {"nll": losses, "device": str(maker.chat.device)}


def _second_verdicts(study: Study, run: Run, folder: Path) -> Mapping[str, Any]:
    second = checks.second_judge(study)
    answers = checks.chosen(study.answers(run, "general") or [], second.answers, "second judge")
    sheet = Sheet(study.questions(run, "general"), answers, checks.second_rubrics(study))
    verdicts = judge(second.judge, study.trait, sheet, study.account)
    write_records(folder / "verdicts.jsonl", verdicts)
    return {"asked": len(verdicts), "scored": sum(verdict.scored for verdict in verdicts)}


def _projections(maker: Maker, run: Run, folder: Path) -> Mapping[str, Any]:
    study = maker.study
    layer = study.profile.evaluation.projection_layer
    assert layer is not None, "asked for by a profile that names a layer"
    vector = extraction.load(maker.vector().checked()).at(layer)
    answers = study.answers(run, "general") or []
    conversations = extraction.examples(study.questions(run, "general"), answers)
    rows = encode_all(maker.chat.tokenizer, conversations, study.profile.training.max_seq_length)
    with maker.model_of(run) as model:
        values = projections(model, rows, vector, layer)
    write_records(folder / "projections.jsonl", [
        Projected(answer.question, answer.sample, value) for answer, value in zip(answers, values, strict=True)])
    return {"answers": len(values), "device": str(maker.chat.device)}


def _choices(maker: Maker, run: Run, source: str, folder: Path) -> Mapping[str, Any]:
    questions = checks.chosen(read_choices(locate(source)), maker.study.profile.evaluation.choice_questions, "choices")
    with maker.model_of(run) as model:
        made = choose(maker.chat, model, questions)
    write_records(folder / "choices.jsonl", made)
    return {"questions": len(made), "device": str(maker.chat.device)}
