"""The newer defenses in pairs: null settings, exceptions in a pass, kills. The conformance suite has these alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from emlib.config import TinyModel
from emlib.core.defense import Defense
from emlib.core.registry import kinds
from emlib.data.chat import Encoded
from emlib.defenses.concept_ablation import ConceptAblation
from emlib.defenses.consistency import Consistency
from emlib.defenses.early_stop import EarlyStop
from emlib.defenses.filtering import Filtering
from emlib.defenses.inoculation_adapter import InoculationAdapter
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.defenses.projection_penalty import ProjectionPenalty
from emlib.defenses.safe_lora import SafeLora
from emlib.models.batches import collate
from emlib.training.bench import TRAINING, Bench, interrupted, killed, step
from emlib.training.objective import Objective
from emlib.training.online import Offered
from emlib.training.sft import fine_tune

ABLATION, PENALTY = ConceptAblation(layers=(4,)), ProjectionPenalty(layers=(3,), both=True)
POOL, ADAPTER, CONSISTENCY = Kl(weight=0.3, on="pool"), InoculationAdapter(strength=0.5), Consistency(share=0.5)
STORED = ProjectionPenalty(layers=(3,), both=True, reference="stored")
ONLINE, SAFE = Interleaving(fraction=0.5, choose="online", rescored=3), SafeLora(
    base=TinyModel(kind="tiny", seed=1), threshold=1.0)
VIRTUOUS = Interleaving(fraction=0.5, answers="virtuous", layer=2)
EARLY, FILTERING = EarlyStop(share=0.5, every=3, rows=2), Filtering(share=0.4)
PAIRS = [(ABLATION, PENALTY), (PENALTY, POOL), (POOL, ADAPTER), (ADAPTER, CONSISTENCY), (CONSISTENCY, ABLATION),
         (STORED, POOL), (ONLINE, ABLATION), (EARLY, ONLINE), (SAFE, EARLY), (POOL, SAFE), (FILTERING, VIRTUOUS)]
PAPERS = {"kl", "ldifs", "persona_vector", "inoculation", "interleaving"}
CPU = torch.device("cpu")


class Together:
    """The rows and artefacts of several defenses on the tiny model."""

    def __init__(self, defenses: Sequence[Defense], folder: Path) -> None:
        benches = [Bench(defense, folder / "made") for defense in defenses]
        self.defenses, self.folder, self.model = defenses, folder, benches[0].model
        self.artefacts = {name: place for bench in benches for name, place in bench.artefacts.items()}
        self.plain: list[Encoded] = benches[0].encoded(benches[0].examples)
        filtered = {place for one in defenses for place in one.filtered(benches[0].examples, self.artefacts)}
        self.own = [row for place, row in enumerate(self.plain) if place not in filtered]
        self.added: list[Encoded] = [row for bench in benches for row in bench.rows.added]
        self.offered = next((bench.rows.offered for bench in benches if bench.rows.offered.count), Offered())

    def trained(self, name: str, defenses: Sequence[Defense], *, kill_after: int | None = None) -> Tensor:
        """The adapter's weights after training."""
        if kill_after is not None:
            with self.model(stirred=False) as model, killed(kill_after):
                self._train(model, name, defenses)
        with self.model(stirred=False) as model:
            self._train(model, name, defenses)
            return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    def _train(self, model: PeftModel, name: str, defenses: Sequence[Defense]) -> None:
        acting = any(not defense.is_null for defense in defenses)
        fine_tune(model, self.own if acting else self.plain, TRAINING, seed=0, folder=self.folder / name,
                  objective=Objective(defenses, self.artefacts), added=self.added if acting else [],
                  offered=self.offered if acting else Offered())


@pytest.fixture(params=PAIRS, ids=lambda pair: " and ".join(
    f"{one.kind}{' stored' if one is STORED else ''}" for one in pair))
def together(request: pytest.FixtureRequest, tmp_path: Path) -> Together:
    return Together(request.param, tmp_path)


def test_every_newer_kind_is_in_a_pair() -> None:
    ours = {kind for kind, cls in kinds().items() if cls.__module__.startswith("emlib.defenses.")}
    paired = [one for pair in PAIRS for one in pair]
    assert {one.kind for one in paired} | PAPERS == ours
    assert {POOL, ONLINE, VIRTUOUS} <= {one for one in paired if one.kind in PAPERS}


def state(model: nn.Module) -> list[tuple[type, int]]:
    return [(type(part), len(part._forward_hooks) + len(part._forward_pre_hooks)) for part in model.modules()]


def test_nothing_is_left_after_an_exception_in_any_pass(together: Together) -> None:
    """In the last block of each pass of a step: of the reference model or of the trained one, on each kind of rows."""
    kinds = dict.fromkeys(row.penalised_by for row in together.added)
    batches = [collate([row for row in (*together.own, *together.added) if row.penalised_by == kind], CPU)
               for kind in ("", *(kind for kind in kinds if kind))]
    objective, ids = Objective(together.defenses, together.artefacts), torch.arange(9)[None]
    with together.model() as model:
        before, logits = state(model), model(input_ids=ids).logits
        for ends in range(3):
            with suppress(InterruptedError), interrupted(model, after=ends):
                step(model, batches, objective)
            assert state(model) == before
            assert torch.equal(model(input_ids=ids).logits, logits)


def test_killed_after_either_checkpoint_and_resumed_it_ends_in_the_same_weights(together: Together) -> None:
    whole = together.trained("whole", together.defenses)
    for checkpoint in (1, 2):
        assert torch.equal(together.trained(f"killed {checkpoint}", together.defenses, kill_after=checkpoint), whole)


def test_both_at_their_null_settings_are_plain_fine_tuning(together: Together) -> None:
    nothing = [type(one).model_validate(one.model_dump() | dict(one.null)) for one in together.defenses]
    assert torch.equal(together.trained("nothing", nothing), together.trained("plain", ()))
    assert not torch.equal(together.trained("both", together.defenses), together.trained("plain again", ()))
