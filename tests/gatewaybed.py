"""A gateway as people run it: `llm-proxy gateway` as a process, with accounts, keys, providers and aliases made by HTTP.

Everything here waits for its answer and blocks: call it in a thread where a fake provider lives in the same loop.
"""

import contextlib
import http.client
import json
import os
import time
from contextlib import closing
from typing import Any, NamedTuple

import pytest

from tests.conftest import _KEPT, Daemon, _forget_rings, end_keepers

PASSWORD = "a long and private one"
SECRETS = {"JWT_SECRET": "the secret of all sessions, for tests", "ENCRYPTION_KEY": "the key of all keys, for tests"}


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


class Gateway:
    """One that runs. `admin` is the session of its first account, once `ready` or `member` has asked for it."""

    def __init__(self, daemon):
        self.daemon = daemon
        self._admin = ""

    @property
    def port(self):
        return self.daemon.port

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self):
        """What its process says."""
        return self.daemon.home / ".local/share/llm-proxy/gateway/gateway.log"

    def ask(self, method, path, body=None, token="", headers=None, timeout=60) -> Answer:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)) as link:
            told = dict(headers or {})
            if token:
                told["Authorization"] = f"Bearer {token}"
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            if data is not None:
                told.setdefault("Content-Type", "application/json")
            link.request(method, path, data, told)
            response = link.getresponse()
            return Answer(response.status, response.headers, response.read())

    def wait(self, timeout=90):
        """Until its process serves."""
        deadline = time.monotonic() + timeout
        while (answer := self.ask("GET", "/health/gateway")).status != 200:
            told = self.log.read_text() if self.log.exists() else "nothing"
            assert time.monotonic() < deadline, f"{answer}; its log says {told}"
            time.sleep(0.05)
        return self

    def want(self, status, *arguments, **more):
        """What is answered, which must have this status."""
        answer = self.ask(*arguments, **more)
        assert answer.status == status, answer
        return answer.json if answer.body else None

    def sign_up(self, email, **more):
        """The token of a new account's session."""
        self.want(201, "POST", "/auth/signup", {"email": email, "password": PASSWORD, **more})
        return self.sign_in(email)

    def sign_in(self, email, password=PASSWORD):
        return self.want(200, "POST", "/auth/login", {"email": email, "password": password})["token"]

    @property
    def admin(self):
        self._admin = self._admin or self.sign_up("admin@example.com")
        return self._admin

    def member(self, email="member@example.com"):
        assert self.admin
        return self.sign_up(email)

    def key(self, session="", **more):
        """An API key of whoever's session it is, the administrator's by default."""
        return self.want(200, "POST", "/auth/key", more, session or self.admin)["token"]

    def provider(self, provider, base_url, session="", api_key="sk-of-the-team-0123456789", **more):
        """The id of a new provider key."""
        told = {"provider": provider, "api_key": api_key, "base_url": base_url, **more}
        return self.want(201, "POST", "/manage/providers", told, session or self.admin)["id"]

    def alias(self, name, model, provider, session="", **more):
        told = {"alias": name, "target_model": model, "provider_key_id": provider, **more}
        return self.want(200, "POST", "/manage/aliases", told, session or self.admin)


@contextlib.contextmanager
def a_gateway(home, allow=(), env=None):
    """One with this folder as its home, until the end of the block, for tests that share it; it may still be starting."""
    environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environ |= {"HOME": str(home), **SECRETS, "LLM_PROXY_UPSTREAMS_ALLOW": ",".join(allow), **(env or {})}
    daemon = Daemon(home, ("gateway", "--port", "0"), environ, {})
    try:
        yield Gateway(daemon)
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
        end_keepers(home)
        _forget_rings(str(home))


@pytest.fixture
def gateways(start):
    """Start gateways: command-line arguments, and settings by their environment variables in `env`."""

    def begin(*arguments, env=None, allow=()):
        environ = SECRETS | ({"LLM_PROXY_UPSTREAMS_ALLOW": ",".join(allow)} if allow else {}) | (env or {})
        return Gateway(start("gateway", "--port", "0", *arguments, env=environ)).wait()

    return begin
