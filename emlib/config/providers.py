"""Providers of judges: where their servers are, what these can do, and what a token costs."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from emlib.core.schema import Strict

OPENAI = "https://api.openai.com/v1"
TOP_LOGPROBS = 20  # Betley et al.
MILLION = 1_000_000
BATCH_SHARE = 0.5  # of the price, for a request in a batch
Usd = Annotated[float, Field(ge=0, le=1_000_000)]
SAMPLES = 10  # sampled scores whose mean is the score, where a model has no log-probabilities


class Provider(NamedTuple):
    """Where a provider's OpenAI-compatible server is, which key it takes, and whether it is like OpenAI's."""

    label: str
    address: str
    key: str
    alike: bool = False  # it gives log-probabilities, several choices in a reply, and batches


# As their documentation says (November 2026): Anthropic ignores `logprobs` and takes one choice at a time
# (platform.claude.com/docs/en/api/openai-sdk); Google maps choices to candidates, which not all models give, and
# refuses `logprobs` (ai.google.dev/gemini-api/docs/openai).
PROVIDERS = {
    "openai": Provider("OpenAI", OPENAI, "OPENAI_API_KEY", alike=True),
    "anthropic": Provider("Anthropic", "https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "google": Provider("Google", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY")}
# What a profile says of a judge's server and model; not of its budget, its speed or its rubric.
OF_SERVER = ("provider", "base_url", "key_from", "send_key_to", "model", "top_logprobs", "samples", "batch", "price",
             "pinned")


class Price(Strict):
    """US dollars per million tokens read and written."""

    read: Usd
    written: Usd

    def of(self, tokens: tuple[int, int], *, batch: bool = False) -> float:
        """Return the cost of tokens read and written, in US dollars."""
        return (tokens[0] * self.read + tokens[1] * self.written) / MILLION * (BATCH_SHARE if batch else 1)
