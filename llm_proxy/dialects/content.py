"""What came back, as the dialects read it: decoded, whole or a stream. Leaves out where it was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Content:
    """The answer to one request, content codings taken off.

    `kind` is `body` or `events` (`data` holds a plain body, or the whole stream: server-sent events, NDJSON, AWS event
    stream), or `messages` (`messages` holds ("client" | "server", text) of each WebSocket message, in order).
    `status` is None where no response came. `complete`: the exchange came to its end. `media_type` is lower case,
    without parameters. `path` is the request's, which may name the model. `error_type` is the name that Amazon's heads
    give to an error.
    """

    kind: Literal["body", "events", "messages"]
    data: bytes = b""
    messages: tuple[tuple[str, bytes], ...] = ()
    status: int | None = 200
    complete: bool = True
    media_type: str = ""
    path: str = ""
    error_type: str = ""
