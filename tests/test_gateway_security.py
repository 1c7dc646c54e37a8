"""A whole gateway under attack: who may come where, and what LiteLLM's published advisories were about."""

import json

import pytest

from llm_proxy.gateway.table import table
from tests.gatewayattacks import SCOPES, raw, team
from tests.gatewaybed import PASSWORD


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """One for all of this module: whoever spoils something for the others brings his own."""
    with team(tmp_path_factory.mktemp("team") / "home") as gateway:
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
    ("PATCH", "/manage/aliases/{alias}"): HERS,
    ("DELETE", "/manage/aliases/{alias}"): HERS_204,
    ("GET", "/manage/usage"): "401 403 200 403 200 200 200 200",
    ("GET", "/manage/users"): ADMINS,
    ("PATCH", "/manage/users/{id}"): ADMINS,
    ("DELETE", "/manage/users/{id}"): ADMINS_204,
    ("POST", "/manage/teams"): ADMINS_201,
    ("GET", "/manage/teams"): ADMINS,
    ("PATCH", "/manage/teams/{id}"): ADMINS,
    ("DELETE", "/manage/teams/{id}"): ADMINS_204,
    ("PUT", "/manage/teams/{id}/members/{user_id}"): ADMINS_204,
    ("DELETE", "/manage/teams/{id}/members/{user_id}"): ADMINS_204,
    ("POST", "/manage/invitations"): ADMINS_201,
    ("GET", "/manage/invitations"): ADMINS,
    ("DELETE", "/manage/invitations/{id}"): ADMINS_204,
    ("GET", "/manage/audit"): ADMINS,
    ("GET", "/manage/metrics"): "401 403 403 403 200 403 403 200",
    ("GET", "/health/gateway"): ALL_200,
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
    "PATCH /manage/teams/{id}": {"monthly_budget": 7},
    "PATCH /manage/users/{id}": {"rate_limit_daily": None},
    "PATCH /manage/providers/{id}": {"label": "a label"},
    "PATCH /manage/aliases/{alias}": {"weight": 1},
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
        case "DELETE", "/manage/providers/{id}":
            path = f"/manage/providers/{ours.provider_key(ours.alice)}"
        case "DELETE", "/manage/aliases/{alias}":
            path = f"/manage/aliases/{ours.alias(ours.fresh('alias'), 'gpt-4o', ours.hers, ours.alice)['alias']}"
        case _, "/manage/users/{id}":
            path = f"/manage/users/{ours.ids.alice if method == 'PATCH' else ours.leaver}"
        case "DELETE", "/manage/teams/{id}":
            team_id = ours.want(201, "POST", "/manage/teams", {"name": ours.fresh("team")}, ours.admin)["id"]
            path = f"/manage/teams/{team_id}"
        case "DELETE", "/manage/invitations/{id}":
            path = f"/manage/invitations/{ours.want(201, 'POST', '/manage/invitations', {}, ours.admin)['id']}"
    known = {
        **{"/manage/providers/{id}": ours.hers, "/manage/teams/{id}": ours.teams["one"]},
        **{"{user_id}": ours.ids.alice, "{alias}": "hers", "{id:.+}": "hers"},
    }
    for pattern, value in known.items():
        path = path.replace(pattern, pattern.replace("{id}", str(value)) if "/{id}" in pattern else str(value))
    return path, body if method not in ("GET", "HEAD") else None


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
