"""The gateway's description is that of its routes, no more and no less, and the gateway answers as described."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from llm_proxy.gateway import openapi
from llm_proxy.gateway.facts import Scope
from llm_proxy.gateway.routes import Access, Route
from llm_proxy.gateway.table import table
from llm_proxy.wire.exposition import CONTENT_TYPE
from tests import gatewaybed

VERSION = "1.2.3"
gateways = gatewaybed.gateways


@pytest.fixture(scope="module")
def told():
    return json.loads(json.dumps(openapi.describe(table(), VERSION, "https://llm.example.com")))


def _path(route):
    return re.sub(r":[^{}]+\}", "}", route.path)


def test_it_is_valid(told):
    """By the specification's own rules; what schemas say of values is JSON Schema."""
    validate(told)
    for schema in told["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert told["info"]["version"] == VERSION
    assert told["servers"] == [{"url": "https://llm.example.com"}]


def test_every_route_is_in_it_and_nothing_else(told):
    """Paths and methods are the table's."""
    described = {(path, method) for path, item in told["paths"].items() for method in item}
    assert described == {(_path(route), route.method.lower()) for route in table()}
    assert ("/openapi.json", "get") in described


@pytest.mark.parametrize("route", table(), ids=lambda route: f"{route.method} {route.path}")
def test_a_route_is_described_as_it_is(told, route):
    """Who may come, what it takes and gives, each part of its path, each parameter of its query."""
    operation = told["paths"][_path(route)][route.method.lower()]
    schemes = {name for one in operation["security"] for name in one}
    assert (
        schemes
        == {
            Access.PUBLIC: set(),
            Access.KEY: {"key", "x-api-key", "session"},
            Access.SESSION: {"session"},
            Access.ADMIN: {"session"},
        }[route.access]
    )
    if route.access is Access.KEY:
        assert f"`{route.scope}`" in operation["description"] and route.scope in tuple(Scope)
    parameters = {(one["in"], one["name"]) for one in operation["parameters"]}
    assert parameters == {("path", name) for name in re.findall(r"\{(\w+)", route.path)} | {
        ("query", name) for name in route.query
    }
    assert ("requestBody" in operation) == (
        route.takes is not None or (route.raw is not None and route.method == "POST")
    )
    assert "default" in operation["responses"]
    good = [status for status in operation["responses"] if status.startswith("2")]
    assert len(good) == 1
    if route.raw is None:
        assert good[0] == ("204" if route.gives is None else str(route.status))
        assert ("content" in operation["responses"][good[0]]) == (route.gives is not None)


def test_operations_have_names_of_their_own(told):
    """So that clients can be made of them."""
    names = [operation["operationId"] for item in told["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][A-Za-z0-9_]*", name) for name in names)


def test_bodies_take_no_unknown_fields(told):
    """Each managing route's body says so, as the routes' rule is."""
    bodies = 0
    for route in table():
        if route.takes is not None:
            operation = told["paths"][_path(route)][route.method.lower()]
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            judge = Draft202012Validator(schema | {"components": told["components"]})
            assert not judge.is_valid({"no such field": 1}), route.path
            bodies += 1
    assert bodies > 5


def test_two_types_of_one_name_are_two(told):
    """Types are named by where they stand where their names alone would not tell them apart."""
    assert not any(name.startswith("llm_proxy") for name in told["components"]["schemas"])
    used = set(re.findall(r"#/components/schemas/([^\"]+)", json.dumps(told)))
    assert used <= set(told["components"]["schemas"])


def test_without_a_public_url_it_is_where_it_was_fetched():
    """A relative server, and a version there is always."""
    document = openapi.describe((Route("GET", "/x", Access.PUBLIC, "X", gives=int),), "")
    assert (document["servers"], document["info"]["version"]) == ([{"url": "/"}], "0")
    validate(document)


# --- against the whole gateway

# What would end the session that asks, or change who asks; and what is there twice, with and without /v1.
_APART = (
    r"^/auth/(logout|password|login|refresh|signup)$|^/manage/users/\{id\}$"
    r"|^/(chat|responses|messages|embeddings|completions|models)\b"
)
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "ignored_auth",
)
# Things that are there, so that not everything ends with a 404. And paths of models are the gateway's by some methods
# only; by others a provider's own API is meant.
_CONFIG = """
[phases.coverage]
unexpected-methods = []
[parameters]
"path.id" = "1"
"path.user_id" = "2"
"path.alias" = "fast"
"body.model" = "fast"
"""


def _schemathesis(gateway, token, folder):
    """What it says of requests made by the description that the gateway gives of itself."""
    (folder / "schemathesis.toml").write_text(_CONFIG)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{gateway.url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {token}", "--checks", ",".join(_CHECKS), "--seed", "7"]
    # One worker: Python 3.11 counts how deep it is in a syntax tree for all threads together, and fails at times.
    command += ["--max-examples", "1", "--phases", "examples,coverage,fuzzing", "--no-shrink", "--workers", "1"]
    command += [
        "--continue-on-failure",
        "--request-timeout",
        "100",
        "--suppress-health-check",
        "all",
        "--exclude-path-regex",
        _APART,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def _attacked(gateways, folder, base_url, role):
    gateway = gateways(allow=(base_url,))
    token = gateway.admin if role == "admin" else gateway.member()
    if role == "admin":
        gateway.member()
    gateway.want(201, "POST", "/manage/teams", {"name": "red"}, gateway.admin)
    provider = gateway.provider("openai", base_url, token)
    gateway.alias("fast", "gpt-4o", provider, token)
    gateway.key(token)
    done = _schemathesis(gateway, token, folder)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert gateway.ask("GET", "/auth/me", token=token).status == 200
    usage = gateway.want(200, "GET", "/manage/usage", None, token)
    assert {"", "openai"} <= {one["provider"] for one in usage}, "some were refused by us, some went to the provider"
    _measured(gateway, token, role)


def _measured(gateway, token, role):
    """An administrator, or a key of his, sees what was counted meanwhile."""
    for one in (token, gateway.key(token, scopes=["usage"])):
        answer = gateway.ask("GET", "/manage/metrics", token=one)
        if role != "admin":
            assert (answer.status, answer.code) == (403, "admin_needed")
            continue
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        families = {one.name: one for one in text_string_to_metric_families(answer.body.decode())}
        assert families["llm_proxy_gateway_usage_noted"].samples[0].value > 10
        assert families["llm_proxy_gateway_usage_lost"].samples[0].value == 0
        assert {one.labels["limit"] for one in families["llm_proxy_gateway_limited"].samples} >= {"requests_minute"}
    assert gateway.ask("GET", "/manage/metrics", token=gateway.key(token)).code == "scope_missing"


@pytest.mark.parametrize("role", ["admin", "member"])
async def test_the_gateway_answers_as_described(gateways, tmp_path, fake, role):
    """As an administrator and as a member, whatever is sent: no failure of ours, and every answer is a described one."""
    await asyncio.to_thread(_attacked, gateways, tmp_path, fake.url, role)
