"""What a second pair of eyes looked for in the gateway: nobody spoils it for others, nothing hangs, nothing counts twice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.gateway import model_lists
from llm_proxy.gateway import site as sites
from llm_proxy.gateway.breaker import IN_A_ROW, Breakers
from llm_proxy.gateway.calls import ways
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.sending import client as client_module
from llm_proxy.gateway.sending.client import HIGH, Client
from llm_proxy.gateway.sending.events import Watch
from llm_proxy.gateway.store.database import StoreUnusable
from tests.gatewaycalls import Calls, calling, calls
from tests.gatewaystore import a_store_url

__all__ = ["calls"]

HELLO = [{"role": "user", "content": "hello"}]
CHAT = "/v1/chat/completions"


def chat(model: str = "fast", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO} | more


# -- nobody opens a circuit for others


@pytest.mark.parametrize(
    ("kind", "asked", "status"),
    [
        ("gemini", "gemini/..", 400),
        ("gemini", "gemini/" + "a" * 90_000, 400),
        ("bedrock", "bedrock/..", 400),
        ("bedrock", "bedrock/" + "/" * 90_000, 400),
    ],
    ids=["dots", "long", "bedrock-dots", "bedrock-long"],
)
async def test_a_callers_odd_name_of_a_model_is_his_own_trouble(
    calls: Calls, kind: str, asked: str, status: int
) -> None:
    """It is refused at once, naming the field, and the key it would have gone to is there for everybody else."""
    key = await calls.provider(kind)
    await calls.alias("fast", key)
    answers = [await calls.ask(CHAT, chat(asked)) for _ in range(IN_A_ROW + 1)]
    assert {answer.status for answer in answers} == {status}, answers[0]
    assert answers[0].json["error"]["param"] == "model"
    assert calls.site.breakers.states() == {}
    assert (await calls.ask(CHAT, chat())).status == 200


async def test_a_callers_endless_header_is_his_own_trouble(calls: Calls) -> None:
    """A session's id goes on to the provider, and so may be only so long."""
    await calls.alias("fast", await calls.provider("openai"))
    told = {"x-session-id": "s" * 8000}
    for _ in range(IN_A_ROW + 1):
        answer = await calls.ask(CHAT, chat(), told)
        assert (answer.status, answer.json["error"]["param"]) == (400, "x-session-id"), answer
    assert calls.site.breakers.states() == {}


# -- nothing hangs


async def test_an_error_whose_words_never_come_does_not_hold_the_next_target_up(tmp_path: Path) -> None:
    """The status is enough to go on."""
    async with calling(tmp_path, first_token_timeout=0.5) as calls:
        await calls.chained("fast", ("openai", "status=500;hang=head"), ("gemini", ""))
        async with asyncio.timeout(20):
            answer = await calls.ask(CHAT, chat(stream=True))
        assert (answer.status, answer.headers["x-llm-proxy-attempts"]) == (200, "2")


# -- what rests is no reason to blame the caller


async def test_a_field_that_only_the_resting_target_knows_is_not_the_callers_fault(calls: Calls) -> None:
    """503 and when to come again, not a 400 that would be right for the other target alone."""
    await calls.chained("fast", ("openai", ""), ("gemini", ""))
    first = min(key.id for key in (await calls.site.catalogs.of(calls.user)).keys.values())
    body = chat(logit_bias={"50256": -100})
    assert (await calls.ask(CHAT, body)).status == 200
    for _ in range(IN_A_ROW):
        calls.site.breakers.failed(first)
    answer = await calls.ask(CHAT, body)
    assert (answer.status, answer.json["error"]["code"]) == (503, "providers_resting"), answer
    assert int(answer.headers["Retry-After"]) > 1
    assert (await calls.ask(CHAT, chat())).status == 200  # the other target serves whatever it can


# -- nothing is counted twice


async def test_a_header_that_is_refused_is_one_row(calls: Calls) -> None:
    """The request was refused; no provider was asked."""
    await calls.alias("fast", await calls.provider("anthropic"))
    body = {"model": "fast", "messages": HELLO, "max_tokens": 10}
    answer = await calls.ask("/v1/messages", body, {"anthropic-beta": "caf\u00e9"})
    assert answer.status == 400, answer
    assert [(row.attempt, row.status_code, row.ending) for row in await calls.attempts()] == [(0, 400, "refused")]


async def test_a_body_that_is_not_what_its_coding_says_is_the_callers_error(calls: Calls) -> None:
    """A 400 in his dialect, no failure of ours; and what is compressed as said is read."""
    await calls.alias("fast", await calls.provider("openai"))
    answer = await calls.ask(CHAT, b"no gzip", {"Content-Encoding": "gzip"})
    assert answer.status == 400, answer
    assert "error" in answer.json
    packed = gzip.compress(json.dumps(chat()).encode())
    assert (await calls.ask(CHAT, packed, {"Content-Encoding": "gzip"})).status == 200


# -- streams


def test_the_last_event_is_seen_whatever_comes_behind_it_in_pieces() -> None:
    """`response.completed` repeats the whole answer, so it is often larger than what is kept of a stream."""
    done = {"type": "response.completed", "response": {"output": "x" * 150_000, "usage": {"input_tokens": 3}}}
    stream = b'data: {"type":"response.output_text.delta","delta":"x"}\n\n'
    stream += b"data: %b\n\n" % json.dumps(done).encode()
    for behind in (b"", b": ping\n\n", b"data: [DONE]\n\n"):
        watch = Watch("responses")
        whole = stream[:-1]
        for at in range(0, len(whole), 16_384):
            watch.feed(whole[at : at + 16_384])
        watch.feed(b"\n")
        if behind:
            watch.feed(behind)
        watch.finish()
        assert (watch.over, watch.failure, watch.usage.input) == (True, None, 3), behind


@pytest.mark.parametrize("first", ["openai", "anthropic"])
async def test_a_fault_of_ours_in_the_middle_of_a_stream_breaks_it_off(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """No second head comes into a body that is under way, and it is one attempt that failed."""
    await calls.alias("fast", await calls.provider(first, "words=200;slow=2"))
    feeds = 0

    def fed(feed: Any) -> Any:
        def feed_or_fail(self: Any, piece: bytes) -> bytes:
            nonlocal feeds
            feeds += 1
            if feeds == 5:
                raise RuntimeError("a fault of ours")
            return feed(self, piece)  # type: ignore[no-any-return]

        return feed_or_fail

    for feed in (ways._Passed, ways._Translated):
        monkeypatch.setattr(feed, "feed", fed(feed.feed))
    with socket.create_connection(("127.0.0.1", calls.port)) as link:
        body = json.dumps(chat(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {calls.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        link.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(link, head.encode() + body)
        said = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while piece := await loop.sock_recv(link, 65536):
                    said += piece
    assert said.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 500" not in said and not said.endswith(b"0\r\n\r\n")
    assert [(row.attempt, row.ending, row.error) for row in await calls.attempts()] == [
        (1, "upstream_failed", "internal_error")
    ]


async def test_a_reader_who_was_slow_finds_no_silence_in_what_waits_for_him(tmp_path: Path) -> None:
    """Nobody read: that was not the provider's silence."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * HIGH) + bytes(4 * HIGH))
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(serve, path):
        client = Client(path, idle_timeout=0.2)
        answer = await client.request("GET", "/", [], b"", 10.0)
        (connection,) = client._open
        async with asyncio.timeout(10):
            while not connection._paused:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        first = await answer.__anext__()
        connection.sweep(asyncio.get_running_loop().time(), 0.2)  # as it may come before the next read
        assert len(first) + len(await answer.read(4 * HIGH)) == 4 * HIGH
        client.close()
        async with asyncio.timeout(10):
            await left.wait()


def test_header_lines_that_are_long_are_not_kept() -> None:
    """Whoever answers could fill the memory with them."""
    client_module._common_field.cache_clear()
    for number in range(100):
        assert client_module._field(b"X-%d: %b" % (number, b"a" * 60_000))[0] == f"x-{number}"
    assert client_module._common_field.cache_info().currsize == 0
    assert client_module._field(b"Content-Type: text/plain") == ("content-type", "text/plain")


def test_what_rests_is_told_to_those_who_watch() -> None:
    """By key and model, whatever a caller has named it; what serves is no line."""
    breakers = Breakers()
    for _ in range(IN_A_ROW):
        breakers.failed(3, 'a "model"\n')
    breakers.failed(4)
    lines = [line for line in breakers.metrics() if not line.startswith("#")]
    assert lines == ['llm_proxy_gateway_circuit_open{key="3",model="a \\"model\\"\\n"} 1']


# -- what goes on in the background goes on


async def test_a_chore_that_fails_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would be written, or noticed, until somebody starts the gateway anew."""
    monkeypatch.setattr(sites, "_AGAIN", 0.0)
    times = 0
    third = asyncio.Event()

    async def chore() -> None:
        nonlocal times
        times += 1
        if times < 3:
            raise RuntimeError("trouble")
        third.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(sites._forever("a chore", chore))
    async with asyncio.timeout(10):
        await third.wait()
    task.cancel()
    assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_whatever_fails_at_the_end_the_rest_is_let_go_of(tmp_path: Path) -> None:
    """What was used is written, and the store is closed."""
    async with a_store_url("sqlite", tmp_path) as url:
        told = Options(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path))
        made = await sites.site(told, Secrets("j" * 40, "e" * 40, url))
        closed = made.limiter.close

        async def close() -> None:
            await closed()
            raise RuntimeError("trouble at the end")

        made.limiter.close = close  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="at the end"):
            async with sites.live(made):
                await asyncio.sleep(0)
        with pytest.raises(AssertionError, match="not open"):
            async with made.store.reading():
                pass


async def test_a_list_of_models_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    """It is begun again, and must not be called as often as it was."""
    async with a_store_url("sqlite", tmp_path) as url:
        told = Options(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path))
        made = await sites.site(told, Secrets("j" * 40, "e" * 40, url))
        before = list(made.store._forget)
        task = asyncio.create_task(model_lists.run(made))
        async with asyncio.timeout(10):
            while len(made.store._forget) == len(before):
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})
        assert made.store._forget == before
        await made.store.close()


async def test_a_redis_url_that_is_none_is_told_without_a_traceback(tmp_path: Path) -> None:
    """As a store's URL that is none."""
    async with a_store_url("sqlite", tmp_path) as url:
        told = Options(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path))
        with pytest.raises(StoreUnusable, match="REDIS_URL"):
            await sites.site(told, Secrets("j" * 40, "e" * 40, url, redis_url="redis://host:none"))


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
async def test_a_fault_of_ours_before_a_call_is_told_in_the_callers_dialect(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """As JSON that SDKs read, and nothing of the fault in it."""

    async def identify(*_: Any) -> Any:
        raise RuntimeError("secret trouble")

    monkeypatch.setattr(calls.site.identifier, "identify", identify)
    answer = await calls.ask(path, chat())
    assert (answer.status, b"secret" in answer.body) == (500, False)
    assert answer.json["error"]["type"] == ("api_error" if path == "/v1/messages" else "server_error")
