"""The table of hooks names every hook by which a defense can act, and what the base class says of it."""

from __future__ import annotations

from emlib.core.defense import Defense
from emlib.core.hooks import FINE_TUNING, GRPO
from emlib.core.registry import kinds
from emlib.report.tables.kinds import READ, hooks


def test_every_hook_that_training_calls_is_there_and_marked() -> None:
    found = hooks().set_index("hook")
    assert set(FINE_TUNING) <= set(found.index[found["fine-tuning"] == "yes"])
    assert set(GRPO) <= set(found.index[found["GRPO"] == "yes"])
    assert found.loc["change_rows", "GRPO"] == ""
    assert found.loc["supervision", "fine-tuning"] == ""
    assert found["what it does"].str.endswith(".").all()


def test_whatever_our_defenses_override_of_the_base_class_is_there() -> None:
    methods = {name for name, value in vars(Defense).items() if callable(value) or isinstance(value, property)}
    ours = [cls for purpose in ("fine-tuning", "grpo") for cls in kinds(purpose).values()
            if cls.__module__.startswith("emlib.")]
    overridden = {name for cls in ours for name in vars(cls) if name in methods and not name.startswith("_")}
    assert overridden <= set(hooks()["hook"]) | set(READ)
    assert len(overridden) > 10
