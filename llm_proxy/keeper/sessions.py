"""Which session a call belongs to: the client's own id where it gives one, else a session of its own, else the day's.

Decides only; files and numbers are somebody else's (`settle`, `store`).
"""

from __future__ import annotations

import secrets
import time
from typing import NamedTuple

from llm_proxy.dialects.hints import client_session, is_conversation
from llm_proxy.keeper.store import Key, Session
from llm_proxy.records.exchange import Exchange
from llm_proxy.sinks import session_jsonl


class Belonging(NamedTuple):
    """The session's key, and what the client's own id was found in ("" where there is none)."""

    key: Key
    source: str


def belonging(exchange: Exchange, logs: str) -> Belonging:
    headers = {name.lower(): value for name, value in exchange.request_headers}
    body = b"" if exchange.websocket else session_jsonl.plain_request(exchange)
    hint = client_session(exchange.provider, exchange.path, headers, body)
    scope = logs, exchange.provider, exchange.upstream
    if hint is not None:
        return Belonging(Key(*scope, f"id:{hint.id}"), hint.source)
    if exchange.websocket or is_conversation(exchange.method, exchange.path):
        return Belonging(Key(*scope, f"call:{exchange.id}"), "")
    return Belonging(Key(*scope, time.strftime("day:%Y-%m-%d", _local(exchange))), "")


def new_session(exchange: Exchange, where: Belonging) -> Session:
    """A session that begins with this exchange; its id is the local time and eight random hex digits."""
    session = time.strftime("%Y%m%d-%H%M%S-", _local(exchange)) + secrets.token_hex(4)
    file = session_jsonl.place(exchange.upstream, session, exchange.opened)
    return Session(session, where.key, where.source, file, 0, 0, exchange.opened // 1_000_000_000)


def _local(exchange: Exchange) -> time.struct_time:
    return time.localtime(exchange.opened // 1_000_000_000)
