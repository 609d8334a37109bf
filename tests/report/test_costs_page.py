"""docs/costs.md is what its program writes, and the memory that it states follows from the model's shape by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from emlib.config import load_profile
from emlib.core import paths
from emlib.report import costs_page
from emlib.report.estimate import Estimate
from emlib.study.plan.memory import cache_memory, loaded_memory, training_memory
from emlib.study.study import open_study
from emlib.training.budget import MARGIN


@pytest.fixture(autouse=True)
def _nothing_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("EMLIB_CACHE_DIR", str(tmp_path / "nothing"))


def test_the_page_states_what_its_program_computes() -> None:
    text = costs_page.PAGE.read_text(encoding="utf-8")
    assert costs_page.page(text) == text, "write it anew: python -m emlib.report.costs_page"


def test_the_readme_states_the_same() -> None:
    text = costs_page.FRONT.read_text(encoding="utf-8")
    assert costs_page.front(text) == text, "write it anew: python -m emlib.report.costs_page"


def test_the_hours_of_the_page_are_those_of_the_plan() -> None:
    row = costs_page.costs().set_index("profile").loc["table2-7b"]
    sums = Estimate(open_study("table2-7b")).sums().iloc[0]
    assert row["GPU-hours in all"] == f"{sums['GPU-hours']:,.0f}"
    assert row["judge $"] == f"{sums['price $']:,.0f}"


def test_the_pages_state_how_many_runs_and_requests_there_are() -> None:
    """A judge without log-probabilities is asked ten times for each score."""
    study = open_study("grpo-3b")
    trained = [run.method != "untrained" for run in study.runs("grpo")]
    assert (sum(trained), len(trained) - sum(trained), len(study.runs())) == (36, 3, 1)
    assert "The 40 runs of `grpo-3b` are 36 trainings, three evaluations" in costs_page.PAGE.read_text(encoding="utf-8")
    once = costs_page.costs().set_index("profile").loc["table2-7b", "judge requests"]
    page = " ".join((paths.ROOT / "docs" / "judges-and-rubrics.md").read_text(encoding="utf-8").split())
    assert f"`table2-7b` takes {10 * int(once.replace(',', '')):,} requests, and {once} with OpenAI" in page


def test_the_memory_of_seven_billion_parameters_by_hand() -> None:
    profile = load_profile("paper-7b")
    found = training_memory(profile)
    quantized = training_memory(profile, four_bit=True)
    assert found is not None
    assert quantized is not None
    inside = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    lora = 28 * 32 * (2 * 2 * 3584 + 2 * (3584 + 512) + 3 * (3584 + 18944))  # q, o; k, v; gate, up, down
    block = 2 * (6 * 3584 + 3 * 18944 + 2 * 512)  # bytes a token
    words = (7.61e9 - inside) / 3584
    fixed = lora * (4 + 4 + 1 + 1) + 512 * words * 6  # weights, gradient, two moments of 8 bits; logits
    tokens = 4 * 2048
    assert found.saved == pytest.approx(2 * 7.61e9 + MARGIN * (fixed + tokens * 28 * block))
    assert found.recomputed == pytest.approx(2 * 7.61e9 + MARGIN * (fixed + tokens * (28 * 2 * 3584 + block)))
    assert found.saved - quantized.saved == pytest.approx(inside * (2 - 0.5 - 4 / 64))
    assert 28 * block == pytest.approx(4.5e6, rel=0.02)  # measured on a CPU, benchmarks/README.md


def test_the_example_fits_its_card() -> None:
    """Both models in 4 bits: 0.5625 bytes for each of the weights inside the blocks, two for the others."""
    profile = load_profile(costs_page.EXAMPLE)
    judge = loaded_memory(profile.judge.model)
    inside = 28 * (2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18944)
    assert judge == pytest.approx(2 * 7.61e9 - inside * (2 - 0.5 - 4 / 64))
    assert cache_memory(profile.model, 64, 700) == 64 * 700 * 28 * 2 * 2 * 512
    training = training_memory(profile)
    assert training is not None
    assert training.recomputed + judge < 24e9
    page = costs_page.PAGE.read_text(encoding="utf-8")
    assert page.count(costs_page.example()) == 1


def test_several_gpus_share_the_weights_and_an_unknown_model_has_no_estimate() -> None:
    profile = load_profile("paper-32b")
    two = profile.model_copy(update={"job": profile.job.model_copy(update={"gpus": 2})})
    one, half = training_memory(profile), training_memory(two)
    assert one is not None
    assert half is not None
    assert one.saved - half.saved == pytest.approx(32.5e9)  # half of two bytes a parameter
    assert training_memory(load_profile("tiny")) is None


def test_the_plan_of_a_model_for_a_gpu_states_its_memory() -> None:
    [line] = [line for line in Estimate(open_study("table2-7b")).summary() if line.startswith("GPU memory")]
    assert "21 GB" in line
    assert "not measured" in line
