"""How training rows are audited before anything is trained on them (notebook 21)."""

from __future__ import annotations

from typing import ClassVar

from emlib.config.sampling import Sampling
from emlib.config.words import Distinct, Few, Positive, Seed, SmallCount
from emlib.core.schema import Strict


class Audit(Strict):
    """The projection difference of training rows on the trait's persona vector (Chen et al. 2025)."""

    not_in_keys: ClassVar = frozenset({"rows", "methods"})  # whose rows, and how many, is said elsewhere

    layer: Few  # whose activations are projected, counted from 1
    # How many of a run's training rows notebook 21 audits, chosen by a fixed seed; None: all. The defense `filtering`
    # audits every row.
    rows: Positive | None = 200
    samples: SmallCount = 1  # how many answers of its own the base model gives to each row's prompt
    sampling: Sampling = Sampling()  # of these answers
    seed: Seed = 0  # of these answers
    methods: Distinct[str] | None = None  # whose training rows are audited; None: all that change only the data
