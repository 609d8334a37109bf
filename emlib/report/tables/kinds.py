"""Tables of the kinds of defenses: the hooks by which one acts, and which two cannot be in one method, with why."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from emlib.core.defense import Defense, refuse_exclusions
from emlib.core.hooks import FINE_TUNING, GRPO
from emlib.core.registry import kinds
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl

# What training and keys read of a defense; only a defense of ours that keeps old keys or saves work overrides some.
READ = ("model_config", "identity", "is_null", "factor", "runs_reference", "has", "acts_after", "reads_nothing")
BOTH = ("fits", "excludes", "needs", "prepare", "reads_layers", "named_layers", "state", "restore")
ONLY_IN_GRPO = {*GRPO, "acts_in"} - set(FINE_TUNING)


def hooks() -> pd.DataFrame:
    """List the hooks in the order of the class: which training calls each, and the first sentence about it."""
    found = {name: value.__doc__ for name, value in vars(Defense).items()
             if not name.startswith("_") and name not in READ and (callable(value) or isinstance(value, property))}
    return pd.DataFrame([
        (name, "" if name in ONLY_IN_GRPO else "yes", "yes" if name in {*BOTH, *GRPO, "acts_in"} else "",
         " ".join(about.split("\n\n")[0].split()))
        for name, about in found.items()], columns=["hook", "fine-tuning", "GRPO", "what it does"])


def at_defaults() -> list[Defense]:
    """Return each of our kinds at its default options, KL on rows of the pool, and interleaving online."""
    ours = [cls() for cls in kinds().values() if cls.__module__.startswith("emlib.defenses.")]
    return [*ours, Kl(on="pool"), Interleaving(choose="online")]


def reason(one: Defense, other: Defense) -> str:
    """Return why two defenses of different kinds cannot be combined; empty if they can."""
    try:
        refuse_exclusions((one, other))
    except ValueError as error:
        return str(error).partition(": ")[2]
    return ""


def compositions() -> pd.DataFrame:
    """List the refused pairs of different kinds at default options, and what goes with all."""
    every = at_defaults()
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
