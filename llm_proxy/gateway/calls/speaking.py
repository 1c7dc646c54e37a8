"""Errors in the caller's dialect: refusals of ours, providers' problems, and what breaks a stream off.

Leaves out which errors are answered at all: some have another provider tried instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from llm_proxy.gateway.calls.ids import request_id
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.translate.apis import APIS, server_sent
from llm_proxy.gateway.translate.conversation import Ask, Failure
from llm_proxy.gateway.translate.errors import Problem, kind_of, type_of, write_problem

REQUEST_ID: Final = "x-llm-proxy-request-id"
_OWN_IDS: Final = {"anthropic": "request-id"}  # where each dialect's clients look; the others have OpenAI's
_NOBODY: Final = Ask("", ())
_encode = msgspec.json.encode


def identified(dialect: str, id: str) -> dict[str, str]:
    """The headers that tell a request's id."""
    return {REQUEST_ID: id, _OWN_IDS.get(dialect, "x-request-id"): id}


def refusal(dialect: str, refused: Refusal, id: str = "", headers: Mapping[str, str] | None = None) -> web.Response:
    """Its status, words, code and headers. `dialect` is chat, responses or anthropic."""
    id = id or request_id()
    kind = kind_of("", refused.status)
    named = type_of(dialect, kind)
    if dialect == "anthropic":
        body: Any = {"type": "error", "error": {"type": named, "message": refused.message}, "request_id": id}
    else:
        error = {"message": refused.message, "type": named, "param": refused.param or None, "code": refused.code}
        body = {"error": error}
    told = {**(headers or {}), **identified(dialect, id), "x-llm-proxy-error": refused.code, **refused.headers}
    if refused.status == 401:
        told.setdefault("WWW-Authenticate", "Bearer")
    return whole(_encode(body), refused.status, told)


def problem(dialect: str, told: Problem, id: str, headers: Mapping[str, str]) -> web.Response:
    """A provider's error, under our request's id. One with a `code` is ours about the provider."""
    status, own, body = write_problem(dialect, told)
    if dialect == "anthropic":
        body["request_id"] = id
    ours = {"x-llm-proxy-error": told.code} if told.code else {}
    return whole(_encode(body), status, {**own, **headers, **identified(dialect, id), **ours})


def whole(body: bytes, status: int, headers: Mapping[str, str]) -> web.Response:
    """JSON that no cache keeps."""
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    )


def broken_off(dialect: str, failure: Failure) -> bytes:
    """The event that ends a stream of which the provider's own words have gone out."""
    return b"".join(server_sent(name, data) for name, data in APIS[dialect].writer(_NOBODY).write(failure))
