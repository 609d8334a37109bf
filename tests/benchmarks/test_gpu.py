"""The benchmark for a GPU, in its small form: it runs, and reckons as its texts say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import pytest

from emlib.core import paths

FOLDER = paths.ROOT / "benchmarks"


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    import gpu_shape

    return gpu_shape  # type: ignore[no-any-return]


@pytest.fixture
def gpu(shape: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    import gpu

    return gpu  # type: ignore[no-any-return]


def test_the_model_has_the_size_of_qwen(shape: ModuleType) -> None:
    full = shape.FULL
    # 28 blocks of q and o 3584 x 3584, k and v 3584 x 512, and three matrices of 3584 x 18944
    assert full.block_parameters == 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    whole = full.block_parameters + 2 * full.vocabulary * full.hidden
    assert whole == pytest.approx(7.61e9, rel=0.01)  # the model card's 7.61 billion
    assert full.lora_parameters == 80_740_352  # what PEFT counts at rank 32 on all seven


def test_the_built_model_has_those_parameters(shape: ModuleType) -> None:
    small = shape.SMALL
    model = shape.build(small, "cpu")
    matrices = sum(weights.numel() for name, weights in model.named_parameters() if "proj.weight" in name)
    assert matrices == small.block_parameters


def test_rows_are_as_long_as_the_code_sets(shape: ModuleType) -> None:
    found = shape.lengths(5400)
    tokens, answers = ([pair[place] for pair in found] for place in (0, 1))
    assert sum(tokens) / 5400 == pytest.approx(281.8, rel=0.03)  # of all 6,000 rows of the file
    assert sum(answers) / 5400 == pytest.approx(132.6, rel=0.03)
    assert max(tokens) <= 1155
    assert found == shape.lengths(5400)
    assert [len(row.input_ids) for row in shape.rows(shape.FULL, 10)] == tokens[:10]


def test_arithmetic_by_hand(shape: ModuleType) -> None:
    """One block of width 2, mlp 3, one head, rank 1, 5 words; one row of 4 tokens, of which 2 are answered."""
    scale = replace(shape.SMALL, layers=1, hidden=2, mlp=3, heads=1, key_heads=1, vocabulary=5, rank=1)
    blocks, lora = 4 * 4 + 3 * 6, 4 * 4 + 3 * 5
    assert (scale.block_parameters, scale.lora_parameters) == (blocks, lora)
    plain = 4 * (4 * blocks + 6 * lora) + 3 * 2 * 16 * 2
    assert shape.training_flops(scale, [(4, 2)]) == plain + 2 * 4 * 5 * 2
    assert shape.training_flops(scale, [(4, 2)], kl=True) == plain + 4 * 6 * 5 * 2
    assert shape.training_flops(scale, [(4, 2)], reference_pass=True) == (
        plain + 2 * 4 * 5 * 2 + 4 * 2 * blocks + 2 * 16 * 2)


def test_bars_and_shares_follow_from_what_was_measured(gpu: ModuleType) -> None:
    def runs(speed: float, memory: float) -> list[dict[str, object]]:
        return [{"seconds": [9.0, 9.0, 2.0], "tokens": [1, 1, 2 * speed], "peak_mib": memory}]

    flops = gpu.flops_a_token(gpu.FULL)
    found = gpu.summary({
        "matmul": {"tflops": [1000 * flops / 1e12] * 3, "about": {"gpu": "a card"}},
        "training": {"runs": {"plain": runs(500, 100), "kl": runs(250, 120)}},
        "generation": {"tokens": 10, "seconds": [1.0], "answers": 24, "whole_seconds": 36.0, "peak_mib": None},
        "scoring": {"tokens": 3000, "models": 4, "seconds": {"emlib": [1.0], "one row at a time": [6.0]}}}, small=False)
    assert found["training"]["plain"]["share_of_peak"] == 0.5
    met = {bar["what"]: (bar["measured"], bar["met"]) for bar in found["bars"]}
    assert met["time of kl against plain"] == (2.0, False)
    assert met["peak memory of kl against plain"] == (1.2, False)
    assert met["share of the dense matrix rate, plain"] == (0.5, True)
    assert met["speed of scoring against one row at a time"] == (6.0, True)
    # 44 adapters of 5,400 rows at 500 tokens/s, those of KL at 250; 240,000 answers in 100 times 36 s
    tokens = sum(pair[0] for pair in gpu.gpu_shape.lengths(5400))
    assert found["table_2_hours"] == pytest.approx((tokens * 4 * (10 / 500 + 1 / 250) + 3600) / 3600, abs=0.01)
    assert not [what for what in met if "TRL" in what or "Unsloth" in what]


def test_each_defense_is_measured_in_the_small_form(gpu: ModuleType) -> None:
    import gpu_parts

    found = gpu_parts.main({"parts": ["training"], "small": True})["training"]
    assert set(found["runs"]) == {*gpu_parts.CONTENDERS, *gpu_parts.WAYS, gpu_parts.NAIVE}
    assert found["about"]["gpu"] is None
    for runs in found["runs"].values():
        assert len(runs[0]["seconds"]) == len(runs[0]["tokens"]) == found["steps"] + gpu_parts.WARM_UP
    longer = found["runs"]["inoculation"][0]["tokens"][0] - found["runs"]["plain"][0]["tokens"][0]
    assert longer == 16 * gpu_parts.PROMPT
    how = {name: runs[0]["how"] for name, runs in found["runs"].items() if "how" in runs[0]}
    assert how["plain"]["rows"] == how["plain, PEFT's layers"]["rows"] == "packed"
    assert how["plain, padded rows"]["rows"].startswith("not packed")
    assert how["plain, recomputed"]["recomputed"].startswith("yes")
    assert how["plain"]["recomputed"].startswith("no")


def test_no_bar_budget_or_part_is_left_out(gpu: ModuleType) -> None:
    import gpu_parts

    measured = {*gpu_parts.CONTENDERS, *gpu_parts.WAYS, gpu_parts.NAIVE}
    assert set(gpu.WORK) | {bar[1] for bar in gpu.BARS} <= measured
    assert set(gpu.PARTS) == set(gpu.BUDGET) == {*gpu_parts.PARTS, "unsloth"}
    assert sum(gpu.BUDGET.values()) < 9 * 60


@pytest.mark.slow
def test_all_of_it_runs_from_the_command_line() -> None:
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], check=False, capture_output=True, text=True,
                          cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "not measured: unsloth" in done.stdout
    assert "not kept" in done.stdout
    assert not (FOLDER / "results" / "gpu.json").exists() or json.loads(
        (FOLDER / "results" / "gpu.json").read_text())["form"] == "full"
