"""The readings of a training as a figure that redraws itself in JupyterLab while the model trains."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from emlib.evaluation.records import Reading


class Curve:
    """Shows a run's readings: in a running notebook as one figure that is drawn again after each reading.

    Elsewhere nothing is drawn, and the progress bar has the last drift.
    """

    def __init__(self, title: str) -> None:
        self.title, self.handle = title, None

    def __call__(self, readings: Sequence[Reading]) -> None:
        """Draw the readings."""
        if not in_notebook():
            return
        from IPython.display import Image, display

        stream = BytesIO()
        draw(self.title, readings).savefig(stream, dpi=100)
        image = Image(stream.getvalue())  # a figure alone is shown only where pyplot was imported before
        if self.handle is None:
            self.handle = display(image, display_id=True)
        else:
            self.handle.update(image)


def in_notebook() -> bool:
    """Return whether somebody watches the outputs of a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "EMLIB_HEADLESS" not in os.environ and type(shell).__name__ == "ZMQInteractiveShell"


def draw(title: str, readings: Sequence[Reading]) -> Any:
    """Plot the drift along each vector, the losses, and KL, over the steps: a matplotlib figure."""
    from matplotlib.figure import Figure  # without pyplot, which would keep and show every figure

    figure = Figure(figsize=(9, 2.4), layout="constrained")
    steps = [one.step for one in readings]
    panels = {"drift along the vector": [one.drift for one in readings],
              "loss, nats per token": [one.losses for one in readings],
              "KL to the base model, nats": [{} if one.kl is None else {"KL": one.kl} for one in readings]}
    for axis, (label, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        names = dict.fromkeys(name for values in curves for name in values)
        for name in names:
            line = [values.get(name, float("nan")) for values in curves]
            axis.plot(steps, line, marker=".", label=name.replace("_", " "))
        if names:
            axis.legend(frameon=False, fontsize="small")
        axis.set(xlabel="step", title=label)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    return figure
