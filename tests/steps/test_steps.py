"""Steps: equal where their fields are, keyed by what determines them, with costs that add up by hand."""

from __future__ import annotations

import pkgutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

from emlib import steps
from emlib.config import (
    ChatTemplate,
    Extraction,
    Grpo,
    Gsm8k,
    HubModel,
    JudgeRefusals,
    JudgeRewards,
    LexiconJudge,
    LocalJudge,
    Lora,
    Monitor,
    NoJudge,
    OpenAIJudge,
    RlMethod,
    RlTraining,
    Sampling,
    TinyModel,
    Training,
    load_profile,
)
from emlib.config import Pool as PoolSpec
from emlib.config.audit import Audit
from emlib.config.shapes import Shape
from emlib.core.records import Example, Message, Question
from emlib.core.schema import Strict
from emlib.core.step import Step, Work, closure
from emlib.data.lazy import Current, Deferred, Questions, Rows
from emlib.data.sizes import Size, Sizes
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Beta, Kl
from emlib.evaluation.panel import PanelTask
from emlib.make.session import maker, register_makers
from emlib.steps import grpo, measures, pool
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.added import AddedRows, Against, CandidateRows
from emlib.steps.answers import Answers, MetricScores, Verdicts
from emlib.steps.grpo import SupervisedRows
from emlib.steps.inputs import Inputs
from emlib.steps.measures import RowAudit
from emlib.steps.needs import Reference, ReferenceStates
from emlib.steps.recipes import Recipes
from emlib.steps.scorers import AdapterFolder
from emlib.steps.specs import Assessment, EvaluationSpec, Model, TrainingSpec
from emlib.study.plan.build import plan
from emlib.study.runs import Run
from emlib.study.study import open_study
from emlib.study.tasks import GrpoTask
from tests.steps.changed import changes

JUDGE = OpenAIJudge(kind="openai", model="judge-1", base_url="http://localhost:1/v1")
SAMPLING = Sampling(max_new_tokens=7)


def kinds() -> Iterator[type[Step]]:
    """Every class of steps with a stage that a module of emlib.steps defines."""
    for found in pkgutil.iter_modules(steps.__path__, "emlib.steps."):
        for value in vars(import_module(found.name)).values():
            if isinstance(value, type) and issubclass(value, Step) and value.__module__ == found.name and hasattr(
                    value, "stage"):
                yield value


def test_every_kind_of_step_has_a_maker_and_a_stage_of_its_own() -> None:
    register_makers()
    assert [kind for kind in kinds() if maker.dispatch(kind) is maker.dispatch(Step)] == []
    assert {kind for kind in maker.registry if kind.__module__.startswith("emlib.steps.")} <= set(kinds())
    stages = [kind.stage for kind in kinds()]
    assert len(set(stages)) == len(stages)


def examples() -> dict[str, Step]:
    """A step of each kind, of the profile tiny, by the name of its class; each time made anew."""
    profile = load_profile("tiny")
    assert profile.pool is not None
    refusals = JudgeRefusals(kind="judge", judge=JUDGE)
    changed = profile.model_copy(update={
        "pool": profile.pool.model_copy(update={"refusals": refusals, "aligned": "aligned"}),
        "evaluation": profile.evaluation.model_copy(update={"projection_layer": 2})})
    recipes = Recipes(changed, "tiny")
    spec = recipes.narrow("cooking", "misaligned", (), 0)
    by_score = recipes.pool_rows(spec, fraction=0.25, choose="score_without_refusals", answers="on_policy")
    given = recipes.answers(recipes.adapter(spec, "a run"), EvaluationSpec(recipes.inputs.general, 2, SAMPLING, 0))
    task, run = GrpoTask("grpo", recipes), Run("tiny", "grpo", "grpo", None, 0)
    reinforced, held_out = task.adapter(run), task.answers(run)["rewards"]
    read = recipes.monitor_inputs(spec, Monitor(layers=(2,)), pool=True)
    found = [
        recipes.reference(spec, "all"), recipes.adapter(spec, "a run"), given, recipes.verdicts(given),
        recipes.second_verdicts(given), reinforced, held_out,
        grpo.GrpoRewards(held_out, recipes.inputs.problems, JudgeRewards(kind="judge", judge=JUDGE)),
        recipes.projections(given), choices(recipes), recipes.held_out("cooking", given.adapter), recipes.pool,
        by_score.selection.losses, by_score.selection.refusals, by_score.selection,
        replace(by_score.own_answers, start=0) if by_score.own_answers is not None else None, by_score,
        recipes.vector(), recipes.steered(2, 1.0), KeptAdapter(recipes.adapter(spec, "a run"), 0.5),
        recipes.components(spec, (2,), "pool"), recipes.reference_projections(spec, (2,)),
        recipes.candidate_rows(spec, fraction=0.25, share=0.15, rescored=8),
        recipes.row_audit(spec),
        recipes.trait_adapter(None, None, random=False), read, recipes.final_reading(spec, read),
        recipes.panel(given.adapter, PanelTask("a/b", 3, "b", "1", 3, "a digest", {})),
        MetricScores(given, JUDGE, "correct", prompts("Right? {answer}"))]
    return {type(step).__name__: step for step in found if step is not None}


@pytest.mark.parametrize("kind", ["Adapter", "GrpoAdapter", "ReferenceStates", "ReferenceProjections"])
@pytest.mark.parametrize("name", ["spec", "seed", "model", "version", "artefacts", "new"])
def test_a_defense_may_call_an_artefact_as_it_likes(kind: str, name: str) -> None:
    """No name replaces another entry of the key."""
    step = same()[kind]
    named = {other: replace(step, artefacts=((name, same()[other]),))  # type: ignore[call-arg]
             for other in ("PersonaVectors", "AddedRows")}
    assert len({step.key, *(one.key for one in named.values())}) == 3
    assert set(named["AddedRows"].settings) == set(step.settings)
    assert {**named["AddedRows"].settings, "artefacts": None} == {**step.settings, "artefacts": None}


def prompts(text: str) -> Deferred[Mapping[str, str]]:
    """One prompt for every question."""
    return Deferred(text, lambda: defaultdict(lambda: text))


def choices(recipes: Recipes) -> measures.Choices:
    """Multiple choice of a file whose digest is known."""
    return replace(recipes.choices(None, "truthfulqa_mc"), file=Deferred("truthfulqa_mc", lambda: "a digest"))


def test_steps_of_equal_fields_are_one_step_and_have_one_key() -> None:
    first, second = examples(), examples()
    assert set(first) == {kind.__name__ for kind in kinds()}
    for name, step in first.items():
        assert step == second[name]
        assert hash(step) == hash(second[name])
        assert step is not second[name]
        assert step.key == second[name].key
    assert len({step.key for step in first.values()}) == len(first)


def rows(text: str) -> Rows:
    """Two rows, of which nobody asks the size."""
    return Rows(text, lambda: (Example((Message("user", text),), "yes", text),) * 2, lambda sizes: Size(2, 9))


def questions(text: str) -> Questions:
    """One question, of which nobody asks the size."""
    return Questions(text, lambda: [Question(text, text)], lambda sizes: Size(1, 9))


@cache
def same() -> dict[str, Step]:
    """The steps whose fields are changed below; their keys are computed once."""
    return examples()


def other(field: str) -> Any:
    """Another value for a field that several kinds have."""
    tiny, steps = load_profile("tiny"), same()
    assert tiny.grpo is not None
    assessed = steps["Verdicts"].assessment  # type: ignore[attr-defined]
    spec = steps["Adapter"].spec  # type: ignore[attr-defined]
    return {
        "model": Model(TinyModel(kind="tiny", seed=7)), "lora": Lora(rank=2), "seed": 7, "max_length": 99,
        "spec": replace(spec, seed=7), "backend": "another",
        "adapter": replace(steps["Adapter"], spec=replace(spec, seed=8)),
        "evaluation": EvaluationSpec(questions("other"), 3, Sampling(max_new_tokens=8), 1),
        "answers": replace(steps["Answers"], adapter=None), "assessment": replace(assessed, judge=JUDGE),
        "vectors": replace(steps["PersonaVectors"], extraction=Extraction(samples=3)), "layer": 3, "count": 4,
        "questions": questions("other"), "sampling": Sampling(max_new_tokens=9), "rows": rows("other"),
        "pool": replace(steps["Pool"], form="alpaca"), "problems": Deferred("other", lambda: replace(
            Recipes(tiny, "tiny").inputs.problems.value, train=(), held_out=())),
        "selection": replace(steps["Selection"], choose="random", losses=None, refusals=None, seed=3),
        "rewards": JudgeRewards(kind="judge", judge=JUDGE.model_copy(update={"model": "judge-2"})),
        "strength": 2.0, "grpo": tiny.grpo.model_copy(update={"generations": 2}), "system": "Other.",
        "form": "other", "choose": "score", "fraction": 0.5, "among": Rows(
            "other", lambda: rows("other").examples * 8, lambda sizes: Size(16, 9)),
    }[field]


# What else is changed, kind by kind.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "ReferenceProjections": {"layers": (1, 2), "spec": lambda step: replace(step.spec, rows=rows("other")),
                             "artefacts": lambda step: (*step.artefacts, ("added", same()["AddedRows"]))},
    "ReferenceStates": {"tokens": "response", "spec": lambda step: replace(step.spec, rows=rows("other")),
                        "artefacts": lambda step: (("added", same()["AddedRows"]),)},
    "Adapter": {"artefacts": lambda step: (("vector", same()["PersonaVectors"]),),
                "start": lambda step: replace(step, spec=replace(step.spec, seed=8))},
    "GrpoAdapter": {"defenses": (Beta(kind="kl", weight=0.5),),
                    "artefacts": lambda step: (("vector", same()["PersonaVectors"]),),
                    "supervised": SupervisedRows(rows("other"), 0.5)},
    "GrpoRewards": {"answers": lambda step: replace(step.answers, adapter=None)},
    "GrpoAnswers": {"adapter": lambda step: replace(step.adapter, seed=9)},
    "Choices": {"adapter": lambda step: same()["Adapter"], "file": Deferred("other", lambda: "other")},
    "Pool": {"spec": lambda step: step.spec.model_copy(update={"rows": 9}), "file": Deferred("other", lambda: "other"),
             "divided_for": lambda step: Model(TinyModel(kind="tiny", seed=7))},
    "PoolLosses": {"aligned": lambda step: None,
                   "scorers": lambda step: step.scorers[:1]},
    "Refusals": {"how": lambda step: step.how.model_copy(update={"judge": JUDGE.model_copy(update={"model": "x"})})},
    "Selection": {"losses": lambda step: replace(step.losses, aligned=None),
                  "refusals": lambda step: replace(step.refusals, how=step.refusals.how.model_copy(
                      update={"threshold": 77.0}))},
    "OwnAnswers": {"adapter": lambda step: None, "start": 16,
                   "against": lambda step: Against(same()["PersonaVectors"], 2, 1.0, None)},  # type: ignore[arg-type]
    "ChangeComponents": {"layers": (1,)},
    "RowAudit": {"spec": lambda step: step.spec.model_copy(update={"samples": 3})},
    "TraitAdapter": {"shown_by": rows("other"), "training": Training(epochs=7), "random": True},
    "CandidateRows": {"fraction": 1.0, "own_answers": lambda step: same()["OwnAnswers"], "system": "Be brief.",
                      "share": 0.3, "rescored": 7, "epochs": 5},
    "AddedRows": {"own_answers": lambda step: None, "system": "Be brief."},
    "PanelResult": {"task": lambda step: replace(step.task, digest="other"), "defaults": Sampling(max_new_tokens=9)},
    "KeptAdapter": {"share": 0.25},
    "MonitorInputs": {"held_out": rows("other"), "rows": 9, "layers": (1,), "drawn": True,
                      "vectors": lambda step: tuple(("another", one) for _, one in step.vectors)},
    "FinalReading": {"monitor": lambda step: replace(step.monitor, rows=9)},
    "MetricScores": {"judge": JUDGE.model_copy(update={"model": "judge-2"}), "metric": "kind",
                     "prompts": prompts("Kind? {answer}"), "has_labels": True},
    "PersonaVectors": {"extraction": Extraction(samples=4)},
}


@pytest.mark.parametrize("kind", sorted(kind.__name__ for kind in kinds()))
def test_every_field_that_determines_a_step_changes_its_key(kind: str) -> None:
    step, changes = same()[kind], CHANGES.get(kind, {})
    names = {field.name for field in fields(step) if field.compare}  # type: ignore[arg-type]
    assert set(changes) <= names
    for name in sorted(names):
        value = changes[name] if name in changes else other(name)
        changed = replace(step, **{name: value(step) if name in changes and callable(value) else value})  # type: ignore
        assert changed.key != step.key, f"{kind}.{name}"
        assert changed != step, f"{kind}.{name}"


# What determines nothing: names for people, estimates of costs, and what the rest says in another form.
UNCOMPARED = {
    "Adapter": {"name", "reads"}, "GrpoAdapter": {"name"}, "OwnAnswers": {"wanted"}, "Choices": {"source"},
    "PoolLosses": {"dataset", "domains", "refuse_seen"}, "Selection": {"dataset"}, "Verdicts": {"thresholds"},
    "SecondVerdicts": {"thresholds"}, "PersonaVectors": {"questions", "stated"}, "TrainingSpec": {
        "dataset", "plain_rows", "keep", "held_out", "monitor"}, "Assessment": {"characters", "is_main"},
    "AdapterFolder": {"defended"}, "Rows": {"read", "size"}, "Questions": {"read", "size"}, "Deferred": {"read"},
    "Current": {"read"}, "PanelTask": {"spec", "source"}}


def records_in(value: object) -> Iterator[object]:
    """Yield a record and all records among its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        yield value
        value = tuple(getattr(value, field.name) for field in fields(value) if field.compare)
    for part in value if isinstance(value, tuple) else ():
        yield from records_in(part)


def test_what_is_in_no_key_is_listed_here() -> None:
    """So that nobody leaves a field out of keys without a thought."""
    left_out: dict[str, set[str]] = defaultdict(set)
    for record in {record for step in same().values() for record in records_in(step)}:
        left_out[type(record).__name__] |= {field.name for field in fields(record) if not field.compare}  # type: ignore
    left_out["AdapterFolder"] = {field.name for field in fields(AdapterFolder) if not field.compare}
    assert {name: found for name, found in left_out.items() if found} == UNCOMPARED


# What determines no result, or is in a step's key in another form, of the sections that steps have.
LEFT_OUT: Mapping[type[Strict], set[str]] = {
    Training: {"checkpoint_every", "train_rows", "keep"}, RlTraining: {"train_rows", "keep"},
    Extraction: {"min_pairs"}, Audit: {"rows", "methods"}, JudgeRefusals: {"threshold"},
    Grpo: {"data", "methods", "seeds", "prompt", "rewards", "eval_sampling", "kept_completions", "slice_by"},
    PoolSpec: set(PoolSpec.model_fields) - {"rows", "seed", "least_words", "near_duplicates", "chunk_tokens"},
    LexiconJudge: {"pinned"}, LocalJudge: {"rubric", "pinned", "batch_rows"},
    OpenAIJudge: set(OpenAIJudge.model_fields) - {"model", "top_logprobs", "samples"}}
HUB = HubModel(kind="hub", repo="a/b", revision="main")
REFUSALS = JudgeRefusals(kind="judge", judge=JUDGE)
JUDGED = Grpo(data=Gsm8k(kind="gsm8k"), methods=(RlMethod(name="grpo"),),
              rewards=JudgeRewards(kind="judge", judge=JUDGE))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that no profile may have
@pytest.mark.parametrize("record", [
    Training(gradient_checkpointing=False), RlTraining(), Lora(), Sampling(), Extraction(), Audit(layer=2), HUB,
    TinyModel(kind="tiny"), LexiconJudge(kind="lexicon"), LocalJudge(kind="local", model=HUB), JUDGE,
    REFUSALS, PoolSpec(source="demo/pool.jsonl", refusals=REFUSALS), JUDGED],
    ids=lambda record: type(record).__name__)
def test_every_value_of_a_section_is_in_its_identity_unless_it_is_listed_here(record: Strict) -> None:
    for name, changed in changes(record):
        assert (changed.identity == record.identity) is (name in LEFT_OUT.get(type(record), set())), name
    assert LEFT_OUT.get(type(record), set()) - {"kind"} <= {name for name, _ in changes(record)}


def test_what_reinforcement_learning_depends_on_beside_its_fields() -> None:
    """The problems to train on, the worked ones and the rewards; not the held-out problems, which are the answers'."""
    made, given = same()["GrpoAdapter"], same()["GrpoRewards"]
    assert isinstance(made, grpo.GrpoAdapter)
    assert isinstance(given, grpo.GrpoRewards)
    problems = made.problems.value
    assert problems.train
    assert problems.held_out

    def of(**changed: Any) -> list[str]:
        other = Deferred("problems", lambda: replace(problems, **changed))
        return [replace(made, problems=other).key, replace(given, problems=other).key]

    plain, worked = of(), of(worked=(Message("user", "What is 1 + 1?"),))
    assert plain == [made.key, given.key]
    assert (worked[0] == plain[0], worked[1] == plain[1]) == (False, True)
    trained, held_out = of(train=problems.train[1:]), of(held_out=problems.held_out[1:])
    assert (trained[0] == plain[0], trained[1] == plain[1]) == (False, True)
    assert (held_out[0] == plain[0], held_out[1] == plain[1]) == (True, False)
    judged = made.grpo.model_copy(update={"rewards": JudgeRewards(kind="judge", judge=JUDGE)})
    assert replace(made, grpo=judged).key != made.key


def test_adapters_that_were_trained_with_vllm_on_a_changing_base_model_are_not_taken() -> None:
    made = same()["GrpoAdapter"]
    assert isinstance(made, grpo.GrpoAdapter)
    versions = {engine: replace(made, grpo=made.grpo.model_copy(update={"engine": engine})).settings["version"]
                for engine in ("transformers", "vllm")}
    assert versions == {"transformers": 1, "vllm": 2}


@pytest.mark.parametrize("kind", [
    "PersonaVectors", "Choices", "PoolLosses", "HeldOutLosses", "MonitorInputs", "CandidateRows", "Adapter"])
def test_means_over_answers_have_new_keys_only_where_a_template_may_write_a_think_block(
        kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kl, "held_out", lambda self, rows: rows[:1])  # so that it may ask for their loss
    given: Any = same()[kind]
    if isinstance(given, Adapter):
        given = replace(given, spec=replace(given.spec, defenses=(Kl(kind="kl", weight=1.0),)))

    def version(repo: str, **options: bool) -> int:
        model = Model(HubModel(kind="hub", repo=repo, revision="main", template=ChatTemplate(options=options)))
        changed = {"selection": replace(given.selection, model=model)} if kind == "CandidateRows" else {"model": model}
        return int(replace(given, **changed).settings["version"])

    assert version("Qwen/Qwen2.5-7B-Instruct") == version("Qwen/Qwen3-8B", enable_thinking=False) == 1
    assert version("Qwen/Qwen3-4B-Instruct-2507") == 1
    assert version("Qwen/Qwen3-8B") == version("deepseek-ai/DeepSeek-R1-Distill-Llama-8B") == 2
    assert given.settings["version"] == 1


def test_a_monitor_and_an_adapter_without_losses_keep_their_keys() -> None:
    thinks = Model(HubModel(kind="hub", repo="Qwen/Qwen3-8B", revision="main"))
    answers_alone, plain = replace(same()["MonitorInputs"], held_out=None, pool=None), same()["Adapter"]
    assert [replace(step, model=thinks).settings["version"]  # type: ignore[call-arg]
            for step in (answers_alone, plain)] == [1, 1]


@pytest.mark.parametrize("side", ["aligned", "misaligned"])
def test_what_a_monitor_and_early_stopping_read_first_are_rows_that_no_question_asks(
        side: Literal["aligned", "misaligned"]) -> None:
    """A run is not scored on what it was stopped by, as long as enough rows are held out: tiny asks 4 of 12."""
    recipes = Recipes(load_profile("tiny"), "tiny")
    asked = {question.context for question in recipes.inputs.in_domain("cooking").all}
    read = recipes.narrow("cooking", side, (), 0).held_out
    assert read is not None
    held_out = getattr(recipes.inputs.data("cooking"), side).held_out
    assert len(asked) == 4
    assert [row.context in asked for row in read.examples] == [False] * 8 + [True] * 4
    assert sorted(map(held_out.index, read.examples)) == list(range(12))
    assert recipes.held_out("cooking", None).rows.examples == recipes.inputs.data("cooking").misaligned.held_out


def test_of_rubrics_and_prompts_only_those_of_the_questions_are_in_a_key() -> None:
    given = same()["MetricScores"]
    assert isinstance(given, MetricScores)
    [first, *_] = given.answers.evaluation.questions.all

    def asking(**told: str) -> MetricScores:
        return replace(given, prompts=Deferred("p", lambda: defaultdict(lambda: "Right? {answer}", told)))

    assert asking(nobody="Kind? {answer}").key == given.key != asking(**{first.id: "Kind? {answer}"}).key


def test_an_audit_of_more_rows_than_there_are_is_that_of_all() -> None:
    given = same()["RowAudit"]
    assert isinstance(given, RowAudit)
    every = given.rows.count
    keys = {count: replace(given, count=count).key for count in (None, every - 1, every, every + 1)}
    assert keys[None] == keys[every] == keys[every + 1] != keys[every - 1]


def test_all_strengths_and_seeds_share_what_the_reference_model_computes() -> None:
    made, projected = same()["ReferenceStates"], same()["ReferenceProjections"]
    assert isinstance(made, ReferenceStates)
    for step in (made, projected):
        assert isinstance(step, Reference)
        assert isinstance(step.spec, TrainingSpec)
        for change in ({"seed": 9}, {"defenses": (Kl(kind="kl", weight=0.5),)}, {"training": Training(
                learning_rate=0.5, max_seq_length=step.spec.training.max_seq_length)}):
            assert replace(step, spec=replace(step.spec, **change)).key == step.key
        for change in ({"rows": rows("other")}, {"training": Training(max_seq_length=77)}, {
                "defenses": (Interleaving(fraction=0.5),)}):
            assert replace(step, spec=replace(step.spec, **change)).key != step.key


def test_what_is_asked_and_what_is_trained_on_is_in_the_key() -> None:
    given, made = same()["Answers"], same()["Adapter"]
    assert isinstance(given, Answers)
    assert isinstance(made, Adapter)
    asked = [replace(given.evaluation, **{name: value}) for name, value in {
        "questions": questions("other"), "samples": 9, "sampling": Sampling(temperature=0.5), "seed": 9}.items()]
    assert len({given.key, *(replace(given, evaluation=one).key for one in asked)}) == len(fields(EvaluationSpec)) + 1
    specs = [replace(made.spec, **{name: value}) for name, value in {
        "rows": rows("other"), "defenses": (Kl(kind="kl"),), "training": Training(epochs=7), "seed": 9,
        "steps": 7}.items()]
    compared = [field for field in fields(TrainingSpec) if field.compare]
    assert len({made.key, *(replace(made, spec=one).key for one in specs)}) == len(compared) + 1
    assert replace(made, spec=replace(made.spec, dataset="other")).key == made.key  # the rows tell
    kept = replace(made, spec=replace(made.spec, keep=(0.5,), training=made.spec.training.model_copy(
        update={"keep": (0.5,)})))
    assert kept.key == made.key  # keeping adapters changes none


def test_a_name_for_people_and_the_way_to_the_data_determine_nothing() -> None:
    made = same()["Adapter"]
    assert isinstance(made, Adapter)
    named = replace(made, name="another name")
    assert (named, named.key, named.title) == (made, made.key, "another name")
    for change in (Kl(kind="kl", weight=0.5), Kl(kind="kl", weight=0.6)):
        defended = replace(made, spec=replace(made.spec, defenses=(change,)))
        assert defended.key != made.key
    trained = replace(made, spec=replace(made.spec, training=Training(checkpoint_every=3)))
    again = replace(made, spec=replace(made.spec, training=Training(checkpoint_every=4)))
    assert trained.key == again.key


def test_states_of_the_reference_model_are_an_input_with_which_they_change() -> None:
    made, states = same()["Adapter"], same()["ReferenceStates"]
    assert isinstance(made, Adapter)
    kept = replace(made, artefacts=(("reference", states),))
    assert kept.inputs == (states,)
    assert kept != made


def test_an_older_version_is_another_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = examples()["Pool"]
    assert before.settings["version"] == 2
    key = before.key
    monkeypatch.setattr(pool.Pool, "version", 3)
    assert examples()["Pool"].key != key


def test_what_steps_are_made_from_comes_first_and_once() -> None:
    study = open_study("tiny")
    runs = study.runs(methods=["misaligned", "interleaving++", "on_policy", "persona_vector"])
    ends = [step for run in runs for step in study.own_steps(run)]
    found = list(closure([*ends, *ends]))
    assert len(found) == len(set(found))
    assert set(ends) < set(found)
    place = {step: number for number, step in enumerate(found)}
    for step in found:
        assert all(place[before] < place[step] for before in step.inputs)
    assert sum(isinstance(step, pool.Pool) for step in found) == 1
    assert list(closure([])) == []


NONE = Deferred("nothing", lambda: None)


def assessment(judge: Any) -> Assessment:
    """A judge whose prompts have 100 characters around question and answer."""
    return Assessment(judge, NONE, NONE, lambda sizes: 100.0)  # type: ignore[arg-type]


def small_adapter(model: Model, reads: Literal["all", "added", "none"] = "none") -> Adapter:
    """Ten rows of 36 tokens, of which 30 fit, twice."""
    learnt = Rows("small", lambda: (), lambda sizes: Size(10, prompt=40, response=72))  # 112 / 4 + 8 = 36 tokens
    spec = TrainingSpec("small", learnt, (), Training(epochs=2, max_seq_length=30), 0)
    return Adapter(model, Lora(rank=2, target_modules=("q_proj", "k_proj")), spec, "auto", "small", (), reads)


def test_the_cost_of_an_adapter_by_hand() -> None:
    tiny = Model(TinyModel(kind="tiny"))
    assert small_adapter(tiny).cost(Sizes()) == Work(train=2 * 10 * 30, adapters=1)
    assert small_adapter(tiny, "all").cost(Sizes()) == Work(train=600, read=600, adapters=1)
    known = Model(TinyModel(kind="tiny"))
    known.__dict__["shape"] = Shape(parameters=1, layers=3, hidden=8, mlp=16, keys=4)
    # Of rank 2 in float32: 3 layers of a query of 8 to 8 and a key of 8 to 4.
    assert small_adapter(known).cost(Sizes()).disk == 4 * 2 * 3 * (16 + 12)
    added = AddedRows(same()["Selection"], 0.5, Rows("small", lambda: (), lambda sizes: Size(10, 40, 72)))  # type: ignore
    size = added.size(Sizes())
    assert size.rows == 5
    more = replace(small_adapter(tiny), artefacts=(("added", added),))
    extra = 2 * 5 * min(size.tokens, 30)
    assert more.cost(Sizes()).train == 600 + extra
    assert [replace(more, reads=rows).cost(Sizes()).read for rows in ("all", "added")] == [600 + extra, extra]
    offered = CandidateRows(added.selection, 0.5, added.among, share=0.1, rescored=3, epochs=2)
    online = replace(more, artefacts=(("added", offered),)).cost(Sizes())
    assert online == replace(more.cost(Sizes()), read=4 * int(0.1 * 2 * 10 * added.among.size(Sizes()).tokens))


def test_some_rows_of_a_source_are_planned_as_so_many() -> None:
    recipes = Recipes(load_profile("tiny"), "tiny")
    sizes = Sizes()
    whole, some = (recipes.trait_adapter("demo/pool.jsonl", count, random=False).shown_by for count in (None, 3))
    assert isinstance(whole, Rows)
    assert isinstance(some, Rows)
    assert whole.size(sizes).rows > 3
    assert some.size(sizes) == replace(whole.size(sizes), rows=3)
    assert len(some.examples) == 3


def test_a_label_is_planned_as_one_request_and_a_number_as_its_samples() -> None:
    asked = Questions("small", lambda: [], lambda sizes: Size(3, prompt=32))
    given = Answers(Model(TinyModel(kind="tiny")), None, EvaluationSpec(asked, 5, SAMPLING, 0), "auto")
    judge = OpenAIJudge(kind="openai", provider="anthropic", model="judge-1")
    number = MetricScores(given, judge, "correct", prompts("Right? {answer}"))
    label = replace(number, has_labels=True)
    assert label.key != number.key
    requests = [one.requests * one.judge.requests_a_score for step in (number, label)
                for one in step.cost(Sizes()).others]
    assert requests == [150, 15]
    plain = replace(number, judge=JUDGE)
    assert replace(plain, has_labels=True).cost(Sizes()) == plain.cost(Sizes())


def test_the_costs_of_answers_and_verdicts_by_hand() -> None:
    asked = Questions("small", lambda: [], lambda sizes: Size(3, prompt=32))  # 32 / 4 + 8 = 16 tokens
    given = Answers(Model(TinyModel(kind="tiny")), None, EvaluationSpec(asked, 5, SAMPLING, 0), "auto")
    assert given.cost(Sizes()) == Work(read=3 * 16, write=15 * 7, sets=1, disk=15 * 7 * 4)
    counted = Verdicts(given, assessment(LexiconJudge(kind="lexicon")))
    assert counted.cost(Sizes()) == Work(verdicts=15, disk=15 * 700)
    # Two scores of each; 100 characters of prompt, 32 of the question, 28 of the answer: 160 / 4 + 8 = 48 tokens.
    assert Verdicts(given, assessment(JUDGE)).cost(Sizes()) == Work(verdicts=15, judged=2 * 15 * 48, disk=15 * 700)
    assert Verdicts(given, assessment(NoJudge(kind="none"))).cost(Sizes()) == Work()


def test_the_adapter_that_components_are_taken_of_is_monitored_as_misaligned_is() -> None:
    recipes = Recipes(load_profile("tiny").model_copy(update={"monitor": Monitor(layers=(2,))}), "tiny")
    assert recipes.profile.pool is not None
    ablation = ConceptAblation(directions="components", layers=(2,))
    adapter = recipes.adapter(recipes.narrow("cooking", "misaligned", (ablation,), 0, "ablation"), "ablation")
    [components] = adapter.inputs
    misaligned = recipes.baseline("cooking", "misaligned", 0)
    assert misaligned is not None
    assert components.adapter.key == misaligned.key
    assert components.adapter.spec.monitor == misaligned.spec.monitor


def test_a_plan_of_the_paper_reads_no_data_set_and_computes_no_key(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store has nothing: what it has is looked up by its key."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    def never(self: object) -> Any:
        raise AssertionError(f"a plan asked for {self}")

    for kind, name in ((Rows, "examples"), (Rows, "identity"), (Questions, "all"), (Questions, "identity"),
                       (Deferred, "value"), (Current, "value"), (Step, "key"), (Step, "identity"), (Inputs, "data"),
                       (Model, "identity")):
        monkeypatch.setattr(kind, name, property(never))
    made = plan(open_study("paper-7b"))
    assert len(made.runs) > 100
    assert sum(work.train for work in made.works) > 0
    with pytest.raises(AssertionError, match="a plan asked for"):
        _ = same()["Pool"].file.value  # type: ignore[attr-defined]
