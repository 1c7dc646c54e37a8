"""The gateway's own calls: over a socket of their own, nowhere inside, recorded with for whom they are made."""

import asyncio
import json
import socket
import stat
import time
from dataclasses import replace

import pytest
import pytest_asyncio

from llm_proxy.explorer.pages import call as page
from llm_proxy.keeper.options import Options
from llm_proxy.proxy import requests
from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.gateway import Gateway
from llm_proxy.records.exchange import Ending
from llm_proxy.wire import attribution
from llm_proxy.wire.attribution import Attribution
from tests.calls import call as a_call
from tests.journals import MS, WALL, Call, Journal
from tests.logpage import untold
from tests.rig import TIMEOUT, Wire
from tests.test_keeper import Place

ANN = Attribution("req_1", "1", "ann@team.example", "llmp_ab12", "fast model", "Büro")
PREFIX = "X-LLM-Proxy-Gateway-"


def lines(whose=ANN):
    return [f"{name}: {value}" for name, value in attribution.fields(whose)]


def call(target, *more, method="POST", body=b"{}"):
    length = (f"Content-Length: {len(body)}",) if body else ()
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: proxy", *more, *length, "", "")).encode() + body


def wire_to(path):
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(TIMEOUT)
    link.connect(path)
    return Wire(link)


@pytest_asyncio.fixture
async def calling(rigs, fake, tmp_path):
    """Start a rig with the socket for calls, from which a fake provider is allowed; a function that asks over it."""
    opened = []

    async def start(**config):
        path = str(tmp_path / "up.sock")
        allow = config.pop("allow", (f"http://127.0.0.1:{fake.port}",))
        rig = await rigs(gateway_socket=path, allow=allow, **config)

        async def ask(*args, wire=None, **kwargs):
            if wire is None:
                opened.append(wire := wire_to(path))
            await wire.send(call(*args, **kwargs))
            return await wire.message()

        rig.ask, rig.up = ask, path
        return rig

    yield start
    for wire in opened:
        wire.close()


def told(recorded):
    """Names and values of the attribution in a recorded head."""
    head = recorded.opening.head.decode().split("\r\n")
    pairs = (line.split(":", 1) for line in head if line.lower().startswith(PREFIX.lower()))
    return {name.lower().removeprefix(PREFIX.lower()): value.strip() for name, value in pairs}


# --- carrying


async def test_whose_call_it_is_stands_in_the_record_and_leaves_with_nothing(calling, fake):
    """The provider sees the call alone; the record has both, and the credential masked."""
    rig = await calling()
    key = "Authorization: Bearer sk-test-0123456789abcdefghij"
    answer = await rig.ask(f"/openai/127.0.0.1:{fake.port}/v1/chat/completions", key, *lines(), "X-Other: kept")
    assert answer.complete and not answer.get(b"x-llm-proxy-error")
    (seen,) = fake.requests
    assert b"gateway" not in seen.raw_head.lower() and seen.target == "/v1/chat/completions"
    assert seen.header("authorization") == key.partition(": ")[2] and seen.header("x-other") == "kept"
    recorded = await rig.recorded()
    assert recorded.opening.route == ("openai", "http", f"127.0.0.1:{fake.port}", "gateway")
    assert told(recorded)["user"] == "ann@team.example" and told(recorded)["team"] == "B%C3%BCro"
    assert attribution.taken(tuple((f"{PREFIX}{k}", v) for k, v in told(recorded).items())) == (ANN, ())
    assert b"0123456789abcdef" not in recorded.opening.head and b"X-Other: kept" in recorded.opening.head
    assert recorded.ending is Ending.COMPLETE and recorded.request == b"{}"


async def test_what_differs_from_call_to_call_does_not_cost_the_memory_of_heads(calling, fake):
    """A hundred calls, each with ids of its own, are alike; each is recorded with its own."""
    rig = await calling()
    wire, count = wire_to(rig.up), requests.REMEMBERED + 36
    for number in range(count):
        whose = Attribution(f"req_{number}", str(number), f"user{number}")
        await rig.ask(
            f"/openai/127.0.0.1:{fake.port}/v1/responses", *lines(whose), wire=wire, body=b"{}" + b" " * number
        )
    wire.close()
    alike = call(f"/openai/127.0.0.1:{fake.port}/v1/responses", *lines(Attribution("another", "9")))
    assert rig.proxy._calls.requests.known(alike[:-2]) is not None
    known = rig.proxy._calls.requests._known
    assert len(known) == 1 and not any(b"req_" in key for key in known)
    recorded = await rig.exchanges(count)
    assert [told(one)["request"] for one in recorded] == [f"req_{number}" for number in range(count)]
    assert [len(one.request) for one in recorded] == [2 + number for number in range(count)]
    assert all(b"gateway" not in seen.raw_head.lower() for seen in fake.requests)


@pytest.mark.parametrize(
    "more",
    [
        [line.lower() for line in lines()],
        [lines()[0], "X-Other: between", *lines()[1:]],
        [f"{PREFIX}User: with a space", *lines()[:2]],
        [f"{PREFIX}User:"],
        [f"{PREFIX}User: a\tb", "Connection: x-llm-proxy-gateway-user"],
        [f"{PREFIX}User: {'x' * 5000}"],
    ],
)
async def test_however_it_is_written_it_does_not_leave(calling, fake, more):
    """Case, order and what cannot be read change nothing about that."""
    rig = await calling()
    for _ in range(2):
        assert (await rig.ask(f"/anthropic/127.0.0.1:{fake.port}/v1/messages", *more)).complete
    assert len(fake.requests) == 2 and all(b"gateway" not in seen.raw_head.lower() for seen in fake.requests)
    for one in await rig.exchanges(2):
        assert " " not in "".join(told(one).values())


async def test_sent_by_anybody_else_they_are_ordinary_fields(calling, fake):
    """On the public port they pass like any other, and mean nothing."""
    rig = await calling()
    client = rig.client()
    target = f"/anthropic/127.0.0.1:{fake.port}/v1/messages"
    await client.send(call(target, *lines()).replace(b"Host: proxy", b"Host: 127.0.0.1:1"))
    assert (await client.message()).complete
    assert fake.requests[0].header(f"{PREFIX}User") == "ann@team.example"
    assert (await rig.recorded()).opening.route[3] == "provider path"


async def test_connections_to_upstreams_are_shared_with_everybody(calling, fake):
    """One pool: what the gateway's call has opened serves the next caller."""
    rig = await calling()
    await rig.ask(f"/anthropic/127.0.0.1:{fake.port}/v1/messages")
    client = rig.client()
    await client.send(call(f"/anthropic/127.0.0.1:{fake.port}/v1/messages").replace(b"proxy", b"127.0.0.1"))
    assert (await client.message()).complete and len(fake.connections) == 1
    assert rig.core.metrics.exchanges.total() == 2


SIGNED = (
    "Authorization: AWS4-HMAC-SHA256 Credential=AKIAX/20261121/us-east-1/bedrock/aws4_request, Signature={}",
    "X-Amz-Date: 20261121T000{}Z",
)


async def test_bedrock_is_called_with_the_gateways_own_signature(calling, fake):
    """Path, query and signature pass as they are, nothing is signed here; heads that never come again are forgotten."""
    rig = await calling()
    target = "/model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0/converse?a=%20b"
    for number in range(100, 105):
        signed = [line.format(number) for line in SIGNED]
        await rig.ask(f"/bedrock/127.0.0.1:{fake.port}{target}", *signed, *lines())
        assert fake.requests[-1].target == target
        assert f"Signature={number}".encode() in fake.requests[-1].raw_head
    assert not rig.proxy._calls.requests._known
    recorded = await rig.exchanges(5)
    assert {one.opening.route[0] for one in recorded} == {"bedrock"}
    assert all(b"Signature=10" not in one.opening.head for one in recorded)
    answer = await rig.ask("/bedrock/bedrock-runtime.us-east-1.amazonaws.com.evil.example:0/model/x/converse")
    assert answer.status == 404 and answer.get(b"x-amzn-errortype") == b"" and rig.core.metrics.faults == 0


# --- where it may go


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:{}", "localhost:{}", "127.0.0.2:{}", "[::1]:{}"),
        *(
            "10.0.0.1",
            "192.168.1.1:8000",
            "169.254.169.254",
            "100.64.0.1",
            "[fd00::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
        ),
    ],
)
async def test_nobody_gets_inside_by_the_gateway(calling, fake, host):
    """A local caller may reach this machine's ports, a user of the gateway may not: loopback and private are listed
    by the operator, or closed."""
    rig = await calling(allow=())
    answer = await rig.ask(f"/openai/{host.format(fake.port)}/v1/chat/completions", *lines())
    assert answer.status == 403 and answer.get(b"x-llm-proxy-error") == b"upstream_not_allowed"
    assert not fake.connections
    assert (await rig.exchange(b"{}")).complete  # of a local caller


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::1", "169.254.169.254"])
async def test_a_public_name_for_a_place_inside_is_a_trap(calling, fake, address):
    """The resolved address is judged."""
    rig = await calling()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    rig.core.dialler._system = lambda host, port: [(family, (address, fake.port))]
    answer = await rig.ask(f"/openai/models.example:{fake.port}/v1/chat/completions")
    assert answer.status == 403 and b"models.example" in answer.payload and not fake.connections


async def test_what_the_operator_names_is_open(calling, fake):
    """`[upstreams] allow`, and the bases that stand in the place of providers' own hosts."""
    rig = await calling(allow=(), bases={"anthropic": parse_base(f"http://127.0.0.1:{fake.port}/prefix")})
    answer = await rig.ask(f"/anthropic/127.0.0.1:{fake.port}/prefix/v1/messages")
    assert not answer.get(b"x-llm-proxy-error") and fake.requests[0].target == "/prefix/v1/messages"
    assert (await rig.ask(f"/anthropic/127.0.0.1:{fake.port + 1}/v1/messages")).status == 403


async def test_known_hosts_only_holds_for_it_too(calling):
    """Providers' own hosts, Amazon's among them, and nobody else's."""
    rig = await calling(policy="known")
    rig.core.dialler._system = lambda host, port: []
    for host, status in (
        ("api.anthropic.com", 502),
        ("bedrock-runtime.us-east-1.amazonaws.com", 502),
        ("bedrock.eu-central-1.amazonaws.com", 502),
        ("bedrock-runtime.us-east-1.amazonaws.com:8443", 403),
        ("models.example", 403),
    ):
        assert (await rig.ask(f"/bedrock/{host}/x")).status == status, host


@pytest.mark.parametrize(
    "target", ["/v1/messages", "/health", "/metrics", "/llm-proxy/", "/auth/me", "/openai", "/x/y/z"]
)
async def test_there_is_nothing_else(calling, target):
    """Provider paths only: not our own answers, not the gateway's paths, which would go round."""
    rig = await calling(gateway=Gateway("/nonexistent"))
    answer = await rig.ask(target, method="GET", body=b"")
    assert answer.status == 404 and answer.get(b"x-llm-proxy-error") == b"no_route"


async def test_the_socket_is_for_this_user_alone(calling, tmp_path):
    """0600, and one that an earlier run has left is replaced."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "up.sock"))
    left.close()
    rig = await calling()
    assert stat.S_IMODE((tmp_path / "up.sock").stat().st_mode) == 0o600
    assert (await rig.ask("/v1/messages")).status == 404


async def test_where_the_socket_cannot_be_had_all_else_is_carried(rigs, tmp_path, caplog):
    """It is said loudly, and nobody else pays for it."""
    rig = await rigs(gateway_socket=str(tmp_path / "no" / "such" / "folder.sock"))
    assert "THE GATEWAY CANNOT CALL" in caplog.text
    assert (await rig.exchange(b"{}")).complete


async def test_at_a_stop_a_request_that_is_served_may_still_call(calling, fake, tmp_path):
    """The gateway answers what it has begun, with calls that it makes only then; they are recorded."""
    path, go_on = str(tmp_path / "g.sock"), asyncio.Event()
    up = []

    async def serve(reading, writing):
        await reading.readuntil(b"\r\n\r\n")
        await go_on.wait()
        for _ in range(2):  # each over a connection of its own, as after a failure
            up.append(wire_to(rig.up))
            await up[-1].send(call(f"/openai/127.0.0.1:{fake.port}/v1/responses", *lines()))
            answer = await up[-1].message()
        writing.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer.payload) + answer.payload)
        await writing.drain()
        writing.close()

    server = await asyncio.start_unix_server(serve, path)
    rig = await calling(gateway=Gateway(path))
    client = rig.client()
    await client.send(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    await rig.until(lambda: rig.proxy.gateway.open)
    draining = asyncio.create_task(rig.proxy.drain(20))
    await rig.until(lambda: rig.proxy._listener._sockets == [])  # the public port is closed
    go_on.set()
    answer = await client.message()
    assert answer.status == 200 and answer.complete and len(answer.payload) > 2
    async with asyncio.timeout(15):
        assert await draining == 0
    assert len(await rig.exchanges(2)) == 2
    for wire in up:
        wire.close()
    server.close()


async def test_a_stop_cuts_calls_at_its_limit(calling, fake):
    """The gateway's calls are exchanges like all others: counted, waited for, cut, and recorded as interrupted."""
    rig = await calling()
    wire = wire_to(rig.up)
    await wire.send(call(f"/anthropic/127.0.0.1:{fake.port}/v1/messages", "X-Fake: hang", *lines()))
    await rig.until(lambda: rig.core.relays)
    began = time.monotonic()
    assert await rig.proxy.drain(0.3) == 1 and time.monotonic() - began < 5
    assert (await rig.recorded()).ending is Ending.INTERRUPTED
    wire.close()


# --- the record


def journalled(folder, *calls):
    place = Place(folder, Options())
    run = Journal(place.journal)
    run.add(*(frame for one in calls for frame in one.frames))
    run.close()
    place.settle()
    return place


def made(serial, whose=ANN, **more):
    """A call that the gateway made."""
    return Call(serial, **{"why": "gateway", "request_headers": lines(whose), "wall": WALL + serial * 1000 * MS} | more)


def test_the_request_entry_tells_whose_it_is(tmp_path):
    """Decoded, what is unknown left out, and not among the headers; the page names the field."""
    place = journalled(tmp_path, made(1), made(2, Attribution("r", "x", "bob")))
    first, second = (entry for entry in place.entries() if entry["type"] == "request")
    assert first["gateway"] == {
        "request": "req_1",
        "attempt": 1,
        "user": "ann@team.example",
        "key": "llmp_ab12",
        "alias": "fast model",
        "team": "Büro",
    }
    assert second["gateway"] == {"request": "r", "attempt": "x", "user": "bob"}
    for entry in place.entries():
        assert untold(entry) == [] and list(entry) == sorted(entry)
        assert not any("Gateway" in name for name in entry.get("headers") or ())
    assert not any("gateway" in entry for entry in place.entries() if entry["type"] != "request")


@pytest.mark.parametrize("why", ["bare path", "provider path", "single target", "bedrock", "named model"])
def test_from_any_other_client_they_are_headers(tmp_path, why):
    """Nobody says of himself that he is the gateway's user."""
    place = journalled(tmp_path, made(1, why=why))
    (entry,) = (entry for entry in place.entries() if entry["type"] == "request")
    assert "gateway" not in entry and entry["headers"]["X-Llm-Proxy-Gateway-User"] == ["ann@team.example"]


def _conversation(serial, whose, turns, **more):
    """A call that repeats `turns` questions and their answers, and asks one more."""
    messages = []
    for number in range(turns):
        messages += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    messages.append({"role": "user", "content": f"q{turns}"})
    reply = {
        "id": f"msg_{serial}",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [{"type": "text", "text": f"a{turns}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": messages}
    return made(serial, whose, request=json.dumps(body).encode(), answer=json.dumps(reply).encode(), **more)


def sessions(place):
    """For each session the users of its calls."""
    found = {}
    for entry in place.entries():
        if entry["type"] == "request":
            found.setdefault(entry["_meta"]["session"], []).append(entry.get("gateway", {}).get("user"))
    return sorted(found.values(), key=str)


BOB = ANN._replace(user="bob")


def test_two_users_who_say_the_same_stay_apart(tmp_path):
    """The provider's key is the same for both, and so is every word: still each has his own session."""
    calls = [_conversation(1 + number, (ANN, BOB)[number % 2], number // 2) for number in range(6)]
    place = journalled(tmp_path, *calls)
    assert sessions(place) == [[ANN.user] * 3, ["bob"] * 3]


def test_an_id_that_two_users_both_give_is_two_sessions(tmp_path):
    """A session's id is the client's word, and anybody can say it; so are days and a local caller's sessions."""
    calls = [
        *(made(1 + number, whose, session="same") for number, whose in enumerate((ANN, BOB, ANN))),
        *(
            made(4 + number, whose, method="GET", target="/v1/models", request=b"")
            for number, whose in enumerate((ANN, BOB, BOB))
        ),
        Call(7, session="same", wall=WALL + 7000 * MS),
    ]
    place = journalled(tmp_path, *calls)
    assert sessions(place) == [[ANN.user, ANN.user], [ANN.user], ["bob", "bob"], ["bob"], [None]]
    starts = [entry for entry in place.entries() if entry["type"] == "session_start"]
    assert [entry.get("client_session") for entry in starts].count("same") == 3


def test_the_explorer_says_for_whom_a_call_was_made():
    """User, team, the model's name as it was asked for, and the request that it was made for; of no other call."""
    plain = a_call({})
    facts = page._asked_by(None, replace(plain, request=plain.request | {"gateway": {**ANN._asdict(), "attempt": 1}}))
    shown = {fact.name: fact.value for fact in facts}
    names = ("for", "team", "asked for as", "gateway’s request")
    assert [shown[name] for name in names] == ["ann@team.example", "Büro", "fast model", "req_1"]
    assert not any({fact.name: fact.value for fact in page._asked_by(None, plain)}[name] for name in names)


def test_values_round_trip():
    """Whatever a name holds: what is sent is ASCII without spaces, and is read as it was."""
    odd = Attribution("a b", "2", "Zoë\r\nX: y", "%41", "a:b/c,d;e", "\x00\x7f")
    pairs = tuple(attribution.fields(odd))
    assert all(value.isascii() and value.isprintable() and " " not in value for _, value in pairs)
    assert attribution.taken((*pairs, ("X-Other", "%41"))) == (odd, (("X-Other", "%41"),))
