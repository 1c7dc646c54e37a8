"""Bedrock's calls in the record: frames as events with their times, damage as it came, what they meant and cost."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.dialects import registry
from llm_proxy.dialects.digest import Answer, Asked, Digest, Message, Part, PartKind, Usage
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.keeper.options import Options
from llm_proxy.records import understood
from llm_proxy.records.exchange import Ending
from llm_proxy.records.pricing import PriceBook
from llm_proxy.sinks.session_jsonl import response_entry
from llm_proxy.wire.eventstream import Frame, FrameDecoder
from llm_proxy.wire.sse import EventDecoder
from tests.fakebedrock import frames, replies
from tests.goldens import golden
from tests.journals import Call, Journal
from tests.test_keeper import Place

Json = dict[str, Any]
MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
HOST = "bedrock-runtime.us-west-2.amazonaws.com"
INVOKE = f"/model/{MODEL}/invoke-with-response-stream"
CONVERSE = f"/model/{MODEL}/converse-stream"
STREAM = ("Content-Type: application/vnd.amazon.eventstream", "X-Amzn-Bedrock-Content-Type: application/json")
ASKED = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
CONVERSED = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}], "inferenceConfig": {"maxTokens": 9}}


def call(serial: int = 1, target: str = INVOKE, **more: Any) -> Call:
    asked = CONVERSED if "/converse" in target else ASKED
    facts = {"provider": "bedrock", "upstream": HOST, "why": "bedrock", "headers": STREAM}
    return Call(serial, target=target, request=json.dumps(asked).encode(), **facts | more)


def settled(folder: Path, *calls: Call, **options: Any) -> list[Json]:
    """The entries of calls that a keeper has settled."""
    place = Place(folder, Options(index=str(folder / "state/index.db"), **options))
    run = Journal(place.journal)
    run.add(*(frame for one in calls for frame in one.frames))
    run.close()
    place.settle()
    return place.entries()


def timed(pieces: Iterable[bytes], start: int = 101, step: int = 3) -> list[tuple[int, bytes]]:
    """A piece every `step` milliseconds."""
    return [(start + step * number, piece) for number, piece in enumerate(pieces)]


def answered(folder: Path, one: Call, **options: Any) -> Json:
    (entry,) = (entry for entry in settled(folder, one, **options) if entry["type"] == "response")
    return entry


def raws(entry: Json) -> str:
    return "".join(item.get("raw", "") for item in entry["chunks"])


def wire(entry: Json) -> list[bytes]:
    """What stands in the entry as it came."""
    return [base64.b64decode(item["frame"]) for item in entry["chunks"] if "frame" in item]


# --- what is told


def test_an_invoked_stream_is_told_event_by_event(tmp_path: Path) -> None:
    """Each when its frame's end arrived, with what it meant, what it cost, and by which door it went."""
    sent = list(replies.invoke_stream(MODEL))
    request, entry = (one for one in settled(tmp_path, call(pieces=timed(sent))) if one["type"] != "session_start")
    told = [json.loads(item["raw"].removeprefix("data: ")) for item in entry["chunks"]]
    assert told == list(replies.invoke_events(MODEL))
    assert [item["delta_ms"] for item in entry["chunks"]] == [1 + 3 * number for number in range(len(sent))]
    assert all(item["raw"].startswith("data: {") and item["raw"].endswith("}\n\n") for item in entry["chunks"])
    assert entry["digest"] == {
        "api": "bedrock.invoke",
        "model": MODEL,
        "response_id": "msg_bdrk_01",
        "stop_reason": "end_turn",
        "usage": {"input": replies.INPUT, "cache_read": replies.CACHED, "output": replies.OUTPUT},
    }
    # Anthropic's list price is 1, 0.1 and 5 dollars; of a region it is a tenth more.
    price = 1.1e-6 * replies.INPUT + 0.11e-6 * replies.CACHED + 5.5e-6 * replies.OUTPUT
    assert entry["price"]["basis"] == "list" and entry["price"]["usd"] == pytest.approx(price)
    assert request["transport"] == entry["transport"] == "bedrock"
    assert entry["size"] == sum(map(len, sent)) and "body" not in entry and "decode_error" not in entry
    assert list(entry) == sorted(entry)


def test_a_conversation_with_converse_is_told_with_its_events_names(tmp_path: Path) -> None:
    """A reader of server-sent events reads it."""
    entry = answered(tmp_path, call(target=CONVERSE, pieces=timed(replies.converse_stream())))
    told = EventDecoder().feed(raws(entry).encode())
    names = ["messageStart", *["contentBlockDelta"] * 4, "contentBlockStop", "messageStop", "metadata"]
    assert [event.event for event in told] == names
    assert json.loads(told[-1].data)["usage"]["inputTokens"] == replies.INPUT
    assert entry["digest"]["usage"] == {"input": replies.INPUT, "cache_read": replies.CACHED, "output": replies.OUTPUT}
    assert entry["digest"]["stop_reason"] == "end_turn" and entry["price"]["usd"] > 0


def test_what_was_said_is_found(tmp_path: Path) -> None:
    """The index has the words of both APIs, and the session is one."""
    settled(
        tmp_path,
        call(1, session="s1", pieces=timed(replies.invoke_stream(MODEL))),
        call(2, CONVERSE, session="s1", pieces=timed(replies.converse_stream())),
    )
    with open_index(tmp_path / "state/index.db") as index:
        assert len(list(index.calls(Filter()))) == 2
        (session,) = index.sessions(Filter(), None)
        assert session.upstream == HOST and list(index.search("Bedrock", Filter()))


def test_another_call_has_no_transport(tmp_path: Path) -> None:
    """The field says that a call went by a door of ours."""
    plain = Call(1)
    assert not [one for one in settled(tmp_path, plain) if "transport" in one]


# --- failures in the stream

FAILURES = [
    (frames.exception("throttlingException", "Too many."), "throttlingException", "exception"),
    (frames.exception("modelStreamErrorException", "Broke."), "modelStreamErrorException", "exception"),
    (frames.exception("internalServerException", "Sorry."), "internalServerException", "exception"),
    (frames.error("InternalFailure", "Oops."), "InternalFailure", "error"),
]


@pytest.mark.parametrize(("failure", "kind", "name"), FAILURES)
@pytest.mark.parametrize("target", [INVOKE, CONVERSE])
def test_an_exception_is_understood(tmp_path: Path, target: str, failure: bytes, kind: str, name: str) -> None:
    """Its type and words; what came before it counts."""
    events = replies.converse_stream() if target == CONVERSE else replies.invoke_stream(MODEL)
    entry = answered(tmp_path, call(target=target, pieces=timed([*islice(events, 3), failure])))
    assert entry["digest"]["error_type"] == kind and entry["digest"]["partial"]
    assert f"event: {name}:{kind}\ndata: {{" in raws(entry)
    digest = understood.understand({"method": "POST", "path": target}, entry)
    assert digest.last.message is not None and digest.last.message.text.startswith("Hello")
    assert digest.last.error in raws(entry) and digest.last.error
    with open_index(tmp_path / "state/index.db") as index:
        (row,) = index.calls(Filter())
        assert row.failed and row.error == digest.last.error


# --- damage


def test_a_bad_frame_is_kept_as_it_came_and_counted(tmp_path: Path) -> None:
    """The others are told, and the keeper says that there was one."""
    sent = list(replies.converse_stream())
    bad = frames.damaged(sent[2])
    entry = answered(tmp_path, call(target=CONVERSE, pieces=timed([*sent[:2], bad, *sent[3:]])))
    assert wire(entry) == [bad] and entry["bad_frames"] == 1 and "checksum" in entry["decode_error"]
    assert '" from"' not in raws(entry) and '" Bedrock"' in raws(entry)
    assert entry["digest"]["usage"]["output"] == replies.OUTPUT
    assert [item["delta_ms"] for item in entry["chunks"] if "frame" in item] == [7]
    facts = json.loads((tmp_path / "journal/keeper.json").read_bytes())
    assert facts["troubles"]["decode"] == 1, facts


def test_behind_wrong_lengths_everything_is_kept_as_it_came(tmp_path: Path) -> None:
    """With the times at which it came."""
    sent = list(replies.converse_stream())
    bad = frames.damaged(sent[2], 1)
    entry = answered(tmp_path, call(target=CONVERSE, pieces=timed([*sent[:2], bad, *sent[3:]])))
    assert wire(entry) == [bad, *sent[3:]] and entry["bad_frames"] == 1
    assert len({item["delta_ms"] for item in entry["chunks"] if "frame" in item}) == len(sent) - 2


@pytest.mark.parametrize("target", [INVOKE, CONVERSE])
def test_a_stream_that_is_cut_anywhere(tmp_path: Path, target: str) -> None:
    """Whole frames are told, the beginning of the next one stands there; it is no bad one."""
    sent = list(replies.converse_stream() if target == CONVERSE else replies.invoke_stream(MODEL))
    stream = b"".join(sent)
    cuts = list(range(0, len(stream), 7))
    calls = [
        call(number, target, session="s1", pieces=timed([stream[:at]]), ending=Ending.UPSTREAM_FAILED)
        for number, at in enumerate(cuts, start=1)
    ]
    entries = [one for one in settled(tmp_path, *calls) if one["type"] == "response"]
    places = {str(one.id): at for one, at in zip(calls, cuts, strict=True)}
    assert len(entries) == len(cuts)
    for entry in entries:
        at = places[entry["_meta"]["request_id"]]
        whole = [frame for number, frame in enumerate(sent) if sum(map(len, sent[: number + 1])) <= at]
        rest = stream[sum(map(len, whole)) : at]
        assert wire(entry) == ([rest] if rest else [])
        assert ("decode_error" in entry) == bool(rest) and "bad_frames" not in entry
        assert raws(entry).count("\n\n") == len(whole)
        assert entry["digest"].get("partial") is True


ODD = [
    frames.frame(b"\xff\xfe", {":event-type": "contentBlockDelta", ":message-type": "event"}),
    frames.frame(b"{}", {":message-type": "event"}),
    frames.frame(b"{}", {":event-type": "two\nlines", ":message-type": "event"}),
    frames.event("chunk", {"bytes": base64.b64encode(b"\xff\xfe").decode()}),
]


@pytest.mark.parametrize("odd", ODD)
def test_a_frame_that_is_no_text_is_kept_as_it_came(tmp_path: Path, odd: bytes) -> None:
    """Good as its checksums are, it cannot be told as an event."""
    entry = answered(tmp_path, call(pieces=timed([odd, *replies.invoke_stream(MODEL)])))
    assert wire(entry) == [odd] and (entry["bad_frames"], entry["decode_error"]) == (1, "a frame holds no text")
    assert entry["digest"]["stop_reason"] == "end_turn"


@settings(deadline=None)  # an entry is quick, a busy machine is not
@given(st.data())
def test_whatever_comes_is_told_or_kept(data: st.DataObject) -> None:
    """Any bytes in place of any others, in any pieces: nothing raises, every good frame before the damage is told."""
    one = golden("converse-stream")
    at = data.draw(st.integers(0, len(one.answer)))
    spoiled = one.answer[:at] + data.draw(st.binary(max_size=30)) + one.answer[at + data.draw(st.integers(0, 60)) :]
    size = data.draw(st.integers(1, 400))
    pieces = [spoiled[start : start + size] for start in range(0, len(spoiled), size)]
    entry = response_entry(one._exchange(pieces, Ending.COMPLETE), "s", 1, "m")
    decoder = FrameDecoder()
    found = [*decoder.feed(spoiled), *decoder.finish()]
    assert sum(map(len, wire(entry))) == sum(len(part.raw) for part in found if not isinstance(part, Frame))
    assert raws(entry).count("\n\n") == sum(isinstance(part, Frame) for part in found)
    one.understood(pieces)


def test_a_stream_beyond_the_limit_is_told_as_far_as_it_was_kept(tmp_path: Path) -> None:
    """Its size and its digest are of the whole."""
    sent = list(replies.invoke_stream(MODEL))
    kept = b"".join(sent[:4]) + sent[4][:50]
    whole = sum(map(len, sent))
    one = call(pieces=timed([kept]), sizes=(9, whole), digests=(b"", b"\7" * 32))
    entry = answered(tmp_path, one)
    assert (entry["truncated"], entry["size"], entry["sha256"]) == ("limit", whole, "07" * 32)
    assert wire(entry) == [sent[4][:50]] and raws(entry).count("\n\n") == 4 and entry["digest"]["partial"]


def test_a_long_stream_costs_no_memory() -> None:
    """The decoder keeps what is unfinished, and nothing else."""
    one = next(iter(replies.converse_stream()))
    decoder = FrameDecoder()
    stream = cycle(one)
    tracemalloc.start()
    for _ in range(20_000):
        decoder.feed(bytes(islice(stream, 100)))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100_000 and decoder.pending < len(one) and not decoder.bad


# --- endings

ENDS = [
    (INVOKE, list(replies.invoke_stream(MODEL)), 1),
    (CONVERSE, list(replies.converse_stream()), 2),
    ("/model/meta.llama3-8b-instruct-v1:0/invoke-with-response-stream", list(replies.invoke_stream("meta.llama3")), 1),
]


@pytest.mark.parametrize(("target", "sent", "ends"), ENDS)
def test_a_client_that_leaves_after_the_end_has_missed_nothing(
    tmp_path: Path, target: str, sent: list[bytes], ends: int
) -> None:
    """From the last event but `ends` on; before that it has gone, and what came is there."""
    calls = {
        number: call(number, target, session="s1", pieces=timed(sent[:number]), ending=Ending.CLIENT_GONE)
        for number in range(1, len(sent) + 1)
    }
    entries = {
        one["_meta"]["request_id"]: one for one in settled(tmp_path, *calls.values()) if one["type"] == "response"
    }
    for number, one in calls.items():
        entry = entries[str(one.id)]
        over = number > len(sent) - ends
        assert entry["ending"] == ("complete" if over else "client_gone"), number
        assert entry.get("wire_ending") == ("client_gone" if over else None)


# --- logs of before


def test_logs_of_before_mean_the_same(tmp_path: Path) -> None:
    """They hold the frames in base64; the digest is the same."""
    for number, (target, sent, _) in enumerate(ENDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        request, entry = settled(folder, call(target=target, pieces=timed(sent)))[1:]
        old = {name: value for name, value in entry.items() if name not in ("chunks", "digest", "price")}
        old |= {"body": base64.b64encode(b"".join(sent)).decode(), "body_encoding": "base64"}
        assert understood.facts(understood.understand(request, old)) == entry["digest"]


def test_the_streams_of_the_reference(tmp_path: Path) -> None:
    """Seven frames whose headers stand in Amazon's order; half of it is three events and a rest, a wrong bit costs one."""
    counts = {"inputTokenCount": 12, "outputTokenCount": 5, "invocationLatency": 535, "firstByteLatency": 528}
    start = {"id": "msg_bdrk_016Hsdo2", "type": "message", "role": "assistant", "model": "claude-3-haiku-20240307"}
    start |= {"content": [], "usage": {"input_tokens": 12, "output_tokens": 1}}
    texts = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
        for text in ("Hi", "!")
    ]
    events = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *texts,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": counts},
    ]
    sent = [frames.chunk(event) for event in events]
    assert all(frame[4:8] == (75).to_bytes(4, "big") for frame in sent)
    entry = answered(tmp_path / "whole", call(pieces=timed([b"".join(sent)])))
    assert entry["digest"]["usage"] == {"input": 12, "output": 5} and len(entry["chunks"]) == 7
    digest = understood.understand({"method": "POST", "path": INVOKE}, entry)
    assert digest.last.message is not None and digest.last.message.text == "Hi!"
    half = b"".join(sent[:3]) + sent[3][:100]
    entry = answered(tmp_path / "half", call(pieces=timed([half]), ending=Ending.UPSTREAM_FAILED))
    assert raws(entry).count("data: ") == 3 and wire(entry) == [sent[3][:100]]
    spoiled = [sent[0], frames.damaged(sent[1]), *sent[2:]]
    entry = answered(tmp_path / "spoiled", call(pieces=timed(spoiled)))
    assert raws(entry).count("data: ") == 6 and entry["bad_frames"] == 1


# --- secrets


@pytest.mark.parametrize("target", [INVOKE, CONVERSE])
def test_a_secret_told_in_pieces_is_found(tmp_path: Path, target: str) -> None:
    """In the events, as in any other stream."""
    secret = "sk-ant-api03-" + "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z" * 2
    texts = [secret[at : at + 9] for at in range(0, len(secret), 9)]
    if target == CONVERSE:
        sent = [frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}}) for text in texts]
    else:
        deltas = [{"type": "text_delta", "text": text} for text in texts]
        sent = [frames.chunk({"type": "content_block_delta", "index": 0, "delta": delta}) for delta in deltas]
    entry = answered(tmp_path, call(target=target, pieces=timed(sent)), redact=True)
    assert entry["redacted"] == {"ANTHROPIC_KEY": 1} and "<ANTHROPIC_KEY#1>" in raws(entry)
    assert not any(text in raws(entry) for text in texts)


# --- counting tokens, prices


@pytest.mark.parametrize(
    "body",
    [
        {"input": {"converse": CONVERSED | {"system": [{"text": "Be brief."}]}}},
        {
            "input": {
                "invokeModel": {"body": base64.b64encode(json.dumps(ASKED | {"system": "Be brief."}).encode()).decode()}
            }
        },
    ],
)
def test_counting_tokens_is_understood_and_free(tmp_path: Path, body: Json) -> None:
    """What is counted, and that nothing was used."""
    target = f"/model/{MODEL}/count-tokens"
    asked = registry.asked("bedrock.count_tokens", target, json.dumps(body).encode())
    assert (asked.model, asked.system, asked.messages[0].text, asked.trouble) == (MODEL, "Be brief.", "Hi", "")
    entry = answered(
        tmp_path, call(target=target, answer=b'{"inputTokens":12}', headers=["Content-Type: application/json"])
    )
    assert entry["digest"]["api"] == "bedrock.count_tokens" and "price" not in entry and "usage" not in entry["digest"]
    assert entry["digest"]["model"] == MODEL


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"input":{"invokeModel":{"body":"\xff"}}}',
        b'{"input":{"invokeModel":{"body":"A"}}}',
        b'{"input":7}',
    ],
)
def test_what_cannot_be_counted_is_survived(body: bytes) -> None:
    """Never raises."""
    assert registry.asked("bedrock.count_tokens", f"/model/{MODEL}/count-tokens", body).model == MODEL


PRICES = [
    (MODEL, "1.1"),
    ("anthropic.claude-haiku-4-5-20251001-v1:0", "1.1"),
    ("global.anthropic.claude-haiku-4-5-20251001-v1:0", "1"),
    ("amazon.nova-pro-v1:0", "0.8"),
]


@pytest.mark.parametrize(("model", "dollars"), PRICES)
@pytest.mark.parametrize("host", [HOST, "vpce-1.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "10.0.0.7:8443"])
def test_prices_are_of_the_region_wherever_the_endpoint_lies(model: str, dollars: str, host: str) -> None:
    """An own endpoint sells what Bedrock sells; without our door it is not known what stands there."""
    digest = Digest(Asked(api="bedrock.invoke", model=model), (_used(model),))
    request: Json = {
        "_meta": {"host": host, "ts": "2026-11-01T00:00:00Z"},
        "headers": {"Anthropic-Beta": ["oauth-2025-04-20"]},
    }
    price = PriceBook().of(request | {"transport": "bedrock"}, "bedrock", digest)
    assert price is not None and str(price.units[0][1]) == dollars and price.basis == "list"
    free = Digest(Asked(api="bedrock.count_tokens", model=model), digest.answers)
    assert PriceBook().of(request, "bedrock", free) is None
    if host.startswith("10."):
        unknown = PriceBook().of(request, "bedrock", digest)
        assert unknown is not None and unknown.usd is None


def _used(model: str) -> Answer:
    return Answer(model=model, usage=Usage(input=1_000_000), message=Message("assistant", (Part(PartKind.TEXT, "Hi"),)))
