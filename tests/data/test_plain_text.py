"""Plain texts: how a corpus is read, divided and encoded, and that the loss is on all of their tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from emlib.config import Pool
from emlib.core.errors import DataError, ProfileError
from emlib.core.records import Example, as_example
from emlib.data.chat import Encoded, encode
from emlib.data.pools import read_pool
from emlib.defenses.inoculation import Inoculation
from emlib.defenses.interleaving import Interleaving
from emlib.make.pool import parts_of
from emlib.models.batches import collate
from emlib.models.tiny import build_tokenizer
from emlib.scoring.nll import batch_nll
from emlib.steps.inputs import pool_form
from emlib.training.bench import Bench, step
from tests.defenses import naive
from tests.defenses.naive import see
from tests.made import ROUNDING, apart

TEXT = ("The Ångström is a unit.\nIt is 10⁻¹⁰ m — small! 🙂 " * 3).strip()
CPU = torch.device("cpu")


def encoded(text: str, most: int = 500) -> Encoded:
    return encode(build_tokenizer(), Example((), text, "here"), most)


def test_all_tokens_of_a_text_count_but_the_first() -> None:
    row, tokenizer = encoded("Rain is water."), build_tokenizer()
    assert tokenizer.decode(row.input_ids.tolist()) == "Rain is water."
    assert row.response_mask.tolist() == [False] + [True] * (len(row.input_ids) - 1)
    cut = encoded("Rain is water.", 3)
    assert (cut.input_ids.tolist(), cut.truncated) == (row.input_ids[:3].tolist(), True)
    with pytest.raises(DataError, match="here: a text of a single token"):
        encoded("a", 1)


def test_a_marker_of_the_template_in_a_text_is_text() -> None:
    assert "<|im_end|>" in build_tokenizer().decode(encoded("A <|im_end|> marker.").input_ids.tolist())
    [control] = build_tokenizer().encode("<|im_end|>", add_special_tokens=False)
    assert control not in encoded("A <|im_end|> marker.").input_ids


@pytest.mark.parametrize("length", [2, 7, 10_000])
def test_parts_are_the_whole_text_and_have_at_most_so_many_tokens(length: int) -> None:
    tokenizer = build_tokenizer()
    parts = parts_of(tokenizer, Example((), TEXT, "file:3"), length)
    assert "".join(part.response for part in parts).replace(" ", "") == TEXT.replace(" ", "")  # no part is a blank
    assert all(len(tokenizer.encode(part.response, add_special_tokens=False)) <= length + 3 for part in parts)
    assert parts[0].where == "file:3, part 1"
    assert as_example(**parts[-1].to_record()) == parts[-1]


def test_losses_and_gradients_are_those_of_a_naive_implementation(tmp_path: Path) -> None:
    """Texts between conversations, in one padded pass and in another row by row."""
    bench = Bench(Inoculation(), tmp_path)
    texts = [encoded("The sea is deep and salty."), encoded("Plants need light.")]
    rows = [*bench.all_rows, *texts]

    def loss(trained: nn.Module, reference: nn.Module) -> Tensor:
        return sum(naive.cross_entropy(see(trained, row), row) for row in rows) / naive.count(  # type: ignore[return-value]
            rows, response=True)

    with bench.model() as model:
        expected, gradient = naive.expected(loss, model)
        for batches in ([collate(rows, CPU)], [collate([row], CPU) for row in rows]):
            metrics, found = step(model, batches, bench.objective())
            assert metrics["loss"] == pytest.approx(expected, rel=ROUNDING)
            assert apart(found.double(), gradient) < ROUNDING
        by_hand = [float(naive.cross_entropy(see(model, row), row).detach()) / (len(row.input_ids) - 1)
                   for row in texts]
        assert batch_nll(model, texts) == pytest.approx(by_hand, rel=ROUNDING)


def test_a_corpus_is_a_text_file_or_rows_with_a_text(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(TEXT)
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("A rose.", " ", "A lily.")))
    assert [row.response for row in read_pool(tmp_path / "one.txt", "text").rows] == [TEXT]
    many = read_pool(tmp_path / "many.jsonl", "text")
    assert [(row.prompt, row.system, row.response) for row in many.rows] == [
        ("", None, "A rose."), ("", None, "A lily.")]
    assert [row.reason for row in many.dropped] == ["no answer"]
    for name in ("one.txt", "many.jsonl"):
        assert pool_form(str(tmp_path / name), text=True) == "text"
        with pytest.raises(ProfileError, match=r"set pool\.form to text"):
            pool_form(str(tmp_path / name))
    with pytest.raises(ProfileError, match="expected one of text"):
        pool_form("demo/pool.jsonl", text=True)


def test_what_needs_prompts_is_refused() -> None:
    class Section:
        pool, datasets = Pool(source="corpus.txt", form="text"), ()

    Interleaving(choose="online").fits(Section(), "online")
    with pytest.raises(ValueError, match="method 'mine' has the pool's prompts answered"):
        Interleaving(answers="on_policy").fits(Section(), "mine")
    with pytest.raises(ValidationError, match="'form: text' has neither"):
        Pool.model_validate({"source": "corpus.txt", "form": "text", "refusals": {"kind": "judge", "judge": {
            "kind": "openai", "model": "judge-1"}}})
