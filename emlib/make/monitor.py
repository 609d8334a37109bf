"""What a monitor reads, tokenised once for all runs on a data set, and its reading of a finished adapter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from emlib.core.errors import ProfileError
from emlib.core.files import write_records
from emlib.core.progress import say
from emlib.core.seeds import some_of
from emlib.data.chat import Encoded, encode_all
from emlib.evaluation.records import READINGS
from emlib.generation.sample import known_ids
from emlib.judging.judges import ONLY_THINKS
from emlib.make.session import Session, maker
from emlib.models.kernels import fitted
from emlib.models.load import stop_tokens
from emlib.steering import extraction
from emlib.steps.monitor import FinalReading, MonitorInputs
from emlib.store.artefacts import Facts
from emlib.training.monitor import ModelReader, write_inputs


@maker.register
def inputs(step: MonitorInputs, session: Session, folder: Path) -> Facts:
    """Tokenise the answers and the rows that are read, and write them with the unit vectors."""
    tokenizer = session.chat.tokenizer
    rows = {} if step.held_out is None else {
        "held_out": encode_all(tokenizer, step.held_out.examples[:step.rows], step.max_length).rows}
    if step.pool is not None:
        some = some_of(session.read(step.pool), step.rows, "monitor")
        rows["pool"] = encode_all(tokenizer, some, step.max_length).rows
    answers, left_out = _answers(step, session)
    directions = {(trait, layer): extraction.unit(session.vector(vectors, layer).cpu(), layer)
                  for trait, vectors in step.vectors for layer in step.layers}
    write_inputs(folder, rows, answers, directions, end_of_turn=session.profile.extraction.end_of_turn,
                 drawn=step.drawn, stops=sorted(stop_tokens(session.chat.model, tokenizer)), known=known_ids(tokenizer),
                 tokens=0 if step.answers is None else step.answers.evaluation.sampling.max_new_tokens)
    return {"answers": len(answers), **{name: len(listed) for name, listed in rows.items()},
            **({"left_out": left_out} if left_out else {})}


def _answers(step: MonitorInputs, session: Session) -> tuple[list[Encoded], dict[str, int]]:
    """Return the base model's answers as tokenised conversations, and how many are left out, by reason."""
    if step.answers is None:
        return [], {}
    drawn = session.read(step.answers)
    if step.drawn and any(answer.without_thinking() != answer for answer in drawn):
        raise ProfileError("'monitor.answers' is drawn, but the model thinks before it answers, and the monitor would "
                           "compare its thoughts with the base model's answers. Set it to base.")
    answers = [answer for answer in drawn if answer.without_thinking().text.strip()]
    found = encode_all(session.chat.tokenizer, extraction.examples(step.answers.evaluation.questions.all, answers),
                       step.max_length)
    unclosed = sum(answer.final is None for answer in drawn)
    left_out = Counter({ONLY_THINKS: unclosed, "empty": len(drawn) - len(answers) - unclosed}) + found.reasons
    if left_out:
        say(f"{step.title}: {left_out.total()} of {len(drawn)} answers of the base model are left out ("
            + ", ".join(f"{reason}: {count}" for reason, count in left_out.items()) + ")")
    return found.rows, dict(left_out)


@maker.register
def final(step: FinalReading, session: Session, folder: Path) -> Facts:
    """Read the base model and the adapter."""
    assert step.adapter is not None, "the base model has no last step"
    place, found = session.folder_of(step.monitor), session.need(step.adapter)
    with session.model_under(found) as model, fitted(model):
        monitor = ModelReader(model, place, session.profile.training.batch_size)
        write_records(folder / READINGS, [monitor.base, monitor.read(found.facts["steps"])])
    return session.facts
