"""`dtype: auto` is decided once for a study, and stays what it was on any other machine."""

import pytest

from emlib.config import load_profile
from emlib.core import gpus, machine
from emlib.core.errors import ProfileError, StoreError
from emlib.study import overrides, precision
from emlib.study.study import open_study
from emlib.workflow import notebooks


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


def test_of_two_first_jobs_on_unlike_machines_one_decides_the_type(auto, monkeypatch):
    """Both were opened before either computed. A job's process decides before its notebook opens the study."""
    studies = []
    for fast in (True, False):
        with_flags(monkeypatch, fast)
        studies.append(open_study(auto))
    with studies[0].session():
        pass
    with pytest.raises(StoreError, match=r"dtype\.txt: another process has recorded bfloat16 .*, with float32\. Start"):
        studies[1].session()
    with pytest.raises(StoreError, match="another process has recorded"):
        studies[1].record()
    precision.decide(auto)
    assert (studies[0].folder / "dtype.txt").read_text() == "bfloat16\n"
    assert keys(open_study(auto)) == keys(studies[0])


def test_a_jobs_process_decides_the_type_and_no_other_does(auto, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", lambda *_: None)
    record = tmp_path / "runs" / "mine" / "dtype.txt"
    with_flags(monkeypatch, True)
    for count in ("0", "1"):
        notebooks.main(["02_baselines", "--profile", auto, "--log", str(tmp_path / "job.log"), "--gpus", count])
        assert record.is_file() is (count == "1")  # a job that only reads may run where there is no GPU
    with_flags(monkeypatch, False)
    assert open_study(auto).profile.model.dtype == "bfloat16"


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
