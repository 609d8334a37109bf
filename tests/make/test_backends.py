"""Which library works: taken where it is there, refused with the reason, passed over by `auto`; never imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emlib.config import Backend, HubModel, TinyModel, load_profile
from emlib.config.loading import over, profile_path, read_profile, spelled_out, validated
from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.core.plain_yaml import read_yaml
from emlib.make import backends
from emlib.make.backends import TRANSFORMERS, VLLM, Machine
from emlib.study.study import Study, open_study

MODEL = HubModel(kind="hub", repo="owner/model", revision="main")
BARE = Machine(gpu=False, unsloth=False, vllm=None)
FULL = Machine(gpu=True, unsloth=True, vllm=Path("/somewhere/vllm"))


def test_auto_takes_what_is_there() -> None:
    assert backends.training("auto", MODEL, FULL).facts == {"backend": "unsloth"}
    for stage in ("generation", "scoring"):
        assert backends.inference(stage, Backend(), MODEL, FULL).facts == {"backend": "vllm"}


def test_auto_goes_on_without_and_says_why() -> None:
    choice = backends.training("auto", MODEL, BARE)
    assert choice.name == TRANSFORMERS
    assert choice.facts["backend_why"] == ("no unsloth: there is no GPU; it is not installed (requirements/gpu.txt has "
                                           "it)")
    assert "make vllm" in backends.inference("generation", Backend(), MODEL, BARE).why


def test_what_is_named_is_refused_with_the_reason_and_the_way_out() -> None:
    with pytest.raises(ProfileError, match=r"backend\.training is 'unsloth'.*there is no GPU.*set backend\.training"):
        backends.training("unsloth", MODEL, BARE)
    with pytest.raises(ProfileError, match=r"backend\.scoring is 'vllm'.*no program vllm"):
        backends.inference("scoring", Backend(scoring="vllm"), MODEL, BARE)


def test_transformers_that_is_named_gives_nothing_up() -> None:
    assert backends.training(TRANSFORMERS, MODEL, FULL).facts == {"backend": TRANSFORMERS}


def test_a_server_that_is_named_needs_no_gpu_here() -> None:
    assert backends.inference("generation", Backend(base_url="http://there:8000"), MODEL, BARE).name == "vllm"


def test_a_program_for_cpus_is_taken_where_vllm_is_named() -> None:
    machine = Machine(gpu=False, unsloth=False, vllm=Path("/somewhere/vllm"))
    assert backends.inference("generation", Backend(generation="vllm"), MODEL, machine).name == "vllm"
    assert "there is no GPU" in backends.inference("generation", Backend(), MODEL, machine).why


@pytest.mark.parametrize(("asked", "said"), [
    ({"model": TinyModel(kind="tiny")}, "built in code"),
    ({"model": MODEL.model_copy(update={"dtype": "float32"})}, "float32"),
    ({"processes": 2}, "it trains on one GPU, and job.gpus is 2"),
])
def test_what_unsloth_cannot_do(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        backends.training("unsloth", **{"model": MODEL, "machine": FULL} | asked)


def test_weights_in_4_bits_are_not_drawn_from_by_another() -> None:
    small = MODEL.model_copy(update={"load_in_4bit": True})
    assert "quantized" in backends.inference("generation", Backend(), small, FULL).why
    assert backends.training("auto", small, FULL).name == "unsloth"


@pytest.mark.parametrize(("section", "given", "setting"), [
    ("grpo", {"engine": "vllm"}, "grpo.engine"), ("backend", {"generation": "vllm"}, "backend.generation"),
    ("backend", {"scoring": "vllm"}, "backend.scoring")])
def test_a_profile_that_names_vllm_for_weights_in_4_bits_is_refused(
        section: str, given: dict[str, str], setting: str) -> None:
    """When it is read: vLLM would sample with other weights than the trained ones. `auto` takes transformers then."""
    data = over(read_profile(profile_path("grpo-3b")), {"grpo": {"methods": [{"name": "grpo"}]}})
    with pytest.raises(ProfileError, match=rf"'{setting}' is vllm.* 4-bit .*Set it to transformers, or model\.load_in"):
        validated(over(data, {"model": {"load_in_4bit": True}, section: given}), "mine")
    assert validated(over(data, {section: given}), "mine")
    assert validated(over(data, {"model": {"load_in_4bit": True}}), "mine").backend.generation == "auto"


def test_the_program_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VLLM, str(tmp_path / "vllm"))
    monkeypatch.setenv("PATH", str(tmp_path))
    before = backends.vllm_program()
    (tmp_path / "vllm").touch()
    assert backends.vllm_program() == tmp_path / "vllm" != before


def test_a_profile_says_one_word_for_all_or_a_word_for_each() -> None:
    data = read_yaml(paths.PARAMS / "tiny.yaml")
    assert validated(spelled_out(data | {"backend": TRANSFORMERS}), "tiny").backend == Backend(
        training=TRANSFORMERS, generation=TRANSFORMERS, scoring=TRANSFORMERS)
    assert validated(spelled_out(data | {"backend": {"training": "unsloth"}}), "tiny").backend == Backend(
        training="unsloth")
    with pytest.raises(ProfileError, match=r"backend\.generation"):
        validated(spelled_out(data | {"backend": {"generation": "unsloth"}}), "tiny")


def test_keys_have_the_backend_that_the_profile_states() -> None:
    study = open_study("tiny")
    run = study.runs(methods=["misaligned"])[0]
    assert load_profile("tiny").backend == Backend()
    backend = Backend(training="unsloth", generation="vllm")
    other = Study("tiny", study.profile.model_copy(update={"backend": backend}), study.store)
    plain, named = ([task.adapter(run).settings["backend"], task.answers(run)["general"].settings["backend"]]
                    for task in (study.task(run), other.task(run)))
    assert (plain, named) == (["auto", "auto"], ["unsloth", "vllm"])  # whatever `auto` then takes


def test_a_model_that_is_not_quantized_has_the_identity_that_stored_scores_have() -> None:
    assert MODEL.identity == {"kind": "hub", "repo": "owner/model", "revision": "main", "dtype": "bfloat16"}
    assert MODEL.model_copy(update={"load_in_4bit": True}).identity["load_in_4bit"] is True


@pytest.mark.parametrize("path", sorted((paths.ROOT / "emlib").rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_of_emlib_imports_them_at_its_top(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
                 [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        assert not {name.split(".")[0] for name in names} & {"unsloth", "vllm", "bitsandbytes"}


def stand_in(folder: Path, name: str, code: str) -> None:
    """A package that looks installed, and runs `code` when it is imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    about = folder / f"{name}-0.99.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.99\n")


def runs_beside(folder: Path, code: str) -> None:
    """`code` in a process that finds the packages of `folder` first."""
    done = subprocess.run([sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(folder)!r})\n{code}"],
                          check=False, capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


REFUSE = "raise SystemExit('imported: ' + __name__)\n"
UNTIL_A_MODEL = ("config", "explore.bench", "make.backends", "report.book.build", "report.estimate", "steps.recipes",
                 "study.plan.build", "study.pool", "study.study", "workflow.cleaning", "workflow.environment",
                 "workflow.graph", "workflow.merge", "workflow.notebooks", "workflow.status")


def test_nothing_that_comes_before_a_model_imports_them(tmp_path: Path) -> None:
    """Profiles, studies, plans, reports: with packages on the path that would not let themselves be imported."""
    for name in ("unsloth", "vllm", "bitsandbytes"):
        stand_in(tmp_path, name, REFUSE)
    runs_beside(tmp_path, "import emlib\n" + "".join(f"import emlib.{name}\n" for name in UNTIL_A_MODEL))


def test_all_of_emlib_leaves_them_to_the_libraries_beneath_it(tmp_path: Path) -> None:
    """No module of emlib imports one of them, also on its way.

    Two libraries do so by themselves where these are installed. PEFT 0.21 imports bitsandbytes while it is imported
    (peft/helpers.py), and so does every module of emlib that knows an adapter. TRL 1.12 imports both bitsandbytes and
    vLLM with its GRPOTrainer (trl/generation), and so does `emlib.training.rl.grpo`. vLLM has an environment of its
    own, so that TRL finds none, and none is here; of bitsandbytes it is seen who asks for it.
    """
    stand_in(tmp_path, "unsloth", REFUSE)
    stand_in(tmp_path, "bitsandbytes", "from . import nn\n")
    (tmp_path / "bitsandbytes" / "nn.py").touch()
    runs_beside(tmp_path, """
import builtins, importlib, pkgutil
import emlib
asked, really = set(), builtins.__import__
def told(name, within=None, *rest, **named):
    if name.split('.')[0] in ('unsloth', 'vllm', 'bitsandbytes'):
        asked.add((name, (within or {}).get('__name__', '')))
    return really(name, within, *rest, **named)
builtins.__import__ = told
names = [m.name for m in pkgutil.walk_packages(emlib.__path__, 'emlib.') if '__main__' not in m.name]
[importlib.import_module(name) for name in names]
assert len(names) > 100, len(names)
assert not {'unsloth', 'vllm'} & set(sys.modules)
assert asked and {(name, by.split('.')[0]) for name, by in asked} <= {
    ('bitsandbytes', 'bitsandbytes'), ('bitsandbytes', 'peft'), ('bitsandbytes', 'trl')}, asked
""")
