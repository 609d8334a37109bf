"""Two profiles of one name: the second is refused with both paths, and a name of its own lets it in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emlib.core import paths
from emlib.core.errors import ProfileError
from emlib.study import overrides
from emlib.study.ownership import RECORD, claim, owner_of, refuse_others
from emlib.study.study import open_study
from emlib.workflow import graph, notebooks, watch
from tests.beside import write_study


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Profiles of one name in two folders, of which the first has results."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    first, second = (str(write_study(tmp_path / name)) for name in "ab")
    claim(first)
    return first, second


def test_the_second_profile_of_a_name_is_refused_everywhere_with_both_paths(
        two: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    first, second = two
    for opened in (open_study, graph.jobs, claim, refuse_others):
        opened(first)
        with pytest.raises(ProfileError) as caught:
            opened(second)
        for word in (first, second, "runs/my_study", "name: study_2"):
            assert word in str(caught.value)
    with pytest.raises(SystemExit, match="1"):
        notebooks.main(["15_tables", "--profile", second])
    assert first in capsys.readouterr().err
    for module in ("emlib.workflow.graph", "emlib.workflow.status"):  # what `make` begins with, and asks
        done = subprocess.run([sys.executable, "-m", module, second], check=False, capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert first in done.stderr
        assert second in done.stderr


def test_a_name_of_its_own_resolves_it_and_results_go_by_it(two: tuple[str, str], tmp_path: Path) -> None:
    first, second = two
    text = Path(second).read_text()
    Path(second).write_text(text.replace("name: my_study", "name: yours  # another"))
    claim(second)
    study = open_study(second)
    assert (study.name, study.folder) == ("yours", tmp_path / "runs" / "yours")
    assert (owner_of(tmp_path / "runs/my_study"), owner_of(study.folder)) == (Path(first), Path(second))
    study.record()
    assert "yours: done" in watch.where(study.folder)
    assert "profile.yaml" in watch.where(study.folder)
    Path(second).write_text(text.replace("name: my_study ", "#"))
    assert open_study(second).name == "study"  # without one, by the name of the file


def test_a_profile_that_was_moved_takes_its_results_along(two: tuple[str, str], tmp_path: Path) -> None:
    first, _ = two
    Path(first).parent.rename(tmp_path / "c")
    moved = str(tmp_path / "c" / "study.yaml")
    claim(moved)
    assert owner_of(tmp_path / "runs" / "my_study") == Path(moved)


def test_one_that_ships_is_recorded_for_any_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    claim("tiny")
    assert (tmp_path / "runs/tiny" / RECORD).read_text() == "params/tiny.yaml\n"
    refuse_others(str(paths.PARAMS / "tiny.yaml"))
    mine = tmp_path / "tiny.yaml"
    mine.write_text((paths.PARAMS / "tiny.yaml").read_text())
    with pytest.raises(ProfileError, match=rf"{mine}.*{paths.PARAMS / 'tiny.yaml'}"):
        open_study(str(mine))
    (tmp_path / "link.yaml").symlink_to(paths.PARAMS / "tiny.yaml")
    refuse_others(str(tmp_path / "link.yaml"))


def test_with_overrides_it_is_refused_as_well_and_the_kept_profile_finds_the_files(
        two: tuple[str, str], tmp_path: Path) -> None:
    first, second = two
    name = overrides.study_with(first, "seeds=[7]")
    assert name.startswith("my_study+")
    study = open_study(name)
    assert (study.name, study.budget, study.profile.seeds) == (name, "my_study", (7,))
    assert study.profile.trait == str(tmp_path / "a" / "butler.yaml")
    assert study.trait.name == "butler"
    assert study.data("letters").misaligned.train
    assert owner_of(study.folder) == Path(first)
    told = overrides.differences(name, study.profile).set_index("setting")
    assert told.T.to_dict("list") == {"seeds": ["[0]", "[7]"]}
    (tmp_path / "runs/my_study" / RECORD).unlink()  # only the overridden study is there: they share a budget
    for refused in (lambda: overrides.study_with(second, "seeds=[8]"), lambda: open_study(second)):
        with pytest.raises(ProfileError, match=r"(?s)b/study\.yaml.*a/study\.yaml"):
            refused()


def test_make_files_results_by_the_name_that_the_profile_states(two: tuple[str, str], tmp_path: Path) -> None:
    path = Path(two[0])
    for line, name in (("name: 'x.y-1'   # so", "x.y-1"), ("name: plain\r", "plain"), ("#", "study"),
                       ("name: null", "study"), ('name: "quoted"', "quoted")):
        path.write_text(f"{line}\ntitle: A title\n", newline="")
        said = subprocess.run(["make", "--dry-run", "reproduce", f"PROFILE={path}", f"EMLIB_RUNS_DIR={tmp_path}"],
                              cwd=paths.ROOT, check=True, capture_output=True, text=True).stdout
        assert f"--directory {tmp_path / name} " in said
        assert paths.study_name(str(path)) == name
