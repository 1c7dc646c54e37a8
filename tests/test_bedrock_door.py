"""The door to Bedrock on the wire: what may pass, how it is signed, who may call, and that nothing is held up or cut."""

from __future__ import annotations

import asyncio
import calendar
import hashlib
import json
import os
import re
import socket
import sys
import time

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from llm_proxy.proxy import callers, signed
from llm_proxy.proxy.bedrock import Bedrock
from llm_proxy.proxy.callers import Guard, Peer, in_tables, owner
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.head import parse_request
from llm_proxy.wire.sigv4 import Key
from tests.rig import Upstream, rigs  # noqa: F401

FIRST = Key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "IQoJb3JpZ2luX2VjEXAMPLETOKEN")
SECOND = Key("AKIDSECOND", "anotherSecretAccessKeyForTheSecondTime")
MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SECRET = "0123456789abcdef" * 4


class Keys:
    """A source of keys in the test's hands: `key` is what there is; `ready` lets those go on who wait."""

    def __init__(self, key: Key | None = FIRST) -> None:
        self.key = key
        self.ready = asyncio.Event()
        self.trouble = ""
        self.refused: list[tuple[Key, str]] = []

    def current(self):
        return self.key

    async def wait(self, limit):
        await self.ready.wait()
        if self.key is None:
            raise signed.NoKey(self.trouble)
        return self.key

    def rejected(self, key, why):
        self.refused.append((key, why))

    def state(self):
        return {"available": self.key is not None}


@pytest.fixture
def door(rigs):  # noqa: F811
    """Start a rig with Bedrock switched on and an upstream that the test plays."""
    opened = []

    async def open_(*, keys=None, secrets=(), required=False, max_body=1 << 20, max_concurrent=0, **config):
        keys = keys or Keys()
        upstream = Upstream()
        endpoint = f"http://127.0.0.1:{upstream.port}"
        bedrock = Bedrock(
            region="us-west-2", runtime=endpoint, control=endpoint, keys=keys,
            guard=Guard(tuple(secrets), required=required), max_body=max_body, max_concurrent=max_concurrent,
        )  # fmt: skip
        rig = await rigs(bedrock=bedrock, **config)
        opened.append(upstream)
        return rig, upstream, keys

    yield open_
    for upstream in opened:
        upstream.close()


def _call(body=b'{"a":1}', *, target=f"/model/{MODEL}/invoke", method="POST", more="", host="127.0.0.1:1"):
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{length}{more}\r\n".encode() + body


def _verify(message, key=FIRST, region="us-west-2"):
    """Recompute the signature of a request as it arrived, with botocore."""
    start, *lines = message.head[:-4].decode().split("\r\n")
    method, target, _ = start.split(" ")
    fields = [line.split(": ", 1) for line in lines]
    headers = {name.lower(): value for name, value in fields}
    assert len(headers) == len(fields), "a field came twice"
    proof = re.fullmatch(
        rf"AWS4-HMAC-SHA256 Credential={key.access}/(\d{{8}})/{region}/bedrock/aws4_request, "
        r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})",
        headers["authorization"],
    )
    assert proof, headers["authorization"]
    names = proof[2].split(";")
    assert names.count("host") == 1 and "x-amz-date" in names
    request = AWSRequest(method=method, url=f"http://{headers['host']}{target}", data=message.payload or None)
    for name in names:
        request.headers[name] = headers[name]
    request.context["timestamp"] = headers["x-amz-date"]
    signer = SigV4Auth(Credentials(key.access, key.secret, key.token or None), "bedrock", region)
    canonical = signer.canonical_request(request)
    assert signer.signature(signer.string_to_sign(request, canonical), request) == proof[3]
    assert headers.get("x-amz-security-token", "") == key.token
    return headers, names


async def _pass(rig, upstream, request, answer=ANSWER):
    """One call: what arrived, and what the client got."""
    client = rig.client()
    await client.send(request)
    server = await upstream.accept()
    message = await server.message()
    await server.send(answer)
    return message, await client.message()


# -- signing ------------------------------------------------------------------------------------------------------


async def test_an_unsigned_request_arrives_signed(door):
    """Path with %3A, host once and as sent, token signed; the client's other fields are as they were."""
    rig, upstream, _ = await door()
    more = (
        "Content-Type: application/json\r\nAnthropic-Beta: a,  b\r\nX-Amzn-Bedrock-GuardrailIdentifier: g\r\n"
        "X-Amzn-Trace-Id: Root=1\r\nUser-Agent: claude-cli\r\naccept: application/json\r\n"
    )
    message, answer = await _pass(rig, upstream, _call(more=more))
    assert message.head.startswith(b"POST /model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0/invoke HTTP/1.1\r\n")
    headers, names = _verify(message)
    assert headers["host"] == f"127.0.0.1:{upstream.port}" and headers["content-length"] == "7"
    assert {"anthropic-beta", "x-amzn-bedrock-guardrailidentifier", "content-type", "accept"} <= set(names)
    assert not {"x-amzn-trace-id", "user-agent"} & set(names)
    assert b"\r\nAnthropic-Beta: a,  b\r\nX-Amzn-Bedrock-GuardrailIdentifier: g\r\n" in message.head
    assert b"\r\nX-Amzn-Trace-Id: Root=1\r\nUser-Agent: claude-cli\r\n" in message.head
    assert message.payload == b'{"a":1}' and answer.payload == b"ok"


async def test_the_clients_own_proofs_stay_here(door):
    """What a client has signed, or carries as a key, means nothing to AWS and never leaves."""
    rig, upstream, _ = await door()
    theirs = (
        "Authorization: AWS4-HMAC-SHA256 Credential=other\r\nX-Amz-Date: 19990101T000000Z\r\nX-Api-Key: sk-other\r\n"
        "x-amz-security-token: other\r\nx-amz-content-sha256: other\r\nCookie: other\r\nConnection: keep-alive\r\n"
    )
    message, _ = await _pass(rig, upstream, _call(more=theirs))
    _verify(message)
    assert b"other" not in message.head and b"1999" not in message.head and b"onnection" not in message.head


async def test_the_record_is_what_the_client_sent(door):
    """Path and body as they came, credentials masked, and nothing of ours: neither signature nor token."""
    rig, upstream, _ = await door()
    await _pass(rig, upstream, _call(more="x-api-key: my-own-credential\r\n"))
    (one,) = await rig.exchanges(1)
    assert one.opening.route == ("bedrock", "http", f"127.0.0.1:{upstream.port}", "bedrock")
    assert one.opening.head.startswith(f"POST /model/{MODEL}/invoke HTTP/1.1\r\n".encode())
    assert one.request == b'{"a":1}' and one.response == b"ok" and one.ending is Ending.COMPLETE
    for never in (b"AWS4", b"my-own-credential", FIRST.token.encode(), FIRST.secret.encode()):
        assert never not in one.opening.head


@pytest.mark.parametrize("size", [0, 1, 70_000, 900_000])
async def test_chunked_bodies_go_out_whole_with_their_length(door, size):
    """A signature covers the body's digest, so the chunks become one body; the record keeps them as they came."""
    rig, upstream, _ = await door()
    body = os.urandom(size)
    cuts = [body[at : at + 7000] for at in range(0, size, 7000)]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(cut), cut) for cut in cuts) + b"0\r\n\r\n"
    message, _ = await _pass(rig, upstream, _call(b"", more="Transfer-Encoding: chunked\r\n") + wire)
    headers, _ = _verify(message)
    assert message.payload == body and headers["content-length"] == str(size)
    assert "transfer-encoding" not in headers
    (one,) = await rig.exchanges(1)
    assert one.request == wire and one.end.request_size == size


async def test_a_body_that_comes_in_pieces_is_signed_whole(door):
    """Nothing goes upstream before the last byte is here."""
    rig, upstream, _ = await door()
    client = rig.client()
    body = os.urandom(300_000)
    request = _call(body)
    for at in range(0, len(request), 50_000):
        await client.send(request[at : at + 50_000])
        await rig.until(lambda: rig.core.relays)
    server = await upstream.accept()
    message = await server.message()
    _verify(message)
    assert message.payload == body


async def test_listings_are_signed_for_the_control_plane(door):
    """GET /inference-profiles with its query, sorted and encoded as it is signed."""
    rig, upstream, _ = await door()
    target = "/inference-profiles?type=SYSTEM_DEFINED&maxResults=10&x=a:b"
    message, _ = await _pass(rig, upstream, _call(b"", method="GET", target=target))
    assert message.head.startswith(b"GET /inference-profiles?maxResults=10&type=SYSTEM_DEFINED&x=a%3Ab HTTP/1.1\r\n")
    headers, _ = _verify(message)
    assert "content-length" not in headers


@pytest.mark.parametrize(
    "model",
    [
        "anthropic.claude-3-haiku-20240307-v1:0:200k",
        "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.anthropic.claude-v1:0",
        "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abc123def456",
        "arn:aws:bedrock:us-west-2::foundation-model/anthropic.claude-v1",
        "arn:aws:bedrock:us-east-1:123456789012:custom-model/anthropic.x.y/abcdef123456",
        "arn:aws:sagemaker:us-east-1:123456789012:endpoint/my-endpoint",
        "arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:provisioned-model/abcdef123456",
    ],
)
@pytest.mark.parametrize("encoded", [True, False])
async def test_profiles_and_arns_in_either_spelling(door, model, encoded):
    """Raw or percent-encoded, the same path is sent: as AWS's own clients encode it."""
    from urllib.parse import quote

    rig, upstream, _ = await door()
    spelled = quote(model, safe="") if encoded else model
    message, _ = await _pass(rig, upstream, _call(target=f"/model/{spelled}/converse"))
    _verify(message)
    assert message.head.split(b" ")[1].decode() == f"/model/{quote(model, safe='')}/converse"


# -- what is not signed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("POST", "/model/../invoke", 400),
        ("POST", "/model/./invoke", 400),
        ("POST", "/model/%2e%2e/invoke", 400),
        ("POST", "/model/a%2f..%2fb/invoke", 400),
        ("POST", "/model/a//invoke", 400),
        ("POST", "/model//invoke", 404),
        ("POST", "/model/a%253A0/invoke", 400),
        ("POST", "/model/a%3/invoke", 400),
        ("POST", "/model/a%00/invoke", 400),
        ("POST", "/model/ä/invoke", 400),
        ("POST", "/model/arn:aws:s3:::bucket/invoke", 400),
        ("POST", "/model/arn:aws:bedrock:us-west-2:123456789012:guardrail/x/invoke", 400),
        ("POST", "/model/" + "a" * 2049 + "/invoke", 400),
        ("POST", "/model/a/invoke/", 404),
        ("POST", "/model/a/async-invoke", 404),
        ("POST", "/model/a/invoke%2d", 404),
        ("POST", "/model/a", 404),
        ("POST", "/model/", 404),
        ("GET", "/model/a/invoke", 405),
        ("POST", "/inference-profiles", 405),
        ("DELETE", "/inference-profiles/x", 405),
        ("GET", "/inference-profiles-x", 404),
        ("POST", "/model/a/invoke?X-Amz-Signature=1", 400),
        ("POST", "/model/a/invoke?%58-Amz-Date=1", 400),
    ],
)
async def test_nothing_else_is_signed(door, method, target, status):
    """Other operations, dots, double encodings: refused in AWS's form before anything is recorded or sent."""
    rig, _, _ = await door()
    client = rig.client()
    await client.send(_call(method=method, target=target))
    answer = await client.message()
    assert answer.status == status
    assert answer.get(b"x-amzn-errortype").endswith(b"Exception")
    assert list(json.loads(answer.payload)) == ["message"]
    assert await rig.exchanges() == []


async def test_a_method_is_judged_each_time(door):
    """A path that was routed for POST is not open to GET after that."""
    rig, upstream, _ = await door()
    await _pass(rig, upstream, _call())
    client = rig.client()
    await client.send(_call(b"", method="GET"))
    assert (await client.message()).status == 405


async def test_where_it_is_off_the_answer_says_how_to_switch_it_on(rigs):  # noqa: F811
    """503 in Bedrock's form."""
    rig = await rigs()
    for target in (f"/model/{MODEL}/invoke", "/inference-profiles", "/model/../x"):
        client = rig.client()
        await client.send(_call(target=target))
        answer = await client.message()
        assert answer.status == 503 and answer.get(b"x-amzn-errortype") == b"ServiceUnavailableException"
        assert "BEDROCK_REGION" in json.loads(answer.payload)["message"]
    health = await _health(rig)
    assert health == {"status": "disabled", "decode_errors": 0}


# -- bodies that are too long -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_long_a_body_is_refused_and_never_cut(door, chunked):
    """413 once all of it has come; nothing reaches the upstream; the connection serves on; the record has it all."""
    rig, upstream, _ = await door(max_body=100_000)
    body = os.urandom(200_000)
    client = rig.client()
    if chunked:
        request = _call(b"", more="Transfer-Encoding: chunked\r\n") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        request = _call(body)
    await client.send(request)
    answer = await client.message()
    assert answer.status == 413 and answer.get(b"x-amzn-errortype") == b"RequestEntityTooLargeException"
    assert "100000 bytes" in json.loads(answer.payload)["message"]
    await client.send(_call())
    server = await upstream.accept()
    assert (await server.message()).payload == b'{"a":1}'
    await server.send(ANSWER)
    assert (await client.message()).status == 200
    first, second = await rig.exchanges(2)
    assert first.ending is Ending.REFUSED and first.end.request_size == 200_000 and second.ending is Ending.COMPLETE


async def test_what_follows_a_refused_body_is_served(door):
    """Pipelined behind a body that is too long, in the same write: the next request is where it seems."""
    rig, upstream, _ = await door(max_body=100_000)
    client = rig.client()
    await client.send(_call(b"x" * 100_001) + _call())
    assert (await client.message()).status == 413
    server = await upstream.accept()
    assert (await server.message()).payload == b'{"a":1}'
    await client.send(_call(b"x" * 500 * 1000)[:300_000])  # over several reads, the last with the next request in it
    await server.send(ANSWER)
    assert (await client.message()).status == 200
    await client.send(_call(b"x" * 500 * 1000)[300_000:] + _call(b'{"b":1}'))
    assert (await client.message()).status == 413
    assert (await server.message()).payload == b'{"b":1}'


async def test_a_body_without_end_is_not_read_for_ever(door):
    """Ten times the limit, then the connection ends."""
    rig, _, _ = await door(max_body=10_000)
    client = rig.client()
    await client.send(_call(b"", more="Transfer-Encoding: chunked\r\n"))
    for _ in range(12):
        await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
    answer = await client.message()
    assert answer.status == 413 and answer.get(b"connection") == b"close"


async def test_exactly_the_limit_passes(door):
    """The limit is the largest that is taken."""
    rig, upstream, _ = await door(max_body=100_000)
    message, _ = await _pass(rig, upstream, _call(b"x" * 100_000))
    assert len(message.payload) == 100_000


async def test_who_asks_before_sending_is_told_to_go_on(door):
    """Expect: 100-continue is answered here, since nothing can go upstream yet; and it is not sent on."""
    rig, upstream, _ = await door(max_body=1000)
    client = rig.client()
    head = _call(b"", more="Content-Length: 3\r\nExpect: 100-continue\r\n")
    await client.send(head)
    await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(b"abc")
    message = await (await upstream.accept()).message()
    headers, _ = _verify(message)
    assert message.payload == b"abc" and "expect" not in headers
    other = rig.client()
    await other.send(_call(b"", more="Content-Length: 1001\r\nExpect: 100-continue\r\n"))
    answer = await other.message()
    assert answer.status == 413 and not answer.interim


async def test_a_large_body_goes_out_as_it_is_taken(door):
    """25 MB to an upstream that reads slowly: all of it arrives, while others are answered, and memory is not doubled."""
    rig, upstream, _ = await door(max_body=25 * 10**6)
    body = os.urandom(25 * 10**6)
    client, other = rig.client(), rig.client()
    sending = asyncio.create_task(client.send(_call(body)))
    server = await upstream.accept()
    await sending
    relay = next(iter(rig.core.relays))
    await rig.until(lambda: relay._unsent)
    waiting = sum(map(len, relay._unsent))
    assert waiting > 15 * 10**6  # not in the socket's own buffer, which would be a copy
    await other.send(_call())
    second = await upstream.accept()
    await second.message()
    await second.send(ANSWER)
    assert (await other.message()).status == 200
    message = await server.message()
    _verify(message)
    assert message.payload == body
    await server.send(ANSWER)
    assert (await client.message()).status == 200


async def test_an_early_answer_to_a_large_body_ends_that_connection(door):
    """AWS answers 413 or 403 to what it has not read to its end: the answer passes, and the rest meets no other call."""
    rig, upstream, _ = await door(max_body=25 * 10**6)
    client = rig.client()
    await client.send(_call(b"x" * 20 * 10**6))
    server = await upstream.accept()
    await server.until(b"\r\n\r\n")
    await server.send(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
    assert (await client.message()).status == 403
    await server.to_the_end()
    assert server.ended == "rst" and len(rig.core.pool) == 0
    await client.send(_call())
    message = await (await upstream.accept()).message()
    assert message.payload == b'{"a":1}'


# -- who may call -------------------------------------------------------------------------------------------------


async def _status(rig, request):
    client = rig.client()
    await client.send(request)
    return await client.message()


@pytest.mark.parametrize(
    "more",
    [
        "Origin: http://127.0.0.1:1\r\n",
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: none\r\n",
        "Sec-Fetch-Site: same-origin\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ],
)
async def test_browsers_spend_nothing(door, more):
    """Not even pages that the pass-through would serve, the explorer's own among them."""
    rig, _, _ = await door(origins=("http://127.0.0.1:1",))
    answer = await _status(rig, _call(more=more))
    assert answer.status == 403 and await rig.exchanges() == []


async def test_a_foreign_host_name_is_refused(door):
    """DNS rebinding shows in Host alone."""
    rig, _, _ = await door()
    answer = await _status(rig, _call(host="evil.example"))
    assert answer.status == 403 and answer.get(b"x-amzn-errortype") == b"AccessDeniedException"


@pytest.mark.parametrize(
    ("target", "more"),
    [
        (f"/model/{MODEL}/invoke", f"Authorization: Bearer {SECRET}\r\n"),
        (f"/model/{MODEL}/invoke", f"authorization: bearer  {SECRET}\r\n"),
        (f"/model/{MODEL}/invoke", f"x-api-key: {SECRET}\r\n"),
        (f"/secret/{SECRET}/model/{MODEL}/invoke", ""),
    ],
)
async def test_the_secret_opens_from_each_of_its_places(door, target, more):
    """Bearer, x-api-key and path; it is neither sent on nor recorded."""
    rig, upstream, _ = await door(secrets=(SECRET,), required=True)
    message, _ = await _pass(rig, upstream, _call(target=target, more=more))
    _verify(message)
    assert SECRET.encode() not in message.head
    (one,) = await rig.exchanges(1)
    assert SECRET.encode() not in one.opening.head
    assert one.opening.head.startswith(f"POST /model/{MODEL}/invoke ".encode())


@pytest.mark.parametrize(
    ("target", "more"),
    [
        (f"/model/{MODEL}/invoke", ""),
        (f"/model/{MODEL}/invoke", f"Authorization: Bearer {SECRET[:-1]}\r\n"),
        (f"/model/{MODEL}/invoke", f"Authorization: Basic {SECRET}\r\n"),
        (f"/model/{MODEL}/invoke", "x-api-key: \r\n"),
        (f"/secret/{SECRET[:-1]}/model/{MODEL}/invoke", ""),
        (f"/secret/x/model/{MODEL}/invoke", ""),
    ],
)
async def test_where_the_secret_is_asked_for_nothing_else_opens(door, target, more):
    """403 in Bedrock's form, unrecorded."""
    rig, _, _ = await door(secrets=(SECRET,), required=True)
    answer = await _status(rig, _call(target=target, more=more))
    assert answer.status == 403 and answer.get(b"x-amzn-errortype") == b"AccessDeniedException"
    assert SECRET[:-1].encode() not in answer.payload and await rig.exchanges() == []


async def test_an_empty_secret_opens_nothing(door):
    """Where no secret is configured, presenting an empty one is presenting none."""
    rig, _, _ = await door(secrets=(), required=True)
    assert (await _status(rig, _call(more="Authorization: Bearer \r\nx-api-key:\r\n"))).status == 403


_FOREIGN = """
import os, socket, sys
"".encode("idna")  # imported now: the interpreter may lie where the other user cannot read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
link.sendall(sys.stdin.buffer.read())
print(link.recv(65536).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
async def test_another_users_program_is_refused_and_with_the_secret_served(door):
    """Told by the owner of the socket's other end; who has the secret has been let in by the user."""
    rig, upstream, _ = await door(secrets=(SECRET,))

    async def foreign(request):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _FOREIGN, str(rig.port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(10):
                out, _ = await process.communicate(request)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return out.decode()

    said = await foreign(_call())
    assert said.startswith("HTTP/1.1 403 ") and "user 65534" in said
    task = asyncio.create_task(foreign(_call(more=f"x-api-key: {SECRET}\r\n")))
    server = await upstream.accept()
    _verify(await server.message())
    await server.send(ANSWER)
    assert (await task).startswith("HTTP/1.1 200 ")


_MAPPED = "0000000000000000FFFF0000"
_SIX = "00000000000000000000000001000000"
_LINE = "   1: {} 01 00000000:00000000 00:00000000 00000000  {}        0 {} 1 0000000000000000 20 4 30 10 -1\n"


@pytest.mark.parametrize(
    ("name", "client", "line", "wanted"),
    [
        ("tcp", "127.0.0.1", _LINE.format("0100007F:C000 0100007F:270F", 1000, 77), (1000, 77)),
        ("tcp6", "127.0.0.1", _LINE.format(f"{_MAPPED}0100007F:C000 {_MAPPED}0100007F:270F", 7, 77), (7, 77)),
        ("tcp6", "::ffff:127.0.0.1", _LINE.format(f"{_MAPPED}0100007F:C000 {_MAPPED}0100007F:270F", 7, 77), (7, 77)),
        ("tcp", "::ffff:127.0.0.1", _LINE.format("0100007F:C000 0100007F:270F", 7, 77), (7, 77)),
        ("tcp6", "::1", _LINE.format(f"{_SIX}:C000 {_SIX}:270F", 9, 77), (9, 77)),
        ("tcp", "127.0.0.1", _LINE.format("0100007F:270F 0100007F:C000", 1000, 77), None),  # our own end
        ("tcp", "127.0.0.1", _LINE.format("0200007F:C000 0100007F:270F", 1000, 77), None),
        ("tcp", "127.0.0.1", "   1: 0100007F:C000 0100007F:270F 01", None),
    ],
)  # fmt: skip
def test_the_owner_in_linuxs_tables(tmp_path, name, client, line, wanted):
    """As they are printed on a little-endian machine; a cut line tells nothing."""
    (tmp_path / name).write_text("  sl  local_address ...\n" + line)
    ours = "::1" if client == "::1" else client
    assert in_tables(Peer(client, 0xC000, ours, 9999), str(tmp_path)) == wanted


_WAYS = [
    ("127.0.0.1", "127.0.0.1"),
    ("::1", "::1"),
    ("::", "127.0.0.1"),
    ("::", "::1"),
    ("127.0.0.1", "::ffff:127.0.0.1"),
]


@pytest.mark.parametrize(("listening", "called"), _WAYS)
def test_the_owner_by_the_kernel(monkeypatch, listening, called):
    """Asked for one socket, and by its tables where that is forbidden: ours, through IPv4, IPv6 and IPv4 within IPv6."""
    family = socket.AF_INET6 if ":" in listening else socket.AF_INET
    with (
        socket.create_server((listening, 0), family=family, dualstack_ipv6=listening == "::") as server,
        socket.socket(socket.AF_INET6 if ":" in called else socket.AF_INET) as link,
    ):
        link.connect((called, server.getsockname()[1]))
        end, theirs = server.accept()
        with end:
            peer = Peer(*theirs[:2], *end.getsockname()[:2])
            inode = os.fstat(link.fileno()).st_ino
            assert callers._asked(peer) == in_tables(peer) == (os.geteuid(), inode)
            monkeypatch.setattr(callers, "_SOCK_DIAG", 9999)
            assert owner(peer) == os.geteuid()


def test_what_is_nobodys_any_more_is_not_roots():
    """Who sends and closes at once leaves a socket that the kernel shows as root's; a root daemon must not serve it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = socket.create_connection(server.getsockname())
        end, theirs = server.accept()
        with end:
            link.close()
            peer = Peer(*theirs, *end.getsockname())
            assert end.recv(1) == b""
            assert in_tables(peer) == (0, 0) or in_tables(peer) is None
            assert owner(peer) is None
            # a listener on the caller's port is not the caller
            other = Peer(*server.getsockname(), "127.0.0.1", 1)
            assert callers._asked(other) is None and owner(other) is None


class _From:
    """A transport of asyncio's as far as a caller is told by it."""

    def __init__(self, theirs, ours="192.0.2.1"):
        self.ends = {"peername": (theirs, 50_000), "sockname": (ours, 9999)}

    def get_extra_info(self, name):
        return self.ends[name]


@pytest.mark.parametrize(
    ("theirs", "guard", "field", "refusal"),
    [
        ("192.0.2.7", Guard((SECRET,)), "", "listen.token"),
        ("192.0.2.7", Guard((SECRET,)), f"x-api-key: {SECRET}\r\n", ""),
        ("192.0.2.7", Guard(), "x-api-key: \r\n", "listen.token"),
        ("192.0.2.1", Guard(), "", ""),  # this machine by its own address
        ("127.0.0.1", Guard(), "", ""),
        ("127.0.0.1", Guard(), "Origin: http://127.0.0.1\r\n", "browsers"),
        ("127.0.0.1", Guard((SECRET,), required=True), "", "secret"),
        ("127.0.0.1", Guard(("",), required=True), "Authorization: Bearer \r\n", "secret"),  # empty is no secret
    ],
)
def test_who_is_let_in_where_owners_cannot_be_seen(monkeypatch, theirs, guard, field, refusal):
    """As on macOS: this machine, and from elsewhere whoever has a secret."""
    monkeypatch.setattr(callers, "_ON_LINUX", False)
    head = parse_request(f"POST /model/a/invoke HTTP/1.1\r\nHost: a\r\n{field}\r\n".encode())
    said = guard.refusal(head, b"", callers.Caller(_From(theirs)))
    assert refusal in said and bool(said) is bool(refusal)


# -- keys ---------------------------------------------------------------------------------------------------------


async def test_calls_wait_for_the_first_key(door):
    """Several at once, each signed with it when it comes."""
    rig, upstream, keys = await door(keys=Keys(None))
    clients = [rig.client() for _ in range(3)]
    for client in clients:
        await client.send(_call())
    await rig.until(lambda: len(rig.core.relays) == 3)
    keys.key = FIRST
    keys.ready.set()
    for _ in clients:
        server = await upstream.accept()
        _verify(await server.message())
        await server.send(ANSWER)
    assert [(await client.message()).status for client in clients] == [200, 200, 200]


async def test_no_key_is_an_error_in_words(door):
    """503 in Bedrock's form with what the source said; the call is recorded as refused."""
    keys = Keys(None)
    keys.trouble = "AWS credentials (sso): the token has expired; run `aws sso login`"
    keys.ready.set()
    rig, _, _ = await door(keys=keys)
    answer = await _status(rig, _call())
    assert answer.status == 503 and answer.get(b"x-llm-proxy-error") == b"no_credentials"
    assert "aws sso login" in json.loads(answer.payload)["message"]
    (one,) = await rig.exchanges(1)
    assert one.ending is Ending.REFUSED and one.request == b'{"a":1}'


async def test_a_client_that_leaves_while_it_waits_for_a_key_leaves_nothing(door):
    """Its exchange ends at once, and when the key comes nothing is sent."""
    rig, upstream, keys = await door(keys=Keys(None))
    client = rig.client()
    await client.send(_call())
    await rig.until(lambda: rig.core.relays)
    client.reset()
    (one,) = await rig.exchanges(1)
    assert one.ending is Ending.CLIENT_GONE
    keys.key = FIRST
    keys.ready.set()
    message, _ = await _pass(rig, upstream, _call(b'{"second":1}'))
    assert message.payload == b'{"second":1}' and len(upstream.wires) == 1


@pytest.mark.parametrize(
    ("status", "kind", "refused"),
    [
        (403, "ExpiredTokenException:http://internal.amazon.com/coral/", True),
        (403, "UnrecognizedClientException", True),
        (403, "AccessDeniedException", False),
        (400, "ExpiredTokenException", True),
        (400, "ValidationException", False),
        (500, "ExpiredTokenException", False),
    ],
)
async def test_an_expired_key_is_told_to_its_source(door, status, kind, refused):
    """The answer passes unchanged; the source hears of it, so that the next call has a new key."""
    rig, upstream, keys = await door()
    wire = f'HTTP/1.1 {status} No\r\nx-amzn-errortype: {kind}\r\nContent-Length: 15\r\n\r\n{{"message":"no"}}'.encode()[
        :-1
    ]
    wire = wire.replace(b"Content-Length: 15", b"Content-Length: %d" % len(wire.partition(b"\r\n\r\n")[2]))
    _, answer = await _pass(rig, upstream, _call(), wire)
    assert answer.head + answer.wire == wire
    assert [key for key, _ in keys.refused] == ([FIRST] if refused else [])


async def test_a_wrong_clock_is_allowed_for(door):
    """A laptop that slept is hours off: AWS refuses, says its time, and the next signature is by that."""
    rig, upstream, keys = await door()
    theirs = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 7200)).encode()
    refusal = (
        b"HTTP/1.1 403 Forbidden\r\nx-amzn-errortype: InvalidSignatureException\r\nDate: %b\r\n"
        b"Content-Length: 0\r\n\r\n" % theirs
    )
    await _pass(rig, upstream, _call(), refusal)
    assert keys.refused == []
    client = rig.client()
    await client.send(_call())
    headers, _ = _verify(await upstream.wires[0].message())
    signed_at = calendar.timegm(time.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ"))
    assert abs(signed_at - time.time() - 7200) < 60
    await upstream.wires[0].send(refusal)  # refused although the clock is right now: so it is the key
    await client.message()
    assert [key for key, _ in keys.refused] == [FIRST]


async def test_a_dead_connection_is_tried_once_more_with_the_same_bytes(door):
    """Idle connections die; the request is whole here, so it is sent again, and only signed anew where it has aged."""
    rig, upstream, keys = await door()
    first = rig.client()
    await first.send(_call())
    server = await upstream.accept()
    await server.message()
    await server.send(ANSWER)
    await first.message()
    await first.send(_call(b'{"again":1}'))
    one = await server.message()
    keys.key = SECOND  # would show in a new signature
    server.reset()
    other = await upstream.accept()
    two = await other.message()
    assert one.head == two.head and one.payload == two.payload
    _verify(two)
    await other.send(ANSWER)
    assert (await first.message()).status == 200
    assert rig.core.metrics.retries == 1


async def test_an_old_signature_is_made_anew_for_the_second_try(door, monkeypatch):
    """AWS takes a signature for five minutes; one that waited for an answer until the connection died may be older."""
    monkeypatch.setattr(signed, "FRESH", 0.0)
    rig, upstream, keys = await door()
    await _pass(rig, upstream, _call())
    (server,) = upstream.wires
    client = rig.client()
    await client.send(_call())
    await server.message()
    keys.key = SECOND
    server.reset()
    _verify(await (await upstream.accept()).message(), SECOND)


# -- places -------------------------------------------------------------------------------------------------------


async def _health(rig):
    answer = await _status(rig, _call(b"", method="GET", target="/health/bedrock"))
    assert answer.status == 200
    return json.loads(answer.payload)


async def test_a_limit_queues_in_order(door):
    """With one place: the others wait their turn, first come, first served, and /health/bedrock says so."""
    rig, upstream, _ = await door(max_concurrent=1)
    clients = []
    for number in range(4):
        client = rig.client()
        clients.append(client)
        await client.send(_call(b'{"n":%d}' % number))
        await rig.until(lambda n=number: len(rig.core.relays) == n + 1)
    health = await _health(rig)
    assert (health["open"], health["waiting"], health["max_concurrent"]) == (1, 3, 1)
    server = await upstream.accept()
    order = []
    for client in clients:
        order.append((await server.message()).payload)
        await server.send(ANSWER)
        assert (await client.message()).status == 200
    assert order == [b'{"n":%d}' % number for number in range(4)]
    assert (await _health(rig))["open"] == 0


async def test_a_place_is_never_lost(door):
    """Whoever leaves, waiting or inside, gives way; so does a call whose upstream fails."""
    rig, upstream, _ = await door(max_concurrent=1)
    inside, waiting, last = rig.client(), rig.client(), rig.client()
    for number, client in enumerate((inside, waiting, last)):
        await client.send(_call(b'{"n":%d}' % number))
        await rig.until(lambda n=number: len(rig.core.relays) == n + 1)
    first = await upstream.accept()
    await first.message()
    waiting.reset()
    await rig.until(lambda: len(rig.core.relays) == 2)
    inside.reset()
    second = await upstream.accept()
    assert (await second.message()).payload == b'{"n":2}'
    second.reset()
    assert (await last.message()).status == 502
    health = await _health(rig)
    assert (health["open"], health["waiting"]) == (0, 0)


async def test_without_a_limit_nobody_waits(door):
    """Forty streams at once, each answered before any other ends."""
    rig, upstream, _ = await door()
    clients = [rig.client() for _ in range(40)]
    for client in clients:
        await client.send(_call())
    servers = [await upstream.accept() for _ in clients]
    for server in servers:
        await server.message()
        await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    for client in clients:
        await client.until(b"\r\n\r\no")


# -- answers ------------------------------------------------------------------------------------------------------


async def test_frames_pass_as_they_come(door):
    """Each piece reaches the client before the next is sent, byte for byte."""
    rig, upstream, _ = await door()
    client = rig.client()
    await client.send(_call(target=f"/model/{MODEL}/invoke-with-response-stream"))
    server = await upstream.accept()
    await server.message()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = head
    await server.send(head)
    for number in range(7):
        piece = hashlib.sha256(b"%d" % number).digest()
        await server.send(b"20\r\n" + piece + b"\r\n")
        sent += b"20\r\n" + piece + b"\r\n"
        await client.until(piece)
    await server.send(b"0\r\n\r\n")
    await client.until(b"\r\n0\r\n\r\n")
    assert client.received == sent + b"0\r\n\r\n"


async def test_an_upstream_that_offers_another_protocol_is_not_followed(door):
    """A 101 would make one raw stream of a signed connection."""
    rig, upstream, _ = await door()
    more = "Upgrade: websocket\r\nConnection: Upgrade\r\n"
    request = _call(b"", method="GET", target="/inference-profiles", more=more)
    client = rig.client()
    await client.send(request)
    server = await upstream.accept()
    message = await server.message()
    assert b"pgrade" not in message.head
    await server.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    assert (await client.message()).status == 502


async def test_pipelined_calls_are_signed_one_by_one(door):
    """Three requests in one write."""
    rig, upstream, _ = await door()
    client = rig.client()
    await client.send(b"".join(_call(b'{"n":%d}' % number) for number in range(3)))
    server = await upstream.accept()
    for number in range(3):
        message = await server.message()
        _verify(message)
        assert message.payload == b'{"n":%d}' % number
        await server.send(ANSWER)
        assert (await client.message()).status == 200
