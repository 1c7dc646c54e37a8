"""A whole gateway under attack: who may come where, and what LiteLLM's published advisories were about."""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, unquote

import aiohttp
import jwt
import pytest

from llm_proxy.gateway.table import table
from tests.gatewayattacks import CANARY, SCOPES, raw, team, until
from tests.gatewaybed import PASSWORD, SECRETS


@pytest.fixture(scope="module")
def ours():
    """One for all of this module: whoever spoils something for the others brings his own. Others can look for it."""
    with tempfile.TemporaryDirectory(prefix="team-") as folder:
        home = Path(folder)
        home.chmod(0o755)
        with team(home) as gateway:
            yield gateway


# --- who may come where

# What each answers to nobody; to alice's keys for models, usage and managing; to an administrator's key of all
# scopes; to alice, to bob and to an administrator. Things named in a path are alice's.
WHO = ("nobody", *SCOPES, "admin's key", "alice", "bob", "admin")
ALL_400 = "400 400 400 400 400 400 400 400"
ALL_200 = "200 200 200 200 200 200 200 200"
SIGNED_IN = "401 403 403 403 403 200 200 200"
ADMINS = "401 403 403 403 403 403 403 200"
ADMINS_201 = "401 403 403 403 403 403 403 201"
ADMINS_204 = "401 403 403 403 403 403 403 204"
MANAGING = "401 403 403 200 200 200 200 200"
HERS = "401 403 403 200 404 200 404 404"
HERS_204 = "401 403 403 204 404 204 404 404"
MODELS = "401 200 403 403 200 200 200 200"
HER_MODEL = "401 200 403 403 404 200 404 404"

EXPECTED = {
    ("POST", "/auth/signup"): ALL_400,  # as their bodies are: all have come in
    ("POST", "/auth/login"): ALL_400,
    ("POST", "/auth/refresh"): ALL_400,
    ("POST", "/auth/logout"): "401 403 403 403 403 204 204 204",
    ("GET", "/auth/me"): SIGNED_IN,
    ("GET", "/auth/viewer"): SIGNED_IN,  # and a key for conversations, which nobody here has
    ("POST", "/auth/password"): "401 403 403 403 403 400 400 400",
    ("POST", "/auth/key"): SIGNED_IN,
    ("GET", "/auth/key"): SIGNED_IN,
    ("DELETE", "/auth/key/{id}"): "401 403 403 403 403 204 404 204",
    ("POST", "/manage/providers"): "401 403 403 201 201 201 201 201",
    ("GET", "/manage/providers"): MANAGING,
    ("PATCH", "/manage/providers/{id}"): HERS,
    ("DELETE", "/manage/providers/{id}"): HERS_204,
    ("GET", "/manage/providers/{id}/models"): HERS,
    ("GET", "/manage/models"): MANAGING,
    ("POST", "/manage/aliases"): HERS,  # that leads to her provider key
    ("GET", "/manage/aliases"): MANAGING,
    ("PATCH", "/manage/aliases/{alias:[^/]+}"): HERS,
    ("DELETE", "/manage/aliases/{alias:[^/]+}"): HERS_204,
    **{("GET", f"/manage/usage{rest}"): "401 403 200 403 200 200 200 200" for rest in ("", "/series", "/calls")},
    ("GET", "/manage/privacy"): SIGNED_IN,
    ("PUT", "/manage/privacy"): SIGNED_IN,
    ("GET", "/manage/users"): ADMINS,
    ("PATCH", "/manage/users/{id}"): ADMINS,
    ("DELETE", "/manage/users/{id}"): ADMINS_204,
    ("GET", "/manage/users/{id}/keys"): ADMINS,
    ("DELETE", "/manage/users/{id}/keys/{key_id}"): ADMINS_204,
    ("POST", "/manage/teams"): ADMINS_201,
    ("GET", "/manage/teams"): ADMINS,
    ("PATCH", "/manage/teams/{id}"): ADMINS,
    ("DELETE", "/manage/teams/{id}"): ADMINS_204,
    ("PUT", "/manage/teams/{id}/members/{user_id}"): ADMINS_204,
    ("DELETE", "/manage/teams/{id}/members/{user_id}"): ADMINS_204,
    ("GET", "/manage/limits"): ADMINS,
    ("GET", "/manage/limits/mine"): "401 403 200 403 200 200 200 200",
    ("PUT", "/manage/limits/{subject}/{id}"): ADMINS,
    ("DELETE", "/manage/limits/{subject}/{id}"): ADMINS_204,
    ("POST", "/manage/invitations"): ADMINS_201,
    ("GET", "/manage/invitations"): ADMINS,
    ("DELETE", "/manage/invitations/{id}"): ADMINS_204,
    ("GET", "/manage/audit"): ADMINS,
    ("GET", "/manage/metrics"): "401 403 403 403 200 403 403 200",
    ("GET", "/manage/deletions"): SIGNED_IN,
    ("GET", "/manage/machines"): ADMINS,
    ("DELETE", "/manage/machines/{id}"): "401 403 403 403 403 403 403 409",  # it serves
    ("DELETE", "/manage/me/conversations"): "401 403 403 403 403 202 202 202",
    ("DELETE", "/manage/users/{id}/conversations"): "401 403 403 403 403 403 403 202",
    **{("GET", f"/health/{what}"): ALL_200 for what in ("gateway", "live", "ready")},
    ("GET", "/openapi.json"): ALL_200,
    **{(method, f"{prefix}/models"): MODELS for method in ("GET", "HEAD") for prefix in ("", "/v1")},
    **{(method, f"{prefix}/models/{{id:.+}}"): HER_MODEL for method in ("GET", "HEAD") for prefix in ("", "/v1")},
    **{
        ("POST", f"{prefix}{path}"): HER_MODEL
        for prefix in ("", "/v1")
        for path in (
            *("/chat/completions", "/completions", "/embeddings", "/responses"),
            *("/messages", "/messages/count_tokens"),
        )
    },
}
_SAID = [{"role": "user", "content": "hello"}]
_BODIES = {
    "/chat/completions": {"model": "hers", "messages": _SAID},
    "/completions": {"model": "hers", "prompt": "hello"},
    "/embeddings": {"model": "hers", "input": "hello"},
    "/responses": {"model": "hers", "input": "hello"},
    "/messages": {"model": "hers-claude", "messages": _SAID, "max_tokens": 9},
    "/messages/count_tokens": {"model": "hers-claude", "messages": _SAID},
    "POST /manage/teams": {"name": "a team"},
    "PUT /manage/privacy": {"level": None},
    "PATCH /manage/teams/{id}": {"monthly_budget": 7},
    "PATCH /manage/users/{id}": {"rate_limit_daily": None},
    "PATCH /manage/providers/{id}": {"label": "a label"},
    "PATCH /manage/aliases/{alias:[^/]+}": {"weight": 1},
}


def asking(ours, method, path):
    """The path and body of a request for something that is alice's and there, made anew where it may go."""
    body = _BODIES.get(f"{method} {path}", _BODIES.get(path.removeprefix("/v1"))) or {}
    match method, path:
        case "POST", "/manage/providers":
            body = {"provider": "openai", "api_key": "sk-of-somebody-0123456789", "base_url": ours.echo.url}
        case "POST", "/manage/aliases":
            body = {"alias": "another", "target_model": "gpt-4o", "provider_key_id": ours.hers}
        case "POST", "/manage/teams":
            body = {"name": ours.fresh("team")}
        case "DELETE", "/auth/key/{id}":
            path = f"/auth/key/{ours.new_key(ours.alice)[0]}"
        case "DELETE", "/manage/users/{id}/keys/{key_id}":
            path = f"/manage/users/{ours.ids.alice}/keys/{ours.new_key(ours.alice)[0]}"
        case "DELETE", "/manage/providers/{id}":
            path = f"/manage/providers/{ours.provider_key(ours.alice)}"
        case "DELETE", "/manage/aliases/{alias:[^/]+}":
            path = f"/manage/aliases/{ours.alias(ours.fresh('alias'), 'gpt-4o', ours.hers, ours.alice)['alias']}"
        case _, "/manage/users/{id}":
            path = f"/manage/users/{ours.ids.alice if method == 'PATCH' else ours.leaver}"
        case "DELETE", "/manage/teams/{id}":
            team_id = ours.want(201, "POST", "/manage/teams", {"name": ours.fresh("team")}, ours.admin)["id"]
            path = f"/manage/teams/{team_id}"
        case _, "/manage/limits/{subject}/{id}":
            path = f"/manage/limits/user/{ours.ids.alice}"
            ours.want(200, "PUT", path, {}, ours.admin)
        case "DELETE", "/manage/machines/{id}":
            path = f"/manage/machines/{ours.want(200, 'GET', '/manage/machines', token=ours.admin)[0]['id']}"
        case "DELETE", "/manage/invitations/{id}":
            path = f"/manage/invitations/{ours.want(201, 'POST', '/manage/invitations', {}, ours.admin)['id']}"
    if "/manage/teams/{id}" in path:
        path = path.replace("{id}", str(ours.teams["one"]))
    return hers(ours, path), body if method not in ("GET", "HEAD") else None


def test_every_route_answers_who_may_come_and_nobody_else(ours):
    """G3, G4, G9: each route by each kind of caller, with things that are somebody else's; a route that has no row here
    fails."""
    routes = {(route.method, route.path) for route in table()}
    assert routes == EXPECTED.keys()
    ours.sign_up("leaver@three.example")
    users = ours.want(200, "GET", "/manage/users", token=ours.admin)
    ours.leaver = next(one["id"] for one in users if one["email"].startswith("leaver"))
    wrong = []
    for method, path in sorted(routes):
        for who, wanted in zip(WHO, EXPECTED[method, path].split(), strict=True):
            target, body = asking(ours, method, path)
            token = ours.tokens[who]
            if path == "/auth/logout" and wanted == "204":  # ends one of its own
                token = ours.sign_in(
                    {"alice": "alice@one.example", "bob": "bob@two.example"}.get(who, "admin@example.com")
                )
            answer = ours.ask(method, target, body, token)
            if answer.status != int(wanted):
                wrong.append((method, target, who, wanted, answer.status, answer.body[:200]))
    assert not wrong


def hers(ours, path):
    """With alice's things, or their numbers, where it has a parameter."""
    number = ours.ids.alice if path.startswith("/manage/users") else ours.hers
    told = {
        "{id}": number,
        "{user_id}": ours.ids.alice,
        "{alias:[^/]+}": "hers",
        "{id:.+}": "hers",
        "{subject}": "user",
        "{key_id}": 1,
    }
    for parameter, value in told.items():
        path = path.replace(parameter, str(value))
    return path


def detours(path, port):
    """(a spelling of the path, fields) that a router and a guard may read differently."""
    yield from (
        (path, (f"Host: {host}",)) for host in ("x/?", "x/#", "x/health/gateway?", "127.0.0.1/openapi.json#", "x@y")
    )
    here = f"127.0.0.1:{port}"
    first, _, rest = path[1:].partition("/")
    spellings = (
        *(f"http://{here}{path}", f"http://x@{here}{path}", f"http://x/health/gateway{path}", f"//{here}{path}"),
        *(
            f"/{path}",
            path.replace("/", "//"),
            f"/{first}%2f{rest}",
            f"/%2f{path[1:]}",
            f"/%{ord(first[0]):02x}{path[2:]}",
        ),
        *(f"{path};", f"{path};.js", f"/;{path}", f"{path}/", f"/.{path}", f"{path}/.", f"{path}/..", f"{path}.json"),
        *(
            f"/health/..{path}",
            f"/auth/login/../..{path}",
            f"/auth/login/%2e%2e/%2e%2e{path}",
            f"/openapi.json/..{path}",
        ),
        *(path.replace("/", "\\"), path.upper(), f"{path}%00", f"{path}%20", f"{path}%23/openapi.json"),
        *(f"{path}?/health/gateway", f"{path}#/openapi.json", f"{path}%3f/health/gateway"),
    )
    yield from ((spelling, ("Host: 127.0.0.1",)) for spelling in spellings)
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        yield path, ("Host: 127.0.0.1", f"{name}: GET")
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-Prefix"):
        yield path, ("Host: 127.0.0.1", f"{name}: /health/gateway")


def test_cve_2026_49468_no_spelling_of_a_path_opens_what_is_closed(ours):
    """There the guard read another URL than the router. Here whoever may not come by a route does not come by any
    spelling of it, whatever Host and other fields say; and to no provider goes what is ours.
    """
    ours.echo.seen.clear()
    closed = [key for key, wanted in EXPECTED.items() if wanted.startswith("401")]
    wrong = []
    for method, path in closed:
        for who in ("nobody", "usage", "bob"):
            allowed = EXPECTED[method, path].split()[WHO.index(who)]
            if allowed[0] == "2":
                continue
            target, body = hers(ours, path), b"{}"
            if path.removeprefix("/v1") in _BODIES:
                body = json.dumps(_BODIES[path.removeprefix("/v1")]).encode()
            for spelling, fields in detours(target, ours.port):
                token = (f"Authorization: Bearer {ours.tokens[who]}",) if who != "nobody" else ()
                answer = raw(ours.port, method, spelling, *fields, *token, body=body if method != "GET" else b"")
                fine = answer.status in (400, 401, 403, 404, 405)
                if not fine and not (who == "nobody" and answer.status == 502):  # carried, as any other client's
                    wrong.append((who, method, spelling, fields, answer.status, answer.body[:200]))
    assert not wrong
    assert not ours.echo.seen, "a provider was called"


def test_head_and_options_show_nothing(ours):
    """No other method than a route's own is a way around it: 405 and what is allowed, or the route's own rule."""
    methods = {}
    for method, path in EXPECTED:
        methods.setdefault(path, set()).add(method)
    for path, known in methods.items():
        target = hers(ours, path)
        for method in ("HEAD", "OPTIONS", "TRACE", "PATCH", "QUERY"):
            if method in known:
                continue
            answer = raw(ours.port, method, target, f"Authorization: Bearer {ours.tokens['usage']}")
            assert answer.status in (404, 405) and b"hers" not in answer.body, (method, target, answer)
            assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# --- what was published of LiteLLM


def test_cve_2026_35030_tokens_that_begin_alike_are_different_people(ours):
    """There a cache knew tokens by their first 20 characters, which all of one algorithm share."""
    mine, other = ours.tokens["models"], ours.new_key(ours.bob)[1]
    for known, stranger in ((mine, other), (ours.alice, ours.bob)):
        path = "/v1/models" if known is mine else "/auth/me"
        assert ours.ask("GET", path, token=known).status == 200  # and is remembered
        for length in range(1, len(known)):
            forged = known[:length] + stranger[length:]
            if forged not in (known, stranger):
                assert ours.ask("GET", path, token=forged).status == 401, (length, forged)
    me = [ours.want(200, "GET", "/auth/me", token=token)["id"] for token in (ours.alice, ours.bob)]
    assert me == [ours.ids.alice, ours.ids.bob]


def test_cve_2026_47101_no_key_is_good_for_more_than_its_maker_says(ours):
    """There whoever made a key wrote down which routes it opens. Here a key has scopes, which all are its maker's."""
    for more in (
        {"allowed_routes": ["/manage/users"]},
        {"scopes": ["admin"]},
        {"scopes": ["models", "*"]},
        {"role": "admin"},
        {"user_id": ours.ids.admin},
        {"team_id": ours.teams["two"]},
        {"permissions": {"admin": True}},
        {"scopes": []},
    ):
        assert ours.ask("POST", "/auth/key", {"name": "x", **more}, ours.alice).status == 400, more
    _, most = ours.new_key(ours.alice, scopes=list(SCOPES))
    for method, path in EXPECTED:
        if EXPECTED[method, path] in (ADMINS, ADMINS_201, ADMINS_204, SIGNED_IN):
            target = hers(ours, path)
            assert ours.ask(method, target, {}, most).status == 403, (method, path)


def test_cve_2026_47102_nobody_promotes_himself(ours):
    """There a user's own update took `user_role`."""
    for more in (
        {"role": "admin"},
        {"user_role": "proxy_admin"},
        {"is_admin": True},
        {"id": 1},
        {"rate_limit_minute": 9},
    ):
        body = {"email": "eve@three.example", "password": PASSWORD, **more}
        assert ours.ask("POST", "/auth/signup", body).status == 400, more
        path = f"/manage/users/{ours.ids.bob}"
        assert ours.ask("PATCH", path, more, ours.bob).status == 403
        assert ours.ask("PATCH", "/auth/me", more, ours.bob).status == 405
        told = {"current_password": PASSWORD, "new_password": "another long one of his", **more}
        assert ours.ask("POST", "/auth/password", told, ours.bob).status == 400
    me = ours.want(200, "GET", "/auth/me", token=ours.bob)
    assert me["role"] == "member" and me["rate_limit_minute"] is None
    # By what is his: a provider key or alias that is everybody's, or somebody else's.
    provider, alias = f"/manage/providers/{ours.bobs}", "/manage/aliases/his"
    for path in (provider, alias):
        assert ours.ask("PATCH", path, {"shared": True}, ours.bob).status == 403
        assert ours.ask("PATCH", path, {"user_id": ours.ids.alice}, ours.bob).status == 400
    assert ours.ask("PATCH", alias, {"provider_key_id": ours.hers}, ours.bob).status == 404
    step = {"provider_key_id": ours.hers, "model": "gpt-4o"}
    assert ours.ask("PATCH", alias, {"chain": [step]}, ours.bob).status == 404
    assert ours.ask("PATCH", "/manage/aliases/ours", {"provider_key_id": ours.bobs}, ours.bob).status == 403
    for query in ("all=true", f"user={ours.ids.alice}", "all=true&user=1"):
        assert ours.ask("GET", f"/manage/usage?{query}", token=ours.bob).status in (403, 404), query
    users = ours.want(200, "GET", "/manage/users", token=ours.admin)
    assert [one["id"] for one in users if one["role"] == "admin"] == [ours.ids.admin]


def test_cve_2026_35029_nothing_configures_a_gateway_from_outside(ours):
    """There any user could write the configuration, and so have code run and files read."""
    for path in ("/config/update", "/config", "/config/yaml", "/get/config/callbacks", "/settings", "/manage/settings"):
        for token in (ours.alice, ours.admin, ours.tokens["admin's key"]):
            for method in ("GET", "POST", "PUT", "PATCH"):
                answer = ours.ask(method, path, {"general_settings": {"master_key": "x"}}, token)
                assert answer.status == 404, (method, path, answer)
    assert not [path for _, path in EXPECTED if re.search("config|setting|callback|plugin", path)]


def test_cve_2026_42203_names_are_no_templates(ours):
    """There an endpoint that tried templates ran their code. Here there is none, and what looks like one is a text."""
    for path in (
        "/prompts/test",
        "/prompts",
        "/v1/prompts/test",
        "/utils/transform_request",
        "/mcp-rest/test/connection",
    ):
        assert ours.ask("POST", path, {"template": "{{7*7}}"}, ours.admin).status == 404
    texts = ("{{7*7}}", "${7*7}", "#{7*7}", "{0.__class__}", "%(x)s%s%n", "<%= 7*7 %>", "$(id)", "`id`")
    for text in texts:
        ours.alias(text, text, ours.hers, ours.alice)
        ours.want(200, "PATCH", f"/manage/providers/{ours.hers}", {"label": text}, ours.alice)
        ours.echo.seen.clear()
        answer = ours.call(text, "hello", ours.alice)
        assert answer.status == 200 and unquote(answer.headers["x-llm-proxy-model"]) == f"openai/{text}"
        listed = ours.want(200, "GET", "/manage/aliases", token=ours.alice)
        assert (text, text) in [(one["alias"], one["target_model"]) for one in listed]
        ours.want(204, "DELETE", f"/manage/aliases/{quote(text, safe='')}", token=ours.alice)


def test_cve_2025_11203_health_tells_of_no_key(ours):
    """There `/health` told the providers' keys to whoever had a key of the gateway's."""
    paths = ("/health", "/health/gateway", "/health/sinks", "/health/readiness", "/health/liveliness", "/metrics")
    for path in paths:
        for token in ours.tokens.values():
            told = ours.ask("GET", path, token=token)
            assert told.status < 500 and not [secret for secret in ours.secrets if secret.encode() in told.body]
            assert b"sk-" not in told.body and ours.echo.url.encode() not in told.body


def test_cve_2026_114612_what_is_sealed_signs_nothing(ours):
    """There one key sealed what users gave and proved who they are. Here what is sealed for somebody opens no door, is
    bound to its row, and is never shown.
    """
    claims = json.dumps({"sub": str(ours.ids.admin), "role": "admin", "exp": 2_000_000_000})
    key = ours.provider("openai", ours.echo.url, ours.alice, api_key=claims.replace(" ", "").strip("{}"))
    database = next(ours.daemon.home.rglob("gateway.db"))
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        (sealed,) = store.execute("SELECT encrypted_key FROM provider_keys WHERE id = ?", (key,)).fetchone()
    for token in (sealed, sealed.rpartition(":")[2], sealed.rpartition(".")[2]):
        for path in ("/auth/me", "/v1/models", "/manage/users"):
            assert ours.ask("GET", path, token=token).status == 401
        assert ours.ask("POST", "/auth/refresh", {"refresh_token": token}).status == 401
    now = int(time.time())
    told = {"iss": "llm-proxy", "sub": str(ours.ids.admin), "sid": "x", "jti": "x", "iat": now, "exp": now + 600}
    for secret in SECRETS.values():
        for audience in ("llm-proxy gateway", "llm-proxy gateway refresh"):
            token = jwt.encode({**told, "aud": audience}, secret.ljust(64, "\0"), "HS256")
            assert ours.ask("GET", "/manage/users", token=token).status == 401
    assert sealed not in str(ours.want(200, "GET", "/manage/providers", token=ours.alice))


def test_a_sealed_key_opens_in_its_own_row_only(ours):
    """Who can write to the store still cannot have a provider key that is somebody else's: it is not sent at all."""
    other, his = ours.provider_key(ours.alice), ours.provider_key(ours.bob)
    ours.alias("swapped", "gpt-4o", his, ours.bob)
    assert ours.call("swapped", "x", ours.bob).status == 200
    database = next(ours.daemon.home.rglob("gateway.db"))
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        columns = "encrypted_key, key_version, key_id"
        row = store.execute(f"SELECT {columns} FROM provider_keys WHERE id = ?", (other,)).fetchone()
        store.execute(
            "UPDATE provider_keys SET encrypted_key = ?, key_version = ?, key_id = ? WHERE id = ?", (*row, his)
        )
    ours.want(200, "PATCH", "/manage/aliases/swapped", {"weight": 2}, ours.bob)  # what was remembered is forgotten
    ours.echo.seen.clear()
    answer = ours.call("swapped", "x", ours.bob)
    assert answer.status == 502 and not ours.echo.seen
    listed = {one["id"]: one for one in ours.want(200, "GET", "/manage/providers", token=ours.bob)}
    assert not listed[his]["readable"] and not listed[his]["key_hint"]
    ours.want(204, "DELETE", f"/manage/providers/{his}?force=true", token=ours.bob)


def test_litellm_33736_who_leaves_early_has_still_used_what_he_used(ours):
    """There whoever closed the connection before the last event paid nothing."""
    key_id, key = ours.new_key(ours.bob, name="the leaver's")
    body = {"model": "ours", "stream": True, "messages": [{"role": "user", "content": "slowly canary-1"}]}
    data = json.dumps(body).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(data)}",
    )
    with socket.create_connection(("127.0.0.1", ours.port), timeout=30) as link:
        link.sendall("\r\n".join((*lines, "", "")).encode() + data)
        seen = b""
        while b"word" not in seen:
            seen += link.recv(4096)

    def used():
        rows = ours.want(200, "GET", "/manage/usage?group_by=key", token=ours.bob)
        return next((row for row in rows if row["key_id"] == key_id), None)

    row = until(used)
    assert row["requests"] == 1 and row["input_tokens"] > 0 and row["output_tokens"] > 0


# --- where it may be sent, and what may be written


def inside(port, ours):
    """Base URLs of places inside, as many ways as they are written."""
    hosts = (
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "a.localhost", "127.1", "127.0.1", "0", "0.0.0.0"),
        *("2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.", "127.0.0.01"),
        *(
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:0:0:1]",
            "[::127.0.0.1]",
            "[fe80::1%25lo]",
        ),
        *("[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]"),
        *("169.254.169.254", "metadata.google.internal", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "db.internal", "printer.local", "intranet"),
        *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u24d0.com", "ⅼocalhost"),
    )
    for host in hosts:
        yield f"https://{host}:{port}"
        yield f"http://{host}:{port}/v1"
    yield from (
        *(f"http://api.openai.com@127.0.0.1:{port}", f"https://127.0.0.1:{port}@api.openai.com", f"//127.0.0.1:{port}"),
        *(
            f"http://127.0.0.1:{port}#@api.openai.com",
            f"http://127.0.0.1:{port}?x=api.openai.com",
            "file:///etc/passwd",
        ),
        *(
            f"http://127.0.0.1:{port}\\@api.openai.com",
            f"http:127.0.0.1:{port}",
            "gopher://127.0.0.1/",
            "unix:///x.sock",
        ),
        *(f"https://api.openai.com:{port}\r\nHost: x", f"https://a b:{port}", "https://api.openai.com/v1/../../x"),
        *(
            "https://api.openai.com/%2e%2e/x",
            "http://api.openai.com",
            "https://",
            "https://:443",
            "https://a.com:99999",
        ),
        *(f"http://127.0.0.1:{ours.port}", f"http://localhost:{ours.port}/v1", f"https://127.0.0.1:{ours.port}/manage"),
        *(f"{ours.echo.url.replace('http', 'https')}", f"{ours.echo.url}.nip.io", "https://" + "a" * 3000 + ".com"),
    )


def test_no_base_url_leads_inside(ours):
    """SSRF by whoever keeps a provider key: nobody connects to a place inside, however it is written, neither when it
    is kept, nor tested, nor changed, nor called; and what is allowed leads nowhere else.
    """
    with socket.create_server(("127.0.0.1", 0)) as trap:
        for base in inside(trap.getsockname()[1], ours):
            body = {
                "provider": "openai-compatible",
                "api_key": "sk-anything-0123456789",
                "base_url": base,
                "test": True,
            }
            for method, path in (("POST", "/manage/providers"), ("PATCH", f"/manage/providers/{ours.bobs}")):
                answer = ours.ask(method, path, body if method == "POST" else _but(body, "provider"), ours.bob)
                assert answer.status == 400 and answer.json["error"]["param"] == "base_url", (base, answer)
        # Names are looked up by the proxy as it connects: these are public by their look alone.
        for name in ("127.0.0.1.nip.io", "localtest.me", "lvh.me", "7f000001.1u.ms"):
            body = {"provider": "openai-compatible", "api_key": "sk-x", "base_url": f"https://{name}", "test": True}
            assert ours.ask("POST", "/manage/providers", body, ours.bob).status in (400, 502, 504)
        # A field of a caller's that names a place is his model's to read, and nobody's here.
        for url in (f"http://127.0.0.1:{trap.getsockname()[1]}/x.png", "http://169.254.169.254/", "file:///etc/passwd"):
            said = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
            for model in ("ours", "ours-claude"):
                assert (
                    ours.ask("POST", "/v1/chat/completions", {"model": model, "messages": said}, ours.bob).status < 500
                )
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()
    listed = ours.want(200, "GET", "/manage/providers", token=ours.bob)
    assert {one["base_url"] for one in listed} == {ours.echo.url}


def _but(body, name):
    return {key: value for key, value in body.items() if key != name}


def test_a_provider_sends_its_callers_nowhere_else(ours):
    """A redirect is an answer like any other: the key goes no further, tested or called."""
    key = ours.provider_key(ours.bob, path="/redirect")
    ours.alias("elsewhere", "gpt-4o", key, ours.bob)
    for stream in (False, True):
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = ours.call("elsewhere", "x", ours.bob, path=path, stream=stream)
            assert answer.status == 502 and "location" not in answer.headers, answer
    body = {"provider": "openai", "api_key": "sk-x", "base_url": f"{ours.echo.url}/redirect", "test": True}
    assert ours.ask("POST", "/manage/providers", body, ours.bob).status in (400, 502)
    assert [path for path, _ in ours.echo.seen if "/redirect" in path]
    assert not [path for path, _ in ours.echo.seen if "/stolen" in path]


LONG = b'"' + b"x" * 900_000 + b'"'
HOSTILE = (  # as JSON
    *(b'"x\\r\\nX-Evil: 1"', b'"x\\u0000y"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xed\xa0\x80"', b'"\xff\xfe"', LONG),
    *(b'"x\'; DROP TABLE users; --"', b'"\\" OR 1=1 --"', b'"\\u202e\\u2028"', b'"%s%n%p"', b'""', b'"  "', b'"\\\\"'),
    *(b"1e999", b"-1", b"1" * 5000, b"18446744073709551616", b"9223372036854775807", b"NaN", b"1.5", b"true", b"null"),
    *(b"[]", b"{}", b"[[[[]]]]", b"[" * 5000 + b"]" * 5000, b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 100_000),
    *(b'{"\\ud800": 1}', b'{"a\\u0000": "\\u0000"}', b'"a","a":"b"', b'"x"} {"a": "y"', b""),
)
_WHOLE = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xef\xbb\xbf{}",
    b"\0",
    LONG,
    b"1" * 99_999,
)


def _managing(ours):
    """(method, path, whose session, a good body) of what takes one."""
    key, alias = ours.provider_key(ours.bob), ours.alias("hostile", "m", ours.bobs, ours.bob)
    alias = {name: alias[name] for name in alias if name not in ("own", "created_at")} | {"parameters": {"seed": 1}}
    provider = {"label": "l", "api_key": "sk-0123456789abcdef0123", "base_url": ours.echo.url, "shared": False}
    account = {"role": "member", "active": True, "rate_limit_minute": None, "rate_limit_daily": None}
    budget = {"name": ours.fresh("team"), "monthly_budget": 5}
    return (
        ("POST", "/auth/signup", "", {"email": "no", "password": "a long one of somebody's", "invitation": "x"}),
        ("POST", "/auth/login", "", {"email": "nobody@nowhere.example", "password": "x"}),
        ("POST", "/auth/refresh", "", {"refresh_token": "x"}),
        ("POST", "/auth/password", ours.bob, {"current_password": "x", "new_password": "short"}),
        ("POST", "/auth/key", ours.bob, {"name": "x", "scopes": ["models"], "expires_in_days": 3}),
        ("POST", "/manage/providers", ours.bob, {"provider": "openai", **provider, "region": ""}),
        ("PATCH", f"/manage/providers/{key}", ours.bob, provider),
        ("POST", "/manage/aliases", ours.bob, alias),
        ("PATCH", "/manage/aliases/hostile", ours.bob, alias),
        ("PATCH", f"/manage/users/{ours.ids.bob}", ours.admin, account),
        ("POST", "/manage/teams", ours.admin, budget),
        ("PATCH", f"/manage/teams/{ours.teams['two']}", ours.admin, budget),
        ("POST", "/manage/invitations", ours.admin, {"email": "x@y.example", "role": "member", "expires_in_days": 1}),
    )


def test_no_field_breaks_what_manages(ours):
    """Line breaks, NUL, halves of characters, SQL, a megabyte, numbers and nestings beyond all measure, keys that come
    twice: taken or refused, never a failure of ours; and every list can still be read by all.
    """
    for method, path, token, good in _managing(ours):
        for body in _WHOLE:
            answer = ours.ask(method, path, body, token)
            assert answer.status < 500 and "X-Evil" not in answer.headers, (method, path, body[:60], answer)
        for name in good:
            start = json.dumps(_but(good, name)).encode()[:-1]
            for value in HOSTILE:
                if value is LONG and name not in ("name", "alias", "label", "email"):
                    continue
                body = b"%b%b%b: %b}" % (start, b", " if len(start) > 1 else b"", json.dumps(name).encode(), value)
                answer = ours.ask(method, path, body, token)
                assert answer.status < 500 and "X-Evil" not in answer.headers, (method, path, name, value[:60], answer)
    texts = (
        "%00",
        "%ff",
        "%ed%a0%80",
        "a'%20OR%201=1--",
        "%0d%0aX-Evil:1",
        "9" * 400,
        "-1",
        "1e9",
        "%F0%9F%98%80",
        "x" * 5000,
    )
    for text in texts:
        for method, path in EXPECTED:
            if "{" in path:
                answer = ours.ask(method, re.sub(r"\{[^}]*\}", text, path), {}, ours.admin)
                assert answer.status in (400, 404, 405, 431), (method, path, text, answer)
        for path in ("/manage/usage", "/manage/audit", "/v1/models"):
            for name in ("from", "to", "group_by", "user", "before", "limit", "action", "all", "after_id"):
                assert ours.ask("GET", f"{path}?{name}={text}", token=ours.admin).status < 500, (path, name, text)
    for path in [path for method, path in EXPECTED if method == "GET" and "{" not in path]:
        for token in (ours.alice, ours.bob, ours.admin):
            assert ours.ask("GET", path, token=token).status in (200, 403), path
    assert len(ours.want(200, "GET", "/manage/users", token=ours.admin)) >= 3
    assert b"Traceback" not in ours.log.read_bytes()


def test_no_body_breaks_a_call(ours):
    """The same of calls to models, whether they pass as they are or are put into another provider's words."""
    dice = random.Random(7)
    calls = ("/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/messages/count_tokens")
    fields = ("messages", "input", "prompt", "tools", "tool_choice", "max_tokens", "temperature", "stream", "stop", "n")
    fields += (
        "system",
        "instructions",
        "thinking",
        "reasoning",
        "metadata",
        "response_format",
        "stream_options",
        "model",
    )
    for call in calls:
        for model in ("ours", "ours-claude"):
            good = {**_BODIES[call], "model": model}
            for name in dict.fromkeys((*good, *fields)):
                start = json.dumps(_but(good, name)).encode()[:-1]
                for value in HOSTILE:
                    if dice.random() > 0.15 or (name, value) == ("stream", b"true"):  # the provider has its own shapes
                        continue
                    body = b"%b, %b: %b}" % (start, json.dumps(name).encode(), value)
                    answer = ours.ask("POST", f"/v1{call}", body, ours.bob)
                    assert answer.status < 500 and "X-Evil" not in answer.headers, (
                        call,
                        model,
                        name,
                        value[:60],
                        answer,
                    )
    assert b"Traceback" not in ours.log.read_bytes()


# --- who is who


def test_the_sockets_are_for_one_user(ours):
    """The way in and the gateway's own way out: 0600 in a folder of 0700, and whoever else is here gets no connection."""
    sockets = sorted(ours.daemon.state.glob("gateway-*.sock"))
    assert [path.name.endswith(".up.sock") for path in sockets].count(True) == 1 and len(sockets) == 2
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        ask = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        run = [sys.executable, "-I", "-S", "-c", ask]
        assert subprocess.run(run, capture_output=True, timeout=60).returncode == 0
        if os.getuid() == 0:
            os.chmod(path.parent, 0o755)  # the socket guards itself too
            try:
                done = subprocess.run(
                    ["/usr/bin/python3", *run[1:]], capture_output=True, text=True, timeout=60, user=65534
                )
            finally:
                os.chmod(path.parent, 0o700)
            assert "PermissionError" in done.stderr


def test_clients_do_not_say_whose_they_are(ours):
    """What the proxy and the gateway tell each other means nothing from a client: neither who calls, nor from where."""
    forged = {
        f"X-LLM-Proxy-Gateway-{name}": "admin@example.com" for name in ("User", "Key", "Team", "Request", "Alias")
    }
    forged |= {"X-LLM-Proxy-Peer": "203.0.113.9", "X-Forwarded-For": "203.0.113.9", "X-LLM-Proxy-Token": "x"}
    name = ours.fresh("forged")
    ours.want(201, "POST", "/manage/teams", {"name": name}, ours.admin, headers=forged)
    acts = ours.want(200, "GET", "/manage/audit?action=team.create", token=ours.admin)["acts"]
    assert [act["address"] for act in acts if act["detail"]["name"] == name] == ["127.0.0.1"]

    key_id, key = ours.new_key(ours.bob, name="bob's own")
    ours.echo.seen.clear()
    body = {"model": "ours", "messages": _SAID}
    assert ours.ask("POST", "/v1/chat/completions", body, key, headers=forged).status == 200
    ((_, fields),) = ours.echo.seen
    assert not [name for name in fields if name.lower().startswith(("x-llm-proxy", "x-forwarded"))]
    users = until(lambda: _used(ours, "user,key").get(key_id))
    assert users["user"] == "bob@two.example" and users["requests"] == 1

    tries = [
        ours.ask("POST", "/auth/login", {"email": "guessed@two.example", "password": "x"}, headers=forged | {
            "X-LLM-Proxy-Peer": f"198.51.100.{number}", "X-Forwarded-For": f"198.51.100.{number}"
        }).status
        for number in range(10)
    ]  # fmt: skip
    assert tries[0] == 401 and tries[-1] == 429, "another address for each guess"


def _used(ours, groups):
    rows = ours.want(200, "GET", f"/manage/usage?all=true&group_by={groups}", token=ours.admin)
    return {row["key_id"]: row for row in rows}


async def test_nobody_gets_anothers_answer(ours):
    """G14: 60 callers at once, 20 calls each, passed on and translated, streamed and whole, some of whom leave at any
    moment: each answer has its caller's canary alone, and what is used is its caller's.
    """
    owners = (("alice@one.example", ours.alice), ("bob@two.example", ours.bob), ("admin@example.com", ours.admin))
    keys = [(*ours.new_key(owners[number % 3][1], name="c"), owners[number % 3][0]) for number in range(60)]
    done = dict.fromkeys((key_id for key_id, _, _ in keys), 0)
    dice = random.Random(14)
    ways = [(model, path) for model in ("ours", "ours-claude") for path in ("/v1/chat/completions", "/v1/messages")]

    async def call(client, key_id, key, number):
        canary = f"canary-{key_id}x{number}"
        (model, path), stream, leaves = dice.choice(ways), dice.random() < 0.5, dice.random()
        said = [{"role": "user", "content": f"my word is {canary}"}]
        body = {"model": model, "messages": said, "max_tokens": 50, "stream": stream}
        headers = {"Authorization": f"Bearer {key}"}
        limit = dice.uniform(0.001, 0.05) if leaves < 0.15 else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit), client.post(ours.url + path, json=body, headers=headers) as response:
                if leaves > 0.9:
                    assert set(CANARY.findall((await response.content.readany()).decode())) <= {canary}
                    response.close()
                    return
                told = (await response.read()).decode()
                assert response.status == 200 and set(CANARY.findall(told)) == {canary}, (canary, told)
                done[key_id] += 1

    async def caller(key_id, key, _):
        async with aiohttp.ClientSession() as client:
            for number in range(20):
                await call(client, key_id, key, number)

    await asyncio.gather(*(caller(*one) for one in keys))
    assert sum(done.values()) > 700

    def settled():
        rows = _used(ours, "user,key")
        return rows if all(rows.get(id, {}).get("requests", 0) >= count for id, count in done.items()) else None

    rows = await asyncio.to_thread(until, settled)
    for key_id, _, owner in keys:
        row = rows[key_id]
        assert row["user"] == owner and done[key_id] <= row["requests"] <= 20 and row["failed"] == 0, row


# --- secrets: last, when much has happened


def test_no_secret_is_anywhere_it_need_not_be(ours):
    """G8, CVE-2024-9606: after all this, providers' keys, passwords, API keys, tokens of sessions and invitations and
    the gateway's own secrets are in no answer but the one that gave them, and in no log, file, metric or command line.
    """
    ours.want(201, "POST", "/manage/invitations", {"email": "new@two.example"}, ours.admin)
    login = ours.want(200, "POST", "/auth/login", {"email": "bob@two.example", "password": PASSWORD})
    ours.want(200, "POST", "/auth/refresh", {"refresh_token": login["refresh_token"]})
    ours.ask("POST", "/auth/refresh", {"refresh_token": login["refresh_token"]})
    ours.ask("POST", "/auth/login", {"email": "bob@two.example", "password": PASSWORD + PASSWORD})
    before = set(ours.secrets)
    for kind, path in (("openai", "/refuse"), ("anthropic", "/refuse"), ("openai", "/fail"), ("anthropic", "/fail")):
        key = ours.provider_key(ours.bob, kind, path)
        ours.alias("refused", "gpt-4o", key, ours.bob)
        for stream in (False, True):
            for way in ("/v1/chat/completions", "/v1/messages"):
                assert ours.call("refused", "x", ours.bob, way, stream=stream).status in (400, 502)
        secret = f"sk-canary-tested-{os.urandom(12).hex()}"
        ours.secrets.add(secret)
        body = {"provider": kind, "api_key": secret, "base_url": ours.echo.url + path, "test": True}
        assert ours.ask("POST", "/manage/providers", body, ours.bob).status == 400
    repeated = ours.secrets - before  # by their provider, whose words are recorded as they are
    for target in ("/v1/models", "/auth/me", "/v1/messages/batches", "/openai/api.openai.com/v1/models"):
        ours.ask("GET", f"{target}?api_key={ours.tokens['models']}")
        ours.ask("GET", target, token=ours.bob)
    for target in ("/metrics", "/health", "/manage/metrics", "/manage/audit?limit=1000", "/manage/providers"):
        ours.ask("GET", target, token=ours.admin)
    hidden = {spelling: secret for secret in ours.secrets for spelling in _spellings(secret)}
    finder = re.compile(b"|".join(map(re.escape, sorted(hidden, key=len, reverse=True))))

    def leaks(data):
        return {hidden[found] for found in finder.findall(data)}

    assert not [(method, path, leaks(told)) for method, path, told in ours.answers if leaks(told)]
    ours.daemon.entries(until=lambda entries: any(entry.get("provider") for entry in entries) or entries)
    files = [path for path in ours.daemon.home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files) and any(path.name == "gateway.db" for path in files)
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # of the journal, settled meanwhile
            assert not leaks(path.read_bytes()) - repeated, path
    for pointer in ours.daemon.state.glob("journal/*/ring"):
        assert not leaks(Path(pointer.read_text()).read_bytes()) - repeated
    assert not leaks("".join(ours.daemon.lines).encode())
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert not leaks(process.read_bytes()), process


def _spellings(secret):
    """As it is, and as somebody might write it who thinks it hidden."""
    raw = secret.encode()
    yield from (raw, raw[:-2], base64.b64encode(raw).rstrip(b"="), raw.hex().encode(), quote(secret, safe="").encode())
