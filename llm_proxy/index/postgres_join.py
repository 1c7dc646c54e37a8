"""Joins what several machines have recorded of one conversation, behind a load balancer that is sticky to nothing.

By the rules by which a keeper knows its own: the same id of a client's session, or a first request that repeats or
names an answer given before. Of one account alone, and never what one machine keeps apart. Where another call had
continued that answer and was over before, it is a fork. The oldest part gives the conversation its row and its id.
Leaves out what a part's rows are (`write`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from llm_proxy.index import gist
from llm_proxy.index.gist import Gist
from llm_proxy.index.rows import SESSION_COLUMNS, CallFact
from llm_proxy.index.sums import SUMS

RETRIED_WITHIN = 3600 * 10**9  # ns, as the keeper has it

_ADDED = ", ".join(f"{name} = sessions.{name} + other.{name}" for name in SUMS)
_FILLED = ", ".join(f"{name} = coalesce(sessions.{name}, other.{name})" for name in (*SESSION_COLUMNS, "agent_id"))
_WHOSE = "coalesce(account, gateway_user, '')"


class _Told(NamedTuple):
    """A session as far as it matters where it belongs."""

    key: int
    id: str
    provider: str | None
    upstream: str | None
    client_session: str | None
    agent: str | None
    agent_id: str | None
    forked: int | None
    started: int | None


class _First(NamedTuple):
    """The first call of a session, and what it adds."""

    key: int
    started: int
    model: str
    response_id: str
    machine: str
    gist: Gist


class Joiner:
    """Within its caller's transaction. `db` is one of `postgres_write`'s."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def note(self, session: int, facts: Iterable[CallFact]) -> set[int]:
        """Keep the names of calls that were taken. Gives what may belong elsewhere now: this, and who waited for it."""
        told: set[str] = set()
        for fact in facts:
            answers, awaited = _names(fact)
            told.update(answers)
            names = sorted({*answers, *awaited})
            if names:
                self._db.execute(
                    "INSERT INTO turns SELECT name, calls.key FROM unnest(CAST(? AS text[])) AS name, calls"
                    " WHERE calls.id = ? AND calls.session = ? ON CONFLICT DO NOTHING",
                    (names, fact.id, session),
                )
        waiting = [_WAITS[kind] + rest for kind, _, rest in (name.partition(":") for name in told)]
        rows = self._db.execute(
            "SELECT DISTINCT calls.session FROM turns JOIN calls ON calls.key = turns.call"
            " WHERE turns.name = ANY(CAST(? AS text[]))",
            (waiting,),
        )
        return {session, *(key for (key,) in rows)} if waiting else {session}

    def settle(self, sessions: Iterable[int]) -> bool:
        """Put sessions where they belong. Gives whether rows of any went into another's."""
        moved = False
        for key in sorted(sessions):
            while (other := self._belongs(key)) is not None and self._may_join(key, other):
                key = self._merge(key, other)
                moved = True
            self._number(key)
        return moved

    # -- where it belongs

    def _session(self, key: int) -> _Told | None:
        query = f"SELECT {', '.join(_Told._fields)} FROM sessions WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return _Told(*row) if row is not None else None

    def _belongs(self, key: int) -> int | None:
        session = self._session(key)
        if session is None or session.forked:
            return None
        if session.client_session:
            return self._same_client(session)
        first = self._first(key)
        return self._before(session, first) if first is not None else None

    def _same_client(self, session: _Told) -> int | None:
        if session.agent and not session.agent_id:
            return None  # two of a kind cannot be told apart
        rows = self._db.execute(
            """
            SELECT key FROM sessions WHERE client_session = ? AND key != ? AND coalesce(provider, '') = ?
                AND coalesce(upstream, '') = ? AND coalesce(agent_id, '') = ? AND (agent IS NULL) = ?
            ORDER BY started, id
            """,
            (
                *(session.client_session, session.key, session.provider or "", session.upstream or ""),
                *(session.agent_id or "", not session.agent),
            ),
        )
        return next((key for (key,) in rows if self._may_join(session.key, key)), None)

    def _first(self, key: int) -> _First | None:
        row = self._db.execute(
            """
            SELECT calls.key, coalesce(started, 0), coalesce(model, ''), coalesce(response_id, ''),
                coalesce(machine, ''), gist
            FROM calls LEFT JOIN gists ON gists.call = calls.key
            LEFT JOIN files ON files.id = coalesce(request_file, response_file)
            WHERE session = ? ORDER BY started NULLS LAST, part_seq LIMIT 1
            """,
            (key,),
        ).fetchone()
        if row is None or row[5] is None:
            return None
        with suppress(ValueError):
            return _First._make((*row[:5], gist.read(row[5])))
        return None

    def _before(self, session: _Told, first: _First) -> int | None:
        """The session with the longest history that the first request repeats, or with the same, which failed."""
        if first.gist.named:
            wanted = [f"id:{first.gist.named}"]
        elif not first.gist.messages and first.response_id:
            wanted = [f"id:{first.response_id}"]  # only fetched
        else:
            wanted = [f"told:{onto.chain}" for onto in first.gist.onto]
        for name in (f"failed:{_same(first.gist, first.model)}", *wanted):
            found = self._turns(session, first, name)
            if name.startswith("failed:"):
                found = [one for one in found if abs(first.started - one[2]) <= RETRIED_WITHIN]
            if not found:
                continue
            call, other, _ = found[0]
            if not name.startswith("failed:") and first.gist.messages and self._continued(call, name, first):
                self._fork(session, call)
                return None
            return int(other)
        return None

    def _turns(self, session: _Told, first: _First, name: str) -> list[tuple[int, int, int]]:
        """(call, session, moment it was over) of answers by that name on other machines, the last first."""
        rows = self._db.execute(
            f"""
            SELECT calls.key, calls.session, coalesce(calls.ended, calls.started, 0) FROM turns
            JOIN calls ON calls.key = turns.call JOIN sessions AS s ON s.key = calls.session
            JOIN files ON files.id = coalesce(calls.request_file, calls.response_file)
            WHERE turns.name = ? AND calls.session != ? AND coalesce(s.provider, '') = ?
                AND coalesce(s.upstream, '') = ? AND files.machine != ?
                AND (s.client_session IS NULL OR turns.name LIKE 'id:%')
                AND {_WHOSE} = (SELECT {_WHOSE} FROM calls WHERE key = ?)
            ORDER BY 3 DESC
            """,
            (name, session.key, session.provider or "", session.upstream or "", first.machine, first.key),
        )
        found = [(call, other, at) for call, other, at in rows]
        return [one for one in found if one[2] <= first.started] or found

    def _continued(self, call: int, name: str, first: _First) -> bool:
        """Whether another request built upon that answer, and was well answered before this one began."""
        kind, _, rest = name.partition(":")
        query = """
            SELECT 1 FROM turns JOIN calls ON calls.key = turns.call
            WHERE turns.name = ? AND calls.key != ? AND calls.failed = 0 AND calls.partial = 0 AND calls.ended <= ?
                AND calls.session = (SELECT session FROM calls WHERE key = ?) LIMIT 1
        """
        found = self._db.execute(query, (_WAITS[kind] + rest, first.key, first.started, call)).fetchone()
        return found is not None

    def _fork(self, session: _Told, call: int) -> None:
        self._db.execute(
            """
            UPDATE sessions SET forked = 1, parent = other.id, parent_seq = calls.seq, parent_part = calls.part,
                parent_part_seq = calls.part_seq
            FROM calls JOIN sessions AS other ON other.key = calls.session WHERE calls.key = ? AND sessions.key = ?
            """,
            (call, session.key),
        )

    # -- joining

    def _may_join(self, one: int, other: int) -> bool:
        """Whether all is of one account, recorded on more than one machine, and no call is in both."""
        both = [one, other]
        accounts = self._db.execute(
            f"SELECT count(DISTINCT {_WHOSE}), count(DISTINCT id), count(*), count(DISTINCT session) FROM calls"
            " WHERE session = ANY(CAST(? AS bigint[]))",
            (both,),
        ).fetchone()
        machines = self._db.execute(
            "SELECT count(DISTINCT machine) FROM session_files JOIN files ON id = file"
            " WHERE session = ANY(CAST(? AS bigint[]))",
            (both,),
        ).fetchone()
        return bool(accounts[0] == 1 and accounts[1] == accounts[2] and accounts[3] == 2 and machines[0] > 1)

    def _merge(self, one: int, other: int) -> int:
        """Both in the row of the older one, whose key is given."""
        query = "SELECT key FROM sessions WHERE key = ANY(CAST(? AS bigint[])) ORDER BY started NULLS LAST, id"
        (into,), (gone,) = self._db.execute(query, ([one, other],))
        for statement in _MOVES:
            self._db.execute(statement, {"into": into, "gone": gone})
        return int(into)

    # -- numbers

    def renew(self, key: int) -> None:
        """Where parts have gone: a session's id and bounds, and the numbers of its calls."""
        for statement in (*_RENEWED, *_NUMBERS):
            self._db.execute(statement, {"key": key})

    def _number(self, key: int) -> None:
        """Calls of several parts in order of time; what came of one of them says so by its new number."""
        parts = self._db.execute("SELECT id FROM parts WHERE session = ? LIMIT 2", (key,)).fetchall()
        if len(parts) > 1:
            for statement in _NUMBERS:
                self._db.execute(statement, {"key": key})


_MOVES = (
    f"""
    UPDATE sessions SET {_ADDED}, {_FILLED}, started = least(sessions.started, other.started),
        last = greatest(sessions.last, other.last)
    FROM sessions AS other WHERE sessions.key = :into AND other.key = :gone
    """,
    """
    INSERT INTO session_models (session, model, calls)
        SELECT CAST(:into AS bigint), model, calls FROM session_models WHERE session = :gone
        ON CONFLICT (session, model) DO UPDATE SET calls = session_models.calls + excluded.calls
    """,
    "DELETE FROM session_models WHERE session = :gone",
    # Triggers keep shares of accounts and quarters of an hour; the sums of sessions they would keep are those above.
    "UPDATE calls SET session = :into WHERE session = :gone",
    """
    INSERT INTO messages (session, text, call)
        SELECT CAST(:into AS bigint), text, call FROM messages WHERE session = :gone
        ON CONFLICT (session, text) DO UPDATE SET call = (
            SELECT key FROM calls WHERE key IN (messages.call, excluded.call) ORDER BY started NULLS LAST, key LIMIT 1
        )
    """,
    "DELETE FROM messages WHERE session = :gone",
    """
    INSERT INTO session_files (session, file)
        SELECT CAST(:into AS bigint), file FROM session_files WHERE session = :gone ON CONFLICT DO NOTHING
    """,
    "DELETE FROM session_files WHERE session = :gone",
    "UPDATE parts SET session = :into WHERE session = :gone",
    """
    UPDATE sessions SET parent = (SELECT id FROM sessions WHERE key = :into)
        WHERE parent = (SELECT id FROM sessions WHERE key = :gone)
    """,
    "UPDATE sessions SET parent = NULL WHERE key = :into AND parent = id",
    "DELETE FROM sessions WHERE key = :gone",
)
_OLDEST = "SELECT part FROM calls WHERE session = :key ORDER BY started NULLS LAST, part LIMIT 1"
_RENEWED = (
    f"""
    UPDATE sessions SET parent = ({_OLDEST}) WHERE parent = (SELECT id FROM sessions WHERE key = :key)
    """,
    f"""
    UPDATE sessions SET id = ({_OLDEST}), started = (SELECT min(started) FROM calls WHERE session = :key),
        last = (SELECT max(greatest(started, ended)) FROM calls WHERE session = :key) WHERE key = :key
    """,
)
_NUMBERS = (
    """
    UPDATE calls SET seq = ordered.number FROM (
        SELECT key, row_number() OVER (ORDER BY started NULLS LAST, part, part_seq, key) AS number
        FROM calls WHERE session = :key
    ) AS ordered WHERE calls.key = ordered.key AND calls.seq IS NOT ordered.number
    """,
    """
    UPDATE sessions SET parent_seq = calls.seq FROM calls, sessions AS parent
        WHERE parent.key = :key AND sessions.parent = parent.id AND calls.session = parent.key
        AND calls.part = sessions.parent_part AND calls.part_seq = sessions.parent_part_seq
        AND sessions.parent_seq IS NOT calls.seq
    """,
)

# --- names of turns

# What a request says that waits for an answer of that name.
_WAITS = {"told": "onto:", "id": "named:", "failed": "again:"}


def _names(fact: CallFact) -> tuple[Sequence[str], Sequence[str]]:
    """(of what a call answers, of what it builds upon)."""
    if not fact.gist:
        return (), ()
    said = gist.read(fact.gist)
    columns = fact.columns
    model = str(columns.get("model") or "")
    awaited = [f"onto:{onto.chain}" for onto in said.onto]
    if said.named:
        awaited = [f"named:{said.named}"]
    elif not said.messages and columns.get("response_id"):
        awaited = [f"named:{columns['response_id']}"]
    if said.messages:
        awaited.append(f"again:{_same(said, model)}")
    return tuple(_answers(said, columns, model)) if fact.response else (), awaited


def _answers(said: Gist, columns: dict[str, Any], model: str) -> Iterator[str]:
    yield from (f"told:{chain}" for chain in said.told)
    if columns.get("response_id") and said.messages:
        yield f"id:{columns['response_id']}"
    if said.messages and (columns.get("failed") or columns.get("partial") or not said.told):
        yield f"failed:{_same(said, model)}"


def _same(said: Gist, model: str) -> str:
    return f"{said.whole}:{said.rules}:{model}"
