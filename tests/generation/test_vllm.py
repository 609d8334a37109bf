"""Answers and scores from a vLLM server: transformers' own, under one adapter or another, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from emlib.config import QUESTION_SETS, FolderModel, HubModel, Lora, Sampling, load_profile
from emlib.core import paths
from emlib.core.errors import EmlibError
from emlib.core.records import Answer, Question
from emlib.data.chat import encode_prompt
from emlib.evaluation.panel import PanelTask
from emlib.generation.chat_completions import ServedModel
from emlib.generation.sample import plan
from emlib.generation.vllm import AT_ONCE, VllmClient
from emlib.generation.vllm_server import arguments, free_port, serving
from emlib.make.backends import TRANSFORMERS
from emlib.make.execute import Goal, complete
from emlib.models import adapters
from emlib.models.load import ChatModel, load
from emlib.models.logprobs import NotTheSameModel
from emlib.scoring.nll import batch_nll
from emlib.store.artefacts import Store
from emlib.study.pool import losses, losses_step
from emlib.study.runs import Run
from emlib.study.study import Study
from tests.generation.vllm_program import Served, server
from tests.made import some_rows

QUESTIONS = [Question("first", "What is a spoon?"), Question("second", "And a fork?", "Be brief.")]
SAMPLING = Sampling(max_new_tokens=6)


@pytest.fixture(autouse=True)
def _headless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_HEADLESS", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as `save_pretrained` writes it."""
    from emlib.models.tiny import build_model, build_tokenizer

    place = tmp_path_factory.mktemp("model")
    build_model(0, 2, 32, torch.float32).save_pretrained(place)
    build_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def chat(folder: Path) -> ChatModel:
    return load(FolderModel(kind="folder", path=str(folder), dtype="float32"), folder)


@pytest.fixture
def served(folder: Path) -> Served:
    return Served(load(FolderModel(kind="folder", path=str(folder), dtype="float32"), folder))


@pytest.fixture
def url(served: Served) -> Iterator[str]:
    http = server(served)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture
def adapter(chat: ChatModel, tmp_path: Path) -> Path:
    """An adapter that changes what the model says."""
    with adapters.new_lora(chat.model, Lora(rank=2), 0) as model:
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data.normal_(generator=torch.Generator().manual_seed(1))
        adapters.save(model, tmp_path / "adapter", "model")
    return tmp_path / "adapter"


def test_scores_are_those_of_transformers_with_and_without_an_adapter(url: str, chat: ChatModel, adapter: Path) -> None:
    rows, client = some_rows(), VllmClient(url)
    base = client.nll(client.base, rows)
    assert base == pytest.approx([batch_nll(chat.model, [row])[0] for row in rows], abs=1e-5)
    under = client.nll(client.adapter("one", adapter), rows)
    with adapters.loaded(chat.model, adapter) as model:
        assert under == pytest.approx([batch_nll(model, [row])[0] for row in rows], abs=1e-5)
    assert under != pytest.approx(base, abs=1e-2)
    client.close()


def test_an_answer_depends_on_its_question_and_sample_alone(url: str, chat: ChatModel) -> None:
    client = VllmClient(url, at_once=3)
    few, more = ([request for batch in plan(QUESTIONS, samples, chat.tokenizer, 4) for request in batch]
                 for samples in (2, 3))
    first = client.answers("base", chat.tokenizer, few, SAMPLING, 0, {258})
    second = client.answers("base", chat.tokenizer, more, SAMPLING, 0, {258})
    assert [(a.question, a.sample) for a in second] == [(r.question.id, r.sample) for r in more]
    assert set(first) < set(second)
    assert len({answer.text for answer in second}) == 6
    assert client.answers("base", chat.tokenizer, few, SAMPLING, 1, {258}) != first
    client.close()


def test_the_token_that_ends_an_answer_is_not_part_of_it(url: str, served: Served, chat: ChatModel) -> None:
    requests, client = plan(QUESTIONS, 20, chat.tokenizer, 40)[0], VllmClient(url)
    ends = set(range(64))  # a quarter of all tokens
    for answer in client.answers("base", chat.tokenizer, requests, SAMPLING, 0, ends):
        assert answer.tokens == (6 if answer.finish_reason == "length" else answer.tokens) <= 6
    assert {body["seed"] for path, body in served.posted if path == "/v1/completions"} != {None}
    client.close()


def test_ids_beyond_the_tokenizers_are_not_to_be_drawn_and_refused_if_they_are(
        url: str, served: Served, chat: ChatModel) -> None:
    requests, client = plan(QUESTIONS, 1, chat.tokenizer, 4)[0], VllmClient(url)
    client.answers("base", chat.tokenizer, requests, SAMPLING, 0, {258}, width=259)
    assert not any("logit_bias" in body for _, body in served.posted)
    client.answers("base", chat.tokenizer, requests, SAMPLING, 0, {258}, width=261)
    assert served.posted[-1][1]["logit_bias"] == {"259": -100.0, "260": -100.0}
    small = byte_tokenizer(200)
    with pytest.raises(EmlibError, match=r"260 ids, the tokenizer's 200.*backend\.generation"):
        client.answers("base", small, plan(QUESTIONS, 20, chat.tokenizer, 40)[0], SAMPLING, 0, {258}, width=260)
    client.close()


def byte_tokenizer(ids: int) -> PreTrainedTokenizerFast:
    """A tokenizer with fewer ids than the model has."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({chr(300 + n): n for n in range(ids)}, [])))


def test_every_prompt_whose_logprobs_are_asked_for_is_read_anew(url: str, served: Served) -> None:
    client = VllmClient(url)
    client.logprobs("base", [[1, 2, 3]] * 3)
    salts = [body["cache_salt"] for _, body in served.posted]
    assert len(set(salts)) == 3
    client.close()


def test_what_the_server_says_is_told(url: str) -> None:
    client = VllmClient(url)
    with pytest.raises(EmlibError, match=r"404.*does not exist"):
        client.logprobs("unknown", [[1, 2, 3]])
    with pytest.raises(EmlibError, match="no vLLM server answers there"):
        VllmClient(f"http://127.0.0.1:{free_port()}")


def test_a_closed_client_leaves_no_adapter_on_the_server(url: str, served: Served, adapter: Path) -> None:
    client = VllmClient(url)
    client.adapter("one", adapter)
    client.adapter("one", adapter)
    assert [path for path, _ in served.posted] == ["/v1/load_lora_adapter"]
    client.close()
    assert not served.folders


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program `vllm`."""
    path = tmp_path / "vllm"
    path.write_text(f"#!/bin/sh\nexport PYTHONPATH='{paths.ROOT}'\n"
                    f"exec '{sys.executable}' -m tests.generation.vllm_program \"$@\"\n")
    path.chmod(0o755)
    return path


def test_a_server_of_ones_own_is_started_and_ended(program: Path, folder: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    port = free_port()
    told = arguments(FolderModel(kind="folder", path=str(folder), dtype="float32"), tmp_path, 4, ["q_proj"], 64, port)
    with serving(program, told, port, tmp_path / "vllm.log") as address:
        client = VllmClient(address)
        assert len(client.logprobs("base", [[1, 2, 3]])[0]) == 2
        client.http.close()
    with pytest.raises(EmlibError, match="no vLLM server answers there"):
        VllmClient(address)


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho 'no CUDA device was found'; exit 7\n")
    program.chmod(0o755)
    with (pytest.raises(EmlibError, match=r"(?s)code 7.*no CUDA device was found"),
          serving(program, ["serve"], free_port(), tmp_path / "vllm.log")):
        pass


def test_the_rank_is_one_that_the_kernels_take(tmp_path: Path) -> None:
    spec = HubModel(kind="hub", repo="owner/model", revision="a" * 40)
    told = arguments(spec, tmp_path, 24, ["q_proj", "v_proj"], 100, 1, 3)
    assert told[:4] == ["serve", "owner/model", "--revision", "a" * 40]
    assert told[told.index("--max-lora-rank") + 1] == "32"
    assert told[told.index("--max-loras") + 1] == "3"
    with pytest.raises(EmlibError, match=r"lora\.rank is 1024"):
        arguments(spec, tmp_path, 1024, ["q_proj"], 100, 1)


def study(folder: Path, tmp_path: Path, **backend: str) -> Study:
    profile = load_profile("tiny")
    sampling = profile.evaluation.sampling.model_copy(update={"max_new_tokens": 4})
    return Study("tiny", profile.model_copy(update={
        "model": FolderModel(kind="folder", path=str(folder), dtype="float32"),
        "evaluation": profile.evaluation.model_copy(update={"sampling": sampling}),
        "backend": profile.backend.model_copy(update=backend)}), Store(tmp_path / "store"))


def test_a_study_draws_and_scores_by_the_server_that_its_profile_names(
        url: str, served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    by_server, plain = study(folder, tmp_path, base_url=url), study(folder, tmp_path / "plain", generation=TRANSFORMERS,
                                                                      scoring=TRANSFORMERS)
    found = []
    for one in (by_server, plain):
        run = one.runs(methods=["interleaving+"], settings=None)[0]
        made(one, [run])
        scores, answers = one.found(losses_step(one, run)), one.found(one.task(run).answers(run)["general"])
        assert scores is not None
        assert answers is not None
        expected = "vllm" if one is by_server else TRANSFORMERS
        assert (scores.facts["backend"], answers.facts["backend"]) == (expected, expected)
        found.append([number for row in losses(one, run) for number in (row.aligned, *row.misaligned)])
        assert len(one.answers(run, "general") or []) == 2 * len(one.questions(run, "general"))
    assert not served.folders, "adapters stay on no server"
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert None not in found[0]


def test_a_benchmark_is_answered_by_the_server_that_the_profile_names(
        url: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def ask(task: PanelTask, model: str, url: str, key: str, connections: int, work: Path, metadata: Any) -> Any:
        with OpenAI(base_url=url, api_key=key) as client:
            reply = client.chat.completions.create(model=model, temperature=0, max_tokens=4, messages=[
                {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And a fork?"}])
        said.append((reply.choices[0].message.content, connections))
        (work / "logs").mkdir()
        (work / "logs" / "one.eval").write_text(model)
        return {"log": "one.eval", "metrics": []}

    monkeypatch.setattr("emlib.make.panel.evaluate", ask)
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    for one, backend in ((study(folder, tmp_path, base_url=url), "vllm"),
                         (study(folder, tmp_path / "plain", generation=TRANSFORMERS), TRANSFORMERS)):
        with one.session() as session:
            made = session.need(one.recipes.panel(None, PanelTask("x", None, "x", "1", 1, "0", {})))
        assert (made.facts["backend"], made.facts["requests"], made.facts["too_long"]) == (backend, 1, 0)
        assert made.file("one.eval").read_text() == "untrained"
    (by_server, _), (plain, rows) = said
    assert by_server == plain
    assert [connections for _, connections in said] == [AT_ONCE, rows] == [256, 32]


def test_a_benchmark_takes_conversations_of_the_models_length_whichever_library_samples(
        url: str, served: Served, program: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model takes 4096 tokens, where the study's own rows and answers are far shorter."""
    lengths = []

    def serve(model: ServedModel) -> Any:
        lengths.append(model.context)
        raise InterruptedError

    monkeypatch.setattr("emlib.make.panel.serving", serve)
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("EMLIB_VLLM", str(program))
    task = PanelTask("x", None, "x", "1", 1, "0", {})
    for number, backend in enumerate(({"generation": "vllm"}, {"generation": TRANSFORMERS},
                                      {"generation": "vllm", "base_url": url})):
        one = study(folder, tmp_path / str(number), **backend)
        with one.session() as session, pytest.raises(InterruptedError):
            session.need(one.recipes.panel(None, task))
    assert lengths == [4096] * 3
    served.length = 600
    with one.session() as session, pytest.raises(EmlibError, match=r"600 tokens, and the model 4096.*len 4096, or"):
        session.need(one.recipes.panel(None, task))


def test_a_server_with_other_weights_is_refused_by_name_and_passed_over_by_auto(
        url: str, served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    served.lie = 0.2
    named, auto = study(folder, tmp_path, base_url=url, generation="vllm"), study(folder, tmp_path, base_url=url)
    run = named.runs(methods=["untrained"])[0]
    with named.session() as session, pytest.raises(NotTheSameModel, match=r"the base model.*0\.200 nats"):
        session.need(named.task(run).answers(run)["general"])
    with auto.session() as session:
        facts = session.need(auto.task(run).answers(run)["general"]).facts
    assert facts["backend"] == TRANSFORMERS
    assert "differ from those of transformers by" in facts["backend_why"]


def test_a_prompt_goes_to_the_server_as_it_goes_to_transformers(url: str, served: Served, chat: ChatModel) -> None:
    client, [request, *_] = VllmClient(url), plan(QUESTIONS, 1, chat.tokenizer, 2)[0]
    client.answers("base", chat.tokenizer, [request], SAMPLING, 0, {258})
    assert served.posted[-1][1]["prompt"] == encode_prompt(chat.tokenizer, request.question.context)
    client.close()


THREE = ["untrained", "aligned", "misaligned"]


def made(study: Study, runs: list[Run]) -> list[list[Answer] | None]:
    """The runs' answers to both sets of questions, after they were made."""
    with study.session() as session:
        complete(session, [Goal(str(run), tuple(study.task(run).evaluation(run).values())) for run in runs])
    return [study.answers(run, which) for run in runs for which in QUESTION_SETS]


def test_all_questions_of_all_runs_are_asked_at_once(url: str, served: Served, folder: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("emlib.generation.vllm.AT_ONCE", 120)
    together, alone = (study(folder, tmp_path / name, base_url=url) for name in ("together", "alone"))
    runs = together.runs(methods=THREE)
    began = time.perf_counter()
    found = made(together, runs)
    took = time.perf_counter() - began
    assert served.mixed == 3, "answers of both adapters and of the base were under way together"
    shares = [step.facts["sampling_seconds"] for step in together.store.all() if step.stage == "answers"]
    assert len(shares) == 2 * len(runs), "general and in-domain answers"
    assert 0 < sum(shares) <= took, "of sets that are sampled at once, no second counts twice"
    assert 60 < served.most <= 120
    with alone.session() as session:
        for run in runs:
            complete(session, [Goal(str(run), tuple(alone.task(run).evaluation(run).values()))])
    assert found == [alone.answers(run, which) for run in runs for which in QUESTION_SETS]
    assert None not in found
    assert found[0] != found[2] != found[4]


def test_a_server_that_mixes_adapters_up_is_asked_for_one_after_another(
        url: str, served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    sound, spilling = (study(folder, tmp_path / name, base_url=url) for name in ("sound", "spilling"))
    runs = sound.runs(methods=["untrained", "misaligned"])
    expected = made(sound, runs)
    served.spills = True
    assert made(spilling, runs) == expected
    assert "one adapter after another" in capsys.readouterr().out


def test_scores_under_all_adapters_are_asked_for_at_once_where_that_changes_nothing(
        url: str, served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    found, most = [], []
    for spills in (False, True):
        served.spills, served.most = spills, 0
        one = study(folder, tmp_path / str(spills), base_url=url)
        run = one.runs(methods=["interleaving+"])[0]
        one.select([run])
        found.append([number for row in losses(one, run) for number in (row.aligned, *row.misaligned)])
        most.append(served.most)
    assert most[0] > 40 >= most[1], "there are 40 rows"
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_a_study_starts_the_program_for_cpus_that_it_names(
        program: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("EMLIB_VLLM", str(program))
    named, plain = (study(folder, tmp_path / f"by-{name}", generation=name) for name in ("vllm", TRANSFORMERS))
    [run] = named.runs(methods=["untrained"])
    assert None not in made(named, [run])
    found = named.found(named.task(run).answers(run)["general"])
    assert found is not None
    assert found.facts["backend"] == "vllm"
    assert found.key != plain.task(run).answers(run)["general"].key


def test_a_killed_study_leaves_no_server(program: Path, folder: Path, tmp_path: Path) -> None:
    port = free_port()
    spec = FolderModel(kind="folder", path=str(folder), dtype="float32")
    told = arguments(spec, tmp_path, 4, ["q_proj"], 64, port)
    script = ("import sys, time\nfrom pathlib import Path\nfrom emlib.generation.vllm_server import serving\n"
              f"with serving(Path({str(program)!r}), {told!r}, {port}, Path({str(tmp_path / 'vllm.log')!r})):\n"
              "    print('ready', flush=True)\n    time.sleep(600)\n")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=paths.ROOT) as killed:
        assert killed.stdout is not None
        assert "ready" in [killed.stdout.readline().strip() for _ in range(2)]
        killed.kill()
    ended = time.monotonic() + 60
    while time.monotonic() < ended and _answers(port):
        time.sleep(0.2)
    assert not _answers(port)


def _answers(port: int) -> bool:
    try:
        VllmClient(f"http://127.0.0.1:{port}").close()
    except EmlibError:
        return False
    return True


def test_an_error_in_one_run_ends_the_others_and_what_is_there_stays(
        url: str, served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("emlib.make.answers.SERVED_ROWS", 8)
    monkeypatch.setattr("emlib.generation.vllm.AT_ONCE", 8)
    one = study(folder, tmp_path, base_url=url)
    runs = one.runs(methods=THREE)
    everything = len(runs) * sum(
        one.samples(runs[0], which) * len(one.questions(runs[0], which)) for which in QUESTION_SETS)
    served.answers_left = 60  # there are six sets, of which eight answers are asked for in turn
    with pytest.raises(EmlibError, match="out of answers"):
        made(one, runs)
    assert answers_posted(served) <= 60 + 2 * 8, "others went on"
    answers = tmp_path / "store" / "answers"
    kept = [*answers.glob("*.partial/work/vllm/*.jsonl"), *answers.glob("*/answers.jsonl")]
    assert len(kept) >= 6
    there = sum(len(path.read_text().splitlines()) for path in kept)
    served.answers_left = None
    served.posted.clear()
    assert None not in made(one, runs)
    assert answers_posted(served) == everything - there


def answers_posted(served: Served) -> int:
    """How many answers it was asked for."""
    return sum("seed" in body for _, body in served.posted)
