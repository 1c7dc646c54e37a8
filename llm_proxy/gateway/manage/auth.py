"""Signing up, in and out, and the API keys that people make for themselves.

Whether somebody has an account is told to nobody but him: a sign-up with an e-mail address that is known is answered as
any other, unless it brings that account's password, and logins fail alike in words and in time. Leaves out who sent a
request (`identity`) and other people's accounts (`manage.users`).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import uuid4

import msgspec
from sqlalchemy import delete, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway import accounts, apikeys, passwords
from llm_proxy.gateway.facts import Role, Scope
from llm_proxy.gateway.refusals import Refusal, not_found
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.session_tokens import LIFETIME, SESSION, BadToken
from llm_proxy.gateway.store.audit import note
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.store.schema import api_keys, invitations, now, sessions, team_members, teams, users

MOST_SESSIONS: Final = 100  # of one person; the oldest gives way
MOST_KEYS: Final = 100  # of one person, that are neither revoked nor expired
KEPT: Final = timedelta(days=90)  # how long a revoked key can still be told from one that never was


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    password: str
    invitation: str = ""


class Login(msgspec.Struct, forbid_unknown_fields=True):
    email: str
    password: str


class Renewal(msgspec.Struct, forbid_unknown_fields=True):
    refresh_token: str


class NewPassword(msgspec.Struct, forbid_unknown_fields=True):
    current_password: str
    new_password: str


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    name: str = ""
    scopes: list[Scope] = msgspec.field(default_factory=lambda: [Scope.MODELS])
    expires_in_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] | None = None


class Message(msgspec.Struct):
    message: str


class Session(msgspec.Struct):
    """`token` proves the session for `expires_in` seconds, `refresh_token` renews it, once."""

    token: str
    refresh_token: str
    expires_in: int


class Team(msgspec.Struct):
    id: int
    name: str


class Me(msgspec.Struct):
    """A limit of null is the default of all, 0 none at all. `account` names you in the record of calls."""

    email: str
    id: int
    account: str
    role: Role
    teams: list[Team]
    rate_limit_minute: int | None
    rate_limit_daily: int | None
    created_at: datetime


class MadeKey(msgspec.Struct):
    """`token` is the key itself, shown this once."""

    token: str
    id: int
    prefix: str
    name: str
    scopes: list[Scope]
    expires_at: datetime | None


class Key(msgspec.Struct):
    """`last_used_at` is known to the minute."""

    id: int
    prefix: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


async def sign_up(ask: Ask) -> Message:
    body: NewUser = ask.body
    site = ask.site
    email = accounts.email_of(body.email)
    passwords.check(body.password, email)
    site.identifier.throttle.sign_up(ask.address)
    async with site.store.reading() as connection:
        await _admitted(connection, site.options.signup, body.invitation, email)
        known, old = await _account(connection, email)
    if known is not None:
        if await site.identifier.passwords.verify(body.password, known.password_hash, old=old):
            raise Refusal(409, "account_exists", "this account exists already, and this is its password: sign in")
        return Message("User created")
    hashed = await site.identifier.passwords.hash(body.password)
    async with site.store.writing() as connection:
        await site.store.alone(connection, "users")
        role, invitation = await _admitted(connection, site.options.signup, body.invitation, email)
        new = site.store.insert(users).values(email=email, password_hash=hashed, role=role)
        made = await connection.scalar(new.on_conflict_do_nothing().returning(users.c.id))
        if made is not None:
            if invitation is not None:
                await connection.execute(
                    update(invitations).where(invitations.c.id == invitation).values(used_by=made, used_at=now())
                )
            await note(connection, ask, "user.create", f"user:{made}", role=role, invitation=invitation)
    return Message("User created")


async def _admitted(connection: AsyncConnection, setting: str, token: str, email: str) -> tuple[Role, int | None]:
    """As what somebody may sign up, and the invitation that says so. Raises Refusal 403.

    Whoever comes first, into an empty store, is its administrator.
    """
    if not await connection.scalar(select(exists(select(users.c.id)))):
        return Role.ADMIN, None
    if setting == "closed":
        raise Refusal(403, "signup_closed", "nobody can sign up here; ask an administrator for an account")
    if token:
        return await _invited(connection, token, email)
    if setting != "open":
        raise Refusal(403, "invitation_needed", "signing up here takes an invitation; ask an administrator for one")
    return Role.MEMBER, None


async def _invited(connection: AsyncConnection, token: str, email: str) -> tuple[Role, int]:
    """Whoever gave the invitation must still be an administrator: else he could come back as one by his own."""
    row = None
    if apikeys.genuine(token, apikeys.INVITATION):
        found = (
            select(invitations)
            .join(users, users.c.id == invitations.c.created_by)
            .where(
                invitations.c.token_hash == apikeys.digest(token),
                invitations.c.used_at.is_(None),
                invitations.c.expires_at > now(),
                invitations.c.email.in_(("", email)),
                users.c.role == Role.ADMIN,
                users.c.active,
            )
        )
        row = (await connection.execute(found)).one_or_none()
    if row is None:
        words = "this invitation is not good: it was used, withdrawn, has expired, or is for another e-mail address"
        raise Refusal(403, "invalid_invitation", words, param="invitation")
    return Role(row.role), row.id


async def _account(connection: AsyncConnection, email: str) -> tuple[Any, bool]:
    """Its row or None, and whether any account at all has a hash of bcrypt's."""
    old = exists(select(users.c.id).where(users.c.password_hash.like("$2%")))
    found = select(users).where(users.c.email == email)
    return (await connection.execute(found)).one_or_none(), bool(await connection.scalar(select(old)))


async def log_in(ask: Ask) -> Session:
    body: Login = ask.body
    site = ask.site
    row = await _proved(ask, accounts.spelt(body.email), body.password)
    if row is None:
        raise Refusal(401, "invalid_credentials", "the e-mail address or the password is wrong")
    if not row.active:
        words = "this account is switched off; ask an administrator of the gateway"
        raise Refusal(403, "account_disabled", words)
    better = await site.identifier.passwords.hash(body.password) if passwords.outdated(row.password_hash) else None
    async with site.store.writing() as connection:
        as_proved = (users.c.id == row.id, users.c.password_hash == row.password_hash, users.c.active)
        if await connection.scalar(select(users.c.id).where(*as_proved).with_for_update()) is None:
            raise Refusal(401, "invalid_credentials", "the e-mail address or the password is wrong")
        if better is not None:
            await connection.execute(update(users).where(users.c.id == row.id).values(password_hash=better))
        return await _begun(ask, connection, row.id)


async def _proved(ask: Ask, email: str, password: str) -> Any:
    """The account whose password this is, or None. Raises Refusal 429."""
    guard = ask.site.identifier
    guard.throttle.enter(email, ask.address)
    try:
        async with ask.site.store.reading() as connection:
            row, old = await _account(connection, email.replace("\0", " "))  # which PostgreSQL does not take
        good = await guard.passwords.verify(password[: passwords.LONGEST + 1], row and row.password_hash, old=old)
    except (Refusal, StoreAway):
        guard.throttle.give_back(email, ask.address)
        raise
    if not good:
        return None
    guard.throttle.succeeded(email, ask.address)
    return row


async def _begun(ask: Ask, connection: AsyncConnection, user_id: int) -> Session:
    """A session of its own; those that have ended go."""
    at, session_id = now(), str(uuid4())
    until = at + SESSION
    made = _tokens(ask, user_id, session_id, at, until)
    theirs = sessions.c.user_id == user_id
    ended = or_(sessions.c.expires_at <= at, sessions.c.revoked_at.is_not(None))
    await connection.execute(delete(sessions).where(theirs, ended))
    newest = select(sessions.c.id).where(theirs).order_by(sessions.c.created_at.desc()).limit(MOST_SESSIONS - 1)
    gone = await connection.execute(delete(sessions).where(theirs, sessions.c.id.not_in(newest)))
    if gone.rowcount:
        await ask.site.store.changed(connection)
    await connection.execute(
        insert(sessions).values(
            id=session_id,
            user_id=user_id,
            refresh_hash=apikeys.digest(made.refresh_token),
            created_at=at,
            expires_at=until,
        )
    )
    return made


def _tokens(ask: Ask, user_id: int, session_id: str, at: datetime, until: datetime) -> Session:
    tokens = ask.site.identifier.tokens
    return Session(
        token=tokens.access(user_id, session_id, at),
        refresh_token=tokens.refresh(user_id, session_id, at, until),
        expires_in=int(LIFETIME.total_seconds()),
    )


async def renew(ask: Ask) -> Session:
    """A refresh token that comes a second time was stolen from whoever sent it first, or by him: the session ends."""
    token: str = ask.body.refresh_token
    ended = Refusal(401, "session_ended", "this session has ended; sign in again")
    try:
        claims = ask.site.identifier.tokens.of_refresh(token)
    except BadToken:
        raise ended from None
    at = now()
    living = (
        sessions.c.id == claims.session_id,
        sessions.c.user_id == claims.user_id,
        sessions.c.revoked_at.is_(None),
        sessions.c.expires_at > at,
    )
    async with ask.site.store.writing() as connection:
        query = select(sessions.c.expires_at, sessions.c.refresh_hash, users.c.active).join(users).where(*living)
        row = (await connection.execute(query.with_for_update(of=sessions))).one_or_none()
        if row is None or not row.active:
            raise ended
        if row.refresh_hash == apikeys.digest(token):
            made = _tokens(ask, claims.user_id, claims.session_id, at, row.expires_at)
            again = {"refresh_hash": apikeys.digest(made.refresh_token)}
            await connection.execute(update(sessions).where(*living).values(**again))
            return made
        await _end_sessions(ask, connection, *living)
        await note(connection, ask, "session.reused", f"user:{claims.user_id}")
    raise Refusal(401, "session_ended", "this refresh token was used before, so its session has ended; sign in again")


async def _end_sessions(ask: Ask, connection: AsyncConnection, *which: Any) -> None:
    await connection.execute(update(sessions).where(*which, sessions.c.revoked_at.is_(None)).values(revoked_at=now()))
    await ask.site.store.changed(connection)


async def log_out(ask: Ask) -> None:
    async with ask.site.store.writing() as connection:
        await _end_sessions(ask, connection, sessions.c.id == ask.caller.session_id)


async def me(ask: Ask) -> Me:
    caller = ask.caller
    async with ask.site.store.reading() as connection:
        row = (await connection.execute(select(users).where(users.c.id == caller.user_id))).one_or_none()
        query = select(teams.c.id, teams.c.name).join(team_members).where(team_members.c.user_id == caller.user_id)
        theirs = (await connection.execute(query.order_by(teams.c.id))).all()
    if row is None:
        raise not_found("user")
    return Me(
        email=row.email,
        id=row.id,
        account=ask.site.store.account(row.id),
        role=Role(row.role),
        teams=[Team(team.id, team.name) for team in theirs],
        rate_limit_minute=row.rate_limit_minute,
        rate_limit_daily=row.rate_limit_daily,
        created_at=row.created_at,
    )


async def change_password(ask: Ask) -> None:
    """Ends one's other sessions; API keys stay."""
    body: NewPassword = ask.body
    caller, site = ask.caller, ask.site
    passwords.check(body.new_password, caller.email)
    row = await _proved(ask, caller.email, body.current_password)
    if row is None or row.id != caller.user_id:
        raise Refusal(403, "wrong_password", "this is not your current password", param="current_password")
    hashed = await site.identifier.passwords.hash(body.new_password)
    async with site.store.writing() as connection:
        await connection.execute(update(users).where(users.c.id == caller.user_id).values(password_hash=hashed))
        others = (sessions.c.user_id == caller.user_id, sessions.c.id != caller.session_id)
        await _end_sessions(ask, connection, *others)
        await note(connection, ask, "user.password", f"user:{caller.user_id}")


async def make_key(ask: Ask) -> MadeKey:
    body: NewKey = ask.body
    at, user_id = now(), ask.caller.user_id
    name = accounts.name_of(body.name, "an API key") if body.name else f"key of {at:%Y-%m-%d %H:%M}"
    scopes = [scope for scope in Scope if scope in body.scopes]
    if not scopes:
        words = f"an API key needs a scope: {', '.join(Scope)}"
        raise Refusal(400, "invalid_request", words, param="scopes")
    token = apikeys.new(apikeys.KEY)
    expires = at + timedelta(days=body.expires_in_days) if body.expires_in_days else None
    async with ask.site.store.writing() as connection:
        await connection.execute(
            delete(api_keys).where(api_keys.c.user_id == user_id, api_keys.c.revoked_at < at - KEPT)
        )
        living = (api_keys.c.revoked_at.is_(None), or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > at))
        count = select(func.count()).select_from(api_keys).where(api_keys.c.user_id == user_id, *living)
        if (await connection.scalar(count) or 0) >= MOST_KEYS:
            words = f"you have {MOST_KEYS} API keys, which is the most; delete one that is not needed"
            raise Refusal(409, "too_many_keys", words)
        values = {
            "user_id": user_id,
            "name": name,
            "prefix": apikeys.shown(token),
            "key_hash": apikeys.digest(token),
            "scopes": scopes,
            "created_at": at,
            "expires_at": expires,
        }
        made = (await connection.execute(insert(api_keys).values(values).returning(api_keys.c.id))).scalar_one()
        await note(connection, ask, "key.create", f"key:{made}", name=name, scopes=scopes)
    return MadeKey(token, made, apikeys.shown(token), name, scopes, expires)


async def list_keys(ask: Ask) -> list[Key]:
    return await keys_of(ask, ask.caller.user_id)


async def keys_of(ask: Ask, user_id: int) -> list[Key]:
    """Those that are not revoked, the oldest first."""
    query = select(api_keys).where(api_keys.c.user_id == user_id, api_keys.c.revoked_at.is_(None))
    async with ask.site.store.reading() as connection:
        rows = (await connection.execute(query.order_by(api_keys.c.id))).all()
    return [
        Key(
            id=row.id,
            prefix=row.prefix,
            name=row.name,
            scopes=[scope for scope in Scope if scope in row.scopes],
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
        )
        for row in rows
    ]


async def revoke_key(ask: Ask) -> None:
    await revoke(ask, ask.number("id"), None if ask.caller.is_admin else ask.caller.user_id)


async def revoke(ask: Ask, key_id: int, user_id: int | None) -> None:
    """A key of this user, or of anybody. Raises Refusal 404."""
    which = [api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)]
    if user_id is not None:
        which.append(api_keys.c.user_id == user_id)
    async with ask.site.store.writing() as connection:
        done = await connection.execute(update(api_keys).where(*which).values(revoked_at=now()))
        if not done.rowcount:
            raise not_found(f"API key {key_id}")
        await ask.site.store.changed(connection)
        await note(connection, ask, "key.revoke", f"key:{key_id}")


ROUTES = (
    Route("POST", "/auth/signup", Access.PUBLIC, "Sign up", sign_up, takes=NewUser, gives=Message, status=201),
    Route("POST", "/auth/login", Access.PUBLIC, "Sign in", log_in, takes=Login, gives=Session),
    Route("POST", "/auth/refresh", Access.PUBLIC, "Renew a session", renew, takes=Renewal, gives=Session),
    Route("POST", "/auth/logout", Access.SESSION, "Sign out", log_out),
    Route("GET", "/auth/me", Access.SESSION, "Who I am", me, gives=Me),
    Route("POST", "/auth/password", Access.SESSION, "Change my password", change_password, takes=NewPassword),
    Route("POST", "/auth/key", Access.SESSION, "Make an API key", make_key, takes=NewKey, gives=MadeKey),
    Route("GET", "/auth/key", Access.SESSION, "My API keys", list_keys, gives=list[Key]),
    Route("DELETE", "/auth/key/{id}", Access.SESSION, "Revoke an API key", revoke_key),
)
