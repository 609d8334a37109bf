"""Standard benchmarks: tasks of inspect_ai and inspect_evals, run unchanged in an environment of their own.

`panel_program.py` runs there. It is given the address and the key of a server with the model that is evaluated.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emlib.core import digests, paths
from emlib.core.addresses import ask_directly
from emlib.core.child import child
from emlib.core.errors import EmlibError, nearest
from emlib.core.temporary import temporary_folder

PROGRAM = Path(__file__).with_name("panel_program.py")
VARIABLE = "EMLIB_PANEL"  # names the Python of another environment with inspect_ai
PACKAGE = "inspect_evals"  # of tasks that are named without one
ORDER, REPLY = "order.json", "reply.json"


@dataclass(frozen=True)
class PanelTask:
    """A task as it is loaded here."""

    spec: str = field(compare=False)  # what inspect loads it by: `package/name`, or `/folder/file.py@name`
    limit: int | None  # how many samples are asked, the first ones; None for all
    name: str
    version: str
    samples: int  # that are asked, epochs included
    digest: str  # of these samples and of the task's file
    packages: Mapping[str, str] = field(hash=False)  # versions of inspect_ai and of the task's package
    source: str = field(default="", compare=False)  # the digest of the task's own file as it was loaded

    def refuse_edited(self) -> None:
        """Raise EmlibError if the task's own file was edited since it was loaded, because the key has the former."""
        path = Path(self.spec.rpartition("@")[0])
        if self.source and digests.of_file(path) != self.source:
            raise EmlibError(f"{path} was changed after the task was loaded. Nothing is evaluated; the same command "
                             "loads it again.")


def interpreter() -> Path:
    """Return the Python that has inspect_ai: that of EMLIB_PANEL, or of `.venv-panel`.

    Raises:
        EmlibError: there is none.
    """
    found = Path(os.environ.get(VARIABLE) or paths.ROOT / ".venv-panel" / "bin" / "python")
    if not found.is_file():
        raise EmlibError(f"{found}: there is no Python with inspect_ai, which standard benchmarks need. `make panel` "
                         f"installs it into .venv-panel; {VARIABLE} names the Python of another environment.")
    return found


def load_tasks(names: Sequence[str], limit: int | None) -> list[PanelTask]:
    """Load tasks with their data, which downloads it where a task does so.

    Raises:
        EmlibError: a task cannot be run here, with the reason for each one: no such task, data that cannot be
            downloaded, a judge without its key.
    """
    specs = list(dict.fromkeys(_spec(name) for name in names))
    if not specs:
        raise EmlibError("No task is named. Example: make panel TASKS=mmlu_0_shot,truthfulqa or TASKS=/my/task.py@name")
    with temporary_folder() as folder:
        found = _call(folder, {"describe": [(spec, limit) for spec in specs]}, {})
    problems = [f"  {spec}: {one['problem']}.{nearest(spec, one['known'])}"
                for spec, one in zip(specs, found, strict=True) if "problem" in one]
    if problems:
        raise EmlibError("\n".join([
            f"{len(problems)} of {len(specs)} tasks cannot be run here, so nothing was started:", *problems,
            "A task is loaded with its data, which many download from the hub or another site, and its judge needs the "
            "key of its provider in the environment. Provide these, or leave the task out of TASKS."]))
    return [PanelTask(spec, limit, **one) for spec, one in zip(specs, found, strict=True)]


def _spec(name: str) -> str:
    file, at, task = name.rpartition("@")
    if not at and not name.endswith(".py"):
        return name if "/" in name else f"{PACKAGE}/{name}"
    path = Path(file if at else name).expanduser().absolute()
    if not at or not task or not path.is_file():
        raise EmlibError(f"TASKS has '{name}': " + (f"there is no file {path}" if at and task else
                                                    "a file needs the name of its task") + ". Write FILE.py@TASK.")
    return f"{path}@{task}"


def evaluate(task: PanelTask, model: str, url: str, key: str, connections: int, work: Path,
             metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate the model that a server offers on a task; an interrupted evaluation continues from its logs in `work`.

    Return `log`, the log's file in `work / "logs"`, and `metrics`, its scores. `metadata` is what the log says of the
    model.

    Raises:
        EmlibError: inspect stopped with an error. Finished samples are kept in the log.
    """
    task.refuse_edited()
    ask_directly(url)
    order = {"spec": task.spec, "model": model, "limit": task.limit, "connections": connections,
             "logs": str((work / "logs").absolute()), "metadata": metadata}
    reply = _call(work, {"run": order}, {"EMLIB_BASE_URL": url, "EMLIB_API_KEY": key})
    if "error" in reply:
        raise EmlibError(f"{task.name}: inspect stopped: {reply['error']}. Finished samples are kept; the same command "
                         "continues.")
    return dict(reply)


def _call(folder: Path, order: Mapping[str, Any], variables: Mapping[str, str]) -> Any:
    """Have the program carry out an order, with its files in `folder`; its output is shown."""
    (folder / REPLY).unlink(missing_ok=True)
    (folder / ORDER).write_text(json.dumps(order), encoding="utf-8")
    with child([interpreter(), "-I", PROGRAM.absolute(), (folder / ORDER).absolute()], os.environ | variables,
               folder=folder) as process:
        code = process.wait()
    if not (folder / REPLY).is_file():
        raise EmlibError(f"inspect ended with code {code}; its output is above. Finished samples are kept; the same "
                         "command continues.")
    return json.loads((folder / REPLY).read_text(encoding="utf-8"))
