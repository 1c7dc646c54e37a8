"""A call's events and where its time went: every API's streams, runs and silences, lanes and what is drawn shortened."""

import base64
import json

import pytest

from llm_proxy.explorer.events import assembled, events_of, rows, silences
from llm_proxy.explorer.waterfall import waterfall


def sse(*events, ttfb=1000, **more):
    """A response whose events are (milliseconds after the head, name, data)."""
    chunks = []
    for ms, name, data in events:
        told = data if isinstance(data, str) else json.dumps(data)
        text = (f"event: {name}\n" if name else "") + f"data: {told}\n\n"
        chunks += [{"ts": str(ms), "delta_ms": ms, "raw": line} for line in text.splitlines(keepends=True)]
    timing = {"ttfb_ms": ttfb, "total_ms": ttfb + (events[-1][0] if events else 0), "request_ms": 4}
    return {"status": 200, "timing": timing, "chunks": chunks, "size": 9, "connection": "reused"} | more


def delta(text, index=0, kind="text_delta", field="text"):
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: text}}


def claude(*pauses):
    """A thought, then a tool call, with these pauses before each event."""
    told = [
        (
            "message_start",
            {"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 3}}},
        ),
        ("content_block_start", {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}}),
        ("content_block_delta", delta("Hm, ", 0, "thinking_delta", "thinking")),
        ("content_block_delta", delta("so.", 0, "thinking_delta", "thinking")),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        (
            "content_block_start",
            {
                "type": "content_block_start",
                "index": 1,
                "content_block": {"type": "tool_use", "name": "Edit", "input": {}},
            },
        ),
        ("content_block_delta", delta('{"a":', 1, "input_json_delta", "partial_json")),
        ("content_block_delta", delta("1}", 1, "input_json_delta", "partial_json")),
        ("content_block_stop", {"type": "content_block_stop", "index": 1}),
        (
            "message_delta",
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        ),
        ("message_stop", {"type": "message_stop"}),
    ]
    at, events = 0, []
    for number, (name, data) in enumerate(told):
        at += pauses[number] if number < len(pauses) else 10
        events.append((at, name, data))
    return sse(*events)


def test_events_have_numbers_times_sizes_and_what_they_carry():
    """Times count from the request's arrival, sizes are the bytes of all lines of an event."""
    response = claude()
    found = events_of(response)
    assert [event.number for event in found] == list(range(1, 12))
    assert found[0].at_ms == 1010
    assert found[2].delta.text == "Hm, "
    assert sum(event.octets for event in found) == sum(len(chunk["raw"]) for chunk in response["chunks"])


def test_deltas_of_one_kind_are_one_row_with_their_text_joined():
    """And `every` undoes it."""
    found = list(rows(events_of(claude())))
    run = [row for row in found if row.count > 1]
    assert [(row.first, row.last, row.kind, row.data) for row in run] == [
        (3, 4, "thinking_delta", "Hm, so."),
        (7, 8, "input_json_delta", '{"a":1}'),
    ]
    assert run[0].delta_ms is None
    assert found[1].delta_ms == 10
    assert len(list(rows(events_of(claude()), every=True))) == 11


def test_silences_are_rows_of_their_own_and_part_runs():
    """Longer than 250 ms, wherever they fall."""
    found = list(rows(events_of(claude(0, 250, 10, 251))))
    quiet = [row for row in found if row.silence]
    assert [(row.at_ms, row.until_ms, row.delta_ms, row.first) for row in quiet] == [(1260, 1511, 251, None)]
    assert not any(row.kind == "thinking_delta" and row.count > 1 for row in found)
    assert silences(events_of(claude(0, 250, 10, 251)), 250) == [(1260, 1511)]


STREAMS = {
    "chat": (
        [{"choices": [{"index": 0, "delta": {"content": one}}]} for one in ("Hel", "lo")],
        ("text", "content", "Hello"),
    ),
    "chat reasoning": (
        [{"choices": [{"delta": {"reasoning_content": one}}]} for one in ("a", "b")],
        ("thinking", "reasoning_content", "ab"),
    ),
    "chat tools": (
        [
            {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": one}}]}}]}
            for one in ("{", "}")
        ],
        ("tool", "tool_calls", "{}"),
    ),
    "responses": (
        [{"type": "response.output_text.delta", "output_index": 1, "delta": one} for one in ("x", "y")],
        ("text", "output_text", "xy"),
    ),
    "gemini": (
        [{"candidates": [{"content": {"parts": [{"text": one}]}}]} for one in ("1", "2")],
        ("text", "text", "12"),
    ),
    "converse": (
        [{"contentBlockIndex": 0, "delta": {"text": one}} for one in ("p", "q")],
        ("text", "text", "pq"),
    ),
    "anthropic in frames": ([delta("u"), delta("v")], ("text", "text_delta", "uv")),
}


@pytest.mark.parametrize("name", STREAMS)
def test_runs_of_every_api(name):
    """One line, whoever streams."""
    datas, (block, kind, text) = STREAMS[name]
    events = events_of(sse(*((n * 10, "", data) for n, data in enumerate(datas))))
    (row,) = rows(events)
    assert (events[0].delta.block, row.kind, row.data, row.count) == (block, kind, text, 2)


def test_lines_of_json_have_no_times():
    """The log does not tell when each line of such a body came."""
    lines = [{"message": {"content": one}, "done": False} for one in ("Y", "es")] + [{"done": True}]
    response = {
        "headers": {"Content-Type": ["application/x-ndjson"]},
        "body": "".join(json.dumps(one) + "\n" for one in lines),
        "timing": {"ttfb_ms": 5, "total_ms": 9},
        "status": 200,
    }
    found = list(rows(events_of(response)))
    assert [(row.count, row.data[:3], row.at_ms) for row in found] == [(2, "Yes", None), (1, '{"d', None)]


def test_messages_of_a_websocket_have_a_side():
    """Both directions, with what a close says."""
    messages = [
        {"ts": "1", "delta_ms": 1, "from": "client", "type": "text", "raw": '{"type":"response.create"}'},
        {"ts": "2", "delta_ms": 40, "from": "server", "type": "binary", "base64": base64.b64encode(b"\xff").decode()},
        {"ts": "3", "delta_ms": 50, "from": "server", "type": "close", "code": 1000, "raw": "done"},
    ]
    found = events_of({"status": 101, "timing": {"ttfb_ms": 3}, "websocket": {"messages": messages}})
    assert [(one.side, one.event, one.at_ms) for one in found] == [
        ("client", "response.create", 4),
        ("server", "binary", 43),
        ("server", "close", 53),
    ]
    assert found[2].data == "1000 done"


def test_broken_frames_and_unfinished_events_are_told():
    """Nothing that came is left out."""
    chunks = [
        {"ts": "1", "delta_ms": 1, "frame": base64.b64encode(b"12345").decode()},
        {"ts": "2", "delta_ms": 2, "raw": "event: ping\n"},
        {"ts": "2", "delta_ms": 2, "raw": "data: {}\n"},
    ]
    found = events_of({"chunks": chunks, "timing": {"ttfb_ms": 0}})
    assert [one.event for one in found] == ["broken frame", "unfinished"]


@pytest.mark.parametrize(
    "response",
    [
        None,
        {},
        {"chunks": None},
        {"chunks": [None, 3, {}, {"raw": 5}, {"delta_ms": "x", "raw": "data: {\n\n"}, {"raw": "data: []\n\n"}]},
        {"chunks": [{"raw": 'data: {"choices":[null],"index":{}}\n\n', "delta_ms": 1e300}]},
        {"chunks": [{"raw": 'data: {"contentBlockIndex":[],"delta":5}\n\n'}], "timing": {"total_ms": "x"}},
        {"websocket": {"messages": [None, {"type": 5, "from": None, "raw": None}]}},
        {"websocket": 5, "timing": {"total_ms": -4}},
        {"timing": {"total_ms": 10**30, "ttfb_ms": -1}, "status": 200},
    ],
)
def test_odd_entries_never_raise(response):
    """Logs are anybody's."""
    found = events_of(response)
    assert list(rows(found)) is not None
    assembled(found)
    made = waterfall(response, response, found)
    assert made is None or made.x(5) >= 0


# --- the waterfall


def test_phases_lanes_and_pieces():
    """Connection, request, waiting, the stream, and a lane for each block."""
    response = claude()
    made = waterfall({"size": 214_000}, response, events_of(response))
    told = {lane.name: lane for lane in made.lanes}
    assert list(told) == ["Connect", "Request arrived", "Waiting for first byte", "Stream", "thinking", "tool_use Edit"]
    assert told["Connect"].note == "reused"
    assert (told["Request arrived"].took_ms, told["Request arrived"].note) == (4, "214 kB")
    assert told["Waiting for first byte"].bars == ((4, 1000),)
    assert made.pieces == 11
    assert len(told["Stream"].ticks) == 11
    assert told["thinking"].note == "7 characters"
    assert told["tool_use Edit"].kind == "tool"
    assert made.longest is None


def test_a_silence_inside_a_block_cuts_its_bar_and_is_named():
    """Over one second."""
    response = claude(*[500] * 7, 2310, *[500] * 3)
    made = waterfall({}, response, events_of(response))
    tool = made.lanes[-1]
    assert made.longest.inside == "tool_use Edit"
    assert (made.longest.length_ms, made.long_silences) == (2310, 1)
    assert len(tool.bars) == 2
    assert tool.bars[1][0] - tool.bars[0][1] == 2310
    assert made.shortened is None


def test_a_silence_over_half_of_all_is_drawn_shorter():
    """Linear elsewhere, and the scale stays in order."""
    response = claude(0, 10, 10, 60_000)
    made = waterfall({}, response, events_of(response))
    cut = made.shortened
    assert cut.length_ms == 60_000
    assert made.x(cut.until_ms) - made.x(cut.from_ms) == pytest.approx(14)
    places = [made.x(ms) for ms in range(0, made.total_ms + 1, 50)]
    assert places == sorted(places)
    assert (made.x(0), made.x(made.total_ms)) == (0, pytest.approx(100))
    assert not any(cut.from_ms < ms < cut.until_ms for _, ms in made.axis)


@pytest.mark.parametrize("total", [0, 1, 7, 212, 999, 1000, 18_420, 3_600_000])
def test_axis_has_a_few_round_times(total):
    """Whatever the length of a call."""
    response = {"status": 200, "timing": {"ttfb_ms": total // 2, "total_ms": total}}
    made = waterfall({"size": 1}, response, [])
    assert 1 <= len(made.axis) <= 8
    assert all(ms <= total for _, ms in made.axis)


def test_no_times_no_waterfall():
    """An open call, or a log that does not say."""
    assert waterfall({}, None, []) is None
    assert waterfall({}, {"status": 200}, []) is None


# --- the answer put together again


def test_the_answer_of_a_stream_is_put_together():
    """As the API gives it without streaming."""
    found = assembled(events_of(claude()))
    assert found["content"] == [
        {"type": "thinking", "thinking": "Hm, so."},
        {"type": "tool_use", "name": "Edit", "input": {"a": 1}},
    ]
    assert found["stop_reason"] == "tool_use"
    assert found["usage"] == {"input_tokens": 3, "output_tokens": 7}
    done = {"type": "response.completed", "response": {"id": "r", "output": []}}
    assert assembled(events_of(sse((0, "", done)))) == {"id": "r", "output": []}
    assert assembled(events_of(sse((0, "", {"choices": []})))) is None
