"""The pins of a GPU's packages: taken where there is one, else those of a CPU, and to be had together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emlib.core import paths

FOLDER = paths.ROOT / "requirements"
MAKEFILE = (paths.ROOT / "Makefile").read_text()


def pins(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pairs}


def test_a_gpu_has_the_packages_of_a_cpu_but_for_torch() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert {name for name in cpu if gpu.get(name) != cpu[name]} == {"torch"}
    assert {"unsloth", "bitsandbytes", "triton"} <= set(gpu)


def test_vllm_has_an_environment_of_its_own() -> None:
    assert "vllm" not in pins("gpu.txt")
    assert pins("vllm.txt")["torch"] != pins("gpu.txt")["torch"], "were they the same, one environment could do"


@pytest.mark.parametrize(("listed", "chosen"), [("GPU 0: A card (UUID: GPU-1)", "gpu"), ("No devices found", "cpu")])
def test_make_takes_the_packages_of_the_device_that_is_there(tmp_path: Path, listed: str, chosen: str) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\necho '{listed}'\n")
    driver.chmod(0o755)
    said = subprocess.run(["make", "--dry-run", "setup", f"VENV={tmp_path}/venv"], cwd=paths.ROOT, check=True,
                          capture_output=True, text=True, env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert f"-r requirements/{chosen}.txt" in said.stdout


@pytest.fixture(scope="module")
def uv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The resolver that `make gpupins` uses, where the package index is reachable."""
    folder = tmp_path_factory.mktemp("uv")
    wanted = re.search(r"^UV := (\S+)$", MAKEFILE, re.MULTILINE)
    assert wanted is not None
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    had = subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--retries", "1",
                          f"uv=={wanted[1]}"], check=False, capture_output=True, text=True)
    if had.returncode != 0:
        pytest.skip("the package index cannot be reached")
    return folder / "bin/uv"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt", "vllm.txt"])
def test_the_pins_can_be_had_together(uv: Path, name: str) -> None:
    """What packages say of themselves is read, and none of them is downloaded."""
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--system-certs", "--python-version", "3.11",
         "--python-platform", "x86_64-manylinux_2_28", "--no-annotate", "--no-header", FOLDER / name],
        check=False, capture_output=True, text=True)
    if "Failed to fetch" in done.stderr:  # where pip goes by a mirror that uv does not know
        pytest.skip("uv cannot reach the package index")
    assert done.returncode == 0, done.stderr
    found = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in done.stdout.splitlines()}
    also = {package for package in found - set(pins(name)) if not package.startswith(("nvidia-", "cuda-", "triton"))}
    assert not also, "left to chance"  # a build of torch for CPUs needs none of those three
    assert name == "cpu.txt" or found == set(pins(name))


def test_every_package_of_the_study_is_pinned() -> None:
    wanted = re.findall(r"^([\w.-]+)", (paths.ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for name in ("cpu.txt", "gpu.txt"):
        missing = {re.sub(r"[-_.]+", "-", package).lower() for package in wanted} - set(pins(name))
        assert not missing, f"{name} lacks {missing}"
