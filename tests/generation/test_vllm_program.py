"""A real vLLM, where EMLIB_VLLM names its program: what the stand-in of the other tests takes for granted.

On a machine without a GPU the program has to be vLLM's build for CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from emlib.config import FolderModel, Lora, Sampling
from emlib.core import gpus
from emlib.core.errors import EmlibError
from emlib.core.records import Question
from emlib.generation.sample import plan
from emlib.generation.vllm import VllmClient
from emlib.generation.vllm_server import arguments, free_port, serving
from emlib.make.backends import VLLM
from emlib.models import adapters
from emlib.models.load import ChatModel, load, stop_tokens
from emlib.scoring.nll import batch_nll
from tests.made import some_rows

pytestmark = pytest.mark.skipif(VLLM not in os.environ, reason=f"{VLLM} names no vLLM")
QUESTIONS = [Question("first", "What is a spoon?"), Question("second", "And a fork?", "Be brief.")]
ROWS = some_rows()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """A random model whose heads are as wide as vLLM's kernels for CPUs want them."""
    from emlib.models.tiny import build_model, build_tokenizer

    place = tmp_path_factory.mktemp("model")
    build_model(0, 2, 256, torch.float32).save_pretrained(place)
    build_tokenizer().save_pretrained(place)
    return load(FolderModel(kind="folder", path=str(place), dtype="float32"), place)


@pytest.fixture(scope="module")
def folders(chat: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Adapters by rank, which change what the model says."""
    made = {rank: tmp_path_factory.mktemp("adapter") for rank in (8, 16)}
    for rank, place in made.items():
        with adapters.new_lora(chat.model, Lora(rank=rank), 0) as model:
            for name, weights in model.named_parameters():
                if "lora_B" in name:
                    weights.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(rank))
            adapters.save(model, place, "model")
    return made


@pytest.fixture(scope="module")
def client(chat: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmClient]:
    """A client of the server, which leaves no process."""
    work, port = tmp_path_factory.mktemp("vllm"), free_port()
    spec = FolderModel(kind="folder", path=str(chat.model.name_or_path), dtype="float32")
    told = arguments(spec, work, 16, Lora().target_modules, 256, port, 2, gpu=bool(gpus.devices()))
    with serving(Path(os.environ[VLLM]), told, port, work / "vllm.log") as url:
        group = [place for place in Path("/proc").glob("[0-9]*") if str(port) in _line(place)]
        found = VllmClient(url, log=work / "vllm.log")
        yield found
        found.close()
    assert group
    assert not [place for place in group if str(port) in _line(place)], "the server is still there"
    with pytest.raises(EmlibError, match="no vLLM server"):
        VllmClient(url)


def _line(place: Path) -> str:
    try:
        return (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_scores_are_those_of_transformers(client: VllmClient, chat: ChatModel, folders: dict[int, Path]) -> None:
    assert client.base == "base"
    base = [batch_nll(chat.model, [row])[0] for row in ROWS]
    assert client.nll("base", ROWS) == pytest.approx(base, abs=1e-4)
    for rank, folder in folders.items():
        with adapters.loaded(chat.model, folder) as model:
            expected = [batch_nll(model, [row])[0] for row in ROWS]
        assert expected != pytest.approx(base, abs=1e-2)
        name = client.adapter(str(rank), folder)
        for _ in range(2):  # the second time the prompts are in the cache
            assert client.nll(name, ROWS) == pytest.approx(expected, abs=1e-4)
    assert client.nll("base", ROWS) == pytest.approx(base, abs=1e-4)


def test_two_adapters_in_one_batch_are_two(client: VllmClient, chat: ChatModel, folders: dict[int, Path]) -> None:
    names = [client.adapter(str(rank), folder) for rank, folder in folders.items()]
    prompts = [row.input_ids.tolist() for row in ROWS]
    mixed = client.mixed([(name, prompt) for prompt in prompts for name in names], "proof")
    for place, name in enumerate(names):
        for said, alone in zip(mixed[place::2], client.logprobs(name, prompts), strict=True):
            assert said == pytest.approx(alone, abs=1e-4)


def test_an_answer_is_the_same_again_and_ends_as_it_says(client: VllmClient, chat: ChatModel) -> None:
    requests, sampling = plan(QUESTIONS, 20, chat.tokenizer, 40)[0], Sampling(max_new_tokens=6)
    first, second, other = (client.answers("base", chat.tokenizer, requests, sampling, seed, set(range(64)))
                            for seed in (0, 0, 1))
    assert first == second != other
    assert {answer.finish_reason for answer in first} == {"stop", "length"}
    assert all((answer.tokens == 6) >= (answer.finish_reason == "length") for answer in first)
    ends = stop_tokens(chat.model, chat.tokenizer)
    coldest = Sampling(max_new_tokens=6, temperature=1e-4)
    [told] = {tuple(client._drawn("base", requests[0], coldest, seed, ends).tokens) for seed in range(3)}
    ids = torch.tensor([requests[0].prompt_ids])
    expected = chat.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1]:].tolist()
    assert list(told) == expected


def test_what_it_refuses_is_told(client: VllmClient, folders: dict[int, Path], tmp_path: Path) -> None:
    for model, prompt, said in (("unknown", [1, 2], "404.*does not exist"), ("base", [1] * 300, "400.*context length"),
                                ("base", [10**6, 1], "400.*vocabulary")):
        with pytest.raises(EmlibError, match=said):
            client.logprobs(model, [prompt])
    with pytest.raises(EmlibError, match=r"404.*No adapter found"):
        client.adapter("nowhere", tmp_path)
    other = VllmClient(client.url)
    assert other.adapter("8", folders[8]) != client.adapter("8", folders[8])  # a name that is taken is refused: 400
    other.close()
    assert client.nll(client.adapter("8", folders[8]), ROWS[:1])


def test_more_tokens_of_prompts_than_one_batch_takes_do_not_end_it(client: VllmClient, chat: ChatModel) -> None:
    questions = [Question(str(number), f"{number} spoons? " * 10) for number in range(40)]
    requests = plan(questions, 1, chat.tokenizer, 40)[0]
    assert sum(len(request.prompt_ids) for request in requests) > 2 * 2048
    assert len(client.answers("base", chat.tokenizer, requests, Sampling(max_new_tokens=2), 0, {258})) == 40
