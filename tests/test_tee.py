"""The tee under pressure: what has to wait is never overtaken by what it should come before."""

from __future__ import annotations

from pathlib import Path

from llm_proxy.journal.frames import Closing, Frame, Kind, route_facts, scan
from llm_proxy.journal.ring import Ring
from llm_proxy.proxy.tee import Tee

CLOSING = Closing(0, 0, 0, 0, 3, 1, 1, "", b"", b"")


class Drained:
    """A journal whose ring the test drains itself."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.bodies = True
        self.asleep = False
        self.alarm = ring.size

    def wake(self) -> None:
        """Nobody sleeps here."""

    def frames(self) -> list[Frame]:
        found: list[Frame] = []
        while self.ring.drain(lambda block, place: found.extend(scan(bytes(block)))):
            pass
        return found


def test_an_end_does_not_overtake_its_head(tmp_path: Path) -> None:
    """A head that found no room is in the journal before the end of its exchange, and the loss is said."""
    journal = Drained(Ring.create(tmp_path / "ring", 8192, b"r" * 16))
    tee = Tee(journal)  # type: ignore[arg-type]
    facts = route_facts("openai", "https", "h", "bare path")
    serial, _ = tee.open(facts + b"GET / HTTP/1.1\r\n\r\n", len(facts), 1, b"", bodiless=True, last=True)
    while tee.open(facts + b"x" * 500, len(facts), 1, b"", bodiless=True, last=True)[0]:
        pass
    assert tee.head(serial, 2, b"h" * 600, b"", None, 0)
    kept = tee.body(Kind.RESPONSE, serial, 3, b"abc", last=True, closing=CLOSING)
    order = [frame.kind for frame in journal.frames() if frame.serial == serial]
    tee.settle()
    order += [frame.kind for frame in journal.frames() if frame.serial == serial]
    assert not kept and order == [Kind.OPEN, Kind.HEAD, Kind.END]
    assert tee.losses.octets == 3
