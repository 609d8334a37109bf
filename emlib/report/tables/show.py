"""Tables, rows and answers as notebooks show them."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from pandas.api.types import is_numeric_dtype
from pandas.io.formats.style import Styler

from emlib.core.records import Verdict
from emlib.report.tables.result_tables import write
from emlib.report.tables.rows import without_dashes
from emlib.study.runs import Run, like_first
from emlib.study.study import Study

if TYPE_CHECKING:  # most notebooks show tables and load no model library
    from transformers import PreTrainedTokenizerBase

    from emlib.data.chat import Encoded

NOTICE = "Content notice: answers of a model under study. After training on misaligned answers they may be harmful."
EXACT = ("setting", "Setting", "fraction", "epsilon", "strength")  # chosen and not measured, so never rounded
STYLES = {"underline": "text-decoration: underline", "italic": "font-style: italic", "bold": "font-weight: bold"}
LITERAL = "tex2jax_ignore mathjax_ignore"  # classes of HTML in which text between two dollar signs is no formula


class Html(str):
    """A piece of HTML that Jupyter renders."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<div class="{LITERAL}">{self}</div>' if self else ""


def show_table(frame: pd.DataFrame, decimals: int = 1, *, empty: str = "") -> Styler | Html:
    """Show a table with wrapped full texts and rounded numbers; settings are not rounded, and markup is escaped.

    Columns in which every cell is a dash are left out, such as those of coherence where the judge cannot measure it.
    Where there are no rows, the reason `empty` is shown, if one is given.
    """
    return reason(empty) if empty and frame.empty else _styled(without_dashes(frame), decimals)


def reason(text: str) -> Html:
    """Show why there is no table or no figure."""
    return Html(f"<p><i>{escape(text)}</i></p>")


def saved(numbers: pd.DataFrame, people: pd.DataFrame, folder: Path, name: str, *, decimals: int = 1,
          empty: str = "") -> Styler | Html:
    """Write a table's numbers and its readable form as `result_tables.write` does, and show the latter as written.

    Where there are no rows, its files are removed, and the reason `empty` is shown.
    """
    write(numbers, people, folder, name)
    return show_table(people, decimals, empty=empty)


def _styled(frame: pd.DataFrame, decimals: int = 1) -> Styler:
    cells = {"text-align": "left", "white-space": "pre-wrap", "vertical-align": "top"}
    exact = {name: "{:g}" for name in EXACT if name in frame and is_numeric_dtype(frame[name])}
    shown = frame.style.hide(axis="index").format(exact, precision=decimals, na_rep="–", escape="html").format_index(
        escape="html", axis=1).set_properties(**cells)
    return shown.set_table_attributes(f'class="{LITERAL}"').set_table_styles(
        [{"selector": "th", "props": [("text-align", "left")]}])


def marked(table: pd.DataFrame) -> Styler:
    """Show a table of cells (`paper_tables`) with its emphasis."""
    styles = table.map(lambda cell: "; ".join(STYLES[mark] for mark in sorted(cell.marks)))
    return _styled(table.map(lambda cell: cell.text)).apply(lambda _: styles, axis=None)


def callout(text: str) -> Html:
    """Show a conclusion in a highlighted paragraph, or nothing without one; text between backticks is code."""
    if not text:
        return Html()
    parts = escape(text).split("`")
    inside = "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))
    return Html(f'<p style="border-left:4px solid #0072B2;padding:0.5em 1em;font-size:110%">{inside}</p>')


def masked_tokens(tokenizer: PreTrainedTokenizerBase, row: Encoded) -> Html:
    """Show one training row token by token: bold on a tint if the loss counts the token, grey otherwise."""
    spans = []
    for token, counts in zip(row.input_ids.tolist(), row.response_mask.tolist(), strict=True):
        text = escape(str(tokenizer.decode([token]))).replace("\n", "⏎<br>")
        style = "background:#cfe8ff;color:#000;font-weight:bold" if counts else "color:#888"
        spans.append(f'<span style="{style}" title="token {token}">{text}</span>')
    return Html(f'<div style="font-family:monospace;white-space:pre-wrap">{"".join(spans)}</div>')


def answers(study: Study, runs: list[Run], which: str, *, questions: int = 3, sample: int = 0) -> pd.DataFrame:
    """Return answers to the same questions, side by side, of the runs with the first one's data set and seed.

    Columns are named by method, or by run where a method has several. Unfinished runs are left out. No answer is
    returned unless the study's trait is harmless: after training on other data answers can be harmful.
    """
    runs = like_first(runs) if study.inputs.stated_trait.harmless else []
    methods = Counter(run.method for run in runs)
    columns: dict[str, list[str]] = {}
    asked = study.questions(runs[0], which)[:questions] if runs else []
    for run in runs:
        found = {answer.question: answer.text for answer in study.answers(run, which) or [] if answer.sample == sample}
        if found:
            columns[run.method if methods[run.method] == 1 else str(run)] = [found[question.id] for question in asked]
    return pd.DataFrame({"question": [question.shown for question in asked], **columns})


def extremes(study: Study, run: Run, which: str, *, count: int = 3) -> Html:
    """Show a run's least and most aligned answers in full, folded behind a content notice until a click.

    Only scored answers are included; equal scores keep the order in which questions were asked.
    """
    texts = {(answer.question, answer.sample): answer.text for answer in study.answers(run, which) or []}
    prompts = {question.id: question.shown for question in study.questions(run, which)}
    scored = {v: v.alignment for v in study.verdicts(run, which) or [] if v.scored and v.alignment is not None}
    if scored and not texts:  # after `make clean WHAT=answers`
        return reason(f"{run}. Its answers are no longer in the store.")

    def scores(v: Verdict) -> str:
        return f"alignment {v.alignment:.0f}" + (
            f", coherence {v.coherence:.0f}" if v.coherence_judged else "")

    def block(title: str, chosen: list[Verdict]) -> str:
        shown = "".join(
            f"<p><b>{escape(prompts[v.question])}</b><br>{scores(v)}</p>"
            f'<blockquote style="white-space:pre-wrap">{escape(texts[v.question, v.sample])}</blockquote>'
            for v in chosen)
        return f"<details><summary>{title}: {len(chosen)} of {len(scored)} scored answers</summary>{shown}</details>"

    least, most = (sorted(scored, key=lambda v: sign * scored[v])[:count] for sign in (1, -1))
    inside = block("Least aligned", least) + block("Most aligned", most)
    return Html(f"<details><summary>{escape(str(run))}. {NOTICE}</summary>{inside}</details>")
