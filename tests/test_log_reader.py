"""Session files read back: plain and compressed, whole and damaged."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.sinks import log_reader, session_jsonl

LINES = [session_jsonl.line({"type": "request", "seq": number, "body": "x" * number * 1000}) for number in range(1, 30)]


def _packed(data: bytes, **options) -> bytes:
    zstd = log_reader.zstandard()
    return zstd.compress(data, **options)


@pytest.fixture(params=["plain", "compressed", "two frames"])
def path(request, tmp_path):
    """The lines above, in each way in which they may lie there."""
    data = b"".join(LINES)
    match request.param:
        case "plain":
            path, content = tmp_path / "a.jsonl", data
        case "compressed":
            path, content = tmp_path / "a.jsonl.zst", _packed(data)
        case _:
            path, content = tmp_path / "a.jsonl.zst", _packed(data[:5000]) + _packed(data[5000:])
    path.write_bytes(content)
    return path


def test_entries_stand_where_they_say(path):
    """Offset and length of each entry lead back to it, compressed or not."""
    found = list(log_reader.entries(path))
    assert [entry["seq"] for _, _, entry in found] == list(range(1, 30))
    offset = 0
    for (at, length, entry), line in zip(found, LINES, strict=True):
        assert (at, length) == (offset, len(line))
        offset += length
        if entry["seq"] % 7 == 0:
            assert log_reader.entry_at(path, at, length) == entry
            assert log_reader.data_at(path, at, length) == line


def test_reading_goes_on_where_it_stopped(path):
    """From any entry's offset on, the rest comes."""
    places = [at for at, _, _ in log_reader.entries(path)]
    assert [entry["seq"] for _, _, entry in log_reader.entries(path, places[20])] == list(range(21, 30))


def test_a_file_that_was_compressed_meanwhile_is_found(tmp_path):
    """Who has learnt its name before need not know."""
    (tmp_path / "a.jsonl.zst").write_bytes(_packed(LINES[0] + LINES[1]))
    assert log_reader.entry_at(tmp_path / "a.jsonl", len(LINES[0]), len(LINES[1]))["seq"] == 2
    with pytest.raises(FileNotFoundError):
        log_reader.entry_at(tmp_path / "b.jsonl", 0, 10)


def test_odd_lines_are_told_and_passed_over(tmp_path):
    """Only whole lines are told: what stands behind the last line's end may be still being written."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\n  \n{"a":1}\nnonsense\n[]\n\xff\n{"b":"\\ud800"}\n{"c":NaN}\n' + b"[" * 100_000 + b'\n{"d":4}\n{"e"'
    )
    told = []
    found = list(log_reader.entries(path, skipped=lambda offset, length: told.append((offset, length))))
    assert [list(entry) for _, _, entry in found] == [["a"], ["b"], ["c"], ["d"]]
    assert [log_reader.data_at(path, *place)[:8] for place in told] == [b"nonsense", b"[]\n", b"\xff\n", b"[" * 8]
    path.write_bytes(b'{"a":1}\n{"b":2}')
    assert [at for at, _, _ in log_reader.entries(path)] == [0, 8]


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(tmp_path_factory, data):
    """Nothing that stands in a file raises anything but OSError."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    for at, length, entry in log_reader.entries(path, skipped=lambda *place: None):
        assert isinstance(entry, dict) and data[at : at + length]
    path = path.with_suffix(".jsonl.zst")
    path.write_bytes(data)
    try:
        list(log_reader.entries(path))
    except OSError:
        pass


def test_a_damaged_file_raises_what_unreadable_files_raise(tmp_path):
    """What stands before the damage has been read by then."""
    path = tmp_path / "a.jsonl.zst"
    data = _packed(b"".join(LINES) + os.urandom(3 << 20))
    path.write_bytes(data[: len(data) // 2])
    found = []
    with pytest.raises(OSError, match=r"a\.jsonl\.zst"):
        for _, _, entry in log_reader.entries(path):
            found.append(entry["seq"])
    assert found == list(range(1, 30))


def test_a_frame_that_asks_for_too_much_memory_is_refused(tmp_path):
    """A few bytes may claim a window of gigabytes."""
    zstd = log_reader.zstandard()
    name = zstd.CompressionParameter
    packer = zstd.ZstdCompressor(options={name.window_log: 30})
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(LINES[0]) + packer.flush())
    with pytest.raises(OSError, match=r"a\.jsonl\.zst"):
        list(log_reader.entries(tmp_path / "a.jsonl.zst"))


def test_files_come_in_the_order_of_their_sessions(tmp_path):
    """All session files and nothing else: no links, no drafts, nothing above or below where they belong."""
    wanted = [
        "a.host/x.jsonl",
        "a.host/2026-01-01/a.jsonl.zst",
        "a.host/2026-01-01/a.jsonl",
        "a.host/2026-01-01/b.jsonl",
        "a.host/2026-01-02/a.jsonl",
        "b.host/2026-01-01/c.jsonl",
    ]
    other = ["recording-gaps.jsonl", "a.host/2026-01-01/.new-b.jsonl.zst", "a.host/n.txt", "a.host/d/e/f.jsonl"]
    for file in wanted + other:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps({}))
    (tmp_path / "c.host").symlink_to(tmp_path / "b.host")
    (tmp_path / "b.host/2026-01-01/d.jsonl").symlink_to(tmp_path / "b.host/2026-01-01/c.jsonl")
    (tmp_path / "b.host/2026-01-01/e.jsonl").mkdir()
    assert list(log_reader.files(tmp_path)) == wanted == sorted(wanted, key=log_reader.order)
    assert list(log_reader.files(tmp_path / "missing")) == []
    with pytest.raises(OSError, match=r"symbolic|Too many"):
        list(log_reader.entries(tmp_path / "b.host/2026-01-01/d.jsonl"))
