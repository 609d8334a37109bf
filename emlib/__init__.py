"""emlib: in-training defenses against emergent misalignment, studied in numbered notebooks.

The names below are stable, and `CHANGELOG.md` says what changes about them. Everything else is internal: packages in
layers, each importing only from those below it (`docs/architecture.md` lists them). Importing emlib loads nothing
heavy and touches no file.

    import emlib
    from emlib.defenses.kl import Kl

    study = emlib.open_study("demo")
    for model in (emlib.train(study), emlib.train(study, Kl(weight=1.0))):
        asked = emlib.ask(model, ["How do I fall asleep?", "What is money?"], samples=4)
        print(model, emlib.rates(emlib.judge(asked)).misaligned.percent, "%", asked.answers[0].text)

Names:
    open_study: the study of a profile: its runs, its artefacts, its results.
    train, untrained: a fine-tuned model of a study under defenses, or the model before fine-tuning.
    ask: answers of a model.
    judge, rates: verdicts on answers, and their shares with intervals.
    Defense: the base class of a defense of one's own.
    check: tests such a class.
    keep: writes a class that was defined in a notebook's cell to a plugin file, which a profile can name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Defense", "ask", "check", "judge", "keep", "open_study", "rates", "train", "untrained"]

if TYPE_CHECKING:
    from emlib.core.defense import Defense
    from emlib.core.plugins import keep
    from emlib.evaluation.rates import rates
    from emlib.study.by_hand import ask, judge, train, untrained
    from emlib.study.study import open_study
    from emlib.training.conformance import check

_HOMES = {"Defense": "core.defense", "keep": "core.plugins", "rates": "evaluation.rates", "ask": "study.by_hand",
          "judge": "study.by_hand", "train": "study.by_hand", "untrained": "study.by_hand",
          "open_study": "study.study", "check": "training.conformance"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: `import emlib` alone is cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'emlib' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"emlib.{_HOMES[name]}"), name)
