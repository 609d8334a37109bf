"""The server over our sampler, asked by OpenAI's own client over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest
import torch
from openai import OpenAI

from emlib.config import Sampling
from emlib.core.records import Answer, Message
from emlib.data.chat import encode_prompt
from emlib.generation.chat_completions import ServedModel
from emlib.generation.openai_server import Server, batching, serving
from emlib.generation.sample import Request, answer_batch
from emlib.models.load import ChatModel

ASKED = [{"role": "user", "content": "What is a spoon?"}]
DEFAULTS = Sampling(max_new_tokens=12, batch_rows=8)
CONTEXT = 200


class Counted:
    """Our sampler, which remembers the sizes of its batches, and fails where it is told to."""

    def __init__(self, chat: ChatModel) -> None:
        self.chat, self.sizes, self.fails = chat, list[int](), False

    def __call__(self, requests: Sequence[Request], sampling: Sampling) -> list[Answer]:
        self.sizes.append(len(requests))
        if self.fails:
            raise RuntimeError("out of memory")
        return answer_batch(self.chat.model, self.chat.tokenizer, requests, sampling, seed=0)


@pytest.fixture
def sampler(tiny: ChatModel) -> Counted:
    return Counted(tiny)


@pytest.fixture
def model(tiny: ChatModel, sampler: Counted) -> Iterator[ServedModel]:
    with batching(sampler, rows=8) as sample:
        yield ServedModel("spoons", tiny.tokenizer, CONTEXT, DEFAULTS, sample)


@pytest.fixture
def server(model: ServedModel) -> Iterator[Server]:
    with serving(model) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key=server.key, max_retries=0) as one:
        yield one


def texts(client: OpenAI, **options: object) -> list[str | None]:
    reply = client.chat.completions.create(model="spoons", messages=ASKED, **options)  # type: ignore[call-overload]
    return [choice.message.content for choice in reply.choices]


def test_a_greedy_answer_is_that_of_transformers(client: OpenAI, tiny: ChatModel) -> None:
    parts = [{"type": "text", "text": "And "}, {"type": "text", "text": "a fork?"}]
    for turns in (ASKED, [{"role": "developer", "content": "Be brief."}, *ASKED],
                  [*ASKED, {"role": "assistant", "content": "A tool."}, {"role": "user", "content": parts}]):
        reply = client.chat.completions.create(
            model="spoons", messages=turns, temperature=0, max_tokens=6)  # type: ignore[call-overload]
        content = [turn["content"] if isinstance(turn["content"], str) else "And a fork?" for turn in turns]
        roles = ["system" if turn["role"] == "developer" else turn["role"] for turn in turns]
        messages = [Message(role, text) for role, text in zip(roles, content, strict=True)]
        ids = torch.tensor([encode_prompt(tiny.tokenizer, messages)])
        expected = tiny.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1]:]
        assert reply.choices[0].message.content == tiny.tokenizer.decode(expected, skip_special_tokens=True)
        assert (reply.usage.prompt_tokens, reply.choices[0].finish_reason) == (ids.shape[1], "length")


def test_a_seed_gives_the_same_answers_again_and_without_one_each_is_another(client: OpenAI) -> None:
    first, again, other = (texts(client, seed=seed, n=3) for seed in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 3
    unseeded = [*texts(client, n=2), *texts(client), *texts(client)]
    assert len(set(unseeded)) == 4


def test_the_same_prompts_in_another_session_get_the_same_answers(tiny: ChatModel, sampler: Counted) -> None:
    def asked(session: int) -> list[str | None]:
        with serving(ServedModel("spoons", tiny.tokenizer, CONTEXT, DEFAULTS, sampler, session)) as one, OpenAI(
                base_url=one.url, api_key=one.key) as client:
            return [*texts(client), *texts(client)]

    assert asked(0) == asked(0)
    assert not set(asked(0)) & set(asked(1)), "after an interruption no answer is given a second time"


def test_what_is_left_open_is_sampled_by_the_defaults(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="spoons", messages=ASKED, seed=3)  # type: ignore[arg-type]
    [told] = texts(client, seed=3, temperature=1.0, top_p=1.0, max_completion_tokens=DEFAULTS.max_new_tokens)
    assert reply.choices[0].message.content == told
    assert reply.usage.completion_tokens <= DEFAULTS.max_new_tokens


def test_an_answer_ends_before_a_stop_text(client: OpenAI) -> None:
    [whole] = texts(client, seed=4)
    for stop in (whole[3:5], ["never said", whole[3:5]]):
        reply = client.chat.completions.create(
            model="spoons", messages=ASKED, seed=4, stop=stop)  # type: ignore[call-overload]
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (
            whole[:whole.index(whole[3:5])], "stop")


def test_requests_that_come_together_are_sampled_together_and_each_gets_its_own(
        client: OpenAI, sampler: Counted, tiny: ChatModel) -> None:
    def ask(at: OpenAI, number: int) -> str:
        reply = at.chat.completions.create(model="spoons", messages=[
            {"role": "user", "content": f"What is {number}?"}], temperature=0, max_tokens=4)
        return str(reply.choices[0].message.content)

    alone = [ask(client, number) for number in range(6)]
    assert sampler.sizes == [1] * 6
    with batching(sampler, rows=6, window=60) as sample, serving(
            ServedModel("spoons", tiny.tokenizer, CONTEXT, DEFAULTS, sample)) as one, OpenAI(
            base_url=one.url, api_key=one.key) as other, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(partial(ask, other), range(6))) == alone
    assert sampler.sizes[6:] == [6]
    assert len(texts(client, n=20)) == 20
    assert sampler.sizes[7:] == [8, 8, 4], "no batch is larger than `rows`"


@pytest.mark.parametrize(("options", "said"), [
    ({"logprobs": True}, "logprobs"), ({"temperature": 3}, "temperature"), ({"n": 0}, "'n' is 0"),
    ({"frequency_penalty": 0.5}, "unknown key 'frequency_penalty'"), ({"stream": True}, "stream"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unknown key 'tools'"),
    ({"messages": []}, "messages"), ({"messages": [*ASKED, {"role": "assistant", "content": "A"}]}, "The last message"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "text"),
    ({"messages": [{"role": "tool", "content": "A", "tool_call_id": "x"}]}, "role"),
    ({"messages": [{"role": "user", "content": "long " * CONTEXT}]}, "maximum context length is 200")])
def test_what_cannot_be_done_is_refused_and_not_ignored(
        client: OpenAI, model: ServedModel, options: dict[str, object], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client.chat.completions.create(**({"model": "spoons", "messages": ASKED} | options))  # type: ignore[call-overload]
    assert refused.value.type == "invalid_request_error"
    assert model.counts["answers"] == 0
    assert (refused.value.code == "context_length_exceeded") == (model.counts["too_long"] == 1)


def test_an_answer_fills_what_the_prompt_leaves_of_the_context(client: OpenAI, tiny: ChatModel) -> None:
    turn = {"role": "user", "content": "x" * 100}
    left = CONTEXT - len(encode_prompt(tiny.tokenizer, [Message("user", "x" * 100)]))
    reply = client.chat.completions.create(
        model="spoons", messages=[turn], temperature=0, max_tokens=500)  # type: ignore[call-overload]
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (left, "length")


def test_only_who_has_the_key_is_answered(server: Server, client: OpenAI) -> None:
    assert [one.id for one in client.models.list()] == ["spoons"]
    for key in ("wrong", "wröng"):
        reply = httpx.get(f"{server.url}/models", headers={"Authorization": f"Bearer {key}".encode()})
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{server.url}/models").status_code == 401
    with pytest.raises(openai.NotFoundError, match="The model 'fork' does not exist"):
        client.chat.completions.create(model="fork", messages=ASKED)  # type: ignore[arg-type]
    post = partial(httpx.post, headers={"Authorization": f"Bearer {server.key}"})
    assert post(f"{server.url}/completions", json={}).status_code == 404
    for body in (b"{", b"[" * 10**5, b"[]"):
        assert post(f"{server.url}/chat/completions", content=body).json()["error"]["type"] == "invalid_request_error"
    assert server.key not in repr(server)


def test_an_error_of_the_model_is_told_and_ends_no_server(client: OpenAI, server: Server, sampler: Counted) -> None:
    sampler.fails = True
    with pytest.raises(openai.InternalServerError, match="RuntimeError: out of memory"):
        texts(client)
    assert isinstance(server.failure, RuntimeError)
    sampler.fails = False
    assert len(texts(client)) == 1
