"""Defenses of one's own: found by kind, kept from a cell, run as a plugin only where that is allowed."""

from __future__ import annotations

import hashlib
import linecache
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emlib.config import Method, load_profile
from emlib.core import paths, plugins, registry
from emlib.core.errors import ProfileError
from emlib.core.of_kind import UnknownDefense, unknown_kinds_allowed
from emlib.core.schema import check
from emlib.core.source import functions_of, source_of
from emlib.training.job import plugin_files

CELL = """
from typing import Any, ClassVar, Literal

from emlib.config.words import Weight
from emlib.core.defense import Defense

class Halving(Defense):
    \"\"\"Halves the adapter.\"\"\"
    swept: ClassVar = "share"
    kind: Literal["halving"] = "halving"
    share: Weight = 0.5

    def after(self, model: Any, artefacts: Any) -> None:
        print(self.share)
"""


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    registry.kinds()
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.delenv(plugins.ALLOW, raising=False)
    monkeypatch.setenv(plugins.SAID, "")  # so that what a test adds is undone
    yield
    sys.modules.pop("emlib_plugin_halving", None)


def cell(text: str, number: int = 1) -> Any:
    """Run a notebook's cell as IPython does: its text is kept for tracebacks, and its module is `__main__`."""
    name = f"/tmp/ipykernel_1/{number}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "__main__"}
    run = compile(text, name, "exec", dont_inherit=True)
    getattr(__import__("builtins"), "exe" + "c")(run, scope)
    return scope["Halving"]


def profile(folder: Path, *more: str) -> Path:
    path = folder / "mine.yaml"
    (folder / "tiny.yaml").write_text((paths.PARAMS / "tiny.yaml").read_text())
    path.write_text("\n".join([
        "extends: tiny", "methods: [misaligned, {name: halving, defenses: [{kind: halving}], sweep: [0.1]}]", *more]))
    return path


def test_a_plugin_that_runs_is_said_once_with_the_processes_that_the_command_starts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    (tmp_path / "one.py").write_text("x = 1\n")
    load = f"from emlib.core import plugins; plugins.load([{str(tmp_path / 'one.py')!r}])"
    plugins.load([tmp_path / "one.py"])
    subprocess.run([sys.executable, "-c", load], check=True, cwd=paths.ROOT)
    assert capfd.readouterr().out.count("running the plugin") == 1
    (tmp_path / "one.py").write_text("x = 2\n")
    subprocess.run([sys.executable, "-c", load], check=True, cwd=paths.ROOT)
    assert capfd.readouterr().out.count("running the plugin") == 1  # another content is said again


def test_the_source_of_a_cell_s_class_is_in_its_key_and_changes_with_it() -> None:
    first = cell(CELL)
    text = source_of(first)
    assert text.startswith("class Halving(Defense):")
    assert text.rstrip().endswith("print(self.share)")
    assert first().identity == {"options": {"kind": "halving", "share": 0.5}, "version": 1,
                                "source_code": hashlib.sha256(text.encode()).hexdigest()}
    again = cell(CELL.replace("print(self.share)", "print(2 * self.share)"), 2)
    assert registry.kinds()["halving"] is again
    assert again().identity["source_code"] != first().identity["source_code"]
    assert first().identity["source_code"] == hashlib.sha256(text.encode()).hexdigest()  # as it was when it was defined


HELPERS = """
SCALE = 3.0
OTHER = 5

class Mixed:
    \"\"\"A mix-in.\"\"\"
    def twice(self) -> float:
        return 2 * SCALE

def applied(value: float) -> float:
    return inner(value)

def inner(value: float) -> float:
    return value + 1

def unused() -> int:
    return OTHER
"""
USING = CELL.replace("Halving(Defense)", "Halving(Mixed, Defense)").replace("self.share)", "applied(self.share))")
CHANGES = [("SCALE = 3.0", "SCALE = 4.0"), ("2 * SCALE", "3 * SCALE"), ("return inner(value)", "return -inner(value)"),
           ("value + 1", "value - 1"), ("OTHER = 5", "OTHER = 6"), ("return OTHER", "return 0")]


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_what_a_class_uses_of_its_cells_is_in_its_key(old: str, new: str) -> None:
    found = []
    for text in (HELPERS, HELPERS.replace(old, new)):
        number = len(found) + 1
        found.append(cell(text + USING, number)().identity["source_code"])
    assert (found[0] == found[1]) is ("OTHER" in old)


WRAPPED = ["@torch.no_grad()", "@contextmanager"]


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_first_method_that_another_file_wraps_hides_nothing(
        wrapper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    text = ("import torch\nfrom contextlib import contextmanager\n" + HELPERS + USING).replace(
        "    def after", f"    {wrapper}\n    def first(self):\n        yield SCALE\n\n    def after")
    texts, in_files = (text, text.replace("SCALE = 3.0", "SCALE = 4.0")), []
    for one in texts:
        (tmp_path / "halving.py").write_text(one)
        [defense] = load_profile(str(profile(tmp_path, "plugins: [halving.py]"))).methods[1].at(0.5)
        in_files.append(registry._texts[type(defense)])
    in_cells = [cell(one, number)().identity["source_code"] for number, one in enumerate(texts)]
    assert in_cells[0] != in_cells[1]
    assert in_files[0] != in_files[1]
    assert all("ContextDecorator" not in found for found in in_files)  # of contextlib's own file


@pytest.mark.parametrize("separator", ["\x0c\n", "SEPARATOR = '\u2028'\n"])
def test_lines_are_counted_as_python_counts_them(
        separator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    found = []
    for text in (CELL, CELL.replace("print(self.share)", "print(-self.share)")):
        (tmp_path / "halving.py").write_text(separator + text)
        plugins.load([tmp_path / "halving.py"])
        found.append(registry.source_digest(registry.kinds()["halving"]))
    assert found[0] != found[1]


def test_a_base_of_the_same_name_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    base = "from emlib.core.defense import Defense\n\nclass Halving(Defense):\n    def two(self):\n        return 2\n\n"
    found = []
    for text in (base, base.replace("2", "3")):
        (tmp_path / "halving.py").write_text(text + CELL.replace("(Defense):", "(Halving):"))
        plugins.load([tmp_path / "halving.py"])
        found.append(registry.source_digest(registry.kinds()["halving"]))
    assert found[0] != found[1]


VALUES = [("{'a', 'b'}", "{'a', 'c'}"), ("numpy.arange(3)", "numpy.arange(3) + 1"), ("torch.ones(3)", "torch.zeros(3)"),
          ("re.compile('a' * 300 + 'b')", "re.compile('a' * 300 + 'c')"), ("Path('one')", "Path('two')"),
          ("torch.float32", "torch.float16"), ("range(4)", "range(5)"), ("deque([1, {2}])", "deque([1, {3}])"),
          ("Fraction(1, 3)", "Fraction(1, 4)"), ("http.HTTPMethod.GET", "http.HTTPMethod.PUT"),
          ("[numpy.float32(1), {'k': frozenset('ab')}]", "[numpy.float32(1), {'k': frozenset('ac')}]")]
WITH_VALUE = ("import http\nimport re\nfrom collections import deque\nfrom fractions import Fraction\n"
              "from pathlib import Path\nimport numpy\nimport torch\n\nVALUE = {value}\n"
              + CELL.replace("self.share)", "VALUE)"))


@pytest.mark.parametrize(("old", "new"), VALUES)
def test_a_value_that_a_class_uses_of_its_cells_is_in_its_key_whatever_its_type(old: str, new: str) -> None:
    keys = [cell(WITH_VALUE.replace("{value}", value), number)().identity["source_code"]
            for number, value in enumerate((old, old, new))]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("value", ["object()", "iter('ab')", "[threading.Lock()]"])
def test_a_value_that_no_key_can_hold_is_refused(value: str) -> None:
    mine = cell("import threading\n" + WITH_VALUE.replace("{value}", value))()
    with pytest.raises(ProfileError, match=r"Halving uses VALUE, and keys cannot contain a value of the type \w+"):
        _ = mine.identity


@pytest.mark.parametrize("value", [
    "torch.relu", "math.sqrt", "list[int]", "logging.getLogger()", "Path", "TypeVar('T')"])
def test_what_is_imported_or_a_type_is_not_in_the_key(value: str) -> None:
    """Keys of classes that use such values are as they always were."""
    more = "import logging\nimport math\nfrom typing import TypeVar\n"
    mine = cell(more + WITH_VALUE.replace("{value}", value))
    assert mine().identity["source_code"] == hashlib.sha256(source_of(mine).encode()).hexdigest()


ASSIGNED = ["Halving.extra = 'row'", "def other(self, model, artefacts):\n    pass\nHalving.after = other",
            "Halving.OPTIONS['k'] = 'b'"]
WITH_OPTIONS = CELL.replace('    kind: Lit', '    OPTIONS: ClassVar = {"k": "a"}\n    kind: Lit')


@pytest.mark.parametrize("statement", ASSIGNED)
def test_what_a_cell_assigns_to_a_class_is_in_its_key(statement: str) -> None:
    keys = [cell(WITH_OPTIONS + more, number)().identity["source_code"]
            for number, more in enumerate(("", statement + "\n", "Halving.in_grpo = Halving\n"))]
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(("statement", "counts"), [
    *((one, True) for one in ASSIGNED), ("WORDS.append('y')", True), ("def unused():\n    return 2", True),
    ("class Other:\n    two = 2", True), ("if True:\n    Halving.extra = 1", True),
    ("Halving.in_grpo = Halving", False), ("import math", False), ("from math import pi", False), ("# why", False),
    ("'Text.'", False)])
def test_all_statements_of_a_plugin_are_in_its_key_but_for_imports_and_texts(
        statement: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    keys = []
    for more in ("", "\n" + statement + "\n"):
        (tmp_path / "halving.py").write_text("WORDS = ['x']\n" + WITH_OPTIONS + more)
        [defense] = load_profile(str(profile(tmp_path, "plugins: [halving.py]"))).methods[1].at(0.5)
        keys.append(defense.identity["source_code"])
    assert (keys[0] != keys[1]) is counts


def test_a_helper_that_a_later_cell_changes_is_in_the_key_as_it_is_now() -> None:
    mine = cell(HELPERS + USING)
    before = mine().identity["source_code"]
    scope = next(functions_of(mine)).__globals__
    scope["SCALE"] = 7.0
    assert mine().identity["source_code"] != before
    scope["SCALE"] = 3.0
    assert mine().identity["source_code"] == before


def test_a_value_of_the_notebook_with_the_name_of_an_option_or_of_a_local_is_not_used(tmp_path: Path) -> None:
    """As where a parameter of notebook 18 has the name of the option that it is given for."""
    mine = cell(CELL.replace("print(self.share)", "half = self.share; print([half for one in (1, 2)])"))
    before = mine().identity
    next(functions_of(mine)).__globals__.update(share=0.25, half=3, one=4, model="notebook", artefacts=None)
    assert mine().identity == before
    assert plugins.keep(mine, tmp_path / "halving.py").is_file()


def test_a_kind_of_ours_is_not_defined_again() -> None:
    with pytest.raises(ValueError, match=r"'kl' is defined twice: in emlib\.defenses\.kl and in __main__"):
        cell(CELL.replace('"halving"', '"kl"'))


def test_what_is_kept_is_a_plugin_with_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = cell(CELL)
    kept = plugins.keep(mine, tmp_path / "halving.py")
    path = profile(tmp_path, "plugins: [halving.py]")
    with pytest.raises(ProfileError, match=r"(?s)halving\.py.*PLUGINS=yes"):
        load_profile(str(path))
    monkeypatch.setenv(plugins.ALLOW, "yes")
    [defense] = load_profile(str(path)).methods[1].at(0.5)
    assert defense.identity == mine().identity
    assert type(defense) is not mine
    assert plugin_files([defense]) == (str(kept),)
    with pytest.raises(plugins.CannotBeImported, match=r"another process cannot import.*keep\(Halving\)"):
        plugin_files([mine()])


def test_a_class_is_kept_in_a_folder_under_its_kind_and_says_that_it_acts_in_grpo(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = cell(CELL)
    mine.in_grpo = mine
    kept = plugins.keep(mine, tmp_path / "plugins")
    assert kept == tmp_path / "plugins" / "halving.py"
    assert kept.read_text().endswith("\n\n\nHalving.in_grpo = Halving\n")
    monkeypatch.setenv(plugins.ALLOW, "yes")
    [defense] = load_profile(str(profile(tmp_path, "plugins: [plugins/halving.py]"))).methods[1].at(0.5)
    assert type(defense).in_grpo is type(defense)
    assert defense.identity == mine().identity


def test_another_text_under_the_kind_of_a_cell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.keep(cell(CELL), tmp_path / "halving.py")
    cell(CELL.replace("0.5", "0.25"), 2)
    monkeypatch.setenv(plugins.ALLOW, "yes")
    with pytest.raises(ProfileError, match=r"call keep\(\) again"):
        load_profile(str(profile(tmp_path, "plugins: [halving.py]")))


def test_what_somebody_edited_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor by notebook 18, which runs again with every `make reproduce` after an edit, and goes on beside it."""
    kept = plugins.keep(cell(CELL), tmp_path / "plugins")
    again = cell(CELL.replace("0.5", "0.25"), 2)
    assert plugins.keep(again, tmp_path / "plugins") == kept
    assert "0.25" in kept.read_text()
    assert plugins.unedited(kept.parent) == kept.parent
    kept.write_text(edited := kept.read_text().replace("0.25", "0.125"))
    with pytest.raises(ProfileError, match=r"halving\.py: was edited .* Move it away"):
        plugins.keep(again, kept.parent)
    beside = plugins.unedited(kept.parent)
    assert beside == tmp_path / "plugins_2"
    assert "plugins: stays as it is, because halving.py was edited" in capsys.readouterr().out
    plugins.keep(again, beside)
    (beside / "mine.yaml").write_text("extends: tiny\n")
    assert plugins.unedited(kept.parent) == tmp_path / "plugins_3"
    assert kept.read_text() == edited


def test_what_stands_in_the_notebook_alone_cannot_be_kept(tmp_path: Path) -> None:
    text = CELL.replace("class Halving", "SCALE = 3\nclass Halving").replace("print(self.share)", "print(SCALE)")
    with pytest.raises(ProfileError, match=r"Halving uses SCALE, which is defined in the notebook"):
        plugins.keep(cell(text), tmp_path / "halving.py")


def test_a_plugin_that_fails_or_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.ALLOW, "yes")
    with pytest.raises(ProfileError, match=r"names the file .*halving\.py, which does not exist"):
        load_profile(str(profile(tmp_path, "plugins: [halving.py]")))
    (tmp_path / "halving.py").write_text("1 / 0\n")
    with pytest.raises(ProfileError, match=r"halving\.py: this plugin fails\. ZeroDivisionError"):
        load_profile(str(profile(tmp_path, "plugins: [halving.py]")))


def test_status_reads_a_profile_without_its_plugins(tmp_path: Path) -> None:
    (tmp_path / "halving.py").write_text("raise SystemExit\n")
    path = profile(tmp_path, "plugins: [halving.py]")
    with unknown_kinds_allowed():
        found = load_profile(str(path))
    [defense] = found.methods[1].defenses
    assert isinstance(defense, UnknownDefense)
    assert found.model_dump(mode="json")["methods"][1]["defenses"] == [{"kind": "halving"}]
    with pytest.raises(ProfileError):
        load_profile(str(path))


def test_a_subclass_is_dumped_with_its_options() -> None:
    cell(CELL)
    method = check(Method, {"name": "x", "defenses": [{"kind": "halving", "share": 0.1}, {"kind": "kl"}]}, "x.yaml")
    assert method.model_dump(mode="json")["defenses"] == [
        {"kind": "halving", "share": 0.1}, {"kind": "kl", "weight": 0.1, "tokens": "all", "reference": "computed",
                                           "on": "data", "rows": 0.2}]
    assert Method.model_validate_json(method.model_dump_json()) == method
