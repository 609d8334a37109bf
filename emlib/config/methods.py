"""The common base of fine-tuning and GRPO methods: a list of defenses, and a sweep."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import SerializeAsAny, ValidationError, model_validator

from emlib.config.words import Distinct, Weight, repeats
from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.errors import nearest
from emlib.core.names import Word
from emlib.core.of_kind import UnknownDefense
from emlib.core.schema import Strict


class SweptMethod(Strict):
    """A baseline, or a named list of defenses.

    `sweep` lists values for the swept option of the first defense that has one (its weight or strength); each value is
    one run.

    Attributes:
        baselines: the names of methods without defenses.
    """

    baselines: ClassVar[tuple[str, ...]]

    name: Word
    defenses: tuple[SerializeAsAny[Defense], ...] = ()
    sweep: Annotated[tuple[Weight, ...], Distinct] = ()

    @model_validator(mode="after")
    def _fits(self) -> SweptMethod:
        if (self.name in self.baselines) == bool(self.defenses):
            raise ValueError(f"method '{self.name}' " + ("is a baseline and takes no defenses" if self.defenses else
                             "has no defenses; without them a method is one of " + ", ".join(self.baselines)
                             + nearest(self.name, self.baselines)))
        unknown, swept = any(isinstance(defense, UnknownDefense) for defense in self.defenses), self._swept
        if self.sweep and swept is None and not unknown:
            raise ValueError(f"method '{self.name}' has a sweep, but none of its defenses has a number to sweep")
        if repeated := repeats([defense.kind for defense in self.defenses]):
            raise ValueError(f"method '{self.name}' has more than one {repeated[0]}; they would contradict "
                             "each other, so remove all but one")
        refuse_exclusions(self.defenses)
        for number in self.sweep:
            try:
                self.at(number)
            except ValidationError as error:
                assert swept is not None, "no other option changes"
                raise ValueError(f"method '{self.name}' sweeps {swept.swept} over {number:g}: "
                                 f"{error.errors()[0]['msg'].lower()}") from error
        return self

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
        """Check that each defense works with the profile, or with its section `grpo`.

        Raises:
            ValueError: one does not; the message gives the reason.
        """
        for defense in self.defenses:
            defense.fits(section, self.name)

    @property
    def swept_kind(self) -> str | None:
        """The kind of the defense whose option a hyperparameter value sets; None if there is none."""
        return None if self._swept is None else self._swept.kind

    @property
    def _swept(self) -> Defense | None:
        return next((defense for defense in self.defenses if defense.swept is not None), None)


def _with_swept(defense: Defense, number: float) -> Defense:
    """Return the defense with this value of its swept option, which may be an integer.

    Raises:
        ValidationError: the option does not take this value.
    """
    value = int(number) if float(number).is_integer() else number  # as JSON, an integer is a valid float too
    options = defense.model_dump(mode="json") | {str(defense.swept): value}
    return type(defense).model_validate_json(json.dumps(options))
