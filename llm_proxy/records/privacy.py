"""How much may be kept of a call that the gateway made for somebody, and an entry with no more than that. Pure.

Leaves out who chooses a level (the gateway), and what is done at `none`: then there is no entry.
"""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from typing import Final

from llm_proxy.dialects.digest import Digest
from llm_proxy.dialects.hints import Agent, Hint
from llm_proxy.records.exchange import Body, Exchange
from llm_proxy.records.redaction import Entry, Redactor, without_content
from llm_proxy.wire.attribution import Attribution

NONE, METADATA, REDACTED, FULL = LEVELS = ("none", "metadata", "redacted", "full")  # from the least to the most
LEFT_OUT: Final = "privacy"  # `left_out` of an entry

# What names a person, beside secrets: (kind, regular expression), as kinds of one's own are.
PERSONAL: Final = (
    ("EMAIL", r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}(?![\w-])"),
    ("HOME_OWNER", r"(?:/(?:home|Users)/|[A-Za-z]:(?:\\+|/)Users(?:\\+|/))([^\s/\\\"'<>:|`),;]+)"),
    ("IBAN", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
    ("CARD", r"(?<![\d.-])(?:\d{4}[ -]){3}\d{1,7}(?![\d-])|(?<![\d.-])[3-6]\d{14,15}(?![\d.-])"),
    ("PHONE", r"(?<![\w+])\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\w)"),
)

# Fields of heads that say how, not what: by name, or by how the name begins. Credentials are masked in the record.
_TECHNICAL: Final = re.compile(
    r"(?:accept|allow|anthropic|cache|cf|connection|content|openai|ratelimit|retry|sec|server|strict|te|trailer|transfer"
    r"|upgrade|vary|via|x-amz|x-amzn|x-envoy|x-goog|x-ratelimit|x-request|x-should-retry|x-stainless)(?:-.*)?"
    r"|age|api-key|authorization|proxy-authorization|cookie|set-cookie|x-api-key|date|etag|expires|keep-alive|request-id"
    r"|user-agent",
    re.ASCII | re.IGNORECASE,
)
_NAME: Final = re.compile(r"[\w.:@/+-]{0,128}", re.ASCII)  # models, ids, kinds of error: never a sentence
_TEXTS: Final = ("error", "reason", "decode_error", "record_error", "query")
_REASONS: Final = frozenset(status.phrase for status in HTTPStatus)


def level(whose: Attribution | None, ceiling: str = FULL) -> str:
    """Of a call, by whom it is for; no call of the gateway's is kept beyond the ceiling, all others are kept in full.

    Of a level that nobody knows nothing is kept: it is that of a program to come.
    """
    if whose is None:
        return FULL
    chosen = whose.privacy or FULL
    return min(chosen if chosen in LEVELS else NONE, ceiling, key=LEVELS.index)


def begun(whose: Attribution | None, opened: int) -> int:
    """When the caller asked, in nanoseconds since 1970: his request's id has it, and may be older than the call."""
    digits = whose.request.removeprefix("req_")[:12] if whose is not None else ""
    try:
        asked = int(digits, 16) * 1_000_000 if len(digits) == 12 else opened
    except ValueError:
        asked = opened
    return min(asked, opened) if asked > opened - _LONGEST else opened


_LONGEST: Final = 86_400 * 10**9  # nanoseconds between a request and its last attempt


def digest_of(text: str) -> str:
    """What stands for a text: its size in bytes, and its SHA-256."""
    data = text.encode("utf-8", "surrogatepass")
    return f"[sha256:{sha256(data).hexdigest()} size:{len(data)}]"


# --- metadata


def without_words(entry: Entry, body: Body) -> Entry:
    """The entry with nothing that was said: for the body, and for texts that may repeat it, stand size and SHA-256."""
    kept = without_content(entry, LEFT_OUT)
    kept.pop("redacted", None)
    whole = body.sha256 or ("" if body.truncated else sha256(body.data).hexdigest())
    if whole:
        kept["sha256"] = whole
    for name in _TEXTS:
        if isinstance(kept.get(name), str) and not (name == "reason" and kept[name] in _REASONS):
            kept[name] = digest_of(kept[name])
    for name in ("headers", "trailers"):
        if isinstance(kept.get(name), dict):
            kept[name] = {field: _values(field, values) for field, values in kept[name].items()}
    websocket = kept.get("websocket")
    if isinstance(websocket, dict):
        kept["websocket"] = {name: value for name, value in websocket.items() if not name.endswith("_error")}
    return dict(sorted(kept.items()))


def _values(field: str, values: list[str]) -> list[str]:
    return values if _TECHNICAL.fullmatch(field) else [digest_of(value) for value in values]


def named(text: str) -> str:
    """A name, or what stands for something that is none."""
    return text if _NAME.fullmatch(text) else digest_of(text)


def digest_without_words(digest: Digest) -> Digest:
    """What the index and the figures may be told."""
    asked = digest.asked
    asked = replace(asked, system="", messages=(), tools=(), model=named(asked.model), trouble="")
    answers = tuple(
        replace(
            answer,
            message=None,
            error="",
            trouble="",
            model=named(answer.model),
            stop_reason=named(answer.stop_reason),
            service_tier=named(answer.service_tier),
            response_id=named(answer.response_id),
            error_type=named(answer.error_type),
        )
        for answer in digest.answers
    )
    return replace(digest, asked=asked, answers=answers)


def hint_without_words(hint: Hint | None) -> Hint | None:
    """The client's own ids, which may say anything, by their digests: the same conversation stays the same."""
    if hint is None:
        return None
    agent = hint.agent
    return Hint(_short(hint.id), hint.source, Agent(_short(agent.id), _short(agent.parent), "") if agent else None)


def _short(id: str) -> str:
    return f"sha256:{sha256(id.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}" if id else ""


# --- redacted


def redacted(entry: Entry, redactor: Redactor, body: Body) -> Entry:
    """The entry without what the redactor finds, in heads too; content that it cannot search is not kept."""
    searched = redactor.entry(entry)
    if _is_hidden(searched):
        return without_words(entry, body)
    kept = dict(searched)
    for name in _TEXTS:
        if isinstance(kept.get(name), str):
            kept[name] = redactor.text(kept[name])
    for name in ("headers", "trailers"):
        if isinstance(kept.get(name), dict):
            kept[name] = {field: [redactor.text(value) for value in values] for field, values in kept[name].items()}
    return kept


def _is_hidden(entry: Entry) -> bool:
    """Whether something in it is no text."""
    websocket = entry.get("websocket")
    messages = websocket.get("messages", ()) if isinstance(websocket, dict) else ()
    raw = isinstance(websocket, dict) and any(name.endswith("_raw") for name in websocket)
    pieces = (*(entry.get("chunks") or ()), *messages)
    return entry.get("body_encoding") == "base64" or raw or any("base64" in one or "frame" in one for one in pieces)


def hint_redacted(hint: Hint | None, redactor: Redactor) -> Hint | None:
    if hint is None:
        return None
    said = "\n".join((hint.id, *(hint.agent or ())))
    return hint if redactor.text(said) == said else hint_without_words(hint)


def body_of(exchange: Exchange, entry: Entry) -> Body:
    """The body that an entry tells of."""
    return exchange.request if entry.get("type") == "request" else exchange.response
