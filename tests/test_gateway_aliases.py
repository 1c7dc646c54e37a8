"""Aliases are made, seen and changed by those who may, lead only where these may go, and never in a circle."""

import asyncio
import json
import random
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
from aiohttp import web
from sqlalchemy import insert, make_url, select, update
from yarl import URL

from llm_proxy.gateway import apikeys
from llm_proxy.gateway.app import application
from llm_proxy.gateway.catalog import Catalogs
from llm_proxy.gateway.facts import Caller, Role, Scope
from llm_proxy.gateway.manage.aliases import LONGEST_CHAIN, MOST, ROUTES
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.planning import plan
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask
from llm_proxy.gateway.site import site
from llm_proxy.gateway.store import schema
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.gateway.tokens import Prompt
from tests.gatewaycalls import calls
from tests.gatewaystore import a_store_url, add_user, opened
from tests.postgresbed import SERVER

__all__ = ["calls"]

DEFAULTS = {
    "fallback_alias_id": None,
    "use_light_model": False,
    "light_model_threshold": 100,
    "light_model": None,
    "long_model": None,
    "long_model_threshold": None,
    "weight": 1,
    "chain": [],
    "parameters": {},
    "shared": False,
    "own": True,
}


class Person:
    """Somebody who calls the routes as the application does: their bodies are read by the routes' own types."""

    def __init__(self, store, id, admin):
        role = Role.ADMIN if admin else Role.MEMBER
        self.store = store
        self.caller = Caller(id, f"{id}@example.com", role, frozenset(), session_id="s")

    @classmethod
    async def new(cls, store, email, admin=False):
        return cls(store, await add_user(store, email, "admin" if admin else "member"), admin)

    async def __call__(self, method, body=None, alias=None):
        (route,) = (one for one in ROUTES if one.method == method)
        if route.takes is not None:
            body = msgspec.json.decode(msgspec.json.encode(body), type=route.takes)
        ask = Ask(SimpleNamespace(store=self.store), self.caller, {"alias": alias}, {}, body, "192.0.2.1")
        given = await route.handler(ask)
        assert given is None or msgspec.convert(msgspec.to_builtins(given), route.gives) == given
        return msgspec.json.decode(msgspec.json.encode(given))

    async def key(self, provider="openai", shared=False, label="", models=()):
        async with self.store.writing() as connection:
            values = {"user_id": self.caller.user_id, "provider": provider, "encrypted_key": "x", "key_version": 1}
            made = insert(schema.provider_keys).values(shared=shared, label=label, **values)
            id = (await connection.execute(made.returning(schema.provider_keys.c.id))).scalar_one()
            for model in models:
                await connection.execute(insert(schema.provider_models).values(provider_key_id=id, model_id=model))
            await self.store.changed(connection)
        return id

    async def put(self, alias, key, model="gpt-4o", **more):
        return await self("POST", {"alias": alias, "target_model": model, "provider_key_id": key, **more})

    async def refused(self, method, body=None, alias=None):
        with pytest.raises(Refusal) as caught:
            await self(method, body, alias)
        return caught.value


@pytest.fixture
async def ann(store):
    return await Person.new(store, "ann@example.com")


@pytest.fixture
async def admin(store):
    return await Person.new(store, "admin@example.com", admin=True)


async def test_an_alias_is_made_listed_changed_and_deleted(ann):
    """In TokenTracer's shape, with what it had no fields for beside it; a list is never null."""
    assert await ann("GET") == []
    key = await ann.key()
    made = await ann.put("fast", key)
    assert made.pop("created_at").endswith("Z")
    assert made == DEFAULTS | {"id": made["id"], "alias": "fast", "target_model": "gpt-4o", "provider_key_id": key}
    change = {"target_model": "gpt-5", "light_model": "gpt-5-mini", "use_light_model": True, "light_model_threshold": 0}
    changed = await ann("PATCH", change, "fast")
    assert {name: changed[name] for name in change} == change and changed["id"] == made["id"]
    (listed,) = await ann("GET")
    assert listed == changed
    assert await ann("DELETE", alias="fast") is None
    assert await ann("GET") == []


async def test_all_fields_come_back_as_they_were_given(ann):
    """Chains, weights and parameters too; a step without a rank comes behind those before it."""
    key = await ann.key()
    other = await ann.put("other", key)
    given = {
        "fallback_alias_id": other["id"],
        "use_light_model": True,
        "light_model": "small",
        "light_model_threshold": 20,
        "long_model": "long",
        "long_model_threshold": 200_000,
        "weight": 3,
        "parameters": {"temperature": 0.2, "stop": ["a"], "top_k": None, "min_p": 0.1, "reasoning": {"effort": "low"}},
    }
    steps = [{"model": "a", "rank": 0, "weight": 2}, {"model": "b"}, {"model": "c", "rank": 1}, {"model": "d"}]
    chain = [{"provider_key_id": key, **step} for step in steps]
    made = await ann.put("all", key, chain=chain, **given)
    assert {name: made[name] for name in given} == given
    assert [(one["model"], one["rank"], one["weight"]) for one in made["chain"]] == [
        ("a", 0, 2),
        ("b", 1, 1),
        ("c", 1, 1),
        ("d", 2, 1),
    ]
    assert made in await ann("GET")


async def test_posting_a_name_again_overwrites_the_whole_of_it(ann):
    """As TokenTracer does; its id stays, so that what falls back on it goes on doing so."""
    key = await ann.key()
    first = await ann.put("fast", key, light_model="small", use_light_model=True, weight=5)
    again = await ann.put("fast", key, "gpt-5")
    assert again == first | DEFAULTS | {"target_model": "gpt-5"}
    assert len(await ann("GET")) == 1


async def test_what_tokentracer_takes_for_none_is_none(ann):
    """A fallback of 0 or below, an empty light model, an id beside it all."""
    key = await ann.key()
    for fallback in (0, -1, None):
        made = await ann.put("x", key, fallback_alias_id=fallback, light_model="", id=99)
        assert (made["fallback_alias_id"], made["light_model"]) == (None, None) and made["id"] != 99


async def test_what_is_not_there_is_404(ann):
    """For PATCH and DELETE, where TokenTracer said 200; also what no database takes for a name."""
    for name in ("nothing", "a/b:c", "", "x\0y"):
        for method, body in (("PATCH", {"target_model": "m"}), ("DELETE", None)):
            refusal = await ann.refused(method, body, name)
            assert (refusal.status, refusal.code) == (404, "not_found")


async def test_an_alias_is_renamed(ann):
    """To a name that is free; who falls back on it, by its id, does not notice."""
    key = await ann.key()
    old = await ann.put("old", key)
    await ann.put("user", key, fallback_alias_id=old["id"])
    renamed = await ann("PATCH", {"alias": "team/new:latest"}, "old")
    assert (renamed["id"], renamed["alias"]) == (old["id"], "team/new:latest")
    refusal = await ann.refused("PATCH", {"alias": "user"}, "team/new:latest")
    assert (refusal.status, refusal.code, refusal.param) == (409, "name_taken", "alias")
    assert [one["alias"] for one in await ann("GET")] == ["team/new:latest", "user"]


async def test_a_deleted_fallback_is_none(ann):
    """The alias that fell back on it stays."""
    key = await ann.key()
    back = await ann.put("back", key)
    await ann.put("front", key, fallback_alias_id=back["id"])
    await ann("DELETE", alias="back")
    (left,) = await ann("GET")
    assert left["fallback_alias_id"] is None


WRONG = [
    ({"alias": ""}, "alias", "required"),
    ({"alias": " x"}, "alias", "blanks"),
    ({"alias": "a\nb"}, "alias", "control"),
    ({"alias": "a\0b"}, "alias", "control"),
    ({"alias": "a" * 256}, "alias", "255"),
    ({"target_model": ""}, "target_model", "required"),
    ({"target_model": "m\x1b[0m"}, "target_model", "control"),
    ({"provider_key_id": 0}, "provider_key_id", "required"),
    ({"provider_key_id": -3}, "provider_key_id", "required"),
    ({"light_model_threshold": -1}, "light_model_threshold", "from 0"),
    ({"light_model_threshold": 2**40}, "light_model_threshold", "100000000"),
    ({"use_light_model": True}, "light_model", "takes the light_model"),
    ({"use_light_model": True, "light_model": ""}, "light_model", "takes the light_model"),
    ({"light_model": "m" * 256}, "light_model", "255"),
    ({"long_model": "m"}, "long_model", "together"),
    ({"long_model_threshold": 5}, "long_model", "together"),
    ({"long_model": "m", "long_model_threshold": 0}, "long_model_threshold", "from 1"),
    (
        {"use_light_model": True, "light_model": "s", "long_model": "l", "long_model_threshold": 50},
        "long_model_threshold",
        "below light",
    ),
    ({"weight": -1}, "weight", "from 0"),
    ({"weight": 1001}, "weight", "1000"),
    ({"weight": 0}, "weight", "above 0"),
    ({"parameters": {"temperature": "hot"}}, "parameters.temperature", "0 to 2"),
    ({"parameters": {"temperature": 2.1}}, "parameters.temperature", "0 to 2"),
    ({"parameters": {"temperature": True}}, "parameters.temperature", "0 to 2"),
    ({"parameters": {"max_tokens": 0}}, "parameters.max_tokens", "1 or more"),
    ({"parameters": {"max_tokens": 1.5}}, "parameters.max_tokens", "whole"),
    ({"parameters": {"parallel_tool_calls": 1}}, "parameters.parallel_tool_calls", "true or false"),
    ({"parameters": {"stop": [1]}}, "parameters.stop", "texts"),
    ({"parameters": {"model": "x"}}, "parameters.model", "caller's own"),
    ({"parameters": {"stream": True}}, "parameters.stream", "caller's own"),
    ({"parameters": {"x y": 1}}, "parameters.x y", "name of a parameter"),
    ({"parameters": {f"p{n}": 1 for n in range(33)}}, "parameters", "at most 32"),
    ({"parameters": {"x": "y" * 20_000}}, "parameters", "bytes"),
]


@pytest.mark.parametrize(("given", "param", "words"), WRONG, ids=[f"{n}-{each[1]}" for n, each in enumerate(WRONG)])
async def test_wrong_fields_are_refused_by_their_names(given, param, words, tmp_path):
    """Whether the alias is made or changed; and nothing is written."""
    async with a_store_url("sqlite", tmp_path) as url, opened(url) as store:
        ann = await Person.new(store, "ann@example.com")
        key = await ann.key()
        good = {"alias": "good", "target_model": "m", "provider_key_id": key}
        made = await ann("POST", good)
        for method, body, alias in (("POST", {**good, "alias": "new", **given}, None), ("PATCH", given, "good")):
            refusal = await ann.refused(method, body, alias)
            assert (refusal.status, refusal.code, refusal.param) == (400, "invalid_request", param)
            assert words in refusal.message and refusal.message.startswith(f"{param}: ")
        assert await ann("GET") == [made]


async def test_wrong_chains_are_refused_by_the_step(ann):
    """Its key, its model, its rank, its weight; and the length of all."""
    key = await ann.key()
    good = {"provider_key_id": key, "model": "m"}
    for chain, status, param in (
        ([good, {**good, "provider_key_id": key + 99}], 404, "chain[1].provider_key_id"),
        ([{**good, "model": " "}], 400, "chain[0].model"),
        ([{**good, "rank": 101}], 400, "chain[0].rank"),
        ([{**good, "weight": -1}], 400, "chain[0].weight"),
        ([{**good, "weight": 0}], 400, "chain"),
        ([good] * (LONGEST_CHAIN + 1), 400, "chain"),
    ):
        refusal = await ann.refused("POST", {"alias": "x", "target_model": "m", "provider_key_id": key, "chain": chain})
        assert (refusal.status, refusal.param) == (status, param)
    assert len((await ann.put("x", key, chain=[good] * LONGEST_CHAIN))["chain"]) == LONGEST_CHAIN
    drained = await ann.put("y", key, weight=0, chain=[{**good, "rank": 0, "weight": 1}])
    assert drained["weight"] == 0  # one of its rank is above 0


async def test_a_change_of_nothing_and_unknown_fields_are_refused(ann):
    """Nobody gives an alias another owner."""
    await ann.put("x", await ann.key())
    assert (await ann.refused("PATCH", {}, "x")).code == "nothing_to_change"
    assert (await ann.refused("PATCH", {"id": 7}, "x")).code == "nothing_to_change"
    for field in ("user_id", "own", "created_at"):
        for method, body in (("POST", {"alias": "x"}), ("PATCH", {})):
            with pytest.raises(msgspec.ValidationError, match=field):
                await ann(method, {**body, field: 1}, "x")


async def test_loops_are_refused_and_named(ann):
    """Of one alias, of two, of a chain of them; when they are changed or overwritten."""
    key = await ann.key()
    a = await ann.put("a", key)
    b = await ann.put("b", key, fallback_alias_id=a["id"])
    c = await ann.put("c", key, fallback_alias_id=b["id"])
    for method, alias, body, loop in (
        ("PATCH", "a", {"fallback_alias_id": a["id"]}, "a -> a"),
        ("PATCH", "a", {"fallback_alias_id": b["id"]}, "a -> b -> a"),
        ("PATCH", "a", {"fallback_alias_id": c["id"]}, "a -> c -> b -> a"),
        ("PATCH", "a", {"alias": "z", "fallback_alias_id": b["id"]}, "z -> b -> z"),
        (
            "POST",
            None,
            {"alias": "a", "target_model": "m", "provider_key_id": key, "fallback_alias_id": c["id"]},
            "a -> c -> b -> a",
        ),
    ):
        refusal = await ann.refused(method, body, alias)
        assert (refusal.status, refusal.code, refusal.param) == (400, "alias_loop", "fallback_alias_id")
        assert refusal.message.endswith(loop)
    assert (await ann("PATCH", {"fallback_alias_id": None}, "b"))["fallback_alias_id"] is None
    await ann("PATCH", {"fallback_alias_id": c["id"]}, "a")  # which is no loop any more


async def test_changes_at_once_close_no_loop(ann):
    """Each is right alone; the last one sees the others."""
    key = await ann.key()
    ids = {name: (await ann.put(name, key))["id"] for name in "abcd"}
    circle = dict(zip("abcd", "bcda", strict=True))
    done = await asyncio.gather(
        *(ann("PATCH", {"fallback_alias_id": ids[circle[name]]}, name) for name in ids), return_exceptions=True
    )
    assert [one.code for one in done if isinstance(one, Exception)] == ["alias_loop"]


async def test_a_long_row_of_fallbacks_is_refused(ann):
    """Sixteen aliases may fall back on one another."""
    key, last = await ann.key(), None
    for number in range(16):
        last = (await ann.put(f"a{number}", key, fallback_alias_id=last))["id"]
    refusal = await ann.refused(
        "POST", {"alias": "b", "target_model": "m", "provider_key_id": key, "fallback_alias_id": last}
    )
    assert (refusal.status, refusal.param) == (400, "fallback_alias_id") and "16" in refusal.message


async def test_other_peoples_things_are_as_if_they_were_not_there(ann, store):
    """Their keys and aliases: the same words as for ids that nobody has, and no name of theirs."""
    bob = await Person.new(store, "bob@example.com")
    key = await bob.key(label="bob's own")
    alias = await bob.put("bobs", key)
    own = await ann.key()
    assert await ann("GET") == []
    for method, body in (("PATCH", {"target_model": "m"}), ("DELETE", None)):
        assert (await ann.refused(method, body, "bobs")).message == "there is no alias 'bobs'"
    good = {"alias": "x", "target_model": "m", "provider_key_id": own}
    for field, his, nobodys in (
        ("provider_key_id", key, key + 1000),
        ("fallback_alias_id", alias["id"], alias["id"] + 1000),
    ):
        said = [await ann.refused("POST", {**good, field: id}) for id in (his, nobodys)]
        assert [one.status for one in said] == [404, 404]
        assert said[0].message.replace(str(his), "N") == said[1].message.replace(str(nobodys), "N")
        assert "bob" not in said[0].message
    theirs = [{"provider_key_id": key, "model": "m"}]
    assert (await ann.refused("POST", {**good, "chain": theirs})).param == "chain[0].provider_key_id"
    await ann.put("bobs", own)  # a name is free for everybody
    assert (await bob("GET"))[0] == alias


async def test_shared_aliases_are_seen_by_all_and_changed_by_admins(ann, admin, store):
    """With a session: an admin's API key shares nothing."""
    key, private = await admin.key(shared=True), await admin.key()
    refusal = await ann.refused("POST", {"alias": "s", "target_model": "m", "provider_key_id": key, "shared": True})
    assert (refusal.status, refusal.code) == (403, "admin_needed")
    made = await admin.put("team", key, shared=True)
    assert await ann("GET") == [made | {"own": False}]
    for method, body in (("PATCH", {"target_model": "m"}), ("DELETE", None)):
        assert (await ann.refused(method, body, "team")).status == 403
    refusal = await admin.refused("PATCH", {"provider_key_id": private}, "team")
    assert (refusal.status, refusal.param) == (400, "provider_key_id")
    unshared = await admin.put("own", private)
    assert (await admin.refused("PATCH", {"fallback_alias_id": unshared["id"]}, "team")).status == 400
    other = await Person.new(store, "second@example.com", admin=True)
    assert (await other("PATCH", {"target_model": "gpt-5"}, "team"))["own"] is False
    his = await other.key()
    assert (await other.refused("PATCH", {"shared": False, "provider_key_id": his}, "team")).status == 404
    assert (await other("PATCH", {"shared": False, "provider_key_id": private}, "team"))["shared"] is False
    assert (await other.refused("PATCH", {"shared": True}, "team")).status == 404
    await admin("PATCH", {"shared": True, "provider_key_id": key}, "team")
    script = Person(store, admin.caller.user_id, admin=True)
    script.caller = Caller(admin.caller.user_id, "", Role.ADMIN, frozenset({Scope.MANAGE}), key_id=1)
    assert (await script.refused("DELETE", None, "team")).code == "admin_needed"
    assert await admin("DELETE", None, "team") is None


async def test_ones_own_alias_goes_before_a_shared_one_of_its_name(ann, admin):
    """In lists, in changes, and in calls."""
    shared = await admin.key(shared=True)
    await admin.put("fast", shared, "gpt-shared", shared=True)
    own = await ann.put("fast", shared, "gpt-own")
    assert [one["target_model"] for one in await ann("GET")] == ["gpt-own", "gpt-shared"]
    catalog = await Catalogs(ann.store).of(ann.caller.user_id)
    assert catalog.aliases["fast"].id == own["id"] and len(catalog.by_id) == 2
    await ann("DELETE", alias="fast")
    assert (await ann.refused("DELETE", alias="fast")).status == 403


async def test_a_user_has_so_many_aliases(ann):
    """And may still change those he has."""
    key = await ann.key()
    async with ann.store.writing() as connection:
        values = {"user_id": ann.caller.user_id, "target_model": "m", "provider_key_id": key}
        await connection.execute(insert(schema.model_aliases), [{**values, "alias": f"a{n}"} for n in range(MOST)])
    refusal = await ann.refused("POST", {"alias": "more", "target_model": "m", "provider_key_id": key})
    assert (refusal.status, refusal.code) == (409, "too_many")
    await ann.put("a1", key, "n")


async def test_what_is_done_is_in_the_audit_log(ann):
    """By whom, to which alias, and what of it."""
    key = await ann.key()
    made = await ann.put("x", key)
    await ann("PATCH", {"weight": 2, "target_model": "n"}, "x")
    await ann("DELETE", alias="x")
    async with ann.store.reading() as connection:
        rows = (await connection.execute(select(schema.audit_log).order_by(schema.audit_log.c.id))).all()
    assert [(row.action, row.object, row.user_id, row.address) for row in rows] == [
        (action, f"alias:{made['id']}", ann.caller.user_id, "192.0.2.1")
        for action in ("alias.create", "alias.change", "alias.delete")
    ]
    assert rows[1].detail == {"alias": "x", "shared": False, "fields": ["target_model", "weight"]}


def test_every_route_takes_a_key_with_its_scope_or_a_session():
    """None is open."""
    assert {(route.access, route.scope) for route in ROUTES} == {(Access.KEY, Scope.MANAGE)}


# --- the catalog


async def test_a_catalog_has_what_its_user_may_use(ann, admin, store):
    """His own first, then what is shared; of others' nothing."""
    shared = await admin.key("anthropic", shared=True, models=["claude-x"])
    await admin.key("gemini", models=["gemini-x"])
    own = await ann.key(models=["gpt-b", "gpt-a"])
    await admin.put("team", shared, shared=True)
    await admin.put("secret", shared)
    await ann.put("mine", own)
    catalog = await Catalogs(store).of(ann.caller.user_id)
    assert list(catalog.aliases) == ["mine", "team"]
    assert [(id, str(key.provider)) for id, key in catalog.keys.items()] == [(own, "openai"), (shared, "anthropic")]
    assert catalog.models == {own: {"gpt-a", "gpt-b"}, shared: {"claude-x"}}
    other = await Catalogs(store).of((await Person.new(store, "bob@example.com")).caller.user_id)
    assert list(other.aliases) == ["team"] and list(other.keys) == [shared]


async def test_a_catalog_is_read_once_and_again_after_a_change(ann):
    """Many at once wait for one reading; then memory serves until the store changes or a minute has passed."""
    now = 100.0
    catalogs = Catalogs(ann.store, lambda: now)
    ann.store.on_change(catalogs.forget)
    key = await ann.key()
    first = await asyncio.gather(*(catalogs.of(ann.caller.user_id) for _ in range(50)))
    assert all(one is first[0] for one in first) and not first[0].aliases
    await ann.put("new", key)
    second = await catalogs.of(ann.caller.user_id)
    assert list(second.aliases) == ["new"]
    now += 59
    assert await catalogs.of(ann.caller.user_id) is second
    now += 2
    third = await catalogs.of(ann.caller.user_id)
    assert third is not second and third == second
    assert all(third.models[id] is second.models[id] for id in third.models)


async def test_what_changes_while_it_is_read_is_not_remembered_as_it_was(ann):
    """A reading that began before a change serves those who asked before it, nobody else."""
    catalogs = Catalogs(ann.store)
    for later_asks_at_once in (True, False):
        reading = asyncio.create_task(catalogs.of(ann.caller.user_id))
        await asyncio.sleep(0)  # it has begun
        catalogs.forget()
        later = asyncio.create_task(catalogs.of(ann.caller.user_id)) if later_asks_at_once else None
        old = await reading
        new = await (later or catalogs.of(ann.caller.user_id))
        assert old is not new
        assert await catalogs.of(ann.caller.user_id) is new
        catalogs.forget()


async def test_a_caller_who_leaves_takes_the_reading_from_nobody(ann):
    """The other one gets what both waited for."""
    catalogs = Catalogs(ann.store)
    leaves, stays = (asyncio.create_task(catalogs.of(ann.caller.user_id)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    assert (await stays).user_id == ann.caller.user_id
    assert leaves.cancelled()


async def test_a_store_that_is_away_serves_what_is_remembered_for_a_while(tmp_path):
    """For two minutes from when it was read; but nothing that is known to have changed since."""
    async with a_store_url("postgresql", tmp_path) as url, opened(url) as store:
        user = await add_user(store, "ann@example.com")
        now = 0.0
        catalogs = Catalogs(store, lambda: now)
        known = await catalogs.of(user)
        await SERVER.drop(make_url(url).database)
        now = 119.0
        assert await catalogs.of(user) is known
        now = 121.0
        with pytest.raises(StoreAway):
            await catalogs.of(user)
        now = 61.0
        assert await catalogs.of(user) is known
        trying = asyncio.create_task(catalogs.of(user))
        await asyncio.sleep(0)
        catalogs.forget()
        with pytest.raises(StoreAway):
            await trying
        with pytest.raises(StoreAway):
            await catalogs.of(user)


async def test_catalogs_of_so_many_users_are_kept(ann, monkeypatch):
    """Then that of whoever has not called for longest is read again."""
    monkeypatch.setattr("llm_proxy.gateway.catalog.USERS", 2)
    catalogs = Catalogs(ann.store)
    first, second = await catalogs.of(1001), await catalogs.of(1002)
    assert await catalogs.of(1001) is first
    await catalogs.of(1003)
    assert await catalogs.of(1001) is first
    assert await catalogs.of(1002) is not second


async def test_calls_go_where_an_alias_leads_now(ann, admin):
    """From the routes to the targets; a key that is shared no longer leads nobody else anywhere."""
    catalogs = Catalogs(ann.store)
    ann.store.on_change(catalogs.forget)
    key = await admin.key(shared=True)
    await admin.put("team", key, "gpt-4o", shared=True, parameters={"temperature": 0})

    async def places():
        catalog = await catalogs.of(ann.caller.user_id)
        targets = plan(catalog, "team", Prompt("chat", b"{}"), random.Random(1), raw=False)
        return [(one.key.id, one.model, one.alias, one.parameters) for one in targets]

    assert await places() == [(key, "gpt-4o", "team", {"temperature": 0})]
    await admin("PATCH", {"target_model": "gpt-5"}, "team")
    assert await places() == [(key, "gpt-5", "team", {"temperature": 0})]
    async with ann.store.writing() as connection:
        await connection.execute(update(schema.provider_keys).values(shared=False))
        await ann.store.changed(connection)
    with pytest.raises(Refusal, match="leads to no provider key"):
        await places()


# --- over the wire


@pytest.fixture
async def served(tmp_path):
    """The routes as the application serves them, for somebody with an API key: (method, path, body) to what is said."""
    async with a_store_url("sqlite", tmp_path) as url, aiohttp.ClientSession() as http:
        made = await site(Options("", "", str(tmp_path)), Secrets("j" * 40, "e" * 40, url))
        runner = web.AppRunner(application(made, ROUTES))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ann = await Person.new(made.store, "ann@example.com")
        tokens = {}
        for scope in Scope:
            tokens[scope] = apikeys.new(apikeys.KEY)
            row = {"user_id": ann.caller.user_id, "name": "laptop", "prefix": "", "scopes": [str(scope)]}
            async with made.store.writing() as connection:
                await connection.execute(insert(schema.api_keys).values(key_hash=apikeys.digest(tokens[scope]), **row))

        async def say(method, path, body=None, scope=Scope.MANAGE):
            told = {"Authorization": f"Bearer {tokens[scope]}"} if scope else {}
            place = URL(f"http://127.0.0.1:{runner.addresses[0][1]}/manage/aliases{path}", encoded=True)
            async with http.request(method, place, json=body, headers=told) as answer:
                text = await answer.text()
                return answer.status, json.loads(text) if text else None

        say.ann = ann
        try:
            yield say
        finally:
            await runner.cleanup()
            made.sender.close()
            await made.store.close()


async def test_names_with_slashes_and_colons_are_percent_encoded(served):
    """Whatever a name holds, its path leads to it."""
    key = await served.ann.key()
    for name in ("team/fast", "llama3:8b", "a b?#%25", "grün/狐", "..", "%2F"):
        body = {"alias": name, "target_model": "m", "provider_key_id": key}
        assert (await served("POST", "", body))[0] == 200
        path = "/" + quote(name, safe="").replace(".", "%2E")
        status, changed = await served("PATCH", path, {"target_model": "n"})
        assert (status, changed["alias"], changed["target_model"]) == (200, name, "n")
        assert await served("DELETE", path) == (204, None)
        assert (await served("DELETE", path))[0] == 404
    assert await served("GET", "") == (200, [])


async def test_what_is_wrong_is_said_in_json(served):
    """With its field, whoever finds it; and keys without the scope do nothing."""
    for body, param in (
        ({"alias": 7}, "alias"),
        ({"alias": "a", "chain": [{"model": "m"}]}, "chain[0]"),
        ({"alias": "a", "target_model": "m", "provider_key_id": "1"}, "provider_key_id"),
        ({"alias": "a", "target_model": ""}, "target_model"),
        ({}, "alias"),
    ):
        status, said = await served("POST", "", body)
        assert (status, said["error"]["param"]) == (400, param), said
    status, said = await served("POST", "", {"alias": "a", "target_model": "m", "provider_key_id": 10**17})
    assert (status, said["error"]["code"]) == (404, "not_found")
    for field in ("provider_key_id", "fallback_alias_id", "light_model_threshold", "weight"):
        body = {"alias": "a", "target_model": "m", "provider_key_id": await served.ann.key(), field: 10**4000}
        status, said = await served("POST", "", body)
        assert (status, said["error"]["param"]) == (404 if field.endswith("id") else 400, field)
        assert len(said["error"]["message"]) < 200
    for scope, wanted in ((None, 401), (Scope.MODELS, 403), (Scope.USAGE, 403)):
        for method, path, body in (("POST", "", {}), ("GET", "", None), ("PATCH", "/a", {}), ("DELETE", "/a", None)):
            assert (await served(method, path, body, scope))[0] == wanted


async def test_short_prompts_go_to_the_light_model(calls):
    """From a client's request to the provider's model; long ones to the target, or to the long-context model."""
    key = await calls.provider("openai")
    choice = {"use_light_model": True, "light_model": "gpt-4o-mini", "light_model_threshold": 50}
    await calls.alias("smart", key, "gpt-4o", long_model="gpt-4.1", long_model_threshold=2000, **choice)
    for words in (1, 200, 3000):
        body = {"model": "smart", "messages": [{"role": "user", "content": "word " * words}]}
        assert (await calls.ask("/v1/chat/completions", body)).status == 200
    assert [row.model_used for row in await calls.attempts()] == ["gpt-4o-mini", "gpt-4o", "gpt-4.1"]
