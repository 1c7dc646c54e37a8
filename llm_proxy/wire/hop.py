"""Which field lines travel on (RFC 9110 §7.6.1): the head that goes out, made from the lines that came in.

Nothing is added but what the operator's configuration says (`Instead`), and that a connection of ours ends. Requests
lose their hop-by-hop fields and have Host replaced; responses lose theirs. Framing fields stay whenever the body's
framing passes verbatim.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_proxy.wire.head import Head, RequestHead, ResponseHead, Role

_CONNECTION_BOUND = frozenset({Role.CONNECTION, Role.UPGRADE, Role.HOP})
_UPGRADING = frozenset({Role.HOP})
_DECHUNKED = _CONNECTION_BOUND | {Role.TRANSFER_ENCODING, Role.TRAILER}


class Instead(NamedTuple):
    """Fields of a configuration: a client's of these `names` (lower case) give way, and `lines` stand at the end.

    `recorded` are the same lines for the record. A name without a line is only taken away.
    """

    names: frozenset[bytes]
    lines: tuple[bytes, ...] = ()
    recorded: tuple[bytes, ...] = ()


def _kept(head: Head, lines: list[bytes], dropped: frozenset[int]) -> list[bytes]:
    for index, field in reversed(head.special):
        if field.role in dropped:
            del lines[index]
    if not head.nominated:
        return lines
    gone = {field.line for field in head.fields if field.name in head.nominated}
    return [lines[0], *(line for line in lines[1:] if line not in gone)]


def request(
    head: RequestHead, target: bytes, host: bytes, *, upgrade: bool = False, instead: Instead | None = None
) -> bytes:
    """The head to send upstream, always as HTTP/1.1."""
    lines = head.lines.copy()
    lines[0] = b"%b %b HTTP/1.1" % (head.method, target)
    for index, field in head.special:
        if field.role == Role.HOST:
            lines[index] = lines[index][:5] + b" " + host
    kept = _kept(head, lines, _UPGRADING if upgrade else _CONNECTION_BOUND)
    if instead is not None:
        kept = [*_without(kept, instead.names), *instead.lines]
    kept.append(b"\r\n")
    return b"\r\n".join(kept)


def recorded(masked: bytes, instead: Instead) -> bytes:
    """A request's masked head with the same change, as it was sent."""
    lines = [*_without(masked.split(b"\r\n")[:-2], instead.names), *instead.recorded, b"\r\n"]
    return b"\r\n".join(lines)


def _without(lines: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    return [lines[0], *(line for line in lines[1:] if line.partition(b":")[0].lower() not in names)]


def response(head: ResponseHead, *, upgrade: bool = False, dechunk: bool = False, last: bool = False) -> bytes:
    """The head to send to the client; its status line passes as it is. `last`: say that we close (RFC 9112 §9.6)."""
    dropped = _UPGRADING if upgrade else _DECHUNKED if dechunk else _CONNECTION_BOUND
    kept = _kept(head, head.lines.copy(), dropped)
    if last:
        kept.append(b"Connection: close")
    kept.append(b"\r\n")
    return b"\r\n".join(kept)
