"""Which dialect answers which path: a table, and the request made ready for it.

Paths may have any prefix, and `/v1` may be missing, as clients with odd base URLs send them.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.fakeprovider import chat, gemini, messages, responses
from tests.fakeprovider.answers import SENTENCE, Answer, Call, Provider, document
from tests.fakeprovider.faults import Plan
from tests.fakeprovider.http1 import Head
from tests.fakeprovider.seen import SeenRequest

Handler = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    methods: str
    pattern: re.Pattern[str]
    provider: Provider
    handle: Handler


def _nothing_there(call: Call) -> Answer:
    return document(chat.OPENAI.error(404, f"nothing at {call.path}"), status=404)


def _hello(call: Call) -> Answer:
    return document({"ok": True})


def _no_models(call: Call) -> Answer:
    return document({"models": []})


_TABLE: tuple[tuple[str, str, Provider, Handler], ...] = (
    ("POST", r"/messages/count_tokens$", messages.ANTHROPIC, messages.count_tokens),
    ("POST", r"/messages$", messages.ANTHROPIC, messages.messages),
    ("POST", r"/chat/completions$", chat.OPENAI, chat.completions),
    ("POST", r"/responses$", responses.RESPONSES, responses.responses),
    ("POST", r"/embeddings$", chat.OPENAI, chat.embeddings),
    ("POST", r"/models/[^/]+:generateContent$", gemini.GEMINI, gemini.generate),
    ("POST", r"/models/[^/]+:streamGenerateContent$", gemini.GEMINI, gemini.stream_generate),
    ("POST", r"/models/[^/]+:countTokens$", gemini.GEMINI, gemini.count_tokens),
    ("GET HEAD", r"/v1beta/models$", gemini.GEMINI, gemini.models),
    ("GET HEAD", r"/backend-api/codex/models$", chat.OPENAI, _no_models),
    ("GET HEAD", r"/models$", chat.OPENAI, chat.models),
    ("GET HEAD", r"/models/[^/]+$", chat.OPENAI, chat.model),
    ("GET HEAD", r"^/$|/hello$", chat.OPENAI, _hello),
)
ROUTES = tuple(Route(methods, re.compile(pattern), provider, handle) for methods, pattern, provider, handle in _TABLE)
NOWHERE = Route("", re.compile("$"), chat.OPENAI, _nothing_there)
# The same paths mean another provider where this field is sent.
_ANTHROPIC_MODELS = {chat.models: messages.models, chat.model: messages.model}


def route_for(head: Head) -> Route:
    path = head.path
    for route in ROUTES:
        if head.method in route.methods.split() and route.pattern.search(path):
            if route.handle in _ANTHROPIC_MODELS and head.get(b"anthropic-version"):
                return Route(route.methods, route.pattern, messages.ANTHROPIC, _ANTHROPIC_MODELS[route.handle])
            return route
    return NOWHERE


def call_for(head: Head, seen: SeenRequest, plan: Plan) -> Call:
    """The request as its dialect reads it. Raises ValueError where the body is no JSON object."""
    body = json.loads(decoded(seen.body, head.get(b"content-encoding"))) if seen.size else {}
    if not isinstance(body, dict):
        raise ValueError("the body is no JSON object")
    return call_from(head, body, seen.size, plan)


def call_from(head: Head, body: dict[str, object], size: int, plan: Plan) -> Call:
    words: Iterable[str] | None = None
    if "endless" in plan:
        words = itertools.cycle(SENTENCE)
    elif "words" in plan:
        words = list(itertools.islice(itertools.cycle(SENTENCE), plan["words"]))
    elif "say" in plan:
        words = list(plan["say"])
    path = head.origin if ":stream" in head.path else head.path
    return Call(path, body, size, words, "endless" in plan)


def decoded(body: bytes, coding: str) -> bytes:
    """Undo a request's content coding. Raises ValueError where that fails."""
    try:
        if coding == "gzip":
            return gzip.decompress(body)
        if coding == "deflate":
            return zlib.decompress(body)
        if coding == "zstd":
            from backports import zstd

            return bytes(zstd.decompress(body))
        if coding == "br":
            import brotli

            return bytes(brotli.decompress(body))
    except Exception as exc:  # every codec has errors of its own
        raise ValueError(f"not {coding}: {exc}") from exc
    return body
