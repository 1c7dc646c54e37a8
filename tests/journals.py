"""Journals as a proxy leaves them, made by hand: calls as frames, frames as blocks of real segment files."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from llm_proxy.journal import segments
from llm_proxy.journal.frames import Closing, Flag, Kind, pack, pack_end, pack_open, route_facts
from llm_proxy.records.exchange import Ending

MS = 1_000_000
WALL = int(time.time()) * 1_000_000_000


class Journal:
    """One run of a proxy. `add` appends a block of frames, as its drain thread would."""

    def __init__(self, folder: Path, segment_size: int = 1 << 20) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.run = os.urandom(16)
        self.place = 0
        self.segment_size = segment_size
        self.writer = self._next()

    def _next(self) -> segments.SegmentWriter:
        number = max(segments.numbers(self.folder), default=0) + 1
        return segments.SegmentWriter(self.folder, segments.SegmentHead(self.run, number, 0, 0))

    def add(self, *frames: bytes) -> None:
        if self.writer.size > self.segment_size:
            self.writer.close()
            self.writer = self._next()
        block = b"".join(frames)
        self.writer.append(memoryview(block), self.place)
        self.place += len(block)

    def close(self) -> None:
        self.writer.close()


class Call:
    """The frames of one call, to be taken apart, left out or changed by a test."""

    def __init__(
        self,
        serial: int,
        *,
        session: str = "",
        provider: str = "anthropic",
        upstream: str = "api.anthropic.com",
        why: str = "bare path",
        method: str = "POST",
        target: str = "/v1/messages",
        request: bytes = b'{"model":"m"}',
        answer: bytes = b'{"ok":true}',
        request_headers: Iterable[str] = (),
        headers: Iterable[str] = ("Content-Type: application/json",),
        status: str = "200 OK",
        opened: int = 0,
        wall: int = WALL,
        pieces: Iterable[tuple[int, bytes]] | None = None,
        ending: Ending = Ending.COMPLETE,
        error: str = "",
        answered: int = 0,
        notes: int = 0,
        flags: int = 0,
        sizes: tuple[int, int] | None = None,
        digests: tuple[bytes, bytes] = (b"", b""),
        connected: int = 0,
    ) -> None:
        self.serial = serial
        self.id = uuid.uuid4()
        self.opened = opened or serial * MS
        head = [f"{method} {target} HTTP/1.1", f"Host: {upstream}", *request_headers]
        if session:
            head.append(f"X-Claude-Code-Session-Id: {session}")
        if request and not any("Transfer-Encoding" in line for line in head):
            head.append(f"Content-Length: {len(request)}")
        facts = route_facts(provider, "https", upstream, why)
        payload = pack_open(self.id.bytes, wall, facts, _head(head))
        self.open = self.frame(Kind.OPEN, 0, payload, Flag.NONE if request else Flag.LAST)
        self.request = self.frame(Kind.REQUEST, 1 * MS, request, Flag.LAST) if request else b""
        lines = list(headers)
        if not any("Transfer-Encoding" in line for line in lines) and pieces is None:
            lines.append(f"Content-Length: {len(answer)}")
        self.head = self.frame(Kind.HEAD, 100 * MS, _head([f"HTTP/1.1 {status}", *lines]))
        parts = list(pieces) if pieces is not None else [(101, answer)] if answer else []
        self.response = [self.frame(Kind.RESPONSE, at * MS, data) for at, data in parts]
        ours, theirs = sizes or (len(request), sum(len(data) for _, data in parts))
        closing = Closing(
            ending,
            notes,
            answered,
            ours,
            theirs,
            wall + 200 * MS,
            self.opened + 100 * MS,
            error,
            *digests,
            self.opened + connected if connected else 0,
        )
        self.end = self.frame(Kind.END, 200 * MS, pack_end(closing), flags)

    def frame(self, kind: int, after: int, payload: bytes, flags: int = 0) -> bytes:
        """A frame of this call, `after` nanoseconds after its beginning."""
        return pack(kind, flags, self.serial, self.opened + after, payload)

    @property
    def frames(self) -> list[bytes]:
        return [frame for frame in (self.open, self.request, self.head, *self.response, self.end) if frame]


def _head(lines: list[str]) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()
