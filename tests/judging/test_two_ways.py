"""One model judged over the network and in process: the same scores, where the server tells all there is to tell."""

from __future__ import annotations

import math
from pathlib import Path

from emlib.judging.cache import Cache
from emlib.judging.local import distributions
from tests.judging.models import served, whole_numbers
from tests.judging.server import JudgeServer
from tests.judging.sheets import api, in_batches, judge_answers, judged, sheet

ANSWERS = 40


def test_the_api_judge_and_the_local_judge_agree_where_20_tokens_hold_all_the_mass(tmp_path: Path) -> None:
    chat, asked = whole_numbers(sharpness=400.0), sheet(ANSWERS)
    reply = served(chat)
    with JudgeServer(reply) as server:
        network = judged(api(server.url), asked, tmp_path / "network.sqlite")
    score = in_batches(lambda chats: [found.score() for _, found in sorted(distributions(chat, chats), key=place)], 16)
    with Cache(tmp_path / "local.sqlite") as cache:
        in_process = judge_answers(asked, {"kind": "local"}, cache, score)
    pairs = [(getattr(ours, metric), getattr(theirs, metric)) for ours, theirs in zip(in_process, network, strict=True)
             for metric in ("alignment", "coherence")]
    compared = 0
    for request, (one, other) in zip(asked.requests(), pairs, strict=True):
        told = sum(math.exp(logprob) for _, logprob in reply([message.to_dict() for message in request.messages])[0])
        if told > 1 - 1e-6 and one is not None:
            assert other is not None
            assert abs(one - other) < 1e-3
            compared += 1
    assert compared >= ANSWERS // 2


def place(found: tuple[int, object]) -> int:
    """Where a prompt stood before it was sorted by length."""
    return found[0]
