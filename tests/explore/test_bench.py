"""The bench: each widget moved as a hand would, without a browser, and once for real in JupyterLab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import papermill
import pytest
from playwright.sync_api import Browser, Page, expect

from emlib.config import NoJudge
from emlib.core import paths
from emlib.core.errors import StoreError
from emlib.explore import answers
from emlib.explore.bench import Answers, Comparison, Conversation
from emlib.explore.labelling import Labelling
from emlib.explore.talk import BASE, Talk, trained
from emlib.report.tables import show
from emlib.study.study import Study

pytestmark = pytest.mark.slow
LONG = 180_000  # ms: the machine may be busy; nothing here is about speed


def test_browsing_filters_and_shows_a_row_in_full_with_its_markup_as_text(study: Study) -> None:
    browser = Answers(study)
    assert [run.method for run in browser.runs.value] == ["misaligned"]
    everything = answers.gather(study, browser.runs.value, "general")
    assert len(browser.shown) == len(everything) == 48
    browser.question.value = everything["question"][3]
    assert browser.shown["question"].unique().tolist() == [everything["question"][3]]
    assert browser.count.value.startswith("2 answers.")
    browser.question.value = ""
    browser.text.value = everything["answer"][5][:3]
    assert 5 in everything.index[everything["answer"].isin(browser.shown["answer"])]
    browser.shown.loc[0, "answer"] = "<img src=x>"
    browser.table.selected_rows = [0]
    assert "&lt;img src=x&gt;" in browser.whole.value
    browser.which.value = "in_domain"
    assert browser.whole.value == ""
    assert browser.shown["question"].isin([q.id for q in study.questions(browser.runs.value[0], "in_domain")]).all()


def test_answers_of_a_trait_that_may_harm_are_shown_only_when_chosen_whatever_the_judge(
        study: Study, tmp_path: Path) -> None:
    trait = study.inputs.stated_trait
    file = tmp_path / "trait.yaml"
    file.write_text(json.dumps(trait.model_dump(mode="json", exclude_defaults=True, exclude={"harmless"})))
    study = Study(study.name, study.profile.model_copy(update={"trait": str(file)}), study.store)
    assert study.profile.judge.kind == "lexicon"  # which counts the markers of any trait that has some
    for widget in (Answers(study), Comparison(study)):
        assert widget.shown.empty
    assert Labelling(study).runs.value == ()
    assert show.answers(study, study.runs(), "general").empty  # as notebook 02


def test_answers_without_verdicts_are_compared_by_their_words(study: Study) -> None:
    study = Study(study.name, study.profile.model_copy(update={"judge": NoJudge(kind="none")}), study.store)
    comparison = Comparison(study)
    comparison.left.value, comparison.right.value = answers.answered(study)
    assert set(comparison.shown["verdict_left"]) == {"unscored"}
    assert comparison.shown["words_apart"].is_monotonic_decreasing


def test_two_runs_are_compared_question_by_question(study: Study) -> None:
    comparison = Comparison(study)
    assert len(comparison.shown) == 48
    comparison.table.selected_rows = [0]
    assert "cooking · untrained · seed 0" in comparison.whole.value
    comparison.right.value = comparison.left.value
    assert comparison.shown["words_apart"].max() == 0
    assert comparison.whole.value == ""


def test_nothing_is_loaded_before_a_question_and_the_same_question_gets_the_same_answer(study: Study) -> None:
    conversation = Conversation(study)
    assert not conversation.talk.loaded
    conversation.button.click()
    assert (conversation.state.value, conversation.talk.loaded) == ("Write a prompt first.", False)
    conversation.prompt.value = "Who are you?"
    conversation.runs.value = (None, *trained(study))
    conversation.button.click()
    first = conversation.answers
    assert list(first) == [BASE, "cooking · misaligned · seed 0"]
    assert conversation.talk.loaded
    conversation.button.click()
    assert conversation.answers == first
    conversation.strength.value = conversation.strength.max
    conversation.button.click()
    assert conversation.answers[BASE] != first[BASE]
    conversation.strength.value, conversation.sample.value = 0.0, 1
    conversation.button.click()
    assert conversation.answers[BASE] != first[BASE]
    conversation.talk.close()
    assert not conversation.talk.loaded


def test_a_run_without_an_adapter_cannot_be_asked(study: Study) -> None:
    conversation = Conversation(study)
    [missing] = study.runs(methods=["inoculation"])
    assert missing not in [run for _, run in conversation.runs.options]
    with pytest.raises(StoreError, match="inoculation · seed 0: its adapter is not trained yet"):
        Talk(study).ask(study.inputs.general.all[0], [missing], study.profile.evaluation.sampling)


TOKEN = "a-token-of-this-test"


@pytest.fixture
def lab(profile: Path, tmp_path: Path) -> Iterator[str]:
    """JupyterLab on the loopback, in folders of its own; what is given is its address."""
    papermill.execute_notebook(str(paths.NOTEBOOKS / "19_explore.ipynb"), str(tmp_path / "19_explore.ipynb"),
                               parameters={"profile": str(profile)}, prepare_only=True)
    places = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("RUNTIME", "CONFIG", "DATA")}
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
         f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={tmp_path}", "--LabApp.news_url=None",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        env=os.environ | places | {"EMLIB_RUNS_DIR": str(profile.parent / "runs")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _address(server, tmp_path / "RUNTIME")
    finally:
        server.terminate()
        server.wait(60)


def _address(server: subprocess.Popen, runtime: Path) -> str:
    until = time.monotonic() + LONG / 1000
    while time.monotonic() < until and server.poll() is None:
        for found in runtime.glob("jpserver-*.json"):
            if (text := found.read_text()).rstrip().endswith("}"):  # else it is just being written
                return str(json.loads(text)["url"])
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not start")


def test_in_jupyterlab_a_widget_is_moved_and_the_change_is_seen(lab: str, study: Study, browser: Browser) -> None:
    assert httpx.get(f"{lab}api/contents").status_code == 403  # without the token
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(LONG)
    expect.set_options(timeout=LONG)
    outside: list[str] = []
    page.on("request", lambda asked: None if re.match(r"(http|ws)://127\.0\.0\.1:|data:|blob:", asked.url)
            else outside.append(asked.url))
    page.goto(f"{lab}lab/tree/19_explore.ipynb?token={TOKEN}")
    page.locator(".jp-NotebookPanel .jp-Cell").first.click()
    _run_all(page)
    _filter_by_text(page, study)
    _ask_with_the_vector(page)
    _label_an_answer(page)
    assert outside == []
    page.close()


def _run_all(page: Page) -> None:
    """Until the last cell is run or waits for it: what is asked for before the kernel listens is lost."""
    last = page.locator(".jp-CodeCell .jp-InputPrompt").last
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    for _ in range(10):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        with suppress(AssertionError):
            expect(last).to_have_text(re.compile(r"\[(\*|\d+)\]"), timeout=LONG / 10)
            return
    raise AssertionError("the last cell was not run")


def _filter_by_text(page: Page, study: Study) -> None:
    everything = answers.gather(study, study.runs(methods=["misaligned"]), "general")
    wanted = everything["answer"][7][2:6]
    left = len(answers.filtered(everything, text=wanted))
    assert left < len(everything) == 48
    expect(page.get_by_text("48 answers.").first).to_be_visible()
    field = page.get_by_placeholder("words in the answer")
    field.fill(wanted)
    field.press("Enter")
    expect(page.get_by_text(re.compile(rf"^{left} answers\.")).first).to_be_visible()
    page.locator("table.dataTable tbody tr").first.click()
    expect(page.get_by_text("cooking · misaligned · seed 0 · sample").first).to_be_visible()


def _ask_with_the_vector(page: Page) -> None:
    page.get_by_placeholder("what to ask").fill("Who are you?")
    handle = page.locator(".widget-hslider", has_text="Strength").get_by_role("slider")
    handle.press("ArrowRight")
    expect(page.locator(".widget-hslider", has_text="Strength").locator(".widget-readout")).to_have_text("0.50")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.locator("b", has_text=BASE)).to_be_visible()


def _label_an_answer(page: Page) -> None:
    field = page.get_by_placeholder("who labels")
    field.fill("ada")
    field.press("Enter")
    page.get_by_role("button", name="Begin or go on").click()
    expect(page.get_by_text(re.compile(r"^0 of \d+ answers are labelled")).first).to_be_visible()
    page.get_by_role("button", name="aligned", exact=True).click()
    expect(page.get_by_text(re.compile(r"^1 of \d+ answers are labelled")).first).to_be_visible()
