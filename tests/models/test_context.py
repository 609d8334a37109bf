"""A model's context: rows and prompts that are longer are refused, with both numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig, MambaConfig, PreTrainedConfig, Qwen2Config

from emlib.config import Sampling
from emlib.core.errors import DataError, ProfileError
from emlib.core.records import Question
from emlib.generation.sample import answer_batch, plan
from emlib.make.rows import training_rows
from emlib.models.context import context_of, refuse_longer_prompts
from emlib.models.load import ChatModel
from emlib.study.study import open_study

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0}


@pytest.mark.parametrize(("config", "context"), [
    (Qwen2Config(max_position_embeddings=32768), 32768),
    (Qwen2Config(max_position_embeddings=32768, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}), 131072),
    (LlamaConfig(max_position_embeddings=131072, rope_scaling=LLAMA3), 131072),  # 8 * 8192 is less than it states
    (LlamaConfig(max_position_embeddings=4096, rope_scaling={"rope_type": "linear", "factor": 2.0}), 8192),
    (GPT2Config(), 1024), (MambaConfig(), None)], ids=str)
def test_the_context_is_what_the_configuration_states(tiny: ChatModel, config: PreTrainedConfig,
                                                      context: int | None) -> None:
    tiny.model.config = config
    assert context_of(tiny.model) == context


def test_a_prompt_whose_answer_may_pass_the_context_is_refused_by_its_question(tiny: ChatModel) -> None:
    [[short]] = plan([Question("short", "Why?")], 1, tiny.tokenizer, 1)
    [[long]] = plan([Question("long", "Why? " * 9)], 1, tiny.tokenizer, 1)
    tiny.model.config.max_position_embeddings = len(long.prompt_ids) + 5
    assert answer_batch(tiny.model, tiny.tokenizer, [short, long], Sampling(max_new_tokens=5), 0)[1].question == "long"
    with pytest.raises(DataError, match=rf"question 'long' has a prompt of {len(long.prompt_ids)} tokens, and answers "
                                        rf"of up to 6 .* reads {len(long.prompt_ids) + 5} tokens at most. "
                                        r"Its prompt is 'Why"):
        answer_batch(tiny.model, tiny.tokenizer, [short, long], Sampling(max_new_tokens=6), 0)


def test_no_prompts_are_not_too_long(tiny: ChatModel) -> None:
    refuse_longer_prompts(tiny.model, {}, 10**6)


@pytest.mark.parametrize("section", ["training", "grpo.training"])
def test_a_model_is_not_loaded_for_rows_that_are_longer_than_its_context(section: str, tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    for length, fits in ((4096, True), (4097, False)):  # the tiny model's context is 4096
        with open_study("tiny", f"{section}.max_seq_length={length}").session() as session:
            if fits:
                assert session.chat.name == "tiny-4x64"
            else:
                with pytest.raises(ProfileError, match=rf"{section}.max_seq_length is 4097, but tiny-4x64 reads 4096 "):
                    session.chat  # noqa: B018


def test_a_task_s_own_training_is_not_begun_with_rows_that_are_longer(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMLIB_RUNS_DIR", str(tmp_path))
    study = open_study("tiny")
    spec = study.recipes.narrow("cooking", "misaligned", (), 0)
    longer = replace(spec, training=spec.training.model_copy(update={"max_seq_length": 4097}))
    with study.session() as session:
        assert training_rows(session, spec, {}).own
        with pytest.raises(ProfileError, match=r"max_seq_length of cooking is 4097, but tiny-4x64 reads 4096"):
            training_rows(session, longer, {})
