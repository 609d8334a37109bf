"""Forward passes as penalties see them: hidden states, features of layers, and logits on first access."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from emlib.core.errors import EmlibError
from emlib.models.batches import Batch
from emlib.models.logprobs import head


@dataclass(frozen=True)
class Pass:
    """A forward pass of `model` over a batch; see `emlib.core.hooks.ForwardPass`."""

    model: nn.Module
    batch: Batch
    last: Tensor | None  # hidden states after the final norm, (lines, seq, hidden); None: the pass ended before
    features: Mapping[int, Tensor]  # by layer, each (lines, seq, hidden)

    @property
    def hidden(self) -> Tensor:
        """The hidden states after the final norm: (lines, seq, hidden).

        Raises:
            EmlibError: the pass ended before, at the deepest layer that some penalty reads.
        """
        if self.last is None:
            raise EmlibError("a penalty reads the reference model's hidden states after the final norm, but its "
                             "defense declares `reads_hidden = False`. Remove that line.")
        return self.last

    def with_features(self, layers: Collection[int]) -> Pass:
        """Return the pass with the features of these layers only."""
        if set(layers) == set(self.features):
            return self
        return replace(self, features={layer: self.features[layer] for layer in layers})

    @property
    def keys(self) -> tuple[str, ...]:
        """A digest of each row's tokens."""
        return self.batch.keys

    def by_row(self, layer: int) -> list[Tensor]:
        """Split a layer's features by row, without padding: (positions, hidden) each."""
        return [self.features[layer][place] for place in self.batch.spans]

    @cached_property
    def response_logits(self) -> Tensor:
        """The logits that predict response tokens, in float32: (tokens, vocabulary)."""
        logits: Tensor = head(self.model)(self.hidden[self.batch.predicts])
        return logits.float()
