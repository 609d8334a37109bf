"""How training rows are audited before anything is trained on them (notebook 21)."""

from __future__ import annotations

from emlib.config.sampling import Sampling
from emlib.config.words import Distinct, Few, Positive, Seed, SmallCount
from emlib.core.schema import Strict


class Audit(Strict):
    """The projection difference of training rows on the trait's persona vector (Chen et al. 2025).

    Attributes:
        layer: the layer whose activations are projected, counted from 1.
        rows: how many of a run's training rows notebook 21 audits, chosen by a fixed seed; None: all. The defense
            `filtering` audits every row.
        samples: how many answers of its own the base model gives to each row's prompt.
        sampling: how these are sampled.
        seed: of these answers.
        methods: the methods whose training rows are audited; None: all that change only the data.
    """

    layer: Few
    rows: Positive | None = 200
    samples: SmallCount = 1
    sampling: Sampling = Sampling()
    seed: Seed = 0
    methods: Distinct[str] | None = None
