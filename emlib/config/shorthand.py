"""Shorthand in profiles, and how one profile is merged over the one that it extends."""

from __future__ import annotations

from typing import Any

from emlib.config.providers import OF_SERVER

NAMED_FREELY = ("sets", "data")  # sections whose keys are names of the user


def spelled_out(data: Any) -> Any:
    """Expand shorthand for methods, scorers and backends: `[misaligned]` means `[{name: misaligned}]`."""
    if not isinstance(data, dict):
        return data
    spelled = dict(data)
    spelled |= {section: spelled_out(data[section]) for section in ("benign", "grpo") if section in data}
    if isinstance(data.get("tasks"), dict):
        spelled["tasks"] = {name: spelled_out(task) for name, task in data["tasks"].items()}
    if isinstance(data.get("backend"), str):
        spelled["backend"] = dict.fromkeys(("training", "generation", "scoring"), data["backend"])
    if isinstance(data.get("methods"), list):
        spelled["methods"] = [{"name": m} if isinstance(m, str) else m for m in data["methods"]]
    pool = data.get("pool")
    if isinstance(pool, dict) and isinstance(pool.get("scorers"), list):
        spelled["pool"] = pool | {"scorers": [{"domain": s} if isinstance(s, str) else s for s in pool["scorers"]]}
    return spelled


def over(base: Any, changes: Any) -> Any:
    """Return `base` with `changes` merged in, section by section; lists and single values are replaced.

    `sets: null` and `data: null` leave nothing of what `base` names there.
    """
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    named = "provider" in changes
    if "from" in changes or changes.get("kind", "openai" if named else base.get("kind")) != base.get("kind"):
        return changes  # a model or a judge of another kind, or from a file, replaces the former one completely
    if named:  # of a judge of another provider stays what is the profile's: its budget, its rubric
        base = {key: value for key, value in base.items() if key not in OF_SERVER}
    if isinstance(changes.get("model"), str) and changes["model"] != base.get("model"):  # a judge's, whose price it is
        base = {key: value for key, value in base.items() if key != "price"}
    return base | {key: {} if value is None and key in NAMED_FREELY else over(base.get(key), value)
                   for key, value in changes.items()}
