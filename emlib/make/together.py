"""The answers of several runs: one run after another, or, where a server draws them, all of them at once.

A vLLM server computes requests under different adapters in one batch, and is at its best while it has many. So every
adapter is trained and proved first, here, where the model is; then each set of answers is asked for in a thread of its
own, which makes its artefact under its own lock as ever. The client bounds what is under way, over all of them. Where
a server does not compute several adapters rightly in one batch, one set is asked for after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from emlib.core.background import together
from emlib.make.backends import PLAIN
from emlib.store.artefacts import Artefact
from emlib.study.runs import Asked

if TYPE_CHECKING:
    from emlib.make.maker import Drawing, Maker


@contextmanager
def answered(maker: Maker, asked: Sequence[Asked]) -> Iterator[Iterator[Artefact]]:
    """The answers to each, in their order, made where they are not there."""
    drawings = _ready(maker, asked) if maker.serving.drawing().name != PLAIN else [None] * len(asked)
    served = [drawing for drawing in drawings if drawing is not None and drawing.choice.name != PLAIN]
    works = [(partial(maker.answers, one.name, one.fit, one.quiz, one.read, drawing), drawing in served)
             for one, drawing in zip(asked, drawings, strict=True)]
    if not maker.serving.mixes(drawing.under for drawing in served):
        yield (work() for work, _ in works)
        return
    with together([work for work, by_server in works if by_server], maker.serving.stop) as found:
        yield (next(found) if by_server else work() for work, by_server in works)


def _ready(maker: Maker, asked: Sequence[Asked]) -> list[Drawing | None]:
    """How each is drawn, all that needs the model or its tokenizer done; None where the answers are there."""
    study = maker.study
    missing = [one for one in asked if study.store.find("answers", study.quiz_settings(one.fit, one.quiz)) is None]
    maker.serving.expect(len({one.name for one in missing if one.fit is not None}))
    trained = [maker.adapter(one.name, one.fit) for one in missing]
    drawn = iter([maker.drawing(one.quiz, adapter) for one, adapter in zip(missing, trained, strict=True)])
    return [next(drawn) if one in missing else None for one in asked]
