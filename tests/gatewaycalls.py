"""A gateway inside the test, whole: clients -> proxy -> its routes -> proxy again -> fake providers, on real sockets.

Faults of the fake provider are asked for by a provider key's base URL: `/fake=status=529` in its path.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import insert, select

from llm_proxy import unix
from llm_proxy.gateway import apikeys
from llm_proxy.gateway.app import application
from llm_proxy.gateway.calls import api, models
from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.site import Site, site
from llm_proxy.gateway.store import schema
from llm_proxy.proxy.gateway import Gateway
from llm_proxy.proxy.server import Proxy, ProxyConfig
from tests.fakebedrock import FakeBedrock
from tests.fakebedrock import server as bedrock
from tests.fakeprovider import FakeProvider
from tests.gatewaystore import a_store_url, add_user

SECRET = "sk-of-the-team-0123456789"
AWS = json.dumps({"access_key_id": bedrock.KEY, "secret_access_key": bedrock.SECRET})
MODELS = {
    "openai": "gpt-4o",
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-pro",
    "bedrock": "amazon.nova-pro-v1:0",
    "openai-compatible": "llama-3",
}


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Calls:
    """`key` is an API key of `user`, who owns all that is made here."""

    fake: FakeProvider
    bedrock: FakeBedrock
    site: Site
    port: int
    user: int = 0
    key: str = ""
    http: aiohttp.ClientSession = field(default=None)  # type: ignore[assignment]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def new_key(self, user: int, scopes: tuple[str, ...] = ("models",)) -> str:
        token = apikeys.new(apikeys.KEY)
        await self._insert(
            schema.api_keys,
            user_id=user, name="laptop", prefix=apikeys.shown(token), key_hash=apikeys.digest(token), scopes=list(scopes),
        )  # fmt: skip
        return token

    async def provider(self, kind: str, faults: str = "", *, base: str = "", secret: str = "", **more: Any) -> int:
        """The id of a new provider key, whose provider is the fake one."""
        if not base:
            base = self.bedrock.url if kind == "bedrock" else self.fake.url
        base += f"/fake={faults}" if faults else ""
        secret = secret or (AWS if kind == "bedrock" else SECRET)
        row = {"user_id": self.user, "provider": kind, "base_url": base, "region": "us-west-2", "label": f"our {kind}"}
        row |= {"encrypted_key": "", "key_version": 1} | more
        id = await self._insert(schema.provider_keys, **row)
        sealed = self.site.sealer.seal(secret, row=id, user=row["user_id"])
        async with self.site.store.writing() as connection:
            told = {"encrypted_key": sealed.text, "key_version": sealed.version, "key_id": sealed.key_id}
            await connection.execute(
                schema.provider_keys.update().where(schema.provider_keys.c.id == id).values(**told)
            )
            await self.site.store.changed(connection)
        return id

    async def alias(self, name: str, provider: int, model: str = "", **more: Any) -> int:
        if not model:
            async with self.site.store.reading() as connection:
                found = select(schema.provider_keys.c.provider).where(schema.provider_keys.c.id == provider)
                model = MODELS[(await connection.execute(found)).scalar_one()]
        row = {"user_id": self.user, "alias": name, "provider_key_id": provider, "target_model": model} | more
        return await self._insert(schema.model_aliases, **row)

    async def chained(self, name: str, *kinds: tuple[str, str]) -> None:
        """An alias whose targets are (provider, faults), in this order."""
        ids = [await self.provider(kind, faults) for kind, faults in kinds]
        chain = [
            {"provider_key_id": id, "model": MODELS[kind], "rank": rank, "weight": 1}
            for rank, (id, (kind, _)) in enumerate(zip(ids, kinds, strict=True))
        ]
        await self.alias(name, ids[0], MODELS[kinds[0][0]], chain=chain[1:])

    async def _insert(self, table: Any, **values: Any) -> int:
        async with self.site.store.writing() as connection:
            id = (await connection.execute(insert(table).values(**values).returning(table.c.id))).scalar_one()
            await self.site.store.changed(connection)
            return int(id)

    async def ask(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **more: Any) -> Answer:
        """POST, or GET without a body."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        told = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"} | dict(headers or {})
        method = more.pop("method", "GET" if body is None else "POST")
        async with self.http.request(method, self.url + path, data=data, headers=told, **more) as response:
            return Answer(response.status, response.headers, await response.read())

    async def attempts(self) -> list[Any]:
        """What is noted, in its order."""
        await self.site.usage.flush()
        logs = schema.request_logs
        async with self.site.store.reading() as connection:
            found = await connection.execute(select(logs).order_by(logs.c.request_id, logs.c.attempt))
            return list(found)


@contextlib.asynccontextmanager
async def calling(folder: Path, *, also: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Calls]:
    """A gateway with one user, which may call the fakes and `also` these; `options` are Options'."""
    async with contextlib.AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeProvider())
        amazon = stack.enter_context(FakeBedrock())
        allow = (fake.url, amazon.url, *also)
        sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-"))  # their paths must be short
        told = Options(f"{sockets}/in", f"{sockets}/out", str(folder), allow=allow, **options)
        url = await stack.enter_async_context(a_store_url("sqlite", folder))
        made = await site(told, Secrets("j" * 40, "e" * 40, url))
        stack.push_async_callback(made.store.close)
        stack.push_async_callback(made.usage.flush)
        stack.callback(made.sender.close)
        runner = web.AppRunner(
            application(made, (*api.ROUTES, *models.ROUTES)),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=1.0,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, unix.bind(told.socket)).start()
        proxy = Proxy(ProxyConfig(allow=allow, gateway=Gateway(told.socket), gateway_socket=told.upstream), None)
        listener = socket.create_server(("127.0.0.1", 0))
        await proxy.listen([listener])
        stack.push_async_callback(proxy.close)
        calls = Calls(fake, amazon, made, listener.getsockname()[1])
        calls.user = await add_user(made.store, "dev@example.com")
        calls.key = await calls.new_key(calls.user)
        calls.http = await stack.enter_async_context(aiohttp.ClientSession())
        yield calls


@pytest.fixture
async def calls(tmp_path: Path) -> AsyncIterator[Calls]:
    async with calling(tmp_path) as made:
        yield made


PROVIDERS = tuple(str(one) for one in Provider)
