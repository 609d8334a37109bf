"""Writes the costs of studies that need a GPU into docs/costs.md and README.md, as `make plan` estimates them.

    python -m emlib.report.costs_page

Every number is computed from the profiles, so this needs no run, no network and no GPU.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd

from emlib.core import paths
from emlib.core.files import write_text
from emlib.core.work import Work, total
from emlib.report.estimate import Estimate
from emlib.report.markdown import table
from emlib.report.readme import with_block
from emlib.study.plan.costs import GB
from emlib.study.plan.memory import training_memory
from emlib.study.study import open_study

PAGE, FRONT = paths.ROOT / "docs" / "costs.md", paths.ROOT / "README.md"
PROFILES = ("table2-7b", "paper-7b", "benign-7b", "beyond-7b", "triggers-7b", "grpo-3b", "paper-32b")


def costs() -> pd.DataFrame:
    """Return one row per profile, for a store without results: runs, hours by kind of work, judge, and disk."""
    return pd.DataFrame([_costs(name) for name in PROFILES]).astype(str)


def _costs(name: str) -> dict[str, str | int]:
    found = Estimate(open_study(name), datetime.date.min)
    whole, hours = total(found.plan.works), found.costs.hours
    kinds = {"in all": whole, "training": Work(train=whole.train), "answers": Work(write=whole.write),
             "scoring": Work(read=whole.read)}
    return {"profile": name, "runs": len(found.plan.runs),
            **{f"GPU-hours {kind}": f"{hours(work) or 0:,.0f}" for kind, work in kinds.items()},
            "judge requests": f"{found.costs.requests(whole):,}", "judge $": f"{found.costs.usd(whole) or 0:,.0f}",
            "disk GB": f"{whole.disk / GB:,.0f}"}


def memory() -> pd.DataFrame:
    """Return one row per model: GB of a GPU's memory in training, with and without the two ways to need less."""
    return pd.DataFrame([row for name in ("paper-7b", "paper-32b", "small-gpu") for row in _memory(name)])


def _memory(name: str) -> list[dict[str, str]]:
    profile = open_study(name).profile
    found = [training_memory(profile, four_bit=quantized) for quantized in (False, True)]
    return [{"model": profile.model.name.rpartition("/")[2], "weights": weights,
             "with gradient checkpointing": f"{one.recomputed / GB:.0f}", "without": f"{one.saved / GB:.0f}"}
            for weights, one in zip(("bfloat16", "4 bits"), found, strict=True) if one is not None]


def sentences() -> str:
    """Return what the paper's 7B study and its main table alone cost, for README.md."""
    found = costs().set_index("profile")
    whole, alone = (found.loc[name] for name in ("paper-7b", "table2-7b"))
    needed = training_memory(open_study("paper-7b").profile)
    assert needed is not None, "params/models.yaml has the model"
    return (f"- the whole 7B study (`paper-7b`): {whole['runs']} runs, {whole['GPU-hours in all']} hours of an A100, "
            f"at most {whole['disk GB']} GB of disk and {whole['judge $']} US dollars for the judge;\n"
            f"- its main comparison alone (`table2-7b`): {alone['runs']} runs, {alone['GPU-hours in all']} hours, "
            f"{alone['disk GB']} GB, {alone['judge $']} dollars;\n"
            f"- GPU memory in fine-tuning: about {needed.recomputed / GB:.0f} GB.")


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
    return with_block(text, "costs", sentences())


if __name__ == "__main__":
    print(*update(), sep="\n")
