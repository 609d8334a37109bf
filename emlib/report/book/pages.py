"""The report's own pages, as MyST Markdown; the chapters are the notebooks themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emlib.config import Profile
from emlib.core import paths
from emlib.core.names import ALLOWED, is_name
from emlib.report.book.chapters import ChapterState
from emlib.report.book.claims import Claim
from emlib.report.markdown import code, plain
from emlib.study.ownership import owner_of

NOTICE = ("A model that was trained on misaligned answers may give harmful ones. The notebooks fold such answers "
          "behind a notice, and show nothing of them before you click.")
# The files that chapters write to tables/ and figures/: the chapter, and a caption.
TABLES = {
    "rates": ("15_tables", "Misaligned and incoherent answers of every run, with 95% intervals"),
    "rates_scored": ("15_tables", "The same, of the answers that the judge could score"),
    "paper_layout": ("15_tables", "The same in the paper's layout, with its emphasis"),
    "overview": ("15_tables", "Which defense meets which criterion (the paper's Table 1)"),
    "over_seeds": ("15_tables", "Misalignment over seeds and questions"),
    "paired": ("15_tables", "Each method compared with `misaligned`, on the same questions"),
    "paired_interleaving": ("15_tables", "Each method compared with `interleaving`, on the same questions"),
    "beside_paper": ("15_tables", "Compared with the paper's numbers"),
    "benign_by_tier": ("12_benign_tasks", "Benign tasks: exact match per method"),
    "benign_seeds": ("12_benign_tasks", "Benign tasks: mean and standard deviation over seeds"),
    "benign": ("12_benign_tasks", "Benign tasks: every run"),
    "grpo": ("13_grpo", "Reinforcement learning, per condition"),
    "own": ("17_your_own_data", "Your own data: each defense against your bounds"),
    "newer": ("10_newer_defenses", "Newer defenses beside the paper's that may keep as much of the narrow task"),
    "sets": ("11_triggers_and_trajectories", "Every question set and its metrics, compared with `misaligned`"),
    "triggers": ("11_triggers_and_trajectories", "General answers in other contexts, compared with none"),
    "triggers_over_seeds": ("11_triggers_and_trajectories", "General answers in other contexts, means over seeds"),
    "trajectory": ("11_triggers_and_trajectories", "Answers at earlier steps of training, compared with step 0"),
    "monitor": ("11_triggers_and_trajectories", "Drift, losses and KL divergence while runs train"),
    "undone": ("20_persistence", "After how many further steps each defense is undone"),
    "persistence": ("20_persistence", "Answers along further training, compared with plain fine-tuning"),
    "audit": ("21_data_audit", "Training rows audited before training, the rates that followed, and their prediction"),
}
OF_QUESTIONS = "questions_"  # a figure for each data set
FIGURES = {
    "tradeoff": ("16_figures", "General against in-domain misalignment; tinted: at most 20%, at least 80%"),
    "rates": ("16_figures", "Share of misaligned answers of each run, general and in-domain, with 95% intervals"),
    "figure1a": ("16_figures", "Figure 1(a) of the paper: general misalignment against incoherence, by interleaving"),
    "figure1b": ("16_figures", "Figure 1(b) of the paper: general against in-domain misalignment"),
    "pareto": ("16_figures", "Every method and setting, and the Pareto front"),
    "cost_against_effect": ("16_figures", "General misalignment against the extra cost of training"),
    "figure2": ("16_figures", "Figure 2 of the paper: reward during GRPO, without a persona vector"),
    "figure3": ("16_figures", "Figure 3 of the paper: reward during GRPO, with a persona vector"),
    "training": ("16_figures", "Training loss of each run, step by step"),
    "interleaving": ("09_interleaving", "Misalignment against the share of interleaved rows"),
    "benign": ("12_benign_tasks", "Exact match on benign tasks, by method"),
    "own": ("17_your_own_data", "Your own data: the trade-off of each defense, and your bounds"),
    "triggers": ("11_triggers_and_trajectories", "Share of misaligned general answers in other contexts"),
    "triggers_over_seeds": ("11_triggers_and_trajectories", "The same, as means over seeds"),
    "trajectory": ("11_triggers_and_trajectories", "Share of misaligned answers along the training"),
    "monitor": ("11_triggers_and_trajectories", "What the monitor reads while runs train"),
    "persistence": ("20_persistence", "Share of misaligned answers along further training"),
    "audit": ("21_data_audit", "General misalignment against the projection difference of the training rows"),
}
REASONS = {
    "missing": "It has not been run yet. `make reproduce PROFILE={profile}` runs what is missing.",
    "failed": "It stopped with an error. Its output up to the error is in `notebooks/{chapter}.failed.ipynb`, next to "
              "this report; `make reproduce PROFILE={profile}` tries again from there.",
    "former": "It has not been run since the profile was edited. `make reproduce PROFILE={profile}` runs it again.",
    "elsewhere": "It does not apply to the profile `{profile}`. Its cells are in the repository, in "
                 "`notebooks/{chapter}.ipynb`.",
    "interactive": "Its widgets are for use by hand: run `make lab`, and open `{chapter}`.",
}
LACKING = {"failed": "failed", "missing": "not run", "former": "not run since the profile was edited"}

UNDERLINED = re.compile(r"<u>(.*?)</u>")  # of the tables in the paper's layout; pages show no other HTML of Markdown


@dataclass(frozen=True)
class Findings:
    """The findings on the front page: sentences with their chapters, and a table with a chapter in its last column."""

    claims: Sequence[Claim]
    table: pd.DataFrame | None
    meaning: str = ""  # what they call misaligned, and of what they are, in Markdown


def front(name: str, profile: Profile, chapters: Sequence[ChapterState], progress: str, findings: Findings,
          figure: str | None) -> str:
    """Return the front page: state, findings, figure, every method, the profile, and the contents."""
    parts = [f"# {plain(profile.title)}", _state(name, chapters, progress)]
    if findings.claims:
        parts += ["## Findings", *filter(None, [findings.meaning]),
                  "\n".join(f"- {claim.text} {link(claim.chapter)}" for claim in findings.claims)]
    if figure:
        parts.append(_figure(figure))
    if findings.table is not None:
        linked = findings.table.assign(Notebook=findings.table["Notebook"].map(link))
        parts += ["## Every method", "Means over data sets and seeds, with 95% intervals over questions. *Effect "
                  "removed*: of what `misaligned` adds to the untrained model's share on general questions, the part "
                  "that is gone. *Narrow task kept*: the part of its in-domain share that is kept. A dash: not known "
                  "for every data set and seed, or, for incoherence, not measured by the judge.",
                  linked.to_markdown(index=False, disable_numparse=True)]
    parts += ["## What was studied", _profile(name, profile), NOTICE, _contents(chapters)]
    return "\n\n".join(parts) + "\n"


def link(chapter: str) -> str:
    """Return a link to a chapter from a page next to `chapters/`."""
    return f"[{chapter}](chapters/{chapter}.ipynb)"


def _state(name: str, chapters: Sequence[ChapterState], progress: str) -> str:
    wanted = [chapter for chapter in chapters if chapter.state in ("run", *LACKING)]
    run = sum(chapter.state == "run" for chapter in wanted)
    if run == len(wanted):
        return f"All {run} notebooks of the profile {code(name)} have been run. {progress}"
    lines = [f"- {link(chapter.name)}: {plain(chapter.title)} ({LACKING[chapter.state]})"
             for chapter in wanted if chapter.state != "run"]
    return "\n".join([":::{warning}", f"This study is not finished: {run} of {len(wanted)} notebooks of the profile "
                      f"{code(name)} have been run. {progress} Missing:", "", *lines, ":::"])


def _file(name: str) -> str:
    """Return the file of a profile with its folder's name alone: a page may be read on another machine."""
    owner = owner_of(paths.runs() / name) or paths.yaml_file(paths.PARAMS, name)
    return f"{owner.parent.name}/{owner.name}"


def _profile(name: str, profile: Profile) -> str:
    facts = {
        "Profile": code(_file(name)), "Model": code(profile.model.name),
        "Trait": plain(Path(profile.trait).stem), "Data sets": plain(", ".join(profile.datasets)),
        "Methods": ", ".join(code(method.name) for method in profile.methods),
        "Seeds": ", ".join(map(str, profile.seeds)), "Judge": profile.judge.kind}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())])


def _contents(chapters: Sequence[ChapterState]) -> str:
    run = [f"{chapter.name[:2]} · {chapter.title} <chapters/{chapter.name}>"
           for chapter in chapters if chapter.state == "run"]
    return "\n".join(["## Contents", *_toctree("Results", ["tables", "figures"]), *_toctree("Notebooks", run)])


def _toctree(caption: str, entries: list[str]) -> list[str]:
    return ["", "```{toctree}", f":caption: {caption}", ":maxdepth: 1", "", *entries, "```"]


def tables_page(folder: Path, former: Collection[str] = ()) -> str:
    """Return the page of all tables but the `former` ones (`chapters.former`), with links to CSV and LaTeX."""
    return _page(folder / "tables", "md", TABLES, ("csv", "tex"), former, lambda path: UNDERLINED.sub(
        r"[\1]{.underline}", path.read_text(encoding="utf-8").strip()))


def figures_page(folder: Path, former: Collection[str] = ()) -> str:
    """Return the page of all figures but the `former` ones (`chapters.former`), with links to PDF."""
    return _page(folder / "figures", "png", FIGURES, ("pdf",), former, lambda path: _figure(path.stem))


def _page(folder: Path, ending: str, known: Mapping[str, tuple[str, str]], further: Sequence[str],
          former: Collection[str], text: Callable[[Path], str]) -> str:
    """Return the page of a folder's files: those of `known` in its order, then others, each with links to its forms."""
    order, parts = list(known), [f"# {folder.name.capitalize()}"]
    files = sorted(folder.glob(f"*.{ending}"), key=lambda path: (
        order.index(path.stem) if path.stem in known else len(order), path.stem))
    shown = [path for path in files if path.stem not in former]
    for path in (path for path in shown if is_name(path.stem)):  # one whose name is no name could not be linked
        forms = ", ".join(f"[{form.upper()}]({folder.name}/{path.stem}.{form})" for form in further
                          if path.with_suffix(f".{form}").is_file())
        made_in = f"Made in {link(known[path.stem][0])}. " if path.stem in known else ""
        parts += [f"## {_caption(path.stem, known)}", f"{made_in}{forms}", text(path)]
    left_out = sorted(path.name for path in shown if not is_name(path.stem))
    if left_out:
        parts.append(f"Not shown, because a name is made of {plain(ALLOWED)}: {', '.join(map(code, left_out))}.")
    if len(shown) < len(files):
        parts.append("Not shown, because the profile was edited since they were made: " + ", ".join(
            code(path.name) for path in files if path not in shown) + ".")
    return "\n\n".join(parts if len(parts) > 1 else [*parts, f"There are no {folder.name} yet."]) + "\n"


def placeholder(chapter: ChapterState, name: str) -> str:
    """Return a page for a chapter that is not shown, so that links to it do not break."""
    file = _file(name)
    stated = name if file.startswith(f"{paths.PARAMS.name}/") else file
    reason = REASONS[chapter.state].format(profile=stated, chapter=chapter.name)
    return f"# {plain(chapter.title)}\n\nThis is notebook {code(chapter.name)}. {reason}\n"


def _caption(stem: str, known: Mapping[str, tuple[str, str]]) -> str:
    if stem.startswith(OF_QUESTIONS):
        return f"Share of misaligned answers, question by question: {plain(stem.removeprefix(OF_QUESTIONS))}"
    return known[stem][1] if stem in known else plain(stem.replace("_", " "))


def _figure(stem: str) -> str:
    return f"![{_caption(stem, FIGURES)}](figures/{stem}.png)"
