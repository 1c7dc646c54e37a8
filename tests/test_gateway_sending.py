"""Calls of the gateway to providers, through a real proxy's own socket, to fake providers that show what arrived."""

import asyncio
import json
from dataclasses import replace
from typing import NamedTuple

import pytest
import pytest_asyncio

from llm_proxy.gateway.facts import Provider, ProviderKey, Target
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sealing import Sealer
from llm_proxy.gateway.sending import listing
from llm_proxy.gateway.sending.attribution import Attribution
from llm_proxy.gateway.sending.client import Broken, Unreachable
from llm_proxy.gateway.sending.events import Events, Watch
from llm_proxy.gateway.sending.sender import Rejected, Sender
from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import End, Piece
from tests.fakebedrock import FakeBedrock, Plan, frames
from tests.fakebedrock.server import KEY, SECRET
from tests.rig import Upstream

WHO = Attribution("req_1", 2, "anna@example.com", "laptop", "fast/one", "Büro & co")
SECRET_KEY = "sk-of-the-team-0123456789"
CLAUDE = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
CHAT = b'{"model": "gpt-5.2",  "messages": [{"role":"user","content":"h\\u00e9"}], "temperature": 1.0}'
MESSAGES = b'{"model":"x","max_tokens":9,"temperature":1.0,"messages":[{"role":"user","content":"Hi"}],"stream":true}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


class Bed(NamedTuple):
    """A proxy with a socket for the gateway, which may call `fake` and `upstream`, and a sender over that socket."""

    rig: object
    sender: Sender
    sealer: Sealer
    fake: object
    upstream: Upstream

    def key(self, provider, base_url=None, secret=SECRET_KEY, region=""):
        base_url = self.fake.url if base_url is None else base_url
        bare = ProviderKey(7, 1, provider, "", "", base_url=base_url, region=region)
        sealed = self.sealer.seal(secret, row=7, user=1)
        return replace(bare, sealed=sealed.text, key_version=sealed.version)

    async def send(self, key, api, body=b"{}", model="gpt-5.2", *, stream=False, headers=None, timeout=10.0):
        target = Target(key, model)
        return await self.sender.send(
            target, api, body, stream=stream, headers=headers or {}, attribution=WHO, timeout=timeout
        )

    @property
    def raw(self):
        """The base URL of `upstream`."""
        return f"http://127.0.0.1:{self.upstream.port}"


@pytest_asyncio.fixture
async def beds(rigs, fake, tmp_path):
    """Start beds, with other upstreams than the usual ones allowed besides."""
    started = []

    async def start(allow=(), bases=()):
        upstream = Upstream()
        listed = (fake.url, f"http://127.0.0.1:{upstream.port}", *allow)
        socket = str(tmp_path / f"up{len(started)}.sock")
        rig = await rigs(allow=listed, gateway_socket=socket)
        sealer = Sealer(Secrets("s", "the key of all keys", ""))
        options = Options("", socket, str(tmp_path), version="1.2", allow=listed, bases=bases)
        bed = Bed(rig, Sender(socket, sealer, options), sealer, fake, upstream)
        started.append(bed)
        return bed

    yield start
    for bed in started:
        bed.sender.close()
        bed.upstream.close()


@pytest_asyncio.fixture
async def bed(beds):
    return await beds()


BEARER = {"authorization": f"Bearer {SECRET_KEY}"}
PLACES = [
    (Provider.OPENAI, "chat", False, "/v1/chat/completions", BEARER),
    (Provider.OPENAI, "chat", True, "/v1/chat/completions", BEARER),
    (Provider.OPENAI, "responses", False, "/v1/responses", BEARER),
    (Provider.OPENAI, "embeddings", False, "/v1/embeddings", BEARER),
    (Provider.OPENAI, "completions", False, "/v1/completions", BEARER),
    (Provider.COMPATIBLE, "chat", True, "/chat/completions", BEARER),
    (Provider.COMPATIBLE, "embeddings", False, "/embeddings", BEARER),
    (Provider.COMPATIBLE, "completions", False, "/completions", BEARER),
    (Provider.ANTHROPIC, "anthropic", True, "/v1/messages", {"x-api-key": SECRET_KEY}),
    (Provider.ANTHROPIC, "count_tokens", False, "/v1/messages/count_tokens", {"x-api-key": SECRET_KEY}),
    (Provider.GEMINI, "gemini", False, "/v1beta/models/gpt-5.2:generateContent", {"x-goog-api-key": SECRET_KEY}),
    (
        Provider.GEMINI,
        "gemini",
        True,
        "/v1beta/models/gpt-5.2:streamGenerateContent?alt=sse",
        {"x-goog-api-key": SECRET_KEY},
    ),
    (
        Provider.GEMINI,
        "embed_gemini",
        False,
        "/v1beta/models/gpt-5.2:batchEmbedContents",
        {"x-goog-api-key": SECRET_KEY},
    ),
    (Provider.BEDROCK, "bedrock", False, "/model/gpt-5.2/converse", BEARER),
    (Provider.BEDROCK, "bedrock", True, "/model/gpt-5.2/converse-stream", BEARER),
]


@pytest.mark.parametrize(("provider", "api", "stream", "path", "credential"), PLACES)
async def test_each_provider_is_called_as_it_wants(bed, provider, api, stream, path, credential):
    """Path, credential and body arrive as the provider's API says, and of the caller's head only what the table names."""
    sent = {
        "Authorization": "Bearer llmp_callers",
        "x-api-key": "llmp_callers",
        "X-Goog-Api-Key": "llmp_callers",
        "Cookie": "a=b",
        "OpenAI-Organization": "org-x",
        "Idempotency-Key": "k",
        "Host": "elsewhere",
        "X-LLM-Proxy-Gateway-User": "somebody@else",
        "X-Claude-Code-Session-Id": "3f0f",
    }
    answer = await bed.send(bed.key(provider, region="us-east-1"), api, CHAT, stream=stream, headers=sent)
    await answer.read(1 << 20)
    (seen,) = bed.fake.requests
    assert (seen.method, seen.target, seen.body) == ("POST", path, CHAT)
    got = {name.decode().lower(): value.decode() for name, value in seen.headers}
    expected = credential | {
        "host": f"127.0.0.1:{bed.fake.port}",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": "llm-proxy/1.2",
        "x-claude-code-session-id": "3f0f",
        "content-length": str(len(CHAT)),
    }
    if provider is Provider.ANTHROPIC:
        expected["anthropic-version"] = "2023-06-01"
    assert got == expected


async def test_anthropics_own_fields_are_the_callers(bed):
    """anthropic-version and anthropic-beta pass to Anthropic, to nobody else."""
    sent = {"Anthropic-Version": "2024-01-01", "anthropic-beta": "context-1m-2025-08-07,other"}
    for provider, api in ((Provider.ANTHROPIC, "anthropic"), (Provider.OPENAI, "chat")):
        await (await bed.send(bed.key(provider), api, MESSAGES, headers=sent)).read(1 << 20)
    first, second = bed.fake.requests
    assert first.header("anthropic-version") == "2024-01-01"
    assert first.header("anthropic-beta") == "context-1m-2025-08-07,other"
    assert second.header("anthropic-version") is second.header("anthropic-beta") is None


async def test_whom_a_call_is_for_is_in_the_record_only(bed):
    """The proxy records the attribution that the sender tells, and nothing of it leaves."""
    await (await bed.send(bed.key(Provider.OPENAI), "chat", CHAT)).read(1 << 20)
    (seen,) = bed.fake.requests
    assert b"gateway" not in seen.raw_head.lower()
    recorded = await bed.rig.recorded()
    head = bytes(recorded.opening.head)
    for line in (
        b"X-LLM-Proxy-Gateway-Request: req_1",
        b"X-LLM-Proxy-Gateway-Attempt: 2",
        b"X-LLM-Proxy-Gateway-User: anna@example.com",
        b"X-LLM-Proxy-Gateway-Alias: fast%2Fone",
        b"X-LLM-Proxy-Gateway-Team: B%C3%BCro%20%26%20co",
    ):
        assert line in head
    assert SECRET_KEY.encode() not in head


@pytest.mark.parametrize(
    ("provider", "api", "prefix", "path"),
    [
        (Provider.OPENAI, "chat", "/v1", "/v1/chat/completions"),
        (Provider.OPENAI, "chat", "/team/openai", "/team/openai/v1/chat/completions"),
        (Provider.COMPATIBLE, "chat", "/api/v1/", "/api/v1/chat/completions"),
        (Provider.COMPATIBLE, "chat", "/api/v3", "/api/v3/chat/completions"),
        (Provider.ANTHROPIC, "anthropic", "/v1/", "/v1/messages"),
        (Provider.GEMINI, "gemini", "/x/v1beta", "/x/v1beta/models/gpt-5.2:generateContent"),
    ],
)
async def test_a_base_urls_path_is_kept(bed, provider, api, prefix, path):
    """A base URL's own path stands before the API's, and the version is not said twice."""
    await (await bed.send(bed.key(provider, bed.fake.url + prefix), api)).read(1 << 20)
    assert [seen.target for seen in bed.fake.requests] == [path]


async def test_the_operators_bases_stand_for_the_providers_hosts(beds, fake):
    """A key without a base URL goes where the operator has set for its provider."""
    bed = await beds(bases=(("openai", fake.url + "/v1"), ("anthropic", fake.url)))
    for provider, api in ((Provider.OPENAI, "chat"), (Provider.ANTHROPIC, "anthropic")):
        await (await bed.send(bed.key(provider, ""), api, MESSAGES)).read(1 << 20)
    assert [seen.target for seen in fake.requests] == ["/v1/chat/completions", "/v1/messages"]


@pytest.mark.parametrize(
    ("base", "code"),
    [
        ("https://127.0.0.1:{port}", "upstream_not_allowed"),  # listed as http: the key would go out in clear
        ("http://example.com", "upstream_not_allowed"),  # not listed: it would go out over TLS instead
        ("http://127.0.0.1:9", "upstream_not_allowed"),
        ("ftp://example.com", "bad_base_url"),
        ("https://user@example.com", "bad_base_url"),
        ("https://example.com/a?b", "bad_base_url"),
    ],
)
async def test_a_base_url_is_called_as_it_says_or_not_at_all(bed, base, code):
    """A scheme that the proxy would not use, or a URL that is none, is refused before a key is sent anywhere."""
    key = bed.key(Provider.OPENAI, base.format(port=bed.fake.port))
    with pytest.raises(Unreachable) as caught:
        await bed.send(key, "chat")
    assert caught.value.code == code
    assert not bed.fake.requests


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("models/gemini-2.5-pro", "/v1beta/models/gemini-2.5-pro:generateContent"),
        ("../../v1/x?y#z", "/v1beta/models/..%2F..%2Fv1%2Fx%3Fy%23z:generateContent"),
        ("a b\r\nX: y", "/v1beta/models/a%20b%0D%0AX%3A%20y:generateContent"),
        ("müll%41", "/v1beta/models/m%C3%BCll%2541:generateContent"),
    ],
)
async def test_a_models_name_is_one_segment_of_a_path(bed, model, path):
    """Whatever a caller names the model, the path is the API's."""
    await (await bed.send(bed.key(Provider.GEMINI), "gemini", model=model)).read(1 << 20)
    assert [seen.target for seen in bed.fake.requests] == [path]


@pytest.mark.parametrize(
    ("provider", "api", "model"),
    [
        (Provider.GEMINI, "gemini", ".."),
        (Provider.GEMINI, "gemini", ""),
        (Provider.BEDROCK, "bedrock", "../../x"),
        (Provider.BEDROCK, "bedrock", "a b"),
        (Provider.BEDROCK, "anthropic", "anthropic.claude/../../x"),
    ],
)
async def test_a_models_name_that_is_none_is_refused(bed, provider, api, model):
    """What could be no model of the provider is not asked for."""
    with pytest.raises(Refusal) as caught:
        await bed.send(bed.key(provider, region="us-east-1"), api, model=model)
    assert (caught.value.status, caught.value.param) == (400, "model")
    assert not bed.fake.requests


@pytest.mark.parametrize("value", ["a\r\nX-Api-Key: b", "a\nb", "\x00", "é", "\x7f"])
async def test_a_callers_field_cannot_hold_another(bed, value):
    """A field that passes is printable ASCII, or the request is refused with words for its caller."""
    with pytest.raises(Refusal) as caught:
        await bed.send(bed.key(Provider.ANTHROPIC), "anthropic", headers={"Anthropic-Beta": value})
    assert (caught.value.status, caught.value.param) == (400, "anthropic-beta")
    assert not bed.fake.requests


async def test_a_key_that_cannot_be_sent_is_told(bed):
    """A key of two lines, or one that does not open, is the key's failure: nothing is sent."""
    with pytest.raises(Unreachable) as caught:
        await bed.send(bed.key(Provider.OPENAI, secret="sk-a\r\nX: y"), "chat")
    assert caught.value.code == "bad_key"
    with pytest.raises(Unreachable) as caught:
        await bed.send(replace(bed.key(Provider.OPENAI), sealed="AAAA"), "chat")
    assert caught.value.code == "key_unreadable"
    assert not bed.fake.requests


async def test_what_the_proxy_says_itself_is_no_answer(beds, unused_tcp_port):
    """Where the proxy cannot reach a provider its words and code are told, whatever status it answers with."""
    bed = await beds(allow=(f"http://127.0.0.1:{unused_tcp_port}",))
    with pytest.raises(Unreachable) as caught:
        await bed.send(bed.key(Provider.OPENAI, f"http://127.0.0.1:{unused_tcp_port}"), "chat")
    assert (caught.value.code, caught.value.timed_out) == ("connect_failed", False)
    assert "cannot connect" in caught.value.message
    assert not caught.value.message.startswith("llm-proxy")
    asking = asyncio.create_task(bed.send(bed.key(Provider.ANTHROPIC, bed.raw), "anthropic"))
    wire = await bed.upstream.accept()
    await wire.message()
    wire.reset()
    with pytest.raises(Unreachable) as caught:
        await asking
    assert caught.value.code == "upstream_reset"


async def test_a_providers_error_is_an_answer(bed):
    """Status, fields and body of what the provider refuses are handed on."""
    asking = asyncio.create_task(bed.send(bed.key(Provider.OPENAI, bed.raw), "chat"))
    wire = await bed.upstream.accept()
    await wire.message()
    await wire.send(b'HTTP/1.1 429 Slow down\r\nRetry-After: 3\r\nContent-Length: 13\r\n\r\n{"error": {}}')
    answer = await asking
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert await answer.read(100) == b'{"error": {}}'


async def test_a_provider_that_says_nothing_is_left(bed):
    """No head in time is told as a timeout; who is cancelled, or closes a stream, leaves the provider at once."""
    key = bed.key(Provider.OPENAI, bed.raw)
    asking = asyncio.create_task(bed.send(key, "chat", timeout=0.2))
    wire = await bed.upstream.accept()
    await wire.message()
    with pytest.raises(Unreachable) as caught:
        await asking
    assert caught.value.timed_out
    await wire.to_the_end()
    asking = asyncio.create_task(bed.send(key, "chat"))
    wire = await bed.upstream.accept()
    await wire.message()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await wire.to_the_end()
    asking = asyncio.create_task(bed.send(key, "chat", stream=True))
    wire = await bed.upstream.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    answer = await asking
    assert await anext(answer.pieces()) == b"hi"
    answer.close()
    await wire.to_the_end()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_stream_that_breaks_is_broken_through_the_proxy_too(bed, how):
    """The provider leaves in the middle of a stream: what came is there, then Broken."""
    asking = asyncio.create_task(bed.send(bed.key(Provider.OPENAI, bed.raw), "chat", stream=True))
    wire = await bed.upstream.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    answer = await asking
    assert await anext(answer.pieces()) == b"hi"
    getattr(wire, how)()
    with pytest.raises(Broken):
        await anext(answer.pieces())


async def test_a_coding_nobody_asked_for_is_no_answer(bed):
    """An answer that is compressed although that was not wanted is told, not handed on as text."""
    asking = asyncio.create_task(bed.send(bed.key(Provider.OPENAI, bed.raw), "chat"))
    wire = await bed.upstream.accept()
    await wire.message()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok")
    with pytest.raises(Unreachable, match="gzip"):
        await asking


async def test_streams_of_all_providers_are_read(bed):
    """What each provider streams is decoded and read to its end by the reader of its API."""
    body = {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    for provider, api, more in (
        (Provider.OPENAI, "chat", {"stream_options": {"include_usage": True}}),
        (Provider.OPENAI, "responses", {"input": "Hi"}),
        (Provider.ANTHROPIC, "anthropic", {}),
        (Provider.GEMINI, "gemini", {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}),
    ):
        answer = await bed.send(bed.key(provider), api, json.dumps(body | more).encode(), stream=True)
        assert answer.status == 200
        events, reader, told = Events(api), APIS[api].reader(), []
        watch = Watch(api) if api != "gemini" else None
        async for piece in answer.pieces():
            told += [one for event in events.feed(piece) for one in reader.read(event)]
            if watch:
                watch.feed(piece)
        told += [one for event in events.finish() for one in reader.read(event)]
        told += reader.finish()
        assert [one for one in told if isinstance(one, Piece) and one.text]
        (end,) = (one for one in told if isinstance(one, End))
        assert end.usage.output
        if watch:
            watch.finish()
            assert (watch.begun, watch.over, watch.failure, watch.usage) == (True, True, None, end.usage)


# --- Bedrock


@pytest.fixture
def bedrock():
    with FakeBedrock() as one:
        yield one


def credentials(**more):
    return json.dumps({"access_key_id": KEY, "secret_access_key": SECRET} | more)


def signed(bed, bedrock, **more):
    return bed.key(Provider.BEDROCK, bedrock.url, credentials(**more), bedrock.account.region)


CONVERSE = b'{"messages":[{"role":"user","content":[{"text":"Hi"}]}]}'


async def test_bedrock_believes_the_signature(beds, bedrock):
    """Calls with an AWS key are signed for the host, path and body that arrive; with a session token as well."""
    bed = await beds(allow=(bedrock.url,))
    answer = await bed.send(signed(bed, bedrock), "bedrock", CONVERSE, CLAUDE)
    assert (answer.status, json.loads(await answer.read(1 << 20))["stopReason"]) == (200, "end_turn")
    bedrock.account.keys["ASIATEMPORARY"] = ("other", "the token")
    key = signed(bed, bedrock, access_key_id="ASIATEMPORARY", secret_access_key="other", session_token="the token")
    assert (await bed.send(key, "bedrock", CONVERSE, "amazon.nova-pro-v1:0")).status == 200
    assert [seen.key for seen in bedrock.requests] == [KEY, "ASIATEMPORARY"]
    assert bedrock.requests[0].path == "/model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0/converse"
    wrong = await bed.send(signed(bed, bedrock, secret_access_key="wrong"), "bedrock", CONVERSE, CLAUDE)
    assert wrong.status == 403


async def test_bedrocks_streams_are_events(beds, bedrock):
    """ConverseStream's frames are read to their end, counts included."""
    bed = await beds(allow=(bedrock.url,))
    answer = await bed.send(signed(bed, bedrock), "bedrock", CONVERSE, CLAUDE, stream=True)
    events, reader, told = Events("bedrock"), APIS["bedrock"].reader(), []
    async for piece in answer.pieces():
        told += [one for event in events.feed(piece) for one in reader.read(event)]
    assert events.finish() == []
    assert "".join(one.text for one in told if isinstance(one, Piece)) == "Hello from Bedrock."
    assert [one.usage.output for one in told if isinstance(one, End)] == [5]


async def test_anthropics_bodies_go_to_bedrock_in_its_envelope(beds, bedrock):
    """A Messages body keeps its values byte for byte; model and stream go, version and the betas that Bedrock has come."""
    bed = await beds(allow=(bedrock.url,))
    sent = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219, interleaved-thinking-2025-05-14",
    }
    answer = await bed.send(signed(bed, bedrock), "anthropic", MESSAGES, CLAUDE, headers=sent)
    assert (answer.status, json.loads(await answer.read(1 << 20))["type"]) == (200, "message")
    (seen,) = bedrock.requests
    assert seen.path.endswith("/invoke")
    assert not seen.get("anthropic-version")
    assert seen.body == (
        b'{"anthropic_version":"bedrock-2023-05-31","max_tokens":9,"temperature":1.0,'
        b'"messages":[{"role":"user","content":"Hi"}],"anthropic_beta":["interleaved-thinking-2025-05-14"]}'
    )
    with pytest.raises(Refusal):
        await bed.send(signed(bed, bedrock), "anthropic", b"[]", CLAUDE)


async def test_anthropics_streams_by_way_of_bedrock_are_anthropics(beds, bedrock):
    """The stream is told as server-sent events, named and framed as Anthropic's, and a failure as its error event."""
    bed = await beds(allow=(bedrock.url,))
    answer = await bed.send(signed(bed, bedrock), "anthropic", MESSAGES, CLAUDE, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    watch = Watch("anthropic")
    stream = b""
    async for piece in answer.pieces():
        watch.feed(piece)
        stream += piece
    watch.finish()
    assert stream.startswith(b'event: message_start\ndata: {"type":"message_start"')
    assert stream.count(b"\n\n") == stream.count(b"event: ") == stream.count(b"data: ")
    assert (watch.begun, watch.over, watch.failure) == (True, True, None)
    assert (watch.usage.output, watch.usage.cache_read) == (5, 100)

    bedrock.plan = Plan(frames=[frames.exception("throttlingException", "Too many")])
    answer = await bed.send(signed(bed, bedrock), "anthropic", MESSAGES, CLAUDE, stream=True)
    (event,) = Events("anthropic").feed(await answer.read(1 << 20))
    assert event == {"type": "error", "error": {"type": "rate_limit_error", "message": "Too many"}}

    whole = frames.chunk({"type": "message_start", "message": {}})
    bedrock.plan = Plan(frames=[whole, whole], cut=len(whole) + 20, ends=True)
    answer = await bed.send(signed(bed, bedrock), "anthropic", MESSAGES, CLAUDE, stream=True)
    with pytest.raises(Broken, match="within a frame"):
        await answer.read(1 << 20)


# --- which APIs, which models


@pytest.mark.parametrize(
    ("provider", "model", "apis"),
    [
        (Provider.OPENAI, "gpt-4o", ("chat", "responses", "embeddings", "completions")),
        (Provider.OPENAI, "gpt-5.2", ("responses", "chat")),
        (Provider.OPENAI, "gpt-5-chat-latest", ("chat", "responses", "embeddings", "completions")),
        (Provider.OPENAI, "o4-mini", ("responses", "chat")),
        (Provider.OPENAI, "o3-pro-2025-06-10", ("responses",)),
        (Provider.OPENAI, "gpt-5.1-codex-max", ("responses",)),
        (Provider.OPENAI, "text-embedding-3-small", ("embeddings",)),
        (Provider.OPENAI, "gpt-3.5-turbo-instruct", ("completions",)),
        (Provider.OPENAI, "gpt-4o-search-preview", ("chat",)),
        (Provider.OPENAI, "ft:gpt-4o:org::id", ("chat", "responses", "embeddings", "completions")),
        (Provider.COMPATIBLE, "llama", ("chat", "embeddings", "completions")),
        (Provider.ANTHROPIC, "claude", ("anthropic", "count_tokens")),
        (Provider.GEMINI, "gemini", ("gemini", "embed_gemini")),
        (Provider.BEDROCK, CLAUDE, ("bedrock", "anthropic")),
        (Provider.BEDROCK, "anthropic.claude-3-haiku-20240307-v1:0", ("bedrock", "anthropic")),
        (
            Provider.BEDROCK,
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
            ("bedrock", "anthropic"),
        ),
        (Provider.BEDROCK, "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", ("bedrock",)),
        (Provider.BEDROCK, "amazon.nova-pro-v1:0", ("bedrock",)),
        (Provider.BEDROCK, "notanthropic.model", ("bedrock",)),
    ],
)
async def test_what_a_model_speaks(bed, provider, model, apis):
    """The APIs of each provider's models, the preferred one first."""
    assert bed.sender.speaks(bed.key(provider), model) == apis


async def test_the_models_of_each_provider(beds, bedrock):
    """Ids as one calls them, from each provider's own shape."""
    bed = await beds(allow=(bedrock.url,))
    for provider, models in (
        (Provider.OPENAI, ["gpt-5.2", "gpt-5-mini"]),
        (Provider.COMPATIBLE, ["gpt-5.2", "gpt-5-mini"]),
        (Provider.ANTHROPIC, ["claude-opus-4-8", "claude-haiku-4-5"]),
        (Provider.GEMINI, ["gemini-3.1-pro-preview"]),
    ):
        assert await bed.sender.models(bed.key(provider)) == models
    targets = [seen.target for seen in bed.fake.requests]
    assert targets == ["/v1/models", "/models", "/v1/models?limit=1000", "/v1beta/models?pageSize=1000"]
    assert await bed.sender.models(signed(bed, bedrock)) == [CLAUDE.removeprefix("us."), CLAUDE]


async def serve(upstream, answers):
    """One answer for each request of one connection, the one that the proxy has kept, if any; the requests' targets."""
    wire = upstream.wires[-1] if upstream.wires else await upstream.accept()
    targets = []
    for answer in answers:
        targets.append((await wire.message()).head.split(b" ")[1].decode())
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return targets


async def test_lists_in_pages_are_read_to_their_end(bed):
    """Anthropic's and Gemini's pages follow each other; ids come once."""
    pages = [
        {"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "last_id": "b&c=d"},
        {"data": [{"id": "b"}, {"id": "c"}], "has_more": False, "last_id": "c"},
    ]
    serving = asyncio.create_task(serve(bed.upstream, pages))
    assert await bed.sender.models(bed.key(Provider.ANTHROPIC, bed.raw)) == ["a", "b", "c"]
    assert await serving == ["/v1/models?limit=1000", "/v1/models?limit=1000&after_id=b%26c%3Dd"]
    pages = [{"models": [{"name": "models/a"}], "nextPageToken": "t/1"}, {"models": [{"name": "models/b"}]}]
    serving = asyncio.create_task(serve(bed.upstream, pages))
    assert await bed.sender.models(bed.key(Provider.GEMINI, f"{bed.raw}/x")) == ["a", "b"]
    assert await serving == ["/x/v1beta/models?pageSize=1000", "/x/v1beta/models?pageSize=1000&pageToken=t%2F1"]


@pytest.mark.parametrize(
    "body", [b"[]", b"{}", b"null", b"not json", b'{"data":5}', b'{"data":[5,null,{"id":7},{"id":""}]}', b"\xff", b""]
)
async def test_a_list_that_is_none_has_no_models(bed, body):
    """Whatever a host answers, it is a list of texts."""
    serving = asyncio.create_task(serve(bed.upstream, [body]))
    assert await bed.sender.models(bed.key(Provider.COMPATIBLE, bed.raw)) == []
    await serving


async def test_lists_are_bounded(bed, monkeypatch):
    """A list without end, too large a page, and a host that says nothing: each stops at its limit."""
    monkeypatch.setattr(listing, "LARGEST", 1000)
    monkeypatch.setattr(listing, "PAGES", 3)
    endless = [{"data": [{"id": str(number)}], "has_more": True, "last_id": "x"} for number in range(3)]
    serving = asyncio.create_task(serve(bed.upstream, [*endless, b"x" * 1001]))
    key = bed.key(Provider.ANTHROPIC, bed.raw)
    assert await bed.sender.models(key) == ["0", "1", "2"]
    with pytest.raises(Unreachable) as caught:
        await bed.sender.models(key)
    assert caught.value.code == "too_large"
    await serving
    monkeypatch.setattr(listing, "PATIENCE", 0.2)
    with pytest.raises(Unreachable) as caught:
        await bed.sender.models(key)
    assert caught.value.timed_out


async def test_a_refused_key_is_told_with_the_providers_words(bed):
    """An error in place of a list has the provider's status and words."""
    asking = asyncio.create_task(bed.sender.models(bed.key(Provider.OPENAI, bed.raw)))
    wire = await bed.upstream.accept()
    await wire.message()
    body = b'{"error":{"message":"Incorrect API key","type":"invalid_request_error","code":"invalid_api_key"}}'
    await wire.send(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    with pytest.raises(Rejected) as caught:
        await asking
    assert (caught.value.status, caught.value.problem.message) == (401, "Incorrect API key")
