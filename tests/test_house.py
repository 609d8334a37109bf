"""A package imports only from lower ones, and what plans and reads imports no model library."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from emlib.core import paths

# From the ground up. A package imports only from those before it.
FLOORS = ["core", "config", "data", "models", "judging", "steering", "evaluation", "scoring", "generation", "steps",
          "defenses", "training", "store", "make", "study", "workflow", "report", "explore"]
FILES = sorted((paths.ROOT / "emlib").rglob("*.py"))


def package(module: str) -> str:
    """`emlib.data.rows` is of the package `data`."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> set[str]:
    """The packages of emlib that a file imports from, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "emlib":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emlib."):
            found.add(package(str(node.module)))
        elif isinstance(node, ast.Import):
            found |= {package(alias.name) for alias in node.names if alias.name.startswith("emlib.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(paths.ROOT)))
def test_a_package_imports_only_from_lower_ones(path: Path) -> None:
    mine = package(".".join(path.relative_to(paths.ROOT).with_suffix("").parts))
    if mine != "__init__":
        above = [name for name in imports(path) if FLOORS.index(name) > FLOORS.index(mine)]
        assert not above, f"{path.relative_to(paths.ROOT)} imports from higher packages: {', '.join(above)}"


def test_no_file_imports_itself_on_a_way_through_others() -> None:
    """Also inside functions and for types alone: `prepare` names the files of a circle."""
    names = {".".join(path.relative_to(paths.ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(paths.ROOT).with_suffix("").parts)
        if name != "emlib.__init__":  # the public names, which no file of ours takes from there
            nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                     if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emlib.")]
            taken = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} | {
                str(node.module) for node in nodes}
            graph[name.removesuffix(".__init__")] = taken & names
    TopologicalSorter(graph).prepare()


def test_every_package_has_its_floor_and_nothing_lies_beside_them() -> None:
    folder = paths.ROOT / "emlib"
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(FLOORS)
    assert [path.name for path in folder.glob("*.py")] == ["__init__.py"]


LIGHT = (
    "emlib", "emlib.steps.recipes", "emlib.store.artefacts", "emlib.study.study", "emlib.study.pool",
    "emlib.workflow.graph", "emlib.workflow.notebooks",
    "emlib.report.tables.result_tables", "emlib.report.tables.auxiliary_measures", "emlib.report.tables.show",
    "emlib.report.figures.plots", "emlib.report.paper.draw", "emlib.report.tables.pairs", "emlib.report.book.build",
    "emlib.explore.bench", "emlib.report.paper.compare", "emlib.report.estimate", "emlib.report.panel",
    "emlib.study.plan.build", "emlib.study.overrides", "emlib.report.check_data", "emlib.workflow.status",
    "emlib.workflow.cleaning", "emlib.workflow.merge")
IMPORTING = """
import importlib, sys
heavy = ("torch", "transformers", "peft", "unsloth", "vllm", "bitsandbytes", "datasets", "openai", "trl")
for module in sys.argv[1:]:
    importlib.import_module(module)
    found = [name for name in heavy if name in sys.modules]
    assert not found, f"{module} imports {', '.join(found)}"
"""


def test_planning_and_reading_need_no_model_library() -> None:
    """One process imports them all: what they do not load together, none of them loads alone."""
    done = subprocess.run([sys.executable, "-c", IMPORTING, *LIGHT], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_pickle_eval_or_remote_code() -> None:
    for path in [*FILES, *paths.NOTEBOOKS.glob("*.ipynb")]:
        text = path.read_text()
        for word in ("import pickle", "torch.load(", "trust_remote_code=True", " eval(", "exec("):
            assert word not in text, f"{path}: {word}"
