"""Of a call that is not kept in full, the gateway notes no word that a provider, or a fault of ours, says about it."""

import contextlib
import json
import logging

import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestServer
from sqlalchemy import insert

from llm_proxy.gateway.store import schema
from tests.gatewaycalls import calling

CANARY = "canary of what was asked"
LEVELS = {"none": False, "metadata": False, "redacted": False, "full": True}


async def quoting(request):
    """A provider that repeats what it is asked in its errors."""
    asked = await request.json()
    said = asked["messages"][-1]["content"]
    told = {"error": {"type": "invalid_request_error", "code": asked.get("user"), "message": f"bad prompt: {said}"}}
    if not asked.get("stream"):
        return web.json_response(told, status=400)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    delta = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "well"}}]}
    for one in (delta, told):
        await response.write(f"data: {json.dumps(one)}\n\n".encode())
    return response


@pytest.fixture
async def provider():
    app = web.Application()
    app.router.add_post("/{path:.*}", quoting)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


async def chosen(calls, level):
    async with calls.site.store.writing() as connection:
        await connection.execute(insert(schema.privacy).values(user_id=calls.user, level=level))
        await calls.site.store.changed(connection)


@pytest.mark.parametrize("level", LEVELS)
async def test_the_words_of_an_error_are_noted_only_of_what_is_kept_in_full(tmp_path, provider, caplog, level):
    """Whole, as a code, in the middle of a stream, of ours about a field, and when something breaks in the gateway."""
    async with calling(tmp_path, also=(provider,)) as calls:
        await calls.alias("fast", await calls.provider("openai", base=provider))
        await chosen(calls, level)
        said = [{"role": "user", "content": CANARY}]
        for more in ({}, {"user": CANARY}, {"stream": True}, {CANARY: 1, "temperature": CANARY}):
            with contextlib.suppress(ClientPayloadError):  # a stream that an error ends is cut
                answer = await calls.ask("/v1/chat/completions", {"model": "fast", "messages": said, **more})
                assert answer.status == 400

        async def broken(*_, **__):
            raise RuntimeError(CANARY)

        calls.site.sender.send = broken
        assert (await calls.ask("/v1/chat/completions", {"model": "fast", "messages": said})).status == 500
        rows = await calls.attempts()
    assert rows[0].status_code == 400 and len(rows) == 5 and all(row.error for row in rows)
    assert any(CANARY in row.error for row in rows) is LEVELS[level], [row.error for row in rows]
    assert (CANARY in caplog.text) is LEVELS[level]
    faults = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(faults) == 1 and "running.py" in caplog.text and "RuntimeError" in caplog.text
    if not LEVELS[level]:
        assert rows[0].error == "invalid_request" and not any(" " in row.error for row in rows)
