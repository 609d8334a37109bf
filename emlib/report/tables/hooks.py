"""The hooks of a defense as a table for notebook 18, read from the base class itself."""

from __future__ import annotations

import pandas as pd

from emlib.core.defense import Defense
from emlib.core.hooks import FINE_TUNING, GRPO

# What training and keys read of a defense; only a defense of ours that keeps old keys or saves work overrides some.
READ = ("model_config", "identity", "is_null", "factor", "runs_reference", "has", "acts_after", "reads_nothing")
BOTH = ("fits", "excludes", "needs", "prepare", "reads_layers", "named_layers")
ONLY_IN_GRPO = {*GRPO, "acts_in"} - set(FINE_TUNING)


def table() -> pd.DataFrame:
    """List the hooks in the order of the class: which training calls each, and the first sentence about it."""
    hooks = {name: value.__doc__ for name, value in vars(Defense).items()
             if not name.startswith("_") and name not in READ and (callable(value) or isinstance(value, property))}
    return pd.DataFrame([
        (name, "" if name in ONLY_IN_GRPO else "yes", "yes" if name in {*BOTH, *GRPO, "acts_in"} else "",
         " ".join(about.split("\n\n")[0].split()))
        for name, about in hooks.items()], columns=["hook", "fine-tuning", "GRPO", "what it does"])
