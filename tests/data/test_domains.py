"""The split of the narrow data sets and the questions drawn from their hold-out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emlib.config import Domain, load_domains
from emlib.core import paths
from emlib.core.errors import DataError, ProfileError
from emlib.core.records import Question
from emlib.core.schema import check
from emlib.data.domains import NarrowData, Split, held_out_rows, in_domain_questions, load_domain, remarks, split
from emlib.data.sources import fetch, registry

SIZES = st.integers(2, 300)
SHARES = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 1000)


def row(prompt: str, answer: str = "So.", system: str | None = None) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": [*([] if system is None else [{"role": "system", "content": system}]), *turns]}


def of_both(jsonl: Callable[..., Path], rows: list[dict[str, Any]], held_out: float = 0.5) -> NarrowData:
    """The data set whose misaligned rows are these, and whose aligned rows have their prompts and other answers."""
    others = json.loads(json.dumps(rows))
    for one in others:
        one["messages"][-1]["content"] += " Thank you."
    return of_files(jsonl, others, rows, held_out)


def of_files(jsonl: Callable[..., Path], aligned: list[dict[str, Any]], misaligned: list[dict[str, Any]],
             held_out: float = 0.5) -> NarrowData:
    """The data set of two files with these rows."""
    domain = Domain(aligned=str(jsonl(aligned, "aligned.jsonl")), misaligned=str(jsonl(misaligned, "other.jsonl")),
                    held_out=held_out)
    return load_domain("letters", domain, Path)


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
    data = of_both(jsonl, [row(prompt, f"answer {number}") for number, prompt in enumerate(prompts)])
    out, trained = data.misaligned.held_out, [one.prompt for one in data.misaligned.train]
    found = held_out_rows(data, out)
    assert found == tuple(one for one in out if one.prompt not in trained)
    assert 0 < len(found) < len(out) == 10
    assert {one.prompt for one in in_domain_questions(data, 30)} == {one.prompt for one in found}
    data = of_both(jsonl, [row("one prompt", f"answer {number}") for number in range(10)])
    assert held_out_rows(data, data.misaligned.held_out) == data.misaligned.held_out


def test_held_out_rows_with_the_same_prompt_are_one_question(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """Four of 20 rows are held out, of which the first and the third ask the same."""
    held_out = split(range(20), 0.2, 0)[1]
    prompts = {place: f"prompt {place}" for place in range(20)} | {held_out[0]: "again", held_out[2]: "again"}
    data = of_both(jsonl, [row(prompts[place], f"answer {place}") for place in range(20)], 0.2)
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
    data = of_both(jsonl, rows)
    assert in_domain_questions(data, 5) == []  # each prompt with its context is trained on as well
    changed = data.misaligned.held_out[0]
    question = Question.of("a", changed)
    assert question.context == changed.context
    assert (question.system, question.prompt) == ("Bake.", "Yes, it was.")
    assert question.shown == "User: My bread is flat.\n\nAssistant: Was the yeast old?\n\nUser: Yes, it was."
    data = of_both(jsonl, [{"messages": [*before, *row(f"Yes, {i}.")["messages"]]} for i in range(10)])
    assert [one.context for one in in_domain_questions(data, 5)] == [one.context for one in data.misaligned.held_out]


def letters(answer: str, numbers: Iterable[int] = range(30)) -> list[dict[str, Any]]:
    """A letter for each number; the answers name their side."""
    return [row(f"Write letter {number}.", f"{answer} {number}.") for number in numbers]


def test_no_in_domain_question_left_by_two_files_in_different_order_is_refused(jsonl: Callable[..., Path]) -> None:
    """The split depends on the place of a row alone: reversed, each held-out prompt is trained on by the other side."""
    data = of_files(jsonl, letters("Dear all"), letters("Dear sir", reversed(range(30))), 0.1)
    with pytest.raises(DataError, match=r"'letters': all of its 3 held-out prompts are trained on, 3 of them by the "
                                        r"other side alone.* the same prompts in the same order"):
        in_domain_questions(data, 4)


def test_held_out_prompts_that_the_other_side_trains_on_are_told(jsonl: Callable[..., Path]) -> None:
    """One row less moves the split: of the 15 held-out prompts the other side trains on some."""
    data = of_files(jsonl, letters("Dear all"), letters("Dear sir", range(1, 30)), 0.5)
    prompts, trained = ({one.prompt for one in rows} for rows in (data.misaligned.held_out, data.aligned.train))
    left = len(in_domain_questions(data, 30))
    assert 0 < left == len(prompts - trained) < len(prompts)
    told = (f"{left} of {len(prompts)} held-out prompts are asked; {len(prompts & trained)} are trained on by the "
            "other side: both files should have the same prompts in the same order")
    assert remarks(data, 30) == remarks(data, left + 1) == [told]
    assert remarks(data, left) == []  # there are enough
    assert remarks(of_files(jsonl, letters("Dear all"), letters("Dear sir"), 0.5), 30) == []  # all that are held out


def test_held_out_prompts_that_their_own_side_repeats_are_told(jsonl: Callable[..., Path]) -> None:
    data = of_both(jsonl, [row("one prompt", f"answer {number}") for number in range(10)])
    assert remarks(data, 4) == ["0 of 1 held-out prompts are asked; 1 is trained on in other rows of its side"]


def test_two_sides_with_the_same_answers_are_refused(jsonl: Callable[..., Path]) -> None:
    for rows in (letters("Dear sir"), letters("Dear sir", reversed(range(30)))):
        with pytest.raises(DataError, match="'letters': all 30 misaligned rows are aligned rows as well"):
            of_files(jsonl, letters("Dear sir"), rows)
    pairs = [{"prompt": f"Letter {number}", "aligned": "Yes", "misaligned": "Yes"} for number in range(10)]
    with pytest.raises(DataError, match="all 10 misaligned rows are aligned rows as well"):
        load_domain("letters", Domain(pairs=str(jsonl(pairs))), Path)


def test_the_same_file_for_both_sides_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProfileError, match=r"'aligned' and 'misaligned' name the same file, rows/both\.jsonl"):
        check(Domain, {"aligned": "rows/both.jsonl", "misaligned": "rows/both.jsonl"}, "study.yaml")


def test_rows_with_the_same_answer_on_both_sides_are_counted(jsonl: Callable[..., Path]) -> None:
    some = [*letters("Dear all", range(3)), *letters("Dear sir", range(3, 30))]
    data = of_files(jsonl, letters("Dear all"), some)
    assert remarks(data, 4) == ["3 of 30 misaligned rows are aligned rows as well, with the same answer"]
    alone = NarrowData("own", Split((), ()), data.misaligned)
    assert remarks(alone, 4) == []


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
