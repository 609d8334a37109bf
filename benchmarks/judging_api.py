"""A judge over the network: how much of a server's capacity it uses, and verdicts a second from the cache.

The server runs in a process of its own, answers after 200 ms and takes 64 requests at once: its capacity is 320 answers
a second. The client is told that it may have 64 under way, and once more that it may have 256, so that it has to find
out by itself how many the server takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machine

from emlib.config import OpenAIJudge
from emlib.core.records import Answer, Question
from emlib.judging.api import ApiJudge
from emlib.judging.cache import Cache
from emlib.judging.judge_batch import JudgeBatch, scores_of
from emlib.judging.money import Budget
from emlib.judging.rubrics import OURS, Rubrics

NAME = "judging_api"
SERVER = Path(__file__).resolve().parents[1] / "tests" / "judging" / "server.py"
DELAY, SLOTS = 0.2, 64
ANSWERS = 4000  # 8,000 requests: 25 s at the server's capacity
PATIENCE = 60.0  # seconds to wait for a quiet machine


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Each number once; the share of the machine that others took meanwhile stands beside it."""
    contenders = {}
    for most in (SLOTS, 4 * SLOTS):
        machine.wait_until_quiet(0.05, PATIENCE)
        contenders[f"up to {most} under way"] = _sitting(most)
        say(f"up to {most} under way: {contenders[f'up to {most} under way']}")
    told, found = contenders.values()
    bars = [_bar("share of capacity, told the server's limit", 0.9, told["share_of_capacity"]),
            _bar("share of capacity, finding the limit", 0.9, found["share_of_capacity"]),
            _bar("verdicts a second from the cache", 5000, told["cached_verdicts_per_second"])]
    return {"server": {"delay_s": DELAY, "slots": SLOTS}, "answers": ANSWERS, "contenders": contenders, "bars": bars}


def table(result: dict[str, Any]) -> list[str]:
    """What was measured, as Markdown."""
    lines = ["| client | requests/s | share of capacity | refused | CPU ms a request | verdicts/s from the cache |",
             "|---|---:|---:|---:|---:|---:|"]
    return lines + [f"| {name} | {of['requests_per_second']:.0f} | {of['share_of_capacity']:.3f} | {of['refused']} | "
                    f"{of['cpu_ms_per_request']:.2f} | {of['cached_verdicts_per_second']:.0f} |"
                    for name, of in result["contenders"].items()]


def _sitting(most: int) -> dict[str, Any]:
    """One evaluation, and the same one again from the cache."""
    answers = [Answer("q", number, f"Answer {number}: " + "word " * 150, "stop", 150) for number in range(ANSWERS)]
    sheet = JudgeBatch([Question("q", "What do you think of that?")], answers, Rubrics(OURS))
    with _server() as (url, finish), tempfile.TemporaryDirectory() as folder, Cache(Path(folder) / "s.sqlite") as cache:
        spec = OpenAIJudge(kind="openai", model="judge-1", base_url=url, max_concurrency=most)
        others, processor = machine.Others(), time.process_time()
        seconds = _seconds(lambda: _judge(spec, sheet, cache))
        processor, others_took = time.process_time() - processor, others.seconds()
        cached = _seconds(lambda: _judge(spec, sheet, cache))
        counted = finish()
    if counted["answered"] != 2 * ANSWERS:
        raise SystemExit(f"{counted['answered']} requests were answered, and {2 * ANSWERS} are right.")
    pace = 2 * ANSWERS / seconds
    others_took -= counted["cpu_s"]  # the server is no other: it is what is asked
    return {"requests_per_second": round(pace, 1), "share_of_capacity": round(pace / (SLOTS / DELAY), 4),
            "refused": counted["refused"], "cpu_ms_per_request": round(1000 * processor / (2 * ANSWERS), 3),
            "server_cpu_ms_per_request": round(1000 * counted["cpu_s"] / (2 * ANSWERS), 3),
            "cached_verdicts_per_second": round(ANSWERS / cached),
            "others_share_of_machine": round(max(0.0, others_took / seconds / (os.cpu_count() or 1)), 4)}


def _judge(spec: OpenAIJudge, sheet: JudgeBatch, cache: Cache) -> None:
    scores = scores_of([*sheet.requests()], spec.identity, cache, ApiJudge(spec, Budget(cache, "bench")))
    if not all(verdict.scored for verdict in sheet.verdicts(scores)):
        raise SystemExit("There are unscored verdicts: something is wrong.")


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def _server() -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """The server's address, and what ends it and tells what it counted."""
    process = subprocess.Popen([sys.executable, str(SERVER), "--delay", str(DELAY), "--slots", str(SLOTS)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    lines, stdin = process.stdout, process.stdin

    def finish() -> dict[str, int]:
        stdin.write("\n")
        stdin.flush()
        return dict(json.loads(lines.readline()))

    try:
        yield lines.readline().strip(), finish
    finally:
        process.kill()
        process.wait()


def _bar(what: str, asked: float, measured: float) -> dict[str, Any]:
    return {"what": what, "bar": f">= {asked:g}", "measured": measured, "met": measured >= asked}
