"""The house stands: a floor imports only from lower ones, and importing emlib is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from emlib import paths

FLOORS = [
    {"errors", "digests", "seeds", "types", "paths", "strict", "progress", "gpus", "joblog", "mounts", "aside"},
    {"config"},
    {"data", "models", "store"},
    {"steering"},
    {"training", "generation", "judging", "evaluation", "scoring"},
    {"runs", "study", "benign", "rl", "interleaving", "checks", "workflow", "environment", "where", "overrides",
     "inventory", "backends"},
    {"making", "rl_making", "preparing", "checking", "plan", "estimate", "notebooks", "report", "export", "explore",
     "status", "cleaning", "merge", "serving", "together"},
]
# What may be loaded only when it is used: the model library's makers, under the study that plans for them.
LAZY = {("study", "making"), ("benign", "making"), ("rl", "rl_making"), ("checks", "checking")}
HEIGHT = {part: height for height, floor in enumerate(FLOORS) for part in floor}
FILES = sorted((paths.ROOT / "emlib").rglob("*.py"))


def part(module: str) -> str:
    """`emlib.data.rows` is of the part `data`."""
    return [*module.split("."), ""][1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(paths.ROOT)))
def test_imports_go_down(path: Path) -> None:
    here = path.relative_to(paths.ROOT).with_suffix("").parts
    mine = part(".".join(here))
    if mine in ("", "__init__"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("emlib"):
            continue
        names = [alias.name for alias in node.names] if node.module == "emlib" else [part(node.module)]
        for name in names:
            if name == mine or (mine, name) in LAZY:
                continue
            assert HEIGHT[name] <= HEIGHT[mine], f"{'/'.join(here)} imports emlib.{name} from a higher floor"


def test_every_part_has_its_floor() -> None:
    parts = {part(".".join(path.relative_to(paths.ROOT).with_suffix("").parts)) for path in FILES}
    assert parts - {"__init__"} == set(HEIGHT)


@pytest.mark.parametrize("module", ["emlib", "emlib.study", "emlib.benign", "emlib.rl", "emlib.checks",
                                    "emlib.workflow", "emlib.notebooks", "emlib.report.tables",
                                    "emlib.report.checks", "emlib.report.figures", "emlib.report.from_paper",
                                    "emlib.report.pairs", "emlib.report.book.build", "emlib.explore.bench",
                                    "emlib.report.compare", "emlib.estimate", "emlib.plan.build", "emlib.overrides",
                                    "emlib.status", "emlib.cleaning", "emlib.merge"])
def test_planning_and_reading_need_no_model_library(module: str) -> None:
    heavy = ["torch", "transformers", "peft", "unsloth", "vllm", "bitsandbytes", "datasets", "openai"]
    code = f"import sys, {module}; found = [m for m in {heavy} if m in sys.modules]; assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_pickle_eval_or_remote_code() -> None:
    for path in [*FILES, *paths.NOTEBOOKS.glob("*.ipynb")]:
        text = path.read_text()
        for word in ("import pickle", "torch.load(", "trust_remote_code=True", " eval(", "exec("):
            assert word not in text, f"{path}: {word}"
