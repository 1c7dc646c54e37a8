"""The gateway's accounts behind a real socket, in the test's own loop: its application with the routes of accounts.

Whole gateways as people start them are `gatewaybed`. `X-LLM-Proxy-Peer`, which the proxy sends, says whose address it is.
"""

import base64
import contextlib
import hmac
import json
import time
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from sqlalchemy import select

from llm_proxy.gateway.app import PEER, application
from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.identity import Identifier
from llm_proxy.gateway.manage import auth, invitations, teams, users
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.routes import Access, Route
from llm_proxy.gateway.site import Site

PASSWORD = "a long and private one"
JWT_SECRET = "the secret of all sessions, for tests"
SECRETS = Secrets(jwt_secret=JWT_SECRET, encryption_key="-", database_url="-")


def old_token(scope="api_key", secret=JWT_SECRET, **changed):
    """As TokenTracer signed: HS256 with the secret itself, claims in order, a number as `sub`."""
    at = int(time.time())
    claims = dict(sorted({"exp": at + 86_400, "iat": at, "scope": scope, "sub": 7, **changed}.items()))
    parts = (b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims, separators=(",", ":")).encode())
    body = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    signature = hmac.digest(secret.encode(), body.encode(), "sha256")
    return f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def _whoever(ask):
    """What a call of a model would see of its caller."""
    caller = ask.caller
    return {"user": caller.user_id, "key": caller.key_id, "scopes": sorted(caller.scopes), "teams": caller.team_ids}


ROUTES = (
    *(*auth.ROUTES, *users.ROUTES, *teams.ROUTES, *invitations.ROUTES),
    Route("GET", "/models", Access.KEY, "", _whoever, scope=Scope.MODELS),
    Route("GET", "/usage", Access.KEY, "", _whoever, scope=Scope.USAGE),
)


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        """Of an error."""
        return self.json["error"]["code"]

    @property
    def words(self):
        return self.json["error"]["message"]


class Door:
    """One process' accounts. `store` and `identifier` are its own."""

    def __init__(self, store, identifier, url, client):
        self.store, self.identifier, self.url = store, identifier, url
        self._client = client

    async def ask(self, method, path, body=None, token="", headers=None, address="192.0.2.1"):
        told = {PEER: address, **(headers or {})}
        if token:
            told["Authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self._client.request(method, self.url + path, data=data, headers=told) as response:
            return Answer(response.status, response.headers, await response.read())

    async def want(self, status, *arguments, **more):
        """What is answered, which must have this status."""
        answer = await self.ask(*arguments, **more)
        assert answer.status == status, answer
        return answer.json if answer.body else None

    async def sign_up(self, email, password=PASSWORD, **more):
        """The answer to signing in to a new account."""
        told = {"email": email, "password": password, **more}
        assert await self.want(201, "POST", "/auth/signup", told) == {"message": "User created"}
        return await self.sign_in(email, password)

    async def sign_in(self, email, password=PASSWORD, **more):
        return await self.want(200, "POST", "/auth/login", {"email": email, "password": password}, **more)

    async def session(self, email, **more):
        return (await self.sign_up(email, **more))["token"]

    async def key(self, session, **more):
        return await self.want(200, "POST", "/auth/key", more, session)

    async def rows(self, table, *where):
        async with self.store.reading() as connection:
            return (await connection.execute(select(table).where(*where).order_by(*table.primary_key))).all()


@contextlib.asynccontextmanager
async def doors(store, setting="open", clock=None):
    """A Door to this store, on a port of its own."""
    options = Options(socket="-", upstream="-", state="-", signup=setting)
    identifier = Identifier(store, SECRETS, options, **({"clock": clock} if clock else {}))
    store.on_change(identifier.forget)
    absent = dict.fromkeys(("sealer", "catalogs", "breakers", "sender", "limiter", "usage"))
    site = Site(options=options, secrets=SECRETS, store=store, identifier=identifier, **absent)
    runner = web.AppRunner(application(site, ROUTES), handler_cancellation=True)
    await runner.setup()
    try:
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        async with aiohttp.ClientSession() as client:
            yield Door(store, identifier, f"http://127.0.0.1:{runner.addresses[0][1]}", client)
    finally:
        await runner.cleanup()
        await identifier.close()
