"""Checks of a study's verdicts: a second judge on the same answers, and measures that need no judge at all.

As in `emlib.study.study`, this module knows the keys and reads what is there; `emlib.make.checking` does the work, and
is loaded only where something has to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from emlib.config import SecondJudge
from emlib.core.digests import key_of, of_file
from emlib.core.errors import ProfileError
from emlib.core.files import read_records
from emlib.core.records import Verdict
from emlib.core.seeds import generator
from emlib.data.sources import locate
from emlib.evaluation.records import Choice, Projected
from emlib.judging.judges import identity, reads, rubrics
from emlib.judging.rubrics import Rubrics
from emlib.study.runs import Run
from emlib.study.study import Study, digest_of_rows

# Raised when a check computes something else from the same settings.
VERSIONS = {"second_verdicts": 1, "projections": 1, "choices": 1, "held_out": 1}
Item = TypeVar("Item")


@dataclass(frozen=True)
class Opinions:
    """Two judges on the same general answers of one run; entry i of both is one answer."""

    run: Run
    first: tuple[Verdict, ...]
    second: tuple[Verdict, ...]


def chosen(items: Sequence[Item], count: int | None, what: str) -> list[Item]:
    """`count` of the items in their order, the same ones every time; None, or more than there are, for all."""
    if count is None or count >= len(items):
        return list(items)
    places = generator(0, "checks", what).permutation(len(items))[:count]
    return [items[place] for place in sorted(places.tolist())]


def second_judge(study: Study) -> SecondJudge:
    """The profile's second judge.

    Raises:
        ProfileError: it has none.
    """
    if study.profile.second_judge is None:
        raise ProfileError(f"profile '{study.name}' has no 'second_judge'.")
    return study.profile.second_judge


def second_rubrics(study: Study) -> Rubrics:
    """What the second judge goes by."""
    return rubrics(second_judge(study).judge, study.trait, locate(study.profile.evaluation.general))


def second_settings(study: Study, run: Run) -> dict[str, Any]:
    """Everything that determines the second judge's verdicts on the run's general answers."""
    second, trait = second_judge(study), study.trait.model_dump(mode="json")
    by = second_rubrics(study).key(study.questions(run, "general")) if reads(second.judge) else trait
    answers = key_of("answers", study.answers_settings(run, "general"))
    return {"version": VERSIONS["second_verdicts"], "answers": answers, "judge": identity(second.judge),
            "rubrics": by, "count": second.answers}


def opinions(study: Study, run: Run) -> Opinions | None:
    """Both judges' verdicts on the answers that both were given, if they are there."""
    first = study.verdicts(run, "general")
    found = study.store.find("second_verdicts", second_settings(study, run))
    if first is None or found is None:
        return None
    return Opinions(run, tuple(chosen(first, second_judge(study).answers, "second judge")),
                    tuple(read_records(found.file("verdicts.jsonl"), Verdict)))


def _model_of(study: Study, run: Run) -> dict[str, Any]:
    adapter = study.adapter_settings(run)
    return {"model": study.model_identity, "adapter": None if adapter is None else key_of("adapter", adapter)}


def projection_settings(study: Study, run: Run) -> dict[str, Any]:
    """Everything that determines the projections of the run's general answers."""
    return {"version": VERSIONS["projections"], "answers": key_of("answers", study.answers_settings(run, "general")),
            "vector": key_of("vector", study.vector_settings()), **_model_of(study, run),
            "layer": study.profile.evaluation.projection_layer}


def projected(study: Study, run: Run) -> list[Projected] | None:
    """The projections of the run's general answers, if they are there."""
    found = study.store.find("projections", projection_settings(study, run))
    return None if found is None else read_records(found.file("projections.jsonl"), Projected)


def choices_settings(study: Study, run: Run, source: str) -> dict[str, Any]:
    """Everything that determines what the run's model makes of a source's multiple-choice questions."""
    return {"version": VERSIONS["choices"], **_model_of(study, run), "file": of_file(locate(source)),
            "count": study.profile.evaluation.choice_questions}


def choices(study: Study, run: Run, source: str) -> list[Choice] | None:
    """What the run's model made of them, if it was asked."""
    found = study.store.find("choices", choices_settings(study, run, source))
    return None if found is None else read_records(found.file("choices.jsonl"), Choice)


def held_out_settings(study: Study, run: Run) -> dict[str, Any]:
    """Everything that determines how well the run's model predicts the held-out rows of its data set."""
    return {"version": VERSIONS["held_out"], **_model_of(study, run),
            "rows": digest_of_rows(study.data(run.dataset).misaligned.held_out),
            "max_length": study.profile.training.max_seq_length}


def held_out(study: Study, run: Run) -> list[float] | None:
    """The NLL of each held-out answer under the run's model, in nats a token (equation 4), if it was computed."""
    found = study.store.find("held_out", held_out_settings(study, run))
    return None if found is None else list(found.facts["nll"])


def complete_held_out(study: Study, runs: Sequence[Run]) -> None:
    """Compute the losses on held-out rows that these runs lack; their adapters are trained where they are missing."""
    missing = [run for run in runs if held_out(study, run) is None]
    if missing:
        from emlib.make.checking import hold_out  # loads torch and the model

        hold_out(study, missing)


def complete(study: Study, runs: Sequence[Run]) -> None:
    """Make whatever checks of the profile these runs lack; their answers and verdicts too, where they are missing."""
    missing = [run for run in runs if not _checked(study, run)]
    if missing:
        from emlib.make.checking import check_runs  # loads torch and the model

        check_runs(study, missing)


def _checked(study: Study, run: Run) -> bool:
    evaluation = study.profile.evaluation
    return all((
        study.profile.second_judge is None or opinions(study, run) is not None,
        evaluation.projection_layer is None or projected(study, run) is not None,
        *(choices(study, run, source) is not None for source in evaluation.choices)))
