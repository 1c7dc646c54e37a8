"""Take over what a TokenTracer has in its PostgreSQL: people, provider keys, aliases, limits, usage, API keys, models.

All of it in one transaction of ours, out of one read-only moment of theirs. What was taken is remembered by its ids
there, so another run adds only what is new since, and nothing that was deleted here comes back. What cannot be taken is
left out with a word. Leaves out the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Table, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from llm_proxy.gateway.accounts import email_of
from llm_proxy.gateway.facts import Provider, Role, Scope
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sealing import TOKENTRACER, Sealer, Unreadable, hold
from llm_proxy.gateway.store import audit
from llm_proxy.gateway.store.address import Address, StoreUnusable, address
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.store.schema import (
    api_keys,
    facts,
    invitations,
    model_aliases,
    now,
    provider_keys,
    provider_models,
    request_logs,
    users,
)

if TYPE_CHECKING:
    from llm_proxy.gateway.options import Secrets
    from llm_proxy.gateway.store.database import Store

_TABLES: Final = ("users", "api_keys", "provider_keys", "model_aliases", "provider_models", "request_logs")
_JWT_LIFE: Final = timedelta(days=365)  # of an API key there
_BATCH: Final = 500  # rows of usage in a statement
_MOST_LIMIT: Final = 2**31 - 1
_TOLD: Final = 200  # words that are kept; more are counted
_SOURCE_SAYS: Final = 30.0  # seconds it has for a statement

Row = Mapping[str, Any]


class _DryRun(Exception):
    """All was done, so that it could be counted; now it is taken back."""


@dataclass(slots=True)
class Report:
    """How many rows were taken. `left_out` says, one line each, what was not or not as it was."""

    users: int = 0
    joined: int = 0  # users who had an account here
    provider_keys: int = 0
    aliases: int = 0
    api_keys: int = 0
    models: int = 0
    usage: int = 0
    admin: str = ""  # who became one
    left_out: list[str] = field(default_factory=list)
    more_left_out: int = 0

    def say(self, words: str) -> None:
        if len(self.left_out) < _TOLD:
            self.left_out.append(words)
        else:
            self.more_left_out += 1

    def lines(self) -> list[str]:
        counted = (
            f"taken over: {self.users} users, {self.provider_keys} provider keys, {self.aliases} aliases, "
            f"{self.api_keys} API keys, {self.models} names of models, {self.usage} calls of usage"
        )
        joined = [f"{self.joined} users had an account here, which now has theirs too"] if self.joined else []
        admin = [f"{self.admin} is the administrator"] if self.admin else []
        more = [f"and {self.more_left_out} more"] if self.more_left_out else []
        return [counted, *joined, *admin, *self.left_out, *more]


@dataclass(slots=True)
class _Taken:
    """Their ids to ours, by table: what was taken in earlier runs and in this one."""

    name: str
    users: dict[int, int] = field(default_factory=dict)
    provider_keys: dict[int, int] = field(default_factory=dict)
    model_aliases: dict[int, int] = field(default_factory=dict)
    api_keys: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, text: str | None) -> _Taken:
        known = json.loads(text) if text else {}
        return cls(name, *({int(one): ours for one, ours in known.get(table, {}).items()} for table in _MAPPED))

    def text(self) -> str:
        return json.dumps({table: getattr(self, table) for table in _MAPPED})


_MAPPED: Final = ("users", "provider_keys", "model_aliases", "api_keys")


async def take_over(
    source_url: str, store: Store, sealer: Sealer, *, theirs: Secrets, ours: Secrets, dry_run: bool = False
) -> Report:
    """`theirs` are the secrets TokenTracer ran with. Nothing in its database is changed, nothing here in a dry run.

    Raises StoreAway, StoreUnusable, for either database, and WrongKey.
    """
    report = Report()
    async with _source(address(source_url, "/")) as source:
        try:
            async with store.writing() as connection:
                for name in ("import", "users", "aliases"):  # as whoever makes an administrator, or links aliases
                    await store.alone(connection, name)
                await hold(connection, sealer)
                work = _Import(source, store, connection, sealer, Sealer(theirs), report)
                await work.run()
                if dry_run:
                    raise _DryRun
                await store.changed(connection)
        except _DryRun:
            pass
    if report.api_keys and theirs.jwt_secret != ours.jwt_secret:
        report.say("the API keys work once the gateway has TokenTracer's JWT_SECRET; until then they are refused")
    return report


@asynccontextmanager
async def _source(where: Address) -> AsyncIterator[Any]:
    """An asyncpg connection in a read-only transaction that sees one moment."""
    import asyncpg  # type: ignore[import-untyped]

    if where.is_sqlite:
        raise StoreUnusable("TokenTracer's database is a PostgreSQL: its URL begins with postgresql://")
    try:
        source = await asyncpg.connect(where.dsn, timeout=where.connect_timeout, command_timeout=_SOURCE_SAYS)
    except (OSError, TimeoutError) as error:
        raise StoreAway(f"TokenTracer's database at {where.told} cannot be reached: {error}") from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise StoreUnusable(f"TokenTracer's database at {where.told} cannot be opened: {error}") from error
    try:
        async with source.transaction(isolation="repeatable_read", readonly=True):
            await _refuse_others(source, where.told)
            yield source
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreAway(f"TokenTracer's database at {where.told}: {error}") from error
    finally:
        await source.close(timeout=5)


async def _refuse_others(source: Any, told: str) -> None:
    missing = [name for name in _TABLES if await source.fetchval("SELECT to_regclass($1)", name) is None]
    if missing:
        raise StoreUnusable(f"the database at {told} is no TokenTracer's: it has no {', '.join(missing)}")
    if await source.fetchval("SELECT to_regclass('alembic_version')") is not None:
        raise StoreUnusable(f"the database at {told} is a gateway's store, not TokenTracer's")


class _Import:
    """One run. Methods come in the order of what needs what."""

    def __init__(
        self, source: Any, store: Store, connection: AsyncConnection, sealer: Sealer, theirs: Sealer, report: Report
    ) -> None:
        self._source = source
        self._store = store
        self._connection = connection
        self._sealer = sealer
        self._theirs = theirs
        self._report = report
        self._users: dict[int, int] = {}  # of those taken, who is still here

    async def run(self) -> None:
        rows = [dict(row) for row in await self._source.fetch("SELECT * FROM users ORDER BY id")]
        self._taken = await self._known(rows)
        await self._take_users(rows)
        here = set(await self._connection.scalars(select(users.c.id)))
        self._users = {theirs: ours for theirs, ours in self._taken.users.items() if ours in here}
        await self._take_provider_keys()
        await self._take_aliases()
        await self._take_api_keys()
        await self._take_usage()
        await self._remember()

    async def _known(self, rows: list[dict[str, Any]]) -> _Taken:
        """By who came first there, since a database may be reached by several URLs. Nobody is ever deleted there."""
        first = rows[0] if rows else {}
        who = json.dumps([first.get("id"), first.get("email"), str(first.get("created_at"))])
        name = f"import:{hashlib.sha256(who.encode()).hexdigest()[:8]}"
        text = await self._connection.scalar(select(facts.c.value).where(facts.c.name == name))
        return _Taken.read(name, text)

    async def _take_users(self, rows: list[dict[str, Any]]) -> None:
        wants_admin = not await self._connection.scalar(select(exists().where(users.c.role == Role.ADMIN)))
        seen: dict[str, int] = {}
        for row in rows:
            if row["id"] in self._taken.users:
                seen[row["email"].strip().lower()] = row["id"]
                continue
            what = f"user {row['id']} ({row['email'][:80]!r})"
            try:
                email = email_of(row["email"])
            except Refusal as refusal:
                self._report.say(f"{what} is left out with all that is theirs: {refusal.message}")
                continue
            if email in seen:
                self._report.say(
                    f"{what} is left out with all that is theirs: user {seen[email]} differs in capital letters only"
                )
                continue
            seen[email] = row["id"]
            if (account := await self._account(email)) is not None:
                self._join(row, account, what)
                continue
            values = {
                "email": email,
                "password_hash": row["password_hash"],
                "role": Role.ADMIN if wants_admin else Role.MEMBER,
                "rate_limit_minute": _limit(row["rate_limit_minute"]),
                "rate_limit_daily": _limit(row["rate_limit_daily"]),
                "created_at": _moment(row["created_at"]),
            }
            self._taken.users[row["id"]] = await self._add(users, values)
            self._report.users += 1
            if wants_admin:
                self._report.admin, wants_admin = email, False

    async def _account(self, email: str) -> tuple[int, bool] | None:
        """(id, whether it is known to be that person's) of the account here with an address, which nobody proves at a
        sign-up: an admin's own, and one that an admin invited by that address, are."""
        invited = exists().where(invitations.c.used_by == users.c.id, invitations.c.email == users.c.email)
        query = select(users.c.id, users.c.role, invited.label("invited")).where(users.c.email == email)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else (row.id, row.role == Role.ADMIN or bool(row.invited))

    def _join(self, row: Row, account: tuple[int, bool], what: str) -> None:
        ours, proved = account
        if not proved:
            self._report.say(
                f"{what} is left out with all that is theirs: somebody signed up here with that address, and nothing "
                "proves that it is the same person; delete that account, then import again"
            )
            return
        self._taken.users[row["id"]] = ours
        self._report.joined += 1

    async def _take_provider_keys(self) -> None:
        models: dict[str, list[str]] = {}
        for row in await self._source.fetch("SELECT provider, model_id FROM provider_models ORDER BY id"):
            models.setdefault(row["provider"], []).append(row["model_id"])
        for row in await self._new("provider_keys"):
            what = f"provider key {row['id']} ({(row['label'] or row['provider'])[:80]!r})"
            if row["provider"] not in _PROVIDERS:
                self._report.say(f"{what} is left out: {row['provider'][:50]!r} is no provider that is known")
                continue
            user = self._users[row["user_id"]]
            text = self._opened(row, what)
            if text is not None and not text.strip():
                self._report.say(f"{what} is left out: it is empty")
                continue
            values = {
                "user_id": user,
                "provider": row["provider"],
                "label": row["label"] or "",
                "encrypted_key": row["encrypted_key"],
                "key_version": TOKENTRACER,
                "created_at": _moment(row["created_at"]),
            }
            key = self._taken.provider_keys[row["id"]] = await self._add(provider_keys, values)
            if text is not None:
                sealed = self._sealer.seal(text, row=key, user=user)
                ours = {"encrypted_key": sealed.text, "key_version": sealed.version, "key_id": sealed.key_id}
                await self._connection.execute(update(provider_keys).where(provider_keys.c.id == key).values(ours))
            self._report.provider_keys += 1
            if names := sorted({name for name in models.get(row["provider"], ()) if name}):
                known = [{"provider_key_id": key, "model_id": name} for name in names]
                await self._connection.execute(insert(provider_models), known)
                self._report.models += len(known)

    def _opened(self, row: Row, what: str) -> str | None:
        """The provider's key in clear. None where it cannot be read: it stays as it is."""
        for sealer in (self._theirs, self._sealer):
            try:
                return sealer.unsealed(row["encrypted_key"], row=row["id"], user=row["user_id"], version=TOKENTRACER)
            except Unreadable:
                continue
        self._report.say(
            f"{what} is taken as it is: it cannot be read without TokenTracer's ENCRYPTION_KEY (--encryption-key FILE, "
            "or among the gateway's old keys)"
        )
        return None

    async def _take_aliases(self) -> None:
        new: dict[int, Row] = {}
        for row in await self._new("model_aliases"):
            key, user = self._taken.provider_keys.get(row["provider_key_id"]), self._users[row["user_id"]]
            what = f"alias {row['alias'][:80]!r} of user {row['user_id']}"
            if why := await self._unfit(row, key, user):
                self._report.say(f"{what} is left out: {why}")
                continue
            values = {
                "user_id": user,
                "alias": row["alias"],
                "target_model": row["target_model"],
                "provider_key_id": key,
                "use_light_model": bool(row["use_light_model"]),
                "light_model_threshold": max(row["light_model_threshold"] or 0, 0),
                "light_model": row["light_model"] or "",
                "created_at": _moment(row["created_at"]),
            }
            self._taken.model_aliases[row["id"]] = await self._add(model_aliases, values)
            new[row["id"]] = row
            self._report.aliases += 1
        await self._link(new)

    async def _unfit(self, row: Row, key: int | None, user: int) -> str:
        """Why an alias is not taken."""
        if not row["target_model"].strip():
            return "it names no model"
        if key is None:
            return f"its provider key {row['provider_key_id']} was not taken over"
        owner = await self._connection.scalar(select(provider_keys.c.user_id).where(provider_keys.c.id == key))
        if owner is None:
            return f"its provider key {row['provider_key_id']} was deleted here"
        if owner != user:
            return f"its provider key {row['provider_key_id']} is another user's"
        same = exists().where(model_aliases.c.user_id == user, model_aliases.c.alias == row["alias"])
        if await self._connection.scalar(select(same)):
            return "there is one of that name here"
        return ""

    async def _link(self, new: Mapping[int, Row]) -> None:
        """Their fallbacks, but for one that closes a loop: calls would go round in it."""
        query = select(model_aliases.c.id, model_aliases.c.user_id, model_aliases.c.fallback_alias_id)
        known = {row.id: row for row in await self._connection.execute(query)}
        after = {ours: row.fallback_alias_id for ours, row in known.items()}
        for theirs, row in new.items():
            if row["fallback_alias_id"] is None:
                continue
            ours = self._taken.model_aliases[theirs]
            fallback = self._taken.model_aliases.get(row["fallback_alias_id"])
            what = f"the fallback of alias {row['alias'][:80]!r} of user {row['user_id']} is left out"
            if fallback not in known:
                self._report.say(f"{what}: that alias is not here")
            elif known[fallback].user_id != known[ours].user_id:
                self._report.say(f"{what}: that alias is another user's")
            elif _leads(after, fallback, ours):
                self._report.say(f"{what}: it leads back to the alias itself")
            else:
                after[ours] = fallback
                change = update(model_aliases).where(model_aliases.c.id == ours).values(fallback_alias_id=fallback)
                await self._connection.execute(change)

    async def _take_api_keys(self) -> None:
        for row in await self._new("api_keys"):
            if len(row["key_hash"]) != 64:
                self._report.say(f"API key {row['id']} is left out: its hash is no SHA-256")
                continue
            made = _moment(row["created_at"])
            values = {
                "user_id": self._users[row["user_id"]],
                "kind": "jwt",
                "name": row["name"] or f"api-key-{row['id']}",
                "prefix": row["prefix"] or "",
                "key_hash": row["key_hash"].lower(),
                "scopes": [Scope.MODELS],
                "created_at": made,
                "expires_at": made + _JWT_LIFE,
            }
            self._taken.api_keys[row["id"]] = await self._add(api_keys, values)
            self._report.api_keys += 1

    async def _take_usage(self) -> None:
        """Each row has an id from where it was, so that one that is here already stays one."""
        count = select(func.count()).select_from(request_logs)
        before = int(await self._connection.scalar(count) or 0)
        statement = self._store.insert(request_logs).on_conflict_do_nothing(index_elements=["id"])
        batch: list[dict[str, Any]] = []
        query = "SELECT * FROM request_logs WHERE user_id = ANY($1) ORDER BY id"
        async for row in self._source.cursor(query, [*self._users], prefetch=_BATCH):
            batch.append(self._usage(row))
            if len(batch) == _BATCH:
                await self._connection.execute(statement, batch)
                batch = []
        if batch:
            await self._connection.execute(statement, batch)
        self._report.usage = int(await self._connection.scalar(count) or 0) - before

    def _usage(self, row: Row) -> dict[str, Any]:
        request = f"tokentracer-{self._taken.name.removeprefix('import:')}-{row['id']}"
        status = row["status_code"]
        return {
            "id": f"{request}-1",
            "request_id": request,
            "attempt": 1,
            "user_id": self._users[row["user_id"]],
            "api": "chat",
            "alias_used": (row["alias_used"] or "")[:255],
            "provider_used": (row["provider_used"] or "")[:50],
            "model_used": (row["model_used"] or "")[:255],
            "input_tokens": row["input_tokens"] or 0,
            "output_tokens": row["output_tokens"] or 0,
            "status_code": status,
            "ending": "complete" if status is not None and status < 400 else "upstream_failed",
            "created_at": _moment(row["created_at"]),
        }

    async def _remember(self) -> None:
        row = self._store.insert(facts).values(name=self._taken.name, value=self._taken.text())
        await self._connection.execute(
            row.on_conflict_do_update(index_elements=["name"], set_={"value": row.excluded.value})
        )
        report = self._report
        counts = {
            name: getattr(report, name)
            for name in ("users", "joined", "provider_keys", "aliases", "api_keys", "models", "usage")
        }
        await audit.note(self._connection, None, "tokentracer.import", self._taken.name, **counts)

    async def _new(self, table: str) -> list[Row]:
        """The rows of a table there, of people who are taken over, that no run before has taken."""
        rows = await self._source.fetch(f"SELECT * FROM {table} WHERE user_id = ANY($1) ORDER BY id", [*self._users])
        known = getattr(self._taken, table)
        return [row for row in rows if row["id"] not in known]

    async def _add(self, table: Table, values: Mapping[str, Any]) -> int:
        made = await self._connection.execute(insert(table).values(values).returning(table.c.id))
        return int(made.scalar_one())


_PROVIDERS: Final = frozenset(Provider) - {Provider.BEDROCK, Provider.COMPATIBLE}


def _limit(theirs: int | None) -> int | None:
    """There 0 is the default of all, and what is below it lets everything pass, as 0 does here."""
    return None if not theirs else min(max(theirs, 0), _MOST_LIMIT)


def _moment(theirs: datetime | None) -> datetime:
    return theirs or now()


def _leads(after: Mapping[int, int | None], start: int | None, end: int) -> bool:
    """Whether fallbacks lead from one alias to another."""
    seen: set[int] = set()
    while start is not None and start not in seen:
        if start == end:
            return True
        seen.add(start)
        start = after.get(start)
    return False
