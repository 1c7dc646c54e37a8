"""What clients were answered is in the usage log, each call once, whatever PostgreSQL does meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_proxy.gateway.usage import SPOOL
from tests.fakeprovider import FakeProvider
from tests.gatewaybed import SECRETS, Gateway, gateways
from tests.postgresbed import Server
from tests.test_gateway_machines import processes

__all__ = ["gateways"]

CLIENTS = 6
CHAT: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def postgres():
    """One that may be killed."""
    server = Server()
    server.start()
    yield server
    server.end()


class Load:
    """Clients that call one after the other, whole answers and streams, and keep their own count of what they got."""

    def __init__(self, url: str, key: str) -> None:
        self.answered: Counter[str] = Counter()  # requests' ids
        self.broken = 0  # ended without an answer
        self.failed: list[Any] = []
        self._url = f"{url}/v1/chat/completions"
        self._key = {"Authorization": f"Bearer {key}"}
        self._stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def going(self):
        async with aiohttp.ClientSession(headers=self._key) as http:
            clients = [asyncio.create_task(self._calls(http, stream=bool(n % 2))) for n in range(CLIENTS)]
            try:
                yield
            finally:
                self._stopping.set()
                await asyncio.gather(*clients)

    async def more(self, count: int) -> None:
        """So many calls are answered from now on."""
        goal = self.answered.total() + count
        async with asyncio.timeout(60):
            while self.answered.total() < goal:
                await asyncio.sleep(0.01)

    async def _calls(self, http: aiohttp.ClientSession, stream: bool) -> None:
        while not self._stopping.is_set():
            try:
                async with http.post(self._url, json=CHAT | {"stream": stream}) as answer:
                    body = await answer.read()
            except aiohttp.ClientError:
                self.broken += 1
                continue
            if "x-llm-proxy-request-id" not in answer.headers:  # nobody was there to give it one
                self.broken += 1
                continue
            self.answered[answer.headers["x-llm-proxy-request-id"]] += 1
            if answer.status != 200 or (stream and b"[DONE]" not in body):
                self.failed.append((answer.status, body))
            await asyncio.sleep(0.02)


async def _rows(server: Server, database: str) -> Counter[str]:
    link = await server.connect(database)
    try:
        return Counter(one[0] for one in await link.fetch("SELECT request_id FROM request_logs"))
    finally:
        await link.close()


async def test_no_call_is_lost_while_postgresql_hangs_and_is_killed(gateways, postgres, fake: FakeProvider):
    """Nobody's call fails who called before; what the clients counted is what is in the log when it is back."""
    database = await postgres.create(name="gateway")
    # Its default, which throw-away servers switch off: what was said to be written is there after a kill.
    await postgres.execute(f'ALTER DATABASE "{database}" SET synchronous_commit TO on')
    env = SECRETS | {"DATABASE_URL": postgres.url(database)}
    gateway = await asyncio.to_thread(lambda: gateways(env=env, allow=[fake.url]))
    load = Load(gateway.url, await asyncio.to_thread(_furnished, gateway, fake))
    spool = Path(gateway.log).with_name(SPOOL)
    async with load.going():
        await load.more(100)
        await asyncio.to_thread(postgres.freeze)
        async with asyncio.timeout(60):
            while not spool.exists() or not spool.stat().st_size:
                await asyncio.sleep(0.02)
        await load.more(50)
        await asyncio.to_thread(postgres.thaw)
        await load.more(100)
        await asyncio.to_thread(postgres.kill)
        await load.more(200)
        await asyncio.to_thread(postgres.resume)
        await load.more(100)
    assert (load.failed, load.broken) == ([], 0)
    async with asyncio.timeout(60):
        while (await _rows(postgres, database)).total() < load.answered.total():
            await asyncio.sleep(0.1)
    gateway.daemon.stop()
    assert await _rows(postgres, database) == load.answered


async def test_no_answer_is_missing_when_a_process_is_killed(gateways, fake: FakeProvider):
    """Whoever has the whole answer, its last byte too, finds the call in usage, once: the process beside it writes it."""
    gateway = await asyncio.to_thread(
        lambda: gateways(env=SECRETS | {"LLM_PROXY_GATEWAY_WORKERS": "2"}, allow=[fake.url])
    )
    load = Load(gateway.url, await asyncio.to_thread(_furnished, gateway, fake))
    async with load.going():
        await load.more(50)
        for _ in range(2):
            killed = processes(gateway)[0]
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(60):
                while len(processes(gateway)) < 2 or killed in processes(gateway):
                    await asyncio.sleep(0.02)
            await load.more(50)
    assert load.failed == []
    database = sqlite3.connect(gateway.log.with_name("gateway.db"))
    query = "SELECT request_id, count(*) FROM request_logs GROUP BY 1"

    def missing():
        found = dict(database.execute(query).fetchall())
        assert set(found.values()) == {1}
        return load.answered.keys() - found.keys()

    with contextlib.closing(database):
        async with asyncio.timeout(60):
            while missing():
                await asyncio.sleep(0.1)


def _furnished(gateway: Gateway, fake: FakeProvider) -> str:
    gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", fake.url))
    return gateway.key()
