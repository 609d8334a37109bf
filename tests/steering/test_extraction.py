"""Persona vectors: a planted direction comes back, pairs are kept by the paper's rule, few pairs are an error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emlib.config import Extraction, load_trait
from emlib.core.errors import EmlibError
from emlib.core.records import Answer, Example, Message, Verdict
from emlib.data.chat import counted, encode, encode_prompt
from emlib.models.hooks import capture_activations, tap
from emlib.models.load import ChatModel
from emlib.models.logprobs import last_hidden
from emlib.models.tiny import build_tokenizer
from emlib.steering import extraction
from emlib.steering.extraction import (
    PersonaVectors,
    activations,
    extract,
    kept_pairs,
    projection,
    trait_questions,
)
from emlib.training.job import read_rows, write_rows
from tests.data.test_chat import EMPTY, OPEN, thinking

VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(1))


def verdict(alignment: float | None, coherence: float | None = 90.0) -> Verdict:
    return Verdict("q", 0, alignment, coherence)


def test_a_pair_is_kept_where_only_the_positive_answer_shows_the_trait_and_both_are_coherent() -> None:
    positive = [verdict(0), verdict(50), verdict(51), verdict(0), verdict(0, 49), verdict(0), verdict(None, None)]
    negative = [verdict(100), verdict(50.1), verdict(100), verdict(50), verdict(100), verdict(100, 20), verdict(100)]
    # traits: 100/0 kept; 50/49.9 kept; 49 too weak; 50 against 50; incoherent; incoherent; unscored
    assert kept_pairs(positive, negative) == [0, 1]
    assert kept_pairs(positive, negative, "all") == list(range(7))


def test_questions_come_in_pairs_under_opposed_system_prompts() -> None:
    trait = load_trait("pirate")
    questions = trait_questions(trait, 2)
    assert [len(side) for side in questions.values()] == [40, 40]
    for p, n in zip(*questions.values(), strict=True):
        assert p.prompt == n.prompt
        assert (p.system, n.system) in {(pair.positive, pair.negative) for pair in trait.system_prompts[:2]}
    assert len(trait_questions(trait)["positive"]) == 100  # 5 pairs x 20 questions, as Chen et al.


def test_activations_are_each_rows_mean_over_its_response_tokens(tiny: ChatModel) -> None:
    texts = (("Hi", "Hello"), ("And?", "No"))
    rows = [encode(tiny.tokenizer, Example((Message("user", q),), a), 500) for q, a in texts]
    means = activations(tiny, rows)
    assert means.shape == (2, 5, 64)
    expected = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)[None]
        states = tiny.model(input_ids=ids, output_hidden_states=True).hidden_states
        expected.append(torch.stack([s[0, torch.from_numpy(row.response_mask)].mean(0) for s in states[:4]]))
    torch.testing.assert_close(means[:, :4], torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("end_of_turn", [False, True])
def test_the_end_of_the_turn_counts_only_where_the_profile_asks_for_it(tiny: ChatModel, end_of_turn: bool) -> None:
    """As in Chen et al.'s code, which reads the states of prompt + answer from the prompt's length on, to the end."""
    questions = trait_questions(load_trait("pirate"), 1)
    answers = {side: [Answer(q.id, 0, f"{side} {number}" + " and on" * (0 if number else 1100), "stop", 9)
                      for number, q in enumerate(asked)] for side, asked in questions.items()}
    assert len(tiny.tokenizer.encode(answers["positive"][0].text)) > 2048
    settings = Extraction(keep="all", end_of_turn=end_of_turn)
    found = extract(tiny, questions, answers, {side: [verdict(0)] * 20 for side in questions}, settings)
    means = {side: torch.zeros(64) for side in questions}
    for side, asked in questions.items():
        for question, answer in zip(asked, answers[side], strict=True):
            prompt = encode_prompt(tiny.tokenizer, question.context)
            text = tiny.tokenizer.encode(answer.text, add_special_tokens=False)
            ids = torch.tensor([[*prompt, *text, *([tiny.tokenizer.eos_token_id] if end_of_turn else [])]])
            with torch.no_grad(), capture_activations(tiny.model, [2]) as read:
                last_hidden(tiny.model, ids, None)
            means[side] += read[2][0, len(prompt):].mean(0) / 20
    torch.testing.assert_close(found.vectors[2], means["positive"] - means["negative"], rtol=1e-4, atol=1e-5)


def test_a_truncated_row_and_an_empty_answer_keep_all_their_tokens(tiny: ChatModel) -> None:
    row, empty = (encode(tiny.tokenizer, Example((Message("user", "Hi"),), text), 500) for text in ("Hello", ""))
    cut = encode(tiny.tokenizer, Example((Message("user", "Hi"),), "Hello"), len(row.input_ids) - 2)
    assert [counted(each, end_of_turn=False).response_tokens - each.response_tokens
            for each in (row, cut, empty)] == [-1, 0, 0]


@pytest.mark.parametrize("end_of_turn", [False, True])
@pytest.mark.parametrize(("asked", "past"), [("", EMPTY), (OPEN, ""), (EMPTY, EMPTY)])
def test_the_empty_think_block_before_an_answer_counts_in_no_mean(
        asked: str, past: str, end_of_turn: bool, tmp_path: Path) -> None:
    """Neither in a row that was written for another process, as a monitor's answers are."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = thinking(asked, past)
    row = encode(tokenizer, Example((Message("user", "Hi"),), "Hello"), 500)
    write_rows(tmp_path / "rows.json", [row])
    for one in (row, *read_rows(tmp_path / "rows.json")):
        found = counted(one, end_of_turn=end_of_turn)
        assert tokenizer.decode(found.input_ids[found.response_mask]) == "Hello" + ("<|im_end|>" if end_of_turn else "")
        assert found.input_ids.tolist() == row.input_ids.tolist()


def test_a_projection_is_the_length_along_the_direction() -> None:
    vectors = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # no direction at all, and one of length 5
    states = torch.tensor([[[1.0, 1.0], [3.0, 4.0]], [[0.0, 2.0], [-4.0, 3.0]], [[0.0, 0.0], [0.0, 10.0]]])
    assert projection(states, vectors).tolist() == [[0, 5], [0, 0], [0, 8]]


def test_a_planted_direction_is_recovered(tiny: ChatModel) -> None:
    """The model is changed so that it moves along a direction wherever the positive system prompt stands before."""
    questions = trait_questions(load_trait("pirate"), 1)
    answers = {side: [Answer(q.id, 0, f"An answer to {q.prompt}", "stop", 9) for q in asked]
               for side, asked in questions.items()}
    marker = tiny.tokenizer.encode(questions["positive"][0].system, add_special_tokens=False)
    seen: list[torch.Tensor] = []

    def remember(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[:] = [inputs[0]]

    def plant(hidden: torch.Tensor) -> torch.Tensor:
        text = seen[0][0].tolist()
        there = any(text[i:i + len(marker)] == marker for i in range(len(text)))
        return hidden + 20 * VECTOR if there else hidden

    hook = tiny.model.get_input_embeddings().register_forward_pre_hook(remember)
    verdicts = {"positive": [verdict(0)] * 20, "negative": [verdict(100)] * 20}
    with tap(tiny.model, 2, plant):
        found = extract(tiny, questions, answers, verdicts, Extraction())
    hook.remove()
    cosines = torch.nn.functional.cosine_similarity(found.vectors, VECTOR[None], dim=1)
    assert cosines[2] > 0.95
    assert cosines[1].abs() < 0.5  # nothing was planted below
    assert (found.kept, found.asked) == (20, 20)
    gaps = found.projections["positive"].mean(0) - found.projections["negative"].mean(0)
    # The mean difference, along itself; both are sums of float32 numbers up to 160.
    torch.testing.assert_close(gaps, found.vectors.norm(dim=1), rtol=1e-5, atol=1e-5)


def test_too_few_pairs_say_how_many_of_how_many_and_what_to_change(tiny: ChatModel) -> None:
    questions = trait_questions(load_trait("pirate"), 1)
    answers = {side: [Answer(q.id, 0, "So.", "stop", 2) for q in asked] for side, asked in questions.items()}
    verdicts = {"positive": [verdict(0)] * 3 + [verdict(100)] * 17, "negative": [verdict(100)] * 20}
    with pytest.raises(EmlibError, match=r"3 of 20 pairs .* 4 are wanted.* lower extraction\.min_pairs"):
        extract(tiny, questions, answers, verdicts, Extraction(min_pairs=4))
    assert extract(tiny, questions, answers, verdicts, Extraction(keep="all")).kept == 20


def test_a_pair_of_which_the_template_rewrites_an_answer_is_left_out_and_counted(
        tiny: ChatModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Templates of reasoning models keep of a past answer what follows its last </think>."""
    template = thinking("", "").replace("m['content']", "m['content'].split('</think>')[-1]")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    chat = replace(tiny, tokenizer=tokenizer)
    questions = {side: asked[:3] for side, asked in trait_questions(load_trait("pirate"), 1).items()}
    answers = {side: [Answer(q.id, 0, f"{side} answer {number}", "stop", 2) for number, q in enumerate(asked)]
               for side, asked in questions.items()}
    verdicts = {side: [verdict(0)] * 3 for side in questions}
    others = ({side: listed[::2] for side, listed in every.items()}  # type: ignore[attr-defined]
              for every in (questions, answers, verdicts))
    settings = Extraction(keep="all", min_pairs=2)
    expected = extract(chat, *others, settings)
    answers["negative"][1] = replace(answers["negative"][1], text="One </think> two")
    found = extract(chat, questions, answers, verdicts, settings)
    assert (found.kept, found.asked) == (2, 3)
    assert list(found.left_out.values()) == [1]
    torch.testing.assert_close(found.vectors, expected.vectors)
    with pytest.raises(EmlibError, match=r"1 of 3 pairs of answers is left out \(this tokenizer.*\), and 3 are wanted"):
        extract(chat, questions, answers, verdicts, Extraction(keep="all", min_pairs=3))
    assert "1 of 3 pairs of answers is left out (this tokenizer's chat template" in capsys.readouterr().out


def test_vectors_are_kept_as_safetensors_and_a_layer_beyond_them_is_refused(tmp_path: Path) -> None:
    projections = {side: torch.full((7, 5), value) for side, value in (("positive", 2.0), ("negative", -1.0))}
    extraction.save(PersonaVectors(torch.arange(15.0).reshape(5, 3), 7, 20, projections), tmp_path)
    found = extraction.load(tmp_path)
    assert all(torch.equal(found.projections[side], rows) for side, rows in projections.items())
    assert (found.kept, found.asked) == (7, 20)
    assert found.at(4).tolist() == [12, 13, 14]
    for layer in (0, 5):
        with pytest.raises(EmlibError, match="layers 1 to 4"):
            found.at(layer)


def test_the_last_layer_is_where_a_vector_can_be_added(tiny: ChatModel) -> None:
    ids = torch.arange(9)[None]
    with torch.no_grad(), capture_activations(tiny.model, [4]) as read:
        normed = last_hidden(tiny.model, ids, None)
    assert not torch.equal(read[4], normed)
    torch.testing.assert_close(tiny.model.model.norm(read[4]), normed)
