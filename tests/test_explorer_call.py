"""The page of one call: whatever it was and however it ended, each tab has something to say, as HTML and as JSON."""

import base64
import contextlib
import hashlib
import json
import re
import time
from html import unescape

import pytest
from aiohttp.test_utils import TestClient, TestServer

from llm_proxy.explorer import guard
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.site import application
from llm_proxy.index.ingest import Indexer
from tests.explored import HOSTILE, SECOND, Claude, Maker, Session, record, text

TABS = ("overview", "diff", "events", "http", "raw")
BINARY = bytes(range(256)) * 300


def body(**more):
    return {"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "hi"}]} | more


def odd(maker):
    """One call of each kind that is not an answered conversation; their ids by name."""
    session = Session(maker, "odd", "anthropic", "api.anthropic.com", maker.now - 3600 * SECOND)
    ids = {}

    def call(name, path="/v1/messages", sent=None, answer=None, **how):
        ids[name] = session.call(path, None if sent == "" else body() if sent is None else sent, answer, **how)

    call("failed", status=None, ending="upstream_failed", error="cannot reach it: connection refused", ttfb=0, total=31)
    call("refused", status=None, ending="refused", error="not a public address", answered_by=403)
    call("timed out", status=None, ending="timed_out", error="no byte for 600 s", ttfb=0, total=600_000)
    call("cut", events=[(0, "event: message_start\n"), (5, "data: {")], ending="client_gone", error="the client left")
    call("truncated", answer={"a": 1}, truncated="limit", sha256="ab" * 32, size=10**8)
    call("redacted", answer={"text": "<AWS_KEY#3>"}, redacted={"AWS_KEY": 1})
    call("unknown", "/v1/unheard", {"a": 1}, {"b": [1, 2]})
    call(
        "embeddings",
        "/v1/embeddings",
        {"input": ["x"]},
        {"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 2}},
    )
    call("counted", "/v1/messages/count_tokens", body(), {"input_tokens": 12})
    call("head", "/v1/models", "", method="HEAD")
    call("binary", "/v1/files", "", base64.b64encode(BINARY).decode(), body_encoding="base64")
    call(
        "lines",
        "/api/chat",
        {},
        '{"message":{"content":"a"}}\n{"done":true}\n',
        answered={"Content-Type": "application/x-ndjson"},
    )
    messages = [
        {"ts": "t", "delta_ms": 3, "from": "client", "type": "text", "raw": '{"type":"response.create"}'},
        {"ts": "u", "delta_ms": 900, "from": "server", "type": "text", "raw": '{"type":"response.completed"}'},
        {"ts": "v", "delta_ms": 950, "from": "server", "type": "close", "code": 1000, "raw": ""},
    ]
    sockets = {"messages": messages, "client_size": 31, "server_size": 44}
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    call("socket", "/v1/responses", "", status=101, method="GET", headers=upgrade, websocket=sockets)
    frame = {"ts": "t", "delta_ms": 4, "frame": base64.b64encode(b"\0\1broken").decode()}
    call(
        "frames",
        "/model/m/invoke-with-response-stream",
        {},
        chunks=[frame],
        decode_error="a frame's checksum is wrong",
        bad_frames=1,
    )
    call("left out", answer=None, left_out="metadata_only")
    ids["open"] = session.call("/v1/messages", body(), open=True)
    session._write(
        {
            "type": "request",
            "_meta": session._meta(session.now, "old-1"),
            "seq": 90,
            "method": "POST",
            "path": "/v1/messages",
            "body": "{}",
        }
    )
    session._write(
        {"type": "response", "_meta": session._meta(session.now, "old-1"), "seq": 90, "status": 200, "body": "x"}
    )
    session._write(
        {"type": "request", "_meta": session._meta(session.now, "lost-1"), "seq": 91, "record_error": "a bug"}
    )
    session._write(
        {"type": "response", "_meta": session._meta(session.now, "lost-1"), "seq": 91, "record_error": "a bug"}
    )
    imported = {"format": "claude-trace", "id": "7", "rebuilt": True}
    session._write(
        {
            "type": "request",
            "_meta": session._meta(session.now, "imported-1"),
            "seq": 92,
            "method": "POST",
            "path": "/v1/messages",
            "headers": {"A": "b"},
            "body": json.dumps(body()),
            "imported": imported,
        }
    )
    session._write(
        {
            "type": "response",
            "_meta": session._meta(session.now, "imported-1"),
            "seq": 92,
            "status": 200,
            "headers": None,
            "timing": {},
            "chunks": [{"raw": "data: {}\n\n"}],
        }
    )
    session._write(
        {
            "type": "response",
            "_meta": session._meta(session.now, "half-1"),
            "seq": 93,
            "status": 200,
            "timing": {"ttfb_ms": 1, "total_ms": 2},
            "body": "[1",
        }
    )
    return ids | {name: f"{name}-1" for name in ("old", "lost", "imported", "half")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calls")
    found = record(folder)
    maker = Maker(found.logs, time.time_ns())
    maker._number = 10_000
    ids = odd(maker)
    indexer = Indexer(found.index, found.logs)
    indexer.catch_up_all()
    indexer.close()
    ledger = {f"ledger {n}": id for n, id in enumerate(found.calls["ledger"], 1)}
    return (
        folder,
        found,
        ids | ledger | {f"{name} 1": ids_[0] for name, ids_ in found.calls.items() if name != "ledger"},
    )


@contextlib.asynccontextmanager
async def looking(made):
    folder, found, _ = made
    state = folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    app = application(Options(index=str(found.index), logs=str(found.logs), state=str(state), version="1"))
    async with TestClient(TestServer(app), headers=guard.bearer(guard.new_secret(state))) as client:
        yield client


async def shown(made, name, query=""):
    async with looking(made) as client:
        answer = await client.get(f"/llm-proxy/calls/{made[2][name]}{query}")
        assert answer.status == 200
        return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", await answer.text())))


async def told(made, name, query=""):
    async with looking(made) as client:
        answer = await client.get(f"/llm-proxy/api/calls/{made[2][name]}{query}")
        assert answer.status == 200
        return json.loads(await answer.read())


# What each says, on which tab.
STATES = (
    ("failed", "", "cannot reach it: connection refused"),
    ("failed", "", "no answer"),
    ("failed", "?tab=http", "None came."),
    ("failed", "?tab=events", "No answer came."),
    ("refused", "", "Refused by this proxy."),
    ("timed out", "", "Nothing came for too long. no byte for 600 s"),
    ("cut", "", "The client left before the end."),
    ("cut", "?tab=events", "unfinished"),
    ("truncated", "", "longer than the recording limit"),
    ("redacted", "", "1 AWS_KEY"),
    ("unknown", "", "This API is not understood."),
    ("unknown", "?tab=http", '"b" : [ 2 items'),
    ("embeddings", "", "embeddings"),
    ("counted", "", "counts tokens"),
    ("head", "?tab=http", "It has no body."),
    ("head", "?tab=raw&side=response", "There are no bytes here"),
    ("binary", "?tab=raw&side=response", "00 01 02 03 04"),
    ("lines", "?tab=events", "Lines of JSON"),
    ("socket", "?tab=events", "WebSocket messages"),
    ("socket", "?tab=events", "→ client response.create"),
    ("socket", "?tab=http", "After the upgrade both sides send messages"),
    ("frames", "", "The stream holds broken frames."),
    ("frames", "?tab=events", "broken frame"),
    ("left out", "?tab=http", "The configuration keeps bodies out of the log."),
    ("open", "", "Still open."),
    ("open", "", "The call is still open; its times are known when it is over."),
    ("open", "?tab=http", "The call is still open."),
    ("open", "?tab=events", "can be followed under Live"),
    ("old", "", "The log does not tell how long this call took."),
    ("lost", "", "could not be recorded: a bug"),
    ("imported", "", "recorded by another program (claude-trace). Its body is made from the messages told there."),
    ("half", "", "The request is not recorded."),
    ("half", "?tab=diff", "has no body in the log"),
    ("ledger 5", "", "The cache had expired: 15m 0"),
    ("ledger 6", "", "overloaded_error: Overloaded"),
    ("ledger 7", "", "Longest silence 2.81 s at 3.65 s, inside tool_use Bash"),
    ("ledger 8", "", "The tool list changed: description of mcp__ledger__balance is different."),
    ("ledger 8", "?tab=diff", "cached prefix ends here: 7,1"),
    ("ledger 9", "", "tokens were read from it"),
    ("chat 1", "?tab=http", "12345678901234567890"),
)


@pytest.mark.parametrize(("name", "query", "said"), STATES, ids=[f"{a}{b}-{n}" for n, (a, b, _) in enumerate(STATES)])
async def test_each_state_says_what_it_is(made, name, query, said):
    """Nobody is left with an empty panel."""
    assert said in await shown(made, name, query)


async def test_every_tab_of_every_call_is_served(made):
    """As a page, as JSON, and as files; what is not there is 410, never 500."""
    async with looking(made) as client:
        for name, id in made[2].items():
            for query in (*(f"?tab={tab}" for tab in TABS), "?tab=events&every=1", "?tab=raw&side=response"):
                for root in ("/llm-proxy", "/llm-proxy/api"):
                    answer = await client.get(f"{root}/calls/{id}{query}")
                    assert answer.status == 200, (name, query)
                    page = await answer.read()
                assert json.loads(page)["call"]["id"] == id
            for wanted in ("request", "response", "sse", "har", "curl", "python"):
                answer = await client.get(f"/llm-proxy/calls/{id}?dl={wanted}")
                assert answer.status in (200, 410), (name, wanted)
                assert answer.status == 200 or wanted in ("request", "response", "sse")


async def test_downloads_are_the_bytes_and_nothing_a_browser_would_show(made):
    """Attachments with a harmless name, not sniffed."""
    async with looking(made) as client:
        id = made[2]["binary"]
        answer = await client.get(f"/llm-proxy/calls/{id}?dl=response")
        assert await answer.read() == BINARY
        assert answer.headers["Content-Disposition"] == f'attachment; filename="call-{id[:13]}-response.bin"'
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Type"] == "application/octet-stream"
        stream = await client.get(f"/llm-proxy/calls/{made[2]['ledger 1']}?dl=sse")
        assert (await stream.read()).startswith(b"event: message_start\ndata: {")
        archive = await (await client.get(f"/llm-proxy/calls/{id}?dl=har")).json(content_type=None)
        assert archive["log"]["entries"][0]["_id"] == id
        program = await client.get(f"/llm-proxy/calls/{made[2]['hostile 1']}?dl=curl")
        assert program.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_ids_are_looked_up_exactly_and_values_checked(made):
    """No prefix, no path, no odd value."""
    id = made[2]["ledger 1"]
    async with looking(made) as client:
        for wrong in (id[:-1], id + "0", "..%2f..%2fetc%2fpasswd", "%00", "x" * 500):
            assert (await client.get(f"/llm-proxy/calls/{wrong}")).status == 404
        for query in ("tab=x", "dl=x", "row=-1", "offset=x", "side=x", "tab=diff&against=nobody", "tab=http&at=99"):
            answer = await client.get(f"/llm-proxy/calls/{id}?{query}")
            assert answer.status == 400, query
        assert (await client.get(f"/llm-proxy/calls/{id}/json?at=77")).status == 400


async def test_neighbours_and_turns(made):
    """Previous and next call, with the turn of the conversation that each is."""
    seventh = await told(made, "ledger 7")
    ids = made[1].calls["ledger"]
    assert (seventh["previous"]["id"], seventh["next"]["id"]) == (ids[5], ids[7])
    assert (seventh["previous"]["turn"], seventh["turn"], seventh["next"]["turn"]) == (6, 6, 7)
    assert seventh["title"] == "Turn 6: Bash pytest -q tests/test_month_end.py"
    assert (await told(made, "ledger 1"))["previous"] is None
    assert (await told(made, "embeddings"))["title"].startswith("Call ")


async def test_a_fork_is_compared_with_the_call_it_forked_from(made):
    """Its first call has no call before it in its session; the cache it reads was written by another."""
    fork = await told(made, "ledger-fork 1", "?tab=diff")
    assert fork["diff"]["against"]["id"] == made[1].calls["ledger"][3]
    assert fork["diff"]["same_session"] is False
    over = await told(made, "ledger-fork 1")
    assert over["overview"]["previous"]["seq"] == 4


async def test_price_rows_add_up(made):
    """Class by class; what lies within another class is in no sum."""
    prices = (await told(made, "ledger 8"))["overview"]["prices"]
    assert prices["exact"]
    assert sum(one["usd"] for one in prices["charges"] if one["usd"] is not None) == pytest.approx(prices["usd"])
    reasoned = (await told(made, "responses 1"))["overview"]["prices"]
    inner = [one for one in reasoned["charges"] if one["within"]]
    assert [(one["name"], one["count"]) for one in inner] == [("reasoning", 256)]
    assert sum(one["count"] for one in reasoned["charges"] if not one["within"]) == reasoned["tokens"]


async def test_a_part_of_a_body_is_given_by_itself(made):
    """As a fragment for scripts, and as a page without them; the rest of the body is not sent."""
    async with looking(made) as client:
        id = made[2]["ledger 8"]
        whole = await (await client.get(f"/llm-proxy/calls/{id}?tab=http")).text()
        assert "does what it says" not in whole
        at = re.search(
            r'data-fetch="([\d.]+)" data-side="request"><summary class="car"><span class="key">"tools"', whole
        )
        at = at or re.search(
            r'data-fetch="([\d.]+)"[^>]*><summary class="car"><span class="key">&#34;tools&#34;', whole
        )
        part = await (await client.get(f"/llm-proxy/calls/{id}/json?side=request&at={at[1]}")).text()
        assert part.lstrip().startswith("<ul>")
        assert "mcp__ledger__balance" in part
        alone = await (await client.get(f"/llm-proxy/calls/{id}?tab=http&side=request&at={at[1]}")).text()
        assert "mcp__ledger__balance" in alone


async def test_events_beyond_the_first_come_when_asked_for(made, tmp_path):
    """500 rows at a time, each once."""
    logs = tmp_path / "logs"
    maker = Maker(logs, time.time_ns())
    session = Session(maker, "long", "openai", "api.openai.com", maker.now - 60 * SECOND)
    events = [(n, f'data: {{"n": {n}}}\n\n') for n in range(1200)]
    id = session.call("/v1/chat/completions", {"model": "m"}, events=events)
    indexer = Indexer(tmp_path / "index.db", logs)
    indexer.catch_up_all()
    indexer.close()
    found = made[1]._replace(logs=logs, index=tmp_path / "index.db")
    async with looking((tmp_path, found, {})) as client:
        page = await (await client.get(f"/llm-proxy/calls/{id}?tab=events")).text()
        assert len(re.findall(r'<td role="cell">\d', page)) == 500
        more = await (await client.get(f"/llm-proxy/calls/{id}/events?row=500")).text()
        assert re.findall(r'<td role="cell">([\d,]+)</td>', more)[0] == "501"
        last = await (await client.get(f"/llm-proxy/calls/{id}/events?row=1000")).text()
        assert re.findall(r'<td role="cell">([\d,]+)</td>', last)[-1] == "1,200"
        assert "data-more" not in last


async def test_raw_bytes_with_offsets(made):
    """From any offset on; the parts joined are the body."""
    got = await told(made, "binary", "?tab=raw&side=response")
    assert got["raw"]["size"] == len(BINARY)
    assert got["raw"]["until"] < len(BINARY)
    rest = await told(made, "binary", f"?tab=raw&side=response&offset={got['raw']['until']}")
    assert rest["raw"]["first"] == got["raw"]["until"]
    assert rest["raw"]["until"] == len(BINARY)
    beyond = await told(made, "binary", "?tab=raw&side=response&offset=99999999")
    assert beyond["raw"]["lines"] == []


async def test_hashes_are_those_of_the_bodies(made):
    """Of what crossed the wire; of a body that was cut, the one that was noted."""
    facts = {one["name"]: one["value"] for one in (await told(made, "unknown"))["overview"]["asked_by"]}
    assert facts["sha-256 in"] == hashlib.sha256(b'{"a": 1}').hexdigest()
    cut = {one["name"]: one["value"] for one in (await told(made, "truncated"))["overview"]["asked_by"]}
    assert cut["sha-256 out"] == "ab" * 32


async def test_two_megabytes_and_400_turns_are_shown_in_time(tmp_path, made):
    """Each tab of the last call of a long conversation."""
    logs = tmp_path / "logs"
    maker = Maker(logs, time.time_ns())
    session = Session(maker, "long", "anthropic", "api.anthropic.com", maker.now - 9000 * SECOND)
    agent = Claude(session)
    agent.said = [
        {"role": "user" if n % 2 == 0 else "assistant", "content": [text(f"turn {n}: " + "lorem ipsum " * 420)]}
        for n in range(398)
    ]
    agent.ask("go on", [text("yes")])
    id = agent.ask("and on", [text("yes")], missed=True)
    indexer = Indexer(tmp_path / "index.db", logs)
    indexer.catch_up_all()
    indexer.close()
    found = made[1]._replace(logs=logs, index=tmp_path / "index.db")
    async with looking((tmp_path, found, {})) as client:
        for tab in TABS:
            start = time.process_time()
            answer = await client.get(f"/llm-proxy/calls/{id}?tab={tab}")
            page = await answer.read()
            assert answer.status == 200
            assert time.process_time() - start < 3
            assert len(page) < 250_000, tab


async def test_nothing_recorded_becomes_markup(made):
    """Every field that somebody else chose, on every tab and in every fragment."""
    async with looking(made) as client:
        for id in made[1].calls["hostile"]:
            for path in (*(f"?tab={tab}" for tab in TABS), "/json?side=request", "/json?side=response", "/events"):
                page = await (await client.get(f"/llm-proxy/calls/{id}{path}")).text()
                for one in HOSTILE:
                    if "<" in one:
                        assert one not in page
                assert "style=" not in re.sub(r"&[^;]+;|>[^<]*<", "><", page)
