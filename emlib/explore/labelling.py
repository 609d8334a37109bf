"""The widget of notebook 19 in which a person labels answers without seeing which model gave them."""

from __future__ import annotations

from functools import partial
from html import escape

import ipywidgets as w

from emlib.core.errors import EmlibError
from emlib.explore import answers as found
from emlib.explore import labels
from emlib.explore.bench import LABELS, WIDE, harmless
from emlib.study.study import Study

TEXT = "white-space:pre-wrap;line-height:1.4"


class Labelling(w.VBox):
    """One answer at a time, in an order of its own for each name; every label is kept at once, and work goes on later.

    Attributes:
        queue: the answers in their order, those labelled before included.
        place: of the answer that is shown.
    """

    def __init__(self, study: Study, labeller: str = "", seed: int = 0) -> None:
        self.study, self.seed = study, seed
        self.queue: list[labels.Unlabelled] = []
        self.place = 0
        runs = found.answered(study)
        self.name = w.Text(labeller, placeholder="who labels", description="Name", style=LABELS)
        self.runs = w.SelectMultiple(options=[(str(run), run) for run in runs], rows=min(8, max(3, len(runs))),
                                     value=runs if harmless(study) else (), description="Runs", layout=WIDE,
                                     style=LABELS)
        self.start = w.Button(description="Begin or go on", button_style="primary")
        self.shown, self.state = w.HTML(), w.Label()
        self.buttons = {name: w.Button(description=name, disabled=True) for name in labels.SCORES}
        self.score = w.IntSlider(50, min=0, max=100, description="Alignment", style=LABELS)
        self.by_score = w.Button(description="coherent, with this score", disabled=True)
        self.back = w.Button(description="Back", disabled=True)
        self.start.on_click(self._begin)
        for name, button in self.buttons.items():
            button.on_click(partial(self._give, *labels.SCORES[name]))
        self.by_score.on_click(lambda button: self._give(float(self.score.value), 100.0, button))
        self.back.on_click(self._back)
        super().__init__([w.HBox([self.name, self.start]), self.runs, self.state, self.shown,
                          w.HBox([*self.buttons.values(), self.back]), w.HBox([self.score, self.by_score])])

    def _begin(self, button: w.Button) -> None:
        """Show the first answer without a label."""
        try:
            self.queue = labels.in_blind_order(self.study, self.runs.value, self.name.value, self.seed)
            self._go_on(0)
        except EmlibError as error:
            self.queue = []
            self._show()
            self.state.value = str(error)

    def _go_on(self, start: int) -> None:
        """Show the first answer without a label, from the place `start` on."""
        given = labels.read(self.name.value)
        self.place = next((place for place in range(start, len(self.queue)) if self.queue[place].key not in given),
                          len(self.queue))
        self._show()

    def _give(self, alignment: float | None, coherence: float, button: w.Button) -> None:
        labels.keep(self.name.value, self.queue[self.place].key, alignment, coherence)
        self._go_on(self.place + 1)

    def _back(self, button: w.Button) -> None:
        self.place -= 1
        self._show()

    def _show(self) -> None:
        one = self.queue[self.place] if self.place < len(self.queue) else None
        for part in (*self.buttons.values(), self.by_score):
            part.disabled = one is None
        self.back.disabled = not self.queue or self.place == 0
        self.name.disabled = self.runs.disabled = one is not None  # a label belongs to one name and one choice of runs
        given = labels.read(self.name.value) if self.queue else {}
        count = sum(item.key in given for item in self.queue)
        self.state.value = f"{count} of {len(self.queue)} answers are labelled." + (
            "" if self.queue else " Choose runs first.")
        self.shown.value = "" if one is None else (
            f'<p style="{TEXT}"><i>{escape(one.question.shown)}</i></p>'
            f'<p style="{TEXT};border-top:3px solid #0072B2">{escape(one.text)}</p>')
