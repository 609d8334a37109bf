"""Methods: baselines and named lists of defenses, with a sweep; for fine-tuning, and the base of those for GRPO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import SerializeAsAny, ValidationError

from emlib.config.words import AtLeastOne, Distinct, Seed, Weight, repeats
from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.errors import nearest
from emlib.core.names import Word
from emlib.core.of_kind import AnyDefense, UnknownDefense
from emlib.core.schema import Strict, mistakes_in

UNTRAINED, ALIGNED, MISALIGNED = BASELINES = ("untrained", "aligned", "misaligned")  # the last is without a defense
SFT = "sft"  # plain fine-tuning on a benign task, as Table 3 calls it


class SweptMethod(Strict):
    """A baseline, or a named list of defenses."""

    baselines: ClassVar[tuple[str, ...]]  # the names of methods without defenses

    name: Word
    defenses: tuple[SerializeAsAny[Defense], ...] = ()
    # Values for the swept option of the first defense that has one (its weight or strength); each value is one run.
    sweep: Distinct[Weight] = ()

    def _mistakes(self) -> Iterator[str]:
        if self.name in self.baselines and self.defenses:
            yield f"method '{self.name}' is a baseline and takes no defenses"
        if self.name not in self.baselines and not self.defenses:
            yield (f"method '{self.name}' has no defenses; without them a method is one of "
                   f"{', '.join(self.baselines)}{nearest(self.name, self.baselines)}")
        unknown, swept = any(isinstance(defense, UnknownDefense) for defense in self.defenses), self._swept
        if self.sweep and swept is None and not unknown:
            yield f"method '{self.name}' has a sweep, but none of its defenses has a number to sweep"
        if repeated := repeats([defense.kind for defense in self.defenses]):
            yield (f"method '{self.name}' has more than one {repeated[0]}; they would contradict each other, so remove "
                   "all but one")
        refuse_exclusions(self.defenses)
        for number in self.sweep:
            try:
                refuse_exclusions(self.at(number))
            except ValidationError as error:
                assert swept is not None, "no other option changes"
                yield from (f"method '{self.name}' sweeps {swept.swept} over {number:g}: {mistake}"
                            for item in error.errors() for mistake in mistakes_in(item))

    def at(self, setting: float | None) -> tuple[Defense, ...]:
        """Return the defenses with the swept option set to `setting`."""
        return tuple(_with_swept(defense, setting) if setting is not None and defense is self._swept else defense
                     for defense in self.defenses)

    @property
    def number(self) -> float | None:
        """The value of the swept option of a method with a single defense; None for other methods."""
        swept = self._swept
        return None if swept is None or len(self.defenses) > 1 else float(getattr(swept, str(swept.swept)))

    def fits(self, section: Any) -> None:
        """Raise ValueError, with the reason, if a defense does not fit the profile, or its section `grpo`."""
        for defense in self.defenses:
            defense.fits(section, self.name)

    @property
    def swept_kind(self) -> str | None:
        """The kind of the defense whose option a hyperparameter value sets; None if there is none."""
        return None if self._swept is None else self._swept.kind

    @property
    def _swept(self) -> Defense | None:
        return next((defense for defense in self.defenses if defense.swept is not None), None)


class Method(SweptMethod):
    """One condition of the study: a baseline, or a named list of defenses on the misaligned data."""

    baselines: ClassVar = (*BASELINES, SFT)

    defenses: tuple[AnyDefense, ...] = ()
    seeds: AtLeastOne[Seed] | None = None  # None: those of the profile, or of its section `benign`


def _with_swept(defense: Defense, number: float) -> Defense:
    """Return the defense with this value of its swept option; raise ValidationError if it does not take the value."""
    value = int(number) if float(number).is_integer() else number  # as JSON, an integer is a valid float too
    options = defense.model_dump(mode="json") | {str(defense.swept): value}
    return type(defense).model_validate_json(json.dumps(options))
