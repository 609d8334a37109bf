"""Rows that are chosen while the model is trained: by hand, and against a second implementation of a whole training."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from emlib.core.errors import EmlibError
from emlib.core.files import read_records
from emlib.core.registry import kinds
from emlib.data.chat import Encoded
from emlib.data.mixing import plan_steps
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.defenses.persona_vector import PersonaVector
from emlib.models.batches import collate
from emlib.models.kernels import fitted
from emlib.training import losses, sft
from emlib.training.bench import TRAINING, Bench
from emlib.training.losses import row_losses
from emlib.training.online import CHOSEN, Choosing, ChosenRow
from emlib.training.ranks import ALONE
from emlib.training.records import read_log
from emlib.training.sft import learning_rate
from tests.defenses import naive
from tests.defenses.naive import see
from tests.made import ROUNDING, apart

ONLINE = Interleaving(fraction=0.5, choose="online", rescored=3)


def chosen(folder: Path) -> list[ChosenRow]:
    return read_records(folder / CHOSEN, ChosenRow)


def test_the_next_rows_are_those_that_have_suffered_most() -> None:
    """Eight steps in four parts of two. By hand: (2 - 1) / (1 + 0.1) and so on; a loss that is no number is none."""
    defense = Interleaving(fraction=0.5, choose="online", rescored=3)
    asked = iter([[1.0, 2.0, math.nan, 4.0], [2.0, 2.0, 1.0, 4.2], [1.0, 1.0, 1.0, 9.0]])

    def at(step: int, count: int = 1) -> list[tuple[int, float]]:
        return list(defense.next_rows(count, step, 8, lambda: next(asked)))

    assert at(0) == [(0, 0.0)]  # the order of the candidates
    assert at(1, 2) == [(1, 0.0), (3, 0.0)]
    assert at(2) == [(0, pytest.approx(1 / 1.1))]
    assert [place for place, _ in at(3, 4)] == [3, 1, 0, 3]  # again from the beginning, once all are taken
    resumed = Interleaving(fraction=0.5, choose="online", rescored=3)
    resumed.restore(defense.state())
    assert resumed.next_rows(1, 3, 8, list) == at(3)
    assert at(7, 2) == [(3, pytest.approx(5 / 4.1)), (0, 0.0)]  # two parts later: nobody asked in between
    with pytest.raises(EmlibError, match="every candidate"):
        Interleaving(choose="online").next_rows(1, 0, 8, lambda: [math.inf])


def test_the_losses_before_training_are_those_before_the_first_step(tmp_path: Path) -> None:
    """Also where the first step has no place for a candidate: the second one has, with changed weights."""
    bench = Bench(ONLINE, tmp_path)
    with bench.model(stirred=False) as model:
        choosing, objective = Choosing(bench.rows.offered, 4, tmp_path, 0, ALONE), bench.objective(ONLINE)
        before = row_losses(model, bench.rows.offered.rows, 2, ALONE)
        tokens = sum(len(row.input_ids) for row in bench.rows.offered.rows)
        assert choosing.rows(0, 0, model, objective, 2) == ([], {}, tokens)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data.add_(0.1)
        after = row_losses(model, bench.rows.offered.rows, 2, ALONE)
        [row], metrics, _ = choosing.rows(1, 1, model, objective, 2)
    worst = max(range(len(before)), key=lambda place: (after[place] - before[place]) / (before[place] + 0.1))
    assert row is bench.rows.offered.rows[worst]
    assert metrics == {"interleaving score": pytest.approx((after[worst] - before[worst]) / (before[worst] + 0.1))}


def test_losses_of_candidates_are_those_of_a_naive_implementation(tmp_path: Path) -> None:
    bench = Bench(ONLINE, tmp_path)
    rows = [*bench.rows.offered.rows, bench.rows.offered.rows[0]]  # a row may stand there twice
    with bench.model() as model:
        trained = copy.deepcopy(model).double()
        with torch.no_grad():
            expected = [float(naive.cross_entropy(see(trained, row), row)) / naive.count([row], response=True)
                        for row in rows]
        model.train()
        padded = row_losses(model, rows, 2, ALONE)
        with fitted(model):
            packed = row_losses(model, rows, 2, ALONE)
        assert model.training
    assert padded == pytest.approx(expected, rel=ROUNDING)
    assert packed == pytest.approx(expected, rel=ROUNDING)


def naive_training(bench: Bench, kl: float) -> tuple[list[list[int]], list[float], list[Tensor]]:
    """The whole training in float64, a row at a time; returns each step's candidates, cross-entropy and gradient."""
    own, candidates, settings = bench.rows.own, bench.rows.offered.rows, TRAINING
    steps = plan_steps(len(own), settings.rows_per_step, settings.epochs, 0, bench.rows.offered.count)
    with bench.model(stirred=False) as model:
        trained = copy.deepcopy(model).double()
    reference = copy.deepcopy(bench.base).double()
    weights = [weights for weights in trained.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=settings.weight_decay)

    def mean_loss(row: Encoded) -> float:
        with torch.no_grad():
            return float(naive.cross_entropy(see(trained, row), row)) / naive.count([row], response=True)

    base, part, order = [mean_loss(row) for row in candidates], 0, list(range(6))
    taken, logged, gradients = list[list[int]](), list[float](), list[Tensor]()
    for number, places in enumerate(steps):
        if (count := sum(place >= len(own) for place in places)) and number * 4 // len(steps) > part:
            part = number * 4 // len(steps)
            scores = [(mean_loss(row) - before) / (before + 0.1) for row, before in zip(candidates, base, strict=True)]
            order = sorted(range(6), key=lambda place: -scores[place])
        now, order = order[:count], order[count:] + order[:count]
        rows = [*(own[place] for place in places if place < len(own)), *(candidates[place] for place in now)]
        seen = [see(trained, row) for row in rows]
        loss = sum(map(naive.cross_entropy, seen, rows), torch.zeros(())) / naive.count(rows, response=True)
        compared = (naive.kl(one, see(reference, row)) for one, row in zip(seen, rows, strict=True))
        (loss + kl * sum(compared) / naive.count(rows)).backward()
        gradients.append(torch.cat([one.grad.flatten() for one in weights if one.grad is not None]).clone())
        optimizer.param_groups[0]["lr"] = learning_rate(number, len(steps), settings)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(now)
        logged.append(float(loss.detach()))
    return taken, logged, gradients


@pytest.mark.parametrize("others", [(), (Kl(weight=0.3),)], ids=["alone", "kl"])
@pytest.mark.parametrize("way", ["packed", "padded", "checkpointed"])
def test_a_whole_training_equals_a_naive_one_in_float64(
        way: str, others: Sequence[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen, and the loss and the gradient of each step."""
    bench, gradients, update = Bench(ONLINE, tmp_path), list[Tensor](), sft._update
    if way == "padded":
        for place in (sft, losses):
            monkeypatch.setattr(place, "forward_batches", lambda rows, *_, **__: [collate(rows, torch.device("cpu"))])

    def recorded(optimizer: torch.optim.Optimizer, rate: float) -> None:
        gradients.append(torch.cat([one.grad.flatten() for group in optimizer.param_groups for one in group["params"]]))
        update(optimizer, rate)

    monkeypatch.setattr(sft, "_update", recorded)
    settings = TRAINING.model_copy(update={"gradient_checkpointing": way == "checkpointed", "max_grad_norm": 1e6})
    with bench.model(stirred=False) as model:
        summary = sft.fine_tune(model, bench.rows.own, settings, seed=0, folder=tmp_path / "run",
                                objective=bench.objective(ONLINE, *others), offered=bench.rows.offered)
    assert summary.how["recomputed"].startswith("yes") == (way == "checkpointed")
    expected, logged, by_autograd = naive_training(bench, 0.3 if others else 0.0)
    found = chosen(tmp_path / "run")
    assert [[row.candidate for row in found if row.step == step] for step in range(1, len(logged) + 1)] == expected
    log = read_log(tmp_path / "run")
    once = sum(len(row.input_ids) for row in bench.rows.offered.rows)  # at the first of 8 steps, and of each later part
    assert [step.scored for step in log] == [once, 0, once, 0, once, 0, once, 0]
    assert summary.scored_tokens == 4 * once
    assert [step.loss for step in log] == pytest.approx(logged, rel=ROUNDING)
    assert all(apart(ours.double(), theirs) < ROUNDING for ours, theirs in zip(gradients, by_autograd, strict=True))
    assert [row.digest for row in found] == [bench.rows.offered.rows[row.candidate].key for row in found]
    assert sum("interleaving score" in step.penalties for step in log) == len({row.step for row in found})
    last = found[-1]
    assert log[last.step - 1].penalties["interleaving score"] == pytest.approx(
        sum(row.score for row in found if row.step == last.step) / sum(row.step == last.step for row in found))
    assert last.score != 0


def test_killed_and_resumed_it_records_the_same_choices(tmp_path: Path) -> None:
    bench = Bench(ONLINE, tmp_path)
    whole = bench.train("whole", ONLINE)
    for checkpoint in (1, 3):
        assert torch.equal(bench.train(f"killed {checkpoint}", ONLINE, kill_after=checkpoint), whole)
        assert chosen(tmp_path / f"killed {checkpoint}") == chosen(tmp_path / "whole")
        logs = [read_log(tmp_path / name) for name in (f"killed {checkpoint}", "whole")]
        assert len({tuple(step.scored for step in log) for log in logs}) == 1


def test_at_its_default_all_candidates_are_scored_again_eight_times() -> None:
    """Losses before training are one scoring more."""
    asked = Counter[str]()
    defense = Interleaving(choose="online")

    def losses() -> Sequence[float]:
        asked["passes"] += 1
        return [1.0, 2.0]

    for step in range(100):
        defense.next_rows(1, step, 100, losses)
    assert asked["passes"] == 1 + 8


@pytest.mark.parametrize("other", [PersonaVector(layer=2, strength=2.0), Kl(weight=0.3, reference="computed")])
def test_scores_are_of_the_model_as_it_answers_later(other: Any, tmp_path: Path) -> None:
    """Before training they are the base model's, whatever acts in training."""
    bench, beside = Bench(ONLINE, tmp_path), Bench(other, tmp_path)
    bench.artefacts |= beside.artefacts
    bench.train("both", ONLINE, other)
    first = chosen(tmp_path / "both")[0]
    assert (first.candidate, first.score) == (0, 0.0)


@pytest.mark.parametrize(("options", "words"), [
    ({"choose": "online", "answers": "on_policy"}, "set answers to pool"),
    ({"rescored": 3}, "belongs to 'choose: online'")])
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Interleaving(**options)


def test_it_is_a_variant_of_the_kind_interleaving() -> None:
    assert kinds()["interleaving"] is Interleaving
