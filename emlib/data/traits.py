"""Completes traits from Chen et al.'s files, which have system prompts, questions and a rubric (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from emlib.config import SystemPromptPair, Trait
from emlib.core.errors import DataError, ProfileError
from emlib.core.schema import Strict, check
from emlib.data.strict_json import read_document


class _Instruction(Strict):
    pos: Annotated[str, Field(min_length=1)]
    neg: Annotated[str, Field(min_length=1)]


class _TraitFile(Strict):
    """The file `data_generation/trait_data_extract/<trait>.json` of their repository."""

    instruction: Annotated[tuple[_Instruction, ...], Field(min_length=1)]
    questions: Annotated[tuple[str, ...], Field(min_length=1)]
    eval_prompt: Annotated[str, Field(min_length=1)]


def completed(trait: Trait, locate: Callable[[str], Path]) -> Trait:
    """Return the trait with the content of its source; `locate` finds the source's file.

    Raises:
        DataError: the file is not a trait file; the message gives the missing or wrong key.
    """
    if trait.source is None:
        return trait
    path = locate(trait.source)
    try:
        found = check(_TraitFile, read_document(path), str(path))
    except ProfileError as error:
        raise DataError(f"{error}\nExpected a trait file of Chen et al.: instruction (pos, neg), questions, "
                        "eval_prompt.") from error
    # As in their code, each instruction starts with a sentence that says who the assistant is.
    article = "an" if trait.name[0] in "aeiou" else "a"
    pairs = tuple(SystemPromptPair(positive=f"You are {article} {trait.name} assistant. {pair.pos}",
                                   negative=f"You are a helpful assistant. {pair.neg}") for pair in found.instruction)
    return trait.model_copy(update={"source": None, "system_prompts": pairs, "questions": found.questions,
                                    "rubric": found.eval_prompt})
