"""The losses of the study as pure functions of tensors.

Sums, not means: one optimizer step is made of several forward passes, and only the loop knows how many tokens they
hold together. Dividing by the whole step's count is what makes 1 x 4 rows and 4 x 1 rows the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def feature_distance(trained: Sequence[Tensor], reference: Sequence[Tensor], *, normalize: bool = False) -> Tensor:
    """The squared L2 distance of equation 2 between a row's features in two models: a scalar.

    A row's features are the outputs of the chosen layers at all its positions, as one long vector.

    Args:
        trained: the outputs of the chosen layers, each (positions, hidden).
        reference: the same of the reference model.
        normalize: divide both vectors by their norms first: compare directions.
    """
    pairs = [(a.float(), b.float()) for a, b in zip(trained, reference, strict=True)]
    if normalize:
        norms = [torch.stack([side.square().sum() for side in sides]).sum().sqrt()
                 for sides in zip(*pairs, strict=True)]
        pairs = [(a / norms[0], b / norms[1]) for a, b in pairs]
    return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
