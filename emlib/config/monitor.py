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

    Attributes:
        every: the number of steps between two readings.
        layers: the layers whose outputs are projected onto the persona vectors.
        traits: traits in addition to the profile's, whose persona vectors are read as well; names of files in
            `params/traits/`, or paths.
        methods: the methods whose runs are read; None: all that train.
        answers: `base`: the base model's own answers, the same at each reading; `drawn`: answers that the model in
            training samples at each reading.
        questions: the number of general questions that are answered, the first ones.
        tokens: the maximum length of an answer.
        rows: the number of held-out rows, and of rows of the pool, whose loss is read. A run that takes rows from the
            pool has no loss on it.
        warn: the drift along the first vector above which a warning is printed; None: none is. The defense
            `early_stop` stops there instead, because that changes the adapter.
    """

    every: SmallCount = 20
    layers: Distinct[Few] = (20,)
    traits: Distinct[str] = ()
    methods: AtLeastOne[str] | None = None
    answers: Literal["base", "drawn"] = "base"
    questions: Positive = 8
    tokens: Tokens = 64
    rows: Positive = 4
    warn: Factor | None = None
