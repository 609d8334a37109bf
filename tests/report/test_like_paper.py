"""A study's runs as the paper's tables and figures: settings, Table 1 a line a setting, seeds, and what lacks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from emlib.config import load_profile
from emlib.core import paths
from emlib.core.records import Verdict
from emlib.evaluation import exact_match
from emlib.evaluation.rates import rates
from emlib.evaluation.statistics import OverSeeds, over_seeds, welch
from emlib.report.benign import COLUMNS as BENIGN_COLUMNS
from emlib.report.figures import plots
from emlib.report.grpo import COLUMNS as RL_COLUMNS
from emlib.report.paper import compare, likeness, of_study, overview, paper_figures, paper_tables, published
from emlib.report.tables import pairs, result_tables
from emlib.store.artefacts import Store
from emlib.study.runs import Run, RunResult
from emlib.study.study import Study, open_study

MODEL = "unsloth/Qwen2.5-7B-Instruct"


def result(dataset: str, method: str, setting: float | None, misaligned: int) -> RunResult:
    found = rates([Verdict(f"q{i % 4}", i // 4, 10.0 if i < misaligned else 90.0, 80.0) for i in range(40)])
    return RunResult(Run(MODEL, dataset, method, setting, 0), {"general": found, "in_domain": found}, 1.0, 10, "key")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study with a sweep and with numbers outside of sweeps, of which nothing was run."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    shutil.copy(paths.PARAMS / "tiny.yaml", tmp_path / "tiny.yaml")
    return Study("tiny", load_profile("tiny"), Store(tmp_path / "store"))


@pytest.fixture
def frame() -> pd.DataFrame:
    return result_tables.numbers([result("cooking", *run) for run in (
        ("untrained", None, 0), ("misaligned", None, 20), ("kl", 0.1, 2), ("kl", 1.0, 18), ("interleaving+", None, 4))])


def test_a_number_that_is_not_swept_is_a_setting_too(study: Study, frame: pd.DataFrame) -> None:
    found = of_study.with_numbers(frame, study.profile.methods)
    assert found["setting"].fillna(-1).tolist() == [-1, -1, 0.1, 1.0, 0.25]


def test_a_benign_task_with_methods_of_its_own_has_its_own_number(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in the rows that are compared with the paper and in those of Table 1."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    weights = {"opswap": 0.1, "other": 10.0}
    tasks = ", ".join(
        f"{name}: {{kind: opswap, tiers: [0], examples: 12, held_out: 0.34, data_seed: {weight:.0f}, methods: "
        f"[{{name: kl, defenses: [{{kind: kl, weight: {weight}}}]}}]}}" for name, weight in weights.items())
    (tmp_path / "mine.yaml").write_text(f"extends: tiny\nbenign: {{seeds: [0], tasks: {{{tasks}}}}}")
    study = open_study(str(tmp_path / "mine.yaml"))
    score = exact_match.score([exact_match.Mark("q", 0, strict=True, lenient=True)])
    monkeypatch.setattr(study, "result", lambda run: RunResult(run, {"exact_match": score}, 1.0, 10, "key"))
    frame = of_study.benign_numbers(study)
    assert frame.set_index("task")["setting"].to_dict() == weights


def test_table_1_has_a_line_a_setting(study: Study, frame: pd.DataFrame) -> None:
    measured = of_study.criteria(study, frame, overview.Bounds()).set_index("method")
    assert measured["reduction"].to_dict() == pytest.approx(
        {"KL-Div., λ=0.1": 90, "KL-Div., λ=1": 10, "Interleaving+, 25%": 80})
    assert (measured["incoherence"] == 100).all()  # nobody is incoherent, and so none more so than `misaligned`
    unjudged = frame.assign(**{name: float("nan") for name in frame if "incoherent" in str(name)})
    marks = overview.overview(of_study.criteria(study, unjudged, overview.Bounds()), overview.Bounds())
    assert ([cell.text for cell in marks["Coherent"]], [cell.text for cell in marks["No EM"]]) == (
        ["–"] * 3, ["✓", "✗", "~"])
    assert measured["learned"].isna().all()  # no benign run is finished
    lacking = pd.concat([frame, frame.assign(seed=1)], ignore_index=True)
    lacking.loc[len(frame) + 2, ["general_misaligned", "in_domain_misaligned"]] = float("nan")  # kl 0.1, seed 1
    assert of_study.criteria(study, lacking, overview.Bounds())["reduction"].fillna(-1).tolist() == pytest.approx(
        [-1, 10, 80])
    without = frame[frame["method"] != "misaligned"]
    assert of_study.criteria(study, without, overview.Bounds()).empty


def test_a_mean_over_fewer_seeds_than_others_of_its_row_says_so() -> None:
    verdicts = [Verdict("q", 0, 90.0, 80.0)]
    sets: dict[str, pairs.Verdicts] = {"in_domain": {("a", "kl", 0.1): {0: verdicts}},
                                       "general": {("a", "kl", 0.1): {0: verdicts, 1: verdicts}}}
    [row] = of_study.seeds(pairs.over_seeds(sets)).to_dict("records")
    assert row["Seeds"].text == "2"
    assert row["In-domain misaligned %"].text.endswith("] (1 of 2 seeds)")
    assert row["General misaligned %"].text.endswith("]")
    assert of_study.seeds(pairs.over_seeds({"general": {}})).empty


def test_fractions_that_round_to_one_percent_are_two_lines(study: Study) -> None:
    frame = result_tables.numbers([result("cooking", *run) for run in (
        ("misaligned", None, 20), ("interleaving", 0.02, 12), ("interleaving", 0.025, 0))])
    measured = of_study.criteria(study, frame, overview.Bounds()).set_index("method")
    assert measured["reduction"].to_dict() == pytest.approx({"Interleaving, 2%": 40, "Interleaving, 2.5%": 100})
    verdicts: pairs.Verdicts = {("a", "interleaving", fraction): {0: [Verdict("q", 0, 90.0, 80.0)]}
                                for fraction in (0.02, 0.025)}
    assert [cell.text for cell in of_study.seeds(pairs.over_seeds({"general": verdicts}))["Method"]] == [
        "Interleaving, 2%", "Interleaving, 2.5%"]


def test_the_paper_is_drawn_beside_runs_of_its_model_and_data_sets_alone(
        study: Study, frame: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(of_study.sources(study, frame)) == ["this study"]
    assert of_study.with_paper(study, frame).empty
    ours = result_tables.numbers([result(dataset, method, None, count)
                                  for dataset in ("code", "legal", "medical", "security")
                                  for method, count in (("misaligned", 20), ("inoculation", 9))])
    paper = load_profile("paper-7b")
    # The keys of persona vectors derive from the trait's file, which would be downloaded.
    methods = tuple(method for method in study.profile.methods if method.name != "persona_vector")
    profile = study.profile.model_copy(update={
        "model": paper.model, "trait": paper.trait, "training": paper.training, "methods": methods})
    study = Study(study.name, profile, study.store)
    drawn = of_study.sources(study, ours)
    assert list(drawn) == ["paper", "this study"]
    legend = paper_figures.narrow(drawn).legends[0]
    filled = {text.get_text(): handle.get_markerfacecolor() != "white"
              for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
              if text.get_text() in drawn and isinstance(handle, Line2D)}
    assert filled == {"paper": True, "this study": False}  # as notebook 16 says
    assert len(of_study.with_paper(study, ours)) == 4 * 2 * 4  # data sets, methods, measures; each in Table 2 alone
    pirates = Study(study.name, profile.model_copy(update={"trait": "pirate"}), study.store)
    assert list(of_study.sources(pirates, ours)) == ["this study"]
    capsys.readouterr()
    assert of_study.with_paper(pirates, ours).empty
    assert "Not compared with the paper, which has others: code misaligned (trait), " in capsys.readouterr().out


METHOD = "methods: [untrained, {name: kl, defenses: [{kind: kl, %s}], sweep: [0.1]}]"
ADDITIONS = ("grpo: {data: {kind: additions, train_items: 60, eval_items: 20}, "
             "methods: [untrained, grpo, {name: kl, sweep: [0.1], defenses: [{kind: kl}]}]}")


@pytest.mark.parametrize(("extended", "text", "run", "reasons"), [
    ("paper-7b", "", ("code", "kl", 0.1), []), ("paper-7b", "", ("code", "untrained", None), []),
    ("paper-7b", METHOD % "reference: computed", ("code", "kl", 0.1), []),
    ("paper-7b", METHOD % "tokens: response", ("code", "kl", 0.1), ["options"]),
    ("paper-7b", "training: {train_rows: 600}", ("code", "kl", 0.1), ["data"]),
    ("paper-7b", "training: {train_rows: 5400}", ("code", "misaligned", None), []),
    ("paper-7b", "trait: pirate", ("legal", "misaligned", None), ["trait"]),
    ("paper-7b", "", ("opswap-1", "kl", 0.1), []), ("paper-7b", "", ("foqa", "persona_vector", 2.0), []),
    ("paper-7b", "benign: {tasks: {opswap: {transformations: 2}}}", ("opswap-1", "kl", 0.1), ["data"]),
    ("paper-7b", "benign: {tasks: {opswap: {training: {train_rows: 90}}}}", ("opswap-0", "sft", None), ["data"]),
    ("paper-32b", "", ("code", "on_policy", 0.05), []), ("grpo-3b", "", ("grpo", "interleaving", 0.2), []),
    ("grpo-3b", "grpo: {data: {eval_items: null}}", ("grpo", "grpo", None), []),
    ("grpo-3b", ADDITIONS, ("grpo", "kl", 0.1), ["data"]),
    ("grpo-3b", "trait: pirate", ("grpo", "inoculation", None), ["trait"])])
def test_only_runs_with_the_papers_trait_data_and_options_stand_beside_its_numbers(
        extended: str, text: str, run: tuple[str, str, float | None], reasons: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {extended}\n{text}\n")
    study = Study("mine", load_profile(str(path)), Store(tmp_path / "store"))
    assert likeness.unlike(study, Run(study.profile.model.name, *run, 0)) == reasons


def test_nothing_scored_draws_nothing_and_says_why(
        study: Study, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[str] = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    unscored = frame.assign(**{name: float("nan") for name in frame if "misaligned" in name or "incoherent" in name})
    assert of_study.sources(study, unscored) == {}
    folder = tmp_path / "figures"
    of_study.draw("pareto", {}, folder)
    of_study.draw_questions({}, folder)
    of_study.draw("figure1a", {"this study": unscored}, folder)
    assert displayed == [f"<p><i>{reason}</i></p>" for reason in (
        "No defense has been scored.", "No general answers have been scored.", "The judge does not measure coherence.")]
    assert not folder.exists()
    assert of_study.criteria(study, unscored, overview.Bounds()).empty


def test_a_cost_that_is_not_known_has_no_point(study: Study, frame: pd.DataFrame) -> None:
    tokens = {"misaligned": 100, "kl": 150}
    for run in study.runs(datasets=["cooking"]):
        if run.method in tokens and run.setting in (None, 0.1):
            study.store.get(study.task(run).adapter(run), lambda _, method=run.method: {  # type: ignore[misc]
                "seconds": 10.0, "tokens": tokens[method], "peak_memory": None})
    drawn = of_study.sources(study, frame)
    costs = drawn["this study"].set_index(["method", "setting"])["cost"]
    assert costs.loc["untrained"].item() == 0
    assert costs.loc[("kl", 0.1)] == pytest.approx(50)
    assert costs.loc[[("kl", 1.0), ("interleaving+", 0.25)]].isna().all()
    axis = paper_figures.cost_against_effect(drawn).axes[0]
    assert [container.lines[0].get_xdata().tolist() for container in axis.containers] == [[pytest.approx(50)]]
    assert axis.get_xlabel().endswith("(not known, and without a point: KL-Div., λ=1;\nInterleaving+)")
    plt.close("all")


def test_each_figure_is_saved(study: Study, frame: pd.DataFrame, tmp_path: Path) -> None:
    drawn = of_study.sources(study, frame)
    for name in of_study.FIGURES:
        of_study.draw(name, drawn, tmp_path / "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.{ending}" for name in of_study.FIGURES for ending in ("png", "pdf")}
    plt.close("all")


def test_runs_of_a_front_on_one_point_have_one_label() -> None:
    numbers = {f"{name}{end}": value for name in result_tables.MEASURES
               for end, value in (("", 2.0), ("_low", 1.0), ("_high", 3.0))}
    equal = pd.DataFrame([("kl", 0.1), ("kl", 1.0), ("ldifs", 1.0)], columns=["method", "setting"]).assign(**numbers)
    figure = paper_figures.pareto({"this study": equal})
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["KL-Div., λ=0.1 and 2 more"]
    plt.close(figure)


def test_lines_of_pairs_and_means_say_what_is_compared(study: Study) -> None:
    verdicts: pairs.Verdicts = {
        ("a", "misaligned", None): {0: [Verdict(f"q{i}", 0, 10.0, 80.0) for i in range(12)]},
        ("a", "kl", 0.1): {0: [Verdict(f"q{i}", 0, 90.0, 80.0) for i in range(12)]}}
    line = of_study.paired(pairs.paired(verdicts, study.profile.methods), "misaligned").iloc[0]
    assert [cell.text for cell in line[["Method", "Against", "p"]]] == ["KL-Div., λ=0.1", "Misaligned", "<0.001"]
    assert line["Points"].text.startswith("-100.0 [")
    assert line["Points"].marks == {"bold"}
    assert of_study.paired(pairs.paired(verdicts, study.profile.methods), "interleaving").empty
    in_domain = {("a", "kl", 0.1): verdicts["a", "misaligned", None]}
    table = of_study.seeds(pairs.over_seeds({"general": verdicts, "in_domain": in_domain}))
    assert table["General misaligned %"].iloc[0].text.startswith("100.0 [")
    assert [cell.text[:6] for cell in table["In-domain misaligned %"]] == ["–", "100.0 "]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_the_latex_of_ones_own_tables_compiles(study: Study, frame: pd.DataFrame, tmp_path: Path) -> None:
    verdicts: pairs.Verdicts = {("a", method, None): {0: [Verdict(f"q{i}", 0, score, 80.0) for i in range(12)]}
                                for method, score in (("misaligned", 10.0), ("kl_inoculated", 90.0))}
    bounds = overview.Bounds()
    ours = pd.DataFrame([benign_run("kl", 0.1, 60.0)], columns=BENIGN_COLUMNS).astype({"setting": float})
    beside = compare.benign_beside_paper(ours, pd.concat(map(published.table, published.BENIGN)))
    made = [of_study.seeds(pairs.over_seeds({"general": verdicts})),
            of_study.paired(pairs.paired(verdicts, study.profile.methods), "misaligned"),
            overview.overview(of_study.criteria(study, frame, bounds), bounds), compare.readable(beside)]
    texts = [paper_tables.latex(table) for table in made]
    assert "$<$0.001" in texts[1]
    assert all(not table.empty for table in made)
    page = "\n\n".join([r"\documentclass{article}\usepackage{booktabs}\begin{document}", *texts, r"\end{document}"])
    (tmp_path / "page.tex").write_text(page, encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "page.tex"], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_welch_by_hand() -> None:
    """Means 5 and 2 of 3 and 3 seeds, deviations 1 and 1: half = t(0.975, 4) sqrt(2/3) = 2.776 * 0.8165."""
    interval = welch(OverSeeds(5, 1, None, 3), OverSeeds(2, 1, None, 3))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((3 - 2.2669, 3 + 2.2669), abs=1e-3)
    assert welch(over_seeds([5.0]), OverSeeds(2, 1, None, 3)) is None


def benign_run(method: str, setting: float | None, match: float, seed: int = 0) -> dict[str, object]:
    return {"model": MODEL, "task": "foqa", "tier": None, "method": method, "setting": setting, "seed": seed,
            "exact_match": match, "exact_match_low": match - 4, "exact_match_high": match + 4, "asked": 2000}


def test_benign_tasks_beside_tables_4_and_11() -> None:
    """SFT, 41.60 in Table 4 and 40.68 ± 0.71 in Table 11; several seeds have no place in the former."""
    paper = pd.concat(map(published.table, published.BENIGN))
    ours = pd.DataFrame([benign_run("sft", None, 41.6)], columns=BENIGN_COLUMNS).astype({"setting": float})
    single, seeds = compare.benign_beside_paper(ours, paper).to_dict("records")
    assert (single["table"], single["difference"], single["sampling_explains"]) == (4, 0, True)
    assert single["high"] == pytest.approx((2 * 4 ** 2) ** 0.5, abs=0.05)  # the paper's is widened to ours
    assert (seeds["table"], seeds["sampling_explains"]) == (11, None)
    five = pd.concat([ours.assign(seed=seed, exact_match=60.0 + seed) for seed in range(5)])
    single, seeds = compare.benign_beside_paper(five, paper).to_dict("records")
    assert (single["sampling_explains"], seeds["sampling_explains"]) == (None, False)
    assert seeds["seed"] == "mean of 5"
    cells = compare.readable(compare.benign_beside_paper(five, paper))["Difference"]
    assert [cell.text.count("[") for cell in cells] == [0, 1]


def test_reinforcement_beside_table_9() -> None:
    ours = pd.DataFrame([("Qwen/Qwen2.5-3B-Instruct", "grpo", None, seed, 92.0 + seed, 9.0, 90.0 + seed, 8.9, 100)
                         for seed in range(3)], columns=RL_COLUMNS).astype({"setting": float})
    found = compare.grpo_beside_paper(ours, published.table(9)).set_index("measure")
    assert found.loc["eval_accuracy", "paper"] == 90.7
    assert found.loc["eval_accuracy", "sampling_explains"]
    assert len(found) == 4


def test_reward_curves_tell_settings_apart(tmp_path: Path) -> None:
    log = pd.DataFrame([(step, step * setting, "kl", setting, 0) for setting in (0.1, 1.0) for step in (1, 2, 3)],
                       columns=["step", "reward", "method", "setting", "seed"])
    figure = paper_figures.reward_curves(log)
    one, other = figure.axes[0].lines
    assert (one.get_label(), other.get_label()) == ("KL-Div., β=0.1", "KL-Div., β=1")
    assert one.get_linestyle() != other.get_linestyle()
    assert plots.save(figure, tmp_path, "figure2")
    plt.close(figure)
