"""What belongs to one conversation: its session, what each call adds to it, and the sessions that came from it.

Reads only. Leaves out how a conversation is put together of them (`explorer`).
"""

from __future__ import annotations

from llm_proxy.index.gist import Gist, read
from llm_proxy.index.queries import Index, SessionRow

MOST_CHILDREN = 200


def session(index: Index, id: str) -> SessionRow | None:
    """The session with exactly this id, or of which it is a part's."""
    keys = [key for (key,) in index.rows("SELECT key FROM sessions WHERE sessions.id = :id", {"id": id})]
    return next(iter(index.session_rows(keys)), None)


def is_of_one(index: Index, id: str, account: str) -> bool:
    """Whether a session has no calls but those of one of the gateway's accounts."""
    query = """
        SELECT 1 FROM sessions JOIN session_accounts ON session_accounts.session = sessions.key
        WHERE sessions.id = :id AND session_accounts.account = :account AND session_accounts.calls = sessions.calls
    """
    return any(index.rows(query, {"id": id, "account": account}))


def children(index: Index, id: str) -> list[SessionRow]:
    """Sub-agents and forks of a session, the first first; at most MOST_CHILDREN."""
    query = "SELECT key FROM sessions WHERE parent = :id ORDER BY started, id LIMIT :most"
    return index.session_rows([key for (key,) in index.rows(query, {"id": id, "most": MOST_CHILDREN})])


def gists(index: Index, session: str) -> dict[str, Gist]:
    """What the calls of a session add, by call id; calls that are no conversation have none."""
    query = """
        SELECT calls.id, gist FROM sessions JOIN calls ON calls.session = sessions.key
        JOIN gists ON gists.call = calls.key WHERE sessions.id = :session
    """
    return {call: read(kept) for call, kept in index.rows(query, {"session": session})}
