"""Which key may go to which address."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from emlib.config import OpenAIJudge
from emlib.core.errors import JudgeError
from emlib.judging.access import api_key


def judge(variable: str | None, address: str | None, **more: str) -> OpenAIJudge:
    return OpenAIJudge.model_validate(
        {"kind": "openai", "model": "m", "key_from": variable, "base_url": address} | more)


@pytest.mark.parametrize(("variable", "address", "more"), [
    (None, None, {}), ("OPENAI_API_KEY", None, {}), ("OPENAI_API_KEY", "https://eu.api.openai.com/v1", {}),
    ("JUDGE_KEY", "http://127.0.0.1:8000/v1", {}), ("JUDGE_KEY", "http://localhost:8000/v1", {}),
    ("JUDGE_KEY", "http://[::1]:8000/v1", {}), ("JUDGE_KEY", "https://judge.example.org/v1", {}),
    ("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", {}), ("HF_TOKEN", "https://router.huggingface.co/v1", {}),
    ("AZURE_OPENAI_API_KEY", "https://mine.openai.azure.com/openai/v1", {}),
    ("ANTHROPIC_API_KEY", "https://gateway.example.org/v1", {"send_key_to": "gateway.example.org"}),
    ("ANTHROPIC_API_KEY", "http://127.0.0.1:4000/v1", {"send_key_to": "127.0.0.1"}),
    (None, "http://judge.example.org/v1", {})])  # no key is sent
def test_a_key_goes_where_it_belongs(variable: str | None, address: str | None, more: dict[str, str]) -> None:
    spec = judge(variable, address, **more)
    sent = api_key(spec, lambda name: f"value-of-{name}")
    assert sent == ("" if spec.key_variable is None else f"value-of-{spec.key_variable}")


@pytest.mark.parametrize(("variable", "address", "message"), [
    ("JUDGE_KEY", "http://judge.example.org/v1", "unencrypted"),
    ("JUDGE_KEY", "http://10.0.0.5:8000/v1", "unencrypted"),
    ("OPENAI_API_KEY", "http://api.openai.com/v1", "unencrypted"),
    ("OPENAI_API_KEY", "https://judge.example.org/v1", "is OpenAI's key"),
    ("OPENAI_API_KEY", "https://api.openai.com.example.org/v1", "is OpenAI's key"),
    ("OPENAI_API_KEY", "https://evilapi.openai.com.co/v1", "is OpenAI's key"),
    ("OPENAI_API_KEY", "http://127.0.0.1:8000/v1", "is OpenAI's key"),
    ("OPENAI_API_KEY_2", "https://judge.example.org/v1", "is OpenAI's key"),
    ("ANTHROPIC_API_KEY", "https://judge.example.org/v1", "send_key_to: judge.example.org"),
    ("AZURE_OPENAI_API_KEY", "https://vm.westeurope.cloudapp.azure.com/v1", "another service"),
    ("HF_TOKEN", "https://me.endpoints.huggingface.cloud/v1", "another service"),
    ("AWS_SECRET_ACCESS_KEY", "https://judge.example.org/v1", "another service"),
    ("GITHUB_TOKEN", "http://127.0.0.1:8000/v1", "another service"),
    ("JUDGE_KEY", "https://api.openai.com#@judge.example.org/v1", "plain name"),
    ("JUDGE_KEY", "https://api.openai.com@judge.example.org/v1", "name, a password"),
    ("JUDGE_KEY", "https://judge.example.org\\@api.openai.com/v1", "a name, a password")])
def test_a_key_goes_nowhere_else(variable: str, address: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        judge(variable, address)


def test_openais_key_goes_nowhere_else_even_if_a_profile_says_so() -> None:
    with pytest.raises(ValidationError, match="is OpenAI's key"):
        judge("OPENAI_API_KEY", "https://judge.example.org/v1", send_key_to="judge.example.org")
    with pytest.raises(ValidationError, match="not the host"):
        judge("JUDGE_KEY", "https://judge.example.org/v1", send_key_to="example.org")


def test_a_key_is_checked_again_before_it_is_read() -> None:
    """A specification that was changed after it was checked."""
    moved = judge("OPENAI_API_KEY", None).model_copy(update={"base_url": "https://judge.example.org/v1"})
    with pytest.raises(JudgeError, match=r"is OpenAI's key.*Nothing was sent"):
        api_key(moved, {"OPENAI_API_KEY": "sk-secret"}.get)
