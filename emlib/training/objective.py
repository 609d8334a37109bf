"""The loss of a training step: cross-entropy, and the terms of the defenses (section 3.1).

    L = L_CE + sum of lambda_i * penalty_i / count_i            (equations 1 and 2)

Each penalty is a sum, and its count is the number of tokens, response tokens or rows of the whole optimizer step, or 1,
so that 1 x 4 rows and 4 x 1 rows give the same step. The reference model is the same weights with the adapter off,
never a second copy. Its pass comes first, without gradient and without the defenses' contexts (`Defense.active`); then
come the trained model's forward and backward pass inside these contexts. Logits exist for a chunk of tokens at a time,
and only for tokens on which a term of the head depends (`emlib.training.head`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emlib.core.defense import Defense, acting
from emlib.core.errors import ProfileError
from emlib.core.hooks import Active, Evaluate, HeadKl, PenaltyUnit
from emlib.models.batches import Batch
from emlib.models.hooks import capture_activations
from emlib.models.passes import Pass
from emlib.models.reference import compared
from emlib.training.head import IGNORED, head_terms
from emlib.training.penalties import entered, layers_read, penalties, reference_pass, trained_pass
from emlib.training.records import StepRecord


@dataclass(frozen=True)
class Totals:
    """The sizes of a whole optimizer step, over which every loss term is a mean.

    `penalised` holds the sizes of rows on which only one kind of defense acts, by that kind; the other numbers exclude
    these rows.
    """

    rows: int
    tokens: int
    response_tokens: int
    penalised: Mapping[str, Totals] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Totals:
        """Add up the sizes of a step's passes."""
        kinds = {batch.penalised_by for batch in batches} - {""}
        trained = [batch for batch in batches if not batch.penalised_by]
        return cls(sum(len(batch.keys) for batch in trained), sum(batch.tokens for batch in trained),
                   sum(batch.response_tokens for batch in trained),
                   {kind: cls.of([replace(batch, penalised_by="") for batch in batches if batch.penalised_by == kind])
                    for kind in sorted(kinds)})

    @property
    def all_tokens(self) -> int:
        """Tokens of all rows."""
        return self.tokens + sum(each.tokens for each in self.penalised.values())

    def count(self, per: PenaltyUnit, kind: str, *, data: bool = True) -> int:
        """Return the number of tokens, response tokens or rows on which a kind of defense acts, at least 1.

        It is 1 per step. With `data` False the rows without a `penalised_by` do not count.
        """
        if per == "step":
            return 1
        sizes = [*([self] if data else []), *([self.penalised[kind]] if kind in self.penalised else [])]
        return max(1, sum({"token": size.tokens, "response_token": size.response_tokens, "row": size.rows}[per]
                          for size in sizes))


class Objective:
    """Cross-entropy and a list of defenses, without those whose options are their null setting.

    `artefacts` are folders, by the names from `Defense.needs`. The defenses are copied, so that their state between
    steps belongs to this training only.
    """

    def __init__(self, defenses: Sequence[Defense] = (), artefacts: Mapping[str, Path] | None = None,
                 cross_entropy: float = 1.0) -> None:
        self.defenses = [defense.model_copy(deep=True) for defense in acting(defenses)]
        self.artefacts, self.cross_entropy = artefacts or {}, cross_entropy
        for defense in self.defenses:
            defense.prepare(self.artefacts)
        in_head = {d.kind: term for d in self.defenses if d.has("head_kl") and (term := d.head_kl(self.artefacts))}
        if len(in_head) > 1:
            raise ProfileError(f"{' and '.join(in_head)} each need a KL term of the head, which computes only one. Use "
                               "one of them.")
        self.head_kl = next(iter(in_head.items()), None)

    @property
    def compares_in_head(self) -> bool:
        """Whether the head computes the reference model's logits as well as the trained model's."""
        return self.head_kl is not None

    @property
    def reads_responses_only(self) -> bool:
        """Whether a step depends on the model's states at response tokens alone: no defense acts within its passes."""
        return not any(defense.has(hook) for defense in self.defenses for hook in ("active", "penalty", "head_kl"))

    @property
    def watches(self) -> bool:
        """Whether some defense observes each step."""
        return any(defense.has("on_step") for defense in self.defenses)

    def on_step(self, record: StepRecord, evaluate: Evaluate) -> bool:
        """Show a finished step to all defenses; return whether one of them ends the training."""
        stops = [defense.on_step(record, evaluate) for defense in self.defenses]  # a list: each of them sees the step
        return any(stops)

    def before(self, model: nn.Module) -> None:
        """Let the defenses check the model before the first step."""
        for defense in self.defenses:
            defense.before(model, self.artefacts)

    def after(self, model: nn.Module) -> None:
        """Let the defenses change the model after the last step."""
        for defense in self.defenses:
            defense.after(model, self.artefacts)

    def layers_read(self, model: nn.Module) -> tuple[int, ...]:
        """Return the decoder blocks whose outputs some penalty needs."""
        return layers_read(model, self.defenses)

    def backward(self, model: nn.Module, batch: Batch, totals: Totals) -> dict[str, float]:
        """Add one batch's share to the gradient of a step; return its share of the loss and of each metric.

        `loss` is L_CE; penalties are under their kinds, KL in nats per token; then follow the active defenses'
        statistics.
        """
        acting, penalising = self._acting(batch.penalised_by), self._penalising(batch.penalised_by)
        kl = self._head_kl(penalising)
        reference = reference_pass(model, batch, penalising, head=kl is not None,
                                   stored=kl is not None and kl[1].states is not None)
        with ExitStack() as stack:
            shown = {d.kind: entered(stack, d, model, self.artefacts) for d in acting if d.has("active")}
            features = stack.enter_context(capture_activations(model, layers_read(model, penalising)))
            hidden = batch.hidden(model)
            loss, metrics = self._head_terms(model, batch, hidden, kl, reference, totals)
            trained = trained_pass(model, batch, hidden, features, acting, self.artefacts)
            found = penalties(penalising, trained, reference, lambda defense: totals.count(
                defense.per, defense.kind, data=defense.penalises_data))
            for defense in penalising:
                if defense.kind in found:
                    loss = loss + defense.factor * found[defense.kind]
                    metrics[defense.kind] = float(found[defense.kind].detach())
            loss.backward()
        return metrics | _statistics(shown, batch, totals)

    def _acting(self, penalised_by: str) -> list[Defense]:
        """Return the defenses that act on rows `penalised_by` a kind; all of them for the empty text."""
        return [d for d in self.defenses if penalised_by in ("", d.kind)]

    def of_kind(self, kind: str) -> Defense:
        """Return the defense of a kind."""
        return next(d for d in self.defenses if d.kind == kind)

    def _penalising(self, penalised_by: str) -> list[Defense]:
        """Return the defenses whose loss terms count on rows `penalised_by` a kind, or on the training rows."""
        return [d for d in self._acting(penalised_by) if penalised_by or d.penalises_data]

    def _head_kl(self, penalising: Sequence[Defense]) -> tuple[str, HeadKl] | None:
        return self.head_kl if self.head_kl and self.head_kl[0] in {d.kind for d in penalising} else None

    def _head_terms(self, model: nn.Module, batch: Batch, hidden: Tensor, kl: tuple[str, HeadKl] | None,
                    reference: Pass | None, totals: Totals) -> tuple[Tensor, dict[str, float]]:
        """Compute cross-entropy and KL, which share their logits."""
        learns = batch.predicts if not batch.penalised_by else torch.zeros_like(batch.predicts)
        used = learns if kl is None else compared(batch, kl[1].tokens)
        targets = F.pad(batch.input_ids[:, 1:], (0, 1)).masked_fill(~learns, IGNORED)[used]
        share = 1 / max(1, totals.response_tokens)
        if kl is None:
            found = head_terms(model, hidden[used], targets, self.cross_entropy * share)
            return found.loss, {"loss": found.nll * share}
        kind, term = kl
        per: Literal["token", "response_token"] = "token" if term.tokens == "all" else "response_token"
        kl_share = 1 / totals.count(per, kind, data=self.of_kind(kind).penalises_data)
        states = reference.hidden[used] if reference is not None else _stored(term, batch)
        found = head_terms(model, hidden[used], targets, self.cross_entropy * share, states, term.weight * kl_share)
        return found.loss, {"loss": found.nll * share, kind: found.kl * kl_share}


def _stored(term: HeadKl, batch: Batch) -> Tensor:
    assert term.states is not None, "without a reference pass there must be stored states"
    return term.states.of(batch)


def _statistics(shown: Mapping[str, Active], batch: Batch, totals: Totals) -> dict[str, float]:
    """Return the active defenses' statistics, each a share of the step's token mean; repeated names get their kind."""
    found: dict[str, Any] = {}
    for kind, active in shown.items():
        for name, value in active.statistics.items():
            total = float(value[batch.attended].sum()) if isinstance(value, Tensor) else value * batch.tokens
            found[f"{kind} {name}" if name in found else name] = total / totals.count("token", kind)
    return found
