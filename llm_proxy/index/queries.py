"""Questions to the index: sessions, calls, texts, sums. Reads only, and never waits for the writer.

Leaves out how rows come about (`ingest`) and what is printed of them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from llm_proxy.dialects.digest import TOKEN_CLASSES, Usage
from llm_proxy.index import database, text
from llm_proxy.index.viewer import EVERYTHING, Viewer, views

By = Literal["total", "day", "model", "project", "session", "provider"]


_ALL_ROWS = (1 << 63) - 1
_OPCODES = 20_000  # of SQLite's machine, between two looks at the clock: about a millisecond


class IndexUnavailable(Exception):
    """The index is not there, damaged, or of another version. The log files are untouched; `reindex` makes it new."""


class TookTooLong(Exception):
    """The time given by `stop_at` was over before the answer was there."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which calls. Times are nanoseconds since 1970, of a call's start, `until_ns` excluded; "" is any.

    `model` and `project` are parts of names, whatever the case; `session` is the beginning of an id (ours or the
    client's). `status`: "404", a class "5xx", or "none" for calls without one. `user` is the whole address of a user of
    the gateway, whatever the case.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    provider: str = ""
    model: str = ""
    project: str = ""
    session: str = ""
    status: str = ""
    user: str = ""
    errors: bool = False


class Place(NamedTuple):
    """Where an entry stands: see `sinks.log_reader.entry_at`."""

    file: str  # relative to the log folder
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars: `usd` spent, `equivalent` what subscriptions would have cost; `unpriced` calls are in neither."""

    usd: Decimal = Decimal(0)
    equivalent: Decimal = Decimal(0)
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call. `ttfb_ms` is until the first token; where nothing streamed, until the head.

    `usage` None: the provider told none. `usd` None: unpriced (`basis` "unpriced") or not priced ("").
    """

    id: str  # the request id
    session: str
    seq: int
    started_ns: int
    ended_ns: int | None  # None: still open
    provider: str
    upstream: str
    project: str
    program: str
    method: str
    path: str
    api: str
    model: str
    status: int | None
    ending: str  # "" while open
    error: str
    error_type: str
    failed: bool  # no good answer, and not because the client left
    ttfb_ms: int | None
    total_ms: int | None
    usage: Usage | None
    usd: Decimal | None
    basis: str
    stop_reason: str
    service_tier: str
    response_id: str
    partial: bool
    request: Place | None
    response: Place | None
    account: str = ""  # of the gateway: whose call it is; "" where another client made it
    user: str = ""  # his address then
    team: str = ""

    @property
    def open(self) -> bool:
        return self.response is None


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session and the sums over all of its calls."""

    id: str
    provider: str
    upstream: str
    client_session: str
    parent: str  # the session it came from: a fork's, or a sub-agent's
    parent_seq: int | None
    forked: bool
    agent: str
    program: str
    cwd: str
    project: str
    root: str
    branch: str
    title: str  # the first words of the user
    started_ns: int
    last_ns: int
    calls: int
    errors: int
    open: int
    usage: Usage
    cost: Cost
    models: tuple[str, ...]
    files: tuple[str, ...]  # relative to the log folder


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that holds the words. `pieces`: (text, whether it is a word looked for), no control characters."""

    call: str  # the request id of the call that first held it
    session: str
    seq: int
    started_ns: int
    provider: str
    project: str
    model: str
    role: str  # user, assistant, system, tool, or thinking
    pieces: tuple[tuple[str, bool], ...]
    score: float  # higher is better; 0 where not everything is seen


@dataclass(frozen=True, slots=True)
class StatRow:
    """Sums over the calls of one `key`: a local day, a model, ...; "" for the total. Times in milliseconds."""

    key: str
    calls: int
    errors: int
    open: int
    first_ns: int
    last_ns: int
    p50_ms: int | None
    p95_ms: int | None
    p99_ms: int | None
    ttfb_p50_ms: int | None
    ttfb_p95_ms: int | None
    usage: Usage
    cost: Cost


@contextmanager
def open_index(
    path: Path, viewer: Viewer = EVERYTHING, veil: Callable[[str], str] = lambda text: ""
) -> Iterator[Index]:
    """The index for reading, as far as the viewer sees it; `veil` takes secrets out of what he sees redacted.

    Raises IndexUnavailable.
    """
    with _told(path):
        db = database.open_for_reading(path, views(viewer))
        db.create_function("veiled", 1, lambda text: veil(text) if text else text, deterministic=True)
    try:
        yield Index(db, path, viewer)
    finally:
        db.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise TookTooLong from error
        raise IndexUnavailable(f"the index {path} cannot be read: {error}") from error
    except (database.Unusable, sqlite3.Error) as error:
        raise IndexUnavailable(f"the index {path} cannot be read: {error}") from error


class Index:
    """An open index. Not to be shared between threads. Raises IndexUnavailable."""

    def __init__(self, db: sqlite3.Connection, path: Path, viewer: Viewer = EVERYTHING) -> None:
        self.viewer = viewer
        self._db = db
        self._path = path

    def stop_at(self, deadline: float | None) -> None:
        """Break off what takes longer than until `deadline` (monotonic seconds) with TookTooLong; None: never."""
        if deadline is None:
            self._db.set_progress_handler(None, 0)
        else:
            self._db.set_progress_handler(lambda: int(time.monotonic() > deadline), _OPCODES)

    def sessions(self, filter: Filter, limit: int | None = 50) -> list[SessionRow]:
        """Sessions with a call that fits, last used first."""
        about_session, about_call, values = _where(filter)
        where = about_session
        if about_call:
            where = [
                *where,
                f"EXISTS (SELECT 1 FROM calls WHERE session = sessions.key AND {' AND '.join(about_call)})",
            ]
        query = f"SELECT key FROM sessions WHERE {_all(where)} ORDER BY coalesce(last, 0) DESC, id DESC LIMIT :limit"
        keys = [key for (key,) in self._rows(query, values | {"limit": _ALL_ROWS if limit is None else limit})]
        return self._sessions(keys)

    def calls(self, filter: Filter, *, newest_first: bool = False, limit: int | None = None) -> Iterator[CallRow]:
        """Calls by time."""
        about_session, about_call, values = _where(filter)
        way, none = ("DESC", "LAST") if newest_first else ("ASC", "FIRST")
        # Read in order of time, so that the first ones come at once.
        query = f"""
            SELECT {_CALL} FROM calls CROSS JOIN sessions ON sessions.key = calls.session
            WHERE {_all(about_session + about_call)}
            ORDER BY calls.started {way} NULLS {none}, calls.key {way} LIMIT :limit
        """
        files = self._files()
        for row in self._rows(query, values | {"limit": _ALL_ROWS if limit is None else limit}):
            yield _call(row, files)

    def calls_of(self, session: str) -> list[CallRow]:
        """All calls of a session in order of `seq`."""
        query = f"""
            SELECT {_CALL} FROM sessions JOIN calls ON calls.session = sessions.key
            WHERE sessions.id = :session ORDER BY calls.seq, calls.started, calls.key
        """
        files = self._files()
        return [_call(row, files) for row in self._rows(query, {"session": session})]

    def search(self, words: str, filter: Filter, limit: int = 20) -> list[Hit]:
        """Best first. `words` all occur; "a phrase" in quotes, `begin*`, `-without`."""
        return self.matches(text.query(words), filter, limit)

    def matches(
        self, asked: str, filter: Filter, limit: int, also: Sequence[str] = (), given: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """Best first, of what FTS5 is asked (`search.asked_for`); `also` are conditions, `given` their values.

        Who does not see everything gets the newest first, without scores: these tell how rare words are in all texts.
        """
        if not asked:
            return []
        about_session, about_call, values = _where(filter)
        about_call += also
        values |= given or {}
        everything = self.viewer.sees_everything
        score, order = ("words.rank", "words.rank") if everything else ("0.0", "calls.started DESC, texts.key")
        # CROSS JOIN: in order of rank, and no further than needed.
        query = f"""
            SELECT words.rowid, {score}, calls.id, sessions.id, calls.seq, calls.started, sessions.provider,
                sessions.project, calls.model, texts.role
            FROM words CROSS JOIN messages ON messages.text = words.rowid
            CROSS JOIN calls ON calls.key = messages.call CROSS JOIN sessions ON sessions.key = messages.session
            CROSS JOIN texts ON texts.id = words.rowid
            WHERE words MATCH :asked AND {_all(about_session + about_call)} ORDER BY {order}
        """
        found: dict[int, tuple[Any, ...]] = {}
        for row in self._rows(query, values | {"asked": asked}):
            known = found.setdefault(row[0], row)
            if (known[5] or 0) > (row[5] or 0):  # of the sessions that hold it, the one that held it first
                found[row[0]] = row
            if len(found) > limit:
                found.popitem()
                break
        return [self._hit(row, asked) for row in found.values()]

    def _hit(self, row: tuple[Any, ...], asked: str) -> Hit:
        _, rank, call, session, seq, started, provider, project, model, role = row
        return Hit(
            call,
            session,
            seq or 0,
            started or 0,
            provider or "",
            project or "",
            model or "",
            role,
            text.shown(self.marked(asked, row[0])),
            -rank,
        )

    def marked(self, asked: str, found: int) -> str:
        """A text with marks around what was asked for."""
        # Not snippet(): its time grows with the square of how often a word stands in a text.
        query = "SELECT highlight(words, 0, :open, :close) FROM words WHERE words MATCH :asked AND rowid = :text"
        values = {"open": text.OPEN, "close": text.CLOSE, "asked": asked, "text": found}
        ((marked,),) = self._rows(query, values)
        return str(marked)

    def stats(self, filter: Filter, by: By = "total", *, utc: bool = False) -> list[StatRow]:
        """Days in order, everything else dearest first."""
        about_session, about_call, values = _where(filter)
        tables = "calls JOIN sessions ON sessions.key = calls.session"
        if not about_session and by not in _OF_SESSION:
            tables = "calls"
        where = _all(about_session + about_call)
        query = f"SELECT {_GROUPS[by]}, {_SUMS}, {_TIMES} FROM {tables} WHERE {where} GROUP BY 1"
        named = _days(utc) if by == "day" else _name
        groups: dict[str, _Group] = {}
        for key, *numbers, totals, ttfbs in self._rows(query, values):
            group = groups.setdefault(named(key), _Group())
            group.add(numbers, totals, ttfbs)
        rows = [_stat(key, group) for key, group in groups.items() if group.numbers[0]]
        if by == "day":
            return sorted(rows, key=lambda row: row.key)
        return sorted(rows, key=lambda row: (-row.cost.usd - row.cost.equivalent, -row.calls, row.key))

    def find(self, prefix: str, limit: int = 20) -> list[CallRow | SessionRow]:
        """Sessions, then calls whose id (or, of sessions, the client's id) begins so; the newest first."""
        if not prefix:
            return []
        values = {"from": prefix, "to": prefix + "\U0010ffff", "limit": limit}
        query = """
            SELECT key FROM sessions WHERE id >= :from AND id < :to
            UNION SELECT key FROM sessions WHERE client_session >= :from AND client_session < :to
        """
        keys = [key for (key,) in self._rows(query, values)]
        sessions = sorted(self._sessions(keys), key=lambda row: -row.last_ns)[:limit]
        query = f"""
            SELECT {_CALL} FROM calls JOIN sessions ON sessions.key = calls.session
            WHERE calls.id >= :from AND calls.id < :to ORDER BY calls.started DESC LIMIT :limit
        """
        files = self._files()
        calls = (_call(row, files) for row in self._rows(query, values))
        found: list[CallRow | SessionRow] = [*sessions, *calls]
        return found[:limit]

    def last(self) -> SessionRow | None:
        """The session used last."""
        return next(iter(self.sessions(Filter(), 1)), None)

    def answered(self, ids: Sequence[str]) -> set[str]:
        """Which of these calls are recorded to their end. At most some hundred at a time."""
        values = {f"id{number}": id for number, id in enumerate(ids)}
        names = [f":{name}" for name in values]
        query = f"SELECT DISTINCT id FROM calls WHERE response_file IS NOT NULL AND id IN ({', '.join(names)})"
        return {id for (id,) in self._rows(query, values)}

    # -- rows

    def rows(self, query: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        """Any question to the tables, for the other modules of this package."""
        return self._rows(query, values)

    def session_rows(self, keys: Sequence[int]) -> list[SessionRow]:
        """The sessions with these keys, in this order; those that are gone left out."""
        return self._sessions(keys)

    def _rows(self, query: str, values: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
        with _told(self._path), database.told():
            yield from chain(self._db.execute(query, values))  # a bare cursor would be closed, after its database

    def _files(self) -> _Files:
        return _Files(self._rows)

    def _sessions(self, keys: Sequence[int]) -> list[SessionRow]:
        """In the order of `keys`."""
        rows: dict[int, SessionRow] = {}
        for start in range(0, len(keys), 500):
            some = ", ".join(map(str, keys[start : start + 500]))
            calls = f"FROM calls WHERE session IN ({some})"
            sums = {row[0]: row[1:] for row in self._rows(f"SELECT session, {_SUMS} {calls} GROUP BY 1", {})}
            models: dict[int, list[str]] = {}
            query = f"SELECT session, model {calls} AND model != '' GROUP BY 1, 2 ORDER BY 1, count(*) DESC, 2"
            for key, model in self._rows(query, {}):
                models.setdefault(key, []).append(model)
            files: dict[int, list[str]] = {}
            paths = f"SELECT session, path FROM session_files JOIN files ON id = file WHERE session IN ({some})"
            for key, path in self._rows(f"{paths} ORDER BY 1, 2", {}):
                files.setdefault(key, []).append(path)
            for row in self._rows(f"SELECT key, {_SESSION} FROM sessions WHERE key IN ({some})", {}):
                numbers = sums.get(row[0]) or [0] * _WIDTH
                rows[row[0]] = _session(row[1:], numbers, models.get(row[0], []), files.get(row[0], []))
        return [rows[key] for key in keys if key in rows]


# --- conditions

# Each field of a filter: whether it is about the session, and the condition.
_CONDITIONS = {
    "since_ns": (False, "calls.started >= :since_ns"),
    "until_ns": (False, "calls.started < :until_ns"),
    "provider": (True, "sessions.provider = :provider"),
    "model": (False, "instr(lower(calls.model), lower(:model)) > 0"),
    "project": (True, "instr(lower(sessions.project), lower(:project)) > 0"),
    "session": (
        True,
        "(substr(sessions.id, 1, length(:session)) = :session"
        " OR substr(sessions.client_session, 1, length(:session)) = :session)",
    ),
    "user": (False, "calls.gateway_user = lower(:user)"),
    "errors": (False, "calls.failed = 1"),
}


def _where(filter: Filter) -> tuple[list[str], list[str], dict[str, Any]]:
    """(conditions about the session, about the call, their values)."""
    about: tuple[list[str], list[str]] = [], []
    values: dict[str, Any] = {}
    for name, (of_session, condition) in _CONDITIONS.items():
        value = getattr(filter, name)
        if value not in (None, "", False):
            about[not of_session].append(condition)
            values[name] = value
    if filter.status:
        about[1].append(_status(filter.status))
    return *about, values


def _status(said: str) -> str:
    if said == "none":
        return "calls.status IS NULL AND calls.ending IS NOT NULL"
    if said.endswith("xx"):
        return f"calls.status / 100 = {int(said[0])}"
    return f"calls.status = {int(said)}"


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions) or "true"


# --- sums

# Two sums, because one of many absurd prices would not fit in 64 bits.
_DOLLARS = (
    "coalesce(sum(CASE WHEN {0} THEN usd / 1000000 END), 0), coalesce(sum(CASE WHEN {0} THEN usd % 1000000 END), 0)"
)
_SUMS = ", ".join(
    (
        "count(*)",
        "coalesce(sum(calls.failed), 0)",
        "count(*) FILTER (WHERE calls.response_file IS NULL)",
        "min(calls.started)",
        "max(calls.started)",
        *(f"coalesce(sum(calls.{name}), 0)" for name in TOKEN_CLASSES),
        _DOLLARS.format("basis IN ('list', 'override')"),
        _DOLLARS.format("basis = 'subscription'"),
        "count(*) FILTER (WHERE basis = 'unpriced')",
    )
)
_FIRST, _LAST = 3, 4
# All times of a group in one value: a row for each would take longer than all the rest.
_TIMES = (
    "json_group_array(calls.total) FILTER (WHERE calls.total IS NOT NULL),"
    " json_group_array(calls.ttfb) FILTER (WHERE calls.ttfb IS NOT NULL)"
)
_WIDTH = 5 + len(TOKEN_CLASSES) + 5
_QUARTER = 900 * 10**9  # ns: every time zone is a multiple of it away from the next
_GROUPS: dict[By, str] = {
    "total": "''",
    "day": f"calls.started / {_QUARTER}",
    "model": "calls.model",
    "project": "sessions.project",
    "session": "sessions.id",
    "provider": "sessions.provider",
}
_OF_SESSION = ("project", "session", "provider")


def _days(utc: bool) -> Callable[[Any], str]:
    moment = time.gmtime if utc else time.localtime

    def day(quarter: Any) -> str:
        return time.strftime("%Y-%m-%d", moment(quarter * 900)) if quarter is not None else ""

    return day


def _name(value: Any) -> str:
    return value or ""


class _Group:
    """What the rows of one key come to."""

    def __init__(self) -> None:
        self.numbers: list[Any] = []
        self.totals: list[int] = []
        self.ttfbs: list[int] = []

    def add(self, numbers: list[Any], totals: str, ttfbs: str) -> None:
        self.totals += msgspec.json.decode(totals)
        self.ttfbs += msgspec.json.decode(ttfbs)
        if not self.numbers:
            self.numbers = numbers
            return
        first, last = (
            choose((one for one in (self.numbers[place], numbers[place]) if one is not None), default=None)
            for choose, place in ((min, _FIRST), (max, _LAST))
        )
        self.numbers = [(one or 0) + (other or 0) for one, other in zip(self.numbers, numbers, strict=True)]
        self.numbers[_FIRST], self.numbers[_LAST] = first, last


def _stat(key: str, group: _Group) -> StatRow:
    calls, errors, open_, first, last, *rest = group.numbers
    totals, ttfbs = sorted(group.totals), sorted(group.ttfbs)
    return StatRow(
        key=key,
        calls=calls,
        errors=errors,
        open=open_,
        first_ns=first or 0,
        last_ns=last or 0,
        p50_ms=_percentile(totals, 50),
        p95_ms=_percentile(totals, 95),
        p99_ms=_percentile(totals, 99),
        ttfb_p50_ms=_percentile(ttfbs, 50),
        ttfb_p95_ms=_percentile(ttfbs, 95),
        usage=_usage(rest[: len(TOKEN_CLASSES)]),
        cost=_cost(rest[len(TOKEN_CLASSES) :]),
    )


def _percentile(ordered: Sequence[int], share: int) -> int | None:
    """The smallest value that `share` percent of all do not exceed."""
    return ordered[-(-len(ordered) * share // 100) - 1] if ordered else None


def _usage(numbers: Sequence[Any], server_tools: str | None = None) -> Usage:
    tools = json.loads(server_tools).items() if server_tools else ()
    counts = {name: number or 0 for name, number in zip(TOKEN_CLASSES, numbers, strict=True)}
    return Usage(**counts, server_tools=tuple(tools))


def _cost(numbers: Sequence[Any]) -> Cost:
    high, low, equivalent_high, equivalent_low, unpriced = numbers
    return Cost(_dollars(high * 10**6 + low), _dollars(equivalent_high * 10**6 + equivalent_low), unpriced)


def _dollars(pico: int) -> Decimal:
    return Decimal(pico).scaleb(-12) if pico else Decimal(0)


# --- rows


class _Files(dict[int, str]):
    """Paths of files by number, each looked up when it is first needed."""

    def __init__(self, rows: Callable[[str, Mapping[str, Any]], Iterator[tuple[Any, ...]]]) -> None:
        self._rows = rows

    def __missing__(self, file: int) -> str:
        found = next(self._rows("SELECT path FROM files WHERE id = :file", {"file": file}), ("",))
        return self.setdefault(file, str(found[0]))


_NAMES = (  # columns of a session that its row has too
    *("id", "provider", "upstream", "client_session", "parent", "agent"),
    *("program", "cwd", "project", "root", "branch", "title"),
)
_SESSION = ", ".join((*_NAMES, "parent_seq", "forked", "started", "last"))
_CALL = ", ".join(
    (
        "calls.id, sessions.id, calls.seq, calls.started, calls.ended, sessions.provider, sessions.upstream",
        "sessions.project, sessions.program, calls.method, calls.path, calls.api, calls.model, calls.status",
        "calls.ending, calls.error, calls.error_type, calls.failed, calls.ttfb, calls.total, calls.usd, calls.basis",
        "calls.stop_reason, calls.service_tier, calls.response_id, calls.partial, calls.server_tools",
        "request_file, request_offset, request_length, response_file, response_offset, response_length",
        "calls.account, calls.gateway_user, calls.gateway_team",
        *(f"calls.{name}" for name in TOKEN_CLASSES),
    )
)


def _session(row: Sequence[Any], numbers: Sequence[Any], models: Sequence[str], files: Sequence[str]) -> SessionRow:
    calls, errors, open_, _, _, *rest = numbers
    texts = {name: value or "" for name, value in zip(_NAMES, row, strict=False)}
    parent_seq, forked, started, last = row[len(_NAMES) :]
    return SessionRow(
        **texts,
        parent_seq=parent_seq,
        forked=bool(forked),
        started_ns=started or 0,
        last_ns=last or 0,
        calls=calls,
        errors=errors,
        open=open_,
        usage=_usage(rest[: len(TOKEN_CLASSES)]),
        cost=_cost(rest[len(TOKEN_CLASSES) :]),
        models=tuple(models),
        files=tuple(files),
    )


def _call(row: Sequence[Any], files: _Files) -> CallRow:
    tokens = row[36:]
    basis = row[21] or ""
    return CallRow(
        id=row[0],
        session=row[1],
        seq=row[2] or 0,
        started_ns=row[3] or 0,
        ended_ns=row[4],
        provider=row[5] or "",
        upstream=row[6] or "",
        project=row[7] or "",
        program=row[8] or "",
        method=row[9] or "",
        path=row[10] or "",
        api=row[11] or "",
        model=row[12] or "",
        status=row[13],
        ending=row[14] or "",
        error=row[15] or "",
        error_type=row[16] or "",
        failed=bool(row[17]),
        ttfb_ms=row[18],
        total_ms=row[19],
        usage=None if tokens[0] is None else _usage(tokens, row[26]),
        usd=None if basis in ("", "unpriced") or row[20] is None else _dollars(row[20]),
        basis=basis,
        stop_reason=row[22] or "",
        service_tier=row[23] or "",
        response_id=row[24] or "",
        partial=bool(row[25]),
        request=_place(row[27:30], files),
        response=_place(row[30:33], files),
        account=row[33] or "",
        user=row[34] or "",
        team=row[35] or "",
    )


def _place(row: Sequence[int | None], files: _Files) -> Place | None:
    file, offset, length = row
    if file is None or offset is None or length is None:
        return None
    return Place(files[file], offset, length)
