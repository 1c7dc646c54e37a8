"""Where a call belongs as far as it tells itself: to a client's own session, to one of its agents, to nobody known.

Decides only; what earlier calls tell is `stitch`'s, files and numbers are somebody else's (`settle`, `store`).
"""

from __future__ import annotations

import json
import secrets
import time
from typing import NamedTuple
from urllib.parse import quote

from llm_proxy.dialects.hints import Hint, client_session, is_conversation
from llm_proxy.keeper.projects import Client
from llm_proxy.keeper.store import Key, Session
from llm_proxy.records.exchange import Exchange
from llm_proxy.sinks import session_jsonl


class Belonging(NamedTuple):
    """The session's key, and what the client's own id was found in ("" where there is none).

    `parent` is the key of the session that the client says a sub-agent's came from. `stitched`: the key is the call's
    own, and what it says may yet show that it belongs to a session that is there already.
    """

    key: Key
    source: str = ""
    parent: Key | None = None
    agent: str = ""
    stitched: bool = False


def belonging(exchange: Exchange, logs: str, hint: Hint | None, fetched: bool) -> Belonging:
    """`fetched`: the call is about an answer that was given before."""
    scope, user = (logs, exchange.provider, exchange.upstream), _user(exchange)
    if hint is not None:
        agent = hint.agent
        if agent is None:
            return Belonging(Key(*scope, _client(hint.id, "") + user), hint.source)
        parent = Key(*scope, _client(hint.id, agent.parent) + user)
        return Belonging(Key(*scope, _client(hint.id, agent.id) + user), hint.source, parent, agent.name)
    if not fetched and (exchange.websocket or is_conversation(exchange.method, exchange.path)):
        return Belonging(Key(*scope, f"call:{exchange.id}"), stitched=True)
    return Belonging(Key(*scope, time.strftime("day:%Y-%m-%d", _local(exchange)) + user), stitched=fetched)


def _user(exchange: Exchange) -> str:
    """What parts the sessions of the gateway's users: the ids before it have no spaces."""
    whose = exchange.gateway
    return "" if whose is None else f" user:{quote(whose.account or whose.user, safe='@')}"


def _client(session: str, agent: str) -> str:
    return f"agent:{session} {agent}" if agent else f"id:{session}"


def is_undecided(exchange: Exchange) -> bool:
    """Whether an open call's session cannot be told before it has said more: an upgraded one that brought no id."""
    headers = {name.lower(): value for name, value in exchange.request_headers}
    upgraded = headers.get("upgrade", "").lower() == "websocket"
    return upgraded and client_session(exchange.provider, exchange.path, headers, b"") is None


def new_session(exchange: Exchange, where: Belonging, client: Client | None) -> Session:
    """A session that begins with this exchange; its id is the local time and eight random hex digits."""
    session = time.strftime("%Y%m%d-%H%M%S-", _local(exchange)) + secrets.token_hex(4)
    file = session_jsonl.place(exchange.upstream, session, exchange.opened)
    # An imported call may be old; that its session is there must be known until it is written, whatever happens.
    used = max(int(time.time()), exchange.opened // 1_000_000_000)
    process = json.dumps(client.entry()) if client is not None else ""
    return Session(session, where.key, where.source, file, 0, 0, used, agent=where.agent, process=process)


def _local(exchange: Exchange) -> time.struct_time:
    return time.localtime(exchange.opened // 1_000_000_000)
