"""Accounts of the gateway over real sockets: signing up, in and out, keys, users, teams and invitations."""

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import timedelta

import bcrypt
import pytest
from sqlalchemy import insert, update

from llm_proxy.gateway import apikeys, identity
from llm_proxy.gateway.manage import auth
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.schema import api_keys, audit_log, invitations, now, sessions, team_members, users
from tests.gatewaydoor import PASSWORD, doors, old_token
from tests.gatewaystore import add_user, opened


@pytest.fixture
async def door(store):
    """Open to whoever signs up."""
    async with doors(store) as made:
        yield made


@pytest.fixture
async def admin(door):
    """The session of the first account."""
    return await door.session("admin@example.com")


async def _change(store, table, where, **values):
    async with store.writing() as connection:
        await connection.execute(update(table).where(where).values(values))
        await store.changed(connection)


async def test_the_first_is_administrator_and_the_next_a_member(door):
    """Signing up, in, and asking who one is, as TokenTracer's clients do."""
    first = await door.sign_up("Ada@Example.com ")
    assert first.keys() == {"token", "refresh_token", "expires_in"} and first["expires_in"] == 900
    me = await door.want(200, "GET", "/auth/me", token=first["token"])
    assert (me["email"], me["role"], me["teams"]) == ("ada@example.com", "admin", [])
    assert me["rate_limit_minute"] is None is me["rate_limit_daily"] and me["created_at"].endswith("Z")
    second = await door.sign_up("bob@example.com")
    me = await door.want(200, "GET", "/auth/me", token=second["token"])
    assert (me["email"], me["role"]) == ("bob@example.com", "member")
    assert (await door.sign_in("ADA@example.com"))["token"]


async def test_two_first_sign_ups_at_once_make_one_administrator(store_url):
    """On two machines, ten at once; and where nobody may sign up, the first still may, and nobody after."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        machines = [await stack.enter_async_context(doors(store, "closed")) for store in stores]
        answers = await asyncio.gather(
            *(
                machines[number % 2].ask(
                    "POST", "/auth/signup", {"email": f"u{number}@example.com", "password": PASSWORD}
                )
                for number in range(10)
            )
        )
        assert sorted(answer.status for answer in answers) == [201] + [403] * 9
        assert [row.role for row in await machines[0].rows(users)] == ["admin"]


async def test_ten_at_once_with_one_address_make_one_account(store_url):
    """Whoever is first; the others are told nothing of it."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        machines = [await stack.enter_async_context(doors(store)) for store in stores]
        bodies = [{"email": "ada@example.com", "password": f"{PASSWORD} {number}"} for number in range(6)]
        answers = await asyncio.gather(
            *(machines[number % 2].ask("POST", "/auth/signup", body) for number, body in enumerate(bodies))
        )
        assert {answer.status for answer in answers} == {201}
        assert len(await machines[0].rows(users)) == 1


async def test_whether_an_address_is_known_is_told_to_its_owner_only(door, admin):
    """Another's sign-up with it is answered as any and changes nothing; with the account's password it says sign in."""
    new = await door.ask("POST", "/auth/signup", {"email": "new@example.com", "password": PASSWORD})
    known = await door.ask("POST", "/auth/signup", {"email": "admin@example.com", "password": "another long one"})
    assert (known.status, known.body) == (new.status, new.body) == (201, b'{"message":"User created"}')
    assert known.headers.keys() == new.headers.keys()
    own = await door.ask("POST", "/auth/signup", {"email": "Admin@example.com", "password": PASSWORD})
    assert (own.status, own.code) == (409, "account_exists")
    assert (
        await door.ask("POST", "/auth/login", {"email": "admin@example.com", "password": "another long one"})
    ).status == 401
    assert (await door.sign_in("admin@example.com"))["token"]
    assert [row.role for row in await door.rows(users)] == ["admin", "member"]


async def test_who_may_sign_up_is_a_setting(store):
    """closed: nobody; invite: whoever brings an invitation that is good for his address, once."""
    async with doors(store, "open") as door:
        admin = await door.session("admin@example.com")
        made = await door.want(201, "POST", "/manage/invitations", {"email": "Bob@example.com"}, admin)
        anybody = await door.want(201, "POST", "/manage/invitations", {"role": "admin", "expires_in_days": 1}, admin)
    assert made["token"].startswith("llmi_") and (made["email"], made["role"]) == ("bob@example.com", "member")

    def body(name, **more):
        return {"email": f"{name}@example.com", "password": PASSWORD, **more}

    async with doors(store, "closed") as door:
        refused = await door.ask("POST", "/auth/signup", body("bob", invitation=made["token"]))
        assert (refused.status, refused.code) == (403, "signup_closed")
    async with doors(store, "invite") as door:
        refused = await door.ask("POST", "/auth/signup", body("bob"))
        assert (refused.status, refused.code) == (403, "invitation_needed")
        for name, token in (("eve", made["token"]), ("bob", made["token"][:-1] + "!"), ("bob", apikeys.new("llmi_"))):
            refused = await door.ask("POST", "/auth/signup", body(name, invitation=token))
            assert (refused.status, refused.code, refused.json["error"]["param"]) == (
                *(403, "invalid_invitation"),
                "invitation",
            )
        await door.want(201, "POST", "/auth/signup", body("bob", invitation=made["token"]))
        await door.want(201, "POST", "/auth/signup", body("carol", invitation=anybody["token"]))
        for token in (made["token"], anybody["token"]):
            refused = await door.ask("POST", "/auth/signup", body("dave", invitation=token))
            assert refused.code == "invalid_invitation"
        assert [row.role for row in await door.rows(users)] == ["admin", "member", "admin"]
        listed = await door.want(200, "GET", "/manage/invitations", token=admin)
        assert [one["used_by"] for one in listed] == [2, 3] and "token" not in json.dumps(listed)


async def test_one_invitation_lets_one_in_however_many_come_at_once(store_url):
    """On two machines."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        machines = [await stack.enter_async_context(doors(store, "invite")) for store in stores]
        admin = await machines[0].session("admin@example.com")
        token = (await machines[0].want(201, "POST", "/manage/invitations", {}, admin))["token"]
        bodies = [{"email": f"u{n}@example.com", "password": PASSWORD, "invitation": token} for n in range(6)]
        answers = await asyncio.gather(
            *(machines[number % 2].ask("POST", "/auth/signup", body) for number, body in enumerate(bodies))
        )
        assert sorted(answer.status for answer in answers) == [201] + [403] * 5
        assert len(await machines[0].rows(users)) == 2


async def test_an_invitation_is_as_good_as_who_gave_it(store):
    """Withdrawn, expired, or given by who is no administrator any more: it lets nobody in."""
    async with doors(store, "invite") as door:
        admin = await door.session("admin@example.com")
        tokens = [(await door.want(201, "POST", "/manage/invitations", {"role": "admin"}, admin)) for _ in range(3)]
        other = (await door.sign_up("other@example.com", invitation=tokens[0]["token"]))["token"]
        other_id = (await door.want(200, "GET", "/auth/me", token=other))["id"]
        his = await door.want(201, "POST", "/manage/invitations", {"role": "admin"}, other)
        await door.want(204, "DELETE", f"/manage/invitations/{tokens[1]['id']}", token=admin)
        await door.want(404, "DELETE", f"/manage/invitations/{tokens[1]['id']}", token=admin)
        await _change(store, invitations, invitations.c.id == tokens[2]["id"], expires_at=now() - timedelta(seconds=1))
        await door.want(200, "PATCH", f"/manage/users/{other_id}", {"role": "member"}, admin)
        for token in (tokens[1], tokens[2], his):
            body = {"email": "eve@example.com", "password": PASSWORD, "invitation": token["token"]}
            assert (await door.ask("POST", "/auth/signup", body)).code == "invalid_invitation"
        await door.want(200, "PATCH", f"/manage/users/{other_id}", {"role": "admin"}, admin)
        await door.want(204, "DELETE", f"/manage/users/{other_id}", token=admin)
        assert (await door.ask("POST", "/auth/signup", body)).code == "invalid_invitation"


@pytest.mark.parametrize("body", [{"email": "bob", "password": PASSWORD}, {"email": "b@x.y", "password": "password1"}])
async def test_bad_addresses_and_passwords_are_refused_before_anything_is_made(door, body):
    """With the field and the rule."""
    refused = await door.ask("POST", "/auth/signup", body)
    assert refused.status == 400 and refused.json["error"]["param"] in body
    assert await door.rows(users) == []


async def test_a_session_is_renewed_by_tokens_that_are_good_once(door, admin):
    """Renewed, the older token of access still holds its time; a used refresh token ends the session for both."""
    first = await door.sign_in("admin@example.com")
    second = await door.want(200, "POST", "/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert second["token"] != first["token"] and second["refresh_token"] != first["refresh_token"]
    for token in (first["token"], second["token"]):
        await door.want(200, "GET", "/auth/me", token=token)
    again = await door.ask("POST", "/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert (again.status, again.code) == (401, "session_ended") and "used before" in again.words
    for token in (first["token"], second["token"]):
        refused = await door.ask("GET", "/auth/me", token=token)
        assert (refused.status, refused.code) == (401, "session_ended")
    assert (await door.ask("POST", "/auth/refresh", {"refresh_token": second["refresh_token"]})).status == 401
    await door.want(200, "GET", "/auth/me", token=admin)
    assert "session.reused" in [row.action for row in await door.rows(audit_log)]


async def test_a_refresh_token_that_comes_twice_at_once_renews_once(store_url):
    """On two machines."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        machines = [await stack.enter_async_context(doors(store)) for store in stores]
        body = {"refresh_token": (await machines[0].sign_up("ada@example.com"))["refresh_token"]}
        answers = await asyncio.gather(*(machine.ask("POST", "/auth/refresh", body) for machine in machines * 3))
        assert sorted(answer.status for answer in answers) == [200] + [401] * 5


async def test_what_is_no_refresh_token_renews_nothing(door, admin):
    """Tokens of access, others' words, and a session that has run out or whose owner was switched off."""
    bob = await door.sign_up("bob@example.com")
    for token in ("", "x", admin, bob["token"], bob["refresh_token"] + "x", "x" * 100_000):
        refused = await door.ask("POST", "/auth/refresh", {"refresh_token": token})
        assert (refused.status, refused.code) == (401, "session_ended")
    await _change(door.store, sessions, sessions.c.user_id == 2, expires_at=now() - timedelta(seconds=1))
    assert (await door.ask("POST", "/auth/refresh", {"refresh_token": bob["refresh_token"]})).status == 401
    assert (await door.ask("GET", "/auth/me", token=bob["token"])).code == "session_ended"
    bob = await door.sign_in("bob@example.com")
    await door.want(200, "PATCH", "/manage/users/2", {"active": False}, admin)
    assert (await door.ask("POST", "/auth/refresh", {"refresh_token": bob["refresh_token"]})).status == 401


async def test_signing_out_ends_this_session_at_once(door, admin):
    """And no other; its refresh token is no good either."""
    other = await door.sign_in("admin@example.com")
    await door.want(200, "GET", "/auth/me", token=other["token"])
    await door.want(204, "POST", "/auth/logout", token=other["token"])
    assert (await door.ask("GET", "/auth/me", token=other["token"])).code == "session_ended"
    assert (await door.ask("POST", "/auth/refresh", {"refresh_token": other["refresh_token"]})).status == 401
    await door.want(200, "GET", "/auth/me", token=admin)


async def test_a_new_password_ends_the_other_sessions(door, admin):
    """It takes the current one; keys stay."""
    other = await door.sign_in("admin@example.com")
    key = (await door.key(admin))["token"]
    await door.want(200, "GET", "/auth/me", token=other["token"])
    wrong = {"current_password": "not this one", "new_password": "quite another one"}
    refused = await door.ask("POST", "/auth/password", wrong, admin)
    assert (refused.status, refused.code) == (403, "wrong_password")
    weak = {"current_password": PASSWORD, "new_password": "password1"}
    assert (await door.ask("POST", "/auth/password", weak, admin)).code == "weak_password"
    await door.want(204, "POST", "/auth/password", wrong | {"current_password": PASSWORD}, admin)
    assert (await door.ask("GET", "/auth/me", token=other["token"])).code == "session_ended"
    await door.want(200, "GET", "/auth/me", token=admin)
    await door.want(200, "GET", "/models", token=key)
    assert (await door.ask("POST", "/auth/login", {"email": "admin@example.com", "password": PASSWORD})).status == 401
    await door.sign_in("admin@example.com", "quite another one")


async def test_sessions_have_an_end_in_number(door, monkeypatch):
    """The oldest gives way, and those that have ended leave the store."""
    monkeypatch.setattr(auth, "MOST_SESSIONS", 3)
    made = [await door.sign_up("ada@example.com")] + [await door.sign_in("ada@example.com") for _ in range(2)]
    await door.want(200, "GET", "/auth/me", token=made[0]["token"])
    made.append(await door.sign_in("ada@example.com"))
    assert [(await door.ask("GET", "/auth/me", token=one["token"])).status for one in made] == [401, 200, 200, 200]
    await door.want(204, "POST", "/auth/logout", token=made[1]["token"])
    await door.sign_in("ada@example.com")
    assert len(await door.rows(sessions)) == 3


async def test_a_key_is_shown_once_and_listed_without_it(door, admin):
    """Made of an empty body as TokenTracer's clients send it, or with name, scopes and expiry."""
    plain = await door.want(200, "POST", "/auth/key", token=admin)
    assert plain.keys() == {"token", "id", "prefix", "name", "scopes", "expires_at"}
    assert apikeys.genuine(plain["token"], "llmp_") and plain["token"].startswith(plain["prefix"])
    assert len(plain["prefix"]) == 12
    assert (plain["scopes"], plain["expires_at"]) == (["models"], None) and plain["name"].startswith("key of 2")
    made = await door.key(admin, name=" laptop ", scopes=["usage", "models", "usage"], expires_in_days=30)
    assert (made["name"], made["scopes"]) == ("laptop", ["models", "usage"]) and made["expires_at"]
    listed = await door.want(200, "GET", "/auth/key", token=admin)
    assert [one["id"] for one in listed] == [plain["id"], made["id"]]
    assert listed[1].keys() == {"id", "prefix", "name", "scopes", "created_at", "expires_at", "last_used_at"}
    assert plain["token"] not in json.dumps(listed) and made["token"] not in json.dumps(listed)
    told = await door.want(200, "GET", "/models", headers={"x-api-key": made["token"]})
    assert told == {"user": 1, "key": made["id"], "scopes": ["models", "usage"], "teams": []}


async def test_nothing_secret_is_in_the_store(door, admin):
    """Its every row is read: no key, token, password or invitation."""
    made = await door.sign_in("admin@example.com")
    secret = [
        *(admin, made["token"], made["refresh_token"], (await door.key(admin, name="x"))["token"], PASSWORD),
        (await door.want(201, "POST", "/manage/invitations", {"email": "x@example.com"}, admin))["token"],
    ]
    dump = ""
    for table in schema.metadata.sorted_tables:
        dump += "\n".join(str(tuple(row)) for row in await door.rows(table))
    assert "admin@example.com" in dump and "x@example.com" in dump
    for one in secret:
        assert one not in dump and one[15:] not in dump


async def test_a_key_is_revoked_at_once_and_says_so(door, admin):
    """Remembered or not; it leaves the list, and a second time there is nothing to revoke."""
    made = await door.key(admin, name="laptop")
    await door.want(200, "GET", "/models", token=made["token"])
    await door.want(204, "DELETE", f"/auth/key/{made['id']}", token=admin)
    refused = await door.ask("GET", "/models", token=made["token"])
    assert (refused.status, refused.code) == (401, "revoked_key") and made["prefix"] in refused.words
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    await door.want(404, "DELETE", f"/auth/key/{made['id']}", token=admin)
    assert await door.want(200, "GET", "/auth/key", token=admin) == []


async def test_what_is_revoked_on_one_machine_is_refused_on_the_other(store_url):
    """A key, a session, an account; each was remembered there."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        here, there = [await stack.enter_async_context(doors(store)) for store in stores]
        watching = asyncio.ensure_future(stores[1].watch())
        admin = await here.session("admin@example.com")
        bob = await here.session("bob@example.com")
        key, session = await here.key(bob), await here.session("carol@example.com")
        credentials = {key["token"]: "/models", session: "/auth/me", bob: "/auth/me"}
        for token, path in credentials.items():
            await there.want(200, "GET", path, token=token)
        await here.want(204, "DELETE", f"/auth/key/{key['id']}", token=bob)
        await here.want(204, "POST", "/auth/logout", token=session)
        await here.want(204, "DELETE", "/manage/users/2", token=admin)
        async with asyncio.timeout(30):
            for token, path in credentials.items():
                while (await there.ask("GET", path, token=token)).status == 200:
                    await asyncio.sleep(0.02)
        watching.cancel()


async def test_who_was_looked_up_before_a_change_is_not_remembered_after_it(door, admin):
    """A revocation that comes while a key is being looked up holds, whichever is faster."""
    made = await door.key(admin)
    reading, looking, go_on = door.store.reading, asyncio.Event(), asyncio.Event()

    class Slow:
        """The store's connection, whose first answer comes late."""

        def __init__(self):
            self._inner = reading()

        async def __aenter__(self):
            connection = await self._inner.__aenter__()
            self._row = await connection.execute(schema.api_keys.select())  # a snapshot begins with the first question
            return connection

        async def __aexit__(self, *error):
            looking.set()
            await go_on.wait()
            return await self._inner.__aexit__(*error)

    door.store.reading = Slow
    first = asyncio.ensure_future(door.ask("GET", "/models", token=made["token"]))
    await looking.wait()
    door.store.reading = reading
    await door.want(204, "DELETE", f"/auth/key/{made['id']}", token=admin)
    async with asyncio.timeout(30):
        assert (await door.ask("GET", "/models", token=made["token"])).status == 401
    go_on.set()
    assert (await first).status == 200  # it came before
    assert (await door.ask("GET", "/models", token=made["token"])).status == 401


async def test_keys_run_out_even_where_they_are_remembered(door, admin):
    """The refusal says when, and what to do."""
    made = await door.key(admin, expires_in_days=1)
    await _change(door.store, api_keys, api_keys.c.id == made["id"], expires_at=now() + timedelta(seconds=0.7))
    await door.want(200, "GET", "/models", token=made["token"])
    async with asyncio.timeout(30):
        while (refused := await door.ask("GET", "/models", token=made["token"])).status == 200:
            await asyncio.sleep(0.05)
    assert (refused.status, refused.code) == (401, "expired_key") and "POST /auth/key" in refused.words


async def test_last_use_is_written_beside_the_request_and_once_a_minute(store, monkeypatch):
    """Many calls are one row's one change; later ones count when a minute is over."""
    monkeypatch.setattr(identity, "_GATHERED", 0.01)
    async with doors(store) as door:
        admin = await door.session("admin@example.com")
        made = await door.key(admin)

        async def last_used():
            return (await door.rows(api_keys))[0].last_used_at

        async def used_after(moment):
            async with asyncio.timeout(30):
                while (at := await last_used()) == moment:
                    await asyncio.sleep(0.01)
            return at

        await door.want(200, "GET", "/models", token=made["token"])
        at = await used_after(None)
        assert timedelta(0) <= now() - at < timedelta(seconds=30)
        for _ in range(5):
            door.identifier.forget()
            await door.want(200, "GET", "/models", token=made["token"])
        await asyncio.sleep(0.1)
        assert await last_used() == at
        hour_ago = at - timedelta(hours=1)
        await _change(store, api_keys, api_keys.c.id == made["id"], last_used_at=hour_ago)
        monkeypatch.setattr(identity, "_GATHERED", 60.0)
        await door.want(200, "GET", "/models", token=made["token"])
        assert await last_used() == hour_ago
        listed = await door.want(200, "GET", "/auth/key", token=admin)
    assert listed[0]["last_used_at"] and await used_after(hour_ago)  # closing has written it


async def test_keys_have_an_end_in_number(door, admin, monkeypatch):
    """What is revoked or expired does not count; long revoked keys leave the store."""
    monkeypatch.setattr(auth, "MOST_KEYS", 2)
    first = await door.key(admin)
    await door.key(admin)
    refused = await door.ask("POST", "/auth/key", {}, admin)
    assert (refused.status, refused.code) == (409, "too_many_keys")
    await door.want(204, "DELETE", f"/auth/key/{first['id']}", token=admin)
    await door.key(admin)
    await _change(door.store, api_keys, api_keys.c.id == first["id"], revoked_at=now() - timedelta(days=91))
    await door.want(409, "POST", "/auth/key", {}, admin)
    await _change(door.store, api_keys, api_keys.c.id == first["id"] + 1, expires_at=now() - timedelta(days=1))
    await door.key(admin)
    assert first["id"] not in [row.id for row in await door.rows(api_keys)]


async def test_tokens_come_as_bearer_or_as_x_api_key(door, admin):
    """The scheme's case and spaces before the token do not matter (RFC 6750, RFC 9110 11.1); our key wins of two."""
    key, other = (await door.key(admin))["token"], (await door.key(admin))["id"]
    for headers in (
        {"Authorization": f"bearer {key}"},
        {"Authorization": f"BEARER   {key}"},
        {"X-API-Key": key},
        {"x-api-key": key, "Authorization": "Bearer sk-ant-of-somebody"},
        {"x-api-key": "sk-ant-of-somebody", "Authorization": f"Bearer {key}"},
        {"x-api-key": "", "Authorization": f"Bearer {key}"},
    ):
        assert (await door.want(200, "GET", "/models", headers=headers))["key"] == other - 1, headers
    assert (await door.want(200, "GET", "/models", headers={"x-api-key": admin}))["key"] is None


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_credential"),
        ({"Authorization": ""}, "missing_credential"),
        ({"Authorization": "Bearer"}, "malformed_credential"),
        ({"Authorization": "Bearer "}, "malformed_credential"),
        ({"Authorization": "Basic YTpi"}, "malformed_credential"),
        ({"Authorization": "Bearer a b"}, "malformed_credential"),
        ({"Authorization": "Bearer a,b"}, "malformed_credential"),
        ({"Authorization": "Bearer\ta"}, "malformed_credential"),
        ({"Authorization": "Bearer é"}, "malformed_credential"),
        ({"Authorization": "Bearer " + "a" * 5000}, "malformed_credential"),
        ({"Authorization": "Bearer a"}, "invalid_token"),
        ({"Authorization": "Bearer llmp_short"}, "invalid_key"),
        ({"x-api-key": "llmp_short", "Authorization": "Bearer a"}, "invalid_key"),
        ({"x-api-key": "a b"}, "malformed_credential"),
        ({"Cookie": "token=llmp_x"}, "missing_credential"),
    ],
    ids=str,
)
async def test_what_is_no_credential_is_401_with_a_word(headers, code):
    """And a challenge, as RFC 6750 3 wants it. None of these needs the store: it is not even open."""
    from llm_proxy.gateway.store.database import Store

    async with doors(Store("sqlite:////nowhere/at/all.db", "/nowhere")) as door:
        refused = await door.ask("GET", "/models", headers=headers)
    assert (refused.status, refused.code) == (401, code)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer") and "llmp_short" not in refused.words


async def test_who_is_remembered_is_served_while_the_store_is_away(tmp_path):
    """For a minute; who is not remembered is answered 503 and when to come again."""
    clock = [1000.0]
    path = tmp_path / "gateway.db"
    async with opened(f"sqlite:///{path}") as store, doors(store, clock=lambda: clock[0]) as door:
        admin = await door.session("admin@example.com")
        known, unknown = (await door.key(admin))["token"], (await door.key(admin))["token"]
        await door.want(200, "GET", "/models", token=known)
        await store._engine.dispose()  # its connections are lost
        path.rename(tmp_path / "away.db")
        path.mkdir()
        for _ in range(3):
            await door.want(200, "GET", "/models", token=known)
        away = await door.ask("GET", "/models", token=unknown)
        assert (away.status, away.code) == (503, "store_away") and int(away.headers["Retry-After"]) > 0
        clock[0] += identity.REMEMBERED - 1
        await door.want(200, "GET", "/models", token=known)
        clock[0] += 1
        assert (await door.ask("GET", "/models", token=known)).status == 503
        assert (await door.ask("POST", "/auth/login", {"email": "x@example.com", "password": "x"})).status == 503
        path.rmdir()
        (tmp_path / "away.db").rename(path)
        await door.want(200, "GET", "/models", token=known)


async def test_callers_remembered_are_bounded(door, admin, monkeypatch):
    """However many come; the one longest known is asked for anew."""
    monkeypatch.setattr(identity, "MOST", 3)
    keys = [(await door.key(admin))["token"] for _ in range(8)]
    for key in keys * 2:
        await door.want(200, "GET", "/models", token=key)
    assert len(door.identifier._known) == 3


async def test_keys_of_tokentracer_keep_working(door, admin):
    """Year-long tokens signed with the same secret, taken over by their hash; revoked like any other."""
    known, unknown, session = old_token(), old_token(iat=1), old_token("session")
    async with door.store.writing() as connection:
        for token in (known, session):
            row = {"user_id": 1, "kind": "jwt", "name": "api-key-20250101-000000", "prefix": "eyJhbGci"}
            values = row | {"key_hash": apikeys.digest(token), "scopes": ["models"]}
            await connection.execute(insert(api_keys).values(values))
    assert (await door.want(200, "GET", "/models", token=known))["user"] == 1
    await door.want(200, "GET", "/models", headers={"x-api-key": known})
    for token, code in ((unknown, "invalid_key"), (session, "invalid_token"), (old_token(exp=2), "expired_key")):
        assert (await door.ask("GET", "/models", token=token)).code == code
    assert (await door.ask("GET", "/auth/me", token=known)).code == "session_needed"
    await door.want(204, "DELETE", "/auth/key/1", token=admin)
    assert (await door.ask("GET", "/models", token=known)).code == "revoked_key"


async def test_passwords_of_tokentracer_are_hashed_anew_at_login(door, admin):
    """From bcrypt to argon2id, once, with the same password."""
    old = bcrypt.hashpw(b"of TokenTracer", bcrypt.gensalt(10)).decode()
    number = await add_user(door.store, "bob@example.com", password_hash=old)
    wrong = {"email": "bob@example.com", "password": "of tokentracer"}
    assert (await door.ask("POST", "/auth/login", wrong)).code == "invalid_credentials"
    await door.sign_in("bob@example.com", "of TokenTracer")
    hashed = (await door.rows(users, users.c.id == number))[0].password_hash
    assert hashed.startswith("$argon2id$")
    await door.sign_in("bob@example.com", "of TokenTracer")
    assert (await door.rows(users, users.c.id == number))[0].password_hash == hashed


async def test_an_administrator_manages_accounts(door, admin):
    """Lists them, changes role, activity and limits; what is left out stays, null is the default again."""
    bob = await door.session("bob@example.com")
    key = (await door.key(bob))["token"]
    listed = await door.want(200, "GET", "/manage/users", token=admin)
    assert [(one["id"], one["email"], one["role"]) for one in listed] == [
        (1, "admin@example.com", "admin"),
        (2, "bob@example.com", "member"),
    ]
    assert listed[0].keys() == {
        *("id", "email", "role", "active", "rate_limit_minute", "rate_limit_daily", "created_at"),
    }
    changed = await door.want(200, "PATCH", "/manage/users/2", {"rate_limit_minute": 5, "rate_limit_daily": 0}, admin)
    assert (changed["rate_limit_minute"], changed["rate_limit_daily"], changed["role"]) == (5, 0, "member")
    changed = await door.want(200, "PATCH", "/manage/users/2", {"rate_limit_minute": None}, admin)
    assert (changed["rate_limit_minute"], changed["rate_limit_daily"]) == (None, 0)
    assert (await door.want(200, "GET", "/auth/me", token=bob))["rate_limit_daily"] == 0
    assert await door.want(200, "PATCH", "/manage/users/2", {}, admin) == changed
    for body in ({"rate_limit_daily": -1}, {"rate_limit_daily": 2**31}, {"role": "owner"}, {"active": 1}, {"id": 1}):
        assert (await door.ask("PATCH", "/manage/users/2", body, admin)).status == 400
    await door.want(200, "PATCH", "/manage/users/2", {"role": "admin"}, admin)
    await door.want(200, "GET", "/manage/users", token=bob)
    await door.want(200, "PATCH", "/manage/users/2", {"role": "member"}, admin)
    assert (await door.ask("GET", "/manage/users", token=bob)).code == "admin_needed"
    await door.want(200, "PATCH", "/manage/users/2", {"active": False}, admin)
    for token in (key, bob):
        refused = await door.ask("GET", "/models", token=token)
        assert refused.status == 401 and refused.code in ("account_disabled", "session_ended")
    refused = await door.ask("POST", "/auth/login", {"email": "bob@example.com", "password": PASSWORD})
    assert (refused.status, refused.code) == (403, "account_disabled") and "administrator" in refused.words
    wrong = await door.ask("POST", "/auth/login", {"email": "bob@example.com", "password": "a wrong one"})
    assert (wrong.status, wrong.code) == (401, "invalid_credentials")
    await door.want(200, "PATCH", "/manage/users/2", {"active": True}, admin)
    assert (await door.ask("GET", "/models", token=bob)).code == "session_ended"
    await door.want(200, "GET", "/models", token=key)
    await door.want(204, "DELETE", "/manage/users/2", token=admin)
    assert (await door.ask("GET", "/models", token=key)).code == "invalid_key"
    assert await door.rows(api_keys) == [] and len(await door.rows(users)) == 1
    for method, body in (("PATCH", {}), ("DELETE", None)):
        await door.want(404, method, "/manage/users/2", body, admin)
    actions = [row.action for row in await door.rows(audit_log)]
    assert {"user.create", "user.change", "user.delete", "key.create"} <= set(actions)


async def test_an_administrator_sees_and_revokes_the_keys_of_others(door, admin):
    """What their owner sees of them, never a key; one is found only where it belongs."""
    bob, eve = await door.session("bob@example.com"), await door.session("eve@example.com")
    key = await door.key(bob, name="laptop", scopes=["models", "usage"])
    await door.key(bob, name="ci")
    keys = await door.want(200, "GET", "/manage/users/2/keys", token=admin)
    assert keys == await door.want(200, "GET", "/auth/key", token=bob)
    assert [one["name"] for one in keys] == ["laptop", "ci"] and key["token"] not in str(keys)
    assert await door.want(200, "GET", "/manage/users/3/keys", token=admin) == []
    await door.want(404, "GET", "/manage/users/99/keys", token=admin)
    for token in (bob, eve):
        assert (await door.ask("GET", "/manage/users/2/keys", token=token)).code == "admin_needed"
        assert (await door.ask("DELETE", f"/manage/users/2/keys/{key['id']}", token=token)).code == "admin_needed"
    await door.want(404, "DELETE", f"/manage/users/3/keys/{key['id']}", token=admin)
    await door.want(200, "GET", "/models", token=key["token"])
    await door.want(204, "DELETE", f"/manage/users/2/keys/{key['id']}", token=admin)
    assert (await door.ask("GET", "/models", token=key["token"])).code == "revoked_key"
    assert [one["name"] for one in await door.want(200, "GET", "/manage/users/2/keys", token=admin)] == ["ci"]
    await door.want(404, "DELETE", f"/manage/users/2/keys/{key['id']}", token=admin)
    assert [row.object for row in await door.rows(audit_log) if row.action == "key.revoke"] == [f"key:{key['id']}"]


async def test_the_last_administrator_stays(door, admin):
    """Not demoted, not switched off, not removed; one who is switched off does not count."""
    for method, body in (("PATCH", {"role": "member"}), ("PATCH", {"active": False}), ("DELETE", None)):
        refused = await door.ask(method, "/manage/users/1", body, admin)
        assert (refused.status, refused.code) == (409, "last_admin")
    other = await add_user(door.store, "other@example.com", "admin", active=False)
    assert (await door.ask("DELETE", "/manage/users/1", token=admin)).code == "last_admin"
    await door.want(200, "PATCH", f"/manage/users/{other}", {"active": True}, admin)
    await door.want(200, "PATCH", "/manage/users/1", {"role": "member"}, admin)
    assert [row.role for row in await door.rows(users)] == ["member", "admin"]
    assert (await door.ask("GET", "/manage/users", token=admin)).code == "admin_needed"


async def test_two_administrators_who_demote_each_other_at_once_leave_one(store_url):
    """On two machines."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(store_url)) for _ in range(2)]
        machines = [await stack.enter_async_context(doors(store)) for store in stores]
        admin = await machines[0].session("admin@example.com")
        await machines[1].sign_up("other@example.com")
        await machines[0].want(200, "PATCH", "/manage/users/2", {"role": "admin"}, admin)
        tokens = [admin, (await machines[1].sign_in("other@example.com"))["token"]]
        for _ in range(5):
            for machine, token in zip(machines, tokens, strict=True):
                await machine.want(200, "GET", "/manage/users", token=token)
            answers = await asyncio.gather(
                *(
                    machines[here].ask("PATCH", f"/manage/users/{2 - here}", {"role": "member"}, tokens[here])
                    for here in (0, 1)
                )
            )
            assert sorted(answer.status for answer in answers) == [200, 409]
            assert sorted(row.role for row in await machines[0].rows(users)) == ["admin", "member"]
            for store in stores:
                await _change(store, users, users.c.id > 0, role="admin")


async def test_who_shares_a_provider_key_that_others_use_is_not_removed(door, admin):
    """Their aliases are named; when these are gone he is, with all that was his."""
    bob = await add_user(door.store, "bob@example.com")
    async with door.store.writing() as connection:
        key = {"user_id": bob, "provider": "openai", "encrypted_key": "-", "key_version": 1, "shared": True}
        key_id = (
            await connection.execute(insert(schema.provider_keys).values(key).returning(schema.provider_keys.c.id))
        ).scalar_one()
        for user, name in ((1, "fast"), (bob, "own")):
            alias = {"user_id": user, "alias": name, "target_model": "m", "provider_key_id": key_id}
            await connection.execute(insert(schema.model_aliases).values(alias))
    refused = await door.ask("DELETE", f"/manage/users/{bob}", token=admin)
    assert (refused.status, refused.code) == (409, "in_use") and "fast" in refused.words and "own" not in refused.words
    async with door.store.writing() as connection:
        await connection.execute(schema.model_aliases.delete().where(schema.model_aliases.c.user_id == 1))
    await door.want(204, "DELETE", f"/manage/users/{bob}", token=admin)
    assert await door.rows(schema.model_aliases) == [] == await door.rows(schema.provider_keys)


async def test_teams_have_members_and_budgets(door, admin):
    """Made, renamed, given money, joined and left; members see theirs, and calls carry them at once."""
    bob = await door.session("bob@example.com")
    key = (await door.key(bob))["token"]
    made = await door.want(201, "POST", "/manage/teams", {"name": " Research ", "monthly_budget": 12.34}, admin)
    assert (made["name"], made["monthly_budget"], made["members"]) == ("Research", 12.34, [])
    assert (await door.rows(schema.teams))[0].monthly_budget == 12_340_000_000
    other = await door.want(201, "POST", "/manage/teams", {"name": "Sales"}, admin)
    assert other["monthly_budget"] is None
    assert (await door.want(200, "GET", "/models", token=key))["teams"] == []
    for _ in range(2):
        await door.want(204, "PUT", f"/manage/teams/{made['id']}/members/2", token=admin)
    assert (await door.want(200, "GET", "/models", token=key))["teams"] == [made["id"]]
    assert (await door.want(200, "GET", "/auth/me", token=bob))["teams"] == [{"id": made["id"], "name": "Research"}]
    listed = await door.want(200, "GET", "/manage/teams", token=admin)
    assert [team["members"] for team in listed] == [[{"id": 2, "email": "bob@example.com"}], []]
    path = f"/manage/teams/{made['id']}"
    changed = await door.want(200, "PATCH", path, {"name": "R&D"}, admin)
    assert (changed["name"], changed["monthly_budget"], len(changed["members"])) == ("R&D", 12.34, 1)
    assert (await door.want(200, "PATCH", path, {"monthly_budget": None}, admin))["monthly_budget"] is None
    assert (await door.want(200, "PATCH", path, {"monthly_budget": 0}, admin))["monthly_budget"] == 0
    for answer in (
        await door.ask("PATCH", path, {"name": "Sales"}, admin),
        await door.ask("POST", "/manage/teams", {"name": "Sales"}, admin),
    ):
        assert (answer.status, answer.code) == (409, "name_taken")
    for body in ({"name": ""}, {"name": "a\nb"}, {"name": "x" * 101}, {"monthly_budget": -1}, {"monthly_budget": 1e30}):
        assert (await door.ask("PATCH", path, body, admin)).status == 400
        assert (await door.ask("POST", "/manage/teams", {"name": "New"} | body, admin)).status == 400
    await door.want(204, "DELETE", f"{path}/members/2", token=admin)
    await door.want(404, "DELETE", f"{path}/members/2", token=admin)
    assert (await door.want(200, "GET", "/models", token=key))["teams"] == []
    await door.want(204, "PUT", f"{path}/members/2", token=admin)
    await door.want(204, "DELETE", path, token=admin)
    assert await door.rows(team_members) == [] and (await door.want(200, "GET", "/models", token=key))["teams"] == []
    for method, where in (
        ("DELETE", path),
        ("PATCH", path),
        ("PUT", f"{path}/members/2"),
        ("PUT", f"/manage/teams/{other['id']}/members/99"),
        ("PUT", f"/manage/teams/{other['id']}/members/x"),
    ):
        assert (await door.ask(method, where, {} if method == "PATCH" else None, admin)).status == 404, where
