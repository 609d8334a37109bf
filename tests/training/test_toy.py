"""The toy of notebook 06: a penalty with a gradient has one, the published variant none; at its least, neither."""

from __future__ import annotations

from emlib.defenses.kl import Kl
from emlib.defenses.ldifs import Ldifs
from emlib.training.toy import gradient_norm

LDIFS = Ldifs(kind="ldifs", every=2)
PUBLISHED = Ldifs(kind="ldifs", every=2, variant="published")


def test_only_a_penalty_with_a_gradient_moves_the_model() -> None:
    assert gradient_norm(LDIFS) > 1e-3
    assert gradient_norm(PUBLISHED) == 0
    assert gradient_norm(Kl(kind="kl")) > 1e-5
    assert gradient_norm(LDIFS, steps=0) < 1e-6
