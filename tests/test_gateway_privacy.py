"""Everybody chooses what is kept of him, within what the operator allows, and the next call says it to the record."""

import asyncio
import re
from dataclasses import replace

import pytest
from sqlalchemy import insert, select

from llm_proxy import settings
from llm_proxy.gateway import privacy
from llm_proxy.gateway.manage import privacy as route
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.privacy import LEVELS, Level, choices, of_user, recorded
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask
from llm_proxy.gateway.site import site
from llm_proxy.gateway.store import schema
from llm_proxy.records import privacy as of_records
from tests import gatewaybed
from tests.fakeprovider import FakeProvider
from tests.gatewaystore import add_user
from tests.test_gateway_usage import caller

gateways = gatewaybed.gateways
OPTIONS = Options("", "", "")


def allowing(default="full", floor="none", ceiling="full"):
    return replace(OPTIONS, privacy=default, privacy_floor=floor, privacy_ceiling=ceiling)


def test_levels_are_the_same_everywhere():
    """For the operator's settings, for users and for the record, in the same order."""
    assert tuple(LEVELS) == settings.LEVELS == of_records.LEVELS == ("none", "metadata", "redacted", "full")


@pytest.mark.parametrize("floor", LEVELS)
@pytest.mark.parametrize("ceiling", LEVELS)
def test_what_holds_is_always_what_may_be_chosen(floor, ceiling):
    """Whatever was chosen before, nothing or what nobody knows, and whatever the default; the ceiling is never passed."""
    allowed = choices(allowing(floor=floor, ceiling=ceiling))
    assert allowed and allowed[-1] == ceiling
    assert list(allowed) == [
        one for one in LEVELS if LEVELS.index(floor) <= LEVELS.index(one) <= LEVELS.index(ceiling)
    ] or (LEVELS.index(floor) > LEVELS.index(ceiling) and allowed == (ceiling,))
    for default in LEVELS:
        options = allowing(default, floor, ceiling)
        assert of_user("", options) == of_user(default, options)
        for chosen in (*LEVELS, "", "everything"):
            found = of_user(chosen, options)
            assert found in allowed
            assert recorded(chosen, options) == ("" if found == "full" else found)
            if chosen in allowed:
                assert found == chosen
    assert of_user("everything", allowing(floor=floor, ceiling=ceiling)) == allowed[0]


@pytest.fixture
async def made(store_url, tmp_path):
    """A site within whose store somebody has an account."""
    at = replace(allowing(ceiling="redacted"), state=str(tmp_path))
    here = await site(at, Secrets("j" * 40, "e" * 40, store_url))
    yield here
    await here.store.close()


def ask(site, who, level=None):
    return Ask(site, who, {}, {}, route.Choice(level=level), "203.0.113.9")


async def test_a_choice_is_kept_until_it_is_taken_back(made):
    """It is in the audit log; what the operator does not allow is refused, and the choice before stays."""
    ann, bob = [caller(await add_user(made.store, f"{name}@example.com")) for name in ("ann", "bob")]
    allowed = [Level.NONE, Level.METADATA, Level.REDACTED]
    assert await route.mine(ask(made, ann)) == route.Privacy(level=Level.REDACTED, chosen=None, choices=allowed)
    for level in (Level.METADATA, Level.NONE, Level.METADATA):
        told = await route.choose(ask(made, ann, level))
        assert told == route.Privacy(level=level, chosen=level, choices=allowed) == await route.mine(ask(made, ann))
    with pytest.raises(Refusal) as caught:
        await route.choose(ask(made, ann, Level.FULL))
    assert (caught.value.status, caught.value.code) == (400, "privacy_not_allowed")
    assert "none or metadata or redacted" in caught.value.message
    assert (await route.mine(ask(made, ann))).chosen is Level.METADATA
    assert (await route.mine(ask(made, bob))).chosen is None
    assert (await route.choose(ask(made, ann))).chosen is None
    assert (await route.mine(ask(made, ann))).level is Level.REDACTED
    async with made.store.reading() as connection:
        log = schema.audit_log.c
        acts = (await connection.execute(select(log.action, log.object, log.detail).order_by(log.id))).all()
    assert {(one.action, one.object) for one in acts} == {("privacy.change", f"user:{ann.user_id}")}
    assert [one.detail["level"] for one in acts] == ["metadata", "none", "metadata", None]


async def test_a_choice_gives_way_to_what_the_operator_says_later(made):
    """It is told as it was chosen, beside what holds; one that nobody can read keeps nothing."""
    ann = await add_user(made.store, "ann@example.com")
    for kept, level, chosen in (("full", "redacted", "full"), ("what?", "none", "none")):
        async with made.store.writing() as connection:
            await connection.execute(schema.privacy.delete())
            await connection.execute(insert(schema.privacy).values(user_id=ann, level=kept))
        told = await route.mine(ask(made, caller(ann)))
        assert (told.level, told.chosen) == (level, chosen)
        assert privacy.recorded(kept, made.options) == level


def test_only_who_has_signed_in_chooses():
    """A key that is stolen must not have more kept, or less."""
    assert {(one.method, one.access) for one in route.ROUTES} == {("GET", Access.SESSION), ("PUT", Access.SESSION)}


async def test_the_next_call_says_it_to_the_record(gateways, fake: FakeProvider):
    """By any key of his, with whose it is for good and for which project; nobody else's call does."""
    gateway = gateways(allow=[fake.url])
    await asyncio.to_thread(_the_next_call, gateway, fake)


def _the_next_call(gateway, fake):
    ann = gateway.member("ann@example.com")
    gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", fake.url, shared=True), shared=True)
    keys = {"ann": gateway.key(ann), "admin": gateway.key()}

    def call(whose, **headers):
        told = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}
        gateway.want(200, "POST", "/v1/chat/completions", told, keys[whose], headers)

    call("ann")
    assert gateway.want(200, "PUT", "/manage/privacy", {"level": "redacted"}, ann)["level"] == "redacted"
    call("ann", **{"x-llm-proxy-project": "apollo one"})
    call("admin")
    for status, body in ((400, {"level": "all"}), (400, {}), (400, {"level": None, "user_id": 1})):
        gateway.want(status, "PUT", "/manage/privacy", body, ann)
    assert gateway.want(200, "PUT", "/manage/privacy", {"level": None}, ann)["chosen"] is None
    call("ann")

    def told(entries):
        return [one["gateway"] for one in entries if one["type"] == "request" and one.get("gateway")]

    first, second, third, fourth = sorted(
        told(gateway.daemon.entries(until=lambda entries: len(told(entries)) == 4, timeout=60)),
        key=lambda one: one["request"],
    )
    assert [one.get("privacy") for one in (first, second, third, fourth)] == [None, "redacted", None, None]
    assert [one.get("project") for one in (first, second, third, fourth)] == [None, "apollo one", None, None]
    assert first["account"] == second["account"] == fourth["account"] != third["account"]
    assert re.fullmatch(r"[0-9a-f]{8}\.2", first["account"])
