"""What a request says about the conversation it belongs to: the client's own session id, and whether it is one at all.

Reads the path, a few headers and a few fields of the body, in the order of each provider's table. Never uses ids of
single requests (`x-client-request-id`), of people (`user`) or of previous answers: they would split conversations or
merge strangers. Also tells a client's sub-agents apart where it names them. Leaves out what a session is (the keeper's
business).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec


class Agent(NamedTuple):
    """A sub-agent within a client's session. `parent` is the agent that began it, "" for the session's own."""

    id: str
    parent: str
    name: str  # what kind of agent it is, else its id


class Hint(NamedTuple):
    """A client's session id and where it was found: a header's or body field's name, or `path`."""

    id: str
    source: str
    agent: Agent | None = None


_VALID_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.:-]{1,255}")


# --- bodies: fields stay raw, so that one of a wrong type does not spoil the others


class _Body(msgspec.Struct):
    metadata: msgspec.Raw = msgspec.Raw()
    conversation: msgspec.Raw = msgspec.Raw()
    prompt_cache_key: msgspec.Raw = msgspec.Raw()


class _Inner(msgspec.Struct):
    """The fields we look for one level down, whichever object it is."""

    id: msgspec.Raw = msgspec.Raw()
    user_id: msgspec.Raw = msgspec.Raw()
    session_id: msgspec.Raw = msgspec.Raw()


_T = TypeVar("_T")
_BODY = msgspec.json.Decoder(_Body)
_INNER = msgspec.json.Decoder(_Inner)
_TEXT = msgspec.json.Decoder(str)


def _read(decoder: msgspec.json.Decoder[_T], data: bytes | str | msgspec.Raw) -> _T | None:
    """None where `data` is not what the decoder reads, whether absent, broken, too deep or of another type."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
        return None


def _text(data: msgspec.Raw) -> str:
    return _read(_TEXT, data) or ""


def _inner(data: bytes | str | msgspec.Raw) -> _Inner:
    return _read(_INNER, data) or _Inner()


# --- sources

# Half an emoji, cut by a client's truncation, would spoil a whole body that has nothing to do with it.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class _Request:
    """What the sources read. The body is parsed when the first of them asks."""

    def __init__(self, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self.path = path
        self.headers = headers
        self._raw = body
        self._body: _Body | None = None

    @property
    def body(self) -> _Body:
        if self._body is None:
            self._body = _read(_BODY, self._raw) or _read(_BODY, _SURROGATE.sub(rb"\\ufffd", self._raw)) or _Body()
        return self._body


_Source = Callable[[_Request], str]


def _header(name: str, request: _Request) -> str:
    return request.headers.get(name, "")


_THREAD = re.compile(r"/threads/([^/]+)/")


def _thread(request: _Request) -> str:
    match = _THREAD.search(request.path)
    return match[1] if match else ""


def _user_id(request: _Request) -> str:
    """Claude Code packs its session id into `user_id`: as JSON, before version 2.1.78 behind `_session_`."""
    user_id = _text(_inner(request.body.metadata).user_id)
    _, marker, legacy = user_id.rpartition("_session_")
    return _text(_inner(user_id).session_id) or (legacy if marker else "")


def _conversation(request: _Request) -> str:
    """The conversation's id, or the object that holds it."""
    conversation = request.body.conversation
    return _text(conversation) or _text(_inner(conversation).id)


def _metadata(request: _Request) -> str:
    return _text(_inner(request.body.metadata).session_id)


def _cache_key(request: _Request) -> str:
    return _text(request.body.prompt_cache_key)


def _headers(*names: str) -> tuple[tuple[str, _Source], ...]:
    return tuple((name, partial(_header, name)) for name in names)


_ANTHROPIC = (
    *_headers("x-claude-code-session-id"),
    ("metadata.user_id", _user_id),
    *_headers("x-session-id"),
)
# Per provider, the first valid id wins.
_SOURCES: dict[str, tuple[tuple[str, _Source], ...]] = {
    "anthropic": _ANTHROPIC,
    "bedrock": _ANTHROPIC,
    "openai": (
        ("path", _thread),
        *_headers("session-id", "session_id", "thread-id"),
        ("conversation", _conversation),
        ("metadata.session_id", _metadata),
        *_headers("x-session-id"),
        ("prompt_cache_key", _cache_key),
    ),
}
_OTHERS = _headers("x-session-id")


def client_session(provider: str, path: str, headers: Mapping[str, str], body: bytes) -> Hint | None:
    """The client's own session id, if it gives one. Never raises.

    `path` is without its query; `headers` by lower-case name; `body` without its content coding.
    """
    request = _Request(path, headers, body)
    for name, source in _SOURCES.get(provider, _OTHERS):
        found = source(request)
        if _VALID_ID.fullmatch(found):
            return Hint(found, name, _agent(found, headers))
    return None


# --- sub-agents


class _Crew(NamedTuple):
    """Headers in which a client names the agent that calls, the one that began it, and what kind it is."""

    id: str
    parent: str
    kind: str


_CREWS = (
    _Crew("x-claude-code-agent-id", "x-claude-code-parent-agent-id", "x-claude-code-agent-type"),
    # Codex: a thread of its own within the session.
    _Crew("thread-id", "x-codex-parent-thread-id", "x-openai-subagent"),
)


def agent_id(session: str, headers: Mapping[str, str]) -> str:
    """What a client calls its sub-agent; "" where none called. Names of headers are in small letters."""
    agent = _agent(session, headers)
    return agent.id if agent is not None else ""


class _Turn(msgspec.Struct):
    agent_name: msgspec.Raw = msgspec.Raw()


_TURN = msgspec.json.Decoder(_Turn)
_NAME = re.compile(r"[\w./:@ -]{1,100}", re.ASCII)


def _agent(session: str, headers: Mapping[str, str]) -> Agent | None:
    for crew in _CREWS:
        id = headers.get(crew.id, "")
        if id == session or not _VALID_ID.fullmatch(id):
            continue
        parent = headers.get(crew.parent, "")
        kind = headers.get(crew.kind, "") or _codex_name(headers)
        return Agent(
            id,
            parent if parent not in (session, id) and _VALID_ID.fullmatch(parent) else "",
            kind if _NAME.fullmatch(kind) else id,
        )
    return None


def _codex_name(headers: Mapping[str, str]) -> str:
    turn = _read(_TURN, headers.get("x-codex-turn-metadata", "")) or _Turn()
    return _text(turn.agent_name)


# --- conversations

_ASKS = re.compile(
    r".*(?:/messages|/completions|/responses(?:/compact)?|/threads/(?:[^/]+/)?runs(?:/[^/]+/submit_tool_outputs)?"
    r"|:(?:(?:streamG|g)enerateContent|(?:streamR|r)awPredict)|/converse(?:-stream)?"
    r"|/invoke(?:-with-response-stream)?|/api/(?:chat|generate))/?",
    re.DOTALL,
)
_UPGRADES = re.compile(r".*/(?:responses|realtime)/?", re.DOTALL)


def is_conversation(method: str, path: str) -> bool:
    """Whether a model is asked to answer: by POST, or by GET on a path that is only ever upgraded to WebSocket."""
    asks = {"POST": _ASKS, "GET": _UPGRADES}.get(method)
    return asks is not None and asks.fullmatch(path) is not None
