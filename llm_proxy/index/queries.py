"""Questions to the index: sessions, calls, texts, sums. Reads only, and never waits for the writer.

Leaves out how rows come about (`ingest`) and what is printed of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple

from llm_proxy.dialects.digest import Usage

By = Literal["total", "day", "model", "project", "session", "provider"]


class IndexUnavailable(Exception):
    """The index is not there, damaged, or of another version. The log files are untouched; `reindex` makes it new."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which calls. Times are nanoseconds since 1970, of a call's start, `until_ns` excluded; "" is any.

    `model` and `project` are parts of names, whatever the case; `session` is the beginning of an id (ours or the
    client's). `status`: "404", a class "5xx", or "none" for calls without one.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    provider: str = ""
    model: str = ""
    project: str = ""
    session: str = ""
    status: str = ""
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
    """One call. `usage` None: the provider told none. `usd` None: unpriced (`basis` "unpriced"), or no price yet ("")."""

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
    """A message that holds the words. `pieces` are (text, whether it is a word looked for), without control characters."""

    call: str  # the request id of the call that first held it
    session: str
    seq: int
    started_ns: int
    provider: str
    project: str
    model: str
    role: str  # user, assistant, system, tool, or thinking
    pieces: tuple[tuple[str, bool], ...]
    score: float  # higher is better


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
def open_index(path: Path) -> Iterator[Index]:
    """The index for reading. Raises IndexUnavailable."""
    raise IndexUnavailable(f"{path}: not written yet")
    yield


class Index:
    """An open index. Not to be shared between threads. Raises IndexUnavailable."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def sessions(self, filter: Filter, limit: int | None = 50) -> list[SessionRow]:
        """Sessions with a call that fits, last used first."""
        raise NotImplementedError

    def calls(self, filter: Filter, *, newest_first: bool = False, limit: int | None = None) -> Iterator[CallRow]:
        """Calls by time."""
        raise NotImplementedError

    def calls_of(self, session: str) -> list[CallRow]:
        """All calls of a session in order of `seq`."""
        raise NotImplementedError

    def search(self, words: str, filter: Filter, limit: int = 20) -> list[Hit]:
        """Best first. `words` all occur; "a phrase" in quotes, `begin*`, `-without`."""
        raise NotImplementedError

    def stats(self, filter: Filter, by: By = "total", *, utc: bool = False) -> list[StatRow]:
        """Days in order, everything else dearest first."""
        raise NotImplementedError

    def find(self, prefix: str, limit: int = 20) -> list[CallRow | SessionRow]:
        """Sessions, then calls whose id (or, of sessions, the client's id) begins so; the newest first."""
        raise NotImplementedError

    def last(self) -> SessionRow | None:
        """The session used last."""
        raise NotImplementedError
