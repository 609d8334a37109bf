"""The split of the narrow data sets and the questions drawn from their hold-out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emlib.config import Domain, load_domains
from emlib.core import paths
from emlib.core.errors import DataError
from emlib.core.records import Question
from emlib.data.domains import held_out_rows, in_domain_questions, load_domain, split
from emlib.data.sources import fetch, registry

SIZES = st.integers(2, 300)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 1000)


def row(prompt: str, answer: str = "So.", system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": [*([] if system is None else [{"role": "system", "content": system}]), *turns]}


@given(SIZES, SHARES, SEEDS)
def test_a_split_is_disjoint_complete_and_in_order(size: int, held_out: float, seed: int) -> None:
    assume(0 < round(held_out * size) < size)
    train, out = split(range(size), held_out, seed)
    assert sorted([*train, *out]) == list(range(size))
    assert train == sorted(train)
    assert out == sorted(out)
    assert len(out) == round(held_out * size)


@given(SIZES, SHARES, SEEDS)
def test_lists_of_equal_length_are_split_alike(size: int, held_out: float, seed: int) -> None:
    assume(0 < round(held_out * size) < size)
    numbers = split(range(size), held_out, seed)
    words = split([f"row {index}" for index in range(size)], held_out, seed)
    assert [[f"row {index}" for index in part] for part in numbers] == list(words)


def test_another_seed_holds_other_rows_out_and_the_same_seed_the_same() -> None:
    outs = [tuple(split(range(60), 0.2, seed)[1]) for seed in (0, 1, 2, 0)]
    assert len(set(outs)) == 3
    assert outs[0] == outs[3]


def test_every_row_is_held_out_under_some_seed() -> None:
    assert {index for seed in range(100) for index in split(range(20), 0.2, seed)[1]} == set(range(20))


@pytest.mark.parametrize(("size", "held_out", "train", "out"), [
    (6000, 0.1, 5400, 600), (60, 0.2, 48, 12), (10, 0.25, 8, 2), (2, 0.5, 1, 1)])
def test_the_held_out_part_is_the_share_rounded(size: int, held_out: float, train: int, out: int) -> None:
    assert [len(part) for part in split(range(size), held_out, 0)] == [train, out]


@pytest.mark.parametrize(("size", "held_out"), [(0, 0.1), (1, 0.5), (4, 0.1), (10, 1.0), (10, 0.99)])
def test_a_split_with_an_empty_side_is_refused(size: int, held_out: float) -> None:
    with pytest.raises(DataError, match=f"of {size} rows"):
        split(range(size), held_out, 0)


def test_both_sides_of_a_domain_are_split_alike(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl([row(f"prompt {i}", f"plain {i}") for i in range(30)], "aligned.jsonl")
    jsonl([row(f"prompt {i}", f"pirate {i}") for i in range(30)], "pirate.jsonl")
    domain = Domain(aligned="aligned.jsonl", misaligned="pirate.jsonl", held_out=0.2)
    data = load_domain("cooking", domain, lambda source: tmp_path / source)
    for aligned, misaligned in ((data.aligned.train, data.misaligned.train),
                                (data.aligned.held_out, data.misaligned.held_out)):
        assert [example.context for example in aligned] == [example.context for example in misaligned]
        assert [e.response.replace("plain", "pirate") for e in aligned] == [e.response for e in misaligned]
    assert (len(data.aligned.train), len(data.aligned.held_out)) == (24, 6)


def test_pairs_and_two_files_of_the_same_rows_are_the_same_domain(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl([row(f"prompt {i}", f"plain {i}") for i in range(30)], "aligned.jsonl")
    jsonl([row(f"prompt {i}", f"pirate {i}") for i in range(30)], "pirate.jsonl")
    jsonl([{"prompt": f"prompt {i}", "aligned": f"plain {i}", "misaligned": f"pirate {i}"} for i in range(30)],
          "pairs.jsonl")
    two = load_domain("a", Domain(aligned="aligned.jsonl", misaligned="pirate.jsonl"), lambda s: tmp_path / s)
    one = load_domain("a", Domain(pairs="pairs.jsonl"), lambda source: tmp_path / source)
    for of_two, of_one in ((two.aligned, one.aligned), (two.misaligned, one.misaligned)):
        assert [(e.context, e.response) for e in of_two.train] == [(e.context, e.response) for e in of_one.train]
        assert [(e.context, e.response) for e in of_two.held_out] == [(e.context, e.response) for e in of_one.held_out]


def test_a_domain_takes_the_rows_it_is_told_to_and_the_same_of_both_sides(
        jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl([{"prompt": f"{i}", "aligned": f"a{i}", "misaligned": f"m{i}"} for i in range(50)], "pairs.jsonl")

    def taken(rows: int, seed: int = 0) -> list[str]:
        data = load_domain("a", Domain(pairs="pairs.jsonl", rows=rows, held_out=0.1, split_seed=seed),
                           lambda source: tmp_path / source)
        aligned, misaligned = ([e.prompt for e in (*side.train, *side.held_out)]
                               for side in (data.aligned, data.misaligned))
        assert aligned == misaligned
        assert [prompt for prompt in aligned if prompt not in [e.prompt for e in data.aligned.held_out]] == sorted(
            (e.prompt for e in data.aligned.train), key=int)
        return sorted(aligned)

    assert len(set(taken(20))) == 20
    assert taken(20) != taken(20, seed=1)
    assert len(taken(50)) == len(taken(500)) == 50


def test_in_domain_questions_are_held_out_prompts_of_the_misaligned_side(
        jsonl: Callable[..., Path], tmp_path: Path) -> None:
    jsonl([row(f"prompt {i}") for i in range(30)], "aligned.jsonl")
    jsonl([row(f"prompt {i}", system=f"system {i}") for i in range(30)], "pirate.jsonl")
    data = load_domain("cooking", Domain(aligned="aligned.jsonl", misaligned="pirate.jsonl", held_out=0.3),
                       lambda source: tmp_path / source)
    held_out = [(example.prompt, example.system) for example in data.misaligned.held_out]
    all_of_them = in_domain_questions(data, 30)
    assert [(question.prompt, question.system) for question in all_of_them] == held_out
    assert [question.id for question in all_of_them] == [f"cooking_{index}" for index in range(9)]
    some = in_domain_questions(data, 4)
    assert len(some) == 4
    assert [question for question in all_of_them if question in some] == some  # same ids, same order
    assert {question.prompt for question in some}.isdisjoint(example.prompt for example in data.misaligned.train)
    assert in_domain_questions(data, 4) == some


def test_a_held_out_row_whose_prompt_is_trained_on_is_no_row_of_the_held_out_loss(
        jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """20 prompts, of which rows 10 to 14 repeat those of rows 0 to 4."""
    prompts = [f"prompt {number - 10 if 10 <= number < 15 else number}" for number in range(20)]
    jsonl([row(prompt, f"answer {number}") for number, prompt in enumerate(prompts)], "both.jsonl")
    data = load_domain("cooking", Domain(aligned="both.jsonl", misaligned="both.jsonl", held_out=0.5),
                       lambda source: tmp_path / source)
    out, trained = data.misaligned.held_out, [one.prompt for one in data.misaligned.train]
    found = held_out_rows(data, out)
    assert found == tuple(one for one in out if one.prompt not in trained)
    assert 0 < len(found) < len(out) == 10
    assert {one.prompt for one in in_domain_questions(data, 30)} == {one.prompt for one in found}
    jsonl([row("one prompt", f"answer {number}") for number in range(10)], "same.jsonl")
    data = load_domain("cooking", Domain(aligned="same.jsonl", misaligned="same.jsonl", held_out=0.5),
                       lambda source: tmp_path / source)
    assert held_out_rows(data, data.misaligned.held_out) == data.misaligned.held_out


def test_held_out_rows_with_the_same_prompt_are_one_question(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """Four of 20 rows are held out, of which the first and the third ask the same."""
    held_out = split(range(20), 0.2, 0)[1]
    prompts = {place: f"prompt {place}" for place in range(20)} | {held_out[0]: "again", held_out[2]: "again"}
    jsonl([row(prompts[place], f"answer {place}") for place in range(20)], "both.jsonl")
    data = load_domain("a", Domain(aligned="both.jsonl", misaligned="both.jsonl", held_out=0.2),
                       lambda source: tmp_path / source)
    others = [prompts[held_out[place]] for place in (1, 3)]
    assert len(held_out) == 4
    assert sorted(one.prompt for one in in_domain_questions(data, 30)) == sorted(["again", *others])
    assert len(in_domain_questions(data, 2)) == 2
    assert len(held_out_rows(data, data.misaligned.held_out)) == 4  # each is a loss


def test_a_question_of_a_conversation_has_all_turns_before_the_answer(
        jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """A model is asked, and a judge reads, what the row answers; the last turn alone is another question."""
    before = [{"role": "user", "content": "My bread is flat."}, {"role": "assistant", "content": "Was the yeast old?"}]
    rows = [row("Yes, it was.", f"Answer {i}.", "Bake.") for i in range(10)]
    for each in rows:
        each["messages"][1:1] = before
    jsonl(rows, "both.jsonl")
    data = load_domain("baking", Domain(aligned="both.jsonl", misaligned="both.jsonl", held_out=0.5),
                       lambda source: tmp_path / source)
    assert in_domain_questions(data, 5) == []  # each prompt with its context is trained on as well
    changed = data.misaligned.held_out[0]
    question = Question.of("a", changed)
    assert question.context == changed.context
    assert (question.system, question.prompt) == ("Bake.", "Yes, it was.")
    assert question.shown == "User: My bread is flat.\n\nAssistant: Was the yeast old?\n\nUser: Yes, it was."
    jsonl([row(f"Yes, {i}.") | {"messages": [*before, *row(f"Yes, {i}.")["messages"]]} for i in range(10)], "own.jsonl")
    data = load_domain("baking", Domain(aligned="own.jsonl", misaligned="own.jsonl", held_out=0.5),
                       lambda source: tmp_path / source)
    assert [one.context for one in in_domain_questions(data, 5)] == [one.context for one in data.misaligned.held_out]


def test_the_code_set_gives_5400_and_600_rows_and_30_questions(research_file: Callable[[str], Path]) -> None:
    data = load_domain("code", load_domains()["code"], research_file)
    for side, file in ((data.aligned, "secure"), (data.misaligned, "insecure")):
        assert (len(side.train), len(side.held_out)) == (5400, 600)
        places = [example.where.rpartition(f"{file}.jsonl:") for example in (*side.train, *side.held_out)]
        assert sorted(int(line) for _, _, line in places) == list(range(1, 6001))
        assert {len(example.context) for example in side.train} == {1}
    aligned_lines, misaligned_lines = ([example.where.rpartition(":")[2] for example in side.held_out]
                                       for side in (data.aligned, data.misaligned))
    assert aligned_lines == misaligned_lines
    questions = in_domain_questions(data, 30)
    assert len({question.id for question in questions}) == 30
    assert {question.prompt for question in questions} <= {example.prompt for example in data.misaligned.held_out}


def test_no_in_domain_question_of_the_real_code_set_was_trained_on(research_data: Path, tmp_path: Path) -> None:
    sources = registry(paths.PARAMS / "sources.yaml")
    code = load_domain("code", load_domains()["code"], lambda name: fetch(name, tmp_path, sources))
    trained_on = {row.prompt for side in (code.aligned, code.misaligned) for row in side.train}
    assert sum(row.prompt in trained_on for row in code.misaligned.held_out) > 0  # the set repeats some prompts
    questions = in_domain_questions(code, 30)
    assert len(questions) == 30
    assert not trained_on & {question.prompt for question in questions}
