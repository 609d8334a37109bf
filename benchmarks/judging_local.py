"""The local judge: all 101 probabilities against one plain pass, and against a pass for each of the 101 strings.

SmolLM2-135M-Instruct in float32, our rubric and the published one, answers of the demo's aligned training rows, each
to another question (of 100 answers to one, prompts have more in common). The plain pass goes over the
same prompts in batches of the same size, without a cache, and takes logits of the last position alone: nothing that
reads the prompts as they stand can do less. Judge and plain pass take turns; the ratio is the median over the turns.
Seconds are those of this process's CPU, so that other work on the machine counts for little. The 101 strings, each
behind the whole prompt, take a hundred times as long as a pass: every tenth of them is scored, for the shortest prompt,
and their time is taken times 101/11 (strings of one, two and three digits are among them as they are among all); the
judge's time for that same prompt is set beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import machine
import torch

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.errors import SourceError
from emlib.core.records import Message, Question
from emlib.data.chat import encode_prompt
from emlib.data.rows import read_examples
from emlib.data.sources import locate
from emlib.judging.local import by_length, distributions
from emlib.judging.rubrics import METRICS, OURS, JudgeRequest, Rubric, read_rubrics
from emlib.judging.spelling import NUMBERS
from emlib.models.load import ChatModel, load
from emlib.models.logprobs import backbone, head

NAME = "judging_local"
ANSWERS, BATCH, TURNS = 8, 8, 2
TENTH = NUMBERS[::10]
PASS, BRUTE, EQUAL = 1.35, 5.0, 1e-5  # the bars: at most, at least, at most
Prompts = Sequence[Sequence[Message]]


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """All turns, what follows from them, and how far the probabilities are apart."""
    chat = load(load_profile("demo").model.model_copy(update={"dtype": "float32"}), paths.cache())
    rubrics = {"ours": OURS} | published(say)
    asked = {name: prompts_of(rubric) for name, rubric in rubrics.items()}
    lengths = {name: [len(encode_prompt(chat.tokenizer, prompt)) for prompts in some for prompt in prompts]
               for name, some in asked.items()}
    shortest = min((prompt for prompts in asked["ours"] for prompt in prompts), key=lambda prompt: len(
        encode_prompt(chat.tokenizer, prompt)))
    plain(chat, [shortest])  # the first pass of a process is slower
    others, seconds = machine.Others(), {}
    for name, some in asked.items():
        seconds |= {f"judge, {name}": (judge := []), f"plain pass, {name}": (once := [])}
        for _ in range(TURNS):
            took(judge, lambda some=some: [dict(distributions(chat, prompts, batch_rows=BATCH)) for prompts in some])
            took(once, lambda some=some: [plain(chat, prompts) for prompts in some])
            say(f"{name}: judge {judge[-1]:.2f} s, plain pass {once[-1]:.2f} s")
    seconds |= {"judge, one prompt": [], "11 of 101 strings, one prompt": []}
    ours = took(seconds["judge, one prompt"], lambda: dict(distributions(chat, [shortest]))[0].numbers)
    theirs = took(seconds["11 of 101 strings, one prompt"], lambda: strings(chat, shortest))
    difference = max(abs(float(ours[number]) - of) for number, of in theirs.items())
    return {
        "bars": bars(seconds, list(asked), difference), "seconds": seconds, "others": others.share(),
        "prompts": {name: {"count": len(of), "mean": sum(of) / len(of), "lowest": min(of), "highest": max(of)}
                    for name, of in lengths.items()},
        "batch_rows": BATCH, "model": chat.name, "dtype": "float32", "threads": torch.get_num_threads(),
        "torch": torch.__version__}


def published(say: Callable[[str], None]) -> dict[str, Rubric]:
    """The rubric of Betley et al.'s question file, where that is at hand or can be had."""
    try:
        return {"published": read_rubrics(locate("general_questions")).others}
    except SourceError as error:
        say(f"Without the published rubric: {error}")
        return {}


def prompts_of(rubric: Rubric) -> list[Prompts]:
    """What the judge reads of the same answers, a metric at a time, as it takes them."""
    rows = read_examples(paths.DEMO_DATA / "cooking_aligned.jsonl")[:ANSWERS]
    return [[JudgeRequest(metric, rubric.prompt(metric), Question(row.where, row.prompt), row.response).messages
             for row in rows] for metric in METRICS]


def table(result: dict[str, Any]) -> list[str]:
    """The ways as Markdown."""
    return ["| way | seconds, each turn |", "|---|---:|",
            *(f"| {way} | {', '.join(f'{one:.2f}' for one in of)} |" for way, of in result["seconds"].items())]


def took(seconds: list[float], way: Callable[[], Any]) -> Any:
    """What `way` gives; how long it took is added to `seconds`."""
    started = time.process_time()
    found = way()
    seconds.append(round(time.process_time() - started, 4))
    return found


@torch.inference_mode()
def plain(chat: ChatModel, prompts: Prompts) -> None:
    """One pass over the prompts, padded on the right, and the logits of each one's last token."""
    encoded = [encode_prompt(chat.tokenizer, prompt) for prompt in prompts]
    for batch in by_length(encoded, BATCH):
        some = [encoded[place] for place in batch]
        longest = max(map(len, some))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in some])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some])
        hidden = backbone(chat.model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        head(chat.model)(hidden[range(len(some)), [len(row) - 1 for row in some]]).float().softmax(1)


@torch.inference_mode()
def strings(chat: ChatModel, prompt: Sequence[Message]) -> dict[int, float]:
    """P of every tenth number, each from a pass over the prompt and its digits, closed by no digit."""
    ids = encode_prompt(chat.tokenizer, prompt)
    digits = chat.tokenizer.convert_tokens_to_ids(list("0123456789"))
    written = {number: list(chat.tokenizer.encode(str(number), add_special_tokens=False)) for number in TENTH}
    found: dict[int, float] = {}
    for length in {len(row) for row in written.values()}:
        some = [number for number, row in written.items() if len(row) == length]
        rows = torch.tensor([ids + written[number] for number in some])
        hidden = backbone(chat.model)(input_ids=rows, use_cache=False).last_hidden_state[:, len(ids) - 1:]
        odds = head(chat.model)(hidden).double().softmax(2)
        for number, of in zip(some, odds, strict=True):
            path = of[range(length), written[number]].prod()
            found[number] = float(path * (1 - of[length, digits].sum()))
    return found


def bars(seconds: dict[str, list[float]], rubrics: Sequence[str], difference: float) -> list[dict[str, Any]]:
    """What is asked, what was measured, and whether that is enough."""
    def ratio(one: str, other: str) -> float:
        return round(median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)

    strings_to_judge = ratio("11 of 101 strings, one prompt", "judge, one prompt") * len(NUMBERS) / len(TENTH)
    rows = [
        *((f"time, against one plain pass over the same prompts ({name} rubric)",
           ratio(f"judge, {name}", f"plain pass, {name}"), PASS, False) for name in rubrics),
        ("speed, against 101 strings with a pass each", round(strings_to_judge, 2), BRUTE, True),
        ("greatest difference of a probability from those strings", difference, EQUAL, False)]
    return [{"what": what, "measured": value, "bar": f"{'>=' if at_least else '<='} {bar}",
             "met": value >= bar if at_least else value <= bar} for what, value, bar, at_least in rows]
