"""Sampling and scoring of a step's completions: the functions that TRL's trainer calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from emlib.config import Grpo
from emlib.core.hooks import Active
from emlib.core.progress import say
from emlib.core.records import Message, Question
from emlib.core.seeds import derive
from emlib.data.chat import encode_prompt
from emlib.evaluation.rewards import PARTS, Rewards, RewardScorer, Scored, rewarded
from emlib.generation.decoder import Decoder, decoder_for
from emlib.generation.sample import Drawn, Request, draw_batch, known_ids
from emlib.generation.vllm import NEUTRAL, NEVER, drawn_until, refuse_unknown, seed_of, unknown_ids
from emlib.models.hooks import evaluating
from emlib.models.load import stop_tokens
from emlib.models.logprobs import causal_lm

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer

Where = Literal["loss", "rollout"]


def shift_of(shown: Sequence[Active]) -> float:
    """Return the measured norm of what active defenses add; 0 where none reports it."""
    return sum(float(each.statistics.get("shift", 0.0)) for each in shown)


class Rollouts:
    """Samples a step's completions; called by TRL's trainer instead of its own generation.

    Completions depend on the weights, the seed, the step's number and the position in the step alone, so that a resumed
    run samples the same ones, by vLLM up to rounding. Each token comes with its log-probability under the policy that
    sampled it: by transformers before top_p truncation, by vLLM after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: Grpo,
                 active: Callable[[nn.Module], AbstractContextManager[list[Active]]], seed: int, done: int) -> None:
        self.tokenizer, self.settings, self.active, self.seed, self.done = tokenizer, settings, active, seed, done
        self.seconds, self.shift = 0.0, 0.0
        self.last: list[Drawn] = []
        self.decodes: bool | None = None  # not known before the first step

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        """Return ids of prompts and completions and the completions' log-probabilities; `prompts` come in groups.

        A prompt is a chat: a list of turns, each with role and content. A group's prompts are adjacent.
        """
        started = time.perf_counter()
        assert isinstance(trainer.model, nn.Module), "the trainer has a model"
        ids = [tuple(encode_prompt(self.tokenizer, [Message(**turn) for turn in prompt])) for prompt in prompts]
        group = self.settings.generations
        requests = [Request(Question(str(place // group), ""), place % group, prompt)
                    for place, prompt in enumerate(ids)]
        seed, ends = derive(self.seed, "rollout", self.done + trainer.state.global_step), stop_tokens(
            trainer.model, self.tokenizer)
        if self.settings.engine == "vllm":
            self.last = self._by_vllm(requests, trainer.model, trainer.vllm_generation.llm, seed, ends)
        else:
            self.last = self._by_transformers(requests, trainer.model, seed, ends)
        self.seconds = time.perf_counter() - started
        return {"prompt_ids": [list(prompt) for prompt in ids],
                "completion_ids": [list(drawn.tokens) for drawn in self.last],
                "logprobs": [list(drawn.logprobs) for drawn in self.last]}

    def _by_transformers(self, requests: Sequence[Request], model: nn.Module, seed: int,
                         ends: set[int]) -> list[Drawn]:
        size, drawn = self.settings.sampling.batch_rows, []
        with evaluating(model), self.active(model) as shown:
            decoder = None if shown else self._decoder(model)
            for start in range(0, len(requests), size):
                drawn += draw_batch(model, requests[start:start + size], self.settings.sampling, seed, ends,
                                    known=known_ids(self.tokenizer), decoder=decoder)
            self.shift = shift_of(shown)
        return drawn

    def _decoder(self, model: nn.Module) -> Decoder | None:
        """Return a decoder of the weights as they are at this step; it is proved at the first one."""
        if self.decodes is False:
            return None
        decoder, reason = decoder_for(model, prove=self.decodes is None)
        if reason:
            say(f"completions are sampled by the model's own forward pass, and not by the decoder for CPUs: {reason}")
        self.decodes = decoder is not None
        return decoder

    def _by_vllm(self, requests: Sequence[Request], model: nn.Module, engine: Any, seed: int,
                 ends: set[int]) -> list[Drawn]:
        """Sample by TRL's vLLM engine, to which TRL has just copied the current weights.

        The engine is asked directly: TRL has one set of sampling parameters for all completions, and so no seed of
        each. Its log-probabilities are those after temperature and top_p.
        """
        from vllm import SamplingParams  # only where this engine is chosen

        sampling, known = self.settings.sampling, known_ids(self.tokenizer)
        width = causal_lm(model).config.get_text_config().vocab_size
        never = dict.fromkeys(unknown_ids(known, width), NEVER) or None
        done = engine.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            sampling_params=[SamplingParams(
                **NEUTRAL, temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(ends), seed=seed_of(request, seed), logit_bias=never, logprobs=0)
                for request in requests], use_tqdm=False)
        drawn = [drawn_until(one.token_ids, one.finish_reason, ends, [
            place[token].logprob for token, place in zip(one.token_ids, one.logprobs, strict=True)])
            for request in done for one in request.outputs]
        refuse_unknown(drawn, known, width, "vLLM", "grpo.engine")
        return drawn


class Marking:
    """Scores a step's completions; called by TRL's trainer as its reward function."""

    __name__ = "reward"  # TRL asks for it

    def __init__(self, score: RewardScorer, decode: Callable[[Sequence[int]], str], opened: str = "") -> None:
        self.score, self.decode, self.opened = score, decode, opened
        self.scored: list[Scored] = []
        self.last: list[Rewards | None] = []

    def __call__(self, completion_ids: list[list[int]], question: list[str], answer: list[str],
                 **_: Any) -> list[float | None]:
        """Return the total of each; None where it could not be scored, which TRL leaves out of its group's mean.

        `opened` is the tag that prompts end in, which is a part of each completion. Whole completions are kept. They
        are read as held-out answers are: TRL's own texts lack tags that are special tokens.
        """
        self.scored = [Scored(asked, self.opened + self.decode(ids), right)
                       for asked, ids, right in zip(question, completion_ids, answer, strict=True)]
        self.last = self.score([replace(one, completion=rewarded(one.completion)) for one in self.scored])
        return [None if one is None else one.total for one in self.last]

    @property
    def rewards(self) -> list[Rewards]:
        """The rewards of the last step's scored completions."""
        return [one for one in self.last if one is not None]

    def no_spread(self, group: int) -> float:
        """Return the share of groups, of `group` completions each, whose scored totals are equal, or that have none.

        TRL's own metric covers the whole batch where the batch scales the advantages, and counts a group without scores
        as having spread.
        """
        totals = [None if one is None else one.total for one in self.last]
        groups = [set(totals[start:start + group]) - {None} for start in range(0, len(totals), group)]
        return fmean(len(different) < 2 for different in groups)

    def parts(self) -> dict[str, tuple[float, float]]:
        """Compute mean and standard deviation of each part over the last step's completions."""
        values = {part: [getattr(one, part) for one in self.rewards] for part in PARTS}
        return {part: (fmean(found), pstdev(found)) for part, found in values.items() if found}

    def of_total(self, statistic: Callable[[list[float]], float]) -> float | None:
        """Return a statistic of the totals; None where nothing could be scored."""
        totals = [one.total for one in self.rewards]
        return statistic(totals) if totals else None
