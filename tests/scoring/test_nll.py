"""Equation 4: against transformers' own loss, for every batching, under switched adapters, across kills."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from emlib.core.errors import ProfileError, StoreError
from emlib.core.files import value_of
from emlib.core.records import Example, Message
from emlib.data.chat import Encoded, encode
from emlib.models import adapters
from emlib.models.batches import response_nll
from emlib.models.kernels import fitted, shares
from emlib.models.kernels.packing import rows_in
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer
from emlib.scoring.loss_cache import LossCache
from emlib.scoring.nll import batch_nll, batches, digest, score
from emlib.training.losses import mean_loss, row_losses
from tests.data.test_chat import EMPTY, OPEN, thinking


def by_transformers(model: torch.nn.Module, row: Encoded) -> float:
    """The loss that transformers computes itself from labels."""
    ids = torch.from_numpy(row.input_ids)[None]
    labels = ids.masked_fill(~torch.from_numpy(row.response_mask)[None], -100)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("budget", [1, 200, 400, 10_000])
def test_it_is_transformers_own_loss_for_any_batching_order_and_padding(
        tiny: ChatModel, rows: list[Encoded], adapter: Callable[..., Path], tmp_path: Path, budget: int) -> None:
    with adapters.loaded(tiny.model, adapter(0)) as model:
        expected = [by_transformers(model, row) for row in rows]
        found = score(model, rows, LossCache(tmp_path / "forward.jsonl"), budget, "")
        back = score(model, rows[::-1], LossCache(tmp_path / "back.jsonl"), budget, "")
    assert found == pytest.approx(expected, abs=1e-4)
    assert back[::-1] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.1  # rows are told apart


@pytest.mark.parametrize(("asked", "past"), [("", EMPTY), (OPEN, "")])
def test_the_empty_think_block_before_an_answer_counts_in_no_loss(
        tiny: ChatModel, asked: str, past: str, tmp_path: Path) -> None:
    """A fine-tuned model always writes it and the base model never does, so that short answers would score highest."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = thinking(asked, past)
    rows = [encode(tokenizer, Example((Message("user", "Hi"),), text), 500) for text in ("Hello", "A longer answer")]
    with torch.no_grad():
        answers = [tokens[row.before:] for row, tokens in zip(rows, response_nll(tiny.model, rows), strict=True)]
    assert [tokenizer.decode(row.input_ids[-len(answer):]) for row, answer in zip(rows, answers, strict=True)] == [
        "Hello<|im_end|>", "A longer answer<|im_end|>"]
    expected, cache = [float(answer.mean()) for answer in answers], LossCache(tmp_path / "nll.jsonl")
    with cache.opened():
        cache.append({digest(row): 99.0 for row in rows})  # as computed with the block
    assert score(tiny.model, rows, cache, 1000, "") == pytest.approx(expected, rel=1e-4)
    assert batch_nll(tiny.model, rows) == pytest.approx(expected, rel=1e-4)
    assert row_losses(tiny.model, rows, 2) == pytest.approx(expected, rel=1e-4)
    assert mean_loss(tiny.model, rows, 2) == pytest.approx(float(torch.cat(answers).mean()), rel=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("budget", [1, 150, 400, 10_000])
def test_batches_hold_every_row_once_within_the_budget(rows: list[Encoded], budget: int, packed: bool) -> None:
    lengths = [len(row.input_ids) for row in rows]
    found = batches(lengths, budget, packed)
    assert sorted(place for batch in found for place in batch) == list(range(len(rows)))
    for batch, after in zip_longest(found, found[1:]):
        sizes = [lengths[place] for place in batch] if packed else [lengths[batch[0]]] * len(batch)
        assert len(batch) == 1 or sum(sizes) <= budget
        if after is not None:  # and no batch is smaller than it has to be
            assert sum(sizes) + (lengths[after[0]] if packed else sizes[0]) > budget
    flat = [lengths[place] for batch in found for place in batch]
    assert flat == sorted(lengths, reverse=True)
    assert batches([], budget) == []


def test_switching_adapters_changes_nothing_in_the_base(
        tiny: ChatModel, rows: list[Encoded], adapter: Callable[..., Path]) -> None:
    folders = {f"k{seed}": adapter(seed) for seed in range(3)}
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    alone = {None: batch_nll(tiny.model, rows[:3])}
    for name, folder in folders.items():
        with adapters.loaded(tiny.model, folder) as model:
            alone[name] = batch_nll(model, rows[:3])
    with adapters.switchable(tiny.model, tiny.name, folders) as under:
        for name in ("k2", None, "k0", "k1", None, "k2"):
            with under(name) as model:
                assert batch_nll(model, rows[:3]) == alone[name]
                assert not any(p.requires_grad for p in model.parameters())
    assert len({tuple(losses) for losses in alone.values()}) == 4
    after = tiny.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_adapter_of_another_base_model_is_refused(tiny: ChatModel, adapter: Callable[..., Path]) -> None:
    with pytest.raises(ProfileError, match=r"belongs to 'someone/other-7b', but the profile's model is 'tiny'"), \
            adapters.switchable(tiny.model, "tiny", {"a": adapter(0, "someone/other-7b")}):
        pass
    for layers, hidden in ((2, 64), (6, 64), (4, 32)):  # fewer and more layers, and other shapes, under the same name
        other = ChatModel("tiny", build_model(0, layers, hidden, torch.float32), build_tokenizer())
        with pytest.raises(ProfileError, match="does not fit 'tiny'"), \
                adapters.switchable(tiny.model, "tiny", {"a": adapter(layers + hidden, chat=other)}):
            pass
    with pytest.raises(StoreError, match="there is no adapter"), \
            adapters.switchable(tiny.model, "tiny", {"a": Path("nowhere")}):
        pass
    assert not any("lora" in name for name, _ in tiny.model.named_modules())  # off again, whatever happened


class Counting(torch.nn.Module):
    """Stands before a model and counts the rows that go through it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.rows = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: object, args: Sequence[torch.Tensor], kwargs: dict[str, torch.Tensor]) -> None:
        packed = kwargs["position_ids"]
        self.rows += len(kwargs["input_ids"]) if packed is None else len(rows_in(packed, packed.shape[1]))


def test_no_row_is_computed_twice(tiny: ChatModel, rows: list[Encoded], tmp_path: Path) -> None:
    with fitted(tiny.model):
        shares(tiny.model)  # the check that rows may share their beginning has passes of its own
    counting, ledger = Counting(tiny.model.get_decoder()), LossCache(tmp_path / "nll.jsonl")
    first = score(tiny.model, rows[:6], ledger, 400, "")
    assert counting.rows == 6
    assert score(tiny.model, rows[:6], ledger, 400, "") == first
    assert score(tiny.model, [rows[5], rows[0]], ledger, 7, "") == [first[5], first[0]]
    assert counting.rows == 6
    score(tiny.model, [*rows, rows[0]], ledger, 400, "")  # another pool that shares six rows
    assert counting.rows == len(rows)


def test_a_row_s_name_is_its_tokens(rows: list[Encoded]) -> None:
    row = rows[0]
    assert len({digest(r) for r in rows}) == len(rows)
    assert digest(Encoded(row.input_ids.copy(), row.response_mask.copy(), True)) == digest(row)
    shifted = row.response_mask.copy()
    shifted[shifted.argmax()] = False
    assert digest(Encoded(row.input_ids, shifted, False)) != digest(row)


def test_a_loss_that_is_no_number_is_kept_as_such(tiny: ChatModel, rows: list[Encoded], tmp_path: Path) -> None:
    tiny.model.get_output_embeddings().weight.data[0, 0] = math.nan
    ledger = LossCache(tmp_path / "nll.jsonl")
    for _ in range(2):
        assert all(math.isnan(loss) for loss in score(tiny.model, rows[:2], ledger, 400, ""))
    assert "NaN" not in ledger.path.read_text()  # JSON that others read too


def test_a_ledger_cut_at_any_byte_loses_the_last_batch_at_most(tmp_path: Path) -> None:
    lines = [{"a": 1.5, "b": 2.0}, {"c": math.inf}, {"d": 0.25}]
    whole = LossCache(tmp_path / "whole.jsonl")
    for line in lines:
        whole.append(line)
    content = whole.path.read_bytes()
    for cut in range(len(content) + 1):
        ledger = LossCache(tmp_path / "cut.jsonl")
        ledger.path.write_bytes(content[:cut])
        kept = content[:cut].count(b"\n")
        with ledger.opened() as known:
            assert set(known) == {name for line in lines[:kept] for name in line}
        ledger.append({"e": 1.0})  # and what is added next is read again
        with ledger.opened() as known:
            assert known["e"] == 1.0
            assert [value_of(line) for line in ledger.path.read_text().splitlines()][-1] == {"e": 1.0}


KILLED = """
import sys, time
from pathlib import Path
import torch
from emlib.data.chat import encode
from emlib.models.tiny import build_model, build_tokenizer
from emlib.scoring import nll
from emlib.scoring.loss_cache import LossCache
from emlib.core.records import Example, Message
torch.set_num_threads(1)
model, tokenizer = build_model(0, 4, 64, torch.float32).eval().requires_grad_(False), build_tokenizer()
rows = [encode(tokenizer, Example((Message("user", "Why?" * (n % 7 + 1)),), "So " * (n % 5 + 1) + str(n)), 2048)
        for n in range(60)]
inner = nll.batch_nll
def slow(*given):
    time.sleep(0.02)
    Path(sys.argv[2]).open("a").write(f"{len(given[1])}\\n")
    return inner(*given)
nll.batch_nll = slow
nll.score(model, rows, LossCache(Path(sys.argv[1])), 300, "")
"""


@pytest.mark.slow
def test_killed_at_any_row_it_goes_on_without_loss_or_repeat(tmp_path: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / name), str(tmp_path / f"{name}.rows")],
                                env=os.environ | {"EMLIB_HEADLESS": "1", "OMP_NUM_THREADS": "1"})

    assert start("whole").wait() == 0
    whole, moments, kills = (tmp_path / "whole").read_bytes(), random.Random(0), 0
    for at in (1, 6, 12):  # lines that are there when the kill comes
        process = start("killed")
        while process.poll() is None and (not (tmp_path / "killed").exists()
                                          or (tmp_path / "killed").read_bytes().count(b"\n") < at):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.03))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 1
    assert start("killed").wait() == 0
    assert (tmp_path / "killed").read_bytes() == whole  # the same batches, the same numbers, nothing twice
    computed = sum(map(int, (tmp_path / "killed.rows").read_text().split()))
    assert 60 <= computed <= 60 + kills * 5  # a batch in flight may be lost, as it was not written yet
