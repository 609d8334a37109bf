"""The results of a batch, line by line: scores, and why others have none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from emlib.judging import faults, replies
from emlib.judging.faults import Failure, Fault, PromptRefused, Rejected, TransientFault
from emlib.judging.rubrics import Score
from emlib.judging.server_errors import error_in, error_of, refusal_in


@dataclass(frozen=True)
class Line:
    """One line of a batch's results, which has a score or a fault."""

    key: str  # of the score
    reply: Any  # the chat completion; None where there is none
    score: Score | None
    fault: Failure | None
    is_label: bool = False  # whether a label was asked for, and not a number

    @property
    def reason(self) -> str:
        """Why there is no score, for people."""
        return self.fault.reason if isinstance(self.fault, Fault) else str(self.fault)

    def lasting(self, others_answered: bool) -> Score | None:
        """Return what is known for good: a score, or the reason why the server never takes this prompt.

        Where it took other prompts of the batch, it rejects this one for itself.
        """
        if isinstance(self.fault, PromptRefused):
            return Score(None, reason=self.fault.reason)
        if isinstance(self.fault, TransientFault) and self.fault.refused is not None:
            return Score(None, reason=self.fault.refused)
        if isinstance(self.fault, Rejected) and others_answered:
            return Score(None, reason=f"the server refuses the prompt: {self.reason}")
        return self.score


def read_lines(content: bytes, model: str, judge_key: str, labels: Collection[str] = ()) -> Iterator[Line]:
    """Yield the lines of a result file; the errors that they hold are shown without `judge_key`.

    `labels` are the keys of the scores that are to be labels. A line that is no JSON, or names no score, is left out:
    its score counts as unanswered.
    """
    for text in filter(None, content.split(b"\n")):
        try:
            row = replies.parse(text)
            key, response = str(row["custom_id"]), row.get("response") or {}
            status, reply = response.get("status_code"), response.get("body")
            error = error_in(reply) if status == 200 or refusal_in(reply) else reply or row.get("error") or "no reply"
        except (faults.BadReply, KeyError, TypeError, AttributeError):
            continue
        if error is not None:
            told = error_of(error, judge_key, None if status == 200 else status)
            yield Line(key, None, None, faults.of_reply(told, model))
            continue
        try:
            likeliest, word = replies.likeliest(reply or {}, label=key in labels)
            tokens = replies.usage(reply or {}) or (0, 0)
            score = replies.from_distribution(likeliest, word, tokens, label=key in labels)
            yield Line(key, reply, score, None, key in labels)
        except Fault as fault:
            yield Line(key, reply, None, fault.with_traceback(None))
