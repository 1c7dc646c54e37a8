"""Who sent a request: the owner of the session's token or the API key in its head, remembered for a minute.

A credential comes as `Authorization: Bearer …` (RFC 6750 2.1) or, as Anthropic's SDKs send it, as `x-api-key`; where
both come, `x-api-key` counts if it is one of our keys, else the bearer's, because a client may send along a key of its
own for a provider. Remembered is who stands behind the SHA-256 of a whole credential, until anything changes in the
store. While that is away, who is remembered is served and nobody else.

Leaves out who may do what (`app`) and where sessions and keys come from (`manage.auth`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from multidict import MultiMapping
from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway import apikeys
from llm_proxy.gateway.facts import Caller, Role, Scope
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.passwords import Passwords
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.session_tokens import LONGEST, BadToken, SessionTokens
from llm_proxy.gateway.store.database import Store, StoreAway
from llm_proxy.gateway.store.schema import api_keys, now, privacy, sessions, team_members, users
from llm_proxy.gateway.throttle import Throttle

log = logging.getLogger("llm_proxy.gateway")

REMEMBERED: Final = 60.0  # seconds
MOST: Final = 10_000  # callers remembered; the one longest known goes first
USED: Final = timedelta(minutes=1)  # a key's last use is known to the minute
_GATHERED: Final = 5.0  # seconds in which keys' uses are gathered for one transaction

_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)", re.ASCII)
_BARE: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_IN_URL: Final = re.compile(
    r"llmp_[0-9a-z]{20}|eyJhbGciOi[\w-]*\.|[?&](?:api[_-]?key|access[_-]?token|token|key)=[^&]{20}",
    re.ASCII | re.IGNORECASE,
)

_ACCOUNT: Final = (
    users.c.email,
    users.c.role,
    users.c.active,
    users.c.rate_limit_minute,
    users.c.rate_limit_daily,
)


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    until: float  # by the clock


class Identifier:
    """One for a process, with what else guards the door: `passwords`, `throttle` and the sessions' `tokens`."""

    def __init__(
        self, store: Store, secrets: Secrets, options: Options, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tokens = SessionTokens(secrets.jwt_secret)
        self.passwords = Passwords()
        self.throttle = Throttle()
        self._store = store
        self._clock = clock
        # Both are new whenever something changed: who was looked up before then comes into the old ones, unseen.
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[Caller]] = {}
        self._used: dict[int, datetime] = {}
        self._writing: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def identify(self, headers: Mapping[str, str], target: str = "") -> Caller:
        """Who sent these headers (whose names compare without case) to this request target.

        Raises Refusal 401, and 400 for a credential in the URL; StoreAway.
        """
        if target and _IN_URL.search(target):
            raise Refusal(
                400,
                "credential_in_url",
                "a credential does not belong in a URL, where logs keep it: send it as Authorization: Bearer … "
                "or x-api-key, and make a new one, for this one is no secret any more",
            )
        token = _credential(headers)
        name = sha256(token.encode()).digest()
        return self._remembered(name) or await self._asked(name, lambda: self._finder(token))

    async def visitor(self, cookie: str) -> Caller:
        """Whose browser has this cookie, which opens pages and no route. Raises Refusal 401; StoreAway."""
        name = sha256(b"cookie " + cookie.encode("utf-8", "surrogateescape")).digest()
        return self._remembered(name) or await self._asked(name, lambda: self._cookie_finder(cookie))

    def _remembered(self, name: bytes) -> Caller | None:
        known = self._known.get(name)
        return known.caller if known is not None and self._clock() < known.until else None

    def forget(self) -> None:
        """Something changed in the store."""
        self._known = {}
        self._asking = {}

    async def close(self) -> None:
        """What was used is written."""
        self._closing.set()
        if self._writing is not None:
            await self._writing
        self.passwords.close()

    async def _asked(self, name: bytes, finder: Callable[[], _Find]) -> Caller:
        """The store is asked once for all that come with one credential at a time."""
        asking = self._asking
        task = asking.get(name)
        if task is None:
            task = asking[name] = asyncio.get_running_loop().create_task(self._looked_up(name, finder))

            def answered(task: asyncio.Task[Caller]) -> None:
                asking.pop(name)
                if not task.cancelled():
                    task.exception()  # whoever asked may have gone

            task.add_done_callback(answered)
        return await asyncio.shield(task)

    async def _looked_up(self, name: bytes, finder: Callable[[], _Find]) -> Caller:
        known, at = self._known, self._clock()
        find = finder()
        async with self._store.reading() as connection:
            caller, expires = await find(connection)
        lasts = (expires - now()).total_seconds() if expires else REMEMBERED
        if len(known) >= MOST:
            known.pop(next(iter(known)), None)
        known[name] = _Known(caller, at + min(REMEMBERED, lasts))
        return caller

    def _finder(self, token: str) -> _Find:
        """Raises Refusal."""
        return self._key_finder(token) or self._session_finder(token)

    def _cookie_finder(self, cookie: str) -> _Find:
        try:
            claims = self.tokens.of_browser(cookie)
        except BadToken:
            raise Refusal(401, "session_ended", "this session has ended; sign in again") from None
        return lambda connection: self._session(connection, claims.user_id, claims.session_id, claims.expires_at)

    def _key_finder(self, token: str) -> _Find | None:
        """How to find its key, if it is one. Raises Refusal for one that cannot be."""
        if token.startswith(apikeys.KEY):
            if not apikeys.genuine(token, apikeys.KEY):
                raise _refused(
                    "invalid_key", "this is no API key of ours as it stands: is a character wrong or missing?"
                )
            return lambda connection: self._key(connection, token, "key", None)
        try:
            expires = self.tokens.of_old_key(token)
        except BadToken as error:
            if error.expired:
                raise _refused("expired_key", "this API key has expired; make a new one at POST /auth/key") from None
            return None
        return lambda connection: self._key(connection, token, "jwt", expires)

    def _session_finder(self, token: str) -> _Find:
        try:
            claims = self.tokens.of_access(token)
        except BadToken as error:
            if error.expired:
                words = "this session's token has expired; renew it at POST /auth/refresh or sign in again"
                raise _refused("expired_token", words) from None
            raise _refused("invalid_token", "this is neither an API key nor a session's token of ours") from None
        return lambda connection: self._session(connection, claims.user_id, claims.session_id, claims.expires_at)

    async def _key(
        self, connection: AsyncConnection, token: str, kind: str, expires: datetime | None
    ) -> tuple[Caller, datetime | None]:
        query = (
            select(api_keys, *_ACCOUNT)
            .join(users)
            .where(api_keys.c.key_hash == apikeys.digest(token), api_keys.c.kind == kind)
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise _refused("invalid_key", "nobody has this API key: it was deleted, or is another gateway's")
        told = f"the API key {row.prefix}…"
        if row.revoked_at is not None:
            raise _refused(
                "revoked_key", f"{told} was revoked on {row.revoked_at:%Y-%m-%d}; make a new one at POST /auth/key"
            )
        at, ends = now(), min((end for end in (expires, row.expires_at) if end), default=None)
        if ends is not None and ends <= at:
            raise _refused("expired_key", f"{told} expired on {ends:%Y-%m-%d}; make a new one at POST /auth/key")
        _refuse_inactive(row)
        if row.last_used_at is None or row.last_used_at <= at - USED:
            self._note_use(row.id, at)
        scopes = frozenset(scope for scope in Scope if scope in row.scopes)
        return await _caller(connection, row, scopes, key_id=row.id, key_name=row.name), ends

    async def _session(
        self, connection: AsyncConnection, user_id: int, session_id: str, expires: datetime
    ) -> tuple[Caller, datetime | None]:
        query = (
            select(sessions, *_ACCOUNT).join(users).where(sessions.c.id == session_id, sessions.c.user_id == user_id)
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None or row.revoked_at is not None or row.expires_at <= now():
            raise _refused("session_ended", "this session has ended; sign in again")
        _refuse_inactive(row)
        caller = await _caller(connection, row, frozenset(Scope), session_id=row.id)
        return caller, min(expires, row.expires_at)

    def _note_use(self, key_id: int, at: datetime) -> None:
        self._used[key_id] = at
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_soon())

    async def _write_soon(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHERED):
                await self._closing.wait()
        await self._write_uses()

    async def _write_uses(self) -> None:
        """Another process may have written a later use; a store that is away loses these."""
        used, self._used = self._used, {}
        at = bindparam("at", type_=api_keys.c.last_used_at.type)
        later = (
            update(api_keys)
            .where(
                api_keys.c.id == bindparam("key"),
                or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < at),
            )
            .values(last_used_at=at)
        )
        try:
            async with self._store.writing() as connection:
                await connection.execute(later, [{"key": key, "at": at} for key, at in sorted(used.items())])
        except StoreAway as error:
            log.warning("when keys were used is not written: %s", error)


_Find = Callable[[AsyncConnection], Awaitable[tuple[Caller, datetime | None]]]


async def _caller(connection: AsyncConnection, row: Any, scopes: frozenset[Scope], **how: Any) -> Caller:
    teams = select(team_members.c.team_id).where(team_members.c.user_id == row.user_id).order_by(team_members.c.team_id)
    level = await connection.scalar(select(privacy.c.level).where(privacy.c.user_id == row.user_id))
    return Caller(
        user_id=row.user_id,
        email=row.email,
        role=Role(row.role),
        scopes=scopes,
        rate_limit_minute=row.rate_limit_minute,
        rate_limit_daily=row.rate_limit_daily,
        team_ids=tuple((await connection.scalars(teams)).all()),
        privacy=level or "",
        **how,
    )


def _refuse_inactive(row: Any) -> None:
    if not row.active:
        raise _refused("account_disabled", "this account is switched off; ask an administrator of the gateway")


def _credential(headers: Mapping[str, str]) -> str:
    key, bearer = _only(headers, "x-api-key"), _only(headers, "Authorization")
    if key and (key.startswith(apikeys.KEY) or not bearer):
        found = _BARE.fullmatch(key)
        token = found and found[0]
    elif bearer:
        found = _BEARER.fullmatch(bearer)
        token = found and found[1]
    else:
        raise Refusal(401, "missing_credential", "who is this? Send an API key as Authorization: Bearer … or x-api-key")
    if not token or len(token) > LONGEST:
        raise _refused(
            "malformed_credential", "a credential is sent as Authorization: Bearer <token> or x-api-key: <token>"
        )
    return token


def _only(headers: Mapping[str, str], name: str) -> str:
    values = headers.getall(name, []) if isinstance(headers, MultiMapping) else [headers.get(name, "")]
    if len(values) > 1:
        raise _refused("malformed_credential", f"{name} is there {len(values)} times, and may be once")
    return values[0].strip(" \t") if values else ""


def _refused(code: str, words: str) -> Refusal:
    """RFC 6750 3.1: a credential came, and was no good."""
    return Refusal(401, code, words, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
