"""No credential of a user reaches a disk: sent in every place there is, then looked for in every file there is."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
import websockets

from tests.fakeprovider import FakeProvider

CANARY = "cAnArY7Zq0vX3nK9wB2mT5yL8"  # stands nowhere else
JWT = ".".join(("eyJhbGciOiJIUzI1NiJ9", f"eyJzdWIi{CANARY}fQ", f"{CANARY}sig"))
BODY = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}

# Field and value, as some client or other sends its credential.
FIELDS = {
    "x-api-key": f"sk-ant-api03-{CANARY}-xyzAAAA",
    "X-API-Key": CANARY,
    "api-key": CANARY,
    "x-goog-api-key": f"AIza{CANARY}0000000",
    "Authorization": f"Bearer sk-proj-{CANARY}-xyzAAAA",
    "authorization": f"Bearer {JWT}",
    "AUTHORIZATION": "Basic " + base64.b64encode(f"user:{CANARY}".encode()).decode(),
    "Proxy-Authorization": "Basic " + base64.b64encode(f"u:{CANARY}".encode()).decode(),
    "Cookie": f"session={CANARY}; other={CANARY}",
    "X-Amz-Security-Token": CANARY,
    "X-Some-Vendors-Secret": CANARY,
    "X-Harmless": f"sk-ant-{CANARY}-inside",
    "Referer": f"http://127.0.0.1/?token={CANARY}",
}
QUERIES = (f"key={CANARY}", f"a=b&api_key={CANARY}", f"access_token={CANARY}&c=d", f"k%65y={CANARY}", f"token={JWT}")


def spellings() -> dict[str, bytes]:
    """The canary as it stands after each way to write it; of base64 the part that does not depend on what is around."""
    raw = CANARY.encode()
    found = {"plain": raw, "hex": raw.hex().encode(), "utf-16": CANARY.encode("utf-16-le"), "reversed": raw[::-1]}
    for shift in range(3):
        text = base64.b64encode(b"." * shift + raw)
        found[f"base64 at {shift}"] = text[4 if shift else 0 : len(text) // 4 * 4 - 4]
        found[f"base64url at {shift}"] = found[f"base64 at {shift}"].translate(bytes.maketrans(b"+/", b"-_"))
    return found


def hits(*folders: Path, since: float = 0) -> Iterator[str]:
    """Every file written below the folders that has the canary in any spelling, as `file: spelling`."""
    for folder, _, names in (found for top in folders for found in os.walk(top)):
        for file in (Path(folder, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a segment that is settled meanwhile
                if file.is_file() and not file.is_symlink() and file.stat().st_mtime >= since:
                    data = file.read_bytes()
                    yield from (f"{file}: {name}" for name, spelling in spellings().items() if spelling in data)


async def call_in_every_way(url: str, fake: FakeProvider) -> int:
    """The canary in each place, in calls that end well, badly, and not at all. How many were routed."""
    routed = 0
    good = f"{url}/anthropic/127.0.0.1:{fake.port}/v1/messages"
    async with httpx2.AsyncClient(timeout=10) as client:
        for name, value in FIELDS.items():
            for wish in ("", "status=401", "reset=head"):
                with contextlib.suppress(httpx2.TransportError):
                    await client.post(good, json=BODY, headers={name: value, "X-Fake": wish})
                routed += 1
        for query in QUERIES:
            await client.post(f"{good}?{query}", json=BODY)
            await client.get(f"{url}/gemini/127.0.0.1:{fake.port}/v1beta/models?{query}")
            routed += 2
        # Nowhere to go: refused by policy, nobody there, no route, not HTTP.
        for path in ("/openai/10.0.0.1/v1/models", "/openai/127.0.0.1:1/v1/models"):
            await client.get(f"{url}{path}?key={CANARY}", headers={"Authorization": f"Bearer {CANARY}"})
            routed += 1
        await client.get(f"{url}/nowhere?key={CANARY}", headers={"Authorization": f"Bearer {CANARY}"})
        await client.get(f"{url}/openai/user:{CANARY}@127.0.0.1:{fake.port}/v1/models")
        await client.get(f"{url}/health?key={CANARY}", headers={"Origin": "https://evil.example", "Cookie": CANARY})
    async with anthropic.AsyncAnthropic(base_url=good.removesuffix("/v1/messages"), api_key=f"sk-ant-{CANARY}") as one:
        await one.messages.create(**BODY)  # type: ignore[call-overload]
    base = f"{url}/openai/127.0.0.1:{fake.port}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key=f"sk-{CANARY}", max_retries=0) as other:
        await other.responses.create(model="m", input="hi")
    routed += 2
    target = f"ws{base.removeprefix('http')}/responses?api_key={CANARY}"
    protocols: Any = ["realtime", f"openai-insecure-api-key.{CANARY}"]
    with contextlib.suppress(websockets.InvalidHandshake):  # the fake provider chooses no subprotocol
        async with websockets.connect(target, subprotocols=protocols, proxy=None):
            pass
    return routed + 1


def garbage(port: int) -> bytes:
    return f"GET /anthropic/127.0.0.1:{port}/v1/x?key={CANARY} HTTP/1.1\r\nAuthorization : {CANARY}\r\n\r\n".encode()


@pytest.mark.parametrize("settle", [True, False])
async def test_no_credential_reaches_a_disk(start: Any, environ: Any, fake: FakeProvider, settle: bool) -> None:
    """
    In logs, journal, ring and state, while it runs (settled or with the keeper stopped) and after; and not on screen.
    """
    begun = time.time() - 1
    daemon = start("--port", "0")
    await asyncio.to_thread(daemon.wait_for_recording)
    places = (Path(environ["HOME"]), Path("/dev/shm"))
    count = await call_in_every_way(daemon.url, fake)
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    writer.write(garbage(fake.port))
    assert b" 400 " in await asyncio.wait_for(reader.read(), 10)
    writer.close()
    if settle:
        await asyncio.to_thread(
            daemon.entries, 60, lambda entries: sum(entry["type"] == "response" for entry in entries) >= count
        )
    assert list(hits(*places, since=begun)) == []
    await asyncio.to_thread(daemon.stop if settle else daemon.kill)
    entries = await asyncio.to_thread(
        daemon.entries, 60, lambda entries: sum(entry["type"] == "response" for entry in entries) >= count
    )
    assert sum(entry["type"] == "request" for entry in entries) == count
    assert list(hits(*places, since=begun)) == []
    assert CANARY not in "".join(daemon.lines)
    # What stands there instead still tells which key it was.
    keys = {value for entry in entries for value in (entry.get("headers") or {}).get("X-Api-Key", ())}
    digest = hashlib.sha256(CANARY.encode()).hexdigest()[:8]
    assert keys == {"sk-ant-...AAAA", f"[masked sha256:{digest} len:{len(CANARY)}]"}


async def test_the_search_finds_a_credential_in_every_spelling(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    around = [b"", b"x", b"xy", b"user:", b"Bearer "]
    for number, before in enumerate(around):
        (tmp_path / str(number)).write_bytes(
            json.dumps(base64.b64encode(before + CANARY.encode() + b"--").decode()).encode()
        )
    (tmp_path / "plain").write_bytes(b"\0\1" + CANARY.encode() + b"\0")
    (tmp_path / "hex").write_text(CANARY.encode().hex())
    (tmp_path / "none").write_text(CANARY[:-1])
    found = {Path(hit.rpartition(": ")[0]).name for hit in hits(tmp_path)}
    assert found == {"plain", "hex", *map(str, range(len(around)))}
