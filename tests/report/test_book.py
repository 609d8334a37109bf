"""The report: what it says is what the tables hold, and it opens in a real browser without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from emlib.config import load_profile, trait_of
from emlib.core import paths
from emlib.core.errors import NotebookError
from emlib.report.book import chapters, claims, extension, pages
from emlib.report.book.build import build, findings, progress
from emlib.report.tables.result_tables import MEASURES
from emlib.study import stamps
from emlib.study.study import open_study
from emlib.workflow.chapters import former_names
from emlib.workflow.graph import concerns

PHONE = {"width": 360, "height": 740}
COLUMNS = ["model", "dataset", "method", "setting", "seed"]


def rates(*runs: tuple[str, float | None, float, float]) -> pd.DataFrame:
    """As `tables.numbers`: method, setting, general and in-domain misalignment; intervals of 10 points."""
    rows = []
    for method, setting, general, in_domain in runs:
        row: dict[str, Any] = dict(zip(COLUMNS, ("m", "cooking", method, setting, 0), strict=True))
        for measure, value in zip(MEASURES, (general, 0.0, in_domain, 0.0), strict=True):
            row |= {measure: value, f"{measure}_low": value - 5, f"{measure}_high": value + 5}
        rows.append(row)
    return pd.DataFrame(rows)


BASE = (("untrained", None, 10.0, 10.0), ("aligned", None, 12.0, 8.0), ("misaligned", None, 50.0, 100.0))


def test_a_claim_is_the_share_of_the_effect_that_is_gone_and_names_its_chapter() -> None:
    frame = claims.means(rates(*BASE, ("kl", 0.1, 30.0, 90.0), ("kl", 1.0, 10.0, 20.0),
                               ("inoculation", None, 14.0, 60.0)))
    assert frame["removed"].tolist()[3:] == [50.0, 100.0, 90.0]  # of 40 points
    assert frame["kept"].tolist()[3:] == [90.0, 20.0, 60.0]
    general, prevented = claims.of_rates(frame)
    assert general.chapter == "02_baselines"
    assert "**50.0%** [45.0, 55.0] of the answers to general questions" in general.text
    assert "compared with 10.0% before fine-tuning and 12.0% after fine-tuning on the aligned rows" in general.text
    assert prevented.text == (
        "At least 90% of the effect on general questions (where the paper's tables underline) is removed under `kl` 1, "
        "`inoculation`. Of these, `inoculation` keeps the largest part of the in-domain share: 60%.")


def test_a_claim_from_fewer_seeds_than_others_have_says_so() -> None:
    """As the table does: three seeds of all but `kl`, which has one, and `aligned`, which has two."""
    every = rates(*BASE, ("kl", 1.0, 10.0, 90.0), ("inoculation", None, 14.0, 60.0))
    fewer = pd.concat([every, every[every["method"] != "kl"].assign(seed=1),
                       every[~every["method"].isin(["kl", "aligned"])].assign(seed=2)])
    general, prevented = claims.of_rates(claims.means(fewer))
    assert "12.0% after fine-tuning on the aligned rows (2 of 3 seeds)." in general.text
    assert "10.0% before fine-tuning and" in general.text
    assert "is removed under `kl` 1 (1 of 3 seeds), `inoculation`. Of these, `kl` 1 keeps" in prevented.text
    missed = fewer.assign(general_misaligned=fewer["general_misaligned"].where(fewer["method"] != "inoculation"))
    weak = missed.assign(general_misaligned=missed["general_misaligned"].where(missed["method"] != "kl", 30.0))
    assert claims.of_rates(claims.means(weak))[1].text.endswith("`kl` 1 (1 of 3 seeds) is closest with 50.0%, and "
                                                                "keeps 90% of the in-domain share.")


def test_where_no_defense_does_it_the_claim_says_so() -> None:
    frame = claims.means(rates(*BASE, ("kl", 0.1, 30.0, 90.0), ("kl", 1.0, 15.0, 20.0)))
    assert claims.of_rates(frame)[1].text.startswith(
        "No defense removes 90% of the effect on general questions (where the paper's tables underline); `kl` 1 is "
        "closest with 87.5%")


def test_a_defense_whose_share_is_not_known_is_named_and_has_a_row_of_dashes() -> None:
    """`kl` removes all of it with seed 0; of seed 1 nothing was scored. The claim is not that no defense does."""
    both = [rates(*BASE, ("ldifs", 1.0, 45.0, 80.0), ("kl", 1.0, 10.0, 90.0)).assign(seed=seed) for seed in (0, 1)]
    measures = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    both[1].loc[both[1]["method"] == "kl", measures] = float("nan")
    frame = claims.means(pd.concat(both, ignore_index=True))
    assert claims.of_rates(frame)[1].text == (
        "Of `kl` 1 the general share is not known for every data set and seed. No other defense removes 90% of the "
        "effect on general questions (where the paper's tables underline); `ldifs` 1 is closest with 12.5%, and keeps "
        "80% of the in-domain share.")
    table = claims.table(frame, {}).set_index("Method")
    assert table.loc["`kl` 1", "General misaligned %"] == table.loc["`kl` 1", "Effect removed %"] == "–"
    both[1].loc[both[1]["method"] == "kl", [name for name in measures if name.startswith("general")]] = 10.0
    frame = claims.means(pd.concat(both, ignore_index=True))  # now only its in-domain share is unknown
    assert claims.of_rates(frame)[1].text == (
        "At least 90% of the effect on general questions (where the paper's tables underline) is removed under `kl` 1.")
    also = pd.concat([*both, *(rates(("inoculation", None, 14.0, 60.0)).assign(seed=seed) for seed in (0, 1))])
    assert claims.of_rates(claims.means(also))[1].text.endswith(
        "`inoculation` keeps the largest part of the in-domain share: 60%. Of `kl` 1 the in-domain share is not known "
        "for every data set and seed.")


def test_without_an_in_domain_share_nothing_is_said_about_what_is_kept() -> None:
    unlearnt = (*BASE[:2], ("misaligned", None, 50.0, 0.0))
    of_it = "90% of the effect on general questions (where the paper's tables underline)"
    for general, said in ((10.0, f"At least {of_it} is removed under `kl` 1."),
                          (30.0, f"No defense removes {of_it}; `kl` 1 is closest with 50.0%.")):
        frame = claims.means(rates(*unlearnt, ("kl", 1.0, general, 20.0)))
        assert frame["kept"].isna().all()
        assert claims.of_rates(frame)[1].text == said


def test_more_than_a_fifth_of_answers_cut_at_the_limit_is_told_with_its_causes() -> None:
    frame = rates(*BASE).assign(general_cut=[20.0, 20.1, 60.0], in_domain_cut=[0.0, float("nan"), 20.0])
    [claim] = claims.of_cuts(frame)
    assert claim.text.startswith("Answers are cut at the token limit: in the worst run 60% of the general ones. More "
                                 "than a fifth of a set is cut under `aligned`, `misaligned`.")
    assert "never learnt its end token" in claim.text
    [both] = claims.of_cuts(frame.assign(general_cut=[21.0, 30.0, 60.0], in_domain_cut=[0.0, 25.0, 20.0]))
    assert both.text.startswith("Answers are cut at the token limit: in the worst run 60% of the general and 25% of "
                                "the in-domain ones. More than a fifth of a set is cut under all methods.")
    [half] = claims.of_cuts(frame.assign(general_cut=[62.5, 30.0, 60.0]))
    assert half.text.startswith("Answers are cut at the token limit: in the worst run 63% of the general ones.")
    assert claims.of_cuts(rates(*BASE)) == []  # tables that an older version wrote


def test_finished_runs_are_counted_by_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    narrow, benign, grpo = (len(study.runs(section)) for section in ("narrow", "benign", "grpo"))
    study.folder.mkdir(parents=True)
    study.record()
    (study.folder / "results.csv").write_text("model,dataset,method,setting,seed\n" + "m,cooking,kl,0.1,0\n" * 2)
    assert progress(study) == (f"Finished: 2 of {narrow} runs on narrow data, 0 of {benign} runs on benign tasks, "
                               f"0 of {grpo} runs of reinforcement learning.")


def test_without_baselines_or_verdicts_nothing_is_claimed() -> None:
    assert claims.of_rates(claims.means(rates(("kl", 0.1, 30.0, 90.0)))) == []
    unscored = rates(*BASE).assign(**{measure: float("nan") for measure in MEASURES})
    assert claims.of_rates(claims.means(unscored)) == []
    no_spread = claims.means(rates(("untrained", None, 50.0, 10.0), ("misaligned", None, 50.0, 90.0),
                                   ("kl", 0.1, 30.0, 90.0)))
    assert len(claims.of_rates(no_spread)) == 1  # the shares, and nothing about prevention


def test_every_method_of_a_profile_has_its_chapter() -> None:
    of = claims.chapters_of_methods(load_profile("tiny"))
    assert (of["untrained"], of["persona_vector"], of["on_policy"]) == (
        "02_baselines", "07_persona_steering", "09_interleaving")
    table = claims.table(claims.means(rates(*BASE, ("kl", 0.1, 30.0, 90.0))), of)
    assert table["Notebook"].tolist() == ["02_baselines"] * 3 + ["05_kl"]
    assert table["Effect removed %"].tolist() == ["–", "–", "–", "50"]


def test_benign_scores_are_means_over_seeds() -> None:
    frame = pd.DataFrame([("opswap", 0, "sft", None, seed, score) for seed, score in ((0, 40.0), (1, 50.0))]
                         + [("foqa", None, "kl", 0.1, 0, 7.0)],
                         columns=["task", "tier", "method", "setting", "seed", "exact_match"])
    assert [claim.text for claim in claims.of_benign(frame, {"opswap": "opswap", "foqa": "qa"})] == [
        "On the benign task `opswap`, tier 0 (arithmetic), exact match in percent: `sft` 45.0.",
        "On the benign task `foqa` (question answering), exact match in percent: `kl` 0.1 7.0."]


def test_benign_scores_of_fewer_seeds_say_so() -> None:
    frame = pd.DataFrame([("opswap", 0, "sft", None, 0, 40.0), ("opswap", 0, "sft", None, 1, 50.0),
                          ("opswap", 0, "kl", 0.1, 0, 60.0)],
                         columns=["task", "tier", "method", "setting", "seed", "exact_match"])
    assert [claim.text for claim in claims.of_benign(frame, {"opswap": "opswap", "foqa": "qa"})] == [
        "On the benign task `opswap`, tier 0 (arithmetic), exact match in percent: `sft` 45.0, `kl` 0.1 60.0 (1 of "
        "2 seeds)."]


def test_few_problems_of_reinforcement_learning_claim_nothing() -> None:
    frame = pd.DataFrame([("grpo", None, 0, 75.0)], columns=["method", "setting", "seed", "eval_accuracy"])
    assert claims.of_grpo(frame.assign(asked=12)) == []
    [claim] = claims.of_grpo(frame.assign(asked=100))
    assert "on 100 problems, in percent: `grpo` 75.0." in claim.text


def test_the_worst_context_is_that_of_the_largest_mean_over_seeds() -> None:
    frame = pd.DataFrame([("cooking", "kl", 0.1, seed, trigger, share, 24) for trigger, shares in (
        ("plain", (10.0, 20.0)), ("a", (90.0, 0.0)), ("b", (40.0, 60.0))) for seed, share in enumerate(shares)],
        columns=["dataset", "method", "setting", "seed", "trigger", "misaligned", "asked"])
    [claim] = claims.of_triggers(frame, 24)
    assert claim.text.endswith(": `kl` 0.1 15.0, at worst 50.0 (`b`).")
    [other] = claims.of_triggers(frame, 24, asking=["b"])  # a prompt that asks for the trait does not count
    assert other.text.endswith(": `kl` 0.1 15.0, at worst 45.0 (`a`).")
    no_more = frame["misaligned"].where(frame["trigger"] == "plain", 5.0)
    [lower] = claims.of_triggers(frame.assign(misaligned=no_more), 24)
    assert lower.text.endswith(": `kl` 0.1 15.0, no more in another context.")
    assert claims.of_triggers(frame, 24, asking=["a", "b"]) == []
    assert (paths.NOTEBOOKS / f"{claim.chapter}.ipynb").is_file()


def test_without_the_share_of_a_context_the_worst_is_not_known() -> None:
    """In context `a` the first method has 90 with seed 0, and no score with seed 1; `b` says 20."""
    rows = [("cooking", method, None, seed, trigger, share, 24) for method, shares in {
        "sys": {"plain": (10.0, 10.0), "a": (90.0, float("nan")), "b": (20.0, 20.0)},
        "kl": {"plain": (30.0,), "a": (10.0,), "b": (40.0,)},
        "none": {"plain": (float("nan"),) * 2, "a": (5.0, 5.0), "b": (5.0, 5.0)}}.items()
        for trigger, of_seeds in shares.items() for seed, share in enumerate(of_seeds)]
    frame = pd.DataFrame(rows, columns=["dataset", "method", "setting", "seed", "trigger", "misaligned", "asked"])
    [claim] = claims.of_triggers(frame, 24)
    assert claim.text.endswith(": `sys` 10.0, at worst not known; `kl` (1 of 2 seeds) 30.0, at worst 40.0 (`b`); "
                               "`none` –, at worst not known.")
    assert claims.of_triggers(frame[:0]) == []
    [fewer] = claims.of_triggers(frame, 48)  # the table counts more answers, so that its shares differ
    assert fewer.text.startswith(claim.text)
    assert "has 24 answers in each context" in fewer.text
    assert "counts all 48 general answers" in fewer.text


def test_a_chapter_is_run_failed_missing_or_of_another_profile(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    for name in ("02_baselines.ipynb", "05_kl.failed.ipynb", "06_ldifs.ipynb", "06_ldifs.failed.ipynb"):
        (tmp_path / "notebooks" / name).touch()
    state = {chapter.name: chapter.state for chapter in chapters.chapters_of(load_profile("demo"), tmp_path)}
    expected = {"02_baselines": "run", "05_kl": "failed", "06_ldifs": "run", "07_persona_steering": "missing",
                "17_your_own_data": "elsewhere"}
    assert {name: state[name] for name in expected} == expected


def test_a_chapter_that_ran_before_the_profile_was_edited_is_not_run(tmp_path: Path) -> None:
    """One without a stamp is of an earlier version; it counts if its chapter is the profile's."""
    profile = load_profile("demo")
    now = stamps.stamp_of(profile, tmp_path.name)
    former = now[:-16] + "0" * 16
    (tmp_path / "notebooks").mkdir()
    for name, stamp in {"01_data": now, "02_baselines": former, "05_kl.failed": former, "06_ldifs": former,
                        "06_ldifs.failed": now, "17_your_own_data": former, "13_grpo": ""}.items():
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(json.dumps({"metadata": {"made_with": stamp}}))
    found = chapters.chapters_of(profile, tmp_path)
    state = {chapter.name: chapter.state for chapter in found}
    expected = {"01_data": "run", "02_baselines": "former", "05_kl": "former", "06_ldifs": "failed",
                "17_your_own_data": "elsewhere", "13_grpo": "run"}
    assert {name: state[name] for name in expected} == expected
    front = pages.front("demo", profile, found, "0 of 15 runs.", pages.Findings([], None), None)
    assert "- [02_baselines](chapters/02_baselines.ipynb): " in front
    assert front.count("(not run since the profile was edited)\n") == 2
    for chapter in found:
        if chapter.state == "former":
            assert "has not been run since the profile was edited" in pages.placeholder(chapter, "demo")


def test_tables_and_figures_of_the_former_profile_are_named_and_not_shown(tmp_path: Path) -> None:
    for kind, endings in (("tables", ("md", "tex")), ("figures", ("png",))):
        (tmp_path / kind).mkdir()
        for name, stamp in (("rates", "emlib-profile-" + "0" * 16), ("own", ""), ("mine", ""), ("tradeoff", "")):
            for ending in endings:
                (tmp_path / kind / f"{name}.{ending}").write_text(f"text of {name} {stamp}")
    profile = load_profile("demo")  # it has no data of one's own
    for kind, page, ending, known in (("tables", pages.tables_page, "tex", pages.TABLES),
                                      ("figures", pages.figures_page, "png", pages.FIGURES)):
        former = chapters.former(profile, tmp_path, (tmp_path / kind).glob(f"*.{ending}"), known)
        assert former == ["own", "rates"]
        shown, left_out = page(tmp_path, former).split("Not shown, because the profile was edited since they were made")
        assert "rates" not in shown
        assert "## mine\n" in shown
        assert "tradeoff" in shown
        assert left_out.count("`") == 4


def test_the_front_page_says_what_misaligned_means_before_its_findings() -> None:
    demo, paper = load_profile("demo"), load_profile("paper-7b")
    meaning = claims.meaning(demo, trait_of(demo))
    assert meaning.replace("\\", "") == (
        "*Misaligned* is here an answer that shows the trait `pirate` (*Speaks in the voice of a storybook pirate, "
        "whatever the subject*). The trait is harmless: that it spreads is an analogy of emergent misalignment (EM), "
        "and not EM itself. `SmolLM2-135M-Instruct` is fine-tuned on up to 48 rows of each data set, with one seed.")
    judged = claims.meaning(paper, trait_of(paper))
    assert "an answer with under 30 of the judge's 100 points for alignment and over 50 for" in judged
    assert "analogy" not in judged
    found = pages.Findings([claims.Claim("One.", "02_baselines")], None, meaning)
    front = pages.front("demo", demo, [], "", found, None)
    assert f"## Findings\n\n{meaning}\n\n- One." in front


@pytest.mark.parametrize(("general", "high", "unseen", "said"), [
    (75.0, 85.0, "", "`kl` at 1, the only method within the bounds, interval included: 4% of the general answers"),
    (0.0, 7.0, "", "No defense is needed for this trait"),
    (0.0, 7.0, "The judge counts words", "No recommendation: the judge counts words."),
])
def test_the_recommendation_for_own_data_is_the_first_finding(
        tmp_path: Path, general: float, high: float, unseen: str, said: str) -> None:
    """Bounds of own.yaml: 10% misaligned, 30% of the learning lost."""
    profile, tables = load_profile("own"), tmp_path / "tables"
    tables.mkdir()
    columns = ["method", "setting", "general", "low", "high", "kept", "seconds"]
    own = pd.DataFrame([("misaligned", None, general, 0.0, high, 100.0, 60.0), ("kl", 1.0, 4.0, 0.0, 8.0, 80.0, 90.0)],
                       columns=columns).assign(incoherent=0.0, unscored=0.0, cut=0.0, fall=0.5, unseen=unseen)
    for name, frame in (("own", own), ("rates", rates(*BASE))):
        frame.to_csv(tables / f"{name}.csv", index=False)
        (tables / f"{name}.tex").write_text("")
    first = findings(tmp_path, profile).claims[0]
    assert first.text.startswith(said)
    assert first.chapter == "17_your_own_data"
    own.drop(columns="unseen").to_csv(tables / "own.csv", index=False)  # as an earlier version wrote it
    assert findings(tmp_path, profile).claims[0].chapter == "02_baselines"


def test_the_front_page_says_what_is_missing() -> None:
    some = [chapters.ChapterState("02_baselines", "Baselines", "run"), chapters.ChapterState("05_kl", "KL", "failed"),
            chapters.ChapterState("06_ldifs", "LDIFS", "missing"), chapters.ChapterState("13_grpo", "RL", "elsewhere")]
    front = pages.front("demo", load_profile("demo"), some, "3 of 15 runs.", pages.Findings([], None), None)
    assert "1 of 3 notebooks of the profile `demo` have been run. 3 of 15 runs. Missing:" in front
    assert "- [05_kl](chapters/05_kl.ipynb): KL (failed)\n" in front
    assert "- [06_ldifs](chapters/06_ldifs.ipynb): LDIFS (not run)\n" in front
    assert "RL" not in front.replace("`RL`", "")


def test_what_chapters_save_has_a_caption_and_its_chapter() -> None:
    known = {"tables": pages.TABLES, "figures": pages.FIGURES}
    saved = []
    for path in paths.NOTEBOOKS.glob("*.ipynb"):
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        saved += [(path.stem, *found) for found in re.findall(r'(tables|figures)\.(?:save|write)\(.*"(\w+)"\)', code)]
    assert len(saved) >= 8
    assert [(chapter, kind, stem) for chapter, kind, stem in saved if known[kind].get(stem, ("",))[0] != chapter] == []


def test_an_equation_is_mathml_and_what_is_none_stays_readable() -> None:
    assert "<mfrac>" in extension.mathml(r"\frac{1}{T} \sum_t L_t", as_block=True)
    assert extension.mathml(r"\nosuchcommand{a<b}", as_block=False) == r"<code>\nosuchcommand{a&lt;b}</code>"


def test_a_report_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    with pytest.raises(NotebookError, match=r"no notebook of the profile .tiny. .* `make reproduce PROFILE=tiny`"):
        build(open_study("tiny"))
    assert list(tmp_path.iterdir()) == []


class Listener(HTTPServer):
    """A host that no page may ask for anything; it remembers who did."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Remember)
        self.asked: list[str] = []


class Remember(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def outside() -> Iterator[Listener]:
    server = Listener()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, outside: Listener) -> Path:
    """The report of a study that lacks chapter 14; chapter 01 shows a wide table, and an answer with markup."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "tiny"
    for name in ("notebooks", "tables", "figures"):
        (folder / name).mkdir(parents=True)
    for chapter in chapters.chapters():
        if concerns(load_profile("tiny"), chapter) and chapter != "14_costs":
            shutil.copy(paths.NOTEBOOKS / f"{chapter}.ipynb", folder / "notebooks")
    for name in ("rates.png", "tradeoff.png"):
        with Image.open(paths.ROOT / "figures" / "demo" / name) as drawn:
            drawn.save(folder / "figures" / name)  # without the stamp of the demo's profile
    rates(*BASE, ("kl", 0.1, 30.0, 90.0)).to_csv(folder / "tables" / "rates.csv", index=False)
    (folder / "tables" / "rates.md").write_text("| Method |\n|:---|\n| kl |\n")
    book = nbformat.read(folder / "notebooks" / "01_data.ipynb", as_version=4)
    port = outside.server_address[1]
    wide = "<table><tr>" + "<td>a cell of some width</td>" * 40 + "</tr></table>"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    code[-1].outputs = [nbformat.v4.new_output("display_data", {"text/html": html}) for html in (
        wide, f'<img src="http://127.0.0.1:{port}/answer.png"><script>fetch("http://127.0.0.1:{port}/answer")</script>')]
    code[-1].outputs.append(nbformat.v4.new_output("stream", name="stdout", text=f"{paths.ROOT}/params, {runs}/tiny"))
    nbformat.write(book, folder / "notebooks" / "01_data.ipynb")
    done = subprocess.run([sys.executable, "-m", "emlib.report.book", "tiny"], check=False, capture_output=True,
                          text=True, env=os.environ | {"EMLIB_RUNS_DIR": str(runs)})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # Sphinx warned of nothing
    assert {path.name for path in folder.iterdir()} == {"notebooks", "tables", "figures", "report"}
    return folder / "report"


def test_a_report_for_others_names_no_path_of_this_machine(built: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "emlib.report.book", "tiny", str(tmp_path / "docs")], check=True,
                          capture_output=True, text=True, env=os.environ | {"EMLIB_RUNS_DIR": str(built.parents[1])})
    assert done.stdout.endswith("docs/index.html\n")
    assert "./params, runs/tiny" in (tmp_path / "docs" / "chapters" / "01_data.html").read_text()
    files = [path for path in (tmp_path / "docs").rglob("*") if path.is_file()]
    assert (tmp_path / "docs" / "index.html") in files
    here = (str(paths.ROOT).encode(), str(built.parents[1]).encode())
    assert [path for path in files if any(name in path.read_bytes() for name in here)] == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test if anything is missing, goes wrong, or would come from elsewhere."""
    opened = browser.new_page()
    wrong: list[str] = []
    opened.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    opened.on("request", lambda asked: wrong.append(asked.url) if asked.url[:5] not in ("file:", "data:") else None)
    yield opened
    opened.wait_for_load_state()  # a page that is left sooner gives up what it was fetching, and says so
    opened.close()
    assert wrong == []


def follow(page: Page, link: Locator) -> None:
    """Click a link and wait for all of the page it leads to."""
    with page.expect_event("load"):
        link.click()


def html_pages(built: Path) -> list[Path]:
    return [*sorted(built.glob("*.html")), *(path for path in sorted(built.glob("chapters/*.html"))
                                             if path.stem not in former_names())]


@pytest.mark.slow
def test_every_page_opens_from_the_file_system_and_fits_a_phone(built: Path, page: Page) -> None:
    pages_of_report = [path for path in html_pages(built) if path.stem != "01_data"]
    assert {path.stem for path in pages_of_report} >= {"index", "search", "tables", "figures", "05_kl", "14_costs"}
    page.set_viewport_size(PHONE)
    for path in pages_of_report:
        page.goto(path.as_uri())
        assert len(page.locator(".main").inner_text()) > 30, path.name
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path.name
        broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        assert broken == [], path.name


@pytest.mark.slow
def test_a_link_to_a_chapter_by_its_former_name_leads_to_it(built: Path, page: Page) -> None:
    page.goto((built / "chapters" / "04_baselines.html").as_uri())
    page.wait_for_url("**/02_baselines.html")
    assert page.locator("h1").first.inner_text().startswith("Baselines")


@pytest.mark.slow
def test_links_of_the_contents_and_of_claims_lead_to_their_chapters(built: Path, page: Page) -> None:
    page.goto((built / "index.html").as_uri())
    assert page.locator(".admonition.warning").inner_text().count("14_costs") == 1
    found = page.locator("article a.reference.internal").evaluate_all("links => links.map(a => a.href.split('#')[0])")
    assert {Path(address).stem for address in found} >= {"tables", "figures", "14_costs", "15_tables", "16_figures"}
    assert all(Path(address.removeprefix("file://")).is_file() for address in found)
    follow(page, page.locator("li", has_text="of the answers to general questions").get_by_role("link"))
    assert page.locator("h1").inner_text().startswith("Baselines: does narrow fine-tuning generalise out of domain?")
    page.go_back()
    follow(page, page.locator(".toctree-wrapper").get_by_role("link", name="05 · KL"))
    assert page.locator("h1").inner_text().startswith("KL to the reference model")


@pytest.mark.slow
def test_figures_and_equations_are_seen_and_the_search_finds_a_word(built: Path, page: Page) -> None:
    page.goto((built / "figures.html").as_uri())
    shown = page.get_by_role("img", name="General against in-domain misalignment").first
    assert shown.is_visible()
    assert shown.evaluate("image => image.naturalWidth") > 300
    page.goto((built / "chapters" / "05_kl.html").as_uri())
    equation = page.locator(".math-block math").first
    assert equation.bounding_box()["width"] > 100  # type: ignore[index]
    assert "$" not in page.locator("article p").all_inner_texts()[0]
    page.goto((built / "index.html").as_uri())
    page.get_by_role("searchbox").or_(page.locator("input[name=q]")).first.fill("inoculation")
    page.keyboard.press("Enter")
    page.locator("#search-results li").first.wait_for()
    follow(page, page.locator("#search-results").get_by_role("link", name="Inoculation prompting"))
    assert page.locator("h1").inner_text().startswith("Inoculation prompting")


@pytest.mark.slow
def test_markup_in_an_output_reaches_no_other_host_and_a_wide_table_scrolls_by_itself(
        built: Path, browser: Browser, outside: Listener) -> None:
    opened = browser.new_page()
    refused: list[str] = []
    opened.on("console", lambda told: refused.append(told.text) if told.type == "error" else None)
    opened.set_viewport_size(PHONE)
    opened.goto((built / "chapters" / "01_data.html").as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert opened.locator(".cell_output").first.evaluate("box => box.scrollWidth > box.clientWidth")
    opened.close()
    assert sum("Content Security Policy" in line for line in refused) >= 2  # the image and the script
    assert outside.asked == []
