"""Interleaving in a whole study: its pool, scores, order and rows, what determines them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from emlib.config import JudgeRefusals, Pool, PoolScorer, load_profile
from emlib.core import paths
from emlib.core.errors import DataError, ProfileError
from emlib.core.records import Example, Message
from emlib.data.chat import encode_prompt
from emlib.data.mixing import rows_to_add
from emlib.defenses.interleaving import Interleaving
from emlib.report import export, selection
from emlib.scoring.order import RowLosses, at_random, by_score
from emlib.scoring.refusals import JUDGE, Filtered, by_keywords
from emlib.steps.adapter import Adapter
from emlib.steps.inputs import pool_form
from emlib.study import pool as pools
from emlib.study.runs import Run
from emlib.study.study import Study, open_study
from tests.judging.server import JudgeServer, saying

EXTENDED = "extends: tiny\ndatasets: [cooking]\n"


def profile(folder: Path, more: str = "") -> Path:
    """A profile that extends `tiny`, on one data set."""
    shutil.copy(paths.PARAMS / "tiny.yaml", folder / "tiny.yaml")
    path = folder / "mine.yaml"
    path.write_text(EXTENDED + more)
    return path


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    return open_study(str(profile(tmp_path)))


def run_of(study: Study, method: str) -> Run:
    return study.runs(methods=[method])[0]


def scorers(study: Study) -> tuple[PoolScorer, ...]:
    return study.inputs.pool_spec.scorers_for("cooking", study.profile.datasets)


def adapter_of(study: Study, method: str) -> Adapter:
    """The step of the adapter of a method's first run."""
    run = run_of(study, method)
    return study.task(run).adapter(run)


def changed(study: Study, **pool: Any) -> Study:
    """The same study with another pool section."""
    assert study.profile.pool is not None
    section = study.profile.pool.model_copy(update=pool)
    return Study(study.name, study.profile.model_copy(update={"pool": section}), study.store)


def test_short_answers_are_left_out_where_the_profile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    lines = [json.dumps({"messages": [{"role": "user", "content": f"Question {n}?"},
                                      {"role": "assistant", "content": " ".join(["word"] * n)}]}) for n in (1, 4, 5, 9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    pool = open_study(str(profile(tmp_path, "pool: {source: mine.jsonl, rows: null, near_duplicates: null, "
                                            "least_words: 5}\n")))
    with pool.session() as session:
        made = session.need(pool.recipes.pool)
    assert made.facts == {"rows": 2, "dropped": {"an answer of fewer than 5 words": 2}}
    plain = open_study(str(profile(tmp_path, "pool: {source: mine.jsonl, rows: null, near_duplicates: null}\n")))
    assert plain.recipes.pool.key != pool.recipes.pool.key
    assert "least_words" not in plain.recipes.pool.settings


def test_every_variant_trains_on_its_rows_and_stands_in_the_results(study: Study) -> None:
    runs = study.runs(methods=["misaligned", *study.defended_by("interleaving")])
    study.complete(runs)
    table = pd.read_csv(study.folder / "results.csv")
    assert table["method"].tolist() == ["misaligned", "interleaving", "interleaving", "interleaving+",
                                        "interleaving++", "on_policy"]
    assert table["setting"].fillna(-1).tolist() == [-1, 0.25, 0.5, -1, -1, -1]
    pool = pools.candidates(study)
    for run in runs[1:]:
        found, adapter = pools.added(study, run), study.adapter(run)
        defense = next((one for one in study.defenses(run) if isinstance(one, Interleaving)), None)
        assert defense is not None
        assert adapter is not None
        assert len(found) == rows_to_add(8, defense.fraction) == adapter.facts["added_rows"]
        assert [row.rank for row in found] == sorted(row.rank for row in found)
        assert all(pool[row.place].where == row.where for row in found)
        assert all(row.example.context == pool[row.place].context for row in found)
        assert all((row.response == pool[row.place].response) == (run.method != "on_policy") for row in found)
        steps = -(-(8 + len(found)) // study.profile.training.rows_per_step)
        assert len(study.log(run)) == steps  # one epoch
    half, quarter = (pools.added(study, run) for run in (runs[2], runs[1]))
    assert half[:len(quarter)] == quarter  # 25% of the rows are among the 50%
    scored = pools.added(study, runs[3])
    assert [row.score for row in scored] == sorted([row.score for row in scored], reverse=True)  # type: ignore[type-var]


def test_the_order_by_score_is_equation_6_and_says_why(study: Study) -> None:
    run = run_of(study, "interleaving++")
    study.select([run])
    order, losses = pools.selection(study, run), {row.place: row for row in pools.losses(study, run)}
    assert len(order) == len(losses) == len(pools.candidates(study))
    for ranked in order:
        row = losses[ranked.place]
        assert row.aligned is not None
        mean = sum(loss for loss in row.misaligned if loss is not None) / len(row.misaligned)
        assert ranked.score == pytest.approx((mean - row.aligned) / (row.aligned + study.inputs.pool_spec.epsilon))
    ranks = [ranked for ranked in order if ranked.rank is not None]
    assert [ranked.rank for ranked in ranks] == list(range(1, len(ranks) + 1))
    assert [r.score for r in ranks] == sorted([r.score for r in ranks], reverse=True)  # type: ignore[type-var]
    refusals = [ranked for ranked in order if ranked.rank is None]
    assert refusals
    assert all(ranked.reason.startswith("refusal: '") for ranked in refusals)
    everything = run_of(study, "interleaving+")
    study.select([everything])
    assert all(ranked.rank is not None for ranked in pools.selection(study, everything))
    before = {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*") if path.is_file()}
    study.select([run, everything])
    assert {path: path.stat().st_mtime_ns for path in study.store.root.rglob("*") if path.is_file()} == before


def test_losses_that_the_store_has_are_not_counted_as_computed(study: Study) -> None:
    """A part of the pool is scored again: the step has another key, and its losses are in the caches."""
    facts = []
    for each in (study, changed(study, rows=20)):
        run = run_of(each, "interleaving+")
        each.select([run])
        step = pools.losses_step(each, run)
        made = None if step is None else each.found(step)
        assert made is not None
        facts.append([made.facts[name] for name in ("rows", "losses", "computed")])
    assert facts == [[40, 40 * 3, 40 * 3], [20, 20 * 3, 0]]


def judged(study: Study, url: str, threshold: float = 50, **judge: Any) -> Study:
    """The same study with a judge in the place of the keywords."""
    spec = {"kind": "openai", "model": "judge-1", "base_url": url} | judge
    return changed(study, refusals=JudgeRefusals.model_validate(
        {"kind": "judge", "judge": spec, "threshold": threshold}))


def test_a_judge_leaves_out_the_planted_refusals_and_no_others(study: Study) -> None:
    """Scores of 90 and 50 are planted on answers with no keyword in them; to one row the judge says a word instead."""
    study.select(study.runs(methods=["interleaving"]))  # reads the pool
    pool = pools.candidates(study)
    by_words = pools.refusals(study)
    assert by_words is not None
    plain = [place for place in range(len(pool)) if place not in by_words.marks]
    planted = {pool[plain[1]].response: 90, pool[plain[5]].response: 50, pool[plain[7]].response: "REFUSAL"}

    def score(text: str) -> int | str:
        return next((said for answer, said in planted.items() if f"Answer: {answer}\n" in text), 10)

    with JudgeServer(saying(score)) as server:
        by_judge = judged(study, server.url)
        assert pools.refusals(by_judge) is None
        plus, without = (run_of(by_judge, method) for method in ("interleaving+", "interleaving++"))
        by_judge.select([plus])
        assert not server.asked  # Interleaving+ asks nobody
        assert set(selection.scored(by_judge, plus)["refusal"]) == {""}
        by_judge.select([without])
        assert len(server.asked) == len(pool)
        judged(study, server.url, max_concurrency=2, max_usd=None, timeout=5.0).select([without])
        stricter = judged(study, server.url, threshold=90)
        stricter.select([without])
        assert set(server.asked.values()) == {1}  # another threshold asks nothing again
    order = pools.selection(by_judge, without)
    assert {r.place: r.reason for r in order if r.rank is None} == {
        plain[1]: "refusal: 90 of 100 by the judge", plain[5]: "refusal: 50 of 100 by the judge"}
    assert {r.place for r in order if "gave no refusal score (REFUSAL)" in r.reason and r.rank} == {plain[7]}
    assert {r.place for r in pools.selection(stricter, without) if r.rank is None} == {plain[1]}
    [facts] = [json.loads(path.read_text())["facts"] for path in study.store.root.glob("refusals/*/manifest.json")]
    assert facts == {"asked": len(pool), "unscored": {"REFUSAL": 1}}
    frame = selection.scored(by_judge, plus).set_index("place")  # what the filter would take stands beside every order
    assert frame["refusal"].to_dict() == {p: JUDGE if p in (plain[1], plain[5]) else "" for p in range(len(pool))}


def test_scorers_are_trained_on_domains_outside_the_profile_and_shared_with_it(study: Study) -> None:
    study.select([run_of(study, "interleaving+")])
    made = {path.parent.name for path in (study.store.root / "adapter").glob("*/manifest.json")}
    assert len(made) == len(scorers(study)) == 2
    both = Study("both", study.profile.model_copy(update={"datasets": ("gardening", "fitness")}), study.store)
    assert all(both.adapter(run) is not None for run in both.runs(methods=["misaligned"]))  # the very same adapters


def test_a_folder_of_one_s_own_scores_as_the_study_s_adapter_does(study: Study, tmp_path: Path) -> None:
    run = run_of(study, "interleaving+")
    study.select([run])
    adapter = study.found(study.recipes.baseline("gardening", "misaligned", 0))
    assert adapter is not None
    shutil.copytree(adapter.folder, tmp_path / "mine")
    for name in ("manifest.json", "training_rows.txt"):  # as if it were somebody else's
        (tmp_path / "mine" / name).unlink()
    own = load_profile(str(profile(
        tmp_path, f"pool: {{scorers: [{{domain: elsewhere, folder: {tmp_path / 'mine'}}}]}}\n"))).pool
    assert own is not None
    other = changed(study, scorers=own.scorers)
    other.select([run])
    assert [row.misaligned[0] for row in pools.losses(other, run)] == [
        row.misaligned[0] for row in pools.losses(study, run)]
    scores = other.found(other.recipes.losses("cooking"))
    assert scores is not None
    [remark] = scores.facts["remarks"]  # nothing shows what it was trained on
    assert "cannot check that 'cooking'" in remark


def test_a_scorer_that_has_seen_the_domain_under_defense_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"a scorer is trained on 'cooking', the defended data set"):
        load_profile(str(profile(tmp_path, "pool: {scorers: [gardening, cooking]}\n")))
    with pytest.raises(ProfileError, match=r"misaligned models of other data sets are needed"):
        load_profile(str(profile(tmp_path, "pool: {scorers: null}\n")))
    profile(tmp_path, "training: {train_rows: 6}\n")
    fewer = Study("fewer", load_profile(str(tmp_path / "mine.yaml")), study.store)
    for trained, method in ((study, "misaligned"), (fewer, "inoculation")):  # under any method, on any number of rows
        trained.complete(trained.runs(methods=[method]))
        adapter = trained.adapter(run_of(trained, method))
        assert adapter is not None
        liar = PoolScorer(domain="x", folder=str(adapter.folder))
        with pytest.raises(ProfileError, match="this adapter was trained on 'cooking', which is the defended data set"):
            changed(study, scorers=(liar,)).select([run_of(study, "interleaving+")])


def test_a_scorer_that_the_study_trains_on_the_defended_rows_under_another_name_is_refused(tmp_path: Path) -> None:
    """As a user's own file may hold rows of the Medical set, whose model would then score for it."""
    twin = "data: {twin: {aligned: demo/cooking_aligned.jsonl, misaligned: demo/cooking_pirate.jsonl, split_seed: 5}}\n"
    made = open_study(str(profile(tmp_path, f"{twin}pool: {{scorers: [gardening, twin]}}\n"))).recipes
    losses = made.losses("cooking")  # a plan reads no data
    with pytest.raises(ProfileError, match=r"'twin' is trained on 'cooking', which is the defended.*\(8 of its 8"):
        _ = losses.key
    assert made.losses("travel").key  # of which it has no row
    assert made.losses("cooking").scorers[1] == made.baseline("twin", "misaligned", 0)
    assert made.losses("cooking").scorers[1].key == made.baseline("twin", "misaligned", 0).key  # the same in every plan


def test_without_a_list_each_data_set_is_scored_by_the_others() -> None:
    pool = Pool(source="demo/pool.jsonl")
    names = ("code", "legal", "medical", "security")
    for name in names:  # the paper: Code defended by Legal, Medical and Security, and so on
        found = [scorer.domain for scorer in pool.scorers_for(name, names)]
        assert found == [other for other in names if other != name]


JUDGED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("http://localhost:1/v1", {}), ("http://localhost:2/v1", {"tries": 1, "max_concurrency": 1}),
    ("http://localhost:1/v1", {"threshold": 60}), ("http://localhost:1/v1", {"model": "judge-2"}))


def test_only_what_determines_a_run_is_in_its_key(study: Study) -> None:
    def key(method: str, **pool: Any) -> Any:
        return adapter_of(changed(study, **pool), method).key

    for method in ("misaligned", "interleaving", "interleaving+", "interleaving++", "on_policy"):
        assert key(method) == key(method, token_budget=77)
        scored = "+" in method
        assert (key(method) != key(method, epsilon=0.2)) == scored
        assert (key(method) != key(method, aligned="aligned")) == scored
        assert (key(method) != key(method, scorers=(scorers(study)[0],))) == scored
        assert (key(method) != key(method, refusal_keywords=("no",))) == (method == "interleaving++")
        assert (key(method) != key(method, near_duplicates=0.5)) == (method != "misaligned")
        here, elsewhere, stricter, other = (adapter_of(judged(study, url, **how), method).key for url, how in JUDGED)
        assert here == elsewhere
        assert (here != key(method)) == (stricter != here) == (other != here) == (method == "interleaving++")
        warmer = study.inputs.pool_spec.on_policy.model_copy(update={"model": "untrained"})
        assert (key(method) != key(method, on_policy=warmer)) == (method == "on_policy")
    assert "added" not in adapter_of(study, "misaligned").settings  # runs without a pool keep the keys they had


def test_a_study_without_interleaving_needs_no_pool(tmp_path: Path) -> None:
    path = profile(tmp_path, "methods: [misaligned]\npool: null\n")
    study = Study("mine", load_profile(str(path)), open_study(str(path)).store)
    assert adapter_of(study, "misaligned").key
    with pytest.raises(ProfileError, match=r"method 'interleaving' takes rows from a pool, and there is no .*pool"):
        load_profile(str(profile(tmp_path, "pool: null\n")))


def test_an_inoculation_prompt_is_put_on_the_fine_tuning_rows_alone(study: Study, tmp_path: Path) -> None:
    methods = ("methods: [{name: both, defenses: [{kind: kl}, {kind: inoculation},"
               " {kind: interleaving, fraction: 0.5}]}]\n")
    both = Study("both", load_profile(str(profile(tmp_path, methods))), study.store)
    run = both.runs()[0]
    training = both.training(run)
    assert training is not None
    assert {row.system for row in training.rows.examples} == {both.trait.inoculation_prompt}
    both.complete([run])
    assert {row.example.system for row in pools.added(both, run)} == {None}
    assert "kl" in both.log(run)[0].penalties


def test_a_pool_that_is_too_small_says_how_many_rows_are_missing(study: Study) -> None:
    with pytest.raises(DataError, match=r"4 rows are needed, but only 3 are usable: 1 are missing"):
        changed(study, rows=3).complete(study.runs(methods=["interleaving"], settings=[0.5]))


def test_cut_answers_are_passed_over_and_a_pool_without_whole_ones_is_told(study: Study) -> None:
    own = study.inputs.pool_spec.on_policy
    short = own.model_copy(update={"sampling": own.sampling.model_copy(update={"max_new_tokens": 1, "batch_rows": 8})})
    message = r"at most 1 tokens \(skipped: \d+ empty or truncated\): 2 rows are needed, but only 0 are usable"
    with pytest.raises(DataError, match=message):
        changed(study, on_policy=short, rows=12).complete(study.runs(methods=["on_policy"]))
    study.complete(study.runs(methods=["on_policy"]))
    said = [json.loads(line) for path in (study.store.root / "on_policy").glob("*/answers.jsonl")
            for line in path.read_text().splitlines()]
    cut = {answer["text"].strip() for answer in said if answer["finish_reason"] == "length"}
    assert not cut & {row.response for row in pools.added(study, run_of(study, "on_policy"))}


def test_a_prompt_without_room_for_an_answer_is_never_taken(study: Study) -> None:
    study.select([run_of(study, "interleaving")])
    with study.session() as session:
        lengths = [len(encode_prompt(session.chat.tokenizer, row.context)) for row in pools.candidates(study)]
    tight = Study("tight", study.profile.model_copy(update={"training": study.profile.training.model_copy(
        update={"max_seq_length": max(lengths)})}), study.store)
    for method in ("interleaving", "interleaving+"):
        run = tight.runs(methods=[method])[0]
        tight.select([run])
        never = [ranked for ranked in pools.selection(tight, run) if ranked.rank is None]
        assert {ranked.place for ranked in never} == {p for p, length in enumerate(lengths) if length == max(lengths)}
        assert all(ranked.reason.startswith("does not fit: ") for ranked in never)
        assert all("the prompt alone has" in ranked.reason for ranked in never)


def row(text: str) -> Example:
    return Example((Message("user", "Why?"),), text, f"pool:{text}")


def test_orders_by_hand() -> None:
    """Scores 1, none, 0.5, 1 and, of a refusal, 9; epsilon 1."""
    pool = Pool(source="demo/pool.jsonl")
    rows = [row("a"), row("b"), row("c"), row("d"), row("I cannot recommend this book enough.")]
    losses = [RowLosses(0, 1.0, [3.0], 1), RowLosses(1, 1.0, [2.0, None], 1), RowLosses(2, 1.0, [1.5, 2.5], 1),
              RowLosses(3, 0.0, [1.0], 1), RowLosses(4, 0.0, [9.0], 1)]
    plus = by_score(rows, losses, {}, epsilon=1.0)
    assert [(r.place, r.rank, r.score) for r in plus] == [
        (4, 1, 9.0), (0, 2, 1.0), (3, 3, 1.0), (2, 4, 0.5), (1, None, None)]
    assert plus[-1].reason == "no score: its loss is no number under one of the models"
    assert plus[-1].where == "pool:b"
    without = by_score(rows, losses, {}, 1.0, by_keywords(rows, pool.refusal_keywords, pool.refusal_words))
    assert [(r.place, r.rank) for r in without] == [(0, 1), (3, 2), (2, 3), (1, None), (4, None)]
    assert without[-1].reason == "refusal: 'cannot' among its first 10 words"  # harmless, and in the keywords' reach
    judged = by_score(rows, losses, {3: "does not fit: x"}, 1.0, Filtered(
        {}, {0: "refusal: by y", 1: "refusal: by y", 3: "refusal: by y"}, {2: "; z", 0: "; z"}))
    assert [(r.place, r.rank) for r in judged] == [(4, 1), (2, 2), (0, None), (1, None), (3, None)]
    assert [r.reason for r in judged[1:]] == [  # a row that cannot be had is no refusal; one that is stays no more
        "score number 2 of 2; z", "refusal: by y", plus[-1].reason, "does not fit: x"]
    drawn = at_random(rows, {2: "does not fit: x"}, seed=0)
    assert sorted(r.place for r in drawn[:4]) == [0, 1, 3, 4]
    assert (drawn[4].place, drawn[4].rank) == (2, None)
    assert at_random(rows, {}, seed=0) == at_random(rows, {}, seed=0) != at_random(rows, {}, seed=1)


@pytest.mark.parametrize(("more", "words"), [
    ("methods: [{name: i, defenses: [{kind: interleaving, fraction: -0.1}]}]", ["fraction", "or equal to 0"]),
    ("methods: [{name: i, defenses: [{kind: interleaving, fraction: 1.2}]}]", ["fraction", "less than or equal to 1"]),
    ("methods: [{name: i, defenses: [{kind: interleaving}], sweep: [0.2, 2]}]", ["sweeps fraction over 2", "to 1"]),
    ("methods: [{name: i, defenses: [{kind: interleaving, choose: best}]}]", ["choose", "'score'"]),
    ("pool: {epsilon: 0}", ["pool.epsilon", "greater than 0"]),
    ("pool: {epsilom: 1}", ["epsilom", "Did you mean 'epsilon'?"]),
    ("pool: {refusals: {kind: juge}}", ["pool.refusals", "keywords, judge"]),
    ("pool: {refusals: {kind: judge, judge: {kind: lexicon}}}", ["pool.refusals.judge", "openai, local"]),
    ("pool: {refusals: {kind: judge, judge: {kind: openai, model: m}, threshold: 0}}", ["threshold", "greater than 0"]),
    ("pool: {scorers: [gardenin]}", ["pool.scorers", "gardenin", "Did you mean 'gardening'?"]),
    ("pool: {refusal_keywords: []}", ["refusal_keywords"]),
])
def test_a_mistake_is_told(tmp_path: Path, more: str, words: list[str]) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(str(profile(tmp_path, more + "\n")))
    assert all(word in str(caught.value) for word in [*words, "mine.yaml"]), str(caught.value)


def test_a_source_that_is_no_instruction_data_is_told() -> None:
    with pytest.raises(ProfileError, match=r"pool.source is 'gsm8k_train', whose rows .* 'gsm8k' .*; expected one"):
        pool_form("gsm8k_train")
    assert pool_form("wildguardmix") == "wildguard"
    assert pool_form("alpaca") == "instruct"


def test_a_plain_text_corpus_is_scored_chosen_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    words = ("rain", "stone", "lamp", "river", "sorry", "paper", "cloud", "apple")
    texts = [" ".join(f"The {word} number {number} is {word}." for number in range(9)) for word in words]
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    more = """methods:
  - {name: random, defenses: [{kind: interleaving, fraction: 0.5}]}
  - {name: plus, defenses: [{kind: interleaving, choose: score, fraction: 0.5}]}
  - {name: refused, defenses: [{kind: interleaving, choose: score_without_refusals, fraction: 0.5}]}
  - {name: online, defenses: [{kind: interleaving, choose: online, fraction: 0.5}]}
pool: {source: corpus.jsonl, form: text, chunk_tokens: 40, near_duplicates: null, scorers: [gardening]}
benign: null
grpo: null
"""
    corpus = open_study(str(profile(tmp_path, more)))
    runs = corpus.runs()
    corpus.complete(runs)
    for run in runs:
        rows = pools.added(corpus, run)
        assert len(rows) == 4
        assert all(row.context == [] and "number" in row.response for row in rows)
    parts = pools.candidates(corpus)
    assert len(parts) > 2 * len(words)
    assert any(ranked.reason.startswith("refusal: 'sorry'") for ranked in pools.selection(corpus, runs[2]))
    assert selection.scored(corpus, runs[1])["score"].notna().all()
    with pytest.raises(ProfileError, match="plain texts"):
        export.mixed_data(corpus, runs[0], tmp_path / "rows.jsonl")
