"""Writes the costs of studies that need a GPU into docs/costs.md and README.md, as `make plan` estimates them.

    python -m emlib.report.costs_page

Every number is computed from the profiles, so this needs no run, no network and no GPU.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path
from typing import TypeVar

import pandas as pd

from emlib.config import LocalJudge, Profile, overridden
from emlib.core import paths
from emlib.core.files import write_text
from emlib.core.step import Work, total
from emlib.judging.money import price_list
from emlib.report.markdown import table
from emlib.report.readme import with_block
from emlib.store.artefacts import open_store
from emlib.study.plan.build import Plan, plan
from emlib.study.plan.costs import GB, Costs
from emlib.study.plan.memory import cache_memory, loaded_memory, training_memory
from emlib.study.study import Study, open_study

PAGE, FRONT = paths.ROOT / "docs" / "costs.md", paths.ROOT / "README.md"
PROFILES = ("small-gpu", "ldifs-7b", "table2-7b", "paper-7b", "benign-7b", "beyond-7b", "triggers-7b", "own-7b",
            "grpo-3b", "paper-32b")
# The example: 5,000 rows of one's own, of the length that plans assume where they cannot count.
EXAMPLE, ROWS = "own-24gb", "own.file=null own.hub={repo: yours/rows, revision: main}"
# By NVIDIA's data sheets: dense bfloat16 TFLOP/s, TB/s and GB.
CARDS = {"RTX 3090": (71, 0.936, 24), "RTX 4090": (165, 1.008, 24), "A10": (125, 0.6, 24), "L4": (121, 0.3, 24),
         "A40": (150, 0.696, 48), "L40S": (362, 0.864, 48), "H100 SXM": (989, 3.35, 80)}
# What its memory needs, as the page says.
SMALL = ("model.load_in_4bit=true evaluation.sampling.batch_rows=64 extraction.sampling.batch_rows=64 "
         "pool.on_policy.sampling.batch_rows=64")
LOCAL = "judge=judges/qwen2.5-7b.yaml"
PROMPT = 100  # tokens of a question that is answered, about
SHOWN = ("table2-7b", "paper-7b")  # in README.md
SHOWN_CARD = "RTX 4090"  # in README.md, and of the example
T = TypeVar("T")


def costs() -> pd.DataFrame:
    """Return one row per profile, for a store without results: runs, hours by kind of work, judge, and disk."""
    rows = []
    for name in PROFILES:
        profile, planned = planned_of(name)
        counted, whole = Costs(profile, gpu=True), total(planned.works)
        hours = {"in all": counted.hours(whole) or 0, **_hours(counted, whole)}
        rows.append({"profile": name, "runs": len(planned.runs)} | {
            f"GPU-hours {kind}": _rounded(count) for kind, count in hours.items() if kind != "judging"} | {
            "GPU $": _rounded(hours["in all"] * _known(price_list().gpu_hour)),
            "judge requests": f"{counted.requests(whole):,}", "judge $": _rounded(counted.usd(whole) or 0),
            "disk GB": _rounded(whole.disk / GB)})
    return pd.DataFrame(rows).astype(str)


def _hours(counted: Costs, whole: Work) -> dict[str, float]:
    """Return the hours of each kind of work that takes some."""
    kinds = {"training": Work(train=whole.train), "answers": Work(write=whole.write), "reading": Work(read=whole.read),
             "judging": Work(judged=whole.judged)}
    return {kind: counted.hours(work) or 0 for kind, work in kinds.items()}


@cache
def planned_of(name: str, overrides: str = "") -> tuple[Profile, Plan]:
    """Return a profile with overrides, and its plan for a store without results."""
    profile, _ = overridden(name, overrides)
    return profile, plan(Study(name, profile, open_store()))


def hours_of(name: str, overrides: str = "", on: str = "") -> dict[str, float]:
    """Return the hours of each kind of work in a profile with overrides, for a store without results.

    `on` are further overrides that change how fast the same work is done, such as those of a card.
    """
    _, planned = planned_of(name, overrides)
    profile, _ = overridden(name, f"{overrides} {on}")
    return _hours(Costs(profile, gpu=True), total(planned.works))


def card(name: str) -> str:
    """Return the override that plans for a card."""
    tflops, bandwidth, memory = CARDS[name]
    return f"job.card={{tflops: {tflops}, bandwidth: {bandwidth}, memory: {memory}}}"


def cards() -> pd.DataFrame:
    """Return one row per card: the hours of the main comparison and of the example, as `make plan` guesses them."""
    rows = [("A100, as above", 80, _hours_in_all("table2-7b"), _hours_in_all(EXAMPLE, ROWS))]
    for name, (_, _, memory) in CARDS.items():
        main = _hours_in_all("table2-7b", on=f"{card(name)} {SMALL}" if memory < 48 else card(name))
        rows.append((name, memory, main, _hours_in_all(EXAMPLE, ROWS, card(name))))
    return pd.DataFrame(rows, columns=["card", "GB", "hours of table2-7b", "hours of the example below"])


def _hours_in_all(name: str, overrides: str = "", on: str = "") -> str:
    return _rounded(sum(hours_of(name, overrides, on).values()))


def example() -> str:
    """Return the hours, the memory and the disk of the worked example, as two tables in Markdown."""
    profile, planned = planned_of(EXAMPLE, ROWS)
    whole = total(planned.works)
    on_card, _ = overridden(EXAMPLE, f"{ROWS} {card(SHOWN_CARD)}")
    hours, here = (_hours(Costs(one, gpu=True), whole) for one in (profile, on_card))
    times = [(kind, f"{each:.1f}", f"{here[kind]:.1f}") for kind, each in hours.items()]
    times.append((f"all {len(planned.runs)} runs", f"{sum(hours.values()):.0f}", f"{sum(here.values()):.0f}"))
    needs = _example_memory(profile) | {"disk: adapters and answers, at most": whole.disk}
    frames = (pd.DataFrame(times, columns=["work", "hours of an A100", "hours of the card, a guess"]),
              pd.DataFrame([(what, f"{size / GB:.0f}") for what, size in needs.items()], columns=["what", "GB"]))
    return "\n".join(table(frame, disable_numparse=True) for frame in frames)


def _example_memory(profile: Profile) -> dict[str, float]:
    """Return the bytes of a GPU's memory that the parts of the example take, and those that are there together."""
    assert isinstance(profile.judge, LocalJudge), "the example has one"
    training, judge = _known(training_memory(profile)).recomputed, _known(loaded_memory(profile.judge.model))
    sampling = profile.extraction.sampling  # the longest answers
    cache = _known(cache_memory(profile.model, sampling.batch_rows, PROMPT + sampling.max_new_tokens))
    model = _known(loaded_memory(profile.model))
    return {"GPU: training, with gradient checkpointing": training, "GPU: the judge": judge,
            "GPU: training while the judge is loaded": training + judge,
            f"GPU: sampling {sampling.batch_rows} answers while the judge is loaded": model + cache + judge}


def _known(value: T | None) -> T:
    """Return what params/models.yaml and params/prices.yaml know of our profiles' models."""
    assert value is not None, "params/ has the sizes and the price"
    return value


def _rounded(number: float) -> str:
    """Return a number without decimals; one below 1 is not shown as nothing."""
    return "below 1" if 0 < number < 1 else f"{number:,.0f}"


def memory() -> pd.DataFrame:
    """Return one row per model: GB of a GPU's memory in training, with and without the two ways to need less."""
    rows = []
    for name, quantized in product(("paper-7b", "paper-32b", "small-gpu"), (False, True)):
        profile = open_study(name).profile
        found = _known(training_memory(profile, four_bit=quantized))
        rows.append((profile.model.name.rpartition("/")[2], "4 bits" if quantized else "bfloat16",
                     f"{found.recomputed / GB:.0f}", f"{found.saved / GB:.0f}"))
    return pd.DataFrame(rows, columns=["model", "weights", "with gradient checkpointing", "without"])


def in_short() -> str:
    """Return what the paper's 7B study and its main table alone cost, for README.md."""
    found = costs().set_index("profile").loc[list(SHOWN)]
    shown = pd.DataFrame({
        "study": ["main comparison, `table2-7b`", "the whole 7B study, `paper-7b`"], "runs": found["runs"].to_list(),
        "hours of an A100": found["GPU-hours in all"].to_list(),
        f"at ${_known(price_list().gpu_hour):g} an hour": [f"${cost}" for cost in found["GPU $"]],
        "paid judge": [f"${cost}" for cost in found["judge $"]],
        "local judge instead": [f"{_rounded(hours_of(name, LOCAL)['judging'])} A100-hours more" for name in SHOWN],
        f"{SHOWN_CARD} hours, paid judge": [_hours_in_all(name, on=f"{card(SHOWN_CARD)} {SMALL}") for name in SHOWN],
        f"{SHOWN_CARD} hours in all, local judge": [
            _hours_in_all(name, LOCAL, f"{card(SHOWN_CARD)} {SMALL}") for name in SHOWN]})
    return str(shown.to_markdown(index=False, disable_numparse=True))


def page(text: str) -> str:
    """Return the page's text with all tables written anew."""
    for name, frame in {"costs": costs(), "memory": memory(), "cards": cards()}.items():
        text = with_block(text, name, table(frame, disable_numparse=True))
    return with_block(text, "example", example())


def front(text: str) -> str:
    """Return the text of README.md with its costs written anew."""
    return with_block(text, "costs", in_short())


def update() -> list[Path]:
    """Write the tables of docs/costs.md and the costs of README.md, and return both paths."""
    for path, write in ((PAGE, page), (FRONT, front)):
        write_text(path, write(path.read_text(encoding="utf-8")))
    return [PAGE, FRONT]


if __name__ == "__main__":
    print(*update(), sep="\n")
