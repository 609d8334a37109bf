"""Builds the report: writes sources to a temporary folder, runs Sphinx, and replaces the old report as a whole."""

from __future__ import annotations

import io
import shutil
from html import escape
from pathlib import Path

import nbformat
import pandas as pd
from sphinx.application import Sphinx
from sphinx.util.console import strip_escape_sequences  # type: ignore[attr-defined]  # documented there

from emlib.config import Profile, trait_of
from emlib.core import paths
from emlib.core.errors import NotebookError
from emlib.core.files import whole_folder
from emlib.core.temporary import sweep, temporary_folder
from emlib.report.book import claims, pages
from emlib.report.book.chapters import ChapterState, chapters_of, former
from emlib.study import results
from emlib.study.runs import RUNS
from emlib.study.study import Study
from emlib.workflow.chapters import former_names

SETTINGS = {
    "extensions": ["myst_nb", "emlib.report.book.extension"],
    "myst_enable_extensions": ["dollarmath", "colon_fence", "attrs_inline"],
    "myst_disable_syntax": ["html_block", "html_inline"],  # what Markdown holds from outside stays text
    "nb_execution_mode": "off",
    "nb_merge_streams": True,
    "nb_ipywidgets_js": {},  # otherwise pages with widgets load scripts from a server
    "suppress_warnings": ["myst.header", "toc.not_included"],  # placeholder pages are in no table of contents
    "html_theme": "furo",
    "html_math_renderer": "mathml",
    "html_show_search_summary": False,  # it would fetch pages, which browsers forbid on the file system
    "html_show_copyright": False,
    "html_use_index": False,
    "html_copy_source": True,
    "html_sourcelink_suffix": "",
    "html_static_path": [str(Path(__file__).parent / "static")],
    "html_css_files": ["report.css"],
}
MOVED = ('<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={0}.html">'
         '<title>Moved</title><p>This notebook is now <a href="{0}.html">{0}</a>.</p>\n')


def build(study: Study, to: Path | None = None) -> tuple[Path, list[str]]:
    """Build the report in `report/` of the study's folder, and return its first page and Sphinx's warnings.

    A report built elsewhere (`to`) is for readers without the study: it has no copies of the notebooks, and paths of
    this machine become paths of a fresh checkout.

    Raises:
        NotebookError: no chapter has been run.
    """
    chapters = chapters_of(study.profile, study.folder)
    if not any(chapter.state == "run" for chapter in chapters):
        raise NotebookError(f"{study.folder / 'notebooks'}: no notebook of the profile '{study.name}' as it is now has "
                            f"been run, so there is nothing to report. Run `{study.command}` first.")
    sweep(study.folder, deep=False)
    place = to or study.folder / "report"
    with temporary_folder() as scratch, whole_folder(place) as out:
        source = scratch / "source"
        gather(study, chapters, source)
        if to is not None:
            for text in (*source.rglob("*.ipynb"), *source.rglob("*.md")):
                text.write_text(for_others(text.read_text(encoding="utf-8")), encoding="utf-8")
        made = scratch / "made"  # myst_nb writes pictures beside it, too
        warnings = _sphinx(source, made, scratch / "doctrees", study.profile, copies=to is None)
        shutil.copytree(made, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".buildinfo"))
        for old, new in former_names().items():
            (out / "chapters" / f"{old}.html").write_text(MOVED.format(new), encoding="utf-8")
    return place / "index.html", warnings


def for_others(text: str) -> str:
    """Return a page's source with the paths that a fresh checkout has, instead of those of this machine."""
    for path, name in ((paths.runs(), "runs"), (paths.cache(), "data"), (paths.ROOT, ".")):
        text = text.replace(str(path), name)
    return text


def gather(study: Study, chapters: list[ChapterState], source: Path) -> None:
    """Write and copy all of Sphinx's sources."""
    (source / "chapters").mkdir(parents=True)
    for chapter in chapters:
        if chapter.state == "run":
            name = f"{chapter.name}.ipynb"
            shutil.copyfile(study.folder / "notebooks" / name, source / "chapters" / name)
        else:
            text = nbformat.v4.new_markdown_cell(pages.placeholder(chapter, study.name))
            page = nbformat.v4.new_notebook(cells=[text])
            nbformat.write(page, source / "chapters" / f"{chapter.name}.ipynb")
    for kind in ("tables", "figures"):
        if (study.folder / kind).is_dir():
            shutil.copytree(study.folder / kind, source / kind, ignore=shutil.ignore_patterns("*.md"))
    tables = former(study.profile, study.folder, (study.folder / "tables").glob("*.tex"), pages.TABLES)
    figures = former(study.profile, study.folder, (study.folder / "figures").glob("*.png"), pages.FIGURES)
    drawn = "tradeoff" not in figures and (study.folder / "figures" / "tradeoff.png").is_file()
    front = pages.front(study.name, study.profile, chapters, progress(study), findings(study.folder, study.profile),
                        "tradeoff" if drawn else None)
    written = {"index": front, "tables": pages.tables_page(study.folder, tables),
               "figures": pages.figures_page(study.folder, figures)}
    for name, text in written.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")


def progress(study: Study) -> str:
    """Return how many runs of each section are finished."""
    counts = []
    for section, words in RUNS.items():
        if runs := len(study.runs(section)):
            counts.append(f"{len([*results.read(study.folder, study.profile, section)])} of {runs} {words}")
    return f"Finished: {', '.join(counts)}."


def findings(folder: Path, profile: Profile) -> pages.Findings:
    """Return the findings that those of the study's tables support that were made with the profile."""
    paths_of = {name: folder / "tables" / f"{name}.csv" for name in ("own", "rates", "benign", "grpo", "triggers")}
    left_out = former(profile, folder, (path.with_suffix(".tex") for path in paths_of.values()), pages.TABLES)
    tables = {name: results.read_table(path) for name, path in paths_of.items()
              if path.is_file() and name not in left_out}
    means = claims.means(tables["rates"]) if "rates" in tables else pd.DataFrame()
    found = claims.of_own(tables["own"], profile.own.bounds) if "own" in tables and profile.own is not None else []
    if len(means):
        found += claims.of_rates(means)
    if "rates" in tables:
        found += claims.of_cuts(tables["rates"])
    if "benign" in tables:
        kinds = {name: task.kind for name, task in profile.benign.tasks.items()} if profile.benign else {}
        found += claims.of_benign(tables["benign"], kinds)
    if "grpo" in tables:
        found += claims.of_grpo(tables["grpo"])
    if "triggers" in tables:
        general = int(tables["rates"]["general_asked"].max()) if "rates" in tables else 0
        triggers = profile.evaluation.triggers
        asking = triggers.asking(trait_of(profile).inoculation_prompt) if triggers else ()
        found += claims.of_triggers(tables["triggers"], general, asking)
    table = claims.table(means, claims.chapters_of_methods(profile)) if len(means) else None
    return pages.Findings(found, table, claims.meaning(profile, trait_of(profile)) if found else "")


def _sphinx(source: Path, out: Path, doctrees: Path, profile: Profile, *, copies: bool = True) -> list[str]:
    warnings = io.StringIO()
    title = escape(profile.title)  # the theme writes it into its pages as it is
    titles = {"project": title, "html_title": title}
    app = Sphinx(source, None, out, doctrees, "html", status=None, warning=warnings, freshenv=True,
                 confoverrides=SETTINGS | titles | {"html_copy_source": copies})
    app.build()
    if app.statuscode:
        raise NotebookError(f"Sphinx could not build the report:\n{warnings.getvalue()}")
    return strip_escape_sequences(warnings.getvalue()).splitlines()
