"""What is read of a model while it trains, and how often."""

from __future__ import annotations

from typing import Literal

from emlib.config.words import AtLeastOne, Distinct, Factor, Few, Positive, SmallCount, Tokens
from emlib.core.schema import Strict


class Monitor(Strict):
    """Readings of a model while it trains on a narrow data set. They change no adapter.

    A reading has the drift of the general answers' activations along persona vectors, the loss on rows that are not
    trained on, and the KL divergence from the base model. The defaults are the paper's layer, and our numbers, for
    less than 3% of the time of training with the batch of Table 6.
    """

    every: SmallCount = 20  # steps between two readings
    layers: Distinct[Few] = (20,)  # whose outputs are projected onto the persona vectors
    # Traits in addition to the profile's, whose persona vectors are read as well: names of files in `params/traits/`,
    # or paths.
    traits: Distinct[str] = ()
    methods: AtLeastOne[str] | None = None  # whose runs are read; None: all that train
    # `base`: the base model's own answers, the same at each reading; `drawn`: answers that the model in training
    # samples at each reading.
    answers: Literal["base", "drawn"] = "base"
    questions: Positive = 8  # how many general questions are answered, the first ones
    tokens: Tokens = 64  # the maximum length of an answer
    # How many held-out rows, and rows of the pool, have their loss read. A run that takes rows from the pool has no
    # loss on it.
    rows: Positive = 4
    # The drift along the first vector above which a warning is printed; None: none is. The defense `early_stop` stops
    # there instead, because that changes the adapter.
    warn: Factor | None = None
