"""One process of a training in subprocesses: `python -m emlib.training.worker FOLDER RANK OF MEETING`.

`emlib.training.in_subprocess` starts it. Unsloth must be imported before transformers, which it changes for the whole
process. So nothing else is imported until the job says whether it needs Unsloth.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path


def main(folder: Path, rank: int, of: int, meeting: Path) -> int:
    """Do the job of a folder, or this rank's part of it; return 0 if it succeeds."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if json.loads((folder / "job.json").read_text(encoding="utf-8"))["engine"] == "unsloth":
        os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else each load reports this machine to the hub
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(folder / "compiled"))  # else in the working directory
        importlib.import_module("unsloth")
    from emlib.training.ranks import joined  # loads torch and transformers
    from emlib.training.work import work

    with joined(rank, of, meeting) as ranks:
        return work(folder, ranks)


def _end_with(parent: int) -> None:
    """End this process when its parent process ends, so that it does not keep holding a GPU."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    place, rank, of, meeting = sys.argv[1:]
    sys.exit(main(Path(place), int(rank), int(of), Path(meeting)))
