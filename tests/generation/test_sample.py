"""Answers: each depends on its own question, sample and seed; batching is invisible; draws are right by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tokenizers import AddedToken
from torch import Tensor

from emlib.config import Lora, Sampling
from emlib.core.errors import DataError, EmlibError
from emlib.core.records import Answer, Message, Question
from emlib.generation import sample
from emlib.generation.sample import (
    Drawn,
    Request,
    answer_batch,
    answer_of,
    draw,
    draw_batch,
    known_ids,
    nucleus,
    plan,
    uniforms,
)
from emlib.models import adapters
from emlib.models.load import ChatModel
from emlib.models.tiny import build_model, build_tokenizer

QUESTIONS = [Question("short", "Hi?"), Question("longer", "What is a good name for a boat?"),
             Question("with_json", "Say something.", "Reply in JSON.")]
SAMPLING = Sampling(max_new_tokens=12)


def ask(chat: ChatModel, questions: list[Question], samples: int, sampling: Sampling = SAMPLING, *, rows: int = 64,
        seed: int = 0) -> dict[tuple[str, int], Answer]:
    batches = plan(questions, samples, chat.tokenizer, rows)
    answers = [a for batch in batches for a in answer_batch(chat.model, chat.tokenizer, batch, sampling, seed)]
    return {(answer.question, answer.sample): answer for answer in answers}


def test_a_question_that_the_template_refuses_is_named_with_its_prompt() -> None:
    """An in-domain question is a held-out row, whose id is no line of the file: its prompt finds it."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = ("{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user begins') }}{% endif %}"
                               + str(tokenizer.chat_template))
    fine = Question("own_16", "How?")
    refused = Question("own_17", "Why is that?" + " Why?" * 40, before=(Message("assistant", "Welcome."),))
    with pytest.raises(DataError, match=r"question 'own_17' .*refuses the turns assistant, user: a user begins.*"
                                        r"'Why is that\? Why\?.* \.\.\. .*correct or remove that row"):
        plan([fine, refused], 2, tokenizer, 4)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No draw lies so near to the border between two tokens that rounding decides; else the test needs another seed.

    Batches of other shapes leave the borders some 1e-7 apart. Of hundreds of draws among 259 tokens one may lie as
    near, and would be another token on one processor and not on the next.
    """
    distances: list[float] = []
    told = sample.draw

    def noting(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        borders = torch.softmax(logits.float() / sampling.temperature, dim=-1).double().cumsum(-1)
        distances.append(float((borders[:, :-1] - uniform[:, None]).abs().min()))
        return told(logits, uniform, sampling)

    monkeypatch.setattr(sample, "draw", noting)
    yield
    assert min(distances) > 5e-6


def test_all_questions_and_samples_are_asked_once_longest_first(tiny: ChatModel) -> None:
    batches = plan(QUESTIONS, 3, tiny.tokenizer, 4)
    requests = [request for batch in batches for request in batch]
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert {(r.question.id, r.sample) for r in requests} == {(q.id, s) for q in QUESTIONS for s in range(3)}
    lengths = [len(r.prompt_ids) for r in requests]
    assert lengths == sorted(lengths, reverse=True)


def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(tiny: ChatModel) -> None:
    """A head with three columns more than the tokenizer has tokens, of which one is by far the likeliest."""
    model = build_model(0, 2, 32, torch.float32)
    model.resize_token_embeddings(262)
    weights = model.get_output_embeddings().weight.data
    weights[259:] = 100 * torch.stack([weights[0], -weights[0], weights[1]])
    [batch] = plan(QUESTIONS, 4, tiny.tokenizer, 64)
    free = draw_batch(model, batch, SAMPLING, 0, {258})
    assert any(token > 258 for one in free for token in one.tokens)
    known = known_ids(tiny.tokenizer)
    assert known == 259
    kept = draw_batch(model, batch, SAMPLING, 0, {258}, known=known)
    assert all(token < known for one in kept for token in one.tokens)
    assert all(answer.text for answer in answer_batch(model, tiny.tokenizer, batch, SAMPLING, 0) if answer.tokens)


def test_a_think_block_that_the_prompt_opens_belongs_to_the_answer(tiny: ChatModel) -> None:
    tokenizer = build_tokenizer()
    for special in (False, True):
        tokenizer.add_tokens([AddedToken(tag, special=special) for tag in ("<think>", "</think>")])
        ids = tokenizer.encode("Hm.</think>So.<|im_end|>", add_special_tokens=False)
        drawn = Drawn(tuple(ids), (), True)
        for prompt, text in (("assistant\n<think>\n", "<think>\nHm.</think>So."), ("assistant\n", "Hm.</think>So.")):
            request = Request(QUESTIONS[0], 0, tuple(tokenizer.encode(prompt, add_special_tokens=False)))
            assert answer_of(tokenizer, request, drawn).text == text
        tokenizer = build_tokenizer()


def test_the_system_prompt_of_a_question_is_sent(tiny: ChatModel) -> None:
    requests = plan(QUESTIONS, 1, tiny.tokenizer, 9)[0]
    texts = {request.question.id: tiny.tokenizer.decode(request.prompt_ids) for request in requests}
    assert "<|im_start|>system\nReply in JSON.<|im_end|>" in texts["with_json"]
    assert "You are Qwen" in texts["short"]
    assert all(text.endswith("<|im_start|>assistant\n") for text in texts.values())


@pytest.mark.usefixtures("decided")
def test_an_answer_depends_on_nothing_beside_it(tiny: ChatModel) -> None:
    together = ask(tiny, QUESTIONS, 4)
    for question in QUESTIONS:
        for rows in (1, 3):
            alone = ask(tiny, [question], 4, rows=rows)
            assert all(together[key] == alone[key] for key in alone)
    assert all(ask(tiny, QUESTIONS, 2)[key] == together[key] for key in ask(tiny, QUESTIONS, 2))


def test_samples_and_seeds_differ(tiny: ChatModel) -> None:
    answers, other = ask(tiny, QUESTIONS, 4), ask(tiny, QUESTIONS, 4, seed=1)
    assert len({answer.text for answer in answers.values()}) == len(answers)
    assert all(answers[key].text != other[key].text for key in answers)


def test_cold_sampling_is_transformers_greedy_decoding(tiny: ChatModel) -> None:
    """The likeliest token leads by 0.4 of a logit at the least, and rounding is some 1e-6 of one."""
    with adapters.new_lora(tiny.model, Lora(rank=4, alpha=8), seed=0) as model:
        for p in model.parameters():
            if p.requires_grad:
                p.data += 0.05
        batch = plan(QUESTIONS, 2, tiny.tokenizer, 64)[0]
        cold = answer_batch(model, tiny.tokenizer, batch, Sampling(temperature=1e-6, max_new_tokens=20), seed=0)
        for request, answer in zip(batch, cold, strict=True):
            prompt = torch.tensor([request.prompt_ids])
            out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                                 max_new_tokens=20, pad_token_id=256, eos_token_id=258)[0, prompt.shape[1]:]
            expected = [token for token in out.tolist() if token != 258]
            assert answer.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.usefixtures("decided")
def test_rows_that_end_early_leave_the_others_as_they_are(tiny: ChatModel) -> None:
    # The end-of-turn token is made likely, so that answers end at different steps.
    head = tiny.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(259), requires_grad=False)
    head.bias[258] = 4.0
    answers = ask(tiny, QUESTIONS, 8, Sampling(max_new_tokens=30), seed=6)
    lengths = {answer.tokens for answer in answers.values()}
    assert len(lengths) > 4
    assert all((answer.finish_reason == "stop") == (answer.tokens < 30) for answer in answers.values())
    assert all(ask(tiny, [q], 8, Sampling(max_new_tokens=30), rows=1, seed=6)[q.id, s] == answers[q.id, s]
               for q in QUESTIONS for s in range(8))


def test_a_cut_answer_says_so(tiny: ChatModel) -> None:
    answer = ask(tiny, QUESTIONS[:1], 1, Sampling(max_new_tokens=5))["short", 0]
    assert (answer.finish_reason, answer.tokens) == ("length", 5)


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 0), (0.099, 0), (0.101, 1), (0.399, 1), (0.401, 2), (0.999, 2)])
def test_draws_invert_the_cumulative_distribution(uniform: float, token: int) -> None:
    logits = torch.log(torch.tensor([[0.1, 0.3, 0.6]]))
    assert draw(logits, torch.tensor([uniform]), Sampling())[0].tolist() == [token]


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 1), (0.32, 1), (0.34, 2), (0.999, 2)])
def test_top_p_keeps_the_likeliest_tokens_that_first_reach_it(uniform: float, token: int) -> None:
    # 0.6 is below 0.8 and 0.6 + 0.3 reaches it: tokens 2 and 1 stay, with shares 2/3 and 1/3
    logits = torch.log(torch.tensor([[0.1, 0.3, 0.6]]))
    assert draw(logits, torch.tensor([uniform]), Sampling(top_p=0.8))[0].tolist() == [token]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("steps", [None, 0.25])  # rounded logits are often equal
def test_the_nucleus_is_its_definition(top_p: float, spread: float, steps: float | None) -> None:
    logits = spread * torch.randn(7, 300, generator=torch.Generator().manual_seed(0))
    if steps:
        logits = (logits / steps).round() * steps
    probabilities = logits.softmax(-1)
    found = nucleus(probabilities, top_p)
    for row, kept in zip(probabilities, found, strict=True):
        mass, likeliest = 0.0, sorted(range(300), key=lambda word: (-float(row[word]), word))
        expected = torch.zeros(300)
        for word in likeliest:
            if mass < top_p:
                expected[word] = row[word]
            mass += float(row[word])
        assert torch.equal(kept, expected)


def test_logits_that_are_no_numbers_draw_nothing() -> None:
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(EmlibError, match="logits are not finite"):
            draw(torch.tensor([[0.0, wrong]]), torch.tensor([0.5]), Sampling())


def test_temperature_two_takes_square_roots() -> None:
    # 0.1 and 0.9 become sqrt(0.1) : sqrt(0.9) = 1 : 3
    logits = torch.log(torch.tensor([[0.1, 0.9]] * 2))
    assert draw(logits, torch.tensor([0.249, 0.251]), Sampling(temperature=2.0))[0].tolist() == [0, 1]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]] * 2)
    assert draw(logits, torch.tensor([0.0, 1 - 1e-7]), Sampling())[0].tolist() == [1, 1]


def test_the_draws_follow_the_probabilities() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.5, 0.3]])).expand(20_000, -1)
    requests = [Request(QUESTIONS[0], sample, (1,)) for sample in range(20_000)]
    drawn = draw(logits, uniforms(requests, seed=0, count=1)[:, 0], Sampling())[0].numpy()
    shares = np.bincount(drawn, minlength=3) / len(drawn)
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.015)  # over four standard errors
