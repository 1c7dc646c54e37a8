"""HTTP/1.1 message heads: a strict grammar, the raw lines kept as they came, and the few facts a relay needs.

A head is the bytes up to and including the blank line. Lines are cut, never re-created, so case, order, duplicates
and odd spacing survive. What is not accepted raises `BadHead`, which knows the status to answer with. Leaves out
bodies (`framing`), which lines are forwarded (`hop`) and what a credential is (`masking`).

Field lines repeat from one request to the next, so their parsed form is remembered in a small bounded table.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

from llm_proxy.wire.masking import masked_value

MAX_HEAD = 65_536  # bytes; clients with large cookies exceed the 8 KiB that many servers stop at
MAX_FIELDS = 256

# RFC 9112 §3 and §5, RFC 9110 §5.5 and §5.6.2. Obs-text stays, the bytes are the sender's; a target has no fragment.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):[ \t]*((?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")


class BadHead(Exception):
    """A message that must not be carried: `status` is what the sender of a request deserves to hear."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class Role:
    """Why a relay looks at a field at all. Plain integers: an enum's hash costs more than the look itself."""

    PLAIN: Final = 0  # passes untouched
    HOST: Final = 1
    CONTENT_LENGTH: Final = 2
    TRANSFER_ENCODING: Final = 3
    CONNECTION: Final = 4
    UPGRADE: Final = 5
    HOP: Final = 6
    ORIGIN: Final = 8
    FETCH_SITE: Final = 9
    IDENTITY: Final = 10  # tells which provider or account a request is for
    TRAILER: Final = 11
    SECRET: Final = 12  # passes untouched; only its record is masked


_ROLES = {
    b"host": Role.HOST,
    b"content-length": Role.CONTENT_LENGTH,
    b"transfer-encoding": Role.TRANSFER_ENCODING,
    b"connection": Role.CONNECTION,
    b"upgrade": Role.UPGRADE,
    # RFC 9110 §7.6.1, and the two proxy credentials of §11.7, which end at the first proxy.
    b"keep-alive": Role.HOP,
    b"proxy-connection": Role.HOP,
    b"te": Role.HOP,
    b"proxy-authorization": Role.HOP,
    b"proxy-authenticate": Role.HOP,
    b"origin": Role.ORIGIN,
    b"sec-fetch-site": Role.FETCH_SITE,
    b"authorization": Role.IDENTITY,
    b"chatgpt-account-id": Role.IDENTITY,
    b"anthropic-version": Role.IDENTITY,
    b"x-api-key": Role.IDENTITY,
    b"x-goog-api-key": Role.IDENTITY,
    b"x-llm-proxy-token": Role.IDENTITY,  # for us alone
    b"trailer": Role.TRAILER,
}

# What `Connection` may never take away: the receiver would read another message than the sender wrote.
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
_NEVER_HOP = re.compile(
    rb"authorization|cookie|content-.*|cache-.*|.*api-key.*|x-amz-.*|anthropic-.*|openai-.*|chatgpt-.*"
)


class Field(NamedTuple):
    """One field line. `line` is as sent, `name` lower-case, `value` without surrounding white space.

    `masked` is the line for the record: the same object where it holds no credential.
    """

    line: bytes
    name: bytes
    value: bytes
    role: int  # one of Role
    masked: bytes


# Lines seen before: those nobody looks at, and the parsed form of the others.
_plain: set[bytes] = set()
_known: dict[bytes, Field] = {}
_KNOWN_LINES = 1024
_KNOWN_LENGTH = 512


def _field(line: bytes) -> Field:
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        raise BadHead("malformed header field line")
    name, value = match[1].lower(), match[2]
    instead = masked_value(name, value)
    masked = line if instead is None else match[1] + b": " + instead
    field = Field(line, name, value, _ROLES.get(name, Role.PLAIN if instead is None else Role.SECRET), masked)
    if len(line) <= _KNOWN_LENGTH:
        if len(_known) + len(_plain) >= _KNOWN_LINES:
            _known.clear()
            _plain.clear()
        if field.role == Role.PLAIN:
            _plain.add(line)
        else:
            _known[line] = field
    return field


class Head:
    """What requests and responses share.

    `lines` are the raw lines, the start line first, without their line ends. `special` are the indexes into `lines`
    (and the fields there) that have a role. `length` is Content-Length (None: absent). `raw` is the whole head.
    """

    __slots__ = ("chunked", "close", "length", "lines", "minor", "nominated", "raw", "special", "upgrade")

    raw: bytes
    lines: list[bytes]
    special: list[tuple[int, Field]]
    minor: int
    length: int | None
    chunked: bool
    close: bool
    upgrade: bytes
    nominated: tuple[bytes, ...]

    def _read_fields(self, head: bytes) -> bytes:
        """Cut the lines and settle what is about framing. Returns the start line."""
        if len(head) > MAX_HEAD:
            raise BadHead(f"head larger than {MAX_HEAD} bytes", 431)
        lines = head.split(b"\r\n")
        del lines[-2:]  # the blank line
        start = lines[0]
        if len(lines) > MAX_FIELDS + 1:
            raise BadHead(f"more than {MAX_FIELDS} header fields", 431)
        special = []
        for index, line in enumerate(islice(lines, 1, None), 1):
            if line not in _plain:
                field = _known.get(line) or _field(line)
                if field.role:
                    special.append((index, field))
        self.raw = head
        self.lines = lines
        self.special = special
        self.length = None
        self.chunked = self.close = False
        self.upgrade = b""
        self.nominated = ()
        for _, field in special:
            if field.role < _READ_BELOW:
                _READERS[field.role](self, field.value)
        return start

    def _check_framing(self) -> None:
        if self.chunked and self.length is not None:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if self.chunked and self.minor == 0:
            raise BadHead("Transfer-Encoding in HTTP/1.0")

    def masked(self, start: bytes | None = None) -> bytes:
        """The head for the record, credentials masked; `start` instead of its start line."""
        lines = None if start is None else [start, *self.lines[1:]]
        for index, field in self.special:
            if field.masked is not field.line:
                lines = lines or self.lines.copy()
                lines[index] = field.masked
        if lines is None:
            return self.raw
        lines.append(b"\r\n")
        return b"\r\n".join(lines)

    @property
    def fields(self) -> list[Field]:
        """All field lines, parsed."""
        return [_known.get(line) or _field(line) for line in self.lines[1:]]

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        for field in self.fields:
            if field.name == name:
                return field.value
        return None


def _read_length(head: Head, value: bytes) -> None:
    if head.length is not None:
        raise BadHead("more than one Content-Length")
    if _LENGTH.fullmatch(value) is None:
        raise BadHead("malformed Content-Length")
    head.length = int(value)


def _read_transfer_encoding(head: Head, value: bytes) -> None:
    if head.chunked or value.lower() != b"chunked":
        raise BadHead("Transfer-Encoding other than a single 'chunked'")
    head.chunked = True


def _read_connection(head: Head, value: bytes) -> None:
    value = value.lower()
    if value == b"keep-alive":
        return
    for raw in value.split(b","):
        token = raw.strip(b" \t")
        if token == b"close":
            head.close = True
        elif token in _FRAMING:
            raise BadHead("Connection names a framing field")
        elif token and token != b"keep-alive" and token != b"upgrade" and _NEVER_HOP.fullmatch(token) is None:
            head.nominated += (token,)


def _read_upgrade(head: Head, value: bytes) -> None:
    head.upgrade = value.lower()


def _read_nothing(head: Head, value: bytes) -> None:
    """For roles that concern others."""


_READERS = (
    _read_nothing,  # PLAIN
    _read_nothing,  # HOST
    _read_length,
    _read_transfer_encoding,
    _read_connection,
    _read_upgrade,
)
_READ_BELOW = len(_READERS)


class RequestHead(Head):
    """A request's head. `target` is raw; `host` the Host value; `minor` 0 or 1 of HTTP/1.x."""

    __slots__ = ("host", "method", "target")

    method: bytes
    target: bytes
    host: bytes

    @property
    def wants_websocket(self) -> bool:
        """Only this is an upgrade we carry; any other `Upgrade` field is dropped and the request is a plain one."""
        return (
            self.upgrade == b"websocket"
            and self.method == b"GET"
            and self.minor == 1
            and not self.chunked
            and not self.length
        )


class ResponseHead(Head):
    """A response's head. `status` is the number, `reason` the raw reason phrase."""

    __slots__ = ("reason", "status")

    status: int
    reason: bytes


def parse_request(head: bytes) -> RequestHead:
    """The request head in `head`, which ends with its blank line. Raises BadHead."""
    self = RequestHead()
    start = self._read_fields(head)
    match = _REQUEST_LINE.fullmatch(start)
    if match is None:
        raise BadHead("malformed request line (HTTP/1.0 or HTTP/1.1 is spoken here)")
    self.method, self.target, minor = match.groups()
    self.minor = 1 if minor == b"1" else 0
    self._check_framing()
    host = None
    for _, field in self.special:
        if field.role == Role.HOST:
            if host is not None:
                raise BadHead("more than one Host")
            host = field.value
    if not host:
        raise BadHead("no Host")
    self.host = host
    if self.method == b"CONNECT":
        raise BadHead("CONNECT is not served here", 405)
    return self


def parse_response(head: bytes) -> ResponseHead:
    """The response head in `head`, which ends with its blank line. Raises BadHead (its status means nothing)."""
    self = ResponseHead()
    self.minor, self.status, self.reason = _status_line(self._read_fields(head))
    self._check_framing()
    return self


@lru_cache(maxsize=64)
def _status_line(line: bytes) -> tuple[int, int, bytes]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadHead("malformed status line")
    return int(match[1]), int(match[2]), match[3] or b""


def pairs(head: bytes) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Start line and (name, value) pairs of a recorded head, latin-1; forgiving, since it only reads our own record."""
    start, *lines = head.decode("latin-1").split("\r\n")
    cut = (line.partition(":") for line in lines if line)
    return start, tuple((name, value.strip(" \t")) for name, _, value in cut)
