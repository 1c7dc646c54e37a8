"""One finished call: `Exchange`, and the six ways it can end. Frozen facts, no behaviour beyond small views.

Leaves out what the bytes mean (`dialects`) and how they were carried (`proxy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from llm_proxy.wire.attribution import Attribution


class Ending(IntEnum):
    """Exactly one per exchange. The values are in the journal: never renumber. An upstream's 4xx or 5xx is COMPLETE."""

    COMPLETE = 0
    REFUSED = 1  # by us: upstream policy, or a request that broke the rules after it had a route
    UPSTREAM_FAILED = 2  # could not be reached, or broke off before its response was complete
    CLIENT_GONE = 3  # the client left before the end
    TIMED_OUT = 4  # an idle or connect limit of ours
    INTERRUPTED = 5  # this proxy was stopped or killed while the call was open

    @property
    def label(self) -> str:
        return self.name.lower()


# Raw field lines as (name, value), in order and as sent; latin-1 so that any byte survives.
Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Body:
    """A message body as kept.

    `pieces` are (nanoseconds since the exchange was opened, payload bytes): what arrived together stays together.
    Chunk framing is off, content coding is still on. `size` is the full payload size in bytes; where less was kept
    `truncated` says why ("limit" or "dropped") and `sha256` is of the full payload, where it is known.
    """

    pieces: tuple[tuple[int, bytes], ...] = ()
    size: int = 0
    truncated: str = ""
    sha256: str = ""

    @property
    def data(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call as it crossed the wire, secrets in heads masked.

    Times: `opened` is nanoseconds since 1970; `first_byte` and `ended` are nanoseconds after it (0: never).
    `status` is the upstream's, None where none arrived; `answered` the status this proxy gave itself (0: none).
    `client_port` is the client's TCP port where it was on this machine (0: it was not). `reused`: whether it went over
    a connection that was there already; None where that is not known. `connected` is nanoseconds after `opened` at
    which one that was made for it was ready (0: not known). `gateway`: for whom the gateway made the call;
    None for every other call.
    """

    id: UUID
    provider: str
    scheme: str
    upstream: str  # host[:port] as addressed
    why: str  # which rule chose the route
    opened: int
    method: str
    target: str  # path and query as sent upstream, secrets masked
    request_headers: Fields
    request: Body
    status: int | None
    reason: str
    response_headers: Fields
    response: Body
    trailers: Fields
    interim: tuple[int, ...]  # statuses of 1xx heads, in order
    first_byte: int
    ended: int
    ending: Ending
    error: str
    answered: int
    websocket: bool
    retried: bool
    ended_by_close: bool
    extra_bytes: bool
    client_port: int = 0
    reused: bool | None = None
    connected: int = 0
    gateway: Attribution | None = None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]
