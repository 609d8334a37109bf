"""Recipes turn a profile into its steps: each run's adapter, answers and verdicts, and what they are made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from emlib.config import JudgeRefusals, JudgeSpec, Monitor, Profile, Sampling, Training, trait_of
from emlib.config.persistence import Attack
from emlib.config.training import Every
from emlib.core import digests
from emlib.core.defense import Defense, acting, needs_of
from emlib.core.errors import DataError, ProfileError, SourceError
from emlib.core.records import Example
from emlib.core.step import Step
from emlib.data.download import nothing_downloaded
from emlib.data.lazy import Current, Deferred, Rows
from emlib.data.sizes import Sizes
from emlib.data.sources import locate
from emlib.evaluation.panel import PanelTask
from emlib.judging.judges import reads, rubrics
from emlib.judging.rubrics import OURS, file_rubrics, metric_prompts
from emlib.steps.adapter import Adapter
from emlib.steps.added import AddedRows, Against, CandidateRows, OwnAnswers
from emlib.steps.answers import Answers, MetricScores, SecondVerdicts, Verdicts
from emlib.steps.inputs import Inputs, Side, pool_form
from emlib.steps.measures import Choices, HeldOutLosses, PanelResult, Projections, RowAudit
from emlib.steps.monitor import FinalReading, Monitored, MonitorInputs
from emlib.steps.needs import ChangeComponents, ReferenceProjections, ReferenceStates, TraitAdapter
from emlib.steps.pool import Choose, Pool, PoolLosses, Refusals, Selection
from emlib.steps.scorers import AdapterFolder, adapter_folder, refuse_seen
from emlib.steps.specs import Assessment, EvaluationSpec, Model, TrainingSpec, first
from emlib.steps.vectors import PersonaVectors, SteeredAnswers


class Recipes:
    """The steps of one profile; `inputs` has what they start from.

    What defenses request is described in `emlib.core.hooks.Recipes`.
    """

    def __init__(self, profile: Profile, study: str) -> None:
        self.profile, self.study, self.inputs = profile, study, Inputs(profile, study)

    @cached_property
    def model(self) -> Model:
        return Model(self.profile.model)

    # --- judges

    @cached_property
    def assessment(self) -> Assessment:
        """The profile's judge with its rubrics."""
        return self._assessment(self.profile.judge, self.profile.evaluation.general)

    def _assessment(self, judge: JudgeSpec, source: str) -> Assessment:
        """Return a judge with the rubrics of a question file, or the trait's."""
        return Assessment(judge, self.inputs.trait,
                          Deferred(source, lambda: rubrics(judge, self.inputs.trait.value, locate(source))),
                          lambda sizes: self._rubric(judge, source, sizes))

    def _rubric(self, judge: JudgeSpec, source: str, sizes: Sizes) -> float:
        """Estimate the mean length of a judge prompt without question and answer, in characters."""
        if not reads(judge):
            return 0.0
        if judge.rubric == "questions":
            return sizes.source(source).rubric or OURS.length
        if judge.rubric != "trait":
            return file_rubrics(Path(judge.rubric)).others.length
        asked = self.inputs.extracted(self.inputs.stated_trait).size(sizes)
        return ((asked.rubric or len(OURS.alignment)) + len(OURS.coherence)) / 2

    # --- persona vectors

    def vector(self) -> PersonaVectors:
        return PersonaVectors(self.model, self.assessment, self.profile.backend.generation, self.profile.extraction,
                              self.inputs.extracted(self.inputs.stated_trait),
                              self.inputs.extracted_from(self.inputs.stated_trait))

    def vector_of(self, name: str) -> PersonaVectors:
        """Return the step of another trait's persona vectors, extracted as the study's own."""
        trait = trait_of(self.profile, name)
        return replace(self.vector(), questions=self.inputs.extracted(trait), stated=self.inputs.extracted_from(trait),
                       assessment=replace(self.assessment, trait=self.inputs.completed(trait)))

    def steered(self, layer: int, strength: float) -> SteeredAnswers:
        vectors, at = (self.vector(), layer) if strength else (None, None)
        probe = self.profile.probe
        return SteeredAnswers(self.model, vectors, at, strength, self.inputs.first_general(probe.questions),
                              probe.sampling, self.assessment)

    # --- adapters

    def narrow(self, dataset: str, side: Side, defenses: tuple[Defense, ...], seed: int,
               method: str | None = None) -> TrainingSpec:
        """Specify fine-tuning on the aligned or the misaligned rows of a narrow data set; `method` names its runs."""
        rows = Rows(f"{dataset} {side}", lambda: getattr(self.inputs.data(dataset), side).train,
                    lambda sizes: self.inputs.stated_size(dataset, side, sizes)[0])
        spec = self.fine_tuning(dataset, rows, defenses, self.profile.training, seed)
        held_out = self.inputs.held_out_rows(dataset, side, unasked=True)
        spec = replace(spec, keep=self.kept(spec, method), held_out=held_out)
        return replace(spec, monitor=self.monitor(spec, method))

    def kept(self, spec: TrainingSpec, method: str | None) -> tuple[float, ...]:
        """Return the shares of the steps after which a method's adapters are kept; None is no method's.

        Raises:
            ProfileError: adapters are kept every so many steps, and one of the profile's data sets has no more steps
                than that. A scorer's may have fewer, because it is in no trajectory.
        """
        along = self.profile.evaluation.trajectory
        if along is None or method is None or method not in (along.methods or (method,)):
            return ()
        training = self.profile.training
        if not isinstance(training.keep, Every):
            return training.kept(0)
        rows = self._count(spec.plain.rows)
        shares = training.kept(rows)
        if not shares and spec.dataset in self.profile.datasets:
            raise ProfileError(
                f"Profile '{self.study}': training.keep keeps an adapter every {training.keep.every} steps, and plain "
                f"fine-tuning on {spec.dataset} ({rows} rows) has {training.plain_steps(rows)}, so that none is kept "
                "on the way. Keep one in fewer steps, or set evaluation.trajectory to null.")
        return shares

    @staticmethod
    def _count(rows: Rows) -> int:
        """Return the number of rows; in a plan, which downloads nothing, the stated one if they cannot be read."""
        try:
            return rows.count
        except (SourceError, DataError):
            if not nothing_downloaded.is_set:
                raise
            return rows.size(Sizes()).rows

    def monitor(self, spec: TrainingSpec, method: str | None) -> Monitored | None:
        """Return the monitor of a method's trainings; None if they have none."""
        settings = self.profile.monitor
        if settings is None or method is None or method not in (settings.methods or (method,)):
            return None
        takes_rows = any(isinstance(step, AddedRows) for step in needs_of(spec.defenses, self, spec).values())
        # Rows of the pool that are trained on have no held-out loss.
        pool = self.profile.pool is not None and not takes_rows
        return Monitored(self.monitor_inputs(spec, settings, pool=pool), settings)

    def monitor_inputs(self, spec: TrainingSpec | None, settings: Monitor, *, pool: bool = False) -> MonitorInputs:
        training = self.inputs.grpo.training if spec is None else spec.training
        inputs = MonitorInputs(self.model, None if spec is None else spec.held_out, settings.rows,
                               training.max_seq_length, pool=self.pool if pool else None,
                               drawn=settings.answers == "drawn")
        if not settings.layers:
            return inputs
        asked = EvaluationSpec(self.inputs.first_general(settings.questions), 1,
                               Sampling(max_new_tokens=settings.tokens), 0)
        others = (self.vector_of(name) for name in settings.traits)
        vectors = tuple((one.assessment.trait.name, one) for one in (self.vector(), *others))
        return replace(inputs, answers=self.answers(None, asked), vectors=vectors, layers=settings.layers)

    def final_reading(self, spec: TrainingSpec, inputs: MonitorInputs) -> FinalReading:
        return FinalReading(self.model, self._plain(spec), inputs)

    def _plain(self, spec: TrainingSpec) -> Adapter:
        """Return the adapter without defenses, as `misaligned` keeps and reads it: both are one step."""
        method = "misaligned" if self.inputs.is_narrow(spec.dataset) else None
        plain = replace(spec.plain, keep=self.kept(spec, method), monitor=self.monitor(spec.plain, method))
        return self.adapter(plain, f"{spec.dataset} · without defenses · seed {spec.seed}")

    def fine_tuning(self, dataset: str, every: Rows, defenses: tuple[Defense, ...], settings: Training,
                    seed: int) -> TrainingSpec:
        """Specify fine-tuning on `train_rows` of these rows, changed by those defenses that change data."""
        changed = "".join(f", {defense.kind} {defense.model_dump(exclude_defaults=True) or ''}".rstrip()
                          for defense in defenses if defense.has("change_rows"))
        plain = Rows(every.title, lambda: self.inputs.trained_on(dataset, every.examples, settings.train_rows),
                     lambda sizes: first(every.size(sizes), settings.train_rows))
        rows = Rows(every.title + changed, lambda: self.defended(plain.examples, defenses), plain.size)
        return TrainingSpec(dataset, rows, defenses, settings, seed, plain)

    def defended(self, rows: tuple[Example, ...], defenses: Iterable[Defense]) -> tuple[Example, ...]:
        for defense in defenses:
            rows = tuple(defense.change_rows(rows, self.inputs.stated_trait))
        return rows

    def adapter(self, spec: TrainingSpec, name: str) -> Adapter:
        compare = [defense for defense in acting(spec.defenses) if defense.runs_reference]
        on_data = any(defense.penalises_data for defense in compare)
        return Adapter(self.model, self.profile.lora, spec, self.profile.backend.training, name,
                       tuple(needs_of(spec.defenses, self, spec).items()),
                       "all" if on_data else "added" if compare else "none")

    def reference(self, spec: TrainingSpec, tokens: Literal["all", "response"]) -> ReferenceStates:
        return ReferenceStates(self.model, spec, self._added(spec), tokens)

    def reference_projections(self, spec: TrainingSpec, layers: tuple[int, ...]) -> ReferenceProjections:
        return ReferenceProjections(self.model, spec, (("vector", self.vector()), *self._added(spec)), layers)

    def _added(self, spec: TrainingSpec) -> tuple[tuple[str, Any], ...]:
        """Return what the defenses need that add rows to the training, by name."""
        adding = [defense for defense in spec.defenses if defense.has("added")]
        return tuple(needs_of(adding, self, spec).items())

    def attacked(self, attack: Attack, dataset: str, start: Adapter | None, seed: int, name: str) -> Adapter:
        """Return the step of an adapter that is trained further, as the profile's section `persistence` says.

        `start` None is the untrained model, whose new adapter is trained.
        """
        section = self.profile.persistence
        assert section is not None, "an attack is one of the profile's"
        training = self.profile.training.model_copy(update={"scheduler": "constant", "warmup_steps": 0})
        changes: dict[str, Any] = {"training": training, "steps": section.steps, "keep": section.kept}
        if attack == "longer":
            assert start is not None, "the untrained model has no training that could go on"
            # What acts on the finished adapter has acted on this one, and would project it a second time.
            defenses = tuple(defense for defense in start.spec.defenses if not defense.acts_after())
            return replace(start, spec=replace(start.spec, defenses=defenses, **changes), name=name, start=start)
        spec = self.narrow(dataset, "aligned" if attack == "benign" else "misaligned", (), seed)
        if attack == "benign" and section.benign == "pool":
            rows = self.inputs.source_rows(self.inputs.pool_spec.source, section.steps * training.rows_per_step)
            spec = replace(spec, rows=rows, plain_rows=rows)
        return replace(self.adapter(replace(spec, **changes), name), start=start)

    def baseline(self, dataset: str, side: Side, seed: int) -> Adapter:
        """Return the adapter without defenses of the method that is called as the rows that it is trained on."""
        return self.adapter(self.narrow(dataset, side, (), seed, side), f"{dataset} · {side} · seed {seed}")

    def components(self, spec: TrainingSpec, layers: tuple[int, ...], on: Literal["data", "pool"]) -> ChangeComponents:
        plain = self._plain(spec)
        rows = plain.spec.rows if on == "data" else self.pool_rows(
            spec.plain, fraction=1.0, choose="random", answers="pool")
        return ChangeComponents(self.model, plain, layers, rows, spec.training.max_seq_length)

    def trait_adapter(self, source: str | None, rows: int | None, random: bool) -> TraitAdapter:
        shown_by = self.vector() if source is None else self.inputs.source_rows(source, rows)
        return TraitAdapter(self.model, self.profile.lora, shown_by, self.profile.training,
                            self.profile.extraction.seed, random)

    # --- audits

    def row_audit(self, spec: TrainingSpec) -> RowAudit:
        return self.audit_of(spec.plain.rows, None)

    def audit_of(self, rows: Rows | AddedRows, count: int | None) -> RowAudit:
        """Return the step of the audit of `count` rows, or of all (None)."""
        return RowAudit(self.model, rows, self.vector(), self.inputs.section("audit"), self.profile.backend.generation,
                        self.profile.training.max_seq_length, count)

    # --- interleaving

    def pool_rows(self, spec: TrainingSpec, *, fraction: float, choose: Choose, answers: str) -> AddedRows:
        rows = AddedRows(self.selection(spec.dataset, choose, spec.seed), fraction, spec.rows)
        if answers == "pool":
            return rows
        pool = self.inputs.pool_spec
        aligned = pool.on_policy.model == "aligned"
        return self._answered(rows, self.baseline(spec.dataset, "aligned", pool.seed) if aligned else None)

    def virtuous_rows(self, spec: TrainingSpec, *, fraction: float, choose: Choose, layer: int, strength: float,
                      checked: bool) -> AddedRows:
        rows = self.pool_rows(spec, fraction=fraction, choose=choose, answers="pool")
        against = Against(self.vector(), layer, strength, self.assessment if checked else None)
        return self._answered(rows, None, against)

    def candidate_rows(self, spec: TrainingSpec, *, fraction: float, share: float, rescored: int) -> CandidateRows:
        return CandidateRows(self.selection(spec.dataset, "random", spec.seed), fraction, spec.rows, share=share,
                             rescored=rescored, epochs=spec.training.epochs)

    def wrapped_rows(self, spec: TrainingSpec, fraction: float, prompt: str | None) -> AddedRows:
        rows = self._answered(self.pool_rows(spec, fraction=fraction, choose="random", answers="pool"), None)
        return replace(rows, system=prompt or self.inputs.stated_trait.inoculation_prompt)

    def _answered(self, rows: AddedRows, adapter: Adapter | None, against: Against | None = None) -> AddedRows:
        """Return rows of the pool with the model's own answers."""
        pool, backend = self.inputs.pool_spec, self.profile.backend.generation
        return replace(rows, own_answers=OwnAnswers(
            self.model, adapter, rows.selection, pool.on_policy.sampling, pool.seed,
            backend if against is None else "transformers", lambda sizes: rows.size(sizes).rows, against=against))

    @cached_property
    def pool(self) -> Pool:
        spec = self.inputs.pool_spec
        form = pool_form(spec.source, text=spec.form == "text")
        return Pool(spec, form, Current(spec.source, lambda: digests.of_unchanged_file(locate(spec.source))),
                    self.model if form == "text" else None)

    def selection(self, dataset: str, choose: Choose, seed: int) -> Selection:
        """Return the order in which the pool's rows are interleaved with `dataset`, by `seed` if it is random."""
        scored = choose != "random"
        judge = self.inputs.pool_spec.refusals if choose == "score_without_refusals" else None
        return Selection(
            self.model, self.pool, dataset if scored else "", choose, self.losses(dataset) if scored else None,
            Refusals(self.pool, judge) if isinstance(judge, JudgeRefusals) else None,
            self.profile.training.max_seq_length, None if scored else seed)

    def losses(self, dataset: str) -> PoolLosses:
        """Return the step of the pool's losses under the aligned model, and scorers that never saw `dataset`."""
        pool = self.inputs.pool_spec
        try:
            scorers = pool.scorers_for(dataset, self.profile.datasets)
        except ValueError as error:
            raise ProfileError(f"Profile '{self.study}', pool: {error}.") from error
        defended = Deferred(dataset, lambda: self.inputs.defended(dataset))
        own = {scorer.domain: self.baseline(scorer.domain, "misaligned", pool.seed) for scorer in scorers
               if scorer.folder is None}
        aligned = self.baseline(dataset, "aligned", pool.seed) if pool.aligned == "aligned" else None
        return PoolLosses(
            self.model, self.pool, dataset, aligned,
            tuple(own[scorer.domain] if scorer.folder is None else AdapterFolder(adapter_folder(scorer), defended)
                  for scorer in scorers), tuple(scorer.domain for scorer in scorers),
            self.profile.training.max_seq_length, self.profile.backend.scoring,
            partial(refuse_seen, {domain: made.spec.rows for domain, made in own.items()}, defended))

    # --- evaluation

    def answers(self, adapter: Step | None, evaluation: EvaluationSpec) -> Answers:
        return Answers(self.model, adapter, evaluation, self.profile.backend.generation)

    def verdicts(self, answers: Answers, which: str = "general") -> Verdicts:
        further = self.profile.evaluation.sets.get(which)
        verdicts = Verdicts(answers, self._assessment_of_set(which))
        return verdicts if further is None else replace(verdicts, thresholds=further.thresholds)

    def _assessment_of_set(self, name: str) -> Assessment:
        evaluation, usual = self.profile.evaluation, self.profile.judge
        judge = evaluation.judge_of(name, usual)
        if name not in evaluation.sets and judge == usual:
            return self.assessment
        return replace(self._assessment(judge, self.inputs.source_of(name)), is_main=judge == usual)

    def metric_scores(self, answers: Answers, which: str) -> dict[str, MetricScores]:
        """Return the steps of the scores on each metric of the question set `which`, by the metric's name."""
        further = self.profile.evaluation.sets.get(which)
        if further is None or not further.metrics:
            return {}
        judge = self.profile.evaluation.judge_of(which, self.profile.judge)
        assert judge.kind != "lexicon", "refused when the profile was loaded"

        def prompts(name: str) -> dict[str, str]:
            one = further.metrics[name].prompt
            return metric_prompts(locate(further.source), name) if one is None else {
                question.id: one for question in answers.evaluation.questions.all}

        return {name: MetricScores(answers, judge, name, Deferred(f"{which}.{name}", partial(prompts, name)),
                                   bool(metric.labels))
                for name, metric in further.metrics.items()}

    def second_verdicts(self, answers: Answers) -> SecondVerdicts:
        second = self.inputs.section("second_judge")
        return SecondVerdicts(answers, self._assessment(second.judge, self.profile.evaluation.general), second.answers)

    def projections(self, answers: Answers) -> Projections:
        layer = self.profile.evaluation.projection_layer
        assert layer is not None, "projections need evaluation.projection_layer"
        return Projections(answers, self.vector(), layer)

    def choices(self, adapter: Step | None, source: str) -> Choices:
        return Choices(self.model, adapter, source, Current(source, lambda: digests.of_unchanged_file(locate(source))),
                       self.profile.evaluation.choice_questions)

    def held_out(self, dataset: str, adapter: Step | None) -> HeldOutLosses:
        return HeldOutLosses(self.model, adapter, self.inputs.held_out_rows(dataset, "misaligned"),
                             self.profile.training.max_seq_length)

    def panel(self, adapter: Step | None, task: PanelTask) -> PanelResult:
        return PanelResult(self.model, adapter, task, self.profile.evaluation.sampling, self.profile.backend.generation)
