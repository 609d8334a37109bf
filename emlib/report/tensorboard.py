"""Event files for TensorBoard of the trainings of a study: `python -m emlib.report.tensorboard demo`.

Each run on narrow data has its loss and learning rate, and what its monitor read. The files are made from the JSON
lines beside each adapter (`log.jsonl`, `monitor.jsonl`). TensorBoard is not installed with emlib.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from emlib.core.commands import ends_with_message, profile_parser
from emlib.core.errors import EmlibError
from emlib.study.runs import Run
from emlib.study.study import Study, open_study


def scalars(study: Study, run: Run) -> Iterator[tuple[str, float, int]]:
    """Yield the tag, the value and the step of each number that was recorded while a run trained."""
    for step in study.log(run):
        yield "train/loss", step.loss, step.step
        yield "train/learning_rate", step.learning_rate, step.step
        yield from ((f"train/{name.replace(' ', '_')}", value, step.step) for name, value in step.penalties.items())
    for one in study.readings(run):
        measures = {**{f"drift/{name}": value for name, value in one.drift.items()},
                    **{f"loss/{name}": value for name, value in one.losses.items()}, "kl": one.kl}
        yield from ((f"monitor/{name.replace(' ', '_')}", value, one.step)
                    for name, value in measures.items() if value is not None)


def write(study: Study, folder: Path) -> int:
    """Write a folder of event files for each run that has trained, and return how many there are.

    Those that an earlier call wrote for the run are removed: TensorBoard shows all files of a folder as one run.

    Raises:
        EmlibError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise EmlibError("TensorBoard is not installed here. Install it into this environment (pip install "
                         "tensorboard), or read the JSON lines in the folder of each adapter.")
    from torch.utils.tensorboard import SummaryWriter

    runs = [run for run in study.runs() if study.log(run)]
    for run in runs:
        name = "_".join(map(str, (run.task, run.condition.replace(" ", "_"), "seed", run.seed)))
        for earlier in (folder / name).glob("events.out.tfevents.*"):
            earlier.unlink()
        with SummaryWriter(str(folder / name)) as writer:
            for tag, value, step in scalars(study, run):
                writer.add_scalar(tag, value, step)
    return len(runs)


@ends_with_message()
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = profile_parser("python -m emlib.report.tensorboard", "Write event files for TensorBoard.")
    parser.add_argument("--to", type=Path, help="the folder; by default `tensorboard` in the folder of results")
    asked = parser.parse_args(arguments)
    study = open_study(asked.profile)
    folder = asked.to or study.folder / "tensorboard"
    print(f"{write(study, folder)} runs in {folder}: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main()
