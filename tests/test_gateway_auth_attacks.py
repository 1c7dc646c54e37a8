"""What people try against the gateway's accounts, over real sockets; each attack is a test of its name."""

import asyncio
import json
import re
import statistics
import time

import bcrypt
import jwt
import msgspec
import pytest
from sqlalchemy import delete

from llm_proxy.gateway import apikeys, session_tokens, throttle
from llm_proxy.gateway.identity import Identifier
from llm_proxy.gateway.manage import auth, invitations, teams, users
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.store import schema
from tests.gatewaydoor import JWT_SECRET, PASSWORD, SECRETS, doors, old_token
from tests.gatewaystore import a_store_url, add_user, opened

ROUTES = (*auth.ROUTES, *users.ROUTES, *teams.ROUTES, *invitations.ROUTES)


@pytest.fixture
async def door(store):
    async with doors(store) as made:
        yield made


@pytest.fixture
async def one_door(tmp_path):
    """On SQLite alone, where the store does not matter."""
    async with a_store_url("sqlite", tmp_path) as url, opened(url) as store, doors(store) as made:
        yield made


@pytest.fixture
async def admin(door):
    return await door.session("admin@example.com")


def _filled(path):
    return re.sub(r"\{\w*id\}", "1", path)


async def test_forged_tokens_are_401_on_every_route(one_door):
    """alg=none, the secret itself, another secret, an RSA head, no signature: a table of all of them by all routes."""
    admin = await one_door.session("admin@example.com")
    claims = jwt.decode(admin, options={"verify_signature": False})
    head, payload, signature = admin.split(".")
    forged = {
        "none": jwt.encode(claims, None, "none"),
        "the secret itself": jwt.encode(claims, JWT_SECRET, "HS256"),
        "another secret": jwt.encode(claims, "x" * 40, "HS256"),
        "kid": jwt.encode(claims, "x" * 40, "HS256", headers={"kid": "../../dev/null"}),
        "no signature": f"{head}.{payload}.",
        "two parts": f"{head}.{payload}",
        "another's": f"{head}.{payload[:-4]}AAAA.{signature}",
        "a session of TokenTracer": old_token("session", sub=1),
        "nothing known": old_token(sub=1),
        "a key by guess": apikeys.new("llmp_"),
    }
    for route in ROUTES:
        if route.access is Access.PUBLIC:
            continue
        for name, token in forged.items():
            answer = await one_door.ask(route.method, _filled(route.path), {}, token)
            assert answer.status == 401, (route.method, route.path, name)
    assert len(await one_door.rows(schema.users)) == 1


async def test_a_token_for_100_kb_is_refused(one_door):
    """Unread, as bearer and as x-api-key; and by the server, where it is beyond any head."""
    for size in (5_000, 7_500, 100_000):
        answer = await one_door.ask("GET", "/auth/me", headers={"Authorization": "Bearer " + "a" * size})
        assert answer.status in (400, 401)
        answer = await one_door.ask("GET", "/auth/me", headers={"x-api-key": "eyJhbGciOi" + "a" * size})
        assert answer.status in (400, 401)


async def test_a_session_of_somebody_else_is_not_taken_over_by_its_number(one_door):
    """A token signed rightly for a session that is another's, or none, is refused."""
    await one_door.session("admin@example.com")
    await one_door.session("bob@example.com")
    theirs = (await one_door.rows(schema.sessions, schema.sessions.c.user_id == 1))[0].id
    tokens, at = one_door.identifier.tokens, schema.now()
    for user, session in ((2, theirs), (3, theirs), (1, "8f14e45f-ceea-467f-ab3d-000000000001"), (1, "' OR 1=1 --")):
        answer = await one_door.ask("GET", "/auth/me", token=tokens.access(user, session, at))
        assert (answer.status, answer.code) == (401, "session_ended")
        body = {"refresh_token": tokens.refresh(user, session, at, at + session_tokens.SESSION)}
        assert (await one_door.ask("POST", "/auth/refresh", body)).status == 401
    assert (await one_door.rows(schema.sessions, schema.sessions.c.id == theirs))[0].revoked_at is None


async def test_a_key_can_do_nothing_but_its_scopes(door, admin):
    """An administrator's key with every scope makes no keys and manages nobody; a scope that is missing is 403."""
    mighty = (await door.key(admin, scopes=["models", "usage", "manage"]))["token"]
    for route in ROUTES:
        if route.access is not Access.PUBLIC:
            for headers in ({"Authorization": f"Bearer {mighty}"}, {"x-api-key": mighty}):
                answer = await door.ask(route.method, _filled(route.path), {}, headers=headers)
                assert (answer.status, answer.code) == (403, "session_needed"), (route.method, route.path)
    models, usage = [(await door.key(admin, scopes=[scope]))["token"] for scope in ("models", "usage")]
    for token, good, bad in ((models, "/models", "/usage"), (usage, "/usage", "/models")):
        await door.want(200, "GET", good, token=token)
        answer = await door.ask("GET", bad, token=token)
        assert (answer.status, answer.code) == (403, "scope_missing") and bad[1:] in answer.words
    assert len(await door.rows(schema.api_keys)) == 3


async def test_a_member_manages_nobody(door, admin):
    """Every route for administrators is 403 to him, whatever he sends, and nothing has changed."""
    bob = await door.session("bob@example.com")
    before = [await door.rows(table) for table in (schema.users, schema.teams, schema.invitations, schema.team_members)]
    for route in ROUTES:
        if route.access is Access.ADMIN:
            for body in ({}, {"role": "admin"}, {"name": "x", "email": "e@example.com"}):
                answer = await door.ask(route.method, _filled(route.path), body, bob)
                assert (answer.status, answer.code) == (403, "admin_needed"), (route.method, route.path)
    after = [await door.rows(table) for table in (schema.users, schema.teams, schema.invitations, schema.team_members)]
    assert before == after


def test_every_route_says_who_may_come():
    """None is for everybody but those that make a session; none takes an API key."""
    assert {route.path for route in ROUTES if route.access is Access.PUBLIC} == {
        *("/auth/signup", "/auth/login", "/auth/refresh"),
    }
    assert {route.access for route in ROUTES if route.path.startswith("/manage/")} == {Access.ADMIN}
    assert not [route for route in ROUTES if route.access is Access.KEY]


ASSIGNED = {
    "id": 1,
    "user_id": 1,
    "role": "admin",
    "active": True,
    "scopes": ["manage"],
    "is_admin": True,
    "scope": "session",
    "kind": "jwt",
    "key_hash": "x",
    "prefix": "x",
    "token": "x",
    "created_by": 1,
    "rate_limit_minute": 0,
    "team_ids": [1],
    "monthly_budget": 0,
    "password_hash": "x",
    "revoked_at": None,
    "expires_at": None,
    "created_at": "2020-01-01T00:00:00Z",
    "__class__": "x",
    "email": "e@example.com",
}
GOOD = {
    auth.NewUser: {"email": "new@example.com", "password": PASSWORD},
    auth.Login: {"email": "admin@example.com", "password": PASSWORD},
    auth.Renewal: {"refresh_token": "x"},
    auth.NewPassword: {"current_password": PASSWORD, "new_password": "quite another one"},
    auth.NewKey: {},
    users.Change: {},
    teams.NewTeam: {"name": "x"},
    teams.Change: {},
    invitations.NewInvitation: {},
}


@pytest.mark.parametrize("route", [route for route in ROUTES if route.takes], ids=lambda route: route.path)
async def test_no_body_assigns_what_its_route_does_not_take(one_door, route):
    """Role, scopes, ids and all columns: a field beyond those of the route is 400, and nothing is written."""
    admin = await one_door.session("admin@example.com")
    bob = await one_door.session("bob@example.com")
    assert route.takes in GOOD, "say here what a good body of it is"
    taken = {field.encode_name for field in msgspec.structs.fields(route.takes)}
    before = [await one_door.rows(table) for table in schema.metadata.sorted_tables]
    for name, value in ASSIGNED.items():
        if name not in taken:
            body = GOOD[route.takes] | {name: value}
            token = admin if route.access is Access.ADMIN else bob
            answer = await one_door.ask(route.method, _filled(route.path), body, token)
            assert (answer.status, answer.code) == (400, "invalid_request") and name in answer.words
    assert before == [await one_door.rows(table) for table in schema.metadata.sorted_tables]


async def test_bodies_of_other_kinds_are_400(one_door):
    """Lists, null, numbers for texts, depth, no JSON, no UTF-8, a wrong scope, figures that are none."""
    admin = await one_door.session("admin@example.com")
    for path in ("/auth/signup", "/auth/login", "/auth/key", "/auth/refresh", "/manage/teams", "/manage/invitations"):
        for body in (
            b"[]",
            b"null",
            b"7",
            b'"x"',
            b"{",
            b"\xff",
            b'{"email":1,"name":1,"refresh_token":1}',
            b"[" * 5000,
        ):
            answer = await one_door.ask("POST", path, body, admin)
            assert answer.status == 400, (path, body[:20], answer)
    for body in (
        {"scopes": ["root"]},
        {"scopes": "models"},
        {"scopes": []},
        {"expires_in_days": 0},
        {"expires_in_days": -1},
        {"expires_in_days": 1e400},
        {"expires_in_days": 10**20},
        {"expires_in_days": "7"},
        {"expires_in_days": True},
        {"name": 7},
        {"name": "a\x00b"},
        {"name": "a\r\nX-Evil: 1"},
        {"name": "\u202etxt"},
        {"name": "x" * 101},
        {"name": " "},
    ):
        assert (await one_door.ask("POST", "/auth/key", body, admin)).status == 400, body
    assert await one_door.rows(schema.api_keys) == []


async def test_others_key_ids_are_404(door, admin):
    """As those that nobody has, in the same words; an administrator revokes whose he wants."""
    bob, carol = await door.session("bob@example.com"), await door.session("carol@example.com")
    his = await door.key(bob)
    other, nobodys = [await door.ask("DELETE", f"/auth/key/{number}", token=carol) for number in (his["id"], 999)]
    assert (other.status, other.code) == (nobodys.status, nobodys.code) == (404, "not_found")
    assert other.words == nobodys.words.replace("999", str(his["id"]))
    await door.want(200, "GET", "/models", token=his["token"])
    assert await door.want(200, "GET", "/auth/key", token=carol) == []
    for odd in ("0", "-1", "1e0", "1 or 1=1", "%00", "9" * 30, "1%2f..", "٣", "1;"):
        assert (await door.ask("DELETE", f"/auth/key/{odd}", token=admin)).status == 404, odd
    await door.want(204, "DELETE", f"/auth/key/{his['id']}", token=admin)
    assert (await door.ask("GET", "/models", token=his["token"])).code == "revoked_key"


EMAILS = (
    "' OR '1'='1",
    "admin@example.com' --",
    "admin@example.com'; DROP TABLE users; --",
    "%@example.com",
    "a_min@example.com",
    "admin@example.com\0",
    "\0",
    '" OR ""="',
    "x' UNION SELECT 1,'admin@example.com','$2a$10$x','admin',1,0,0,0 --",
    "admin@example.com/*",
    "x" * 100_000,
    "ADMIN@EXAMPLE.COM\u200b",
)


async def test_sql_in_an_address_is_an_address(door, admin):
    """Nobody signs in with it, nobody is made of it who was not to be, and the store is as it was."""
    good = ["admin@example.com"]
    for number, email in enumerate(EMAILS):
        body, address = {"email": email, "password": PASSWORD}, f"192.0.2.{number}"
        answer = await door.ask("POST", "/auth/login", body, address=address)
        assert (answer.status, answer.code) == (401, "invalid_credentials"), email
        answer = await door.ask("POST", "/auth/signup", body, address=address)
        if answer.status == 201:
            good.append(email)
        else:
            assert answer.code == "invalid_email", email
    assert [row.email for row in await door.rows(schema.users)] == good
    assert good[1:] == ["%@example.com", "a_min@example.com"]  # as an address may be
    await door.want(200, "GET", "/auth/me", token=admin)


async def test_headers_cannot_be_written_into(one_door):
    """What comes from a caller is in no header of an answer, and line ends in it are in none of its lines."""
    admin = await one_door.session("admin@example.com")
    evil = "x\r\nSet-Cookie: a=b\r\n\r\n<html>"
    answers = [
        await one_door.ask("POST", "/auth/login", {"email": evil, "password": evil}),
        await one_door.ask("POST", "/auth/signup", {"email": evil, "password": evil}),
        await one_door.ask("POST", "/auth/key", {"name": evil}, admin),
        await one_door.ask("POST", "/manage/teams", {"name": evil}, admin),
        await one_door.ask("POST", "/auth/refresh", {"refresh_token": evil}),
        await one_door.ask("DELETE", "/auth/key/%0d%0aSet-Cookie:%20a=b", token=admin),
        await one_door.ask("GET", "/auth/me", headers={"Authorization": "Bearer x", "x-api-key": "%0d%0aa"}),
    ]
    for answer in answers:
        assert 400 <= answer.status < 500
        assert "Set-Cookie" not in answer.headers and answer.headers["Content-Type"].startswith("application/json")
        assert not [value for value in answer.headers.values() if "a=b" in value]
        assert b"\r" not in answer.body and b"\n" not in answer.body


async def test_a_credential_that_comes_twice_is_refused(one_door):
    """Two of one header could be read otherwise by whoever stands before us."""
    admin = await one_door.session("admin@example.com")
    key = (await one_door.key(admin))["token"]
    where = one_door.url.removeprefix("http://")
    host, _, port = where.partition(":")
    for name in ("Authorization: Bearer ", "x-api-key: "):
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = (f"GET /models HTTP/1.1\r\nHost: {where}\r\n{name}{key}\r\n{name}{key}x\r\nConnection: close\r\n\r\n",)
        writer.write("".join(lines).encode())
        async with asyncio.timeout(30):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b" 401 " in answer.split(b"\r\n")[0] or b" 400 " in answer.split(b"\r\n")[0], answer


async def test_a_key_in_a_url_is_refused_even_if_it_is_right(one_door):
    """With a word that says what to do, and also beside a good header, for it is lost either way."""
    admin = await one_door.session("admin@example.com")
    key = (await one_door.key(admin))["token"]
    for target in (
        f"/models?key={key}",
        f"/models?api_key={key}",
        f"/models?x={key}",
        f"/models?access_token={admin}",
        "/models?a=b&Api-Key=sk-of-a-provider-0123456789",
    ):
        for token in ("", key):
            answer = await one_door.ask("GET", target, token=token)
            assert (answer.status, answer.code) == (400, "credential_in_url"), target
            assert "make a new one" in answer.words and key not in answer.words
    for target in ("/models?key=12", "/models?group_by=key&token=1", "/models?keys=" + "a" * 30):
        await one_door.want(200, "GET", target, token=key)


async def test_passwords_cannot_be_tried_by_the_hundred(one_door):
    """One address, one account, all at once: a few are judged, the rest are 429 with when to come again."""
    await one_door.session("admin@example.com")
    body = {"email": "admin@example.com", "password": "a wrong one"}
    answers = await asyncio.gather(*(one_door.ask("POST", "/auth/login", body) for _ in range(40)))
    judged = [answer for answer in answers if answer.status == 401]
    slowed = [answer for answer in answers if answer.status == 429]
    assert (len(judged), len(slowed)) == (throttle.PAIR[0], 40 - throttle.PAIR[0])
    assert {answer.code for answer in slowed} == {"too_many_attempts"}
    assert all(0 < int(answer.headers["Retry-After"]) <= 30 for answer in slowed)
    right = await one_door.ask("POST", "/auth/login", body | {"password": PASSWORD})
    assert right.status == 429, "the right one must not be told apart"
    await one_door.sign_in("admin@example.com", address="198.51.100.1")
    unknown = [
        (await one_door.ask("POST", "/auth/login", body | {"email": "nobody@example.com"})).status
        for _ in range(throttle.PAIR[0] + 1)
    ]
    assert unknown == [401] * throttle.PAIR[0] + [429]


async def test_a_change_of_password_is_no_way_to_guess_it(one_door):
    """Who has somebody's session is slowed there, too."""
    admin = await one_door.session("admin@example.com")
    body = {"current_password": "a wrong one", "new_password": "quite another one"}
    statuses = [
        (await one_door.ask("POST", "/auth/password", body, admin, address="198.51.100.9")).status
        for _ in range(throttle.PAIR[0] + 2)
    ]
    assert statuses == [403] * throttle.PAIR[0] + [429] * 2


async def test_sign_ups_of_one_address_are_slowed(one_door):
    """Whatever becomes of them; other addresses notice nothing."""
    body = {"email": "admin@example.com", "password": PASSWORD}
    await one_door.want(201, "POST", "/auth/signup", body)
    for _ in range(throttle.SIGNUPS[0] - 1):
        one_door.identifier.throttle.sign_up("192.0.2.1")
    slowed = await one_door.ask("POST", "/auth/signup", body)
    assert (slowed.status, slowed.code) == (429, "too_many_attempts") and int(slowed.headers["Retry-After"]) <= 20
    assert (await one_door.ask("POST", "/auth/signup", body, address="192.0.2.2")).status == 409


@pytest.mark.parametrize("old", [False, True], ids=["argon2", "bcrypt"])
async def test_logins_take_as_long_for_nobody_as_for_somebody(one_door, old):
    """Medians of turns, with a wide guard: without the hash that nobody has, one is twenty times the other. The words
    are the same, too. Also where the account's hash is of TokenTracer, while another's is not."""
    await one_door.session("admin@example.com")
    if old:
        hashed = bcrypt.hashpw(b"of TokenTracer", bcrypt.gensalt(10)).decode()
        await add_user(one_door.store, "bob@example.com", password_hash=hashed)
    names = ["admin@example.com", "nobody@example.com", *(["bob@example.com"] if old else [])]
    said, seen = set(), []
    for attempt in range(3):  # other tests may take the processors for a while
        took = {name: [] for name in names}
        for turn in range(7):
            for name in names:
                begun = time.perf_counter()
                body = {"email": name, "password": "a wrong one"}
                answer = await one_door.ask("POST", "/auth/login", body, address=f"192.0.{attempt}.{turn}")
                took[name].append(time.perf_counter() - begun)
                said.add((answer.status, answer.body, tuple(sorted(answer.headers.keys()))))
        seen.append([statistics.median(times) for times in took.values()])
        if min(seen[-1]) > 0.5 * max(seen[-1]):
            break
    else:
        raise AssertionError(seen)
    assert len(said) == 1


async def test_tokens_that_begin_alike_stay_apart(one_door):
    """All sessions' tokens share their first half, keys of TokenTracer more; each is remembered as who it is."""
    first = await one_door.session("admin@example.com")
    second = await one_door.session("bob@example.com")
    same = next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert same > 100
    for _ in range(2):
        for token, user in ((first, 1), (second, 2)):
            assert (await one_door.want(200, "GET", "/models", token=token))["user"] == user
    for cut in range(same + 1, len(first), 7):
        assert (await one_door.ask("GET", "/models", token=first[:cut] + second[cut:])).status == 401
        assert (await one_door.ask("GET", "/models", token=first[:cut])).status == 401
    assert (await one_door.ask("GET", "/models", token=first + "A")).status == 401


async def test_callers_who_leave_do_not_spoil_it_for_those_who_stay(one_door):
    """Many ask with one credential at once, the first of them goes away: the store is asked once, the rest are served."""
    admin = await one_door.session("admin@example.com")
    key = (await one_door.key(admin))["token"]
    reading, times = one_door.store.reading, []

    def counted():
        times.append(1)
        return reading()

    one_door.store.reading = counted
    asked = [asyncio.ensure_future(one_door.identifier.identify({"x-api-key": key})) for _ in range(20)]
    await asyncio.sleep(0)
    asked[0].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert {caller.user_id for caller in answers[1:]} == {1} and len(times) == 1


async def test_an_account_removed_while_it_signs_in_gets_no_session(one_door):
    """The password is judged outside the transaction, so it is looked at again inside."""
    await one_door.session("admin@example.com")
    await one_door.sign_up("bob@example.com")
    passwords = one_door.identifier.passwords
    verify = passwords.verify

    async def meanwhile(*given, **more):
        good = await verify(*given, **more)
        async with one_door.store.writing() as connection:
            await connection.execute(delete(schema.users).where(schema.users.c.email == "bob@example.com"))
        return good

    passwords.verify = meanwhile
    answer = await one_door.ask("POST", "/auth/login", {"email": "bob@example.com", "password": PASSWORD})
    assert (answer.status, answer.code) == (401, "invalid_credentials")
    assert len(await one_door.rows(schema.sessions)) == 1


async def test_no_answer_can_be_kept_by_a_cache(one_door):
    """Tokens and keys are in them."""
    made = await one_door.ask("POST", "/auth/signup", {"email": "admin@example.com", "password": PASSWORD})
    signed = await one_door.ask("POST", "/auth/login", {"email": "admin@example.com", "password": PASSWORD})
    key = await one_door.ask("POST", "/auth/key", None, signed.json["token"])
    for answer in (made, signed, key, await one_door.ask("GET", "/auth/me")):
        assert answer.headers["Cache-Control"] == "no-store"


async def test_secrets_are_not_shown_by_what_holds_them(one_door):
    """Neither parts nor refusals print them."""
    assert JWT_SECRET not in repr(SECRETS)
    key = apikeys.new("llmp_")
    with pytest.raises(Refusal) as refused:
        await one_door.identifier.identify({"x-api-key": key})
    assert key not in json.dumps([str(refused.value), refused.value.message, refused.value.headers])
    assert JWT_SECRET not in str(vars(one_door.identifier)) and isinstance(one_door.identifier, Identifier)
