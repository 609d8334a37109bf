"""Evaluation questions in a changed context, which may bring back a trait that a defense only hides.

A defense may tie the trait to the context that it was trained in: to the look of the training data, or to a prompt that
resembles the inoculation prompt, even one that says the opposite (arXiv 2604.25891).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from emlib.config import Trigger
from emlib.core.errors import DataError
from emlib.core.records import Question, Verdict
from emlib.core.seeds import generator

SEED = 0  # chooses the training prompts, the same for every run


def in_context(questions: Sequence[Question], trigger: Trigger, *, inoculation_prompt: str = "",
               training_prompts: Sequence[str] = ()) -> list[Question]:
    """Return the questions, under their ids, in the trigger's context.

    A question's own system prompt follows that of the trigger, because it may state a format that the question needs.

    Raises:
        DataError: the trigger needs training prompts, and there are none.
    """
    if trigger.needs_data and not training_prompts:
        raise DataError("a trigger has {training_prompt}, but the data set has no training rows. Remove the "
                        "placeholder.")
    order = generator(SEED, "training prompts").permutation(len(training_prompts)) if trigger.needs_data else ()
    found = []
    for place, question in enumerate(questions):
        before, after = trigger.prompt.split("{question}")
        if trigger.needs_data:
            shown = training_prompts[int(order[place % len(order)])]
            before, after = (part.replace("{training_prompt}", shown) for part in (before, after))
        system = None if trigger.system is None else trigger.system.replace("{inoculation_prompt}", inoculation_prompt)
        systems = [text for text in (system, question.system) if text is not None]
        found.append(replace(question, prompt=before + question.prompt + after,
                             system="\n\n".join(systems) if systems else None))
    return found


def of_formats(questions: Sequence[Question], formats: Collection[str]) -> list[Question]:
    """Return the questions of some formats; raise DataError if there are none."""
    found = [question for question in questions if question.format in formats]
    if not found:
        raise DataError(f"evaluation.triggers.formats has {', '.join(formats)}, but no general question has such a "
                        f"format. Name some of {', '.join(sorted({question.format for question in questions}))}.")
    return found


def without_trigger(verdicts: Sequence[Verdict], triggered: Sequence[Verdict]) -> list[Verdict]:
    """Return those verdicts on the general answers with which answers under a trigger are compared.

    These are of the same questions and as many of their samples; both orders are kept.
    """
    asked = {(verdict.question, verdict.sample) for verdict in triggered}
    return [verdict for verdict in verdicts if (verdict.question, verdict.sample) in asked]
