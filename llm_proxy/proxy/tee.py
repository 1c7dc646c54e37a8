"""The tee: hands what crosses the wire to the journal, before it is forwarded.

Never blocks and never fails: what does not fit is dropped, counted and said on the exchange. Frames that belong
together go in one copy. Without a journal it only counts; a later one is told how much it has missed.
"""

from __future__ import annotations

import random
import struct
import time
from collections import deque
from dataclasses import dataclass

from llm_proxy.journal.frames import Closing, Flag, Kind, open_frame, pack, pack_end, pack_header, pack_route
from llm_proxy.journal.writer import Journal

_random_bits = random.Random().getrandbits
_ID = struct.Struct(">QQ")
# Endings that found no room wait here for the next frame; more than this is lost, and counted.
_LATE_ENDINGS = 10_000
_LAST, _LOSSY = Flag.LAST, Flag.LOSSY
_REQUEST = Kind.REQUEST


def exchange_id(wall_ns: int) -> bytes:
    """A UUIDv7 (RFC 9562 §5.7): milliseconds first, so that ids sort by time."""
    high = (wall_ns // 1_000_000) << 16 | 0x7000 | _random_bits(12)
    return _ID.pack(high, 0b10 << 62 | _random_bits(62))


@dataclass(slots=True)
class Losses:
    """What the journal could not take, since the start and since the last gap was noted in it."""

    exchanges: int = 0
    frames: int = 0
    octets: int = 0
    gap_exchanges: int = 0
    gap_frames: int = 0
    gap_octets: int = 0
    gap_since: int = 0

    def add(self, *, exchanges: int = 0, frames: int = 0, size: int = 0) -> None:
        if not self.gap_since:
            self.gap_since = time.time_ns()
        self.exchanges += exchanges
        self.frames += frames
        self.octets += size
        self.gap_exchanges += exchanges
        self.gap_frames += frames
        self.gap_octets += size

    def gap(self) -> bytes:
        """Payload of a GAP frame: what was lost since the last one."""
        text = f"{self.gap_exchanges} {self.gap_frames} {self.gap_octets} {self.gap_since} {time.time_ns()}"
        return text.encode()

    def gap_noted(self) -> None:
        self.gap_exchanges = self.gap_frames = self.gap_octets = self.gap_since = 0


class Tee:
    """Writes frames. A serial of 0 stands for an exchange that is not recorded."""

    __slots__ = ("_journal", "_late", "_serial", "losses")

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._serial = 0
        self._late: deque[bytes] = deque()
        self.losses = Losses()

    @property
    def journal(self) -> Journal | None:
        return self._journal

    def use(self, journal: Journal | None) -> None:
        """Record from now on; exchanges already open stay unrecorded."""
        self._journal = journal

    def open(
        self, recorded: bytes, facts: int, at: int, body: bytes, *, bodiless: bool, last: bool, port: int = 0
    ) -> tuple[int, bool]:
        """An exchange begins: `recorded` is its route's facts (`facts` bytes) and masked head, `body` a first piece,
        `port` the client's where it is on this machine.

        Returns its serial (0: it cannot be recorded) and whether the body piece was kept.
        """
        if self._journal is None:
            self.losses.add(exchanges=1)
            return 0, True
        if self._late or self.losses.gap_since:
            self._catch_up(at)
        self._serial = serial = self._serial + 1
        wall = time.time_ns()
        frame = open_frame(_LAST if bodiless else 0, port, serial, at, exchange_id(wall), wall, facts, recorded)
        if not body:
            if self._put(frame):
                return serial, True
        else:
            header = pack_header(_REQUEST, _LAST if last else 0, serial, at, len(body))
            if self._put_body(frame + header, body):
                return serial, True
            if self._put(frame):
                self.losses.add(frames=1, size=len(body))
                return serial, False
        self.losses.add(exchanges=1)
        return 0, True

    def interim(self, serial: int, at: int, masked: bytes) -> None:
        """A 1xx head."""
        if serial:
            self._closing(pack(Kind.INTERIM, 0, serial, at, masked), serial, at, 0, None)

    def route(self, serial: int, at: int, facts: bytes, recorded: bytes) -> None:
        """Where an exchange goes whose request had to be read first; `recorded` is its masked head."""
        if serial:
            self._closing(pack(Kind.ROUTE, _LAST, serial, at, pack_route(facts, recorded)), serial, at, 0, None)

    def head(self, serial: int, at: int, masked: bytes, body: bytes, closing: Closing | None, flags: int) -> bool:
        """The final head, what came with it of the body, and the end where that is all. False: the body was dropped."""
        if not serial:
            return True
        frames = pack(Kind.HEAD, 0, serial, at, masked)
        if not body:
            return self._closing(frames, serial, at, flags, closing)
        if self._body(frames, Kind.RESPONSE, serial, at, body, closing, flags):
            return True
        self._closing(frames, serial, at, flags | _LOSSY, closing)
        return False

    def body(
        self,
        kind: int,
        serial: int,
        at: int,
        body: bytes,
        *,
        last: bool,
        closing: Closing | None = None,
        flags: int = 0,
    ) -> bool:
        """A piece of a body as it crosses the wire, and the end where it is the last; False where it was dropped."""
        if not serial or self._body(b"", kind, serial, at, body, closing, flags, last):
            return True
        if closing is not None:
            self.end(serial, at, flags | _LOSSY, closing)
        return False

    def end(self, serial: int, at: int, flags: int, closing: Closing) -> None:
        if serial:
            self._closing(b"", serial, at, flags, closing)

    def _body(
        self,
        frames: bytes,
        kind: int,
        serial: int,
        at: int,
        body: bytes,
        closing: Closing | None,
        flags: int,
        last: bool = False,
    ) -> bool:
        if self._late:
            self._catch_up(at)
            if self._late:  # nothing overtakes what waits: the reader would see an exchange end before its head
                self.losses.add(frames=1, size=len(body))
                return False
        header = pack_header(kind, _LAST if last else 0, serial, at, len(body))
        end = b"" if closing is None else pack(Kind.END, flags, serial, at, pack_end(closing))
        if self._put_body(frames + header, body, end):
            return True
        self.losses.add(frames=1, size=len(body))
        return False

    def _closing(self, frames: bytes, serial: int, at: int, flags: int, closing: Closing | None) -> bool:
        """Frames without bodies, and the end; an end that finds no room is kept for later."""
        if closing is not None:
            frames += pack(Kind.END, flags, serial, at, pack_end(closing))
        if self._late:
            self._catch_up(at)
        if self._late or not self._put(frames):
            if len(self._late) < _LATE_ENDINGS:
                self._late.append(frames)
            else:
                self.losses.add(frames=1)
        return True

    def _put_body(self, frames: bytes, body: bytes, after: bytes = b"") -> bool:
        """Into the ring, leaving the reserve to what matters more."""
        journal = self._journal
        if journal is None or not journal.bodies:
            return False
        ring = journal.ring
        used = ring.put(frames, body, after, ring.reserve)
        if not used or used > journal.alarm or journal.asleep:
            journal.wake()
        return used > 0

    def _put(self, frames: bytes) -> bool:
        journal = self._journal
        if journal is None:
            return False
        used = journal.ring.put(frames)
        if not used or used > journal.alarm or journal.asleep:
            journal.wake()
        return used > 0

    def _catch_up(self, at: int) -> None:
        """Room again, perhaps: first the endings that had to wait, then a note of what was lost."""
        late = self._late
        while late and self._put(late[0]):
            late.popleft()
        journal = self._journal
        if late or not self.losses.gap_since or journal is None or not journal.bodies:
            return
        if self._put(pack(Kind.GAP, 0, 0, at, self.losses.gap())):
            self.losses.gap_noted()

    def settle(self) -> None:
        """Whatever had to wait gets one more chance, also where no next call gives it one."""
        self._catch_up(time.monotonic_ns())
