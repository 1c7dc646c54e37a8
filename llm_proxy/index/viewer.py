"""Whose calls a reader of the index sees: all, or those of one account, and more or less of those of others.

The one place where that is decided. A connection for reading is given views that stand before the tables and hold only
what its viewer may see (SQLite and PostgreSQL both look into the temporary schema first), so that no query can forget
it. Leaves out who the viewer is (`explorer.viewer`) and what of an entry in the log he sees (`record`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from llm_proxy.index.sums import SUMS
from llm_proxy.index.write import CALL

NONE, METADATA, REDACTED, FULL = LEVELS = ("none", "metadata", "redacted", "full")

_ACCOUNT: Final = re.compile(r"[0-9a-f]{8}\.[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Viewer:
    """Without an `account`: whoever runs the machine, who sees everything. `others`: what one with an account sees of
    the calls of other accounts, one of LEVELS. Calls that no gateway made belong to no account. Raises ValueError.
    """

    account: str = ""
    others: str = NONE
    name: str = field(default="", compare=False)  # as he knows himself

    def __post_init__(self) -> None:
        if self.account and not _ACCOUNT.fullmatch(self.account):
            raise ValueError(f"an account is eight hex digits, a dot and a number, not {self.account[:80]!r}")
        if self.others not in LEVELS:
            raise ValueError(f"what is seen of others is one of {', '.join(LEVELS)}, not {self.others[:80]!r}")

    @property
    def sees_everything(self) -> bool:
        return not self.account

    def sees(self, account: str) -> str:
        """How much of a call of that account ("" of no account), one of LEVELS."""
        if self.sees_everything or account == self.account:
            return FULL
        return self.others if account else NONE


EVERYTHING: Final = Viewer()
NOBODY: Final = Viewer("00000000.9999999999999999999")  # the account that is never given

# Columns of a session that tell what one of its calls said, or where it came from.
_OF_CALLS: Final = ("client_session", "agent", "program", "cwd", "project", "root", "branch", "title")
_SAID: Final = ("cwd", "root", "branch", "title")
_PLAIN: Final = ("key", "id", "provider", "upstream", "parent_seq", "forked")
_CALL_SAID: Final = ("error",)


def views(viewer: Viewer, schema: str = "main") -> tuple[str, ...]:
    """Statements that make the views, for tables in that schema.

    A connection needs the function `veiled(text)`, which takes out secrets, where others' calls are seen redacted.
    """
    if viewer.sees_everything:
        return ()
    made = _own(viewer, schema) if viewer.others == NONE else _administered(viewer, schema)
    made["calls"] = _calls(viewer, schema)
    return tuple(f"CREATE TEMP VIEW {name} AS {query}" for name, query in made.items())


def _calls(viewer: Viewer, schema: str) -> str:
    told = ", ".join(
        f"{_told(viewer, f'c.{name}', _is_own(viewer, 'c'))} AS {name}" if name in _CALL_SAID else f"c.{name}"
        for name in ("key", *CALL)
    )
    return f"SELECT {told} FROM {schema}.calls AS c WHERE {_is_seen(viewer, 'c')}"


def _is_own(viewer: Viewer, table: str) -> str:
    return f"{table}.account = '{viewer.account}'"


def _is_seen(viewer: Viewer, table: str) -> str:
    return _is_own(viewer, table) if viewer.others == NONE else f"{table}.account IS NOT NULL"


def _told(viewer: Viewer, column: str, own: str) -> str:
    """A text that stands in a row of others too."""
    if viewer.others in (NONE, FULL):
        return column
    other = f"veiled({column})" if viewer.others == REDACTED else "NULL"
    return f"CASE WHEN {own} THEN {column} ELSE {other} END"


def _of_calls(viewer: Viewer, schema: str) -> dict[str, str]:
    """What hangs on calls. Words are searched only where they may be read as they are: hits would tell them else."""
    own = _is_own(viewer, "c")
    words = own if viewer.others in (METADATA, REDACTED) else _is_seen(viewer, "c")
    gists = own if viewer.others == METADATA else _is_seen(viewer, "c")
    calls = f"{schema}.calls AS c"
    return {
        "messages": f"SELECT m.session, m.text, m.call FROM {schema}.messages AS m JOIN {calls} ON c.key = m.call"
        f" WHERE {words}",
        "texts": f"SELECT t.id, t.key, t.role, t.packed FROM {schema}.texts AS t WHERE EXISTS (SELECT 1 FROM"
        f" {schema}.messages AS m JOIN {calls} ON c.key = m.call WHERE m.text = t.id AND {words})",
        "gists": f"SELECT g.call, {_told(viewer, 'g.gist', own)} AS gist FROM {schema}.gists AS g"
        f" JOIN {calls} ON c.key = g.call WHERE {gists}",
    }


def _of_sessions(viewer: Viewer, schema: str) -> dict[str, str]:
    seen = _is_seen(viewer, "a")
    shares = f"{schema}.session_accounts AS a"
    return {
        "session_files": f"SELECT f.session, f.file FROM {schema}.session_files AS f WHERE EXISTS"
        f" (SELECT 1 FROM {shares} WHERE a.session = f.session AND {seen})",
        "files": f"SELECT f.* FROM {schema}.files AS f WHERE EXISTS (SELECT 1 FROM {schema}.session_files AS s"
        f" JOIN {shares} ON a.session = s.session WHERE s.file = f.id AND {seen})",
    }


def _own(viewer: Viewer, schema: str) -> dict[str, str]:
    """One account's calls, and of a session that others use too no more than they come to."""
    whole, shares = "a.calls = s.calls", f"{schema}.session_accounts AS a JOIN {schema}.sessions AS s"
    mine = f"{shares} ON s.key = a.session WHERE {_is_own(viewer, 'a')}"
    parent = f"""EXISTS (SELECT 1 FROM {schema}.sessions AS p JOIN {schema}.session_accounts AS q
        ON q.session = p.key WHERE p.id = s.parent AND {_is_own(viewer, "q")})"""
    calls = f"FROM {schema}.calls AS c WHERE c.session = s.key AND {_is_own(viewer, 'c')}"
    told = (
        *(f"s.{name}" for name in _PLAIN),
        *(f"CASE WHEN {whole} THEN s.{name} END AS {name}" for name in _OF_CALLS),
        f"CASE WHEN {whole} AND {parent} THEN s.parent END AS parent",
        f"CASE WHEN {whole} THEN s.started ELSE (SELECT min(c.started) {calls}) END AS started",
        f"CASE WHEN {whole} THEN s.last ELSE (SELECT max(coalesce(c.ended, c.started)) {calls}) END AS last",
        *(f"a.{name}" for name in SUMS),
    )
    slots = ", ".join(f"t.{name}" for name in ("slot", "model", *SUMS))
    return {
        "sessions": f"SELECT {', '.join(told)} FROM {mine}",
        "session_models": f"""
            SELECT m.session, m.model, m.calls FROM {shares} ON s.key = a.session
            JOIN {schema}.session_models AS m ON m.session = a.session WHERE {_is_own(viewer, "a")} AND {whole}
            UNION ALL SELECT c.session, c.model, count(*) AS calls FROM {shares} ON s.key = a.session
            JOIN {schema}.calls AS c ON c.session = a.session WHERE {_is_own(viewer, "a")} AND NOT ({whole})
            AND {_is_own(viewer, "c")} AND c.model != '' GROUP BY c.session, c.model""",
        "slots": f"SELECT {slots} FROM {schema}.slots AS t WHERE {_is_own(viewer, 't')} AND t.account != ''",
        **_of_calls(viewer, schema),
        **_of_sessions(viewer, schema),
    }


def _administered(viewer: Viewer, schema: str) -> dict[str, str]:
    """Every account's calls; of no session both an account's and calls that no gateway made."""
    shared = f"EXISTS (SELECT 1 FROM {schema}.session_accounts AS a WHERE a.session = {{0}})"
    own = f"""EXISTS (SELECT 1 FROM {schema}.session_accounts AS q
        WHERE q.session = s.key AND q.calls = s.calls AND {_is_own(viewer, "q")})"""
    told = (
        *(f"s.{name}" for name in (*_PLAIN, "parent", "started", "last", *SUMS)),
        *(f"{_told(viewer, f's.{name}', own) if name in _SAID else f's.{name}'} AS {name}" for name in _OF_CALLS),
    )
    slots = ", ".join(f"t.{name}" for name in ("slot", "model", *SUMS))
    return {
        "sessions": f"SELECT {', '.join(told)} FROM {schema}.sessions AS s WHERE {shared.format('s.key')}",
        "session_models": f"SELECT m.session, m.model, m.calls FROM {schema}.session_models AS m"
        f" WHERE {shared.format('m.session')}",
        "slots": f"SELECT {slots} FROM {schema}.slots AS t WHERE t.account != ''",
        **_of_calls(viewer, schema),
        **_of_sessions(viewer, schema),
    }
