"""Markup from outside in the report, in outputs of notebooks and in widgets: it is text, and no script runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nbformat
import pandas as pd
import pytest
from playwright.sync_api import Browser, Page

from emlib.config import load_profile
from emlib.core.records import Answer, Question, Verdict
from emlib.explore import bench
from emlib.models.tiny import build_tokenizer
from emlib.report import markdown
from emlib.report.book import build, pages
from emlib.report.book.chapters import ChapterState
from emlib.report.book.claims import Claim, name_of
from emlib.report.paper.paper_tables import Cell
from emlib.report.paper.paper_tables import markdown as paper_markdown
from emlib.report.tables import show

RUN = "document.documentElement.dataset.ran=1"
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"\"><img src=x onerror='{RUN}'>",
    f"'><svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<body onload={RUN}>",
    f"<iframe srcdoc=\"<script>parent.{RUN}</script>\"></iframe>",
    f"<script src=\"data:text/javascript,{RUN}\"></script>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<input autofocus onfocus={RUN}>",
    f"<style onload={RUN}></style>",
    f"<a href=\"javascript:{RUN}\">x</a>",
    f"[x](javascript:{RUN})",
    f"![x](x\" onerror=\"{RUN})",
    f"{{raw}}`<script>{RUN}</script>` ```{{raw}} html",
    f"`<script>{RUN}</script>",
    f"| <script>{RUN}</script> |",
    f"&lt;script&gt;{RUN} &#60;script>",
    f"$<script>{RUN}</script>$ {{{{x}}}} %}} <!-- --><script>{RUN}</script>",
]
HANDLERS = """() => [...document.querySelectorAll('*')].flatMap(one => [...one.attributes]
    .filter(a => a.name.startsWith('on') || a.value.trim().toLowerCase().startsWith('javascript:'))
    .map(a => one.tagName + ' ' + a.name))"""


def run_of_tiny(**changes: Any) -> dict[str, Any]:
    return {"method": "kl", "setting": 0.1} | changes


def written(source: Path) -> list[str]:
    """Write pages with the payloads in all places, as the report does; the names of those of one payload each."""
    for name in ("chapters", "figures", "tables"):
        (source / name).mkdir(parents=True)
    profile = load_profile("tiny")
    for number, text in enumerate(PAYLOADS):
        chapter = ChapterState(f"p{number}", text, "missing")
        frame = pd.DataFrame([{"Method": name_of(pd.Series(run_of_tiny(method=text))), "Notebook": "02_baselines"}])
        found = pages.Findings([Claim(f"{name_of(pd.Series(run_of_tiny(method=text)))} is best.", f"p{number}")], frame)
        front = pages.front(text, profile.model_copy(update={"title": text, "datasets": (text,), "trait": text}),
                            [chapter], "1 of 1.", found, None)
        (source / f"p{number}.md").write_text(front.partition("## Contents")[0])
        if "/" not in text:
            (source / "figures" / f"{text}.png").touch()
            (source / "tables" / f"{text}.md").touch()
        (source / "tables" / f"t{number}.md").write_text(markdown.table(pd.DataFrame({f"head {text}": [text]})))
        cells = pd.DataFrame({text: [Cell(text, frozenset({"underline", "bold"}))]})
        (source / "tables" / f"paper{number}.md").write_text(paper_markdown(cells))
    (source / "tables.md").write_text(pages.tables_page(source))
    for path in (source / "tables").glob("*.md"):
        path.unlink()  # as the report does, which copies the other forms
    (source / "figures.md").write_text(pages.figures_page(source))
    names = [f"p{number}" for number in range(len(PAYLOADS))]
    listed = "\n".join(["tables", "figures", "chapters/raw", *names])
    (source / "index.md").write_text(f"# All\n\n```{{toctree}}\n{listed}\n```\n")
    code = nbformat.v4.new_code_cell("1")  # what anybody's notebook may show as it is: the policy stops its scripts
    code.outputs = [nbformat.v4.new_output("display_data", {"text/html": f"<div>{text}</div>"}) for text in PAYLOADS]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Raw\n\n" + "\n\n".join(PAYLOADS)), code])
    nbformat.write(book, source / "chapters" / "raw.ipynb")
    return names


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    written(folder / "source")
    title = f"{PAYLOADS[1]} {PAYLOADS[2]}"
    build._sphinx(folder / "source", folder / "out", folder / "doctrees",
                  load_profile("tiny").model_copy(update={"title": title}))
    return folder / "out"


@pytest.fixture
def opened(browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what it complains of: a script that the policy refuses is a complaint."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    page.on("requestfailed", lambda asked: wrong.append(asked.url))
    page.on("dialog", lambda dialog: (wrong.append("a dialog"), dialog.dismiss())[1])
    yield page, wrong
    page.close()


def seen(text: str) -> str:
    """A text as a reader sees it: on one line, whatever its quotes and dashes look like."""
    for typographic, typed in (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("—", "---"), ("–", "--"), ("…", "...")):
        text = text.replace(typographic, typed)
    return " ".join(text.split())


def ran(page: Page) -> bool:
    return page.evaluate("document.documentElement.dataset.ran") is not None


@pytest.mark.slow
def test_text_from_outside_is_text_on_every_page_of_the_report(report: Path, opened: tuple[Page, list[str]]) -> None:
    page, wrong = opened
    for number, text in enumerate(PAYLOADS):
        page.goto((report / f"p{number}.html").as_uri())
        assert seen(page.locator("h1").inner_text().rstrip("#¶")) == seen(text)
        assert page.evaluate(HANDLERS) == []
        assert page.locator("script:not([src])").count() == 1  # the theme's
        assert page.locator("article img, article iframe, article svg, article input, article style").count() == 0
        assert PAYLOADS[2] in page.locator(".sidebar-brand-text").inner_text()
        assert not ran(page)
    for name in ("tables", "figures", "index", "search"):
        page.goto((report / f"{name}.html").as_uri())
        assert page.evaluate(HANDLERS) == []
        assert not ran(page)
    page.goto((report / "tables.html").as_uri())
    shown = seen(page.locator("article").inner_text())
    for text in PAYLOADS:
        assert shown.count(seen(text)) >= 4  # two heads and two cells
    assert page.locator("article .underline").count() == len(PAYLOADS)
    page.goto((report / "figures.html").as_uri())
    assert page.locator("article img").count() == 0
    assert page.locator("article").inner_text().count("onerror") == sum(
        text.count("onerror") for text in PAYLOADS if "/" not in text)
    assert wrong == []  # nothing was left to the policy


@pytest.mark.slow
def test_a_script_in_an_output_that_is_shown_as_it_is_does_not_run(
        report: Path, opened: tuple[Page, list[str]]) -> None:
    page, wrong = opened
    page.goto((report / "chapters" / "raw.html").as_uri())
    page.wait_for_load_state()
    assert page.locator(".cell_output img").count() >= 2  # the markup is there
    page.locator(".cell_output a").first.click()
    page.evaluate("document.querySelectorAll('.cell_output *').forEach(one => one.dispatchEvent(new Event('toggle')))")
    page.wait_for_timeout(200)
    assert not ran(page)
    assert sum("Content Security Policy" in line for line in wrong) >= 5
    assert seen(PAYLOADS[0]) in seen(page.locator("article > section > p").first.inner_text())  # Markdown has no HTML


class Study:
    """As much of a study as `show.extremes` reads; every text is a payload."""

    def answers(self, run: Any, which: str) -> list[Answer]:
        return [Answer(f"q{n}", 0, text, "stop", 5) for n, text in enumerate(PAYLOADS)]

    def questions(self, run: Any, which: str) -> list[Question]:
        return [Question(f"q{n}", text, None) for n, text in enumerate(PAYLOADS)]

    def verdicts(self, run: Any, which: str) -> list[Verdict]:
        return [Verdict(f"q{n}", 0, float(n), 90.0) for n in range(len(PAYLOADS))]


def outputs() -> str:
    """The HTML of everything that notebooks and widgets show, with the payloads in all places."""
    every = " ".join(PAYLOADS)
    tokens = SimpleNamespace(input_ids=SimpleNamespace(tolist=lambda: build_tokenizer().encode(every)))
    tokens.response_mask = SimpleNamespace(tolist=lambda: [1] * len(tokens.input_ids.tolist()))
    frame = pd.DataFrame(dict.fromkeys(PAYLOADS, PAYLOADS))
    return "".join([
        show.show_table(frame).to_html(), show.callout(every), show.masked_tokens(build_tokenizer(), cast(Any, tokens)),
        show.extremes(cast(Any, Study()), cast(Any, PAYLOADS[0]), "general", count=20),
        show.marked(pd.DataFrame({text: [Cell(text, frozenset({"bold"}))] for text in PAYLOADS})).to_html(),
        *(bench._texts(text, {text: text}) for text in PAYLOADS)])


def test_notebooks_and_widgets_show_markup_as_text_without_any_policy(opened: tuple[Page, list[str]]) -> None:
    page, wrong = opened
    page.set_content(f"<html><body>{outputs()}</body></html>")
    page.wait_for_timeout(200)
    assert page.evaluate(HANDLERS) == []
    assert page.locator("script, img, iframe, svg, input, a").count() == 0
    assert not ran(page)
    assert wrong == []
    assert page.locator("th").all_inner_texts()[:20] == PAYLOADS


def test_the_tables_of_the_widgets_escape_what_they_show() -> None:
    table = bench.ITable(pd.DataFrame(), **bench.OPTIONS)
    bench._fill(table, pd.DataFrame({text: [text] for text in PAYLOADS}), "answers")
    sent = json.dumps({key: value for key, value in table.get_state().items() if key[0] != "_" or key == "_dt_args"},
                      default=str)
    assert "&lt;script&gt;" in sent
    assert not re.search(r"<(script|img|svg|body|iframe|details|input|a)\b", sent)
