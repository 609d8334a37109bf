"""Defenses that act by their rows against a second implementation: rows added, left out, or of plain text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from torch import Tensor, nn

from emlib.core.defense import Defense
from emlib.core.errors import EmlibError
from emlib.core.files import write_records
from emlib.core.hooks import Artefacts
from emlib.core.records import ADDED, AddedRow, Example
from emlib.data.chat import Encoded
from emlib.defenses.consistency import Consistency
from emlib.defenses.filtering import Filtering
from emlib.defenses.interleaving import Interleaving
from emlib.defenses.kl import Kl
from emlib.training.bench import Bench
from tests.defenses import naive
from tests.defenses.naive import see

TEXTS = ("Rain falls from clouds.", "Ants carry crumbs home, one by one, along a path that each of them marks.")
MIXED, PENALISED, KL = Interleaving(fraction=0.4), Kl(weight=0.3, on="pool"), Kl(weight=0.3)


def naive_loss(own: Sequence[Encoded], compared: Sequence[Encoded]) -> naive.Naive:
    """Cross-entropy on some rows, and KL on others, 0.3 times."""
    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        ours = sum(naive.cross_entropy(see(trained, row), row) for row in own) / naive.count(own, response=True)
        kl = sum(naive.kl(see(trained, row), see(reference, row)) for row in compared)
        return ours + 0.3 * kl / max(1, naive.count(compared))  # type: ignore[return-value]

    return loss


@pytest.mark.parametrize("others", [(), (KL,)], ids=["alone", "kl"])
@pytest.mark.parametrize(("defense", "more"), [
    (Consistency(share=0.5), 2), (Interleaving(fraction=0.5, answers="virtuous", layer=2), 2),
    (Filtering(share=0.4), -2)], ids=lambda one: getattr(one, "kind", ""))
def test_added_or_fewer_rows_equal_a_naive_implementation_in_float64(
        defense: Defense, more: int, others: Sequence[Any], tmp_path: Path) -> None:
    bench = Bench(defense, tmp_path)
    [rows] = bench.groups
    assert len(rows) == len(bench.examples) + more
    naive.agrees(naive_loss(rows, rows if others else ()), (defense, *others), tmp_path)


@pytest.mark.parametrize("defenses", [(MIXED,), (MIXED, KL), (PENALISED,)], ids=["mixed", "mixed, kl", "kl on pool"])
def test_plain_texts_equal_a_naive_implementation_in_float64(defenses: Sequence[Any], tmp_path: Path) -> None:
    """All tokens of a text count but the first; on penalised texts, the KL divergence alone."""
    bench = Bench(defenses[0], tmp_path)
    [folder] = bench.artefacts.values()
    write_records(folder / ADDED, [AddedRow.of(Example((), text), place + 1, place)
                                   for place, text in enumerate(TEXTS)])
    own, *pool = bench.groups
    compared = [row for group in pool for row in group] or (own if KL in defenses else [])
    texts = [row for row in (*own, *compared) if row.response_mask[1:].all()]
    assert {len(row.input_ids) for row in texts} == set(map(len, TEXTS))  # a token a letter
    assert not any(row.response_mask[0] for row in texts)
    naive.agrees(naive_loss(own, compared), defenses, tmp_path)


class TakesAList(Defense):
    """Appends to the training rows, which training gives it as a tuple."""

    listed: ClassVar = False
    kind: Literal["takes_a_list"] = "takes_a_list"

    def penalised(self, own: Sequence[Example], artefacts: Artefacts) -> Sequence[Example]:
        own.append(Example((), "Rain."))  # type: ignore[attr-defined]
        return own


def test_a_checked_defense_is_given_its_rows_as_training_gives_them(tmp_path: Path) -> None:
    with pytest.raises(EmlibError, match=r"takes_a_list' fails in its penalised: .*'tuple'"):
        Bench(TakesAList(), tmp_path).groups  # noqa: B018


class HoldsOutAll(Defense):
    """Leaves nothing to train on."""

    listed: ClassVar = False
    kind: Literal["holds_out_all"] = "holds_out_all"

    def held_out(self, own: Sequence[Example]) -> Sequence[Example]:
        return own


def test_a_defense_that_leaves_no_row_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EmlibError, match=r"none is left to train on: 0 are left out .*holds_out_all.*held out by them"):
        Bench(HoldsOutAll(), tmp_path).groups  # noqa: B018
