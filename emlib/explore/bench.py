"""The widgets of notebook 19: answers to browse, two runs to compare, models to ask.

Each is an ordinary ipywidgets box whose parts are attributes, so a program can use it as a person does:
`answers.text.value = "arr"` filters. Tables are itables' widget: it sorts and pages in the browser, offline, and shows
markup in an answer as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import ipywidgets as w
import pandas as pd
from itables.widget import ITable
from pandas.api.types import is_string_dtype

from emlib.config import MISALIGNED, QUESTION_SETS, UNTRAINED, Sampling
from emlib.core.errors import EmlibError
from emlib.core.records import Answer, Question
from emlib.explore import answers as found
from emlib.explore.talk import BASE, Steering, Talk, trained
from emlib.study.runs import Run
from emlib.study.study import Study

CLIPPED = 160  # characters of a text in a table's cell; a click shows the full text
ROWS = 1000    # of a table: more would make the browser slow
OPTIONS: dict[str, Any] = {"maxBytes": 0, "showIndex": False, "select": "single", "pageLength": 5,
                           "lengthMenu": [5, 10, 25], "classes": "display compact", "style": "width:100%",
                           "layout": {"topEnd": None}}  # its search would only see the clipped texts
ANY = ""  # with None a dropdown would be blank
SETS = [(name.replace("_", "-"), name) for name in QUESTION_SETS]
WIDE = w.Layout(width="98%")
LABELS = {"description_width": "6em"}


class Answers(w.VBox):
    """Answers of the chosen runs, filtered by question, verdict and text; a click on a row shows it in full.

    `shown` is the table behind the rows. A run is preselected only if the study's trait is harmless.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.shown = study, pd.DataFrame(columns=found.COLUMNS)
        runs = found.answered(study)
        shown = [run for run in runs if run.method == MISALIGNED][:1] if harmless(study) else []
        self.runs = w.SelectMultiple(options=[(str(run), run) for run in runs], rows=min(8, max(3, len(runs))),
                                     value=shown, description="Runs", layout=WIDE, style=LABELS)
        self.which = w.Dropdown(options=SETS, description="Questions", style=LABELS)
        self.question = w.Dropdown(description="Question", layout=WIDE, style=LABELS)
        self.verdicts = w.SelectMultiple(options=found.VERDICTS, rows=4, description="Verdict", style=LABELS)
        self.text = w.Text(placeholder="words in the answer", continuous_update=False, description="Text", style=LABELS)
        self.count, self.table, self.whole = w.Label(), ITable(pd.DataFrame(), **OPTIONS), w.HTML()
        self._ask()
        for part in (self.runs, self.which):
            part.observe(self._ask, "value")
        for part in (self.question, self.verdicts, self.text):
            part.observe(self._show, "value")
        self.table.observe(self._read, "selected_rows")
        super().__init__([self.runs, self.which, self.question, w.HBox([self.verdicts, self.text]), self.count,
                          self.table, self.whole])

    def _ask(self, change: Mapping[str, Any] | None = None) -> None:
        """Read the answers of the chosen runs, and list their questions."""
        self._all = found.gather(self.study, self.runs.value, self.which.value)
        asked = self._all.drop_duplicates("question")
        self.question.options = [("any", ANY), *zip(asked["prompt"], asked["question"], strict=True)]
        self._show()

    def _show(self, change: Mapping[str, Any] | None = None) -> None:
        self.shown = found.filtered(self._all, question=self.question.value or None, verdicts=self.verdicts.value,
                                    text=self.text.value).reset_index(drop=True)
        self.count.value = _fill(self.table, self.shown[
            ["run", "prompt", "answer", "verdict", "alignment", "coherence"]], "answers")
        self._read()

    def _read(self, change: Mapping[str, Any] | None = None) -> None:
        row = _chosen(self.table, self.shown)
        self.whole.value = "" if row is None else _texts(row["prompt"], {
            f"{row['run']} · sample {row['sample']} · {row['verdict']}": row["answer"]})


class Comparison(w.VBox):
    """Two runs' answers to the same samples, the largest differences first; `shown` is the table."""

    def __init__(self, study: Study) -> None:
        self.study, self.shown = study, pd.DataFrame(columns=found.BESIDE)
        runs = found.answered(study)
        options: list[tuple[str, Run | str]] = [("choose a run", ANY), *((str(run), run) for run in runs)]
        first = {run.method: run for run in reversed(runs)} if harmless(study) else {}
        self.left, self.right = (
            w.Dropdown(options=options, value=first.get(method, ANY), description=name, layout=WIDE, style=LABELS)
            for name, method in (("Left", UNTRAINED), ("Right", MISALIGNED)))
        self.which = w.Dropdown(options=SETS, description="Questions", style=LABELS)
        self.count, self.table, self.whole = w.Label(), ITable(pd.DataFrame(), **OPTIONS), w.HTML()
        self._show()
        for part in (self.left, self.right, self.which):
            part.observe(self._show, "value")
        self.table.observe(self._read, "selected_rows")
        super().__init__([self.left, self.right, self.which, self.count, self.table, self.whole])

    def _show(self, change: Mapping[str, Any] | None = None) -> None:
        left, right = (found.gather(self.study, [side.value] if side.value else [], self.which.value)
                       for side in (self.left, self.right))
        self.shown = found.side_by_side(left, right)
        self.count.value = _fill(self.table, self.shown[
            ["prompt", "answer_left", "answer_right", "apart", "words_apart"]], "pairs of answers")
        self._read()

    def _read(self, change: Mapping[str, Any] | None = None) -> None:
        row = _chosen(self.table, self.shown)
        self.whole.value = "" if row is None else _texts(row["prompt"], {
            f"{run.value} · {row[f'verdict_{side}']}": row[f"answer_{side}"]
            for side, run in (("left", self.left), ("right", self.right))})


class Conversation(w.VBox):
    """The user's prompt, answered by the base model and the chosen adapters, with or without a persona vector.

    The model is loaded when the button is first pressed. `answers` holds the last answers by the models' names.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.talk, self.answers = study, Talk(study), dict[str, Answer]()
        most = max(5.0, *study.profile.probe.strengths)
        there = study.vectors() is not None
        self.prompt = w.Textarea(placeholder="what to ask", description="Prompt", layout=WIDE, style=LABELS)
        self.system = w.Text(placeholder="the model's own", description="System", layout=WIDE, style=LABELS)
        self.runs = w.SelectMultiple(options=[(BASE, None), *((str(run), run) for run in trained(study))],
                                     value=(None,), rows=6, description="Models", layout=WIDE, style=LABELS)
        self.layer = w.Dropdown(options=study.profile.probe.layers, disabled=not there, description="Layer",
                                style=LABELS)
        self.strength = w.FloatSlider(0.0, min=-most, max=most, step=0.5, disabled=not there, description="Strength",
                                      continuous_update=False, style=LABELS)
        self.tokens = w.IntSlider(120, min=10, max=600, step=10, description="Length", style=LABELS)
        self.sample = w.BoundedIntText(0, min=0, max=10**6, description="Sample", style=LABELS)
        self.button = w.Button(description="Answer", button_style="primary")
        self.state = w.Label("" if there else "There is no persona vector yet; notebook 03_persona_vectors makes it.")
        self.replies, self.trouble = w.HTML(), w.Output()
        self.button.on_click(self._answer)
        super().__init__([self.prompt, self.system, self.runs, w.HBox([self.layer, self.strength]),
                          w.HBox([self.tokens, self.sample]), w.HBox([self.button, self.state]), self.replies,
                          self.trouble])

    def _answer(self, button: w.Button) -> None:
        """Ask and show the answers; errors that a user can fix appear next to the button, others as a traceback."""
        self.trouble.clear_output()
        self.button.disabled = True
        with self.trouble:
            try:
                self.state.value = "answering ..." if self.talk.loaded else "loading the model ..."
                self.answers = self._asked()
                self.replies.value = _texts(self.prompt.value, {name: one.text for name, one in self.answers.items()})
                self.state.value = ""
                self.trouble.clear_output()  # the progress of loading
            except EmlibError as error:
                self.state.value = str(error)
            finally:
                self.button.disabled = False

    def _asked(self) -> dict[str, Answer]:
        if not self.prompt.value.strip():
            raise EmlibError("Write a prompt first.")
        question = Question("a question of one's own", self.prompt.value, self.system.value or None)
        usual = self.study.profile.evaluation.sampling
        sampling = Sampling(temperature=usual.temperature, top_p=usual.top_p, max_new_tokens=self.tokens.value)
        steering = Steering(self.layer.value, self.strength.value) if self.strength.value else None
        return self.talk.ask(question, list(self.runs.value), sampling, steering, self.sample.value)


def harmless(study: Study) -> bool:
    """Return whether answers may be shown without a choice, as the trait's file says; notebook 02 asks the same."""
    return study.inputs.stated_trait.harmless


def _fill(table: ITable, frame: pd.DataFrame, name: str) -> str:
    """Fill the table with these rows, with long texts clipped and no row chosen, and return a line with their count."""
    cut = frame.head(ROWS).copy()
    for column in filter(lambda column: is_string_dtype(cut[column]), cut.columns):
        cut[column] = cut[column].map(_clipped)
    more = f", of which the first {ROWS} are shown" if len(frame) > ROWS else ""
    cut.columns = [column.replace("_", " ") for column in cut.columns]
    table.update(cut.round(1), selected_rows=[], **OPTIONS)
    return f"{len(frame)} {name}{more}. Click a row to see it in full."


def _clipped(text: str) -> str:
    """Return the text on one line, clipped to `CLIPPED` characters."""
    line = " ".join(text.split())
    return line if len(line) <= CLIPPED else line[:CLIPPED] + " …"


def _chosen(table: ITable, frame: pd.DataFrame) -> pd.Series | None:
    return frame.iloc[table.selected_rows[0]] if table.selected_rows else None


def _texts(prompt: str, answers: Mapping[str, str]) -> str:
    """Return a prompt and its answers side by side as HTML; markup in them is escaped."""
    text = "white-space:pre-wrap;line-height:1.4"
    columns = "".join(f'<div style="flex:1 1 20em;border-top:3px solid #0072B2;padding:0 0.5em">'
                      f'<p><b>{escape(name)}</b></p><p style="{text}">{escape(answer)}</p></div>'
                      for name, answer in answers.items())
    return (f'<p style="{text}"><i>{escape(prompt)}</i></p>'
            f'<div style="display:flex;flex-wrap:wrap;gap:1em">{columns}</div>')
