"""Interleaving: rows of general instruction data between the fine-tuning rows (3.2), or between RL steps (4.2).

    n + round(f n) rows an epoch;  score(d) = (L_misaligned(d) - L_aligned(d)) / (L_aligned(d) + epsilon)

f is the fraction, n the number of fine-tuning rows, L a row's loss under misaligned models and under the aligned one
(equations 3 to 6). One difference to the paper: the order of the pool is a separate artefact, so that the rows of a 5%
run are among those of a 20% run. Online, the model in training takes the place of the misaligned ones:

    score(d, t) = (L_t(d) - L_0(d)) / (L_0(d) + epsilon)

L_t is the loss at step t, L_0 that before the first step; the rows with the highest scores are next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from emlib.config.words import Factor, Few, Positive, Share
from emlib.core.defense import Defense, GrpoDefense, require
from emlib.core.errors import EmlibError
from emlib.core.files import read_records
from emlib.core.hooks import Artefacts, Candidates, Recipes, Supervision
from emlib.core.records import ADDED, AddedRow, Example
from emlib.data.mixing import rows_to_add
from emlib.data.sources import key_of_source
from emlib.scoring.gap import gap, ranking

ONLINE = ("candidate_tokens", "rescored", "epsilon")  # the options of `choose: online`
VIRTUOUS = ("layer", "strength", "checked")  # the options of `answers: virtuous`


class Alternation(GrpoDefense):
    """Supervised steps between the RL steps (section 4.2): `share` of all optimizer steps, on rows of `source`.

    `source` is any instruction data, as for a pool; `rows` of them are sampled (None: all).
    """

    label: ClassVar = "Interleaving"
    swept: ClassVar = "share"
    null: ClassVar = {"share": 0.0}
    not_in_keys: ClassVar = frozenset({"rows"})

    kind: Literal["interleaving"] = "interleaving"
    source: str
    rows: Positive | None = None
    share: Annotated[float, Field(ge=0, lt=1)] = 0.2

    @property
    def identity(self) -> dict[str, Any]:
        """What store keys contain of it: for a file outside the registry, its content and not its path."""
        found = super().identity
        return found | {"options": found["options"] | {"source": key_of_source(self.source)}}

    @property
    def supervision(self) -> Supervision:
        return Supervision(self.source, self.rows, self.share)


class Interleaving(Defense):
    """Rows of the profile's pool between the fine-tuning rows (section 3.2), `fraction` times as many as these.

    `choose` selects the paper's variant: `random` is Interleaving, `score` is Interleaving+ (equations 5 and 6),
    `score_without_refusals` is Interleaving++. With `answers: on_policy` the model itself answers the pool's prompts,
    with `answers: virtuous` (an outlook of section 7) the base model that is steered against the trait: `strength`
    times the persona vector is subtracted from the output of `layer`. If `checked`, the profile's judge reads these
    answers, and those that it finds misaligned or incoherent are left out; one without a score stays.
    Combined with other defenses: a penalty and a persona vector act on all rows of a step, whatever their origin; an
    inoculation prompt is added to the fine-tuning rows only, because it explains their behaviour.

    `choose: online` takes up an outlook of section 7: the next rows are those whose loss has risen most in the training
    so far, so that no misaligned model is needed. The candidates are rows in random order, until their tokens amount to
    `candidate_tokens` times those of all epochs' fine-tuning rows. At the start all scores are 0, and the random order
    counts; then they are scored `rescored` times, at equal distances. Between two scorings no row is repeated, unless
    more rows are needed than there are candidates.
    """

    label: ClassVar = "Interleaving"
    equation: ClassVar = "round(f n) rows of general instruction data among n"
    origin: ClassVar = "section 3.2, equations 3 to 6; online: section 7"
    swept: ClassVar = "fraction"
    null: ClassVar = {"fraction": 0.0}
    in_grpo: ClassVar = Alternation

    kind: Literal["interleaving"] = "interleaving"
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    choose: Literal["random", "score", "score_without_refusals", "online"] = "random"
    answers: Literal["pool", "on_policy", "virtuous"] = "pool"
    candidate_tokens: Share = 0.15
    rescored: Few = 8
    epsilon: Annotated[float, Field(gt=0, le=1000)] = 0.1
    layer: Few = 20
    strength: Factor = 2.0
    checked: bool = True
    _base: list[float] = PrivateAttr(default_factory=list)  # the candidates' losses before training
    _scores: list[float] = PrivateAttr(default_factory=list)
    _order: list[int] = PrivateAttr(default_factory=list)  # the next one to take first
    _part: int = PrivateAttr(default=0)  # the part of the run that the scores are for

    def _mistakes(self) -> Iterator[str]:
        if self.choose == "online" and self.answers != "pool":
            yield (f"with 'choose: online' the pool's own answers are scored; set answers to pool (it is "
                   f"{self.answers})")
        fields = type(self).model_fields
        changed = [name for name in fields if getattr(self, name) != fields[name].default]
        for option, value, owned in (("choose", "online", ONLINE), ("answers", "virtuous", VIRTUOUS)):
            if getattr(self, option) != value and (more := [name for name in owned if name in changed]):
                yield f"'{more[0]}' belongs to '{option}: {value}', and {option} is {getattr(self, option)}"

    @property
    def data_only(self) -> bool:  # type: ignore[override]  # here an option decides
        """Whether the rows are known before training."""
        return self.choose != "online"

    @property
    def cost(self) -> str:  # type: ignore[override]  # here an option decides
        """The cost of the variant, after section 5.3."""
        return {"random": "in proportion to the rows added",
                "score": "as interleaving, and K + 1 passes over the pool once",
                "score_without_refusals": "as interleaving+; the filter costs next to nothing",
                "online": "as interleaving, and in each run `rescored` + 1 passes over the candidates"}[self.choose]

    @property
    def scored(self) -> bool:
        """Whether misaligned models must score the pool's rows first."""
        return self.choose.startswith("score")

    def _needs_aligned(self, pool: Any) -> bool:
        """Whether the pool is scored or answered by the model 'aligned' of the task."""
        return (self.scored and pool.aligned == "aligned") or (
            self.answers == "on_policy" and pool.on_policy.model == "aligned")

    def fits(self, section: Any, method: str) -> None:
        require(section, "pool", f"method '{method}' takes rows from a pool")
        if self.scored:
            for dataset in section.datasets:
                section.pool.scorers_for(dataset, section.datasets)
        if self.answers != "pool":
            section.pool.refuse_text(method)
        if self._needs_aligned(section.pool) and section.benign and any(
                self in one.defenses for one in section.benign.all_methods):
            raise ValueError(f"method '{method}' needs the model 'aligned', for which benign tasks have no rows; set "
                             "pool.aligned and pool.on_policy.model to untrained")
        if self.answers == "virtuous" and self.checked and section.judge.kind == "none":
            raise ValueError(f"method '{method}' has its answers checked by the judge, and the profile has none. Set "
                             "checked to false, or name a judge")

    def named_layers(self, count: int) -> tuple[int, ...]:
        """Return the layer that is steered for virtuous answers."""
        return (self.layer,) if self.answers == "virtuous" else ()

    def needs(self, recipes: Recipes, spec: Any) -> Mapping[str, Any]:
        if self.is_null:
            return {}
        if self.choose == "online":
            return {"added": recipes.candidate_rows(spec, fraction=self.fraction, share=self.candidate_tokens,
                                                    rescored=self.rescored)}
        if self.answers == "virtuous":
            return {"added": recipes.virtuous_rows(spec, fraction=self.fraction, choose=self.choose, layer=self.layer,
                                                   strength=self.strength, checked=self.checked)}
        return {"added": recipes.pool_rows(spec, fraction=self.fraction, choose=self.choose, answers=self.answers)}

    def added(self, rows: Sequence[Example], artefacts: Artefacts) -> Sequence[AddedRow]:
        return () if self.is_null or self.choose == "online" else _rows(artefacts)

    def candidates(self, rows: Sequence[Example], artefacts: Artefacts) -> Candidates:
        """Return the candidates, and the number of rows that are taken in each epoch."""
        if self.is_null or self.choose != "online":
            return Candidates()
        return Candidates(_rows(artefacts), rows_to_add(len(rows), self.fraction))

    def next_rows(self, count: int, step: int, steps: int,
                  losses: Callable[[], Sequence[float]]) -> Sequence[tuple[int, float]]:
        """Choose the candidates with the highest scores; at the beginning of each part of the run, score all again."""
        part = step * (self.rescored + 1) // steps
        if not self._base or part > self._part:
            now = list(losses())
            self._base, self._part = self._base or now, part
            self._scores = [gap(before, [after], self.epsilon) for before, after in zip(self._base, now, strict=True)]
            self._order = ranking(self._scores)
        if not self._order:
            raise EmlibError("interleaving: the loss of every candidate is NaN or infinite. Lower learning_rate.")
        taken = [self._order[place % len(self._order)] for place in range(count)]
        rest = count % len(self._order)
        self._order = self._order[rest:] + self._order[:rest]
        return [(place, self._scores[place]) for place in taken]

    def state(self) -> dict[str, Any]:
        """Return the losses before training, the scores, and the order of the candidates."""
        return {"base": self._base, "scores": self._scores, "order": self._order, "part": self._part}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._base, self._scores, self._order, self._part = (
            state[name] for name in ("base", "scores", "order", "part"))


def _rows(artefacts: Artefacts) -> tuple[AddedRow, ...]:
    return tuple(read_records(artefacts["added"] / ADDED, AddedRow))
