"""Which API a call used, and the module that understands it: one table.

Paths tell, not providers: many hosts speak another provider's API. A dialect's module is imported when its first call
comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked


class Dialect(Protocol):
    """What each dialect's module offers. Neither function raises, whatever the bytes: `trouble` says why not."""

    def asked(self, path: str, body: bytes) -> Asked: ...

    def answers(self, content: Content) -> tuple[Answer, ...]: ...


class Row(NamedTuple):
    """`methods` are separated by blanks; `WS` is a GET that was upgraded. `path` matches whole paths, no query."""

    api: str
    methods: str
    path: re.Pattern[str]
    module: str


def _row(api: str, methods: str, path: str, module: str) -> Row:
    return Row(api, methods, re.compile(path, re.DOTALL), module)


# The first row that matches wins.
TABLE = (
    _row("anthropic.count_tokens", "POST", r".*/messages/count_tokens/?", "anthropic"),
    _row("anthropic.batches", "POST", r".*/messages/batches(?:/[^/]+/cancel)?/?", "anthropic_batches"),
    _row("anthropic.batches", "GET", r".*/messages/batches/[^/]+(?:/results)?/?", "anthropic_batches"),
    _row("anthropic.messages", "POST", r"(?!.*/threads/).*/messages/?", "anthropic"),
    # Vertex AI names the model in the path.
    _row("anthropic.messages", "POST", r".*/publishers/anthropic/models/[^/]+:(?:streamR|r)awPredict", "anthropic"),
    _row("bedrock.converse", "POST", r".*/model/.+/converse(?:-stream)?/?", "bedrock"),
    _row("bedrock.invoke", "POST", r".*/model/.+/invoke(?:-with-response-stream)?/?", "bedrock"),
    _row("bedrock.count_tokens", "POST", r".*/model/.+/count-tokens/?", "bedrock"),
    _row("openai.chat", "POST", r".*/chat/completions/?", "openai_chat"),
    _row("openai.completions", "POST", r".*/completions/?", "openai_chat"),
    _row("openai.embeddings", "POST", r".*/embeddings/?", "openai_chat"),
    _row("openai.responses", "POST WS", r".*/responses(?:/compact|/[^/]+/cancel)?/?", "openai_responses"),
    # What became of a background answer.
    _row("openai.responses", "GET", r".*/responses/resp_[^/]+/?", "openai_responses"),
    _row("gemini.generate", "POST", r".*:(?:streamG|g)enerateContent/?", "gemini"),
    _row("gemini.count_tokens", "POST", r".*:countTokens/?", "gemini"),
    _row("gemini.embed", "POST", r".*:(?:e|batchE)mbedContents?/?", "gemini"),
    _row("ollama.chat", "POST", r".*/api/(?:chat|generate)/?", "ollama"),
)
_MODULES = {row.api: row.module for row in TABLE}


def api_of(method: str, path: str, websocket: bool = False) -> str:
    """The API's name, "" for a call that is not understood. `path` is without its query."""
    method = "WS" if websocket else method
    for row in TABLE:
        if method in row.methods.split() and row.path.fullmatch(path):
            return row.api
    return ""


def asked(api: str, path: str, body: bytes) -> Asked:
    """What the request asks. `body` is decoded. Never raises for a name from `api_of`."""
    return replace(_dialect(api).asked(path, body), api=api)


def answers(api: str, path: str, content: Content) -> tuple[Answer, ...]:
    """What came back; empty where nothing did. Never raises for a name from `api_of`."""
    return _dialect(api).answers(replace(content, path=path))


@cache
def _dialect(api: str) -> Dialect:
    return cast(Dialect, import_module(f"llm_proxy.dialects.{_MODULES[api]}"))


# The providers' own, and of a ChatGPT login how much of the plan is used up.
_LIMITS = re.compile(
    r"(?:anthropic|x)-ratelimit-.*|retry-after(?:-ms)?|x-codex-(?:primary|secondary|credits)-.*", re.DOTALL
)


def limits(fields: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Of a response head, the fields that tell how much may still be asked, with their names in lower case."""
    named = ((name.lower(), value) for name, value in fields)
    return tuple((name, value) for name, value in named if _LIMITS.fullmatch(name))
