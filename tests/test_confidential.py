"""What travels to a login endpoint is carried, and recorded without its bodies."""

from __future__ import annotations

import asyncio
import urllib.request

import pytest


def post(url, body, headers):
    """Send a body, give back the answer's."""
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize("path", ["/v1/oauth/token", "/api/oauth2/exchange?x=1", "/backend/TOKEN"])
async def test_the_bodies_of_logins_are_not_recorded(daemon, fake, path):
    """Refresh tokens lie in bodies, where nothing is masked: size and digest must do."""
    daemon.wait_for_recording()
    body = b'{"refresh_token":"canary-0123456789abcdef"}'
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}{path}"
    assert body in await asyncio.to_thread(post, url, body, {"X-Fake": "echo"})
    asked, answered = daemon.entries(until=lambda entries: len(entries) == 3)[1:]
    assert (asked["size"], asked["truncated"], asked["body"]) == (len(body), "limit", "")
    assert len(asked["sha256"]) == 64
    assert (answered["status"], answered["truncated"], answered["body"]) == (200, "limit", "")
    for file in (*daemon.logs.rglob("*.jsonl"), *daemon.state.rglob("*.seg")):
        assert b"canary" not in file.read_bytes()


async def test_counting_tokens_is_no_login(daemon, fake):
    """Only whole path segments name a login."""
    daemon.wait_for_recording()
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}/v1/messages/count_tokens"
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    await asyncio.to_thread(post, url, body, {})
    asked = daemon.entries(until=lambda entries: len(entries) == 3)[1]
    assert asked["body"] == body.decode() and "truncated" not in asked
