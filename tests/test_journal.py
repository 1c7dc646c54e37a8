"""The journal loses nothing that was put into it: through wraps, crashes, damage and full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.journal import segments
from llm_proxy.journal.frames import (
    HEADER_SIZE,
    Closing,
    Frame,
    Kind,
    Opening,
    pack,
    pack_end,
    pack_header,
    pack_open,
    route_facts,
    scan,
    unpack_end,
    unpack_open,
)
from llm_proxy.journal.reader import Position, Reader, position_of
from llm_proxy.journal.ring import Ring
from llm_proxy.journal.writer import Journal, JournalBusy, recover, writer_lock

RUN = b"r" * 16


def drain(ring: Ring) -> list[Frame]:
    frames: list[Frame] = []
    while ring.drain(lambda block, place: frames.extend(scan(bytes(block)))):
        pass
    return frames


@settings(max_examples=300, deadline=None)
@given(
    st.integers(200, 1000),
    st.lists(st.one_of(st.integers(0, 300), st.just(-1)), max_size=80),
)
def test_the_ring_gives_back_what_was_put_in(
    tmp_path_factory: pytest.TempPathFactory, size: int, steps: list[int]
) -> None:
    """Against a plain list, through any number of wraps; what does not fit is refused whole."""
    ring = Ring.create(tmp_path_factory.mktemp("ring") / "ring", size, RUN)
    put: list[tuple[int, bytes]] = []
    got: list[tuple[int, bytes]] = []
    for number, step in enumerate(steps):
        if step < 0:
            got += [(frame.serial, frame.payload) for frame in drain(ring)]
            assert ring.backlog == 0
        elif ring.put(pack_header(Kind.REQUEST, 0, number, 7, step), bytes([number % 256]) * step):
            put.append((number, bytes([number % 256]) * step))
        else:
            assert ring.backlog + 2 * (step + HEADER_SIZE) > size
    got += [(frame.serial, frame.payload) for frame in drain(ring)]
    assert got == put
    ring.close()


def test_a_ring_is_readable_by_the_next_process(tmp_path: Path) -> None:
    """Offsets live in the file, so what was not drained is found after a wrap too."""
    ring = Ring.create(tmp_path / "ring", 1000, RUN)
    for number in range(40):
        assert ring.put(pack(Kind.REQUEST, 0, number, 0, b"x" * 90))
        if number < 38:
            drain(ring)
    ring.close()
    again = Ring.attach(tmp_path / "ring")
    assert [frame.serial for frame in drain(again)] == [38, 39]
    assert (tmp_path / "ring").stat().st_mode & 0o777 == 0o600
    again.close()


def test_payloads_survive_packing() -> None:
    """OPEN and END come back as they were, odd text included."""
    payload = pack_open(b"i" * 16, 5, route_facts("openai", "https", "h:1", "bare path"), b"GET / HTTP/1.1\r\n\r\n")
    opening = unpack_open(payload)
    assert isinstance(opening, Opening) and opening.route == ("openai", "https", "h:1", "bare path")
    assert opening.exchange_id.bytes == b"i" * 16 and opening.head == b"GET / HTTP/1.1\r\n\r\n"
    for closing in (
        Closing(2, 3, 502, 10, 20, 30, 40, "kaputt: é\ud800"),
        Closing(0, 0, 0, 1, 2, 3, 4, "", b"a" * 32, b"b" * 32),
        Closing(0, 0, 0, 1, 2, 3, 4, "", b"", b"b" * 32),
        Closing(0, 0, 0, 1, 2, 3, 4, "", b"", b"", 77),
        Closing(0, 0, 0, 1, 2, 3, 4, "why", b"a" * 32, b"b" * 32, 1 << 62),
    ):
        back = unpack_end(pack_end(closing))
        assert (back.ending, back.connected_at, back.response_sha256, back.wall_ns) == (
            closing.ending,
            closing.connected_at,
            closing.response_sha256,
            closing.wall_ns,
        )


def put(journal: Journal, serial: int, payload: bytes = b"x") -> None:
    assert journal.ring.put(pack(Kind.REQUEST, 0, serial, serial, payload))
    journal.wake()


def serials(folder: Path, start: Position | None = None) -> list[int]:
    reader = Reader(folder, start)
    found: list[int] = []
    while batch := reader.read():
        found += [frame.serial for frame in batch.frames]
    reader.close()
    return found


def block_headers(folder: Path) -> int:
    """Bytes of all block headers."""
    count = 0
    for number in segments.numbers(folder):
        with segments.path_of(folder, number).open("rb") as file:
            count += len(list(segments.blocks(file.fileno(), os.fstat(file.fileno()).st_size)))
    return count * segments.BLOCK_HEADER.size


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """Two daemons never share a journal."""
    journal = Journal.open(tmp_path / "j", ring_size=1 << 20, cap=1 << 30)
    with pytest.raises(JournalBusy):
        Journal.open(tmp_path / "j", ring_size=1 << 20, cap=1 << 30)
    journal.close()
    with writer_lock(tmp_path / "j"):
        pass


def test_a_reader_starts_at_any_frame(tmp_path: Path) -> None:
    """A remembered position gives exactly the frames from there on, wherever the blocks were cut."""
    folder = tmp_path / "j"
    for run in range(2):
        journal = Journal.open(folder, ring_size=1 << 16, cap=1 << 30)
        for serial in range(20):
            put(journal, run * 100 + serial)
        journal.close()
    expected = [*range(20), *range(100, 120)]
    assert serials(folder) == expected
    reader = Reader(folder)
    runs, frames = [], []
    while batch := reader.read(1):
        runs.append(batch.run)
        frames += batch.frames
    assert len(set(runs)) == 2
    for index, frame in enumerate(frames):
        assert serials(folder, position_of(frame)) == expected[index:]
    assert serials(folder, reader.position) == []
    assert reader.lag() == 0 and Reader(folder).lag() == 40 * (HEADER_SIZE + 1) + block_headers(folder)
    assert reader.fetch(frames[3].segment, frames[3].offset, 1) == b"x"
    assert reader.forget(position_of(frames[25])) == 1 and serials(folder) == expected[20:]


def test_a_block_that_stands_twice_is_given_once(tmp_path: Path) -> None:
    """Killed after the write and before the release: recovery writes the block again, longer perhaps."""
    folder = tmp_path / "j"
    ring = Ring.create(tmp_path / "ring", 1 << 16, RUN)
    folder.mkdir()
    (folder / "ring").write_text(str(tmp_path / "ring"))
    for serial in range(3):
        ring.put(pack(Kind.REQUEST, 0, serial, 0, b"x" * serial))
    segment = segments.SegmentWriter(folder, segments.SegmentHead(RUN, 1, 0, 0))

    def keep_and_die(block: memoryview, place: int) -> None:
        segment.append(block, place)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        ring.drain(keep_and_die)
    ring.put(pack(Kind.REQUEST, 0, 3, 0, b"late"))
    with writer_lock(folder):
        assert recover(folder) > 0
        assert recover(folder) == 0
    assert segments.numbers(folder) == [1, 2]
    assert serials(folder) == [0, 1, 2, 3]


def test_damage_costs_its_block_only(tmp_path: Path) -> None:
    """A flipped bit and a torn tail are counted and passed over."""
    folder = tmp_path / "j"
    folder.mkdir()
    for number in (1, 2):
        writer = segments.SegmentWriter(folder, segments.SegmentHead(RUN, number, 0, 0))
        ring = Ring.create(tmp_path / f"ring{number}", 1 << 16, RUN)
        for serial in range(3):
            ring.put(pack(Kind.REQUEST, 0, number * 10 + serial, 0, b"x"))
            ring.drain(lambda block, place: writer.append(block, (number - 1) * 75 + place))  # noqa: B023
        writer.close()
    path = segments.path_of(folder, 1)
    data = bytearray(path.read_bytes())
    data[segments.SEGMENT_HEADER.size + segments.BLOCK_HEADER.size + 24] ^= 1
    path.write_bytes(data[:-5])
    reader = Reader(folder)
    found = []
    while batch := reader.read():
        found += [frame.serial for frame in batch.frames]
    assert found == [11, 20, 21, 22] and reader.damaged == 2


def until(journal: Journal, true: Callable[[], bool]) -> None:
    """The drain thread has no event to wait for: ring its bell until it has got there."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        journal.wake()
        time.sleep(0.005)


WRITER = """
import os
import sys
from pathlib import Path
from llm_proxy.journal.frames import Kind, pack
from llm_proxy.journal.writer import Journal
journal = Journal.open(Path(sys.argv[1]), ring_size=1 << 20, cap=1 << 30)
serial = 0
while True:
    while not journal.ring.put(pack(Kind.RESPONSE, 0, serial, 0, b"x" * (serial % 3000))):
        journal.wake()
    if journal.asleep:
        journal.wake()
    os.write(1, serial.to_bytes(8, "little"))
    serial += 1
"""


@pytest.mark.parametrize("attempt", range(8))
def test_sigkill_loses_nothing_that_was_put(tmp_path: Path, attempt: int) -> None:
    """A writer is killed at a random moment under load; every frame it had told us of is read back, once, in order."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / "j"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = process.stdout.read(8 * (400 + 1237 * attempt))
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read()
    process.wait()
    process.stdout.close()
    last = int.from_bytes(told[len(told) // 8 * 8 - 8 : len(told) // 8 * 8], "little")
    with writer_lock(tmp_path / "j"):
        recover(tmp_path / "j")
    found = serials(tmp_path / "j")
    assert found == list(range(len(found))) and found[-1] >= last


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_stops_recording_and_nothing_else(tmp_path: Path) -> None:
    """No room: put refuses without waiting and the state says why. Room again: recording resumes, in order."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    try:
        ballast = folder / "ballast"
        journal = Journal.open(folder / "j", ring_size=1 << 20, cap=1 << 30)
        ballast.write_bytes(b"x" * 150_000)
        accepted = []
        for serial in range(20):
            if journal.ring.put(pack(Kind.RESPONSE, 0, serial, 0, b"x" * 40_000)):
                accepted.append(serial)
            journal.wake()
        until(journal, lambda: journal.state().recording == "stopped")
        assert "No space left" in journal.state().reason
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        until(journal, lambda: journal.state().recording == "ok")
        journal.close()
        assert len(accepted) > 5 and serials(folder / "j") == accepted
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_cap_stops_bodies_until_the_keeper_has_caught_up(tmp_path: Path) -> None:
    """A journal that nobody reads must not eat the disk."""
    folder = tmp_path / "j"
    journal = Journal.open(folder, ring_size=1 << 20, cap=200_000)
    for serial in range(10):
        put(journal, serial, b"x" * 50_000)
    until(journal, lambda: not journal.bodies)
    assert journal.state().recording == "degraded" and "200000" in journal.state().reason
    journal.close()


def test_a_ring_that_cannot_be_read_just_now_is_not_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors at start-up: the start fails and is tried again, what the dead writer left is not replaced."""
    folder = tmp_path / "j"
    folder.mkdir()
    ring = Ring.create(tmp_path / "ring", 1 << 16, RUN)
    ring.put(pack(Kind.REQUEST, 0, 7, 0, b"x"))
    ring.close()
    (folder / "ring").write_text(str(tmp_path / "ring"))

    def no_descriptors(path: Path) -> Ring:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Ring, "attach", no_descriptors)
        with pytest.raises(OSError, match="Too many"):
            Journal.open(folder, ring_size=1 << 16, cap=1 << 30)
    Journal.open(folder, ring_size=1 << 16, cap=1 << 30).close()
    assert serials(folder) == [7]


def test_a_refusing_disk_gathers_no_empty_segments(tmp_path: Path) -> None:
    """A file that takes its header and no block is left behind without a trace."""
    folder = tmp_path / "j"
    journal = Journal.open(folder, ring_size=1 << 20, cap=1 << 30)
    for _ in range(5):
        journal._next_segment()
    assert len(segments.numbers(folder)) == 1
    put(journal, 1)
    journal.close()
    assert serials(folder) == [1]
