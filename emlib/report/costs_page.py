"""Writes the costs of studies that need a GPU into docs/costs.md and README.md, as `make plan` estimates them.

    python -m emlib.report.costs_page

Every number is computed from the profiles, so this needs no run, no network and no GPU.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd

from emlib.config import LocalJudge, Profile, overridden
from emlib.core import paths
from emlib.core.files import write_text
from emlib.core.work import Work, total
from emlib.judging.money import price_list
from emlib.report.estimate import Estimate
from emlib.report.markdown import table
from emlib.report.readme import with_block
from emlib.store.artefacts import Store
from emlib.study.plan.costs import GB, Costs
from emlib.study.plan.memory import cache_memory, loaded_memory, training_memory
from emlib.study.study import Study, open_study

PAGE, FRONT = paths.ROOT / "docs" / "costs.md", paths.ROOT / "README.md"
PROFILES = ("small-gpu", "ldifs-7b", "table2-7b", "paper-7b", "benign-7b", "beyond-7b", "triggers-7b", "own-7b",
            "grpo-3b", "paper-32b")
# The example: 5,000 rows of one's own, of the length that plans assume where they cannot count.
EXAMPLE, ROWS = "own-24gb", "own.file=null own.hub={repo: yours/rows, revision: main}"
# Another card than the A100, by NVIDIA's data sheets: its share of the dense bfloat16 TFLOP/s, and of the bandwidth.
TFLOPS, BANDWIDTH = 165 / 312, 1.008 / 2.039  # an RTX 4090 with 24 GB
RECOMPUTED = 1.25  # the time of a training step with gradient checkpointing
PROMPT = 100  # tokens of a question that is answered, about
SHOWN = ("table2-7b", "paper-7b")  # in README.md


def costs() -> pd.DataFrame:
    """Return one row per profile, for a store without results: runs, hours by kind of work, judge, and disk."""
    return pd.DataFrame([_costs(name) for name in PROFILES]).astype(str)


def _costs(name: str) -> dict[str, str | int]:
    study = open_study(name)
    plan, counted = Estimate(study, datetime.date.min).plan, Costs(study.profile, gpu=True)
    whole = total(plan.works)
    hours = {kind: counted.hours(work) or 0 for kind, work in {"in all": whole, **_kinds(whole)}.items()
             if kind != "judging"}
    return {"profile": name, "runs": len(plan.runs),
            **{f"GPU-hours {kind}": _rounded(count) for kind, count in hours.items()},
            "GPU $": _rounded(hours["in all"] * gpu_hour()),
            "judge requests": f"{counted.requests(whole):,}", "judge $": _rounded(counted.usd(whole) or 0),
            "disk GB": _rounded(whole.disk / GB)}


def _kinds(whole: Work) -> dict[str, Work]:
    """Return the work of each kind that takes hours."""
    return {"training": Work(train=whole.train), "answers": Work(write=whole.write), "scoring": Work(read=whole.read),
            "judging": Work(judged=whole.judged)}


def example() -> str:
    """Return the hours, the memory and the disk of the worked example, as two tables in Markdown."""
    profile, _ = overridden(EXAMPLE, ROWS)
    study = Study(EXAMPLE, profile, Store(paths.runs() / "store"))
    plan, counted = Estimate(study, datetime.date.min).plan, Costs(profile, gpu=True)
    whole = total(plan.works)
    hours = {kind: counted.hours(work) or 0 for kind, work in _kinds(whole).items()}
    here = {kind: each / BANDWIDTH if kind == "answers" else each / TFLOPS * (RECOMPUTED if kind == "training" else 1)
            for kind, each in hours.items()}
    times = pd.DataFrame([{"work": kind, "hours of an A100": f"{each:.1f}", "hours of the card, a guess":
                           f"{here[kind]:.1f}"} for kind, each in hours.items()]
                         + [{"work": f"all {len(plan.runs)} runs", "hours of an A100": f"{sum(hours.values()):.0f}",
                             "hours of the card, a guess": f"{sum(here.values()):.0f}"}])
    needs = pd.DataFrame([{"what": what, "GB": f"{size / GB:.0f}"} for what, size in _example_memory(profile).items()]
                         + [{"what": "disk: adapters and answers, at most", "GB": f"{whole.disk / GB:.0f}"}])
    return "\n\n".join(frame.to_markdown(index=False, disable_numparse=True) for frame in (times, needs))


def _example_memory(profile: Profile) -> dict[str, float]:
    """Return the bytes of a GPU's memory that the parts of the example take, and those that are there together."""
    assert isinstance(profile.judge, LocalJudge), "the example has one"
    training, judge, model = training_memory(profile), loaded_memory(profile.judge.model), loaded_memory(profile.model)
    sampling = profile.extraction.sampling  # the longest answers
    cache = cache_memory(profile.model, sampling.batch_rows, PROMPT + sampling.max_new_tokens)
    assert training is not None, "params/models.yaml has the model"
    assert judge is not None, "as above"
    assert model is not None, "as above"
    assert cache is not None, "as above"
    return {"GPU: training, with gradient checkpointing": training.recomputed, "GPU: the judge": judge,
            "GPU: training while the judge is loaded": training.recomputed + judge,
            f"GPU: sampling {sampling.batch_rows} answers while the judge is loaded": model + cache + judge}


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
        "study": ["main comparison, `table2-7b`", "the whole 7B study, `paper-7b`"], "runs": found["runs"].to_list(),
        "hours of an A100": found["GPU-hours in all"].to_list(),
        f"GPU at ${gpu_hour():g} an hour": [f"${cost}" for cost in found["GPU $"]],
        "judge": [f"${cost}" for cost in found["judge $"]], "disk": [f"{size} GB" for size in found["disk GB"]]})
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{_of_memory()}"


def _of_memory() -> str:
    """Say what fine-tuning needs of a GPU's memory."""
    profile = open_study("paper-7b").profile
    full, quantized = (training_memory(profile, four_bit=four_bit) for four_bit in (False, True))
    assert full is not None, "params/models.yaml has the model"
    assert quantized is not None, "as above"
    plain, recomputed, small = (f"{size / GB:.0f} GB" for size in (full.saved, full.recomputed, quantized.recomputed))
    return (f"Fine-tuning takes {plain} of GPU memory; {recomputed} with gradient checkpointing; {small} with 4-bit "
            "weights as well.")


def page(text: str) -> str:
    """Return the page's text with all tables written anew."""
    for name, frame in {"costs": costs(), "memory": memory()}.items():
        text = with_block(text, name, table(frame, disable_numparse=True))
    return with_block(text, "example", example())


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
