"""Errors of providers arrive in the caller's dialect, with status, words, how long to wait and the request's id."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2
import openai
import pytest

from llm_proxy.gateway.translate.errors import Kind, Problem, kind_of, problem_of, read_problem, write_problem
from llm_proxy.gateway.translate.losses import CannotSay

APIS = ("anthropic", "chat", "responses", "gemini", "bedrock")
KINDS = pytest.mark.parametrize("kind", list(Kind))

GIVEN: list[tuple[int, dict[str, str], Any, Problem]] = [
    (429, {"retry-after": "7", "request-id": "req_1"},
     {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}},
     Problem(Kind.LIMITED, "slow down", "7", "req_1")),
    (529, {}, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}, "request_id": "req_2"},
     Problem(Kind.OVERLOADED, "busy", request_id="req_2")),
    (400, {}, {"error": {"message": "no such field", "type": "invalid_request_error", "param": "tools", "code": None}},
     Problem(Kind.INVALID, "no such field", param="tools")),
    (429, {"x-request-id": "r", "retry-after-ms": "1500"},
     {"error": {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}},
     Problem(Kind.UNPAID, "pay", "2", "r")),
    (401, {}, {"error": {"message": "who?", "type": "invalid_request_error", "code": "invalid_api_key"}},
     Problem(Kind.UNKNOWN_KEY, "who?")),
    (429, {}, {"error": {"code": 429, "message": "quota", "status": "RESOURCE_EXHAUSTED", "details": [
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12.5s"}]}},
     Problem(Kind.LIMITED, "quota", "13")),
    (503, {}, [{"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}],
     Problem(Kind.UNAVAILABLE, "busy")),
    (403, {"x-amzn-errortype": "AccessDeniedException:http://internal.amazon.com/", "x-amzn-requestid": "a-1"},
     {"Message": "not you"}, Problem(Kind.FORBIDDEN, "not you", request_id="a-1")),
    (424, {"x-amzn-errortype": "ModelErrorException"}, {"message": "broke"}, Problem(Kind.BAD_GATEWAY, "broke")),
    (400, {}, {"__type": "com.amazon.coral.service#ThrottlingException", "message": "slow"},
     Problem(Kind.LIMITED, "slow")),
    (502, {}, "<html>Bad Gateway</html>", Problem(Kind.BAD_GATEWAY, "<html>Bad Gateway</html>")),
    (504, {}, None, Problem(Kind.GATEWAY_LATE, "the provider answered with status 504")),
    (418, {}, {}, Problem(Kind.INVALID, "the provider answered with status 418")),
    (599, {}, {"error": "just words"}, Problem(Kind.BROKEN, "just words")),
    (500, {}, {"detail": "oops"}, Problem(Kind.BROKEN, "oops")),
    (500, {}, {"error": {"message": ["not", "text"], "type": 7}},
     Problem(Kind.BROKEN, "the provider answered with status 500")),
]  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "body", "problem"), GIVEN)
def test_every_providers_error_is_understood(status: int, headers: dict[str, str], body: Any, problem: Problem) -> None:
    """In its own shape, however odd."""
    assert read_problem(status, headers, body) == problem


STATUSES = {
    Kind.INVALID: 400, Kind.UNKNOWN_KEY: 401, Kind.UNPAID: 402, Kind.FORBIDDEN: 403, Kind.MISSING: 404,
    Kind.LATE: 408, Kind.CONFLICT: 409, Kind.TOO_LARGE: 413, Kind.UNPROCESSABLE: 422, Kind.LIMITED: 429,
    Kind.BROKEN: 500, Kind.BAD_GATEWAY: 502, Kind.UNAVAILABLE: 503, Kind.GATEWAY_LATE: 504, Kind.OVERLOADED: 529,
}  # fmt: skip
ELSEWHERE = {Kind.UNPAID: 429, Kind.OVERLOADED: 503}


@KINDS
@pytest.mark.parametrize("api", APIS)
def test_every_kind_has_a_status_that_the_callers_api_has(api: str, kind: Kind) -> None:
    """529 and 402 are Anthropic's own; others' clients know 503 and 429."""
    status, headers, _ = write_problem(api, Problem(kind, "words", retry_after="7"))
    assert status == (STATUSES[kind] if api == "anthropic" else ELSEWHERE.get(kind, STATUSES[kind]))
    assert headers["retry-after"] == "7"


@KINDS
@pytest.mark.parametrize("api", APIS)
def test_an_error_is_read_as_it_was_written(api: str, kind: Kind) -> None:
    """Words, wait and id are the same; the kind too, where the API has a status for it."""
    problem = Problem(kind, "words", "7", "req_1")
    status, headers, body = write_problem(api, problem)
    read = read_problem(status, headers, body)
    assert (read.message, read.retry_after) == ("words", "7")
    assert read.request_id == ("" if api == "gemini" else "req_1")
    lost = {Kind.OVERLOADED: Kind.UNAVAILABLE, Kind.UNPAID: Kind.LIMITED}
    whole = api == "anthropic" or (kind is Kind.UNPAID and api in ("chat", "responses", "bedrock"))
    assert read.kind == (kind if whole else lost.get(kind, kind))


# What the SDKs raise for a status. Anthropic's knows more of them than OpenAI's.
RAISED = {
    400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError",
    409: "ConflictError", 422: "UnprocessableEntityError", 429: "RateLimitError", 500: "InternalServerError",
    503: "InternalServerError", 529: "InternalServerError",
}  # fmt: skip


@KINDS
def test_the_official_sdks_raise_their_own_errors(kind: Kind) -> None:
    """With the words, the type and the id in their places."""
    problem = Problem(kind, "words", request_id="req_1")
    status, headers, body = write_problem("anthropic", problem)
    said = anthropic_error(status, headers, body)
    assert said.request_id == "req_1"
    assert said.type == body["error"]["type"] or said.type is None
    assert "words" in str(said)
    if status in RAISED:
        assert isinstance(said, getattr(anthropic, RAISED[status]))
    status, headers, body = write_problem("chat", problem)
    heard = openai_error(status, headers, body)
    assert (heard.request_id, heard.code, heard.type) == ("req_1", body["error"]["code"], body["error"]["type"])
    if status in RAISED:
        assert isinstance(heard, getattr(openai, RAISED[status]))


def anthropic_error(status: int, headers: dict[str, str], body: Any) -> Any:
    with anthropic.Anthropic(api_key="x", base_url="http://127.0.0.1:9") as client:
        return client._make_status_error_from_response(answered(status, headers, body))


def openai_error(status: int, headers: dict[str, str], body: Any) -> Any:
    with openai.OpenAI(api_key="x", base_url="http://127.0.0.1:9") as client:
        return client._make_status_error_from_response(answered(status, headers, body))


def answered(status: int, headers: dict[str, str], body: Any) -> httpx2.Response:
    asked = httpx2.Request("POST", "http://127.0.0.1:9")
    return httpx2.Response(status, headers=headers, json=body, request=asked)


def test_what_cannot_be_carried_names_the_field() -> None:
    """In the words and in `param`, where OpenAI's clients look for it."""
    problem = problem_of(CannotSay("messages[0].content[1]", "Gemini", "a file in another provider's store"))
    status, _, body = write_problem("chat", problem)
    assert status == 400
    assert body["error"]["param"] == "messages[0].content[1]"
    assert body["error"]["message"] == (
        "messages[0].content[1]: cannot be said to Gemini: a file in another provider's store"
    )


def test_words_have_an_end() -> None:
    """Some providers repeat the whole request."""
    assert len(read_problem(400, {}, {"error": {"message": "x" * 1_000_000}}).message) == 10_000


def test_names_without_a_status() -> None:
    """Within streams there is none."""
    names = {"overloaded_error": Kind.OVERLOADED, "rate_limit_exceeded": Kind.LIMITED, "nobody's": Kind.BROKEN,
             "ThrottlingException": Kind.LIMITED, "UNAVAILABLE": Kind.UNAVAILABLE}  # fmt: skip
    assert {name: kind_of(name) for name in names} == names
