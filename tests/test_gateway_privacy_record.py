"""What is kept of a gateway's user's calls is what he wants to be kept, wherever it goes from the keeper."""

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from hashlib import sha256

import pytest

from llm_proxy.explorer.live.call import Manner
from llm_proxy.explorer.live.watch import Watch
from llm_proxy.index.ingest import Indexer
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.redact import Redaction
from llm_proxy.records import privacy
from llm_proxy.records.exchange import Body
from llm_proxy.records.redaction import Redactor
from llm_proxy.sinks import session_jsonl
from llm_proxy.wire import attribution
from llm_proxy.wire.attribution import Attribution
from tests.journals import WALL, Call, Journal
from tests.test_keeper import Place

ANN = Attribution("req_1", "1", "ann@team.example", "llmp_ab12", "fast", "3", "1a2b3c4d.17", "atlas")
MAIL, KEY = "canary.person@home.example", "sk-ant-api03-" + "Ab3_" * 20
PNG = bytes(range(256))


def by(level, whose=ANN):
    return [f"{name}: {value}" for name, value in attribution.fields(whose._replace(privacy=level))]


def events(*data):
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in data)


ASKED = {
    "model": "claude-sonnet-4-5",
    "system": f"canary-system {MAIL}",
    "metadata": {"user_id": "user_canary-user_session_canary-session"},
    "tools": [{"name": "canary_offered", "input_schema": {"type": "object"}}],
    "messages": [
        {"role": "user", "content": f"canary-asked in /home/canary-owner/work by {MAIL} with {KEY}"},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "canary_used", "input": {"path": "canary-path"}}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "canary-result"}]},
    ],
}
SAID = events(
    {
        "type": "message_start",
        "message": {"id": "msg_1", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 100, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"canary-said {MAIL[:9]}"}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": f"{MAIL[9:]} +49 171 5550123 "},
    },
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t2", "name": "canary_called", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "input_json_delta", "partial_json": '{"command":"canary-command"}'},
    },
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 50}},
    {"type": "message_stop"},
)
STREAM = ("Content-Type: text/event-stream", "Transfer-Encoding: chunked", "X-Echo: canary-echo")


def chunked(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n0\r\n\r\n"


def streamed(serial, head, **more):
    return Call(
        serial,
        why="gateway",
        request=json.dumps(ASKED).encode(),
        request_headers=[*head, "X-Title: canary-title", "User-Agent: sdk/1"],
        target="/v1/messages?beta=canary-query",
        headers=STREAM,
        pieces=[(120, chunked(SAID))],
        sizes=(len(json.dumps(ASKED)), len(SAID)),
        **more,
    )


def failed(serial, head):
    error = {"error": {"type": "invalid_request_error", "message": f"canary-error in your words {MAIL}"}}
    asked = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "canary-asked-again"}]}
    return Call(
        serial,
        why="gateway",
        provider="openai",
        upstream="api.openai.com",
        target="/v1/chat/completions",
        request=json.dumps(asked).encode(),
        request_headers=head,
        answer=json.dumps(error).encode(),
        status="400 canary-reason",
        error="canary-broke: of the proxy's",
    )


def binary(serial, head):
    """Nothing can be searched in what is no text."""
    return Call(
        serial, why="gateway", request_headers=head, request=b"canary-binary" + PNG, answer=b"canary-pixels" + PNG
    )


def garbled(serial, head):
    """Not to be understood, so that somebody might quote it."""
    request = b'{"model":"canary-model of mine","messages":[{"role":"user","content":{"canary-odd":1}}]'
    return Call(serial, why="gateway", request_headers=head, request=request, answer=b"canary-no-json")


ALL = (streamed, failed, binary, garbled)


@pytest.fixture
def place(tmp_path):
    options = Options(index=str(tmp_path / "state/index.db"), projects=False, posts=True)
    return Place(tmp_path, options)


def settled(place, level, make=ALL):
    """The calls at this level, and one of nobody's, in the record; nothing is left in the journal."""
    journal = Journal(place.journal)
    calls = [one(number, by(level)) for number, one in enumerate(make, start=1)]
    others = Call(100, request=b'{"model":"m","messages":[{"role":"user","content":"of nobody"}]}', session="nobodys")
    for call in (*calls, others):
        journal.add(*call.frames)
    journal.close()
    place.settle()
    assert not list(place.journal.glob("*.seg*")), list(place.journal.iterdir())
    return calls


def found(place, *words):
    """Where any of these stands, of all files of this machine: as it is, and in the index' packed texts."""
    hits = []
    for path in sorted(place.folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes().lower()
            hits += [f"{path.relative_to(place.folder)}: {word}" for word in words if word.lower().encode() in data]
    with closing(sqlite3.connect(place.options.index)) as db:
        from llm_proxy.index import database

        database.prepare(db)
        told = " ".join(text.lower() for (text,) in db.execute("SELECT unpacked(packed) FROM texts"))
    return hits + [f"texts: {word}" for word in words if word.lower() in told]


def halves(place, call):
    entries = [one for one in place.entries() if one["_meta"].get("request_id") == str(call.id)]
    return {one["type"]: one for one in entries}


# --- the levels


def test_of_nothing_nothing_is_kept_but_that_there_was_something(place):
    """No line, no row, no name in any file; the calls of others are there."""
    calls = settled(place, "none")
    assert found(place, "canary", "ann@team", "1a2b3c4d.17", MAIL) == []
    assert [one["type"] for one in place.entries()] == ["session_start", "request", "response"]
    assert place.snapshot()["withheld"] == len(calls) and place.snapshot()["exchanges"] == 1
    figures = (place.journal / "keeper.prom").read_text()
    assert f'llm_proxy_withheld_calls_total{{why="privacy"}} {len(calls)}' in figures and "claude" not in figures
    with closing(sqlite3.connect(place.state / "sessions.db")) as db:
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (2,)


def test_of_metadata_no_word_is_kept_and_every_figure(place):
    """Sizes and digests stand for what was said; tokens, cost, times and whose it is are there."""
    calls = settled(place, "metadata")
    assert found(place, "canary", MAIL, "sk-ant-api03", "+49 171") == []
    first = halves(place, calls[0])
    request, response = first["request"], first["response"]
    assert request["left_out"] == response["left_out"] == "privacy"
    assert request["sha256"] == sha256(json.dumps(ASKED).encode()).hexdigest()
    assert response["sha256"] == sha256(SAID).hexdigest() and response["size"] == len(SAID)
    assert response["digest"]["usage"] == {"input": 100, "output": 50} and response["price"]["usd"] > 0
    assert response["digest"]["stop_reason"] == "tool_use" and response["timing"]["first_token_ms"] == 120
    assert request["gateway"]["account"] == "1a2b3c4d.17" and request["gateway"]["project"] == "atlas"
    assert request["headers"]["User-Agent"] == ["sdk/1"]
    title = sha256(b"canary-title").hexdigest()
    assert request["headers"]["X-Title"] == [f"[sha256:{title} size:12]"]
    assert halves(place, calls[1])["response"]["digest"]["error_type"] == "invalid_request_error"
    with closing(sqlite3.connect(place.options.index)) as db:
        rows = db.execute("SELECT model, input, output, usd > 0 FROM calls WHERE input").fetchall()
        assert rows == [("claude-sonnet-4-5", 100, 50, 1)]
        assert db.execute("SELECT count(*) FROM calls").fetchone() == (5,)


def test_redacted_texts_name_nobody_and_tell_the_rest(place):
    """Secrets, addresses of mail, owners of folders and phone numbers go, those told in pieces too; words stay."""
    calls = settled(place, "redacted")
    hidden = (MAIL, "canary-owner", "ab3_ab3_", "171 555", "canary-binary", "canary-pixels")
    assert found(place, *hidden) == []
    assert {"canary-asked", "canary-said", "canary_called", "canary-error"} <= {
        hit.partition(": ")[2] for hit in found(place, "canary-asked", "canary-said", "canary_called", "canary-error")
    }
    first = halves(place, calls[0])
    said = json.loads(first["request"]["body"])
    assert re.fullmatch(
        r"canary-asked in /home/<HOME_OWNER#\d+>/work by <EMAIL#1> with <ANTHROPIC_KEY#1>",
        said["messages"][0]["content"],
    )
    assert first["request"]["redacted"]["EMAIL"] == 2 and "<EMAIL#1>" in "".join(
        one["raw"] for one in first["response"]["chunks"]
    )
    assert halves(place, calls[2])["request"]["left_out"] == "privacy"


def test_in_full_it_is_kept_like_every_other_call(place):
    """The levels before take something away because they are asked to; this also shows that the canaries sing."""
    settled(place, "")
    words = ("canary-asked", "canary-said", "canary_called", "canary-command", "canary-error", "canary-title", MAIL)
    assert {hit.partition(": ")[2] for hit in found(place, *words)} == set(words)


@pytest.mark.parametrize(
    ("ceiling", "chosen", "kept"),
    [
        ("none", "", False),
        ("none", "full", False),
        ("metadata", "", True),
        ("metadata", "full", True),
        ("full", "none", False),
        ("full", "what a later version knows", False),
    ],
)
def test_the_operators_ceiling_and_an_unknown_level_hold_for_the_gateways_calls_alone(place, ceiling, chosen, kept):
    """Without attribution too; what does not come from the gateway is recorded as before."""
    place.options = replace(place.options, gateway_privacy=ceiling)
    journal = Journal(place.journal)
    for head in (by(chosen), []):
        if head or ceiling != "full":
            journal.add(*streamed(1 if head else 2, head).frames)
    journal.add(*Call(3, session="s", request=b'{"messages":[{"role":"user","content":"of nobody"}]}').frames)
    journal.close()
    place.settle()
    assert found(place, "canary") == []
    requests = [one for one in place.entries() if one["type"] == "request"]
    assert len(requests) == (3 if kept else 1) and any("of nobody" in one.get("body", "") for one in requests)


def test_one_that_is_redacted_stays_so_where_redaction_is_off(place):
    """The operator's settings make it no more."""
    place.options = replace(place.options, redact=False, redact_off_for=("*",))
    settled(place, "redacted", [streamed])
    assert found(place, MAIL, "ab3_ab3_") == []


def test_an_index_made_again_holds_the_same_as_the_one_made_live(place):
    """What is left out is left out of the log, so there is no other way to it."""
    settled(place, "metadata")
    query = "SELECT * FROM calls ORDER BY id", "SELECT id, title FROM sessions ORDER BY id", "SELECT gist FROM gists"
    with closing(sqlite3.connect(place.options.index)) as db:
        live = [set(db.execute(one).fetchall()) for one in query[1:]]
    indexer = Indexer(place.state / "index.db", place.logs)
    indexer.rebuild(workers=0)
    indexer.close()
    with closing(sqlite3.connect(place.options.index)) as db:
        assert [set(db.execute(one).fetchall()) for one in query[1:]] == live
    assert found(place, "canary") == []


# --- while it happens, and when something is killed


def test_a_level_holds_for_what_is_recovered_from_a_killed_proxy(place):
    """Calls that were open end as interrupted, and say no more than others of their level."""
    journal = Journal(place.journal)
    for number, level in enumerate(("none", "metadata"), start=1):
        journal.add(*streamed(number, by(level)).frames[:-1])
    journal.close()
    place.settle()
    assert found(place, "canary") == []
    (response,) = (one for one in place.entries() if one["type"] == "response")
    assert response["ending"] == "interrupted" and response["digest"]["usage"]["output"] == 50


def test_an_open_call_is_told_at_its_level_before_it_is_over(place):
    """The request is written when it has arrived: not of a call of which nothing is to be kept."""
    journal = Journal(place.journal)
    calls = [streamed(number, by(level)) for number, level in enumerate(("none", "metadata", "redacted"), start=1)]
    for call in calls:
        journal.add(call.open, call.request)
    with place.running():
        wait(lambda: len([one for one in place.entries() if one["type"] == "request"]) == 2)
        assert not any(MAIL.encode() in path.read_bytes() for path in place.files())
        for call in calls:
            journal.add(call.head, *call.response, call.end)
        wait(lambda: place.snapshot().get("withheld") == 1)
        wait(lambda: len([one for one in place.entries() if one["type"] == "response"]) == 2)
        journal.close()
    assert found(place, MAIL) == []


def wait(ready, limit=20.0):
    import time

    end = time.monotonic() + limit
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        ("none", (), ("canary",)),
        ("metadata", ("claude-sonnet-4-5",), ("canary",)),
        ("redacted", ("canary-said", "canary_called"), (MAIL, "171 555")),
        ("", ("canary-said", MAIL), ()),
    ],
)
def test_what_is_watched_live_is_no_more_than_what_will_be_recorded(tmp_path, level, shown, hidden):
    """The explorer reads the journal itself, before the keeper has left anything out."""
    journal = Journal(tmp_path)
    personal = Redactor(privacy.PERSONAL, lambda kind, secret: 0)
    watch = Watch(tmp_path, Manner(Redactor((), lambda kind, secret: 0), personal=personal))
    watch.step()
    call = streamed(1, by(level))
    journal.add(*call.frames[:-1])
    told = repr(watch.step()) + repr(watch.look())
    journal.add(call.end)
    journal.close()
    told += repr(watch.step())
    watch.close()
    assert all(word in told for word in shown), told
    assert not any(word in told for word in hidden), told


# --- the rules themselves


@pytest.mark.parametrize(
    ("whose", "ceiling", "level"),
    [
        (None, "none", "full"),
        (ANN, "full", "full"),
        (ANN, "redacted", "redacted"),
        (ANN._replace(privacy="metadata"), "redacted", "metadata"),
        (ANN._replace(privacy="redacted"), "metadata", "metadata"),
        (ANN._replace(privacy="odd"), "full", "none"),
        (Attribution(), "metadata", "metadata"),
    ],
)
def test_the_level_of_a_call(whose, ceiling, level):
    """The lesser of what its user chose and what the operator allows."""
    assert privacy.level(whose, ceiling) == level


def test_a_call_begins_with_the_request_that_it_is_made_for():
    """Its third attempt may come minutes later; an id that says an absurd time says nothing."""
    milliseconds = WALL // 10**6
    asked = Attribution(f"req_{milliseconds:012x}7000800000000000000000")
    assert privacy.begun(asked, WALL + 60 * 10**9) == milliseconds * 10**6
    assert privacy.begun(asked, WALL - 10**9) == WALL - 10**9
    assert privacy.begun(asked, WALL + 10 * 86_400 * 10**9) == WALL + 10 * 86_400 * 10**9
    for odd in ("", "req_", "req_zz", "1"):
        assert privacy.begun(Attribution(odd), WALL) == WALL


def test_what_cannot_be_searched_is_not_kept(tmp_path):
    """A pattern that fails, or bytes that are no text."""
    redaction = Redaction(Options(), tmp_path)
    entry = {"type": "response", "body": "AAAA", "body_encoding": "base64", "size": 3, "_meta": {}, "headers": None}
    kept = privacy.redacted(entry, redaction.personal, Body())
    assert "body" not in kept and kept["left_out"] == "privacy" and session_jsonl.line(kept)
