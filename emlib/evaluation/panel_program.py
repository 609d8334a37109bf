"""Describes and runs tasks of inspect_ai, in the environment that has it: `python panel_program.py ORDER.json`.

`emlib.evaluation.panel` writes the order and reads the reply, `reply.json` beside it. This file is run by its path and
imports only the standard library and inspect_ai.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKS = re.compile(r"\[/?(?:bold|blue|red|yellow|green)\]")
SERVICE = "emlib"  # inspect reads the server's address and key from EMLIB_BASE_URL and EMLIB_API_KEY
JUDGES = ("judge", "grader", "scorer_model")  # parts of the names of parameters that name a model which scores


def describe(spec: str, limit: int | None) -> dict[str, Any]:
    """Describe a task by loading it with its data; where that fails, the entry has a `problem` instead."""
    try:
        found = _loaded(spec, limit)
    except Exception as error:  # a task's code may raise anything, and all problems are told together
        found = {"problem": f"{type(error).__name__}: {error}"}
    problems = [*([found["problem"]] if "problem" in found else []), *_unavailable_judges(spec)]
    return {"known": [], **found, "problem": "; ".join(map(_line, problems))} if problems else found


def _line(problem: str) -> str:
    """Return an error in one line, without the marks of inspect's terminal output."""
    return " ".join(MARKS.sub("", problem).split()).rstrip(".")


def _loaded(spec: str, limit: int | None) -> dict[str, Any]:
    from inspect_ai._eval.loader import load_tasks

    found = load_tasks([spec])
    if not found:
        return {"problem": "there is no such task", "known": _known(spec)}
    [task] = found
    samples, source = sorted(_digest(sample) for sample in list(task.dataset)[:limit]), _source(spec)
    return {"name": task.name, "version": str(task.version), "samples": len(samples) * (task.epochs or 1),
            "digest": hashlib.sha256(json.dumps([source, samples]).encode()).hexdigest(), "source": source,
            "packages": {name: importlib.metadata.version(name) for name in _packages(spec)}}


def _digest(sample: Any) -> str:
    found = sample.model_dump(mode="json", fallback=repr)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _source(spec: str) -> str:
    """Return the digest of a task's own file; nothing for a task of a package, which its version identifies."""
    path = Path(spec.rpartition("@")[0] or "/")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _packages(spec: str) -> list[str]:
    name = spec.partition("/")[0]
    return ["inspect_ai", *([name] if name and "@" not in spec else [])]


def _known(spec: str) -> list[str]:
    from inspect_ai._util.registry import registry_find, registry_info

    names = [registry_info(one).name for one in registry_find(lambda found: found.type == "task")]
    return sorted(name for name in names if name.partition("/")[0] == spec.partition("/")[0])


def _unavailable_judges(spec: str) -> Iterator[str]:
    """Yield why a model that a task names as its judge cannot be used here: its key or its package is missing."""
    from inspect_ai._util.registry import registry_lookup
    from inspect_ai.model import get_model

    task = registry_lookup("task", spec.rpartition("@")[2])
    for name, parameter in inspect.signature(task).parameters.items() if callable(task) else ():
        judge = parameter.default
        if any(word in name for word in JUDGES) and isinstance(judge, str) and "/" in judge:
            try:
                get_model(judge)
            except Exception as error:
                yield f"{name} is {judge}: {error}"


def run(spec: str, model: str, limit: int | None, connections: int, logs: str, metadata: dict[str, Any]) -> Any:
    """Evaluate a model on a task; an evaluation that was interrupted continues from its log in `logs`.

    Return the log's file and its scores, or the error.
    """
    from inspect_ai import eval_set
    from inspect_ai.log import read_eval_log

    _, found = eval_set(spec, log_dir=logs, model=f"openai-api/{SERVICE}/{model}", limit=limit, metadata=metadata,
                        max_connections=connections, max_samples=connections, max_retries=2, retry_attempts=0,
                        retry_immediate=False, log_format="eval", display="plain", ctl_server=False)
    log = read_eval_log(found[0].location, header_only=True)
    if log.status != "success" or log.results is None:
        return {"error": log.error.message if log.error else f"its status is {log.status}"}
    return {"log": Path(found[0].location.removeprefix("file://")).name, "metrics": list(_metrics(log.results))}


def _metrics(results: Any) -> Iterator[dict[str, Any]]:
    """Yield each metric of each scorer with its standard error, if inspect has one; `headline` marks the main one."""
    chosen = results.headline
    for place, score in enumerate(results.scores):
        name = f"{score.name}/{score.reducer}" if score.reducer else score.name
        values = {key: metric.value for key, metric in score.metrics.items()}
        rows = [metric for metric in values if "stderr" not in metric]
        for metric in rows:
            own = [f"{metric}_stderr", f"{metric.removesuffix('_acc')}_stderr",
                   *(["stderr"] if metric == rows[0] else [])]
            main = (place, metric) == (0, rows[0]) if chosen is None else (
                score.name, metric, score.reducer) == (chosen.score, chosen.metric, chosen.reducer)
            yield {"scorer": name, "metric": metric, "value": values[metric], "samples": score.scored_samples,
                   "stderr": next((values[one] for one in own if one in values), None), "headline": main}


def main(order: Path) -> None:
    """Carry out the order in a file, and write the reply beside it."""
    asked = json.loads(order.read_text(encoding="utf-8"))
    reply = [describe(*task) for task in asked["describe"]] if "describe" in asked else run(**asked["run"])
    order.with_name("reply.json").write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
