"""The faults a request can ask for, as a table, and how it asks.

In a field `X-Fake: name[=argument]; …`, in a query parameter `fake=name[=argument];…`, or in a segment of the path
that is written like one, for base URLs. A name or argument that is not in the table is answered with 400: a misspelt
fault must not make a test pass. Leaves out what faults do (`delivery`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tests.fakeprovider.http1 import Head

Plan = dict[str, Any]


class UnknownFault(Exception):
    """The request asks for a fault that the table does not have."""


def milliseconds(text: str) -> float:
    """As seconds."""
    return float(text) / 1000


def statuses(text: str) -> tuple[int, ...]:
    return tuple(int(status) for status in text.split(","))


def extent(text: str) -> tuple[int, str]:
    """`N` pieces of the body's own kind (events of a stream, else bytes), `Nb` bytes."""
    return (int(text[:-1]), "bytes") if text.endswith("b") else (int(text), "")


def nothing(text: str) -> bool:
    if text:
        raise ValueError("takes no argument")
    return True


def one_of(*choices: str) -> Callable[[str], str]:
    """The first choice is also what no argument means."""

    def parse(text: str) -> str:
        if text and text not in choices:
            raise ValueError(f"is one of {', '.join(choices)}")
        return text or choices[0]

    return parse


def optional_size(text: str) -> int:
    return int(text) if text else 0


FAULTS: dict[str, Callable[[str], Any]] = {
    # What the answer is.
    "words": int,  # N words of text
    "say": lambda text: bytes.fromhex(text).decode(),  # this text
    "endless": nothing,  # a stream of text that goes on until the client leaves
    "error-event": int,  # after N events the provider's error event, and a clean end
    "status": int,  # an error in the provider's own shape
    "fixed": optional_size,  # a precomputed message of that many bytes (0: a short one); the request is not understood
    "huge": int,  # N bytes, generated as they are sent
    "bytes": bytes.fromhex,  # this body
    "chunks": int,  # N chunks of one byte, each with an extension
    "echo": nothing,  # the request as received, head and body
    "upload-sink": nothing,  # JSON with size and sha256 of the payload
    "redirect": int,  # with a Location
    "no-body": int,  # 204 or 304
    "garbage": nothing,  # no HTTP at all
    "type": str,  # another Content-Type
    # How the answer is framed.
    "gzip": nothing,
    "deflate": nothing,
    "br": nothing,
    "zstd": nothing,
    "bad-gzip": nothing,  # coded, then damaged in the middle
    "trailers": nothing,
    "close": nothing,  # the end is the connection's end
    "http10": nothing,
    "head-size": int,  # one field pads the head to N bytes
    "head-fields": int,  # N more fields, every second one of the same name
    "wrong-length": int,  # Content-Length is off by N
    "extra": nothing,  # another response behind the end
    # When it goes out.
    "delay": milliseconds,  # before the head
    "slow": milliseconds,  # before every piece of the body
    "one-byte": nothing,  # byte by byte
    # How it breaks.
    "cut": extent,  # FIN after N events or bytes
    "reset": lambda text: text if text == "head" else extent(text + "b"),  # RST after N bytes, or before any
    "hang": one_of("now", "head"),  # never answers, or stops behind the head
    "chunk-truncated": nothing,  # the last chunk is half there, then FIN
    "die-on-reuse": one_of("reset", "fin", "idle"),  # at the second request of the connection, or before it
    # Before the request is complete.
    "early": int,  # this status, and nothing more is read
    "continue": nothing,  # 100, also where nobody asked
    "no-continue": int,  # this status in answer to Expect
    "close-after-continue": nothing,
    "interim": statuses,  # these 1xx before the answer
    # WebSockets.
    "fragments": int,  # messages in frames of N bytes, a ping between them
}


def plan_of(head: Head) -> Plan:
    """What the request asks for. Raises UnknownFault."""
    wishes = [value.decode("latin-1") for name, value in head.headers if name.lower() == b"x-fake"]
    places = (*head.query.split("&"), *head.path.split("/"))
    wishes += [unquote(place[5:]) for place in places if place.startswith("fake=")]
    plan: Plan = {}
    for wish in ";".join(wishes).split(";"):
        name, _, argument = wish.strip().partition("=")
        if not name:
            continue
        try:
            plan[name] = FAULTS[name](argument)
        except KeyError as exc:
            raise UnknownFault(f"no fault is called {name!r}") from exc
        except ValueError as exc:
            raise UnknownFault(f"{name}={argument}: {exc}") from exc
    return plan
