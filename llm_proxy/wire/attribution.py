"""For whom the gateway makes a call: fields by which it tells the proxy, which records them and sends them nowhere.

Values are percent-encoded ASCII. Only the gateway's own socket gives these fields a meaning. Pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

WHY: Final = "gateway"  # the rule that routes the gateway's calls


class Attribution(NamedTuple):
    """Whose call it is; what is not known is empty.

    `request` is the caller's request, `attempt` the number of this call among those made for it, `key` the caller's
    own key, by name or prefix, `alias` the model as he named it. `account` is whose it is for good: an address may be
    given to somebody else, this never is. `privacy` says how much of the call may be kept; empty for all of it.
    """

    request: str = ""
    attempt: str = ""
    user: str = ""
    key: str = ""
    alias: str = ""
    team: str = ""
    account: str = ""
    project: str = ""
    privacy: str = ""


Pairs = tuple[tuple[str, str], ...]  # names and values of fields

_PREFIX: Final = "x-llm-proxy-gateway-"
NAMES: Final = frozenset(f"{_PREFIX}{part}".encode() for part in Attribution._fields)
_SENT: Final = tuple(f"X-LLM-Proxy-Gateway-{part.capitalize()}" for part in Attribution._fields)
_PLAIN: Final = re.compile(r"[\w.~@+-]*", re.ASCII)  # is written as it is

_BEFORE = b"\r\n" + _PREFIX.encode()
_BLOCK = re.compile(
    rb"(?:%b(?:%b):[ \t]*[!-~]*(?=\r\n))+" % (_BEFORE, "|".join(Attribution._fields).encode())
)  # of a head in lower case


def fields(whose: Attribution) -> list[tuple[str, str]]:
    """The fields to send."""
    return [(name, _written(value)) for name, value in zip(_SENT, whose, strict=True) if value]


def of_request(request: str, attempt: int) -> Pairs:
    """The two fields that are others with every call."""
    return (_SENT[0], _written(request)), (_SENT[1], str(attempt))


def _written(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else quote(value, safe="@+")


def cut(head: bytes) -> tuple[bytes, bytes]:
    """A request's head without these fields, and their lines, each with CR LF before it."""
    lower = head.lower()
    start = lower.find(_BEFORE)
    lines = b""
    while start >= 0:
        block = _BLOCK.match(lower, start)
        end = start + 1 if block is None else block.end()
        if block is not None:
            lines += head[start:end]
            head, lower, end = head[:start] + head[end:], lower[:start] + lower[end:], start
        start = lower.find(_BEFORE, end)
    return head, lines


def taken(pairs: Pairs) -> tuple[Attribution, Pairs]:
    """What recorded fields tell, and the other fields."""
    told: dict[str, str] = {}
    others = []
    for name, value in pairs:
        part = name.lower().removeprefix(_PREFIX)
        if part in Attribution._fields and part != name.lower():
            told[part] = unquote(value)
        else:
            others.append((name, value))
    return Attribution(**told), tuple(others)
