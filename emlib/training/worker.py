"""A training in a process of its own, or in several: `python -m emlib.training.worker FOLDER RANK OF MEETING`.

`emlib.training.in_subprocess` starts it. Unsloth has to be imported before transformers, and changes it for the whole
process. So nothing else is imported before the job says whether Unsloth is wanted.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path


def main(folder: Path, rank: int, of: int, meeting: Path) -> int:
    """Do the job of a folder, or this rank's part of it; 0 where it is done."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if json.loads((folder / "job.json").read_text(encoding="utf-8"))["engine"] == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else each load tells the hub of this machine
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "compiled"))  # else in the working folder
        importlib.import_module("unsloth")
    from emlib.training.ranks import joined  # loads torch and transformers
    from emlib.training.work import work

    with joined(rank, of, meeting) as ranks:
        return work(folder, ranks)


def _end_with(parent: int) -> None:
    """End where the process that wanted this is gone: a GPU is not held for nobody."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    place, rank, of, meeting = sys.argv[1:]
    sys.exit(main(Path(place), int(rank), int(of), Path(meeting)))
