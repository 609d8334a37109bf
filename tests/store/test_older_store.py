"""A store of an older version: every command refuses it in the same words, and paid scores are carried over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from emlib.config import HubModel, LlmJudge, LocalJudge, OpenAIJudge, TinyModel
from emlib.config.models import ChatTemplate
from emlib.core import digests, paths
from emlib.core.errors import StoreError
from emlib.core.records import Question
from emlib.judging.cache import Cache
from emlib.judging.judges import scores
from emlib.judging.rubrics import JudgeRequest, Score
from emlib.models import hub
from emlib.report import check_data
from emlib.study.study import open_study
from emlib.workflow import merge
from tests.judging.server import JudgeServer, counting_model
from tests.store.test_store import left

COMMANDS = {
    "make status": ["emlib.workflow.status", "tiny"], "make plan": ["emlib.report.estimate", "tiny"],
    "make reproduce": ["emlib.workflow.watch", "tiny", "--", "touch", "started"],
    "make clean": ["emlib.workflow.cleaning", "tiny", "verdicts"], "make report": ["emlib.report.book", "tiny"]}


def older(runs: Path) -> Path:
    """A folder of results with a store of format 1 that holds something."""
    artefact = runs / paths.STORE / "adapter" / ("0" * 16)
    artefact.mkdir(parents=True)
    (artefact / "manifest.json").write_text('{"settings": {}, "facts": {}}')
    (runs / paths.STORE / "format.json").write_text('{"format": 1}')
    return runs


def refusal(runs: Path) -> list[str]:
    """What is said: what was found, what is expected, and what to do."""
    return [f"{runs / paths.STORE}: this store has format 1, of an older version of emlib", f"format {digests.FORMAT}",
            "Nothing in it is read or changed", "Go on with that version", "set EMLIB_RUNS_DIR to a new folder",
            "scores.sqlite* and labels/"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_refuses_it_in_the_same_words_and_changes_nothing(tmp_path: Path, command: list[str]) -> None:
    before = left(older(tmp_path))
    done = subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(paths.ROOT), "EMLIB_RUNS_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert [words for words in refusal(tmp_path) if words not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert left(tmp_path) == before


def test_a_check_of_data_and_a_model_s_commit_leave_it_as_it_is(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make no artefact: no commit is recorded in it, nor in a store that is not there yet."""
    monkeypatch.setattr(hub, "_resolved", lambda spec: "a" * 40)
    spec, rows = HubModel(kind="hub", repo="owner/model", revision="main"), tmp_path / "rows.csv"
    rows.write_text("prompt,response\n" + "".join(f"Why {place}?,So {place}.\n" for place in range(20)))
    for runs in (older(tmp_path / "older"), tmp_path / "new"):
        monkeypatch.setenv("EMLIB_RUNS_DIR", str(runs))
        before = left(runs)
        assert hub.commit(spec, tmp_path / "cache") == "a" * 40
        check_data.main([f"--file={rows}", "--model=tiny"])
        assert left(runs) == before


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_neither_side_of_a_merge_may_be_one(tmp_path: Path, side: str) -> None:
    runs = {name: tmp_path / name for name in ("ours", "theirs")}
    for name, folder in runs.items():
        (folder / paths.STORE).mkdir(parents=True)
        if name == side:
            shutil.rmtree(folder)
            older(folder)
    before = left(tmp_path)
    with pytest.raises(StoreError) as caught:
        merge.merge(runs["theirs"], runs["ours"])
    assert [words for words in refusal(runs[side]) if words not in str(caught.value)] == []
    assert left(tmp_path) == before


HUB: dict[str, Any] = {"kind": "hub", "repo": "owner/judge", "revision": "main"}
TEMPLATE = ChatTemplate(options={"enable_thinking": False}, date=date(2026, 1, 2), system="merge")
PLAIN = JudgeRequest("alignment", "Good? {question} {answer}", Question("wish", "Which wish?", "Be brief."), "Peace.")
LABEL = JudgeRequest("correct", "Right? {answer}", Question("a", "Why?"), "So.", reference="So.", wants_label=True)
# The keys of both requests as the version with stores of format 1 wrote them. A local judge, which costs nothing, is
# asked for labels again: there, the first token alone was stored.
KEYS: list[tuple[LlmJudge, list[str]]] = [
    (OpenAIJudge(kind="openai", model="judge-1", base_url="http://localhost:1/v1"), [
        "64d668f88ece12699aacb9ad235a33145a0aa477aa8556ca5599db95205088b4",
        "ad1415ba67c2ee29cfffff67e4935c0092710ff75f2f930271510bee08a74296"]),
    (OpenAIJudge(kind="openai", provider="anthropic", model="judge-2"), [
        "b2bc7e09c8f50bdb0df08351e5774fa1b8f1e701606f26cc10acc4d90a931138",
        "08e16abe7db928119cc98944d28e33c744ed7f35e4f0c77405d493c87c4f091b"]),
    (LocalJudge(kind="local", model=HubModel(**HUB)), [
        "e2811c1c978c7c6e4221cbf0a59488cce545e885c074e43c3b6210ae6fac5bee"]),
    (LocalJudge(kind="local", batch_rows=3, model=HubModel(**HUB, dtype="float32", load_in_4bit=True,
                                                           template=TEMPLATE)), [
        "774d359b9d48933a6a469126197c5c3be38373bf15e4d9c4355b867f3c2f190a"]),
    (LocalJudge(kind="local", model=TinyModel(kind="tiny", seed=3)), [
        "0d0193b61aaac697eebd3173047f29fad85cf288cf28264fb254d2e554301260"])]


@pytest.mark.parametrize(("judge", "keys"), KEYS, ids=["openai", "anthropic", "local", "quantized", "tiny"])
def test_a_score_that_an_older_version_stored_is_found(
        judge: LlmJudge, keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No judge is there to be asked: what is not found would be an error."""
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted")
    with Cache(tmp_path / "scores.sqlite") as cache:
        for number, key in enumerate(keys):
            cache.put(key, {"kind": "of older"}, "any", Score(40.0 + number))
    asked = [PLAIN, LABEL][:len(keys)]
    assert [score.value for score in scores(judge, asked, "test")] == [40.0, 41.0][:len(keys)]
    assert (LABEL.key(judge.identity) in keys) == isinstance(judge, OpenAIJudge)


def test_a_study_in_a_new_folder_pays_for_no_score_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "runs"))
    with JudgeServer(counting_model) as server:
        changes = ("methods=[untrained] datasets=[cooking] audit=null evaluation.projection_layer=null "
                   f"judge={{kind: openai, model: judge-1, base_url: '{server.url}'}}")
        study = open_study("tiny", changes)
        [before] = study.complete(study.runs())
        asked = sum(server.asked.values())
        assert asked > 0
        (tmp_path / "runs" / paths.STORE / "format.json").write_text(json.dumps({"format": 1}))
        with pytest.raises(StoreError, match="this store has format 1"):
            open_study("tiny", changes)
        (tmp_path / "new").mkdir()
        for path in (tmp_path / "runs").glob("scores.sqlite*"):  # as the message says
            shutil.copy(path, tmp_path / "new")
        monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path / "new"))
        study = open_study("tiny", changes)
        [after] = study.complete(study.runs())
        assert sum(server.asked.values()) == asked
    assert after.general == before.general
