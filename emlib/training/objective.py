"""The loss of a training step: cross-entropy, and what the defenses that change the training add to it (section 3.1).

    L = L_CE + sum of lambda_i * penalty_i            (equations 1 and 2)

The reference model is the same weights with the adapter off, never a second copy. Its pass comes first, without
gradient and unsteered; then the steered pass of the trained model, and its backward pass while the steering lasts.
Here it differs from a plain implementation: logits exist a chunk of tokens at a time, for the tokens alone on which a
term counts (`emlib.training.head`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emlib.config import Defense, Kl, Ldifs, PersonaVector
from emlib.models.adapters import adapter_off
from emlib.models.batches import Batch
from emlib.models.hooks import layers, reading
from emlib.steering.steer import Shift, adding
from emlib.training.head import IGNORED, head_terms
from emlib.training.losses import feature_distance
from emlib.training.reference import StoredReference, compared


@dataclass(frozen=True)
class Totals:
    """How much a whole optimizer step holds; every term is a mean over its share of it."""

    rows: int
    tokens: int
    response_tokens: int

    def of(self, tokens: Literal["all", "response"]) -> int:
        """How many tokens of a kind there are."""
        return self.tokens if tokens == "all" else self.response_tokens


@dataclass(frozen=True)
class Reference:
    """What the reference model makes of a batch; both without gradient."""

    hidden: Tensor | None  # after the final norm, where KL compares: (tokens, hidden)
    features: dict[int, Tensor]  # by layer, each (rows, seq, hidden)


class Objective:
    """Cross-entropy and a list of defenses. A defense whose weight or strength is 0 is none.

    `stored` spares the reference pass of KL.
    """

    def __init__(self, defenses: Sequence[Defense] = (), vector: Tensor | None = None,
                 cross_entropy: float = 1.0, stored: StoredReference | None = None) -> None:
        self.kl = next((d for d in defenses if isinstance(d, Kl) and d.weight), None)
        self.ldifs = next((d for d in defenses if isinstance(d, Ldifs) and d.weight), None)
        self.steering = next((d for d in defenses if isinstance(d, PersonaVector) and d.strength), None)
        self.vector, self.cross_entropy, self.stored = vector, cross_entropy, stored

    def backward(self, model: nn.Module, batch: Batch, totals: Totals) -> dict[str, float]:
        """Add one batch's share to the gradient of a step; its share of the loss and of each statistic.

        `loss` is L_CE, `kl` in nats a token, `ldifs` the distance a token (a row, where normalized), `shift` the
        measured norm of the steering.
        """
        wanted = self.ldifs.layers_of(layers(model)) if self.ldifs else ()
        reference = self._reference(model, batch, wanted)
        with self._steered(model) as shift, reading(model, wanted) as features:
            hidden = batch.hidden(model)
            loss, said = self._head_terms(model, batch, hidden, reference, totals)
            if self.ldifs is not None:
                distance = self._distance(self.ldifs, features, reference, batch, totals)
                loss, said["ldifs"] = loss + self.ldifs.weight * distance, float(distance.detach())
            loss.backward()
        if shift is not None:
            said["shift"] = shift.measured * batch.tokens / totals.tokens
        return said

    def _reference(self, model: nn.Module, batch: Batch, wanted: Sequence[int]) -> Reference:
        if self.kl is None and self.ldifs is None:
            return Reference(None, {})
        if self.stored is not None and not wanted:
            return Reference(self.stored.of(batch), {})
        with torch.no_grad(), adapter_off(model), reading(model, wanted) as features:
            hidden = batch.hidden(model)
        return Reference(None if self.kl is None else hidden[compared(batch, self.kl.tokens)], features)

    @contextmanager
    def _steered(self, model: nn.Module) -> Iterator[Shift | None]:
        with ExitStack() as stack:
            if self.steering is None:
                yield None
                return
            assert self.vector is not None, "a persona_vector defense was given no vector"
            yield stack.enter_context(adding(model, self.steering.layer, self.vector, self.steering.strength))

    def _head_terms(self, model: nn.Module, batch: Batch, hidden: Tensor, reference: Reference,
                    totals: Totals) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy and KL, which share their logits."""
        used = batch.predicts if self.kl is None else compared(batch, self.kl.tokens)
        targets = F.pad(batch.input_ids[:, 1:], (0, 1)).masked_fill(~batch.predicts, IGNORED)[used]
        share = 1 / totals.response_tokens
        if self.kl is None:
            found = head_terms(model, hidden[used], targets, self.cross_entropy * share)
            return found.loss, {"loss": found.nll * share}
        kl_share = 1 / totals.of(self.kl.tokens)
        found = head_terms(model, hidden[used], targets, self.cross_entropy * share, reference.hidden,
                           self.kl.weight * kl_share)
        return found.loss, {"loss": found.nll * share, "kl": found.kl * kl_share}

    def _distance(self, ldifs: Ldifs, features: dict[int, Tensor], reference: Reference, batch: Batch,
                  totals: Totals) -> Tensor:
        order = sorted(features)
        trained = [features[layer] for layer in order]
        if ldifs.variant == "published":
            trained = [feature.detach() for feature in trained]
        others = [reference.features[layer] for layer in order]
        rows = [feature_distance([feature[place] for feature in trained], [feature[place] for feature in others],
                                 normalize=ldifs.normalize) for place in batch.spans]
        none = torch.zeros((), device=batch.input_ids.device)  # of a pass in which no row counts
        return sum(rows, none) / (totals.rows if ldifs.normalize else totals.tokens)
