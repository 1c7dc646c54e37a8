"""Search as the explorer shows it: hits by session, what they are counted by, as much as fits into a time.

Reads only. Leaves out what was typed (`syntax`), how texts are kept (`text`) and what is shown of it (`explorer`).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from llm_proxy.index import text
from llm_proxy.index.browse import NONE, Value
from llm_proxy.index.queries import Index, TookTooLong
from llm_proxy.index.syntax import Query, Term

Sort = Literal["best", "newest"]

PER_SESSION, OF_ONE_SESSION = 3, 100  # hits shown of each session; where the query names one
_READ = 4_000  # hits looked at for a page, at most
_FIRST, _SECOND = 0.6, 0.8  # of the time: for the page as asked, for the newest texts where that was too long


@dataclass(frozen=True, slots=True)
class Found:
    """A message that holds the words. `pieces`: (text, whether it was looked for), no control characters."""

    call: str  # id of the call that first held it
    seq: int
    started_ns: int
    model: str
    role: str
    pieces: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Session:
    """The hits of a session, the best or the newest first; `hits` is how many there are, None where not counted."""

    id: str
    title: str
    project: str
    last_ns: int
    hits: int | None
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Over all hits. `dates` by age: today, 7d, 30d, older (each hit in the first that fits)."""

    hits: int
    sessions: int
    roles: tuple[Value, ...]
    projects: tuple[Value, ...]
    models: tuple[Value, ...]
    dates: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """A page. `counts` None: there was no time to count. `covers_ns`: only texts back to this moment were looked at,
    the newest first, because the time was over; None where all were.
    """

    sessions: tuple[Session, ...]
    counts: Counts | None
    covers_ns: int | None
    next: str


def asked_for(query: Query) -> str:
    """What FTS5 is to match; "" where there is no word to look for."""
    parts = [text.query(query.words)]
    for term in query.terms:
        if term.name == "tool" and not term.negative:
            parts.append(" OR ".join(filter(None, (text.query(f'"{name}"') for name, _ in term.values))))
    parts = [part for part in parts if part]
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)


_COLUMNS = {"project": "project", "provider": "provider", "branch": "branch", "client": "program"}


def conditions(query: Query) -> tuple[list[str], dict[str, Any]]:
    """Conditions over texts, calls and sessions, and their values."""
    where: list[str] = []
    values: dict[str, Any] = {}

    def value(given: Any) -> str:
        name = f"asked{len(values)}"
        values[name] = given
        return f":{name}"

    for term in query.terms:
        alternatives = [_condition(term, one, whole, value) for one, whole in term.values]
        if alternatives:
            where.append(("NOT " if term.negative else "") + f"({' OR '.join(alternatives)})")
    if query.since_ns is not None:
        where.append(f"calls.started >= {value(query.since_ns)}")
    if query.until_ns is not None:
        where.append(f"calls.started < {value(query.until_ns)}")
    return where, values


def _condition(term: Term, given: str, whole: bool, value: Any) -> str:
    match term.name:
        case "role":
            return f"texts.role = {value(given)}"
        case "status":
            return _status(given, value)
        case "session":
            return f"substr(sessions.id, 1, {len(given)}) = {value(given)}"
        case "tool":
            # A call stands in a text as its name, a space and its arguments, on a line of its own.
            called = f"instr('\n' || lower(unpacked(texts.packed)), '\n' || lower({value(given)}) || ' ') > 0"
            return f"(texts.role = 'assistant' AND {called})"
        case "model":
            column = "coalesce(calls.model, '')"
        case _:
            column = f"coalesce(sessions.{_COLUMNS[term.name]}, '')"
    if whole:
        return f"{column} = {value('' if given == NONE else given)}"
    return f"instr(lower({column}), lower({value(given)})) > 0"


def _status(said: str, value: Any) -> str:
    if said == "error":
        return "calls.failed = 1"
    if said == "none":
        return "(calls.status IS NULL AND calls.ending IS NOT NULL)"
    if said.endswith("xx"):
        return f"calls.status / 100 = {value(int(said[0]))}"
    return f"calls.status = {value(int(said))}"


def results(
    index: Index,
    query: Query,
    sort: Sort,
    ages: tuple[int, ...],
    *,
    before: str = "",
    limit: int = 10,
    seconds: float = 2,
) -> Results:
    """Sessions with hits behind the cursor `before`. `ages`: since when a hit is of today, of 7 days, of 30 days.

    Who does not see everything gets the newest first: how rare a word is, and when a text came first, tell of texts
    that he may not read. Takes about `seconds` at most. Raises ValueError where `before` is no cursor.
    """
    return _Search(index, query, ages, time.monotonic(), seconds).page(sort, _cursor(before), limit)


def _cursor(before: str) -> _Cursor | None:
    if not before:
        return None
    match = re.fullmatch(r"(-?\d{1,20}(?:\.\d{1,20})?(?:e-?\d{1,3})?)_(\w[\w.-]{0,127})", before, re.ASCII)
    if match is None:
        raise ValueError(before)
    return float(match[1]) if "." in match[1] or "e" in match[1] else int(match[1]), match[2]


# Where hits are looked for first: in all words, or in calls as they came.
_BY_WORD = "FROM words CROSS JOIN messages ON messages.text = words.rowid"
_BY_TIME = (
    "FROM calls CROSS JOIN messages ON messages.session = calls.session AND messages.call = calls.key"
    " CROSS JOIN words ON words.rowid = messages.text"
)
# Tables in the order in which rows are found; those that nobody asks are left out.
_TABLES = (
    ("calls", "CROSS JOIN calls ON calls.key = messages.call"),
    ("sessions", "CROSS JOIN sessions ON sessions.key = messages.session"),
    ("texts", "CROSS JOIN texts ON texts.id = words.rowid"),
)
_Cursor = tuple[float, str]  # the place of a session's first hit, and by what it is told from others of that place
# What hits are put in order by, smaller first.
_PLACE = {"best": "words.rank", "newest": "-coalesce(calls.started, 0)"}


class _Search:
    """One question, and the time it has."""

    def __init__(self, index: Index, query: Query, ages: tuple[int, ...], began: float, seconds: float) -> None:
        self._index = index
        self._asked = asked_for(query)
        where, self._values = conditions(query)
        self._where = "".join(f" AND {one}" for one in where)
        self._values["asked"] = self._asked
        self._ages = ages
        self._sees_everything = index.viewer.sees_everything
        named = any(term.name == "session" for term in query.terms)
        self._per_session = OF_ONE_SESSION if named else PER_SESSION
        self._began, self._seconds = began, seconds

    def page(self, sort: Sort, before: _Cursor | None, limit: int) -> Results:
        if not self._asked:
            return Results((), Counts(0, 0, (), (), (), ()), None, "")
        covers: int | None = None
        if not self._sees_everything:
            sort = "newest"
        try:
            self._until(_FIRST)
            sessions, after = self._group(self._ordered(sort), before, limit)
        except TookTooLong:
            sessions, after, covers = self._newest(limit)
        counts, by_session = None, Counter[int]()
        if covers is None:
            try:
                self._until(1)
                counts, by_session = self._count()
            except TookTooLong:
                pass
        self._index.stop_at(None)
        return Results(
            tuple(self._session(key, hits, by_session[key] if counts else None) for key, hits in sessions.items()),
            counts,
            covers,
            after,
        )

    def _until(self, share: float) -> None:
        self._index.stop_at(self._began + self._seconds * share)

    def _rows(self, query: str, **values: Any) -> Iterator[tuple[Any, ...]]:
        return self._index.rows(query, self._values | values)

    # -- which

    def _hits(self, columns: str, behind: str, found: str = _BY_WORD) -> Iterator[tuple[Any, ...]]:
        """One row per hit and session, of what is asked for."""
        needed = columns + self._where + behind
        joins = " ".join(join for table, join in _TABLES if f"{table}." in needed and f"FROM {table} " not in found)
        return self._rows(f"SELECT {columns} {found} {joins} WHERE words MATCH :asked{self._where} {behind}")

    def _ordered(self, sort: Sort) -> Iterator[tuple[Any, ...]]:
        place, hit = _PLACE[sort], "words.rowid, messages.session, messages.call"
        if self._sees_everything:
            # By rank alone: FTS5 then gives the hits one by one in that order, and no further than needed.
            return self._hits(f"{place}, words.rowid, {hit}", f"ORDER BY {place}")
        return self._hits(f"{place}, sessions.id, {hit}", f"ORDER BY {place}, sessions.id, texts.key")

    def _group(
        self, rows: Iterator[tuple[Any, ...]], before: _Cursor | None, limit: int
    ) -> tuple[dict[int, list[tuple[int, int]]], str]:
        """(text, call) of hits by session, and the cursor. A session stands where its first hit does."""
        sessions: dict[int, list[tuple[int, int]]] = {}
        earlier: set[int] = set()
        last, more, read = "", False, 0
        behind = before is None
        for place, tie, hit, session, call in rows:
            if before is not None and not behind and (place, str(tie)) != before and place <= before[0]:
                earlier.add(session)
                continue
            if not behind:
                behind = True
                if (place, str(tie)) == before:
                    earlier.add(session)
                    continue
            if session in earlier:
                continue
            hits = sessions.get(session)
            if hits is None:
                if len(sessions) == limit:
                    more = True
                    read += 1
                    if read > _READ or all(len(known) == self._per_session for known in sessions.values()):
                        break
                    continue
                hits = sessions[session] = []
                last = f"{place!r}_{tie}"
            if len(hits) < self._per_session:
                hits.append((hit, call))
        return sessions, last if more else ""

    def _newest(self, limit: int) -> tuple[dict[int, list[tuple[int, int]]], str, int]:
        """Texts as they came, the last first: they come one by one, so what came in time counts."""
        sessions: dict[int, list[tuple[int, int]]] = {}
        oldest = 0
        self._until(_SECOND)
        columns = "words.rowid, messages.session, messages.call, calls.started"
        if self._sees_everything:
            rows = self._hits(columns, "ORDER BY words.rowid DESC")
        else:
            rows = self._hits(columns, "ORDER BY calls.started DESC, texts.key", _BY_TIME)
        try:
            for hit, session, call, started in rows:
                oldest = started or oldest
                if session not in sessions and len(sessions) == limit:
                    break
                hits = sessions.setdefault(session, [])
                if len(hits) < self._per_session:
                    hits.append((hit, call))
        except TookTooLong:
            pass
        return sessions, "", oldest

    def _count(self) -> tuple[Counts, Counter[int]]:
        """One scan over all hits."""
        week = "".join(f" WHEN calls.started >= {age} THEN {number}" for number, age in enumerate(self._ages))
        age = f"CASE{week} ELSE {len(self._ages)} END" if week else "0"
        rows = self._hits(f"messages.session, texts.role, calls.model, {age}, count(*)", "GROUP BY 1, 2, 3, 4")
        sessions: Counter[int] = Counter()
        roles: Counter[str] = Counter()
        models: Counter[str] = Counter()
        dates: Counter[int] = Counter()
        for session, role, model, old, hits in rows:
            sessions[session] += hits
            roles[role] += hits
            models[model or NONE] += hits
            dates[old] += hits
        of_session = {key: name or NONE for key, name in self._rows("SELECT key, project FROM sessions")}
        projects: Counter[str] = Counter()
        for session, hits in sessions.items():
            projects[of_session.get(session, NONE)] += hits
        aged = tuple(Value(str(old), dates[old]) for old in sorted(dates))
        counts = Counts(sessions.total(), len(sessions), _values(roles), _values(projects), _values(models), aged)
        return counts, sessions

    # -- what

    def _session(self, key: int, hits: list[tuple[int, int]], count: int | None) -> Session:
        ((id, title, project, last),) = self._rows(
            "SELECT id, title, project, last FROM sessions WHERE key = :key", key=key
        )
        found = tuple(self._found(*hit) for hit in hits)
        return Session(id, title or "", project or "", last or 0, count, found)

    def _found(self, hit: int, call: int) -> Found:
        ((id, seq, started, model, role),) = self._rows(
            "SELECT calls.id, seq, started, model, role FROM calls, texts WHERE calls.key = :call AND texts.id = :text",
            call=call,
            text=hit,
        )
        marked = self._index.marked(self._asked, hit)
        return Found(id, seq or 0, started or 0, model or "", role, text.shown(marked))


def _values(counter: Counter[str]) -> tuple[Value, ...]:
    return tuple(Value(name, hits) for name, hits in sorted(counter.items(), key=lambda one: (-one[1], one[0])))
