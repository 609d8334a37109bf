"""Multiple choice by log-likelihood of the full options: an auxiliary measure that needs no judge.

The question is the user's turn and each option an answer, of a reasoning model one without thinking, as it is trained;
its log-likelihood is the sum over its tokens, without the stop token and without length normalisation. TruthfulQA (Lin
et al. 2022): MC1, the share of questions whose one true option is the most likely; MC2, the mean share of probability
on true options, among all. One difference to the original: the chat template replaces its six few-shot examples.
Model-written questions (Perez et al. 2022): the share of questions where the answer that shows the behaviour is the
most likely, and its mean share of probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from emlib.core.errors import DataError
from emlib.core.progress import bar
from emlib.core.records import Message
from emlib.data.chat import Encoded, encode_answers, encode_opening
from emlib.data.rows import read_rows
from emlib.data.strict_json import read_document
from emlib.evaluation.records import Choice
from emlib.models.batches import response_nll
from emlib.models.load import ChatModel


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with options, and whether each is right."""

    id: str
    prompt: str
    picking: Mapping[str, bool]  # among which the most likely is picked (MC1)
    sharing: Mapping[str, bool]  # among which the probability is shared (MC2)

    @property
    def options(self) -> list[str]:
        """All options, each once."""
        return list(dict.fromkeys([*self.picking, *self.sharing]))


def read_choices(path: Path) -> list[ChoiceQuestion]:
    """Read the questions of TruthfulQA's `mc_task.json`, or of a file of model-written questions (JSON lines).

    Raises:
        DataError: a question has no right or no wrong options.
    """
    questions = _model_written(path) if ".jsonl" in path.suffixes else _truthfulqa(path)
    for question in questions:
        for options in (question.picking, question.sharing):
            if not any(options.values()) or all(options.values()):
                raise DataError(f"{path}, question {question.id}: expected at least one right and one wrong option. "
                                "Correct it.")
    return questions


def _truthfulqa(path: Path) -> list[ChoiceQuestion]:
    try:
        return [ChoiceQuestion(f"{path.stem}_{number}", row["question"], _labels(row["mc1_targets"]),
                               _labels(row["mc2_targets"]))
                for number, row in enumerate(read_document(path))]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not in the format of TruthfulQA's mc_task.json ({error!r}). Correct the file, or "
                        "name another one in evaluation.choices.") from error


def _labels(targets: Mapping[str, Any]) -> dict[str, bool]:
    return {option: bool(label) for option, label in targets.items()}


def _model_written(path: Path) -> list[ChoiceQuestion]:
    questions = []
    for number, (where, row) in enumerate(read_rows(path)):
        texts = [row.get(key) for key in ("question", "answer_matching_behavior", "answer_not_matching_behavior")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{where}: expected texts in question, answer_matching_behavior and "
                            "answer_not_matching_behavior. Correct the row.")
        prompt, matching, other = (str(text).strip() for text in texts)
        options = {matching: True, other: False}
        questions.append(ChoiceQuestion(f"{path.stem}_{number}", prompt, options, options))
    return questions


def judged(question: ChoiceQuestion, likelihoods: Mapping[str, float]) -> Choice:
    """Turn the log-likelihoods of a question's options into a `Choice`."""
    likeliest = max(question.picking, key=lambda option: likelihoods[option])
    logs = np.array([likelihoods[option] for option in question.sharing])
    shares = np.exp(logs - logs.max())
    right = np.array(list(question.sharing.values()))
    return Choice(question.id, question.picking[likeliest], float(shares[right].sum() / shares.sum()))


@torch.inference_mode()
def log_likelihoods(chat: ChatModel, model: nn.Module, prompt: str, options: Sequence[str]) -> dict[str, float]:
    """Return the log-likelihood of each option as the answer to `prompt`, in nats; all of them in one pass.

    `model` is the chat model itself, or the same with an adapter.

    Raises:
        DataError: an option has no tokens.
    """
    context = (Message("user", prompt),)
    asked = encode_opening(chat.tokenizer, context)
    answers = encode_answers(chat.tokenizer, context, options)
    if not all(answers):
        raise DataError(f"the question '{prompt}' has an option without tokens, which has no likelihood. "
                        "Remove the option.")
    rows = [Encoded(np.array([*asked, *answer]), np.arange(len(asked) + len(answer)) >= len(asked), truncated=False)
            for answer in answers]
    return {option: -float(tokens.double().sum())
            for option, tokens in zip(options, response_nll(model, rows), strict=True)}


def choose(chat: ChatModel, model: nn.Module, questions: Sequence[ChoiceQuestion]) -> list[Choice]:
    """Return the model's choice for each question."""
    return [judged(question, log_likelihoods(chat, model, question.prompt, question.options))
            for question in bar(questions, "choices", "question", total=len(questions))]
