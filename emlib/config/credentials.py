"""Which address the value of an environment variable may be sent to.

A profile may come from somebody else. Without these rules it could name any variable and any address, and so have a key
of another service sent there.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from emlib.core.addresses import is_loopback

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
