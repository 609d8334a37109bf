"""Steps: equal where their fields are, keyed by what determines them, with costs that add up by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any, Literal

import pytest

from emlib.config import (
    Backend,
    Extraction,
    JudgeRefusals,
    JudgeRewards,
    LexiconJudge,
    Lora,
    Monitor,
    NoJudge,
    OpenAIJudge,
    Sampling,
    TinyModel,
    Training,
    load_profile,
)
from emlib.config.shapes import Shape
from emlib.core.defense import RESERVED, Defense
from emlib.core.records import Example, Message, Question
from emlib.core.step import Step, closure
from emlib.core.work import Work
from emlib.data.lazy import Deferred, Questions, Rows
from emlib.data.sizes import Size, Sizes
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.kl import Beta, Kl
from emlib.defenses.ldifs import Ldifs
from emlib.defenses.persona_vector import PersonaVector
from emlib.evaluation.panel import PanelTask
from emlib.make import makers  # noqa: F401  registers them
from emlib.make.session import maker
from emlib.steps import (
    adapter,
    added,
    answers,
    audit,
    components,
    grpo,
    measures,
    monitor,
    pool,
    trait_adapter,
    vectors,
)
from emlib.steps.adapter import Adapter, KeptAdapter
from emlib.steps.added import AddedRows, Against, CandidateRows
from emlib.steps.answers import Answers, MetricScores, Verdicts
from emlib.steps.grpo import SupervisedRows
from emlib.steps.inputs import Inputs
from emlib.steps.measures import Projections
from emlib.steps.monitor import MonitorInputs
from emlib.steps.recipes import Recipes
from emlib.steps.specs import Assessment, EvaluationSpec, Model, TrainingSpec
from emlib.steps.vectors import PersonaVectors
from emlib.study.plan.build import plan
from emlib.study.runs import Run
from emlib.study.study import open_study
from emlib.study.tasks import GrpoTask

MODULES = (adapter, added, answers, audit, components, grpo, measures, monitor, pool, trait_adapter, vectors)
JUDGE = OpenAIJudge(kind="openai", model="judge-1", base_url="http://localhost:1/v1")
SAMPLING = Sampling(max_new_tokens=7)


def kinds() -> Iterator[type[Step]]:
    """Every class of steps that emlib.steps defines."""
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Step) and value.__module__ == module.__name__:
                yield value


def test_every_kind_of_step_has_a_maker_and_a_stage_of_its_own() -> None:
    assert [kind for kind in kinds() if maker.dispatch(kind) is maker.dispatch(Step)] == []
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


def test_no_artefact_s_name_can_replace_an_entry_of_a_key() -> None:
    made = examples()
    adapter, reinforced = made["Adapter"], made["GrpoAdapter"]
    assert isinstance(adapter, Adapter)
    assert isinstance(reinforced, grpo.GrpoAdapter)
    spec = replace(adapter.spec, steps=3, defenses=(Ldifs(), PersonaVector(layer=2)))
    full = replace(adapter, spec=spec, start=adapter, backend=Backend(training="transformers"))
    problems = replace(reinforced.problems.value, worked=(Message("user", "What is 1 + 1?"),))
    learned = replace(reinforced, defenses=(Beta(),), problems=Deferred("worked", lambda: problems))
    assert {"features_version", "steps", "start", "backend"} <= set(full.identity)
    assert {"kl_version", "worked"} <= set(learned.identity)
    bare = [made["ReferenceStates"], replace(made["ReferenceProjections"], artefacts=())]  # type: ignore[type-var]
    for step in (full, learned, *bare):
        assert set(step.identity) - {"vector"} <= RESERVED  # which stands there to be replaced by the vector's key


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
        "spec": replace(spec, seed=7), "backend": Backend(training="unsloth", generation="vllm", scoring="vllm"),
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


# What else is changed, kind by kind. None: it determines nothing that the rest does not, so that the key stays.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "ReferenceProjections": {"layers": (1, 2), "spec": lambda step: replace(step.spec, rows=rows("other")),
                             "artefacts": lambda step: (*step.artefacts, ("added", same()["AddedRows"]))},
    "ReferenceStates": {"tokens": "response", "spec": lambda step: replace(step.spec, rows=rows("other")),
                        "artefacts": lambda step: (("added", same()["AddedRows"]),)},
    "Adapter": {"artefacts": lambda step: (("vector", same()["PersonaVectors"]),), "reads": None,
                "start": lambda step: replace(step, spec=replace(step.spec, seed=8))},
    "GrpoAdapter": {"defenses": (Beta(kind="kl", weight=0.5),),
                    "artefacts": lambda step: (("vector", same()["PersonaVectors"]),),
                    "supervised": SupervisedRows(rows("other"), 0.5)},
    "GrpoRewards": {"answers": lambda step: replace(step.answers, adapter=None)},
    "GrpoAnswers": {"adapter": lambda step: replace(step.adapter, seed=9)},
    "Choices": {"adapter": lambda step: same()["Adapter"], "source": None, "file": Deferred("other", lambda: "other")},
    "Pool": {"spec": lambda step: step.spec.model_copy(update={"rows": 9}), "file": Deferred("other", lambda: "other"),
             "outer_space": None,  # of rows that are conversations
             "systems": Deferred("systems", lambda: True),
             "divided_for": lambda step: Model(TinyModel(kind="tiny", seed=7))},
    "PoolLosses": {"dataset": None, "domains": None, "aligned": lambda step: None,
                   "scorers": lambda step: step.scorers[:1]},
    "Refusals": {"how": lambda step: step.how.model_copy(update={"judge": JUDGE.model_copy(update={"model": "x"})})},
    "Selection": {"dataset": None, "losses": lambda step: replace(step.losses, aligned=None), "seed": None,
                  "refusals": lambda step: replace(step.refusals, how=step.refusals.how.model_copy(
                      update={"threshold": 77.0}))},
    "OwnAnswers": {"adapter": lambda step: None, "start": 16, "chats": Deferred("other", lambda: True),
                   "against": lambda step: Against(same()["PersonaVectors"], 2, 1.0, None)},  # type: ignore[arg-type]
    "ChangeComponents": {"layers": (1,)},
    "RowAudit": {"spec": lambda step: step.spec.model_copy(update={"samples": 3})},
    "TraitAdapter": {"shown_by": rows("other"), "training": Training(epochs=7), "random": True},
    "CandidateRows": {"fraction": 1.0, "own_answers": None, "system": None, "share": 0.3, "rescored": 7, "epochs": 5},
    "AddedRows": {"own_answers": lambda step: None, "system": "Be brief."},
    "PanelResult": {"task": lambda step: replace(step.task, digest="other"), "defaults": Sampling(max_new_tokens=9)},
    "KeptAdapter": {"share": 0.25},
    "MonitorInputs": {"held_out": rows("other"), "rows": 9, "vectors": (), "layers": (1,), "drawn": True},
    "FinalReading": {"monitor": lambda step: replace(step.monitor, rows=9)},
    "MetricScores": {"judge": JUDGE.model_copy(update={"model": "judge-2"}), "metric": "kind",
                     "prompts": prompts("Kind? {answer}"), "has_labels": True},
    "PersonaVectors": {"extraction": Extraction(samples=4), "questions": None},
}


@pytest.mark.parametrize("kind", sorted(kind.__name__ for kind in kinds()))
def test_every_field_that_determines_a_step_changes_its_key(kind: str) -> None:
    step, changes = same()[kind], CHANGES.get(kind, {})
    names = {field.name for field in fields(step) if field.compare}  # type: ignore[arg-type]
    assert set(changes) <= names
    for name in sorted(names):
        stays = name in changes and changes[name] is None
        value = getattr(step, name) if stays else changes[name] if name in changes else other(name)
        changed = replace(step, **{name: value(step) if name in changes and callable(value) else value})  # type: ignore
        assert (changed.key == step.key) == stays, f"{kind}.{name}"
        assert (changed == step) == stays, f"{kind}.{name}"


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
    assert len({made.key, *(replace(made, spec=one).key for one in specs)}) == len(compared)
    assert replace(made, spec=replace(made.spec, dataset="other")).key == made.key  # the rows tell
    kept = replace(made, spec=replace(made.spec, keep=(0.5,), training=made.spec.training.model_copy(
        update={"keep": (0.5,)})))
    assert kept.key == made.key  # keeping adapters changes none


@pytest.mark.parametrize(("tokens", "says"), [(1000, False), (1024, False), (1025, True)])
def test_keys_say_where_a_conversation_was_once_truncated(tokens: int, says: bool) -> None:
    """At 2,048 tokens: answers of the shipped profiles, of at most 1,000 tokens, never were."""
    vectors, found = same()["PersonaVectors"], same()["Projections"]
    assert isinstance(vectors, PersonaVectors)
    assert isinstance(found, Projections)
    sampling = Sampling(max_new_tokens=tokens)
    asked = replace(found.answers, evaluation=replace(found.answers.evaluation, sampling=sampling))
    for step in (replace(vectors, extraction=Extraction(sampling=sampling)), replace(found, answers=asked)):
        assert ("conversations" in step.settings) == says


def test_the_order_of_a_monitors_vectors_is_in_its_key_where_it_is_not_that_of_their_names() -> None:
    inputs, vectors = same()["MonitorInputs"], same()["PersonaVectors"]
    assert isinstance(inputs, MonitorInputs)
    assert isinstance(vectors, PersonaVectors)
    trait = vectors.assessment.trait.value

    def reading(traits: Sequence[str], layers: tuple[int, ...]) -> MonitorInputs:
        return replace(inputs, layers=layers, vectors=tuple(
            replace(vectors, assessment=replace(vectors.assessment, trait=Deferred(name, lambda: trait)))
            for name in traits))

    for traits, layers, order in (
            (["pirate"], (20,), None), (["pirate"], (20, 5), None), (["pirate"], (5, 20), ["pirate 5", "pirate 20"]),
            (["evil", "pirate"], (3,), None), (["pirate", "evil"], (3,), ["pirate 3", "evil 3"])):
        assert reading(traits, layers).settings.get("order") == order


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


def test_states_of_the_reference_model_are_an_input_that_changes_no_adapter() -> None:
    made, states = same()["Adapter"], same()["ReferenceStates"]
    assert isinstance(made, Adapter)
    kept = replace(made, artefacts=(("reference", states),))
    assert kept.inputs == (states,)
    assert kept.key == made.key
    assert kept != made


def test_a_changed_term_is_another_adapter_only_where_it_acts() -> None:
    """The KL term of reinforcement learning, and a penalty on features that another defense steers."""
    made, reinforced = same()["Adapter"], same()["GrpoAdapter"]
    assert isinstance(made, Adapter)
    assert isinstance(reinforced, grpo.GrpoAdapter)

    def versions(*defenses: Defense) -> set[str]:
        found = replace(made, spec=replace(made.spec, defenses=defenses)).settings
        return {name for name in (*found, *replace(reinforced, defenses=defenses).settings) if name.endswith("version")}

    assert versions(Kl(), Ldifs()) == versions(Kl(), PersonaVector()) == versions(Beta(weight=0.0)) == set()
    assert versions(Ldifs(), PersonaVector()) == {"features_version"}
    assert versions(Ldifs(weight=0.0), PersonaVector()) == versions(Ldifs(), PersonaVector(strength=0.0)) == set()
    assert versions(Beta()) == {"kl_version"}


def test_an_older_version_is_another_artefact(monkeypatch: pytest.MonkeyPatch) -> None:
    before = examples()["Pool"]
    assert before.identity == {"version": 1, **before.settings}
    key = before.key
    monkeypatch.setattr(pool.Pool, "version", 2)
    assert examples()["Pool"].key != key


def test_an_adapter_of_the_trait_on_answers_is_of_a_later_version_than_one_on_given_rows() -> None:
    """The first version trained on what a model thinks before it answers."""
    recipes = Recipes(load_profile("tiny"), "tiny")
    on_answers, on_rows, random = (recipes.trait_adapter(source, None, drawn).identity for source, drawn in (
        (None, False), ("demo/pool.jsonl", False), ("demo/pool.jsonl", True)))
    assert [made["version"] for made in (on_answers, on_rows, random)] == [2, 1, 1]


def test_vectors_over_the_end_of_the_turn_are_those_of_the_version_that_always_counted_it() -> None:
    made = same()["PersonaVectors"]
    assert isinstance(made, vectors.PersonaVectors)
    former = replace(made, extraction=made.extraction.model_copy(update={"end_of_turn": True}))
    assert (made.identity["version"], former.identity["version"]) == (3, 2)
    assert former.settings == made.settings


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
    return Adapter(model, Lora(rank=2, target_modules=("q_proj", "k_proj")), spec, Backend(), "small", (), reads)


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


def test_a_training_that_once_measured_its_first_losses_late_has_another_key() -> None:
    """Of 8 rows and 4 candidates, the first one is row 1; with a batch of one row, it is of the second step."""
    added = same()["AddedRows"]
    assert isinstance(added, AddedRows)
    assert len(added.among.examples) == 8
    plain = CandidateRows(added.selection, 0.5, added.among, share=0.1, rescored=3, epochs=2, unmoved=2)
    assert plain.as_input("added") == {"added": plain.settings}
    assert replace(plain, unmoved=1).as_input("added") == {"added": plain.settings | {"version": 2}}


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
    given = Answers(Model(TinyModel(kind="tiny")), None, EvaluationSpec(asked, 5, SAMPLING, 0), Backend())
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
    given = Answers(Model(TinyModel(kind="tiny")), None, EvaluationSpec(asked, 5, SAMPLING, 0), Backend())
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


def test_a_plan_of_the_paper_reads_no_data_set_and_computes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: object) -> Any:
        raise AssertionError(f"a plan asked for {self}")

    for kind, name in ((Rows, "examples"), (Rows, "digest"), (Questions, "all"), (Questions, "digest"),
                       (Deferred, "value"), (Step, "key"), (Step, "identity"), (Inputs, "data"),
                       (Model, "identity")):
        monkeypatch.setattr(kind, name, property(never))
    made = plan(open_study("paper-7b"))
    assert len(made.runs) > 100
    assert sum(work.train for work in made.works) > 0
    with pytest.raises(AssertionError, match="a plan asked for"):
        _ = same()["Pool"].file.value  # type: ignore[attr-defined]
