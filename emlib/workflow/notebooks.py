"""Running a numbered notebook with papermill, in a separate process.

    python -m emlib.workflow.notebooks 02_baselines --profile demo --dataset cooking

The executed notebook goes where the study's job would write it: a slice, as here, to notebooks/slices. `make reproduce`
runs it again only if its content changes.

It refuses a parameter that the notebook does not have (papermill only warns, and runs the default), connects to the
kernel over IPC sockets (parallel kernels collide on TCP ports), tries again if a kernel dies (finished artefacts are in
the store), and writes the executed notebook completely or not at all. If a cell fails, the partly executed notebook is
kept beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random
from traitlets.config import Config

from emlib.core import paths, plugins
from emlib.core.commands import ends_with_message, stopped_as_by_ctrl_c
from emlib.core.errors import JudgeWaits, NotebookError, nearest
from emlib.core.files import whole_file
from emlib.core.gpus import VISIBLE, claimed, devices
from emlib.core.progress import FOUND, MARK
from emlib.core.temporary import remove_unfinished, socket_folder, sweep, temporary_folder
from emlib.study import precision, stamps
from emlib.study.overrides import study_with
from emlib.study.ownership import claim
from emlib.workflow import graph
from emlib.workflow.chapters import chapters, former_names
from emlib.workflow.job_log import WATCHED, AttemptLog, logger

KERNEL_START_SECONDS = 120
OUTPUT_SECONDS = 600  # for the last output of a cell, which a busy machine delivers late; papermill waits for 4
TRIES = 3
OUT_OF_MEMORY = ("MemoryError", "_ArrayMemoryError", "OutOfMemoryError")  # Python's, numpy's and PyTorch's
OUT_OF_MEMORY_SAID = re.compile(r"out of memory|can't allocate memory|Cannot allocate memory")
FRAME = re.compile(r"^File (.+?):(\d+)(?:, in|$)", re.MULTILINE)  # of IPython's tracebacks
SOCKET_NAME = len("/emlib-12345678/kernel-5")  # of a socket's path below the system's temporary folder
NO_FILE_NAME = re.compile(r"[^\w.+-]")
LONGEST_LABEL = 160  # of many values that are given by hand: the name of a file has at most 255 bytes


def check_parameters(chapter: str, given: dict[str, Any]) -> None:
    """Check that the notebook exists and has every parameter that is given.

    Raises:
        NotebookError: it does not; the message names the nearest notebook or parameter.
    """
    if chapter not in chapters():
        raise NotebookError(f"There is no notebook '{chapter}'.{nearest(chapter, chapters())} "
                            f"Notebooks: {', '.join(chapters())}.")
    known = papermill.inspect_notebook(str(paths.NOTEBOOKS / f"{chapter}.ipynb"))
    for name in given:
        if name not in known:
            raise NotebookError(f"Notebook {chapter} has no parameter '{name}'.{nearest(name, known)} "
                                f"It has: {', '.join(known) or 'none'}.")


def execute(chapter: str, parameters: dict[str, Any], out: Path, job: str = "") -> Path:
    """Run a notebook with these parameters and write the executed notebook to `out`, with its job's stamp.

    Raises:
        NotebookError: a parameter does not exist, the kernel died, or a cell failed; its traceback is shown and kept.
        KeyboardInterrupt: it was interrupted, here or in its kernel.
    """
    check_parameters(chapter, parameters)
    failed = out.with_name(f"{out.stem}.failed.ipynb")
    stamp = " ".join(filter(None, (stamps.of_profile(parameters["profile"]) if "profile" in parameters else "", job)))
    with whole_file(out) as unfinished:
        try:
            _papermill(chapter, parameters, unfinished)
            _sign(unfinished, stamp)
        except PapermillExecutionError as error:
            if error.ename == KeyboardInterrupt.__name__:
                raise KeyboardInterrupt from error
            _sign(unfinished, stamp)
            os.replace(unfinished, failed)
            if error.ename != JudgeWaits.__name__:  # which is no failure
                logger.info("%s", error)  # its text is the traceback, without colours
            raise NotebookError(f"{chapter}, cell {error.cell_index}: {_reason(error.ename, error.evalue)}"
                                f"{_in_plugin(error)}\nThe notebook up to this cell: {failed.resolve()}") from error
        except (DeadKernelError, RuntimeError) as error:
            raise NotebookError(f"{chapter}: the kernel died {TRIES} times ({error}). The usual cause is too little "
                                "memory: close other programs, lower batch_rows in the profile, or set fewer JOBS. "
                                "Finished artefacts are kept.") from error
    failed.unlink(missing_ok=True)
    return out


def _sign(executed: Path, stamp: str) -> None:
    """Write the stamps of the profile that a notebook ran for, and of its job, into its metadata."""
    book = json.loads(executed.read_text(encoding="utf-8"))
    book["metadata"]["made_with"] = stamp
    executed.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _in_plugin(error: PapermillExecutionError) -> str:
    """Return a line with the place in a plugin's file that a cell's error passed last, unless its message has it."""
    known = {str(file) for file in plugins.files()}
    passed = [(file, line) for name, line in FRAME.findall(str(error))
              if (file := str(Path(name).expanduser().resolve())) in known]
    if not passed or passed[-1][0] in error.evalue:
        return ""
    return f"\nIts last line in a plugin: {passed[-1][0]}, line {passed[-1][1]}"


def _reason(kind: str, message: str) -> str:
    """Return what stopped a cell: the error as it is, or one plain line if the memory ran out."""
    if not (kind in OUT_OF_MEMORY or OUT_OF_MEMORY_SAID.search(message)):
        return f"{kind}: {message}"
    where = "the GPU's memory" if "CUDA" in message or "GPU" in message else "the memory"
    return (f"{where} ran out. Lower training.batch_size (and raise gradient_accumulation), batch_rows or "
            "max_seq_length in the profile, set fewer JOBS, or close other programs. Finished artefacts are kept.")


def run_job(chapter: str, parameters: dict[str, Any], out: Path, log: Path, *, job: str = "",
            digest: str | None = None, gpus: int = 0) -> None:
    """Run a notebook as a job of a study: with a log and its own GPUs, and in one process at a time.

    If another process finished the job with the same content while this one waited, it is not run again. The log and
    the records of attempts beside it keep an error, which `execute` raises.
    """
    attempts = AttemptLog(log)
    if attempts.is_running():
        print(f"    waits for another process that runs it, see {log}", file=sys.stderr, flush=True)
    with attempts.alone():
        if out.is_file() and attempts.ended_with(digest):
            print("    finished by another process in the meantime", file=sys.stderr, flush=True)
            return
        remove_unfinished(out)
        with claimed(devices(), gpus) as taken, attempts.writing(gpu=",".join(taken) or None, digest=digest):
            if taken:
                os.environ[VISIBLE] = ",".join(taken)
            if gpus:
                precision.decide(parameters["profile"])
            execute(chapter, parameters, out, job)


@retry(retry=retry_if_exception_type((DeadKernelError, RuntimeError)), stop=stop_after_attempt(TRIES),
       wait=wait_random(1, 5), reraise=True)
def _papermill(chapter: str, parameters: dict[str, Any], out: Path) -> None:
    """Execute a notebook, and try again if the kernel does not start or dies."""
    with temporary_folder(socket_folder(SOCKET_NAME)) as sockets:  # one a kernel: the sockets' names are fixed
        connection = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        papermill.execute_notebook(
            str(paths.NOTEBOOKS / f"{chapter}.ipynb"), str(out), parameters=parameters, cwd=str(paths.NOTEBOOKS),
            request_save_on_cell_execute=False,  # it is written once: a copy for each cell takes a second in all
            kernel_name="python3", progress_bar=False, log_output=True, start_timeout=KERNEL_START_SECONDS,
            iopub_timeout=OUTPUT_SECONDS, kernel_manager_class=_ThisPython,
            config=Config({"KernelManager": connection}))


class _ThisPython(AsyncKernelManager):
    """Starts the kernel of this Python, even if another kernel called python3 is installed for the user.

    An idle kernel is interrupted before it ends, and would report this as an error in the terminal.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel to start; Jupyter would look its name up in JUPYTER_PATH and the user's folders first."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(["--log-level=CRITICAL"]))


class _ProgressPrinter(logging.Handler):
    """Prints a notebook's progress lines; papermill logs all its output, including tables."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in record.getMessage().splitlines():
            if line.startswith((MARK, FOUND)):
                print("   ", line.removeprefix(MARK), file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m emlib.workflow.notebooks",
                                     description="Run one notebook of a study.")
    parser.add_argument("chapter", help="the notebook's name without .ipynb, such as 02_baselines")
    parser.add_argument("--profile", default="demo", help="a file of params/, without .yaml, or a path to one")
    parser.add_argument("--dataset", action="append", help="only this data set (may be repeated)")
    parser.add_argument("--method", action="append", help="only this method (may be repeated)")
    parser.add_argument("--setting", action="append", type=float,
                        help="only this hyperparameter value (may be repeated)")
    parser.add_argument("--seed", action="append", type=int, help="only this seed (may be repeated)")
    parser.add_argument("--set", dest="overrides", default="", help="values that override the profile's, such as "
                        "'seeds=[0,1] training.epochs=2'; results then go into a separate folder")
    parser.add_argument("--label", help="the name of this run in the terminal")
    parser.add_argument("--out", type=Path, help="where to write the executed notebook")
    parser.add_argument("--log", type=Path, help="append all output of the notebook to this file")
    parser.add_argument("--digest", help="the digest of the content, as the workflow computes it; written to the log")
    parser.add_argument("--gpus", type=int, default=0, help="how many free GPUs to take, if there are any")
    return parser


def _job_of(asked: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """Return a notebook's parameters, its output under the folder of results, and the stamp of its job.

    They are those of the graph, so that a slice which is run by hand is that slice's job.
    """
    chosen = {by: values for by in graph.AXES if (values := getattr(asked, by)) is not None}
    parameters = {"profile": asked.profile} | {f"{by}s": values for by, values in chosen.items()}
    if asked.digest is None:
        check_parameters(asked.chapter, parameters)  # of a job it is an error of its attempt
    values = [graph.labelled(by, value) for by, several in chosen.items() for value in several]
    label = NO_FILE_NAME.sub("_", "_".join(label for label, _ in values))[:LONGEST_LABEL]
    digest = asked.digest or graph.digest_of(asked.chapter, asked.profile)
    return (parameters, graph.output_of(asked.chapter, label),
            stamps.of_job(digest, " ".join(arguments for _, arguments in values)))


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    asked = _parser().parse_args(arguments)
    shown = WATCHED not in os.environ
    logging.basicConfig(level=logging.INFO, handlers=[_ProgressPrinter() if shown else logging.NullHandler()])
    os.environ |= {"EMLIB_HEADLESS": "1"} | paths.variables()
    # Kernels run in notebooks/, so that a path has to be absolute.
    profile = str(Path(asked.profile).resolve()) if paths.is_yaml(asked.profile) else asked.profile
    asked.profile = study_with(profile, asked.overrides)  # checks the profile before a kernel is started
    asked.chapter = former_names().get(asked.chapter, asked.chapter)
    parameters, output, job = _job_of(asked)
    folder = paths.runs() / paths.study_name(asked.profile)
    out = asked.out or folder / output
    claim(asked.profile)
    sweep(folder)  # what killed runs left
    if shown:
        print(asked.label or asked.chapter, file=sys.stderr, flush=True)
    started = time.perf_counter()
    with stopped_as_by_ctrl_c():
        if asked.log is None:
            execute(asked.chapter, parameters, out, job)
        else:
            _logged(asked, parameters, out, job)
    if shown:
        print(f"    {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def _logged(asked: argparse.Namespace, parameters: dict[str, Any], out: Path, job: str) -> None:
    """Run a notebook as a job. Who watches shows its error, which the records of attempts have."""
    try:
        run_job(asked.chapter, parameters, out, asked.log, job=job, digest=asked.digest, gpus=asked.gpus)
    except NotebookError:
        if WATCHED not in os.environ:
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
