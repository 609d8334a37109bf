"""Writes the numbers of README.md, docs/demo.md, docs/which-defense.md and docs/study.md, after a finished demo.

    python -m emlib.report.readme

Each number stands between two comments, `<!-- name: begin -->` and `<!-- name: end -->`, and is computed from the
stored results of the demo or from the paper's printed tables. No number in these files is typed by hand.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd

from emlib.config import BASELINES
from emlib.core import paths
from emlib.core.errors import StoreError, ends_with_message
from emlib.core.files import whole_file, write_text
from emlib.core.records import Answer, Verdict
from emlib.report import demo_findings
from emlib.report.audit import statement
from emlib.report.paper import choice, summary
from emlib.report.tables import newer
from emlib.report.tables.rows import whole
from emlib.study.runs import Run
from emlib.study.study import Study, open_study

FULL = "demo-full"  # the demo with more seeds and questions
# Figures, and the tables that they are drawn from (`emlib.report.redraw`).
FIGURES = ("figures/rates.png", "figures/tradeoff.png", "figures/triggers.png", "figures/audit.png",
           "tables/rates.csv", "tables/triggers.csv", "tables/audit.csv", "tables/persistence.csv")
# Those of further profiles, for those that ran.
FURTHER_FIGURES = {FULL: ("figures/tradeoff.png", "figures/triggers_over_seeds.png", "tables/over_seeds.csv",
                          "tables/triggers_over_seeds.csv"),
                   "demo-four": ("figures/tradeoff.png", "tables/rates.csv")}
# In docs/demo.md, by block.
TABLES = {"results": "rates", "triggers": "triggers", "trajectory": "trajectory",
          "persistence": "persistence", "audit": "audit"}
# Tables of further profiles there, for those that ran.
FURTHER = {FULL: ("over_seeds", "paired_interleaving", "triggers_over_seeds"), "demo-audit": ("audit",),
           "demo-newer": ("newer",), "demo-measures": ("rates",)}
# Of these only the rows that begin so after the data set: how rows are chosen, beside random ones.
CHOSEN = {f"{FULL} paired_interleaving": ("Interleaving++,", "On-policy Int.,")}
KEPT = 0.7  # of the in-domain share of plain fine-tuning: what the defense that is shown must keep
DISAGREEMENTS = "figures/published/README.md"
CHOICE = "docs/which-defense.md"
MAP = "docs/study.md"
WORDS = 15  # of an answer that is shown
EXAMPLE = ("better_friend", 1)  # the question and the sample that README.md shows

T = TypeVar("T", Answer, Verdict)


def with_block(page: str, name: str, block: str) -> str:
    """Return the page with the text between the comments of this name replaced.

    Raises:
        StoreError: the page has no such comments.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise StoreError(f"The page has no place for '{name}': put {begin} and {end} where it should stand.")
    return pattern.sub(lambda _: f"{begin}\n{block.strip()}\n{end}", page)


def update(profile: str = "demo") -> list[Path]:
    """Copy a finished profile's figures to `figures/<profile>/`, and write its numbers into the pages."""
    made = paths.runs() / profile
    missing = [name for name in TABLES.values() if not (made / "tables" / f"{name}.md").is_file()]
    if missing:
        raise StoreError(f"{made}: there is no table '{missing[0]}' yet. Run `make reproduce PROFILE={profile}` first.")
    for name in FIGURES:
        _copy(profile, name)
    for other, names in FURTHER_FIGURES.items():
        for name in names:
            if (paths.runs() / other / name).is_file():
                _copy(other, name)
    study = open_study(profile)
    tables = {f"demo {block}": (made / "tables" / f"{name}.md").read_text(encoding="utf-8")
              for block, name in TABLES.items()}
    further = {f"{other} {name}": paths.runs() / other / "tables" / f"{name}.md"
               for other, names in FURTHER.items() for name in names}
    tables |= {block: chosen(path.read_text(encoding="utf-8"), CHOSEN.get(block)) for block, path in further.items()
               if path.is_file()}
    of_newer, verdict = newer_defenses(paths.runs() / "demo-newer" / "tables" / "newer.csv")
    tables |= verdict
    tables |= of_four() | {"demo audit line": statement(pd.read_csv(made / "tables" / "audit.csv"))}
    front = {"demo answers": answers(study), **of_demo(), **of_paper_alone(), **of_newer}
    return [_rewrite(paths.ROOT / "README.md", front), _rewrite(paths.ROOT / "docs" / "demo.md", tables),
            _rewrite(paths.ROOT / CHOICE, defenses()), _rewrite(paths.ROOT / MAP, disagreements())]


def of_demo() -> dict[str, str]:
    """Return README.md's tables of the demo, from the tables in `figures/`."""
    full = paths.ROOT / "figures" / FULL
    means, triggered = (pd.read_csv(full / f"{name}.csv") for name in ("over_seeds", "triggers_over_seeds"))
    along = pd.read_csv(paths.ROOT / "figures" / "demo" / "persistence.csv")
    return {"demo result": demo_findings.averages(means), "demo contexts": demo_findings.contexts(triggered),
            "demo afterwards": demo_findings.afterwards(along)}


def of_four() -> dict[str, str]:
    """Return docs/demo.md's table of four data sets, from the table in `figures/`."""
    return {"demo-four rates": demo_findings.over_datasets(
        pd.read_csv(paths.ROOT / "figures" / "demo-four" / "rates.csv"))}


def chosen(table: str, starts: tuple[str, ...] | None) -> str:
    """Return a table in Markdown with its heading and only the rows whose second cell begins so; None keeps all."""
    if starts is None:
        return table
    head, rule, *rows = table.strip().splitlines()
    return "\n".join([head, rule, *(row for row in rows if row.split("|")[2].strip().startswith(starts))])


def _copy(profile: str, figure: str) -> None:
    with whole_file(paths.ROOT / "figures" / profile / Path(figure).name) as temporary:
        shutil.copyfile(paths.runs() / profile / figure, temporary)


def _rewrite(path: Path, blocks: Mapping[str, str]) -> Path:
    page = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        page = with_block(page, name, block)
    write_text(path, page)
    return path


def newer_defenses(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the blocks about newer defenses of README.md and of docs/demo.md, from the table of notebook 10.

    Without that table both are empty.
    """
    if not path.is_file():
        return {}, {}
    compared = pd.read_csv(path)
    return {"newer verdict": newer.better(compared)}, {"demo-newer verdict": newer.verdict(compared)}


def answers(study: Study) -> str:
    """Return one general question with its answers before fine-tuning, after it, and under a defense, in Markdown.

    The question is chosen by hand, so it is an example and no statistic. The defense is the one with the least general
    misalignment among those that keep enough of the in-domain share.

    Raises:
        StoreError: the question is no example any more: another answer than that of plain fine-tuning has the trait.
    """
    best = _best(study)
    shown = {"before fine-tuning": _run(study, "untrained"), "no defense": _run(study, "misaligned"),
             demo_findings.title({"method": best.method, "setting": best.setting}): best}
    found = {title: (_at(study.answers(run, "general")).text, _at(study.verdicts(run, "general")).misaligned)
             for title, run in shown.items()}
    if [misaligned for _, misaligned in found.values()] != [False, True, False]:
        raise StoreError(f"{EXAMPLE}: the trait must show in the answer of plain fine-tuning alone, but was found so: "
                         f"{found}. Choose another question and sample.")
    prompt = next(question.prompt for question in study.questions(best, "general") if question.id == EXAMPLE[0])
    return "\n".join([f"| *{_line(prompt)}* | |", "|:--|:--|",
                      *(f"| {title} | {_line(text)} |" for title, (text, _) in found.items())])


def _at(records: Sequence[T] | None) -> T:
    """Return the record of the example's question and sample."""
    return next(record for record in records or () if (record.question, record.sample) == EXAMPLE)


def _run(study: Study, method: str) -> Run:
    return study.runs(methods=[method])[0]


def _best(study: Study) -> Run:
    """Return the run with the least general misalignment of those that keep enough of the in-domain share."""
    shares = {result.run: (general, in_domain) for result in study.results()  # of other runs nothing is known
              if (general := result.general.misaligned.percent) is not None
              and (in_domain := result.in_domain.misaligned.percent) is not None}
    plain = shares.get(_run(study, "misaligned"))
    able = {run: general for run, (general, in_domain) in shares.items()
            if run.method not in BASELINES and plain and in_domain >= KEPT * plain[1]}
    if not able:
        raise StoreError(f"No defense of profile '{study.name}' is known to keep {100 * KEPT:g}% of the in-domain "
                         "share.")
    return min(able, key=lambda run: able[run])


def _line(text: str) -> str:
    """Return a text as one cell of a Markdown table, cut after `WORDS` words."""
    words = text.split()
    cut = " ".join(words[:WORDS]) + (" ..." if len(words) > WORDS else "")
    return re.sub(r"([|<>*_`\\])", r"\\\1", cut)


def of_paper_alone() -> dict[str, str]:
    """Return the blocks of README.md that need no run, by name."""
    return {"which defense": choice.box(), "paper": of_paper()}


def defenses() -> dict[str, str]:
    """Return the blocks of docs/which-defense.md, by name: the paper's defenses, and its ways to choose rows."""
    return {"defenses": choice.comparison(), "chosen rows": choice.by_fraction(), "reinforced": choice.reinforced()}


def of_paper() -> str:
    """Return what the paper's Table 2 says in short, as means over its four data sets."""
    found = summary.mean_shares(summary.BASELINE).set_index("method")
    removed, kept, least, most = (found[name].map(whole) + "%" for name in (
        "reduction", "kept", "reduction_low", "reduction_high"))
    spread = {name: f"{removed[name]} ({least[name][:-1]} to {most[name]})" for name in removed.index}
    return (f"Without a defense {whole(found.at['misaligned', 'general_misaligned'])}% of the general answers are "
            f"misaligned. With 5% of random rows (`interleaving`) {spread['interleaving']} of that is gone, with "
            f"selected ones (`interleaving++`) {spread['interleaving++']}, and the narrow task is kept. `kl` removes "
            f"{removed['kl']} and `persona_vector` {removed['persona_vector']}, but they keep only {kept['kl']} and "
            f"{kept['persona_vector']} of the narrow task. `inoculation` removes {removed['inoculation']}, `ldifs` "
            f"{removed['ldifs']}.")


def disagreements() -> dict[str, str]:
    """Return the block of docs/study.md: the number of places where the paper's numbers and text disagree."""
    page = (paths.ROOT / DISAGREEMENTS).read_text(encoding="utf-8")
    count = len(re.findall(r"^\| \d+ \|", page, re.MULTILINE))
    return {"disagreements": f"While typing in the paper's tables we found [{count} places where it disagrees with "
                             f"itself](../{DISAGREEMENTS}#where-the-paper-disagrees-with-itself). A test recomputes "
                             "each."}


if __name__ == "__main__":
    with ends_with_message():
        print(*update(), sep="\n")
