"""From lines to what the index keeps of them: the one way, for live lines, for files read again and for a rebuild.

Decides only: touches neither the database (`ingest`) nor, but through what it is given, the log files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from hashlib import blake2b
from itertools import chain
from typing import Any, NamedTuple

from llm_proxy.dialects.digest import TOKEN_CLASSES, Answer, Digest, Message, PartKind, Usage
from llm_proxy.index import text
from llm_proxy.index.gist import gist
from llm_proxy.index.lines import Entry, Line
from llm_proxy.records import understood
from llm_proxy.records.first_token import waited_ms

PICO = 10**12  # of a dollar: prices in the log are no finer
_HIGHEST = Decimal(10**6)  # dollars
_MOST = 1 << 53  # what JSON's numbers hold, and sums over millions of calls still fit in 64 bits

# Texts of which `Known` remembers that they are there.
REMEMBERED = 200_000

# What a call's row holds beside its session, its id and where its entries stand. None: not told by this line.
COLUMNS = (
    *("seq", "started", "ended", "ttfb", "total", "status", "failed", "partial"),
    *TOKEN_CLASSES,
    *("server_tools", "usd", "basis", "model", "api", "method", "path", "ending", "stop_reason", "service_tier"),
    *("response_id", "error_type", "error", "account", "gateway_user", "gateway_team", "gateway_project"),
)
SESSION_COLUMNS = (
    *("provider", "upstream", "client_session", "parent", "parent_seq", "forked", "agent"),
    *("program", "cwd", "project", "root", "branch", "title"),
)
# Columns that tell for whom the gateway made a call, and their names in the log.
_WHOSE = {
    "account": "account",
    "gateway_user": "user",
    "gateway_team": "team",
    "gateway_project": "project",
}
_PROSE = (PartKind.TEXT, PartKind.REFUSAL)  # `Message.key` does not see their white space either
# Endings that are nobody's wish.
_FAILED = frozenset({"refused", "upstream_failed", "timed_out", "interrupted"})


class Spoken(NamedTuple):
    """What is searched: a message's words, or the thinking in it. The same `key` is the same text."""

    key: bytes
    role: str
    text: str
    packed: bytes | str


class SessionFact(NamedTuple):
    """What a line tells about a session; `columns` are some of SESSION_COLUMNS, empty ones left out."""

    session: str
    at: int | None  # ns
    columns: dict[str, Any]


class CallFact(NamedTuple):
    """What one or two lines tell about a call; `columns` are some of COLUMNS, the entries' places (offset, length)."""

    session: str
    id: str
    columns: dict[str, Any]
    request: tuple[int, int] | None = None
    response: tuple[int, int] | None = None
    spoken: tuple[Spoken, ...] = ()
    gist: str = ""
    title: str = ""
    upstream: str = ""


class Unpaired(NamedTuple):
    """A response whose request stands elsewhere; for who cannot look there."""

    line: Line


Fact = SessionFact | CallFact | Unpaired


class Known:
    """Which texts each session has: what is asked for is taken to be there from then on.

    `load` gives the keys of a session that is asked for the first time. Messages are remembered by Python's own hash
    too: histories come again and again, and that is had sooner than their keys.
    """

    def __init__(self, load: Callable[[str], Iterable[bytes]] = lambda session: ()) -> None:
        self._load = load
        self._sessions: dict[str, tuple[set[int], set[bytes]]] = {}
        self._size = 0

    def forget(self) -> None:
        self._sessions.clear()
        self._size = 0

    def message(self, session: str, message: Message) -> bool:
        """Whether all texts of a message have been asked for already."""
        messages, _ = self._of(session)
        short = hash(message)
        if short in messages:
            return True
        messages.add(short)
        return False

    def text(self, session: str, key: bytes) -> bool:
        _, keys = self._of(session)
        if key in keys:
            return True
        keys.add(key)
        self._size += 1
        return False

    def _of(self, session: str) -> tuple[set[int], set[bytes]]:
        found = self._sessions.get(session)
        if found is None:
            if self._size > REMEMBERED:
                self.forget()
            found = self._sessions[session] = set(), set(self._load(session))
            self._size += len(found[1])
        return found


# The request entry of (session, call id); None where there is none.
Requests = Callable[[str, str], Entry | None]


def facts(lines: Iterable[Line], known: Known, request_of: Requests | None) -> Iterator[Fact]:
    """Facts of one file's lines in their order; a call whose response is not among them comes last, as open.

    Without `request_of`, a response whose request is not among the lines is given back `Unpaired`.
    """
    waiting: dict[tuple[str, str], Line] = {}
    for line in lines:
        entry = line.entry
        kind = entry.get("type")
        if kind == "request":
            whose = _whose(line)
            if whose in waiting:  # told twice: as if the lines between had not been read at once
                yield _opened(waiting[whose])
            waiting[whose] = line
        elif kind == "response":
            whose = _whose(line)
            request = waiting.pop(whose, None)
            if request is not None or line.digest is not None:
                yield _answered(line, request, request.entry if request else {}, known)
            elif request_of is not None:
                yield _answered(line, None, request_of(*whose) or {}, known)
            else:
                yield Unpaired(line)
        elif kind == "price":
            yield CallFact(*_whose(line), _priced(entry.get("price")))
        elif kind in ("session_start", "fork"):
            yield _session(line)
    for line in waiting.values():
        yield _opened(line)


def _whose(line: Line) -> tuple[str, str]:
    """(session, call id). Logs of old have fewer names in them: the file's is the session's then."""
    entry = line.entry
    meta = _object(entry.get("_meta"))
    session = _text(meta.get("session")) or line.file.rpartition("/")[2].partition(".")[0]
    return session, _text(meta.get("request_id")) or f"{session}:{entry.get('seq')}"


# --- sessions


def _session(line: Line) -> SessionFact:
    entry = line.entry
    client = _object(entry.get("client"))
    told: dict[str, Any] = {
        "provider": entry.get("provider"),
        "upstream": entry.get("upstream"),
        "client_session": entry.get("client_session"),
        "parent": entry.get("parent_session"),
        "agent": entry.get("agent"),
        "program": client.get("program"),
        "cwd": client.get("cwd"),
        "project": client.get("project"),
        "root": client.get("root"),
        "branch": client.get("branch"),
    }
    columns: dict[str, Any] = {name: value for name, given in told.items() if (value := _text(given, 1024))}
    parent_seq = _number(entry.get("from_seq", entry.get("parent_seq")))
    if parent_seq is not None:
        columns["parent_seq"] = parent_seq
    if entry.get("type") == "fork":
        columns["forked"] = 1
    return SessionFact(_whose(line)[0], understood.moment_of(entry), columns)


# --- calls


def _asked(request: Entry) -> dict[str, Any]:
    whose = _object(request.get("gateway"))
    return {
        "seq": _number(request.get("seq")),
        "started": understood.moment_of(request),
        "method": _text(request.get("method"), 64),
        "path": _text(request.get("path"), 1024),
        **{column: _text(whose.get(name)) or None for column, name in _WHOSE.items()},
    }


def _opened(line: Line) -> CallFact:
    digest = line.digest or understood.understand(line.entry, None)
    columns = _asked(line.entry) | {"api": digest.asked.api, "model": _text(digest.asked.model)}
    place = (line.offset, line.length)
    return CallFact(*_whose(line), columns, request=place, gist=gist(digest), upstream=_upstream(line))


def _answered(line: Line, request: Line | None, asked: Entry, known: Known) -> CallFact:
    response = line.entry
    whose = _whose(line)
    digest = line.digest or understood.understand(asked, response)
    told = _object(response.get("digest")) or understood.facts(digest)
    columns = _asked(asked) if request else {}
    columns |= _answer(response, told, digest.last)
    columns |= _tokens(understood.usage_from(told)) | _priced(response.get("price"))
    return CallFact(
        *whose,
        columns,
        request=(request.offset, request.length) if request else None,
        response=(line.offset, line.length),
        spoken=tuple(_spoken(whose[0], digest, known)),
        gist=gist(digest),
        title=_title(digest),
        upstream=_upstream(request or line) or _upstream(line),
    )


def _answer(response: Entry, told: Entry, answer: Answer) -> dict[str, Any]:
    status = _number(response.get("status"))
    timing = _object(response.get("timing"))
    ending = _text(response.get("ending"), 32) or "complete"  # the reference's logs know no other
    error_type = _text(told.get("error_type"))
    answered = ending == "client_gone" or (status is not None and status < 400)
    return {
        "seq": _number(response.get("seq")),
        "ended": understood.moment_of(response),
        # An answer that never came took no time that could be averaged.
        "ttfb": waited_ms(response),
        "total": _number(timing.get("total_ms")),
        "status": status,
        "failed": int(not answered or ending in _FAILED or bool(error_type)),
        "partial": int(bool(told.get("partial"))),
        "api": _text(told.get("api")),
        "model": _text(told.get("model")),
        "ending": ending,
        "stop_reason": _text(told.get("stop_reason")),
        "service_tier": _text(told.get("service_tier")),
        "response_id": _text(told.get("response_id")),
        "error_type": error_type,
        "error": _text(response.get("error"), 500) or _text(answer.error, 500),
    }


def _tokens(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    columns: dict[str, Any] = {name: min(getattr(usage, name), _MOST) for name in TOKEN_CLASSES}
    if usage.server_tools:
        columns["server_tools"] = json.dumps(dict(usage.server_tools))
    return columns


def _priced(price: Any) -> dict[str, Any]:
    price = _object(price)
    basis = _text(price.get("basis"), 32)
    if not basis:
        return {}
    try:
        usd = max(Decimal(0), min(Decimal(str(price.get("usd"))), _HIGHEST))
    except ArithmeticError:  # no number, or none that can be compared
        return {"usd": 0, "basis": "unpriced"}
    return {"usd": int(usd * PICO), "basis": basis}


# --- what was said


def _spoken(session: str, digest: Digest, known: Known) -> Iterator[Spoken]:
    """The texts that are new in this session. Instructions and tools offered are no part of the conversation."""
    answers = (answer.message for answer in digest.answers if answer.message is not None)
    for message in chain(digest.asked.messages, answers):
        if not known.message(session, message):
            yield from _said(session, message, known)


def _said(session: str, message: Message, known: Known) -> Iterator[Spoken]:
    key = message.key
    if not known.text(session, key):
        words = text.prepared(
            " ".join(part.text.split()) if part.kind in _PROSE else f"{part.name} {part.text}"
            for part in message.parts
            if part.kind not in (PartKind.THINKING, PartKind.MEDIA)
        )
        if words:
            yield Spoken(key, message.role, words, text.packed(words))
    # Clients send answers back with their thinking or without: apart from each other, both are known again.
    thoughts = [part.text for part in message.parts if part.kind == PartKind.THINKING and part.text]
    if thoughts:
        words = text.prepared(thoughts)
        key = blake2b(b"thinking\0" + words.encode(), digest_size=16).digest()
        if words and not known.text(session, key):
            yield Spoken(key, "thinking", words, text.packed(words))


def _title(digest: Digest) -> str:
    """The first words of a person: clients put their own, in tags, before them."""
    texts = [
        part.text.strip()
        for message in digest.asked.messages[:8]
        if message.role == "user"
        for part in message.parts
        if part.kind == PartKind.TEXT
    ]
    title = next((one for one in texts if one and one[0] not in "<#"), texts[0] if texts else "")
    return " ".join(_text(title, 1000).split())[:200]


# --- values of entries, which anybody may have written


def _object(value: Any) -> Entry:
    return value if isinstance(value, dict) else {}


def _text(value: Any, limit: int = 255) -> str:
    """A text that SQLite takes; "" for anything else."""
    if not isinstance(value, str):
        return ""
    if value.isascii():
        return value[:limit]
    return value[:limit].encode("utf-8", "replace").decode()


def _number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST else None


def _upstream(line: Line) -> str:
    return _text(_object(line.entry.get("_meta")).get("host"), 1024)
