"""Writes the costs of studies that need a GPU into docs/costs.md and README.md, as `make plan` estimates them.

    python -m emlib.report.costs_page

Every number is computed from the profiles, so this needs no run, no network and no GPU.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd

from emlib.config import OpenAIJudge
from emlib.core import paths
from emlib.core.files import write_text
from emlib.core.work import Work, total
from emlib.judging.money import price_list
from emlib.report.estimate import Estimate
from emlib.report.markdown import table
from emlib.report.readme import with_block
from emlib.study.plan.costs import GB, Costs
from emlib.study.plan.memory import training_memory
from emlib.study.study import open_study

PAGE, FRONT = paths.ROOT / "docs" / "costs.md", paths.ROOT / "README.md"
PROFILES = ("small-gpu", "ldifs-7b", "table2-7b", "paper-7b", "benign-7b", "beyond-7b", "triggers-7b", "own-7b",
            "grpo-3b", "paper-32b")
SHOWN = ("table2-7b", "paper-7b")  # in README.md


def costs() -> pd.DataFrame:
    """Return one row per profile, for a store without results: runs, hours by kind of work, judge, and disk."""
    return pd.DataFrame([_costs(name) for name in PROFILES]).astype(str)


def _costs(name: str) -> dict[str, str | int]:
    study = open_study(name)
    plan, counted = Estimate(study, datetime.date.min).plan, Costs(study.profile, gpu=True)
    whole = total(plan.works)
    kinds = {"in all": whole, "training": Work(train=whole.train), "answers": Work(write=whole.write),
             "scoring": Work(read=whole.read)}
    hours = {kind: counted.hours(work) or 0 for kind, work in kinds.items()}
    return {"profile": name, "runs": len(plan.runs),
            **{f"GPU-hours {kind}": _rounded(count) for kind, count in hours.items()},
            "GPU $": _rounded(hours["in all"] * gpu_hour()),
            "judge requests": f"{counted.requests(whole):,}", "judge $": _rounded(counted.usd(whole) or 0),
            "disk GB": _rounded(whole.disk / GB)}


def _rounded(number: float) -> str:
    """Return a number without decimals; one below 1 is not shown as nothing."""
    return "below 1" if 0 < number < 1 else f"{number:,.0f}"


def gpu_hour() -> float:
    """Return the example price of an hour of a GPU, in US dollars."""
    price = price_list().gpu_hour
    assert price is not None, "params/prices.yaml has one"
    return price


def memory() -> pd.DataFrame:
    """Return one row per model: GB of a GPU's memory in training, with and without the two ways to need less."""
    return pd.DataFrame([row for name in ("paper-7b", "paper-32b", "small-gpu") for row in _memory(name)])


def _memory(name: str) -> list[dict[str, str]]:
    profile = open_study(name).profile
    found = [training_memory(profile, four_bit=quantized) for quantized in (False, True)]
    return [{"model": profile.model.name.rpartition("/")[2], "weights": weights,
             "with gradient checkpointing": f"{one.recomputed / GB:.0f}", "without": f"{one.saved / GB:.0f}"}
            for weights, one in zip(("bfloat16", "4 bits"), found, strict=True) if one is not None]


def in_short() -> str:
    """Return what the paper's 7B study and its main table alone cost, for README.md."""
    found = costs().set_index("profile").loc[list(SHOWN)]
    shown = pd.DataFrame({
        "study": ["main comparison, `table2-7b`", "all of it, `paper-7b`"], "runs": found["runs"].to_list(),
        "hours of an A100": found["GPU-hours in all"].to_list(),
        f"GPU at {gpu_hour():.2f} dollars an hour": [f"${cost}" for cost in found["GPU $"]],
        "judge": [f"${cost}" for cost in found["judge $"]], "disk": [f"{size} GB" for size in found["disk GB"]]})
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{_of_memory()} {_of_judge()}"


def _of_memory() -> str:
    """Say what fine-tuning needs of a GPU's memory."""
    profile = open_study("paper-7b").profile
    full, quantized = (training_memory(profile, four_bit=four_bit) for four_bit in (False, True))
    assert full is not None, "params/models.yaml has the model"
    assert quantized is not None, "as above"
    return (f"By estimate, fine-tuning takes {full.saved / GB:.0f} GB of GPU memory, {full.recomputed / GB:.0f} with "
            f"gradient checkpointing, and {quantized.recomputed / GB:.0f} with 4-bit weights as well.")


def _of_judge() -> str:
    """Say whose price the judge's is, and when its provider ends it."""
    judge = open_study("paper-7b").profile.judge
    assert isinstance(judge, OpenAIJudge), "section 4.3"
    ends = price_list().models[judge.model].ends
    ending = "" if ends is None else f"; OpenAI ends this model on {ends} ([source](params/prices.yaml))"
    return f"The judge's price is that of `{judge.model}`{ending}."


def page(text: str) -> str:
    """Return the page's text with both tables written anew."""
    for name, frame in {"costs": costs(), "memory": memory()}.items():
        text = with_block(text, name, table(frame, disable_numparse=True))
    return text


def update() -> list[Path]:
    """Write the tables of docs/costs.md and the costs of README.md, and return both paths."""
    for path, write in ((PAGE, page), (FRONT, front)):
        write_text(path, write(path.read_text(encoding="utf-8")))
    return [PAGE, FRONT]


def front(text: str) -> str:
    """Return the text of README.md with its costs written anew."""
    return with_block(text, "costs", in_short())


if __name__ == "__main__":
    print(*update(), sep="\n")
