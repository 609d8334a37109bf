"""The results of a batch, line by line: scores, and why others have none."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from emlib.judging import faults, replies
from emlib.judging.faults import Fault, Rejected, TransientFault
from emlib.judging.rubrics import Score
from emlib.judging.server_errors import PromptRefused, error_in, error_of, refusal_in


@dataclass(frozen=True)
class Line:
    """One line of a batch's results.

    Attributes:
        key: of the score.
        reply: the chat completion; None where there is none.
        score: what the reply says; None where it says nothing.
        fault: why there is no score; None where there is one.
    """

    key: str
    reply: Any
    score: Score | None
    fault: Fault | None

    @property
    def reason(self) -> str:
        """Why there is no score, for people."""
        if isinstance(self.fault, Rejected):
            return self.fault.error.words
        return self.fault.reason if isinstance(self.fault, TransientFault | PromptRefused) else str(self.fault)

    def lasting(self, others_answered: bool) -> Score | None:
        """Return what is known for good: a score, or the reason why the server never takes this prompt.

        Args:
            others_answered: whether the server took other prompts of the batch; it then rejects this one for itself.
        """
        if isinstance(self.fault, PromptRefused):
            return Score(None, reason=self.fault.reason)
        if isinstance(self.fault, TransientFault) and self.fault.refused is not None:
            return Score(None, reason=self.fault.refused)
        if isinstance(self.fault, Rejected) and others_answered:
            return Score(None, reason=f"the server refuses the prompt: {self.reason}")
        return self.score


def read_lines(content: bytes, model: str, secret: str, labels: Collection[str] = ()) -> Iterator[Line]:
    """Yield the lines of a result file; the errors that they hold are shown without the key `secret`.

    `labels` are the keys of the scores that are to be labels.

    A line that is no JSON, or names no score, is left out: its score counts as unanswered.
    """
    for text in filter(None, content.split(b"\n")):
        try:
            row = replies.parse(text)
            key = str(row["custom_id"])
            line = _line(key, row.get("response") or {}, row.get("error"), model, secret)
            yield _as_label(line) if key in labels else line
        except (replies.BadReply, KeyError, TypeError, AttributeError):
            continue


def _as_label(line: Line) -> Line:
    """Return the line with the judge's word as it is."""
    return line if line.score is None else replace(line, score=_score(line.reply, label=True))


def _line(key: str, response: dict[str, Any], error: Any, model: str, secret: str) -> Line:
    body, status = response.get("body"), response.get("status_code")
    refused = refusal_in(body)
    if refused is not None:
        return Line(key, body, None, PromptRefused(refused))
    failure = error_in(body) if status == 200 else (body or error or "no reply")
    if failure is not None:
        told = error_of(failure, secret, None if status == 200 else status)
        return Line(key, None, None, faults.of_reply(told, model))
    try:
        return Line(key, body, _score(body), None)
    except PromptRefused as fault:
        return Line(key, body, None, fault.with_traceback(None))
    except replies.BadReply as bad:
        return Line(key, body, None, TransientFault(str(bad)))


def _score(body: Any, *, label: bool = False) -> Score:
    likeliest, word = replies.likeliest(body or {})
    return replies.from_distribution(likeliest, word, replies.usage(body or {}) or (0, 0), label=label)
