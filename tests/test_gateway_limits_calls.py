"""Limits as callers and administrators meet them: on real calls through the whole gateway, and in its managing routes."""

import asyncio

import pytest
from aiohttp import web
from sqlalchemy import select

from llm_proxy.gateway.app import application
from llm_proxy.gateway.manage import auth, limits, teams
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.site import site
from llm_proxy.gateway.store import schema
from tests.gatewaycalls import calling
from tests.gatewaydoor import Door
from tests.limitsbed import dollars, limit, settled

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "fast", "messages": HELLO, "max_tokens": 50}
ASKED = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"model": "fast", "input": "hello", "max_output_tokens": 50},
    "/v1/completions": {"model": "fast", "prompt": "hello", "max_tokens": 50},
}
PRICES = (("gpt-4o", (("input", "1000"), ("output", "10000"))),)  # USD per million tokens


async def used(calls):
    """(used, held) by limit, once all that ended is counted."""
    limiter = calls.site.limiter
    await settled(limiter)
    async with calls.site.store.reading() as connection:
        row = (await connection.execute(select(schema.limits))).one()
    known = limiter.counter._counts
    return {
        key.split(":")[2]: (count.sum, count.held)
        for key, count in known.items()
        if key.startswith(f"{row.subject}:{row.subject_id}:")
    }


async def test_a_refusal_says_which_limit_of_whom_in_each_dialect(tmp_path):
    """By the error and the headers that each API's clients know; nothing is sent to a provider."""
    async with calling(tmp_path) as calls:
        alias = await calls.alias("fast", await calls.provider("openai"))
        await limit(calls.site.store, "alias", alias, requests_minute=1, tokens_minute=10**6)
        told = (await calls.ask("/v1/messages", CHAT)).headers
        assert told["anthropic-ratelimit-requests-remaining"] == told["x-ratelimit-remaining-requests"] == "0"
        assert told["x-llm-proxy-warning"].startswith("the model alias 'fast': 1 of 1 requests in a minute")
        for path, body in ASKED.items():
            answer = await calls.ask(path, body)
            error = answer.json["error"]
            assert (answer.status, error["type"]) == (429, "rate_limit_error")
            assert error["message"].startswith("the model alias 'fast' may make 1 requests in a minute, and has")
            assert ("code" in error, "anthropic-ratelimit-tokens-limit" in answer.headers) == (
                (False, True) if path == "/v1/messages" else (True, False)
            )
            assert 0 < int(answer.headers["Retry-After"]) <= 60
        await calls.alias("other", await calls.provider("openai"))
        assert (await calls.ask("/v1/chat/completions", CHAT | {"model": "other"})).status == 200
        assert len(calls.fake.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_what_a_call_used_is_what_counts(tmp_path, provider, stream):
    """The same tokens and money as in the usage log, whole or streamed, translated or not; nothing is held behind it."""
    async with calling(tmp_path, prices=PRICES) as calls:
        await calls.alias("fast", await calls.provider(provider), "gpt-4o")
        most = {"tokens_minute": 10**6, "tokens_day": 10**6, "spend_day": dollars(99), "streams": 5}
        await limit(calls.site.store, "user", calls.user, **most)
        for _ in range(3):
            assert (await calls.ask("/v1/chat/completions", CHAT | {"stream": stream})).status == 200
        rows = await calls.attempts()
        tokens, cost = (sum(row.input_tokens + row.output_tokens for row in rows), sum(row.cost for row in rows))
        assert tokens > 30 and cost > 0
        expected = {"tokens_minute": (tokens, 0), "tokens_day": (tokens, 0), "spend_day": (cost, 0)}
        seen = await used(calls)
        assert {name: seen[name] for name in expected} == expected
        assert seen.get("streams", (0, 0)) == (0, 0)


async def test_who_leaves_pays_and_gives_his_stream_back(tmp_path):
    """In the middle of a stream: what was used until then counts, and the next stream may begin."""
    async with calling(tmp_path) as calls:
        await calls.alias("endless", await calls.provider("openai", "endless;slow=5"))
        await limit(calls.site.store, "user", calls.user, streams=1, tokens_day=10**6)
        url, asked = calls.url + "/v1/chat/completions", CHAT | {"model": "endless", "stream": True}
        headers = {"Authorization": f"Bearer {calls.key}"}
        for count in (1, 2):
            async with calls.http.post(url, json=asked, headers=headers) as response:
                assert response.status == 200
                await response.content.readuntil(b"Hello")
                refused = await calls.ask("/v1/chat/completions", asked)
                assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
                response.close()
            async with asyncio.timeout(10):
                while (await used(calls))["streams"] != (0, 0):
                    await asyncio.sleep(0.01)
            rows = [row for row in await calls.attempts() if row.ending == "client_gone"]
            assert len(rows) == count
            tokens = sum(row.input_tokens + row.output_tokens for row in rows)
            assert (await used(calls))["tokens_day"] == (tokens, 0) and tokens > 0


async def test_what_fails_uses_nothing_and_leads_nowhere_counts_as_a_request(tmp_path):
    """A provider's error costs no tokens; a model that is not there costs a request. Counting tokens is free."""
    async with calling(tmp_path) as calls:
        await calls.alias("fast", await calls.provider("openai", "status=400"))
        await limit(calls.site.store, "user", calls.user, requests_day=9, tokens_day=10**6, spend_month=0)
        assert (await calls.ask("/v1/chat/completions", CHAT)).json["error"]["code"] == "budget_exceeded"
        async with calls.site.store.writing() as connection:
            await connection.execute(schema.limits.update().values(spend_month=None))
            await calls.site.store.changed(connection)
        assert (await calls.ask("/v1/chat/completions", CHAT)).status == 400
        assert (await calls.ask("/v1/chat/completions", CHAT | {"model": "nobody"})).status == 404
        assert (await calls.ask("/v1/messages/count_tokens", {"model": "fast", "messages": HELLO})).status == 200
        seen = await used(calls)
        assert (seen["requests_day"], seen["tokens_day"]) == ((3, 0), (0, 0))


# --- managing


@pytest.fixture
async def door(store_url, tmp_path):
    """The first account is the administrator's."""
    import aiohttp

    options = Options(socket="-", upstream="-", state=str(tmp_path), signup="open", rate_limit_minute=60)
    made = await site(options, Secrets("j" * 40, "e" * 40, store_url))
    runner = web.AppRunner(application(made, (*auth.ROUTES, *teams.ROUTES, *limits.ROUTES)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as client:
        opened = Door(made.store, made.identifier, f"http://127.0.0.1:{runner.addresses[0][1]}", client)
        opened.site = made
        yield opened
    await runner.cleanup()
    made.sender.close()
    await made.limiter.close()
    await made.identifier.close()
    await made.store.close()


async def test_administrators_set_limits_and_everybody_sees_his(door):
    """Made, replaced and removed, with a line in the audit log; each sees what holds for him, and what is used."""
    admin = await door.session("admin@example.com")
    bob = await door.session("bob@example.com")
    key = await door.key(bob, name="laptop", scopes=["models", "usage"])
    team = (await door.want(201, "POST", "/manage/teams", {"name": "R", "monthly_budget": 7.5}, admin))["id"]
    await door.want(204, "PUT", f"/manage/teams/{team}/members/2", token=admin)
    await door.want(200, "PUT", "/manage/limits/everybody/0", {"requests_day": 5000}, admin)
    made = await door.want(200, "PUT", "/manage/limits/user/2", {"streams": 3, "spend_day": 1.25}, admin)
    assert (made["name"], made["streams"], made["spend_day"], made["requests_minute"]) == (
        "bob@example.com",
        3,
        1.25,
        None,
    )
    made = await door.want(200, "PUT", "/manage/limits/user/2", {"tokens_day": 1000}, admin)
    assert (made["tokens_day"], made["streams"], made["spend_day"]) == (1000, None, None)
    await door.want(200, "PUT", f"/manage/limits/key/{key['id']}", {"requests_minute": 9}, admin)
    listed = await door.want(200, "GET", "/manage/limits", token=admin)
    assert [(one["subject"], one["name"]) for one in listed] == [
        ("everybody", ""),
        ("user", "bob@example.com"),
        ("key", "laptop"),
    ]
    for token in (bob, key["token"]):
        mine = await door.want(200, "GET", "/manage/limits/mine", token=token)
        assert [(one["subject"], one["limit"], one["most"], one["used"], one["span"]) for one in mine] == [
            ("everybody", "requests_day", 5000, 0, "day"),
            ("team", "spend_month", 7.5, 0, "month"),
            ("user", "tokens_day", 1000, 0, "day"),
            ("user", "requests_minute", 60, 0, "minute"),
            ("key", "requests_minute", 9, 0, "minute"),
        ]
    mine = await door.want(200, "GET", "/manage/limits/mine", token=admin)
    assert {one["subject"] for one in mine} == {"everybody", "user"}, "nobody sees another's"
    await door.want(204, "DELETE", "/manage/limits/user/2", token=admin)
    await door.want(404, "DELETE", "/manage/limits/user/2", token=admin)
    assert len(await door.want(200, "GET", "/manage/limits", token=admin)) == 2
    acts = [(row.action, row.object) for row in await door.rows(schema.audit_log) if row.action.startswith("limit")]
    assert acts[0] == ("limit.set", "everybody:0") and acts[-1] == ("limit.delete", "user:2") and len(acts) == 5


async def test_nobody_else_sets_limits_and_nonsense_is_refused(door):
    """Members and keys may not; who is not there has none; what is misspelt or no number is named."""
    admin = await door.session("admin@example.com")
    bob = await door.session("bob@example.com")
    key = (await door.key(bob, scopes=["models", "usage", "manage"]))["token"]
    for token in (bob, key):
        assert (await door.ask("GET", "/manage/limits", token=token)).status == 403
        assert (await door.ask("PUT", "/manage/limits/user/2", {"streams": 9}, token)).status == 403
        assert (await door.ask("DELETE", "/manage/limits/user/2", token=token)).status == 403
    only_models = (await door.key(bob, scopes=["models"]))["token"]
    assert (await door.ask("GET", "/manage/limits/mine", token=only_models)).code == "scope_missing"
    for path in ("user/99", "team/1", "key/99", "alias/1", "everybody/1", "planet/1", "user/x"):
        assert (await door.ask("PUT", f"/manage/limits/{path}", {"streams": 1}, admin)).status == 404, path
    for body in ({"streams": -1}, {"tokens_day": 1.5}, {"spend_day": "1"}, {"requests": 1}, {"streams": 10**13}):
        assert (await door.ask("PUT", "/manage/limits/user/2", body, admin)).status == 400, body
    assert await door.rows(schema.limits) == []


async def test_a_teams_budget_is_its_limit_where_no_row_says_another(door):
    """A row's own limit for the month comes before the team's budget, and without one that holds."""
    admin = await door.session("admin@example.com")
    team = (await door.want(201, "POST", "/manage/teams", {"name": "R", "monthly_budget": 7.5}, admin))["id"]
    await door.want(204, "PUT", f"/manage/teams/{team}/members/1", token=admin)
    for most, told in (({"spend_month": 2}, 2), ({"tokens_day": 5}, 7.5), ({"spend_month": 0}, 0)):
        await door.want(200, "PUT", f"/manage/limits/team/{team}", most, admin)
        mine = await door.want(200, "GET", "/manage/limits/mine", token=admin)
        assert [one["most"] for one in mine if one["limit"] == "spend_month"] == [told]
