"""Lists the available defenses, one per line: `python -m emlib.defenses`."""

from __future__ import annotations

from collections.abc import Iterator

from emlib.core.defense import Defense
from emlib.core.registry import kinds


def lines() -> Iterator[str]:
    """Yield a line per defense: kind, options with defaults, swept option, source, and where it works."""
    grpo = kinds("grpo")
    for kind, cls in kinds().items():
        works = ("after fine-tuning (post-training)" if cls.acts_after() else "in fine-tuning") + (
            "" if kind not in grpo else f", GRPO ({options(grpo[kind])})")
        swept = f"; sweeps {cls.swept}" if cls.swept else ""
        yield f"{kind}: {options(cls)}{swept}; {cls.origin or 'no source named'}; works {works}"


def options(cls: type[Defense]) -> str:
    """Return the options of a class with their defaults; an option without a default is required."""
    found = [name if field.is_required() else f"{name}={field.default}" for name, field in cls.model_fields.items()
             if name != "kind"]
    return ", ".join(found) or "no options"


if __name__ == "__main__":
    for line in lines():
        print(line)
