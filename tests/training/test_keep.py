"""Adapters kept during training: the same training, the right steps, and the same ones after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emlib.config import Lora, Training
from emlib.core.errors import EmlibError, ProfileError
from emlib.core.schema import check
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.training.keep import Keep, kept_in, step_of
from emlib.training.sft import fine_tune
from tests.made import some_rows

SETTINGS = Training(epochs=1, batch_size=1, gradient_accumulation=1, learning_rate=1e-2, warmup_steps=0,
                    optimizer="adamw_torch", checkpoint_every=2)
ROWS = some_rows(8)  # 8 steps


def trained(tiny: ChatModel, folder: Path, keep: tuple[float, ...] = (), *, then_stop: bool = False,
            saved: Callable[[Path], None] = lambda path: None) -> dict[str, Tensor]:
    """Train, and return the final weights; `saved` is called after each adapter that is kept."""
    def save(path: Path) -> None:
        adapters.save(model, path, "tiny")
        saved(path)

    with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 0) as model:
        fine_tune(model, ROWS, SETTINGS, seed=0, folder=folder, keep=Keep(keep, save, then_stop))
        adapters.save(model, folder / "final", "tiny")
    return load_file(folder / "final" / "adapter_model.safetensors")


def kept(folder: Path, share: float) -> dict[str, Tensor]:
    return load_file(kept_in(folder, share) / "adapter_model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("share", "total", "step"), [(0.1, 10, 1), (0.25, 8, 2), (0.01, 10, 1), (0.99, 10, 10)])
def test_a_share_is_the_nearest_step(share: float, total: int, step: int) -> None:
    assert step_of(share, total) == step


def test_keeping_changes_no_weight_and_keeps_the_weights_of_its_step(tiny: ChatModel, tmp_path: Path) -> None:
    plain = trained(tiny, tmp_path / "plain")
    assert same(plain, trained(tiny, tmp_path / "kept", (0.25, 0.5)))
    for share, steps in ((0.25, 2), (0.5, 4)):
        # the same as training that ends there, with the rates of the whole run
        stopped = trained(tiny, tmp_path / f"stopped {share}", (share,), then_stop=True)
        assert same(kept(tmp_path / "kept", share), stopped)
        assert f'"steps": {steps}, "of": 8' in (kept_in(tmp_path / "kept", share) / "kept.json").read_text()
    assert not same(kept(tmp_path / "kept", 0.5), plain)


@pytest.mark.parametrize("share", [0.375, 0.5])  # three steps, one after a checkpoint, and four, at a checkpoint
def test_a_run_that_was_interrupted_while_it_kept_one_keeps_the_same(tiny: ChatModel, tmp_path: Path,
                                                                     share: float) -> None:
    def interrupt(path: Path) -> None:
        raise EmlibError("interrupted")

    whole = trained(tiny, tmp_path / "whole", (share,))
    with pytest.raises(EmlibError, match="interrupted"):
        trained(tiny, tmp_path / "run", (share,), saved=interrupt)
    assert not kept_in(tmp_path / "run", share).exists()
    assert same(whole, trained(tiny, tmp_path / "run", (share,)))
    assert same(kept(tmp_path / "whole", share), kept(tmp_path / "run", share))


def test_shares_are_listed_or_equal_parts_and_no_part_of_a_key() -> None:
    assert check(Training, {"keep": [0.5, 0.1, 1.0]}, "here").kept(8) == (0.1, 0.5)
    assert check(Training, {"keep": 4}, "here").kept(8) == (0.25, 0.5, 0.75)
    assert check(Training, {"keep": 4}, "here").identity == Training().identity
    for wrong in ([0], [1.5], [0.5, 0.5], 1, "all", {"every": 5}, {"every": 0}):
        with pytest.raises(ProfileError):
            check(Training, {"keep": wrong}, "here")


def test_every_n_steps_are_counted_in_plain_fine_tuning() -> None:
    """48 rows in steps of 4, three times: 36 steps. 46 rows take as many, because each epoch's last step is smaller."""
    for rows in (48, 46):
        settings = check(Training, {"keep": {"every": 10}, "train_rows": rows, "epochs": 3, "batch_size": 4,
                                    "gradient_accumulation": 1}, "here")
        assert [step_of(share, 36) for share in settings.kept(rows)] == [10, 20, 30]
        assert [step_of(share, 72) for share in settings.kept(rows)] == [20, 40, 60]  # of a run with as many rows added
        assert settings.identity == settings.model_copy(update={"keep": ()}).identity
    exact = check(Training, {"keep": {"every": 12}, "train_rows": 48, "epochs": 3, "batch_size": 4,
                             "gradient_accumulation": 1}, "here")
    assert [step_of(share, 36) for share in exact.kept(48)] == [12, 24]  # the last step is kept in any case
    with pytest.raises(ProfileError, match="State it, such as train_rows: 5400"):
        check(Training, {"keep": {"every": 10}}, "here")
    with pytest.raises(ProfileError, match="names 1249 adapters a run"):
        check(Training, {"keep": {"every": 1}, "train_rows": 20000}, "here")


def test_further_training_that_was_interrupted_goes_on_from_where_it_was(tiny: ChatModel, tmp_path: Path) -> None:
    """With a limit of 11 steps, more than the epoch's 8, from a saved adapter; the checkpoint is after step 4."""
    trained(tiny, tmp_path / "first")

    def further(folder: Path, after: Callable[[Path], None]) -> dict[str, Tensor]:
        def save(path: Path) -> None:
            after(path)
            adapters.save(model, path, "tiny")

        with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 5, tmp_path / "first" / "final") as model:
            summary = fine_tune(model, ROWS, SETTINGS, seed=0, folder=folder, keep=Keep((5 / 11,), save), limit=11)
            adapters.save(model, folder / "final", "tiny")
        assert summary.steps == 11
        return load_file(folder / "final" / "adapter_model.safetensors")

    def interrupt(path: Path) -> None:
        raise EmlibError("interrupted")

    whole = further(tmp_path / "whole", lambda path: None)
    with pytest.raises(EmlibError, match="interrupted"):
        further(tmp_path / "run", interrupt)
    assert same(whole, further(tmp_path / "run", lambda path: None))
    with adapters.new_lora(tiny.model, Lora(rank=2, alpha=4), 5, tmp_path / "first" / "final") as model:
        adapters.save(model, tmp_path / "same", "tiny")
    assert same(load_file(tmp_path / "same" / "adapter_model.safetensors"), load_file(
        tmp_path / "first" / "final" / "adapter_model.safetensors"))
    with pytest.raises(ProfileError, match="does not fit"), adapters.new_lora(
            tiny.model, Lora(rank=2, alpha=4, target_modules=("q_proj",)), 5, tmp_path / "first" / "final"):
        pass
