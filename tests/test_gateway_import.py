"""A TokenTracer's database is taken over: people, keys, aliases, limits and usage, once, and nothing there is changed."""

import base64
import hashlib
import json
import os
from datetime import UTC, datetime, timedelta

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, insert, select, update

from llm_proxy.gateway import importing
from llm_proxy.gateway.facts import Provider, ProviderKey, Scope
from llm_proxy.gateway.identity import Identifier
from llm_proxy.gateway.importing import take_over
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sealing import OURS, TOKENTRACER, Sealer, guard
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.address import address
from llm_proxy.gateway.store.database import StoreAway, StoreUnusable
from tests.gatewaystore import add_user, migrated
from tests.postgresbed import PASSWORD, SERVER

# As its db/schema.sql makes them.
THEIRS = """
CREATE TABLE users (
    id SERIAL PRIMARY KEY, email VARCHAR(255) UNIQUE NOT NULL, password_hash VARCHAR(255) NOT NULL,
    rate_limit_minute INTEGER DEFAULT 0, rate_limit_daily INTEGER DEFAULT 0, created_at TIMESTAMPTZ DEFAULT now());
CREATE TABLE api_keys (
    id SERIAL PRIMARY KEY, user_id INTEGER REFERENCES users(id), name VARCHAR(255), key_hash VARCHAR(255) UNIQUE,
    prefix VARCHAR(10), created_at TIMESTAMPTZ DEFAULT now());
CREATE TABLE provider_keys (
    id SERIAL PRIMARY KEY, user_id INTEGER REFERENCES users(id), provider VARCHAR(50), encrypted_key TEXT,
    label VARCHAR(255), created_at TIMESTAMPTZ DEFAULT now());
CREATE TABLE model_aliases (
    id SERIAL PRIMARY KEY, user_id INTEGER REFERENCES users(id), alias VARCHAR(255), target_model VARCHAR(255),
    provider_key_id INTEGER REFERENCES provider_keys(id), fallback_alias_id INTEGER REFERENCES model_aliases(id),
    use_light_model BOOLEAN DEFAULT false, light_model_threshold INTEGER DEFAULT 100, light_model VARCHAR(255),
    created_at TIMESTAMPTZ DEFAULT now(), UNIQUE (user_id, alias));
CREATE TABLE provider_models (
    id SERIAL PRIMARY KEY, provider VARCHAR(50), model_id VARCHAR(255), created_at TIMESTAMPTZ DEFAULT now(),
    UNIQUE (provider, model_id));
CREATE TABLE request_logs (
    id SERIAL PRIMARY KEY, user_id INTEGER REFERENCES users(id), alias_used VARCHAR(255), provider_used VARCHAR(50),
    model_used VARCHAR(255), input_tokens INTEGER DEFAULT 0, output_tokens INTEGER DEFAULT 0, status_code INTEGER,
    created_at TIMESTAMPTZ DEFAULT now());
"""
THEIR_KEY, OUR_KEY, JWT = "test-encryption-key", "another key altogether", "their jwt secret, long enough for HS256"
VECTOR = "AAECAwQFBgcICQoLiUwc9zxGUhw5HfRQl9N0AGpm2In5KtbjP1xX"  # sk-test-123, by its own program
SECRETS = Secrets(JWT, OUR_KEY, "")
THEIR_SECRETS = Secrets(JWT, THEIR_KEY, "")
COUNTED = ("users", "joined", "provider_keys", "aliases", "api_keys", "models", "usage")


def sealed(text, key=THEIR_KEY):
    nonce = os.urandom(12)
    cipher = AESGCM(hashlib.sha256(key.encode()).digest())
    return base64.b64encode(nonce + cipher.encrypt(nonce, text.encode(), None)).decode()


def api_key(user, made):
    """A token as TokenTracer makes it."""
    claims = {"sub": user, "scope": "api_key", "iat": made, "exp": made + timedelta(days=365)}
    return jwt.encode(claims, JWT, "HS256")


class Theirs:
    """A TokenTracer's database. `add(table, **columns)` gives the row's id."""

    def __init__(self, name, link):
        self.name, self.link, self.url = name, link, SERVER.url(name, sslmode="disable")

    async def add(self, table, **values):
        places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
        statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places}) RETURNING id"
        return await self.link.fetchval(statement, *values.values())

    async def user(self, email, **more):
        hashed = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4)).decode().replace("$2b$", "$2a$")
        return await self.add("users", email=email, password_hash=hashed, **more)

    async def key(self, user, provider="openai", text="sk-test-123", **more):
        return await self.add("provider_keys", user_id=user, provider=provider, encrypted_key=sealed(text), **more)

    async def alias(self, user, name, key, fallback=None, **more):
        values = {"target_model": "gpt-4o", **more}
        return await self.add(
            "model_aliases", user_id=user, alias=name, provider_key_id=key, fallback_alias_id=fallback, **values
        )

    async def everything(self):
        """All rows of all tables, as text."""
        tables = ("users", "api_keys", "provider_keys", "model_aliases", "provider_models", "request_logs")
        return {name: str(await self.link.fetch(f"SELECT * FROM {name} ORDER BY id")) for name in tables}


@pytest.fixture
async def theirs():
    name = await SERVER.create()
    link = await SERVER.connect(name)
    await link.execute(THEIRS)
    yield Theirs(name, link)
    await link.close()
    await SERVER.drop(name)


@pytest.fixture
async def sealer(store):
    made = Sealer(SECRETS)
    await guard(store, made)
    return made


async def rows(store, table):
    async with store.reading() as connection:
        return (await connection.execute(select(table).order_by(*table.primary_key.columns))).all()


async def whole(store):
    """Every row of our store."""
    return {name: await rows(store, table) for name, table in schema.metadata.tables.items()}


def counts(report):
    return {name: getattr(report, name) for name in COUNTED if getattr(report, name)}


async def taken(theirs, store, sealer, **more):
    return await take_over(theirs.url, store, sealer, theirs=more.pop("secrets", THEIR_SECRETS), ours=SECRETS, **more)


async def furnished(theirs):
    """A small team's database; the API key of its second user."""
    ada = await theirs.user("Ada@Example.org", rate_limit_minute=10, rate_limit_daily=-1)
    bob = await theirs.user("bob@example.org")
    openai = await theirs.key(ada, label="work")
    claude = await theirs.key(bob, "anthropic", "sk-ant-1")
    slow = await theirs.alias(ada, "slow", openai, use_light_model=True, light_model="mini", light_model_threshold=40)
    await theirs.alias(ada, "fast", openai, fallback=slow)
    await theirs.alias(bob, "fast", claude, target_model="claude")
    made = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
    token = api_key(bob, made)
    hashed = hashlib.sha256(token.encode()).hexdigest()
    await theirs.add("api_keys", user_id=bob, name="api-key-1", key_hash=hashed, prefix="eyJhbGci", created_at=made)
    for name in ("gpt-4o", "o3-pro"):
        await theirs.add("provider_models", provider="openai", model_id=name)
    await theirs.add("provider_models", provider="gemini", model_id="gemini-3-pro")
    await theirs.link.execute(
        "INSERT INTO request_logs"
        " (user_id, alias_used, provider_used, model_used, input_tokens, output_tokens, status_code)"
        f" SELECT {ada}, 'fast', 'openai', 'gpt-4o', number, 2, 200 FROM generate_series(0, 1202) AS number"
    )
    return token


async def test_a_team_is_taken_over_whole(theirs, store, sealer):
    """People with their hashes and limits, the first one an admin; keys under our scheme; aliases by their new ids."""
    await add_user(store, "someone@example.org")  # so that ids differ
    await furnished(theirs)
    before = await theirs.everything()
    report = await taken(theirs, store, sealer)
    assert counts(report) == {
        "users": 2,
        "provider_keys": 2,
        "aliases": 3,
        "api_keys": 1,
        "models": 2,
        "usage": 1203,
    }
    assert (report.admin, report.left_out) == ("ada@example.org", [])
    assert "2 users, 2 provider keys, 3 aliases, 1 API keys" in report.lines()[0]

    _, ada, bob = await rows(store, schema.users)
    assert (ada.email, ada.role, ada.rate_limit_minute, ada.rate_limit_daily) == ("ada@example.org", "admin", 10, 0)
    assert (bob.email, bob.role, bob.rate_limit_minute, bob.rate_limit_daily) == (
        "bob@example.org",
        "member",
        None,
        None,
    )
    assert bcrypt.checkpw(b"correct horse", bob.password_hash.encode())

    keys = await rows(store, schema.provider_keys)
    assert [(key.user_id, key.provider, key.label, key.key_version) for key in keys] == [
        (ada.id, "openai", "work", OURS),
        (bob.id, "anthropic", "", OURS),
    ]
    opened = [
        sealer.open(
            ProviderKey(key.id, key.user_id, Provider(key.provider), key.label, key.encrypted_key, key.key_version)
        )
        for key in keys
    ]
    assert opened == ["sk-test-123", "sk-ant-1"]
    assert "sk-" not in str(await whole(store))

    slow, fast, bobs = await rows(store, schema.model_aliases)
    assert (slow.alias, slow.use_light_model, slow.light_model, slow.light_model_threshold) == (
        "slow",
        True,
        "mini",
        40,
    )
    assert (fast.alias, fast.user_id, fast.provider_key_id, fast.fallback_alias_id) == (
        "fast",
        ada.id,
        keys[0].id,
        slow.id,
    )
    assert (bobs.user_id, bobs.provider_key_id, bobs.target_model, bobs.light_model) == (
        bob.id,
        keys[1].id,
        "claude",
        "",
    )
    known = {(row.provider_key_id, row.model_id) for row in await rows(store, schema.provider_models)}
    assert known == {(keys[0].id, "gpt-4o"), (keys[0].id, "o3-pro")}

    usage = await rows(store, schema.request_logs)
    assert {(row.user_id, row.alias_used, row.status_code, row.ending) for row in usage} == {
        (ada.id, "fast", 200, "complete")
    }
    assert sum(row.input_tokens for row in usage) == sum(range(1203))
    assert await theirs.everything() == before


async def test_a_second_run_adds_only_what_is_new(theirs, store, sealer):
    """Nothing is doubled, nothing deleted here comes back, and what was made there since is taken."""
    await furnished(theirs)
    await taken(theirs, store, sealer)
    async with store.writing() as connection:
        await connection.execute(delete(schema.model_aliases).where(schema.model_aliases.c.alias == "fast"))
        await connection.execute(delete(schema.api_keys))
        await connection.execute(update(schema.users).values(rate_limit_minute=77))
    before = await whole(store)
    again = await taken(theirs, store, sealer)
    assert (counts(again), again.left_out) == ({}, [])
    after = await whole(store)
    assert len(after.pop("audit_log")) == len(before.pop("audit_log")) + 1
    after.pop("changes"), before.pop("changes")
    assert after == before

    await theirs.add("request_logs", user_id=2, alias_used="fast", status_code=200)
    await theirs.alias(1, "new", 1, fallback=1)
    await theirs.key(await theirs.user("eve@example.org"))
    third = await taken(theirs, store, sealer)
    assert counts(third) == {"users": 1, "provider_keys": 1, "aliases": 1, "models": 2, "usage": 1}
    new = (await rows(store, schema.model_aliases))[-1]
    assert (new.alias, new.fallback_alias_id is not None) == ("new", True)


async def test_who_was_deleted_here_stays_away(theirs, store, sealer):
    """With all that is made for them there later."""
    await furnished(theirs)
    await taken(theirs, store, sealer)
    async with store.writing() as connection:
        await connection.execute(delete(schema.model_aliases))
        await connection.execute(delete(schema.users).where(schema.users.c.email == "bob@example.org"))
    await theirs.key(2)
    await theirs.alias(2, "late", 2)
    assert counts(await taken(theirs, store, sealer)) == {}
    assert [user.email for user in await rows(store, schema.users)] == ["ada@example.org"]


async def test_a_dry_run_counts_and_changes_nothing(theirs, store, sealer):
    """The same report as the run that follows."""
    await furnished(theirs)
    before = await whole(store)
    rehearsed = await taken(theirs, store, sealer, dry_run=True)
    assert await whole(store) == before and store.generation == 0
    assert rehearsed == await taken(theirs, store, sealer)
    assert store.generation == 1


async def test_an_old_api_key_keeps_working(theirs, store, sealer, tmp_path):
    """A year-long token of TokenTracer calls models in its owner's name, with the same secret, until it is revoked."""
    token = await furnished(theirs)
    await add_user(store, "someone@example.org")
    headers = {"Authorization": f"Bearer {token}"}
    identifier = Identifier(store, SECRETS, Options("s", "u", str(tmp_path)))
    store.on_change(identifier.forget)
    with pytest.raises(Refusal):
        await identifier.identify(headers)
    await taken(theirs, store, sealer)
    caller = await identifier.identify(headers)
    assert (caller.email, caller.scopes) == ("bob@example.org", {Scope.MODELS})
    (key,) = await rows(store, schema.api_keys)
    assert (key.kind, key.expires_at - key.created_at) == ("jwt", timedelta(days=365))
    async with store.writing() as connection:
        await connection.execute(update(schema.api_keys).values(revoked_at=schema.now()))
        await store.changed(connection)
    with pytest.raises(Refusal):
        await identifier.identify(headers)
    await identifier.close()


async def test_another_jwt_secret_is_told(theirs, store, sealer):
    """Keys that will be refused are no surprise."""
    await furnished(theirs)
    report = await taken(theirs, store, sealer, secrets=Secrets("another", THEIR_KEY, ""))
    assert any("JWT_SECRET" in line for line in report.left_out)


async def test_a_key_that_cannot_be_read_is_taken_as_it_is(theirs, store, sealer):
    """Without TokenTracer's encryption key the row stays in its scheme, is named, and opens once the key is given."""
    user = await theirs.user("ada@example.org")
    await theirs.add("provider_keys", user_id=user, provider="openai", encrypted_key=VECTOR, label="work")
    report = await taken(theirs, store, sealer, secrets=SECRETS)
    (row,) = await rows(store, schema.provider_keys)
    assert (row.encrypted_key, row.key_version, row.key_id) == (VECTOR, TOKENTRACER, "")
    assert report.left_out == [
        "provider key 1 ('work') is taken as it is: it cannot be read without TokenTracer's ENCRYPTION_KEY "
        "(--encryption-key FILE, or among the gateway's old keys)"
    ]
    later = Sealer(Secrets(JWT, OUR_KEY, "", old_encryption_keys=(THEIR_KEY,)))
    assert later.unsealed(VECTOR, row=row.id, user=row.user_id, version=TOKENTRACER) == "sk-test-123"


async def test_an_account_that_is_not_proved_theirs_is_not_joined(theirs, store, sealer):
    """Who signs up with somebody's address before the import gets nothing of theirs; an admin and who was invited do."""
    for name in ("admin", "invited", "stranger"):
        await theirs.key(await theirs.user(f"{name}@example.org"), label=name)
    admin = await add_user(store, "admin@example.org", "admin")
    invited = await add_user(store, "invited@example.org")
    stranger = await add_user(store, "stranger@example.org")
    async with store.writing() as connection:
        values = {"email": "invited@example.org", "role": "member", "created_by": admin, "expires_at": schema.now()}
        await connection.execute(insert(schema.invitations).values(**values, token_hash="a", used_by=invited))
        values["email"] = ""  # for whoever brings it: proves nothing
        await connection.execute(insert(schema.invitations).values(**values, token_hash="b", used_by=stranger))
    report = await taken(theirs, store, sealer)
    assert counts(report) == {"joined": 2, "provider_keys": 2}
    assert {key.user_id for key in await rows(store, schema.provider_keys)} == {admin, invited}
    assert "somebody signed up here with that address" in report.left_out[0] and report.admin == ""
    assert {user.password_hash for user in await rows(store, schema.users)} == {"!"}

    async with store.writing() as connection:
        await connection.execute(delete(schema.users).where(schema.users.c.id == stranger))
    assert counts(await taken(theirs, store, sealer)) == {"users": 1, "provider_keys": 1}


async def test_loops_of_fallbacks_are_broken(theirs, store, sealer):
    """Of a ring of three and of an alias that falls back to itself each loses the one link that closes it."""
    user = await theirs.user("ada@example.org")
    key = await theirs.key(user)
    ids = [await theirs.alias(user, name, key) for name in "abcs"]
    for one, next_one in zip(ids, [*ids[1:3], ids[0], ids[3]], strict=True):
        await theirs.link.execute("UPDATE model_aliases SET fallback_alias_id = $1 WHERE id = $2", next_one, one)
    report = await taken(theirs, store, sealer)
    found = {row.id: row for row in await rows(store, schema.model_aliases)}
    links = {row.alias: found[row.fallback_alias_id].alias if row.fallback_alias_id else None for row in found.values()}
    assert links == {"a": "b", "b": "c", "c": None, "s": None}
    assert report.left_out == [
        f"the fallback of alias '{name}' of user 1 is left out: it leads back to the alias itself" for name in "cs"
    ]


async def test_what_tokentracer_should_not_have_stored_is_left_out_by_name(theirs, store, sealer):
    """Another tenant's key or alias, an unknown provider, an empty key, an address that is none: each with its reason."""
    ada, bob = await theirs.user("ada@example.org"), await theirs.user("bob@example.org")
    upper = await theirs.user("ADA@example.org")
    empty = await theirs.user("")
    adas, bobs = await theirs.key(ada), await theirs.key(bob)
    await theirs.key(upper)
    await theirs.key(empty)
    strange = await theirs.key(ada, "openrouter")
    await theirs.key(ada, "gemini", " ")
    target = await theirs.alias(ada, "hers", adas)
    await theirs.alias(bob, "thief", adas)
    await theirs.alias(bob, "listener", bobs, fallback=target)
    await theirs.alias(ada, "strange", strange)
    await theirs.alias(ada, "none", adas, target_model="")
    report = await taken(theirs, store, sealer)
    assert counts(report) == {"users": 2, "provider_keys": 2, "aliases": 2}
    said = "\n".join(report.left_out)
    for words in (
        "user 3 ('ADA@example.org') is left out with all that is theirs: user 1 differs in capital letters only",
        "user 4 ('') is left out with all that is theirs",
        "provider key 5 ('openrouter') is left out: 'openrouter' is no provider that is known",
        "provider key 6 ('gemini') is left out: it is empty",
        "alias 'thief' of user 2 is left out: its provider key 1 is another user's",
        "the fallback of alias 'listener' of user 2 is left out: that alias is another user's",
        "alias 'strange' of user 1 is left out: its provider key 5 was not taken over",
        "alias 'none' of user 1 is left out: it names no model",
    ):
        assert words in said
    assert len(report.left_out) == 8


async def test_an_import_that_fails_leaves_nothing(theirs, store, sealer):
    """A row that cannot be read at the very end takes all of it back."""
    await furnished(theirs)
    await theirs.link.execute("ALTER TABLE request_logs DROP COLUMN status_code")
    before = await whole(store)
    with pytest.raises(KeyError):
        await taken(theirs, store, sealer)
    assert await whole(store) == before


async def test_the_source_is_only_read(theirs):
    """The transaction there takes no writes at all, so that no fault of ours can change it."""
    async with importing._source(address(theirs.url, "/")) as source:
        with pytest.raises(Exception, match="read-only transaction"):
            await source.execute("DELETE FROM users")


async def test_what_is_no_tokentracer_is_refused(store, sealer, theirs):
    """An SQLite, an empty database, a store of ours, one that cannot be reached: words, without the password."""

    async def refused(url, kind, words):
        with pytest.raises(kind, match=words) as caught:
            await take_over(url, store, sealer, theirs=THEIR_SECRETS, ours=SECRETS)
        assert PASSWORD not in str(caught.value) and "p%40" not in str(caught.value)

    await refused("sqlite:////tmp/x.db", StoreUnusable, "begins with postgresql://")
    await refused(SERVER.url("postgres"), StoreUnusable, "it has no users, api_keys")
    await refused(SERVER.url(await migrated("postgresql")), StoreUnusable, "is a gateway's store")
    await refused("postgresql://u:p%40@127.0.0.1:1/tokentracer", StoreAway, "cannot be reached")
    await refused(theirs.url.replace("p%40ss", "p%40st"), StoreUnusable, "cannot be opened")
    await refused(SERVER.url("absent"), StoreUnusable, "cannot be opened")


async def test_the_import_is_in_the_audit_log(theirs, store, sealer):
    """With its counts, and without anything secret."""
    await furnished(theirs)
    await taken(theirs, store, sealer)
    (row,) = await rows(store, schema.audit_log)
    assert (row.action, row.user_id, row.detail["usage"]) == ("tokentracer.import", None, 1203)
    assert "sk-" not in json.dumps(row.detail)
