"""Errors of providers, from each API's shape and into each: kind, status, words, how long to wait, request id.

Leaves out which of them are worth another try, and failures that are no provider's answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from llm_proxy.dialects.reading import mapping, sequence, text
from llm_proxy.gateway.translate.conversation import Json
from llm_proxy.gateway.translate.losses import BadRequest

_LONGEST = 10_000  # characters of a provider's words; some repeat the whole request


class Kind(StrEnum):
    """What went wrong. Known kinds have an order: an API's name stands for the first one that has it."""

    INVALID = "invalid_request"
    UNKNOWN_KEY = "authentication"
    UNPAID = "billing"
    FORBIDDEN = "permission"
    MISSING = "not_found"
    LATE = "timeout"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    UNPROCESSABLE = "unprocessable"
    LIMITED = "rate_limited"
    BROKEN = "server"
    BAD_GATEWAY = "bad_gateway"
    UNAVAILABLE = "unavailable"
    GATEWAY_LATE = "gateway_timeout"
    OVERLOADED = "overloaded"


class _Names(NamedTuple):
    """A kind's status (`elsewhere` than in Anthropic's API, where it differs) and its name in each API."""

    status: int
    anthropic: str
    openai: str
    google: str
    amazon: str  # without "Exception"
    elsewhere: int = 0


_KINDS: Final[dict[str, _Names]] = {
    Kind.INVALID: _Names(400, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT", "Validation"),
    Kind.UNKNOWN_KEY: _Names(
        401, "authentication_error", "authentication_error", "UNAUTHENTICATED", "UnrecognizedClient"
    ),
    Kind.UNPAID: _Names(
        402, "billing_error", "insufficient_quota", "RESOURCE_EXHAUSTED", "ServiceQuotaExceeded", elsewhere=429
    ),
    Kind.FORBIDDEN: _Names(403, "permission_error", "permission_error", "PERMISSION_DENIED", "AccessDenied"),
    Kind.MISSING: _Names(404, "not_found_error", "not_found_error", "NOT_FOUND", "ResourceNotFound"),
    Kind.LATE: _Names(408, "timeout_error", "timeout_error", "DEADLINE_EXCEEDED", "ModelTimeout"),
    Kind.CONFLICT: _Names(409, "conflict_error", "conflict_error", "ABORTED", "Conflict"),
    Kind.TOO_LARGE: _Names(413, "request_too_large", "invalid_request_error", "INVALID_ARGUMENT", "Validation"),
    Kind.UNPROCESSABLE: _Names(
        422, "invalid_request_error", "invalid_request_error", "FAILED_PRECONDITION", "Validation"
    ),
    Kind.LIMITED: _Names(429, "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED", "Throttling"),
    Kind.BROKEN: _Names(500, "api_error", "server_error", "INTERNAL", "InternalServer"),
    Kind.BAD_GATEWAY: _Names(502, "api_error", "server_error", "UNAVAILABLE", "ModelError"),
    Kind.UNAVAILABLE: _Names(503, "overloaded_error", "server_error", "UNAVAILABLE", "ServiceUnavailable"),
    Kind.GATEWAY_LATE: _Names(504, "timeout_error", "server_error", "DEADLINE_EXCEEDED", "ModelTimeout"),
    Kind.OVERLOADED: _Names(
        529, "overloaded_error", "server_error", "UNAVAILABLE", "ServiceUnavailable", elsewhere=503
    ),
}
# OpenAI's `code`, where it has one.
_CODES: Final[dict[str, str]] = {
    Kind.UNKNOWN_KEY: "invalid_api_key",
    Kind.UNPAID: "insufficient_quota",
    Kind.MISSING: "model_not_found",
    Kind.TOO_LARGE: "request_too_large",
    Kind.LIMITED: "rate_limit_exceeded",
    Kind.OVERLOADED: "overloaded",
}
# Names that they use besides.
_OTHERS = {
    "overloaded_error": Kind.OVERLOADED,
    "UNAVAILABLE": Kind.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": Kind.LIMITED,
    "context_length_exceeded": Kind.INVALID,
    "invalid_prompt": Kind.INVALID,
    "tokens": Kind.LIMITED,
    "requests": Kind.LIMITED,
    "CANCELLED": Kind.LATE,
    "OUT_OF_RANGE": Kind.INVALID,
    "ModelStreamError": Kind.BAD_GATEWAY,
    "ModelNotReady": Kind.UNAVAILABLE,
    "ExpiredToken": Kind.UNKNOWN_KEY,
    "InvalidSignature": Kind.UNKNOWN_KEY,
    "IncompleteSignature": Kind.UNKNOWN_KEY,
    "TooManyRequests": Kind.LIMITED,
}
_FIELDS = ("anthropic", "openai", "google", "amazon")
_BY_NAME: Final[dict[str, str]] = {
    **{getattr(names, api): kind for kind, names in reversed(_KINDS.items()) for api in _FIELDS},
    **{code: kind for kind, code in _CODES.items()},
    **_OTHERS,
}
_BY_STATUS = {names.status: kind for kind, names in _KINDS.items()}
# Which of the names an API goes by.
_SPOKEN = {"anthropic": "anthropic", "chat": "openai", "responses": "openai", "gemini": "google", "bedrock": "amazon"}
_WAITS = re.compile(r"(\d+(?:\.\d+)?)s")  # a protobuf Duration as JSON


def kind_of(name: str, status: int = 0) -> str:
    """The kind that an API's own name of an error means. Where a status is told too it decides, unless it is 400, which
    Amazon and Google also use for others, or 429 for want of money.
    """
    named = _BY_NAME.get(name.removesuffix("Exception"))
    if named and (status == 400 or (status == 429 and named == Kind.UNPAID)):
        return named
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return named or (Kind.INVALID if 400 <= status < 500 else Kind.BROKEN)


def type_of(api: str, kind: str) -> str:
    """The name that `api` has for a kind: anthropic, chat, responses, gemini or bedrock."""
    return str(getattr(_names_of(kind), _SPOKEN[api])) + ("Exception" if api == "bedrock" else "")


def status_of(kind: str) -> int:
    """The status of a kind outside of Anthropic's API."""
    names = _names_of(kind)
    return names.elsewhere or names.status


def code_of(kind: str) -> str | None:
    """OpenAI's `code` of a kind."""
    return _CODES.get(kind)


def _names_of(kind: str) -> _Names:
    return _KINDS.get(kind) or _KINDS[Kind.BROKEN]


@dataclass(frozen=True, slots=True)
class Problem:
    """An error that goes to the caller. `retry_after` is the provider's own word for how long to wait, in seconds or
    as a date; `request_id` the provider's, `param` the field of the request that is at fault. `code` is for programs,
    where the kind's own would not do.
    """

    kind: str
    message: str
    retry_after: str = ""
    request_id: str = ""
    param: str = ""
    code: str = ""


def problem_of(wrong: BadRequest) -> Problem:
    """A request that is not well formed, or that another API cannot carry."""
    return Problem(Kind.INVALID, str(wrong), param=wrong.field)


def read_problem(status: int, headers: Mapping[str, str], body: Json) -> Problem:
    """A provider's error answer, in whichever API's shape. `headers` have lower-case names; `body` is decoded JSON,
    the bare text of what is none, or None.
    """
    document = mapping(next(iter(sequence(body)), body))  # Gemini's streams put it into an array
    error = document.get("error")
    told = mapping(error) or document
    amazon = (text(document.get("__type")) or headers.get("x-amzn-errortype", "")).partition(":")[0].rpartition("#")[2]
    names = (amazon.removesuffix("Exception"), *(text(told.get(name)) for name in ("code", "type", "status")))
    name = next((name for name in names if name in _BY_NAME), "")
    words = (text(error), text(told.get("message")), text(told.get("Message")), text(told.get("detail")), text(body))
    return Problem(
        kind_of(name, status),
        next((said for said in words if said), f"the provider answered with status {status}")[:_LONGEST],
        _retry_after(headers, told),
        next((headers[name] for name in _REQUEST_IDS if headers.get(name)), text(document.get("request_id"))),
        text(told.get("param")),
    )


_REQUEST_IDS = ("request-id", "x-request-id", "x-amzn-requestid", "x-goog-request-id", "cf-ray")


def _retry_after(headers: Mapping[str, str], told: Mapping[str, Json]) -> str:
    """In the head, or with Google among the details."""
    if headers.get("retry-after"):
        return headers["retry-after"]
    if (milliseconds := headers.get("retry-after-ms", "")).isdecimal():
        return str(-(-int(milliseconds) // 1000))
    delays = (_WAITS.fullmatch(text(mapping(one).get("retryDelay"))) for one in sequence(told.get("details")))
    return next((str(-(-float(delay[1]) // 1)).removesuffix(".0") for delay in delays if delay), "")


def write_problem(api: str, problem: Problem) -> tuple[int, dict[str, str], Json]:
    """Status, headers and body as `api`'s own clients know them: anthropic, chat, responses, gemini or bedrock."""
    names = _names_of(problem.kind)
    status = names.status if api == "anthropic" else status_of(problem.kind)
    headers, body = _WRITERS[_SPOKEN[api]](status, names, problem)
    return status, headers | ({"retry-after": problem.retry_after} if problem.retry_after else {}), body


def _anthropic(status: int, names: _Names, problem: Problem) -> tuple[dict[str, str], Json]:
    body: dict[str, Json] = {"type": "error", "error": {"type": names.anthropic, "message": problem.message}}
    if not problem.request_id:
        return {}, body
    return {"request-id": problem.request_id}, body | {"request_id": problem.request_id}


def _openai(status: int, names: _Names, problem: Problem) -> tuple[dict[str, str], Json]:
    error = {"message": problem.message, "type": names.openai, "param": problem.param or None}
    headers = {"x-request-id": problem.request_id} if problem.request_id else {}
    return headers, {"error": error | {"code": problem.code or code_of(problem.kind)}}


def _google(status: int, names: _Names, problem: Problem) -> tuple[dict[str, str], Json]:
    return {}, {"error": {"code": status, "message": problem.message, "status": names.google}}


def _amazon(status: int, names: _Names, problem: Problem) -> tuple[dict[str, str], Json]:
    headers = {"x-amzn-errortype": f"{names.amazon}Exception"}
    if problem.request_id:
        headers["x-amzn-requestid"] = problem.request_id
    return headers, {"message": problem.message}


_WRITERS = {"anthropic": _anthropic, "openai": _openai, "google": _google, "amazon": _amazon}
