"""Which defenses go together in one method, and which are refused: at the options of a list, with the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.registry import kinds
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl


def at_defaults() -> list[Defense]:
    """Return each of our kinds at its default options, KL on rows of the pool, and interleaving online."""
    ours = [cls() for cls in kinds().values() if cls.__module__.startswith("emlib.defenses.")]
    return [*ours, Kl(on="pool"), Interleaving(choose="online")]


def reason(one: Defense, other: Defense) -> str:
    """Return why two defenses cannot be combined; empty if they can."""
    if one.kind == other.kind:
        return "a method has one defense of a kind"
    try:
        refuse_exclusions((one, other))
    except ValueError as error:
        return str(error).partition(": ")[2]
    return ""


def table(defenses: Sequence[Defense] | None = None) -> pd.DataFrame:
    """List the refused pairs of different kinds, and what goes with all; by default of `at_defaults`."""
    every = defenses or at_defaults()
    pairs = [(one, other, reason(one, other)) for one, other in combinations(every, 2) if one.kind != other.kind]
    rows = [(name(one), name(other), f"refused: {why}") for one, other, why in pairs if why]
    rows += [(name(one), "any other", "go together: it acts on the finished adapter, after the last step of the other")
             for one in every if one.acts_after()]
    return pd.DataFrame(rows, columns=["Defense", "With", "In one method"])


def name(defense: Defense) -> str:
    """Return the kind, and those options that are not at their default."""
    options = ", ".join(f"{key}: {value}" for key, value in defense.model_dump(exclude_defaults=True).items()
                        if key != "kind")
    return f"{defense.kind} ({options})" if options else defense.kind
