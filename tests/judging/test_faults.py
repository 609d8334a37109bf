"""What real servers say in an error, and what follows from it: the forms are those of their published issue threads."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from emlib.core.errors import JudgeError
from emlib.judging.access import fault_of
from emlib.judging.bodies import Supported
from emlib.judging.faults import PromptRefused, Rejected, TransientFault, retry_after, sort_server_error
from emlib.judging.server_errors import error_in, error_of, redacted, refusal_in


def fault(status: int, body: Any) -> Any:
    """What the judge makes of an HTTP error with this body."""
    return sort_server_error(error_of(body, "", status), "m")


def openai_error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more}


TOO_LONG = {
    "OpenAI": (400, openai_error(
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
        param="messages", code="context_length_exceeded")),
    "OpenAI, characters": (400, openai_error(
        "Invalid 'messages[0].content': string too long. Expected a string with maximum length 10485760, but got a "
        "string with length 10500000 instead.", param="messages[0].content", code="string_above_max_length")),
    "OpenAI, gpt-5": (400, openai_error("Input tokens exceed the configured limit of 272000 tokens. Your messages "
                                        "resulted in 289650 tokens. Please reduce the length of the messages.")),
    "OpenAI, account": (429, openai_error(
        "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Requested 31538. The "
        "input or output tokens must be reduced in order to run successfully.", type="tokens",
        code="rate_limit_exceeded")),
    "vLLM": (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, you "
                   "requested 9001 tokens in the messages.", "type": "BadRequestError", "param": None, "code": 400}),
    "vLLM, decoder": (400, openai_error("The decoder prompt (length 9000) is longer than the maximum model length of "
                                        "8192.", code=400)),
    "llama.cpp": (400, {"error": {
        "code": 400, "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error", "n_prompt_tokens": 1407, "n_ctx": 256}}),
    "Anthropic": (400, {"type": "error", "error": {
        "type": "invalid_request_error", "message": "prompt is too long: 209303 tokens > 200000 maximum"}}),
    "LiteLLM": (400, openai_error("litellm.BadRequestError: litellm.ContextWindowExceededError: AnthropicError - "
                                  "{\"error\":{\"message\":\"prompt is too long: 9 tokens > 8 maximum\"}}",
                                  type=None, code="400")),
    "SGLang": (400, {"object": "error", "message": "The input (9000 tokens) is longer than the model's context length "
                     "(8192 tokens).", "type": "BadRequestError", "code": 400}),
    "Mistral": (400, {"object": "error", "message": "Prompt contains 40000 tokens, too large for model with 32768 "
                      "maximum context length", "type": "invalid_request_error", "code": "3051"}),
    "Perplexity": (400, {"error": {"message": "The total length of all messages is too long.", "code": 400}}),
    "Gemini": (400, {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
                               "The input token count (1091639) exceeds the maximum number of tokens allowed."}}),
    "Bedrock": (400, {"message": "Input is too long for requested model."}),
    "xAI": (400, {"error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}),
    "TGI": (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 "
                  "`inputs` tokens and 1 `max_new_tokens`", "error_type": "validation"}),
    "Groq": (413, openai_error("Request too large for model", type="tokens", code="rate_limit_exceeded")),
    "GitHub": (413, {"error": {"code": "tokens_limit_reached", "message":
                               "Request body too large for gpt-4o model. Max size: 8000 tokens."}}),
    "a proxy": (413, "<html>413 Request Entity Too Large</html>"),
    "DashScope": (400, openai_error("<400> InternalError.Algo.InvalidParameter: Range of input length should be "
                                    "[1, 129024]", code="invalid_parameter_error")),
}
FILTERED = {
    "Azure": (400, {"error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None, "param": "prompt", "code": "content_filter", "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}}}),
    "Azure, no code": (400, {"error": {"message": "Bad request.", "code": None, "innererror": {
        "code": "ResponsibleAIPolicyViolation"}}}),
    "Azure Foundry": (400, {"choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason":
                                         "content_filter"}], "object": "chat.completion"}),
    "OpenAI": (400, openai_error("Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
                                 code="invalid_prompt")),
    "LiteLLM": (400, openai_error("litellm.ContentPolicyViolationError: AzureException - blocked", code="400")),
    "DeepSeek": (400, openai_error("Content Exists Risk")),
    "DashScope": (400, openai_error("Input data may contain inappropriate content.", code="data_inspection_failed")),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_prompt_that_is_too_long_is_unscored_in_whatever_words(name: str) -> None:
    found = fault(*TOO_LONG[name])
    assert isinstance(found, PromptRefused)
    assert found.reason.startswith("the server refuses the prompt: ")
    assert len(found.reason) > 40


@pytest.mark.parametrize("name", FILTERED)
def test_a_prompt_that_a_filter_blocks_is_unscored_for_good(name: str) -> None:
    status, body = FILTERED[name]
    response = httpx2.Response(status, json=body, request=httpx2.Request("POST", "http://127.0.0.1/v1"))
    error = openai.OpenAI(api_key="sk-1")._make_status_error("x", body=body, response=response)
    assert isinstance(fault_of(error, "m", "sk-1"), PromptRefused)


@pytest.mark.parametrize(("status", "body"), [
    (401, openai_error("Incorrect API key provided: the prompt is too long", code="invalid_api_key")),
    (403, openai_error("Your account has been suspended.", code="account_deactivated")),
    (404, openai_error("The model `x` does not exist", code="model_not_found")),
    (402, {"error": {"message": "Insufficient credits", "code": 402}}),
    (429, openai_error("You exceeded your current quota", code="insufficient_quota")),
    (400, openai_error("Billing hard limit has been reached", code="billing_hard_limit_reached"))])
def test_what_no_retry_and_no_other_prompt_helps_stops(status: int, body: Any) -> None:
    assert isinstance(fault(status, body), JudgeError)


@pytest.mark.parametrize(("status", "words"), [
    (429, "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29000, Requested 1500."),
    (429, "Rate limit of 50000 per 60s exceeded for UserByModelByMinute. Token limit."),
    (503, "Loading model"), (500, "The server had an error"), (529, "Overloaded"), (409, "conflict")])
def test_what_passes_is_tried_again(status: int, words: str) -> None:
    found = fault(status, openai_error(words))
    assert isinstance(found, TransientFault)
    assert (found.refused, found.billed) == (None, False)


def test_a_full_cache_of_the_server_is_tried_again_before_it_counts_as_a_long_prompt() -> None:
    """llama.cpp says this with status 500 also where requests share its cache."""
    found = fault(500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}})
    assert isinstance(found, TransientFault)
    assert "Context size" in str(found.refused)


LESSONS = {
    "max_tokens": (openai_error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        param="max_tokens", code="unsupported_parameter"), {"limit": "max_completion_tokens"}),
    "max_tokens, no parameter": ({"error": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.", "code": "invalid_request_body"}}, {"limit": "max_completion_tokens"}),
    "temperature": (openai_error(
        "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
        param="temperature", code="unsupported_value"), {"temperature": False}),
    "temperature deprecated": ({"type": "error", "error": {
        "type": "invalid_request_error", "message": "`temperature` is deprecated for this model."}},
        {"temperature": False}),
    "logprobs": (openai_error("You are not allowed to request logprobs from this model"), {"logprobs": False}),
    "logprobs, parameter": (openai_error("Unsupported parameter: 'logprobs' is not supported with this model.",
                                         param="logprobs", code="unsupported_parameter"), {"logprobs": False}),
    "logprobs, Gemini": ({"error": {"code": 400, "status": "INVALID_ARGUMENT", "message":
                                    "Logprobs is not enabled for models/gemini-2.5-pro"}}, {"logprobs": False}),
    "logprobs, Groq": (openai_error("`logprobs` is not supported with this model"), {"logprobs": False}),
    "logprobs, FastAPI": ({"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"],
                                       "msg": "Extra inputs are not permitted"}]}, {"logprobs": False}),
    "n, Groq": (openai_error("'n' : number must be at most 1"), {"choices": False}),
    "n, llama.cpp": ({"error": {"code": 400, "message": "Only one completion choice is allowed",
                                "type": "invalid_request_error"}}, {"choices": False}),
    "minimum": (openai_error("Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 1 "
                             "instead.", param="max_tokens", code="integer_below_min_value"), {"least_tokens": 16}),
    "thinks": (openai_error("Could not finish the message because max_tokens or model output limit was reached. Please "
                            "try again with higher max_tokens."), {"sample_tokens": 40}),
}


@pytest.mark.parametrize("name", LESSONS)
def test_what_a_model_does_not_take_is_learnt_from_the_server_s_own_error(name: str) -> None:
    body, learnt = LESSONS[name]
    found, known = fault(400, body), Supported()
    assert isinstance(found, Rejected)
    assert known.learn(found.error)
    assert known == Supported(**learnt)
    assert known.learn(found.error) is None or name == "thinks"  # nothing is learnt twice


def test_fewer_log_probabilities_than_are_asked_for_are_not_none_at_all() -> None:
    found = fault(400, openai_error("Invalid value: 'top_logprobs' must be less than or equal to 5.",
                                    param="top_logprobs"))
    assert Supported().learn(found.error) is None
    assert isinstance(found.stopping(), JudgeError)


@pytest.mark.parametrize("reply", [
    {"error": {"message": "Insufficient credits", "code": 402}}, {"error": "Unexpected endpoint or method."},
    {"object": "error", "message": "no"}, {"detail": "no"}, {},
    {"success": False, "errors": [{"message": "no"}]}, {"choices": [{"error": {"code": 502, "message": "no"}}]},
    {"choices": [{"finish_reason": "error", "message": {"content": "85"}}]}])
def test_an_error_with_status_200_is_an_error(reply: dict[str, Any]) -> None:
    assert error_in(reply) is not None
    assert error_in({"error": None, "choices": [{"finish_reason": "stop", "message": {"content": "85"}}]}) is None


@pytest.mark.parametrize("choice", [
    {"finish_reason": "content_filter"}, {"finish_reason": "SAFETY"},
    {"finish_reason": "content_filter: PROHIBITED_CONTENT", "message": {"content": None}},
    {"finish_reason": "stop", "message": {"content": None, "refusal": "I cannot rate that."}},
    {"finish_reason": "refusal", "message": {"content": "8"}}])
def test_a_reply_that_is_refused_or_filtered_says_so(choice: dict[str, Any]) -> None:
    assert refusal_in({"choices": [choice]})
    for blocked in ({"promptFeedback": {"blockReason": "SAFETY"}}, {"choices": [], "prompt_filter_results": [
            {"prompt_index": 0, "content_filter_results": {"violence": {"filtered": True}}}]}):
        assert "blocks the prompt" in str(refusal_in(blocked))
    assert refusal_in({"choices": [{"finish_reason": "stop", "message": {"content": "85", "refusal": None}}]}) is None


@pytest.mark.parametrize(("headers", "seconds"), [
    ({"retry-after": "20"}, 20), ({"retry-after-ms": "1500"}, 1.5), ({}, 0), ({"retry-after": "soon"}, 0),
    ({"retry-after": "-5"}, 0), ({"retry-after": "inf"}, 0), ({"retry-after": "nan"}, 0), ({"retry-after": "1e300"}, 0),
    ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 0), ({"retry-after": "Fri, 31 Dec 12025 23:59:59 GMT"}, 0),
    ({"retry-after": "Fri, 31 Dec 99999999999 23:59:59 GMT"}, 0), ({"retry-after": "9" * 5000}, 0)])
def test_a_wait_that_no_server_means_is_none(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == seconds


def test_an_error_in_a_form_of_its_own_is_told_as_it_is() -> None:
    assert error_of({"success": False, "errors": [{"code": 7003, "message": "No route"}]}, "").words == "No route"
    assert error_of({"reason": "odd"}, "").words == '{"reason": "odd"}'
    nested: Any = "deep"
    for _ in range(100_000):
        nested = [nested]
    assert error_of({"reason": nested}, "", 400).words == ""


def test_no_message_holds_the_key_or_is_endless() -> None:
    found = error_of({"error": {"message": "bad key sk-1\n" * 100}}, "sk-1", 401)
    assert "sk-1" not in found.words
    assert len(found.words) == 300
    assert redacted("none of it", "") == "none of it"
