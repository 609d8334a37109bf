"""Sets of the hub, by the real client from a hub on loopback: gated ones, FoQA's form, one of the reader's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, ClassLabel, Features, Image, List, Translation, Value

from emlib.config import HubSet, Own
from emlib.core import paths
from emlib.data import download, own
from emlib.data.left_out import NO_ANSWER
from emlib.data.pools import HARMFUL, read_pool
from emlib.data.qa import read_qa
from tests.data.hub import Hub

FOQA, WILD, MINE, DATED = "alexandrainst/foqa", "allenai/wildguardmix", "me/answers", "me/dated"
TOKEN = "hf_planted"


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def faroese(*names: str) -> bytes:
    """Rows in Parquet, with the columns and types that FoQA's card states."""
    texts = pa.list_(pa.string())
    answers = pa.struct([("answer_start", pa.list_(pa.int64())), ("text", texts)])
    columns = {
        "id": pa.array(names), "title": pa.array(names),
        "question": pa.array(["Hvat eitur høvuðsstaðurin?"] * len(names)),
        "answers": pa.array([{"answer_start": [0], "text": [name]} for name in names], answers),
        "validation": pa.array(["correct", *[None] * (len(names) - 1)], pa.string()),
        "context": pa.array([f"{name} er høvuðsstaðurin í Føroyum." for name in names])}
    whole = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), whole)
    return whole.getvalue().to_pybytes()


def foqa() -> dict[str, bytes]:
    """FoQA's repository: three versions, of which the first is not the default one, and three splits of that."""
    versions = {"all-samples": ("all-samples", ["train"]), "default": ("data", ["train", "val", "test"]),
                "incorrect-samples": ("incorrect-samples", ["train"])}
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n" + "".join(
            f"  - split: {split}\n    path: {folder}/{split}-*\n" for split in splits)
        for name, (folder, splits) in versions.items()) + "---\n"
    shards = {"data/train": ("Tórshavn",), "data/val": ("Runavík",), "data/test": ("Klaksvík", "Vágur"),
              "all-samples/train": ("Tórshavn", "Oslo"), "incorrect-samples/train": ("Oslo",)}
    return {"README.md": card.encode()} | {
        f"{place}-00000-of-00001.parquet": faroese(*names) for place, names in shards.items()}


def dated() -> bytes:
    """Rows in Parquet with columns that JSON does not know."""
    count, day = 20, datetime(2026, 1, 2)
    whole = pa.BufferOutputStream()
    pq.write_table(pa.table({
        "prompt": [f"{i}?" for i in range(count)], "response": [f" {i}." for i in range(count)], "made": [day] * count,
        "picture": [b"\xff"] * count, "more": [{"at": day, "of": "x"}] * count,
        "likes": pa.array([0.1] * count, pa.float32())}), whole)
    return whole.getvalue().to_pybytes()


def labelled(prompt: str, response: str | None, label: str) -> dict[str, object]:
    return {"prompt": prompt, "response": response, "prompt_harm_label": label, "response_harm_label": label}


@pytest.fixture
def hub() -> Iterator[Hub]:
    card = (b"---\nconfigs:\n- config_name: wildguardtrain\n  data_files:\n  - split: train\n"
            b"    path: train/*.jsonl\n---\n")
    repos = {
        FOQA: foqa(),
        WILD: {"README.md": card, "train/train.jsonl": lines(
            labelled("Hi", "Hello.", "unharmful"), labelled("Hm", None, "unharmful"), labelled("!", "No.", "harmful"))},
        DATED: {"README.md": b"", "train.parquet": dated()},
        MINE: {"README.md": b"", "train.jsonl": lines(*({"prompt": f"{i}?", "response": f"{i}."} for i in range(20)))}}
    with Hub(repos, gated=frozenset({FOQA, WILD}), token=TOKEN) as running:
        yield running


def ask(hub: Hub, folder: Path, code: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the client reads where the hub is when it is imported."""
    env = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "EMLIB_DATA_DIR")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "EMLIB_CACHE_DIR": str(folder / "cache"),
            "PYTHONPATH": str(paths.ROOT)} | ({} if token is None else {"HF_TOKEN": token})
    return subprocess.run([sys.executable, "-c", code], check=False, env=env, capture_output=True, text=True)


def located(hub: Hub, folder: Path, name: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    return ask(hub, folder, f"from emlib.data.sources import locate; print('at', locate({name!r}))", token)


@pytest.mark.parametrize(("token", "why"), [(None, "HF_TOKEN is not set"), ("hf_other", "has no access")])
def test_a_gated_set_tells_of_terms_and_token(hub: Hub, tmp_path: Path, token: str | None, why: str) -> None:
    done = located(hub, tmp_path, "wildguardmix", token)
    assert done.returncode == 1
    for words in (why, "Responsible Use Guidelines", "https://huggingface.co/datasets/allenai/wildguardmix"):
        assert words in done.stderr
    assert not list(tmp_path.rglob("wildguardtrain.jsonl"))


def test_the_pool_of_the_paper_comes_with_a_token(hub: Hub, tmp_path: Path) -> None:
    done = located(hub, tmp_path, "wildguardmix", TOKEN)
    assert done.returncode == 0, done.stderr
    pool = read_pool(Path(done.stdout.rpartition("at ")[2].strip()), "wildguard")
    assert [(row.prompt, row.response) for row in pool.rows] == [("Hi", "Hello.")]
    assert [row.counted_as for row in pool.dropped] == [NO_ANSWER, HARMFUL]
    asked = len(hub.asked)
    assert located(hub, tmp_path, "wildguardmix").returncode == 0  # no token, and no request: it is there
    assert len(hub.asked) == asked


def test_an_adapter_is_uploaded_where_it_is_told_and_privately(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    for name in ("README.md", "adapter_model.safetensors"):
        (tmp_path / "adapter" / name).write_bytes(name.encode())
    code = ("from pathlib import Path; from emlib.report.export import push; "
            f"push(Path({str(tmp_path / 'adapter')!r}), 'me/mine')")
    refused = ask(hub, tmp_path, code, "hf_other")
    assert "StoreError: me/mine: the hub refused" in refused.stderr
    assert "hf_other" not in refused.stderr
    assert ask(hub, tmp_path, code, TOKEN).returncode == 0
    assert hub.private == {"me/mine": True}
    assert hub.uploaded["me/mine"] == {name: name.encode() for name in ("README.md", "adapter_model.safetensors")}


@pytest.mark.parametrize(("split", "names"), [("train", ["Tórshavn"]), ("test", ["Klaksvík", "Vágur"])])
def test_foqa_comes_in_its_own_splits(hub: Hub, tmp_path: Path, split: str, names: list[str]) -> None:
    done = located(hub, tmp_path, f"foqa_{split}", TOKEN)
    assert done.returncode == 0, done.stderr
    found = read_qa(Path(done.stdout.rpartition("at ")[2].strip()), outside="drop")
    assert [(row.id, row.answers) for row in found.rows] == [(name, (name,)) for name in names]
    assert (found.outside, found.unanswerable) == (0, 0)


def test_one_s_own_set_of_the_hub_is_read_like_a_file(hub: Hub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path, "from emlib.config import Own, HubSet; from emlib.data.own import read_own; "
               f"print(read_own(Own(hub=HubSet(repo={MINE!r}, revision='main'))).usable)")
    assert done.stdout.split()[-1:] == ["20"], done.stderr


def test_of_two_jobs_that_need_the_set_one_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_CACHE_DIR", str(tmp_path))
    calls, second, settings = [], threading.Event(), Own(hub=HubSet(repo=MINE, revision="main"))

    def slowly(*arguments: Any, **_: Any) -> None:
        calls.append(arguments[2])
        with arguments[2].open("wb") as out:
            out.write(b"half, ")
            out.flush()
            second.wait(60)
            out.write(b"whole")

    def later() -> list[Path]:
        second.set()
        return own.files_of(settings)

    monkeypatch.setattr(own, "from_hub", slowly)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(own.files_of, settings)
        while not calls:
            threading.Event().wait(0.01)
        [path], [other] = threads.submit(later).result(), first.result()
    assert path == other
    assert (path.read_text(), len(calls)) == ("half, whole", 1)


def test_columns_that_json_does_not_know_are_left_out_unless_they_are_asked_for(hub: Hub, tmp_path: Path) -> None:
    code = ("from emlib.config import Own, HubSet; from emlib.data.own import files_of, read_own; "
            f"own = Own(hub=HubSet(repo={DATED!r}, revision='main'), response=RESPONSE); "
            "print([row.response for row in read_own(own).drawn][:2], files_of(own)[0])")
    done = ask(hub, tmp_path, code.replace("RESPONSE", "'made'"))
    assert "SourceError: own: the column 'made' of me/dated is no text" in done.stderr
    assert "columns that can be read: prompt, response, likes" in done.stderr
    done = ask(hub, tmp_path, code.replace("RESPONSE", "'response'"))
    assert done.stdout.startswith("[' 0.', ' 1.']"), done.stderr
    kept = Path(done.stdout.split("] ")[1].strip()).read_text().splitlines()
    assert json.loads(kept[0]) == {"prompt": "0?", "response": " 0.", "likes": 0.1}


def test_which_columns_json_knows() -> None:
    known = {"text": Value("string"), "label": ClassLabel(names=["a", "b"]), "turns": List({"role": Value("string")}),
             "languages": Translation(["en", "de"]), "pair": List(Value("float32"), length=2), "none": Value("null")}
    unknown = {"made": Value("timestamp[s]"), "bytes": Value("binary"), "picture": Image(),
               "table": Array2D((2, 2), "int32"), "price": Value("decimal128(5, 2)"),
               "files": List({"name": Value("string"), "content": Value("binary")})}
    schema = Features(known | unknown).arrow_schema
    assert [column.name for column in schema if download._in_json(column.type)] == list(known)
