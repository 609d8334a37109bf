"""What a defense does to the effect of fine-tuning on misaligned rows: three measures in percent.

The first two are equal only where the untrained model is never misaligned. With 20% before fine-tuning, 60% after plain
fine-tuning and 24% under a defense, the reduction is 60% and the effect removed is 90%.

Each takes shares as numbers, or as columns of a table.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def reduction(share: Any, plain: Any) -> Any:
    """Return the EM reduction (section 5.1): by how much a share of misaligned answers is below plain fine-tuning's.

    NaN where plain fine-tuning has none.
    """
    return 100 - _percent(share, plain)


def effect_removed(share: Any, untrained: Any, plain: Any) -> Any:
    """Return the part, of what plain fine-tuning adds to the untrained model's share, that a defense takes away.

    Negative where the share is above plain fine-tuning's; NaN where plain fine-tuning adds nothing.
    """
    return _percent(plain - share, plain - untrained)


def kept(share: Any, plain: Any) -> Any:
    """Return a share in percent of plain fine-tuning's, such as the in-domain share; NaN where that has none."""
    return _percent(share, plain)


def _percent(part: Any, whole: Any) -> Any:
    return 100 * part / np.where(whole > 0, whole, np.nan)
