"""A call as exports take it: its row in the index, its entries in the log, and what they mean.

Leaves out finding calls (`index`) and writing them (one module per format).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from llm_proxy.dialects.digest import Digest
from llm_proxy.index.queries import CallRow
from llm_proxy.records import understood

Entry = dict[str, Any]


@dataclass(slots=True)
class Call:
    """One call. `request` and `response` are None where there is none, or its log has gone.

    `start` and `fork` are the entries that begin its session's file, where whoever read the call read them too.
    """

    row: CallRow
    request: Entry | None
    response: Entry | None
    start: Entry | None = None
    fork: Entry | None = None
    _digest: Digest | None = field(default=None, init=False)

    @property
    def digest(self) -> Digest:
        """Understood when first asked for."""
        if self._digest is None:
            self._digest = understood.understand(self.request or {}, self.response)
        return self._digest

    @property
    def request_body(self) -> bytes:
        return understood.body_of(self.request) if self.request else b""

    @property
    def response_body(self) -> bytes:
        """A stream's lines joined; of a WebSocket, its messages, a line each."""
        response = self.response
        if not response:
            return b""
        if "websocket" in response:
            return b"\n".join(text for _, text in understood.messages_of(response))
        stream = understood.stream_of(response)
        return understood.body_of(response) if stream is None else stream

    @property
    def head_ms(self) -> int | None:
        """From the request's arrival to the response's head; None where none came, or its log does not tell."""
        timing = (self.response or {}).get("timing")
        told = timing.get("ttfb_ms") if isinstance(timing, dict) and self.row.status is not None else None
        return told if isinstance(told, int) and not isinstance(told, bool) else None

    @property
    def streamed(self) -> bool:
        response = self.response or {}
        return "chunks" in response or "websocket" in response

    @property
    def query(self) -> str:
        return str((self.request or {}).get("query", ""))

    @property
    def target(self) -> str:
        return self.row.path + (f"?{self.query}" if self.query else "")

    @property
    def url(self) -> str:
        """As it was called upstream."""
        scheme = (self.request or {}).get("scheme") or scheme_of(self.row.upstream)
        return f"{scheme}://{self.row.upstream}{self.target}"

    @property
    def started(self) -> datetime:
        return datetime.fromtimestamp(self.row.started_ns / 1e9, UTC)

    @property
    def ended(self) -> datetime:
        return datetime.fromtimestamp((self.row.ended_ns or self.row.started_ns) / 1e9, UTC)


def scheme_of(upstream: str) -> str:
    """What was spoken with an upstream whose log does not say: in the clear only with this machine."""
    host = upstream.rpartition(":")[0] if upstream.rpartition(":")[2].isdigit() else upstream
    return "http" if host in ("localhost", "127.0.0.1", "[::1]") or host.startswith("127.") else "https"


def headers_of(entry: Entry | None) -> dict[str, list[str]]:
    """Canonical name -> values, as recorded."""
    found = (entry or {}).get("headers")
    told = found.items() if isinstance(found, dict) else ()
    return {name: [str(value) for value in (values if isinstance(values, list) else [values])] for name, values in told}
