"""`dtype: auto` is decided once for a study, and stays what it was on any other machine."""

import pytest

from emlib.config import load_profile
from emlib.core import gpus, machine
from emlib.core.errors import ProfileError, StoreError
from emlib.study import overrides
from emlib.study.study import open_study


@pytest.fixture
def auto(tmp_path, monkeypatch):
    """A profile with `dtype: auto`, in an own folder of runs, on a machine without a GPU."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(gpus, "devices", list)
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nmodel: {dtype: auto}\n")
    return str(path)


def with_flags(monkeypatch, fast):
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: fast)


def keys(study):
    return [study.run_key(run) for run in study.runs()]


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_type_it_amounts_to_in_keys_too(auto, tmp_path, monkeypatch, fast, dtype):
    with_flags(monkeypatch, fast)
    stated = tmp_path / "stated.yaml"
    stated.write_text(f"extends: tiny\nmodel: {{dtype: {dtype}}}\n")
    assert open_study(auto).profile.model.dtype == dtype
    assert keys(open_study(auto)) == keys(open_study(str(stated)))


def test_results_carried_to_another_processor_keep_their_type(auto, monkeypatch):
    with_flags(monkeypatch, True)
    first = open_study(auto)
    first.record()
    with_flags(monkeypatch, False)
    assert keys(open_study(auto)) == keys(first)
    assert open_study(auto).profile.model.dtype == "bfloat16"
    (first.folder / "dtype.txt").write_text("bf16")
    with pytest.raises(StoreError, match=r"dtype\.txt: 'bf16' is no data type"):
        open_study(auto)


def test_opening_a_study_records_nothing_and_a_session_does(auto, monkeypatch):
    with_flags(monkeypatch, True)
    study = open_study(auto)
    assert not study.folder.exists()
    with study.session():
        assert (study.folder / "dtype.txt").read_text() == "bfloat16\n"


def test_an_edited_type_that_the_profile_states_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    mine = tmp_path / "mine.yaml"
    for dtype in ("float32", "bfloat16"):
        mine.write_text(f"extends: tiny\nmodel: {{dtype: {dtype}}}\n")
        study = open_study(str(mine))
        with study.session():
            assert (study.folder / "dtype.txt").read_text() == f"{dtype}\n"


def test_a_study_with_overrides_takes_the_type_of_the_plain_one(auto, monkeypatch):
    with_flags(monkeypatch, True)
    plain = open_study(auto)
    plain.record()
    with_flags(monkeypatch, False)
    other = open_study(overrides.study_with(auto, "training.epochs=3"))
    assert other.name != plain.name
    assert other.profile.model.dtype == "bfloat16"
    shown = overrides.differences(other.name, other.profile)
    assert shown["setting"].tolist() == ["training.epochs"]


def test_a_judge_states_its_type(tmp_path):
    path = tmp_path / "judged.yaml"
    path.write_text("extends: tiny\njudge: {kind: local, model: {kind: tiny, dtype: auto}}\n")
    with pytest.raises(ProfileError, match="a judge's scores must not depend on the machine"):
        load_profile(str(path))
