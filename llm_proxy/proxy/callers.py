"""Who may use a door that spends the user's own credentials: this user's programs on this machine, or who has a secret.

Whatever calls from a browser, another user's program or another machine is refused unless it brings a secret. Leaves
out the rules on Host, Origin and Sec-Fetch-Site that hold for every request (`access`).
"""

from __future__ import annotations

import asyncio
import hmac
import os
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from llm_proxy.proxy.transport import local_port
from llm_proxy.wire.head import RequestHead, Role

OWN_FIELD = b"x-llm-proxy-token"  # for callers whose other fields hold the provider's key

_HOW = "as X-LLM-Proxy-Token, as a bearer token, as x-api-key or as /secret/{secret} before the path"

_ON_LINUX = sys.platform == "linux"
_TABLES = "/proc/self/net"
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96
_MAPPED = "0000000000000000FFFF0000"  # the same as the tables have it
# Behind the two addresses of a line: state, queues, timers, retransmissions, uid, timeout, inode (proc_net_tcp.rst).
_UID, _INODE = 4, 6
_SOCK_DIAG, _BY_FAMILY, _ANY = 4, 20, 0xFFFFFFFF  # NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, all states or no cookie


class Peer(NamedTuple):
    """Both ends of a client's connection within this machine, as this process sees them."""

    host: str
    port: int
    our_host: str
    our_port: int


class Caller:
    """Who holds the other end of a client's connection; looked up once, where it is asked for at all."""

    __slots__ = ("_looked", "_uid", "peer")

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self.peer: Peer | None = None
        if local_port(transport):
            theirs, ours = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
            self.peer = Peer(theirs[0], theirs[1], ours[0], ours[1])
        self._looked = False
        self._uid: int | None = None

    @property
    def uid(self) -> int | None:
        """The user whose program it is; None where that cannot be seen."""
        if not self._looked and self.peer is not None:
            self._looked, self._uid = True, owner(self.peer)
        return self._uid


@dataclass(frozen=True, slots=True, repr=False)
class Guard:
    """Each of `secrets` opens the door alone; `required`: nothing else does."""

    secrets: tuple[str, ...] = ()
    required: bool = False

    def keys(self, head: RequestHead) -> frozenset[bytes]:
        """The fields in which one of the secrets came, by their lower-case names: no upstream may see those."""
        return frozenset(name for name, value in _presented(head) if _is_one_of(value, self.secrets))

    def opened_by(self, head: RequestHead, in_path: bytes) -> bool:
        """Whether one of the secrets came, in a field or in the path."""
        return self.opened_by_path(in_path) or any(_is_one_of(key, self.secrets) for _, key in _presented(head) if key)

    def opened_by_path(self, in_path: bytes) -> bool:
        """Whether one of them stood in the path."""
        return bool(in_path) and _is_one_of(in_path, self.secrets)

    def refusal(self, head: RequestHead, in_path: bytes, caller: Caller, *, page: bool = False) -> str:
        """Why a request is not served, for whoever sent it; empty where it is. `in_path` is a secret in the path;
        `page`: it comes from a page that the operator has listed for this.
        """
        if self.opened_by(head, in_path):
            return ""
        if self.required:
            return f"a secret is asked for, {_HOW}"
        if caller.peer is None:
            return f"callers on other machines need the token that listen.token names, {_HOW}"
        if not page and any(field.role in (Role.ORIGIN, Role.FETCH_SITE) for _, field in head.special):
            return "this spends the user's credentials: it is not for browsers"
        if not _ON_LINUX or caller.uid == os.geteuid():
            return ""
        if caller.uid is None:
            return "whose program this is cannot be seen from here; it is served with a secret (docs/bedrock.md)"
        return f"this spends the credentials of user {os.geteuid()}, and a program of user {caller.uid} is calling"


def owner(peer: Peer) -> int | None:
    """The user id by Linux's own account of its sockets; None where it has none. A socket without inode is nobody's
    any more, although the kernel shows it as root's.
    """
    try:
        found = _asked(peer)
    except OSError:
        found = None
    uid, inode = found or in_tables(peer) or (0, 0)
    return uid if inode else None


def _asked(peer: Peer) -> tuple[int, int] | None:
    """User and inode of one socket, by netlink (sock_diag(7)): microseconds, where printing the tables takes the kernel
    10 ms. Raises OSError.
    """
    theirs, ours = _packed(peer.host), _packed(peer.our_host)
    family = socket.AF_INET if len(theirs) == 4 else socket.AF_INET6
    ports = struct.pack("!HH", peer.port, peer.our_port)
    wanted = ports + theirs.ljust(16, b"\0") + ours.ljust(16, b"\0") + struct.pack("=III", 0, _ANY, _ANY)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ANY) + wanted
    header = struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, 1, 1, 0)  # NLM_F_REQUEST
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as link:
        link.send(header + request)
        answer = link.recv(4096, socket.MSG_DONTWAIT)  # it is there when `send` returns
    if len(answer) < 88 or answer[4:6] != header[4:6]:
        return None
    # Behind the header a struct inet_diag_msg. A listener on the port is found too: that is not the other end.
    found = (_in_answer(answer[24:40], answer[16]), _in_answer(answer[40:56], answer[16]))
    if answer[20:24] != ports or found != (theirs, ours):
        return None
    uid, inode = struct.unpack_from("=II", answer, 80)
    return uid, inode


def _packed(host: str) -> bytes:
    """4 bytes or 16; IPv4 within IPv6 is IPv4."""
    if ":" not in host:
        return IPv4Address(host).packed
    address = IPv6Address(host)
    return address.packed if address.ipv4_mapped is None else address.ipv4_mapped.packed


def _in_answer(field: bytes, family: int) -> bytes:
    return field[:4] if family == socket.AF_INET else field.removeprefix(_MAPPED_PREFIX)


def in_tables(peer: Peer, tables: str = _TABLES) -> tuple[int, int] | None:
    """The same by what the kernel prints of all its sockets."""
    ends = [
        f" {_hex(peer.host, m)}:{peer.port:04X} {_hex(peer.our_host, m)}:{peer.our_port:04X} " for m in (False, True)
    ]
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(tables, table).read_bytes()
        except OSError:
            continue
        for end in ends:
            _, found, rest = lines.partition(end.encode())
            fields = rest.partition(b"\n")[0].split()
            if found and len(fields) > _INODE:
                return int(fields[_UID]), int(fields[_INODE])
    return None


def _hex(host: str, mapped: bool) -> str:
    """An address as the tables have it: 32 bits at a time in the machine's byte order. `mapped`: IPv4 within IPv6."""
    packed = _packed(host)
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    text = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return _MAPPED + text if mapped and len(packed) == 4 else text


def _presented(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """What a request brings in our own field and in the places where clients put a key: field and key."""
    found = []
    for _, field in head.special:
        if field.name in (OWN_FIELD, b"x-api-key"):
            found.append((field.name, field.value))
        elif field.name == b"authorization":
            scheme, _, token = field.value.partition(b" ")
            if scheme.lower() == b"bearer":
                found.append((field.name, token.strip(b" \t")))
    return found


def _is_one_of(value: bytes, secrets: tuple[str, ...]) -> bool:
    """Each is compared, in a time that does not depend on how much is right."""
    found = False
    for secret in secrets:
        found |= hmac.compare_digest(value, secret.encode())
    return found
