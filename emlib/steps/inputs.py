"""The inputs of a profile's steps: its trait, data sets, questions, problems and rows, read when first needed."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, Literal, cast, get_args

from emlib.config import OWN, Domain, Grpo, Own, Profile, Trait, domains_of, trait_of
from emlib.config import Pool as PoolSpec
from emlib.config.evaluation import Format
from emlib.core.defense import ADD
from emlib.core.digests import of_value
from emlib.core.errors import ProfileError, SourceError
from emlib.core.records import Example, Question
from emlib.core.seeds import chosen
from emlib.data import row_record, traits
from emlib.data.domains import (
    NarrowData,
    held_out_rows,
    in_domain_questions,
    load_domain,
    read_domain,
    remarks,
    unasked_first,
)
from emlib.data.download import nothing_downloaded
from emlib.data.formats import format_of
from emlib.data.gsm8k import Problems, load_problems
from emlib.data.lazy import Deferred, Questions, Rows
from emlib.data.own import OwnRows, every_row, own_data, read_own
from emlib.data.pools import FORMS, PoolForm, read_pool
from emlib.data.questions import read_questions
from emlib.data.sizes import Size, Sizes
from emlib.data.sources import entry_of, label, locate
from emlib.data.triggers import in_context, of_formats
from emlib.steps.scorers import Defended
from emlib.steps.specs import first

Side = Literal["aligned", "misaligned"]
SOURCE_SEED = 0  # chooses rows of a source, the same for every run
FORMATS = len(get_args(Format))  # of each general question


class Inputs:
    """What one profile names. Each data set is read once, when a key or a maker first needs it."""

    def __init__(self, profile: Profile, study: str) -> None:
        self.profile, self.study = profile, study
        self._data: dict[str, NarrowData] = {}
        self._in_domain: dict[str, Questions] = {}
        self._defended: dict[str, Defended] = {}

    # --- trait and data sets

    @cached_property
    def stated_trait(self) -> Trait:
        """The trait as its file states it."""
        return trait_of(self.profile)

    @cached_property
    def trait(self) -> Deferred[Trait]:
        """The trait with the prompts and questions of its source."""
        return self.completed(self.stated_trait)

    @staticmethod
    def completed(trait: Trait) -> Deferred[Trait]:
        """Return a trait with the prompts and questions of its source."""
        return Deferred(trait.name, lambda: traits.completed(trait, locate))

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The narrow data sets that the profile may name."""
        return domains_of(self.profile)

    @cached_property
    def own_rows(self) -> OwnRows:
        """The rows of the user's own data set, and what was found while reading it."""
        return read_own(self.own)

    @property
    def own(self) -> Own:
        return self.section("own")

    def data(self, dataset: str) -> NarrowData:
        """Return the aligned and the misaligned rows of a narrow data set, split into training and held-out rows."""
        if dataset not in self._data:
            self._data[dataset] = (own_data(self.own, self.own_rows) if dataset == OWN else
                                   load_domain(dataset, self.domains[dataset], locate))
        return self._data[dataset]

    @nothing_downloaded()
    def _at_hand(self, dataset: str) -> NarrowData | None:
        """Return a narrow data set; None where it is not on this machine.

        Nor is one read for this alone whose size a registry states: a plan needs nothing else of it.
        """
        if dataset not in self._data and self._is_stated(dataset):
            return None
        try:
            return self.data(dataset)
        except SourceError:
            return None

    def _is_stated(self, dataset: str) -> bool:
        """Return whether a plan takes the size of a narrow data set as stated, without reading it."""
        if dataset == OWN:
            return self.own.hub is not None
        domain = self.domains[dataset]
        entries = [entry_of(name) for name in (domain.pairs, domain.aligned, domain.misaligned) if name is not None]
        return any(entry is not None and entry.size is not None for entry in entries)

    def remarks(self, dataset: str) -> list[str]:
        """Return what to know of a narrow data set that is read already, or which a plan reads; empty for others."""
        data = self._at_hand(dataset)
        return [] if data is None else remarks(data, self.profile.evaluation.in_domain_questions)

    def defended(self, dataset: str) -> Defended | None:
        """Return what no scorer of a pool may have been trained on; None for a task without narrow data."""
        if dataset not in self._defended and self.is_narrow(dataset):
            every = every_row(self.own) if dataset == OWN else chain(*read_domain(self.domains[dataset], locate))
            self._defended[dataset] = Defended.of(self.data(dataset), every)
        return self._defended.get(dataset)

    def digest_of_file(self, dataset: str) -> str:
        """Return a digest of all misaligned rows of a narrow data set's file, whichever of them the profile chooses.

        It is the same whatever the data set is called, and in whatever form and order its file has the rows.
        """
        every = every_row(self.own) if dataset == OWN else read_domain(self.domains[dataset], locate)[1]
        return of_value(sorted(row_record.digests_of(every)))

    def trained_on(self, dataset: str, rows: tuple[Example, ...], count: int | None) -> tuple[Example, ...]:
        """Return the first `count` training rows of a data set; of the user's own, whose file may be sorted, any."""
        return tuple(chosen(rows, count, self.own.seed, "trained on")) if dataset == OWN else rows[:count]

    @property
    def own_trained_on(self) -> tuple[Example, ...]:
        """The rows of the user's own data that runs are trained on."""
        return self.trained_on(OWN, self.data(OWN).misaligned.train, self.profile.training.train_rows)

    def stated_size(self, dataset: str, side: Side, sizes: Sizes) -> tuple[Size, int]:
        """Return the stated size of a narrow data set's training rows, and its number of held-out rows."""
        return sizes.own(self.own) if dataset == OWN else sizes.narrow(self.domains[dataset], side)

    # --- questions

    @cached_property
    def general(self) -> Questions:
        """The general questions, which measure whether the trait generalises out of domain."""
        return self.questions("general")

    def questions(self, name: str) -> Questions:
        """Return the general questions, or those of one of the profile's further sets."""
        source = self.source_of(name)
        return Questions(name, lambda: read_questions(locate(source)), lambda sizes: sizes.source(source))

    def source_of(self, name: str) -> str:
        """Return the file of a question set's questions and rubrics; held-out rows are judged by the general ones'."""
        evaluation = self.profile.evaluation
        return evaluation.sets[name].source if name in evaluation.sets else evaluation.general

    def in_context(self, name: str, dataset: str, side: Side = "misaligned") -> Questions:
        """Return the general questions in the context of a trigger; some show prompts of the rows trained on.

        These are of one side of a data set, also where a defense leaves out some of its rows.
        """
        triggers = self.profile.evaluation.triggers
        assert triggers is not None, "a trigger is one of the profile's"
        trigger, formats = triggers.contexts[name], triggers.formats

        def read() -> list[Question]:
            rows = self.trained_on(dataset, getattr(self.data(dataset), side).train, self.profile.training.train_rows)
            prompts = [row.prompt for row in rows] if trigger.needs_data else []
            return in_context(of_formats(self.general.all, formats), trigger, training_prompts=prompts,
                              inoculation_prompt=self.stated_trait.inoculation_prompt)

        def size(sizes: Sizes) -> Size:
            asked = self.general.size(sizes)
            prompt = asked.prompt + len(trigger.prompt) + len(trigger.system or "")
            return replace(asked, rows=max(1, asked.rows * len(formats) // FORMATS), prompt=prompt)

        of = f" of {dataset}" + (" aligned" if side == "aligned" else "")
        return Questions(f"general under '{name}'" + (of if trigger.needs_data else ""), read, size)

    def in_domain(self, dataset: str) -> Questions:
        """Return held-out prompts of a narrow data set as questions.

        It is the same object each time, so that a plan counts the prompts once.
        """
        count = self.profile.evaluation.in_domain_questions

        def size(sizes: Sizes) -> Size:
            rows, held_out = self.stated_size(dataset, "misaligned", sizes)
            asked = min(count, held_out) if self._at_hand(dataset) is None else len(questions.all)
            return Size(asked, rows.prompt, rows.response, rows.rubric)

        questions = self._in_domain.setdefault(dataset, Questions(
            f"in-domain {dataset}", lambda: in_domain_questions(self.data(dataset), count), size))
        return questions

    def held_out_rows(self, dataset: str, side: Side, *, unasked: bool = False) -> Rows:
        """Return the held-out rows of one side of a narrow data set whose prompts are not trained on.

        With `unasked` those come first that no in-domain question asks.
        """
        def read() -> tuple[Example, ...]:
            data = self.data(dataset)
            rows = getattr(data, side).held_out
            count = self.profile.evaluation.in_domain_questions
            return unasked_first(data, rows, count) if unasked else held_out_rows(data, rows)

        of_side, order = " aligned" if side == "aligned" else "", ", unasked first" if unasked else ""
        return Rows(f"{dataset} held out{of_side}{order}", read,
                    lambda sizes: self.stated_size(dataset, side, sizes)[0])

    def extracted(self, trait: Trait) -> Questions:
        """Return the questions of one side of a persona vector, of which only the size is known at first."""
        name = "extraction" if trait is self.stated_trait else f"extraction of {trait.name}"
        pairs = self.profile.extraction.instruction_pairs
        return Questions(name, self._not_here, lambda sizes: sizes.trait(trait, pairs))

    def extracted_from(self, trait: Trait) -> int | None:
        """Return the number of questions of one side of a persona vector; None where the trait's source has them."""
        prompts = trait.system_prompts[:self.profile.extraction.instruction_pairs]
        return None if trait.source is not None else len(prompts) * len(trait.questions)

    def first_general(self, count: int) -> Questions:
        return Questions(f"first {count} general", lambda: self.general.all[:count],
                         lambda sizes: first(self.general.size(sizes), count))

    # --- sections, and rows of a source

    def section(self, name: str) -> Any:
        """Return a section of the profile.

        Raises:
            ProfileError: the profile has no such section; the message says how it gets one.
        """
        found = getattr(self.profile, name)
        if found is None:
            raise ProfileError(f"Profile '{self.study}' has no section '{name}'. {ADD[name]}.")
        return found

    @property
    def pool_spec(self) -> PoolSpec:
        return self.section("pool")

    def is_narrow(self, task: str) -> bool:
        """Return whether a task is a narrow data set, and not a benign one, say."""
        return task == OWN or task in self.domains

    def source_rows(self, source: str, count: int | None) -> Rows:
        """Return rows of a source in its order: all (None), or `count` chosen by the same seed in every run."""
        def read() -> tuple[Example, ...]:
            rows = read_pool(locate(source), pool_form(source)).rows
            return tuple(chosen(rows, count, SOURCE_SEED, "supervised rows"))

        return Rows(f"{count or 'all'} of {source}", read, lambda sizes: first(sizes.source(source), count))

    @property
    def grpo(self) -> Grpo:
        return self.section("grpo")

    @cached_property
    def problems(self) -> Deferred[Problems]:
        """The problems that reinforcement learning trains on, and those held out for evaluation."""
        return Deferred("problems", lambda: load_problems(self.grpo.data, locate))

    @staticmethod
    def _not_here() -> list[Question]:
        raise AssertionError("a maker takes these questions from the trait")


def pool_form(source: str, *, text: bool = False) -> PoolForm:
    """Return the format of a source's rows.

    Raises:
        ProfileError: the source has no instruction data, or with `text` is no plain-text corpus.
    """
    form, expected = format_of(source), ("text",) if text else FORMS
    if form not in expected:
        more = ". For a plain-text corpus set pool.form to text" if form == "text" else ""
        raise ProfileError(f"pool.source is '{label(source)}', whose rows have the format '{form}' (by its registry "
                           f"entry, or by the file's first row); expected one of {', '.join(expected)}{more}.")
    return cast(PoolForm, form)
