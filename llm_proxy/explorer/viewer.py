"""Which of the gateway's users looks: asked of the gateway's process, over its Unix socket, and remembered for seconds.

A script brings what it brings to the gateway, a browser the cookie of the team's pages. The gateway judges both, here
nothing of them is read, and while it is away nobody comes in by it. Leaves out the machine's own user (`guard`) and
what each one sees (`index.viewer`).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web

from llm_proxy import unix
from llm_proxy.index.viewer import NONE, Viewer

COOKIE: Final = "llm_proxy_team"
SIGN_IN: Final = "/llm-proxy/team/log-in"
REMEMBERED: Final = 1.0  # seconds: how long one who was shut out, or has signed out, goes on
_MOST: Final = 1000  # remembered
_PATIENCE: Final = ClientTimeout(total=3.0)
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}", re.ASCII)  # that is asked about
# What asks with a header, and with a cookie.
_BY_HEADER, _BY_COOKIE = "/auth/viewer", "/llm-proxy/team/me"


class _Told(msgspec.Struct):
    account: str
    role: str
    email: str = ""


class Team:
    """Owned by the event loop. `sockets` are those of the gateway's processes; without any there is no team."""

    def __init__(self, sockets: tuple[str, ...], admin_sees: str = NONE) -> None:
        self._sockets = sockets
        self._admin_sees = admin_sees
        self._known: dict[bytes, tuple[float, Viewer | None]] = {}

    @property
    def on(self) -> bool:
        return bool(self._sockets)

    async def viewer(self, request: web.Request) -> Viewer | None:
        """Who it is by what the request brings; None where that is nobody, or the gateway cannot say."""
        asked = _brought(request) if self.on else None
        if asked is None:
            return None
        path, headers = asked
        name = sha256("\0".join((path, *headers.values())).encode("utf-8", "surrogateescape")).digest()
        now = time.monotonic()
        until, known = self._known.get(name, (0.0, None))
        if now < until:
            return known
        told = await self._ask(path, headers)
        if told is None:
            return None
        found = self._who(told)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[name] = (now + REMEMBERED, found)
        return found

    def _who(self, told: _Told | bool) -> Viewer | None:
        if not isinstance(told, _Told):
            return None
        try:
            return Viewer(told.account, self._admin_sees if told.role == "admin" else NONE, told.email)
        except ValueError:
            return None

    async def _ask(self, path: str, headers: Mapping[str, str]) -> _Told | bool | None:
        """What one of the processes says; False: nobody; None: none of them can say."""
        for socket in self._sockets:
            with suppress(ClientError, OSError, unix.PathTooLong, asyncio.TimeoutError, msgspec.MsgspecError):
                status, body = await _get(socket, path, headers)
                if status == 200:
                    return msgspec.json.decode(body, type=_Told)
                if status in (401, 403):
                    return False
        return None


async def _get(socket: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
    address, folder = unix.address(socket)
    try:
        async with (
            ClientSession(connector=UnixConnector(address), timeout=_PATIENCE) as session,
            session.get(f"http://localhost{path}", headers=headers, allow_redirects=False) as response,
        ):
            return response.status, await response.content.read(1 << 16)
    finally:
        if folder is not None:
            os.close(folder)


def _brought(request: web.Request) -> tuple[str, dict[str, str]] | None:
    """The route to ask, and the header to send it. A header counts before a cookie, which a browser sends unasked."""
    given = request.headers.getall("Authorization", [])
    if given:
        good = len(given) == 1 and given[0][:7].lower() == "bearer " and _CREDENTIAL.fullmatch(given[0][7:].strip())
        return (_BY_HEADER, {"Authorization": given[0]}) if good else None
    cookies = set(cookies_of(request, COOKIE)) - {""}
    if len(cookies) != 1:  # a page at another port can set one too
        return None
    (cookie,) = cookies
    return (_BY_COOKIE, {"Cookie": f"{COOKIE}={cookie}"}) if _CREDENTIAL.fullmatch(cookie) else None


def cookies_of(request: web.Request, name: str) -> list[str]:
    """All of that name."""
    pairs = (pair.strip().partition("=") for line in request.headers.getall("Cookie", ()) for pair in line.split(";"))
    return [value for found, _, value in pairs if found == name]
