"""Session logs hold what crossed the wire, one line per entry, and nothing can break a line or leave the folder."""

from __future__ import annotations

import base64
import gzip
import json
import os
import resource
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.records.exchange import Body, Ending, Exchange
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.log_files import LogFile, Logs
from llm_proxy.sinks.session_jsonl import entries, folder_name, line

MS = 1_000_000
OPENED = 1_763_700_000_250_000_000
ID = UUID("019aa000-0000-7000-8000-000000000001")

PLAIN = Exchange(
    id=ID,
    provider="anthropic",
    scheme="https",
    upstream="api.anthropic.com",
    why="bare path",
    opened=OPENED,
    method="POST",
    target="/v1/messages",
    request_headers=(("host", "api.anthropic.com"), ("x-api-key", "sk-ant-...mnop"), ("Content-Length", "7")),
    request=Body(((0, b'{"m":1}'),), 7),
    status=200,
    reason="OK",
    response_headers=(("content-type", "application/json"),),
    response=Body(((350 * MS, b'{"ok":'), (400 * MS, b"true}")), 11),
    trailers=(),
    interim=(),
    first_byte=300 * MS,
    ended=453_999_999,
    ending=Ending.COMPLETE,
    error="",
    answered=0,
    websocket=False,
    retried=False,
    ended_by_close=False,
    extra_bytes=False,
)


def stream(*pieces: tuple[int, bytes], coding: str = "", **other: Any) -> Exchange:
    headers = [("Content-Type", "Text/Event-Stream; charset=utf-8")]
    if coding:
        headers.append(("Content-Encoding", coding))
    body = Body(tuple((at * MS, data) for at, data in pieces), sum(len(data) for _, data in pieces))
    return replace(PLAIN, response_headers=tuple(headers), response=body, **other)


def request_of(exchange: Exchange) -> dict[str, Any]:
    return entries(exchange, "s", 1, "me@here")[0]


def response_of(exchange: Exchange) -> dict[str, Any]:
    return entries(exchange, "s", 1, "me@here")[1]


@pytest.fixture(autouse=True)
def utc_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    zone()
    yield
    monkeypatch.undo()
    zone()


def zone() -> None:
    import time

    time.tzset()
    session_jsonl._local_second.cache_clear()


# --- the format ----------------------------------------------------------------------------------------------------


def test_entries_are_as_the_format_says() -> None:
    """Keys sorted, names canonical, Host left out, times in UTC without trailing zeros."""
    request, response = entries(PLAIN, "20251121-044000-0123abcd", 3, "me@here")
    assert line(request) == (
        b'{"_meta":{"host":"api.anthropic.com","machine":"me@here","request_id":"019aa000-0000-7000-8000-000000000001",'
        b'"session":"20251121-044000-0123abcd","ts":"2025-11-21T04:40:00.25Z"},"body":"{\\"m\\":1}",'
        b'"headers":{"Content-Length":["7"],"X-Api-Key":["sk-ant-...mnop"]},"method":"POST","path":"/v1/messages",'
        b'"seq":3,"size":7,"type":"request"}\n'
    )
    assert line(response) == (
        b'{"_meta":{"host":"api.anthropic.com","machine":"me@here","request_id":"019aa000-0000-7000-8000-000000000001",'
        b'"session":"20251121-044000-0123abcd","ts":"2025-11-21T04:40:00.703999999Z"},"body":"{\\"ok\\":true}",'
        b'"ending":"complete","headers":{"Content-Type":["application/json"]},"reason":"OK","seq":3,"size":11,'
        b'"status":200,"timing":{"ttfb_ms":300,"total_ms":453},"type":"response"}\n'
    )
    start = session_jsonl.session_start(PLAIN, "s", "me@here", {"parent_seq": 2, "client_session": "c1", "agent": ""})
    assert line(start) == (
        b'{"_meta":{"host":"api.anthropic.com","machine":"me@here","session":"s","ts":"2025-11-21T04:40:00.25Z"},'
        b'"client_session":"c1","parent_seq":2,"provider":"anthropic",'
        b'"type":"session_start","upstream":"api.anthropic.com"}\n'
    )
    assert line(session_jsonl.fork_entry(PLAIN, "s", "me@here", "p", 2)) == (
        b'{"_meta":{"host":"api.anthropic.com","machine":"me@here","session":"s","ts":"2025-11-21T04:40:00.25Z"},'
        b'"from_seq":2,"parent_session":"p","reason":"message_history_diverged","type":"fork"}\n'
    )


def test_headers_keep_order_and_text() -> None:
    """Values of one name stay in order; UTF-8 is read as such, other bytes as latin-1."""
    fields = (("x-b", "2"), ("X-A", "é".encode().decode("latin-1")), ("X-B", "1"), ("x-a", "\xe9"), ("ETag", "x"))
    assert session_jsonl.header_map(fields) == {"Etag": ["x"], "X-A": ["é", "\xe9"], "X-B": ["2", "1"]}


def test_what_was_not_there_is_null_or_absent() -> None:
    """A call that reached nobody has both entries, with its ending and reason."""
    failed = replace(
        PLAIN,
        status=None,
        reason="",
        response_headers=(),
        response=Body(),
        first_byte=0,
        ending=Ending.UPSTREAM_FAILED,
        error="connection refused",
        answered=502,
    )
    entry = response_of(failed)
    assert (entry["status"], entry["headers"], entry["body"], entry["size"]) == (None, None, "", 0)
    assert (entry["ending"], entry["error"], entry["answered"]) == ("upstream_failed", "connection refused", 502)
    assert not {"chunks", "reason", "retried", "trailers", "interim", "wire_ending"} & set(entry)


def test_extras_are_told_when_there_are_any() -> None:
    """Trailers, interim answers, a retry, a body that was cut."""
    entry = response_of(
        replace(
            PLAIN,
            trailers=(("x-sum", "1"),),
            interim=(103,),
            retried=True,
            ended_by_close=True,
            extra_bytes=True,
            response=Body(((1, b"half"),), 8, "limit", "ab" * 32),
        )
    )
    assert entry["trailers"] == {"X-Sum": ["1"]} and entry["interim"] == [103]
    assert entry["retried"] is entry["ended_by_close"] is entry["extra_bytes"] is True
    assert (entry["body"], entry["size"], entry["truncated"], entry["sha256"]) == ("half", 8, "limit", "ab" * 32)


def test_the_query_is_apart_from_the_path() -> None:
    """Both as they went out, undecoded."""
    entry = request_of(replace(PLAIN, target="/v1/a%2Fb?x=1&y=%20"))
    assert (entry["path"], entry["query"]) == ("/v1/a%2Fb", "x=1&y=%20")
    assert "query" not in request_of(PLAIN)


# --- bodies --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_body_can_be_had_back(data: bytes) -> None:
    """As text where it is UTF-8, else as base64, never with replacement characters."""
    entry = json.loads(line(request_of(replace(PLAIN, request=Body(((0, data),), len(data))))))
    body = entry["body"]
    assert (base64.b64decode(body) if entry.get("body_encoding") == "base64" else body.encode()) == data


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP"])
def test_coded_bodies_are_stored_as_text(coding: str) -> None:
    """Both halves; the size stays that of the wire."""
    text = b'{"text":"' + b"x" * 500 + b'"}'
    data = coded(coding.lower(), text)
    body = Body(((0, data[:5]), (1, data[5:])), len(data))
    fields = (*PLAIN.response_headers, ("Content-Encoding", coding))
    request, response = entries(
        replace(PLAIN, request=body, request_headers=fields, response=body, response_headers=fields), "s", 1, "m"
    )
    for entry in (request, response):
        assert (entry["body"], entry["content_encoding"], entry["size"]) == (text.decode(), coding, len(data))


def coded(coding: str, text: bytes) -> bytes:
    if coding == "gzip":
        return gzip.compress(text)
    if coding == "deflate":
        return zlib.compress(text)
    if coding == "br":
        return bytes(pytest.importorskip("brotli").compress(text))
    try:
        from compression import zstd  # type: ignore[import-not-found]
    except ImportError:
        from backports import zstd
    return bytes(zstd.compress(text))


def test_a_body_that_is_not_in_its_coding_is_kept_raw() -> None:
    """Nothing is lost to a lie in a header."""
    fields = (("Content-Encoding", "gzip"),)
    entry = response_of(replace(PLAIN, response=Body(((0, b"\xffnope"),), 5), response_headers=fields))
    assert base64.b64decode(entry["body"]) == b"\xffnope" and entry["decode_error"]
    assert "content_encoding" not in entry
    entry = response_of(stream((1, b"data: plain\n\n"), coding="x-unknown"))
    assert entry["body"] == "data: plain\n\n" and entry["decode_error"] and "chunks" not in entry


def test_a_coded_body_that_was_cut_is_read_up_to_the_cut() -> None:
    """The client left in the middle of a gzip stream."""
    data = gzip.compress(os.urandom(100).hex().encode() * 20)
    fields = (("Content-Encoding", "gzip"),)
    entry = response_of(replace(PLAIN, response=Body(((0, data[:150]),), 150), response_headers=fields))
    assert entry["content_encoding"] == "gzip" and len(entry["body"]) > 50 and entry["decode_error"]


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_is_told_line_by_line() -> None:
    """Each line with its end as sent and the time its end arrived, counted from the answer's head."""
    entry = response_of(stream((310, b"event: a\r\nda"), (400, "ta: \u2028 é\n\n".encode()), (453, b"data: end")))
    assert "body" not in entry and entry["size"] == 33
    assert [(chunk["raw"], chunk["delta_ms"], chunk["ts"]) for chunk in entry["chunks"]] == [
        ("event: a\r\n", 10, "2025-11-21T04:40:00.56Z"),
        ("data: \u2028 é\n", 100, "2025-11-21T04:40:00.65Z"),
        ("\n", 100, "2025-11-21T04:40:00.65Z"),
        ("data: end", 153, "2025-11-21T04:40:00.703Z"),
    ]
    assert list(entry["chunks"][0]) == ["ts", "delta_ms", "raw"]


def test_lines_of_a_compressed_stream_keep_their_times() -> None:
    """The decoder is fed piece by piece, as the pieces came."""
    packer = zlib.compressobj(wbits=31)
    pieces = []
    for number in range(4):
        data = packer.compress(b"data: %d\n\n" % number) + packer.flush(zlib.Z_SYNC_FLUSH)
        pieces.append((300 + 10 * number, data))
    entry = response_of(stream(*pieces, coding="gzip"))
    lines = [(chunk["raw"], chunk["delta_ms"]) for chunk in entry["chunks"] if chunk["raw"] != "\n"]
    assert lines == [(f"data: {number}\n", 10 * number) for number in range(4)]
    assert entry["content_encoding"] == "gzip"


def test_bytes_that_are_no_text_stay_apart() -> None:
    """One bad line does not spoil the others."""
    entry = response_of(stream((310, b"data: ok\ndata: \xff\n")))
    assert [chunk.get("raw") for chunk in entry["chunks"]] == ["data: ok\n", None]
    assert base64.b64decode(entry["chunks"][1]["base64"]) == b"data: \xff\n"


def test_leaving_after_the_last_event_is_no_loss() -> None:
    """The wire's ending stays beside it; leaving before that event is what it is."""
    end = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    for pieces, coding in ((((310, end),), ""), (((310, gzip.compress(end)),), "gzip")):
        entry = response_of(stream(*pieces, coding=coding, ending=Ending.CLIENT_GONE))
        assert (entry["ending"], entry["wire_ending"]) == ("complete", "client_gone")
    entry = response_of(stream((310, b'data: {"text":"message_stop"}\n\n'), ending=Ending.CLIENT_GONE))
    assert entry["ending"] == "client_gone" and "wire_ending" not in entry


def test_chunk_times_show_the_local_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the format: entries in UTC, chunks in local time; folders and ids too."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    zone()
    entry = response_of(stream((310, b"x\n")))
    assert entry["chunks"][0]["ts"] == "2025-11-21T10:25:00.56+05:45"
    assert entry["_meta"]["ts"].endswith("Z")
    assert session_jsonl.place("h", "id", OPENED + 14 * 3600 * 10**9) == "h/2025-11-22/id.jsonl"


# --- WebSocket -----------------------------------------------------------------------------------------------------


def ws_frame(opcode: int, payload: bytes, masked: bool) -> bytes:
    head = bytes([0x80 | opcode, (0x80 if masked else 0) | len(payload)])
    if not masked:
        return head + payload
    key = b"abcd"
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def websocket(**other: Any) -> Exchange:
    ours = ((110 * MS, ws_frame(1, b'{"type":"response.create"}', True)), (200 * MS, ws_frame(8, b"\x03\xe8ok", True)))
    theirs = (
        (120 * MS, ws_frame(2, b"\xff\x00", False)),
        (130 * MS, ws_frame(1, b'{"type":"response.completed"}', False)),
    )
    return replace(
        PLAIN,
        method="GET",
        target="/v1/responses",
        provider="openai",
        status=101,
        websocket=True,
        first_byte=100 * MS,
        request=Body(ours, sum(len(data) for _, data in ours)),
        response=Body(theirs, sum(len(data) for _, data in theirs)),
        **other,
    )


def test_a_websocket_is_told_message_by_message() -> None:
    """Both directions in one list, in the order they came; the request entry has no body."""
    request, entry = entries(websocket(), "s", 1, "m")
    assert (request["body"], request["size"]) == ("", 0)
    facts = entry["websocket"]
    assert [(one["from"], one["type"], one["delta_ms"], one.get("raw")) for one in facts["messages"]] == [
        ("client", "text", 10, '{"type":"response.create"}'),
        ("server", "binary", 20, None),
        ("server", "text", 30, '{"type":"response.completed"}'),
        ("client", "close", 100, "ok"),
    ]
    assert base64.b64decode(facts["messages"][1]["base64"]) == b"\xff\x00"
    assert facts["messages"][3]["code"] == 1000
    assert facts["client_size"] == 32 + 10 and facts["server_size"] == entry["size"]
    assert not {"body", "chunks"} & set(entry)


def test_a_websocket_that_breaks_off_or_lies() -> None:
    """What came of an unfinished message is there; bytes that are no messages are kept as they are."""
    theirs = b"\x01\x05hello"
    ours = b"\xff" * 20
    broken = replace(
        websocket(ending=Ending.INTERRUPTED), request=Body(((0, ours),), 20), response=Body(((0, theirs),), 7)
    )
    facts = response_of(broken)["websocket"]
    (message,) = facts["messages"]
    assert (message["raw"], message["truncated"], message["size"]) == ("hello", True, 5)
    assert facts["client_error"] and base64.b64decode(facts["client_raw"]) == ours
    assert "server_raw" not in facts


def test_a_websocket_left_after_its_last_event_is_complete() -> None:
    """As with a stream."""
    _, entry = entries(websocket(ending=Ending.CLIENT_GONE), "s", 1, "m")
    assert (entry["ending"], entry["wire_ending"]) == ("complete", "client_gone")


# --- lines ---------------------------------------------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_a_line_is_one_line_whatever_it_holds(text: str) -> None:
    """No control, no separator, no surrogate breaks it; everything else comes back as it was."""
    data = line({"body": text, "list": [{"raw": text}]})
    assert data.endswith(b"\n") and data.count(b"\n") == 1
    decoded = data.decode()
    assert len(decoded.splitlines()) == 1
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in decoded[:-1])
    well_formed = text.encode("utf-8", "backslashreplace").decode()
    assert json.loads(data)["body"] == well_formed


def test_text_stays_readable() -> None:
    """Only what could break a line is escaped."""
    data = line({"a": "é漢🙂<&>\x85\u2029\x7f"})
    assert data == '{"a":"é漢🙂<&>\\u0085\\u2029\\u007f"}\n'.encode()


# --- places and files ----------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(st.text(st.characters(), max_size=40))
def test_a_folder_name_is_a_name(upstream: str) -> None:
    """Never a path, never hidden, never special."""
    name = folder_name(upstream)
    assert "/" not in name and "\0" not in name and not name.startswith((".", "-")) and len(name) < 256
    assert name.isascii() and name.isprintable()
    assert name == upstream or name.startswith("_invalid-")


def test_ordinary_upstreams_keep_their_names() -> None:
    """They are what people look for."""
    for upstream in (
        "api.openai.com",
        "127.0.0.1:41373",
        "localhost:1",
        "[::1]:8080",
        "[fe80::1]",
        "xn--bcher-kva.example",
    ):
        assert folder_name(upstream) == upstream


def test_a_write_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """The kernel takes half a line and refuses the rest: the half is taken back."""
    file = Logs(tmp_path).file("h/d/f.jsonl")
    file.append(b"first\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(b"x" * 2000 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.path.read_bytes() == b"first\n"
    file.append(b"second\n")
    assert file.path.read_bytes() == b"first\nsecond\n" and file.in_place()


def test_entries_found_behind_a_crash(tmp_path: Path) -> None:
    """Whole lines are known by id and half; the torn last one is cut; foreign lines are passed over."""
    logs = Logs(tmp_path)
    file = logs.file("f.jsonl")
    request, response = entries(PLAIN, "s", 7, "m")
    file.append(b"settled\n" + line(request) + b"not json\n[1]\n{}\n" + line(response) + line(request)[:-20])
    whole = file.size - len(line(request)) + 20
    found = list(file.known_after(8))
    assert [one[:3] for one in found] == [(ID, "request", 7), (ID, "response", 7)]
    data = file.path.read_bytes()
    assert [data[one.offset : one.offset + one.length] for one in found] == [line(request), line(response)]
    assert file.size == whole == file.path.stat().st_size
    logs.close()


@pytest.mark.parametrize("name", ["h", "h/d", "h/d/f.jsonl"])
def test_links_and_pipes_are_refused(tmp_path: Path, name: str) -> None:
    """Nothing is written through what somebody has planted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    planted = tmp_path / "logs" / name
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside)
    with pytest.raises(OSError):
        Logs(tmp_path / "logs").file("h/d/f.jsonl")
    planted.unlink()
    os.mkfifo(planted)
    with pytest.raises(OSError):
        Logs(tmp_path / "logs").file("h/d/f.jsonl")
    assert list(outside.iterdir()) == []


def test_few_files_stay_open(tmp_path: Path) -> None:
    """Thousands of sessions do not cost thousands of descriptors, and closed ones are synced too."""
    logs = Logs(tmp_path, keep_open=5)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for number in range(40):
        logs.file(f"h/d/{number}.jsonl").append(b"x\n")
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 5
    logs.sync()
    logs.close()
    assert sum(path.read_bytes() == b"x\n" for path in tmp_path.rglob("*.jsonl")) == 40


def test_a_file_that_was_moved_is_not_written_to(tmp_path: Path) -> None:
    """Rotation by rename, deletion, truncation: the path is what counts."""
    logs = Logs(tmp_path)
    first = logs.file("f.jsonl")
    first.append(b"one\n")
    assert logs.file("f.jsonl") is first
    first.path.rename(tmp_path / "old")
    second = logs.file("f.jsonl")
    assert isinstance(second, LogFile) and second is not first and second.size == 0
    second.append(b"two\n")
    os.truncate(second.path, 0)
    assert logs.file("f.jsonl").size == 0
    assert (tmp_path / "old").read_bytes() == b"one\n"
    logs.close()


# --- the page ------------------------------------------------------------------------------------------------------


def test_every_field_is_on_the_page() -> None:
    """docs/log-format.md lists all that is ever written."""
    page = (Path(__file__).parent.parent / "docs" / "log-format.md").read_text()
    seen: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                seen.add(name)
                if name not in ("headers", "trailers"):
                    collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    odd = replace(
        stream((310, b"\xff\n"), coding="gzip"),
        trailers=(("a", "b"),),
        interim=(103,),
        retried=True,
        ended_by_close=True,
        extra_bytes=True,
        error="x",
        answered=502,
        target="/?q",
        request=Body(((0, b"\xff"),), 9, "limit", "ab"),
    )
    left = stream((310, b'data: {"type":"message_stop"}\n\n'), (311, b"\xff\n"), ending=Ending.CLIENT_GONE)
    for exchange in (PLAIN, odd, left, websocket()):
        for entry in entries(exchange, "s", 1, "m"):
            collect(entry)
    collect(session_jsonl.session_start(PLAIN, "s", "m", {"client_session": "c"}))
    assert {"wire_ending", "body_encoding", "base64", "messages", "client_session", "decode_error"} <= seen
    assert {name for name in seen if f"`{name}`" not in page} == set()
