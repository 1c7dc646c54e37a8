"""The tee: hands what crosses the wire to the journal, before it is forwarded, with secrets in heads masked.

Never blocks and never fails: what does not fit is dropped, counted and said on the exchange. Without a journal it
does nothing.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass

from llm_proxy.journal.frames import Closing, Flag, Kind, pack_end, pack_open
from llm_proxy.journal.writer import Journal
from llm_proxy.records.masking import masked_value
from llm_proxy.wire.head import Head

_VERSION_7 = 0x7 << 76 | 0b10 << 62
_random = random.Random()
# Endings that found no room wait here for the next frame; more than this is lost, and counted.
_LATE_ENDINGS = 10_000
_KNOWN_LINES = 1024
_KNOWN_LENGTH = 512

_masked_lines: dict[bytes, bytes] = {}


def exchange_id(wall_ns: int) -> bytes:
    """A UUIDv7 (RFC 9562 §5.7): milliseconds first, so that ids sort by time."""
    bits = _random.getrandbits(74)
    value = (wall_ns // 1_000_000) << 80 | _VERSION_7 | (bits >> 62) << 64 | bits & (1 << 62) - 1
    return value.to_bytes(16, "big")


def masked_head(start: bytes, head: Head) -> bytes:
    """A head for the record: the lines as sent, credentials masked."""
    known = _masked_lines.get
    lines = [start]
    for field in head.fields:
        line = field.line
        lines.append(known(line) or _masked_line(line, field.name, field.value))
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def _masked_line(line: bytes, name: bytes, value: bytes) -> bytes:
    instead = masked_value(name, value)
    masked = line if instead is None else line[: len(name)] + b": " + instead
    if len(line) <= _KNOWN_LENGTH:
        if len(_masked_lines) >= _KNOWN_LINES:
            _masked_lines.clear()
        _masked_lines[line] = masked
    return masked


@dataclass(slots=True)
class Losses:
    """What the journal could not take, since the start and since the last gap was noted in it."""

    exchanges: int = 0
    frames: int = 0
    octets: int = 0
    gap_exchanges: int = 0
    gap_frames: int = 0
    gap_bytes: int = 0
    gap_since: int = 0

    def add(self, *, exchanges: int = 0, frames: int = 0, size: int = 0) -> None:
        if not self.gap_since:
            self.gap_since = time.time_ns()
        self.exchanges += exchanges
        self.frames += frames
        self.octets += size
        self.gap_exchanges += exchanges
        self.gap_frames += frames
        self.gap_bytes += size

    def take_gap(self) -> bytes:
        """Payload of a GAP frame for what was lost since the last one."""
        text = f"{self.gap_exchanges} {self.gap_frames} {self.gap_bytes} {self.gap_since} {time.time_ns()}"
        self.gap_exchanges = self.gap_frames = self.gap_bytes = self.gap_since = 0
        return text.encode()


class Tee:
    """Writes frames. A serial of 0 stands for an exchange that is not recorded."""

    __slots__ = ("_journal", "_late", "_serial", "losses")

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._serial = 0
        self._late: deque[tuple[int, int, bytes]] = deque()
        self.losses = Losses()

    @property
    def journal(self) -> Journal | None:
        return self._journal

    def use(self, journal: Journal | None) -> None:
        """Record from now on; exchanges already open stay unrecorded."""
        self._journal = journal

    def open(self, facts: bytes, masked: bytes, at: int, *, bodiless: bool) -> int:
        """An exchange begins, with its route's facts and masked head. Returns its serial, 0: it is not recorded."""
        if self._journal is None:
            return 0
        if self._late or self.losses.gap_since:
            self._catch_up(at)
        self._serial += 1
        wall = time.time_ns()
        payload = pack_open(exchange_id(wall), wall, facts, masked)
        if self._put(Kind.OPEN, Flag.LAST if bodiless else 0, self._serial, at, payload):
            return self._serial
        self.losses.add(exchanges=1)
        return 0

    def head(self, kind: int, serial: int, at: int, head: Head, *, bodiless: bool = False) -> None:
        if serial and not self._put(kind, Flag.LAST if bodiless else 0, serial, at, masked_head(head.lines[0], head)):
            self.losses.add(frames=1)

    def body(self, kind: int, serial: int, at: int, piece: bytes, *, last: bool = False) -> bool:
        """A piece of a body as it crosses the wire; False where it was dropped."""
        journal = self._journal
        if journal is None or not serial:
            return True
        if journal.bodies:
            ring = journal.ring
            used = ring.put(kind, Flag.LAST if last else 0, serial, at, piece, ring.reserve)
            if used:
                if used > journal.alarm or journal.asleep:
                    journal.wake()
                return True
            journal.wake()
        self.losses.add(frames=1, size=len(piece))
        return False

    def end(self, serial: int, at: int, flags: int, closing: Closing) -> None:
        if not serial:
            return
        payload = pack_end(closing)
        if self._late or not self._put(Kind.END, flags, serial, at, payload):
            if len(self._late) < _LATE_ENDINGS:
                self._late.append((serial, at, bytes([flags]) + payload))
            else:
                self.losses.add(frames=1)

    def _put(self, kind: int, flags: int, serial: int, at: int, payload: bytes) -> bool:
        journal = self._journal
        if journal is None:
            return False
        used = journal.ring.put(kind, flags, serial, at, payload)
        if not used or used > journal.alarm or journal.asleep:
            journal.wake()
        return bool(used)

    def _catch_up(self, at: int) -> None:
        """Room again, perhaps: first the endings that had to wait, then a note of what was lost."""
        late = self._late
        while late and self._put(Kind.END, late[0][2][0], late[0][0], late[0][1], late[0][2][1:]):
            late.popleft()
        if not late and self.losses.gap_since and self._journal is not None and self._journal.bodies:
            gap = self.losses.take_gap()
            if not self._put(Kind.GAP, 0, 0, at, gap):
                self.losses.add()

    def settle(self) -> None:
        """Before the end of the process: whatever had to wait gets one more chance."""
        self._catch_up(time.monotonic_ns())
