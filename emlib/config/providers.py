"""Providers of judges: where their servers are, what these can do, what a token costs, and which key may be sent where.

A profile may come from somebody else. Without the rules for keys it could name any variable and any address, and so
have a key of another service sent there.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field

from emlib.core.addresses import is_loopback
from emlib.core.schema import Strict

OPENAI = "https://api.openai.com/v1"
TOP_LOGPROBS = 20  # Betley et al.
MILLION = 1_000_000
BATCH_SHARE = 0.5  # of the price, for a request in a batch
Usd = Annotated[float, Field(ge=0, le=1_000_000)]
SAMPLES = 10  # sampled scores whose mean is the score, where a model has no log-probabilities
OPENAI_HOST = "api.openai.com"
# The hosts of providers, by how the names of their variables begin; subdomains count. Domains under which anybody may
# run a server (virtual machines, endpoints of users) are not among them. Empty: services without a fixed address for
# judges, or without judges.
KEY_HOSTS: dict[str, tuple[str, ...]] = {
    "OPENAI": (OPENAI_HOST,),
    "AZURE": ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com", "models.ai.azure.com",
              "inference.ai.azure.com", "openai.azure.us"),
    "ANTHROPIC": ("api.anthropic.com",), "CLAUDE": ("api.anthropic.com",), "OPENROUTER": ("openrouter.ai",),
    "TOGETHER": ("api.together.xyz", "api.together.ai"), "GROQ": ("api.groq.com",), "MISTRAL": ("api.mistral.ai",),
    "DEEPSEEK": ("api.deepseek.com",), "GEMINI": ("googleapis.com",), "GOOGLE": ("googleapis.com",),
    "FIREWORKS": ("api.fireworks.ai",), "XAI": ("api.x.ai",), "COHERE": ("api.cohere.com", "api.cohere.ai"),
    "CO_API": ("api.cohere.com", "api.cohere.ai"), "HF": ("huggingface.co",), "HUGGINGFACE": ("huggingface.co",),
    "HUGGING_FACE": ("huggingface.co",), "HUGGINGFACEHUB": ("huggingface.co",), "PERPLEXITY": ("api.perplexity.ai",),
    "PPLX": ("api.perplexity.ai",), "NVIDIA": ("api.nvidia.com",), "NGC": ("api.nvidia.com",),
    "CEREBRAS": ("api.cerebras.ai",), "DEEPINFRA": ("api.deepinfra.com",), "REPLICATE": ("api.replicate.com",),
    "SAMBANOVA": ("api.sambanova.ai",), "MOONSHOT": ("api.moonshot.cn", "api.moonshot.ai"),
    "DASHSCOPE": ("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"), "NEBIUS": ("api.studio.nebius.com",),
    "GITHUB": ("models.github.ai", "models.inference.ai.azure.com"), "GH": ("models.github.ai",),
    **dict.fromkeys(("AWS", "BEDROCK", "DATABRICKS", "GITLAB", "WANDB", "COMET", "NEPTUNE", "KAGGLE", "SLACK", "DOCKER",
                     "NPM", "PYPI", "TWINE", "KUBE", "SLURM", "SSH", "VAULT", "AZUREML"), ())}


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


def why_not_sent(variable: str, address: str, send_key_to: str | None) -> str | None:
    """Return why the value of a variable must not be sent to an address, and what to do; None where it may.

    Args:
        variable: the name of the environment variable.
        address: the server's URL.
        send_key_to: the host that the profile names as the one that this key is meant for.
    """
    parts = urlsplit(address)
    host = parts.hostname or ""
    if parts.scheme != "https" and not is_loopback(host):
        return f"the key in {variable} would be sent to {host} unencrypted; a key needs an address with https"
    provider = max((name for name in KEY_HOSTS if f"{variable}_".startswith(f"{name}_")), key=len, default=None)
    if provider is None or any(host == own or host.endswith(f".{own}") for own in KEY_HOSTS[provider]):
        return None
    if provider == "OPENAI":
        return (f"{variable} is OpenAI's key, and {host} is not OpenAI's address ({OPENAI_HOST}); put that server's "
                "own key into another variable, and name that in 'key_from'")
    if send_key_to == host:
        return None
    return (f"{variable} is the key of another service than {host}; put that server's own key into another variable, "
            f"or, if it is meant for this server, add 'send_key_to: {host}'")
