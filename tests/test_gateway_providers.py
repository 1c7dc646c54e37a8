"""Provider keys as people give them: what is taken, what is shown, where they may be sent, and which models they open."""

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, func, insert, select, update

from llm_proxy.gateway import model_lists, rotating
from llm_proxy.gateway.base_urls import BadBaseUrl, Base, base_of, checked, parse
from llm_proxy.gateway.facts import Caller, Provider, Role, Scope
from llm_proxy.gateway.manage import provider_fields, providers
from llm_proxy.gateway.options import Options, Secrets
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask
from llm_proxy.gateway.sealing import Sealer, guard
from llm_proxy.gateway.sending.sender import Sender
from llm_proxy.gateway.site import Site
from llm_proxy.gateway.store.schema import (
    audit_log,
    facts,
    metadata,
    model_aliases,
    now,
    provider_keys,
    provider_models,
    users,
)
from llm_proxy.proxy.authority import parse_authority
from tests.gatewaybed import gateways
from tests.gatewaystore import add_user, opened

__all__ = ["gateways"]

OPENAI = "sk-proj-aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789"
ANTHROPIC = "sk-ant-api03-aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789-AA"
AWS = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
LISTED = (
    "http://127.0.0.1:11434",
    "http://localhost:8000",
    "https://10.0.0.5",
    "vllm.internal:8443",
    "http://[fd00::1]:8",
)
URL = "https://models.example.com/v1"


# --- base URLs


@pytest.mark.parametrize(
    ("url", "provider", "kept"),
    [
        ("https://api.example.com", Provider.COMPATIBLE, "https://api.example.com"),
        ("https://api.example.com/", Provider.COMPATIBLE, "https://api.example.com"),
        ("HTTPS://API.Example.com:8443/OpenAI/V1/", Provider.COMPATIBLE, "https://api.example.com:8443/OpenAI/V1"),
        ("https://api.example.com/a%2Fb/v1", Provider.COMPATIBLE, "https://api.example.com/a%2Fb/v1"),
        ("https://93.184.216.34/v1", Provider.COMPATIBLE, "https://93.184.216.34/v1"),
        ("https://[2606:4700::1111]:9/v1", Provider.COMPATIBLE, "https://[2606:4700::1111]:9/v1"),
        ("https://api.openai.com/v1", Provider.OPENAI, "https://api.openai.com"),
        ("https://eu.example.com/x/v1/", Provider.OPENAI, "https://eu.example.com/x"),
        ("https://example.com/anthropic/v1", Provider.ANTHROPIC, "https://example.com/anthropic"),
        ("https://example.com/v1beta/openai", Provider.GEMINI, "https://example.com"),
        ("https://example.com/v1beta", Provider.GEMINI, "https://example.com"),
        ("http://127.0.0.1:11434/v1", Provider.COMPATIBLE, "http://127.0.0.1:11434/v1"),
        ("http://localhost:8000", Provider.COMPATIBLE, "http://localhost:8000"),
        ("https://10.0.0.5/v1", Provider.COMPATIBLE, "https://10.0.0.5/v1"),
        ("https://vllm.internal:8443", Provider.COMPATIBLE, "https://vllm.internal:8443"),
        ("http://[fd00::1]:8/", Provider.COMPATIBLE, "http://[fd00::1]:8"),
    ],
)
def test_a_base_url_is_kept_as_calls_need_it(url, provider, kept):
    """Public hosts by https, listed ones as they are listed; without the part of the path that is the API's own."""
    base = checked(url, provider, allow=LISTED)
    assert str(base) == kept
    assert parse(str(base)) == base
    assert parse_authority(base.authority).host  # the proxy reads it too


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is written https"),
        ("api.example.com", "is written https"),
        ("ftp://api.example.com", "is written https"),
        ("//api.example.com", "is written https"),
        ("https:/api.example.com", "is written https"),
        ("https://", "is written https"),
        ("https:///v1", "is written https"),
        ("https://\\api.example.com", "is written https"),
        ("https://api.example.com\\@127.0.0.1", "is written https"),
        ("https://me@api.example.com", "no user or password"),
        ("https://me:secret@api.example.com/v1", "no user or password"),
        ("https://api.example.com?x=1", "no query"),
        ("https://api.example.com/v1?", "no query"),
        ("https://api.example.com/v1#x", "no fragment"),
        (" https://api.example.com", "printable ASCII"),
        ("https://api.example.com/a b", "printable ASCII"),
        ("https://api.example.com/\r\nHost: x", "printable ASCII"),
        ("https://api.example.com/\0", "printable ASCII"),
        ("https://äpi.example.com", "printable ASCII"),
        ("https://127。0。0。1/", "printable ASCII"),
        ("https://api.example.com/" + "a" * 2048, "at most 2048"),
        ("https://api.example.com//v1", "plain segments"),
        ("https://api.example.com/v1/../admin", "plain segments"),
        ("https://api.example.com/v1/%2e%2E/admin", "plain segments"),
        ("https://api.example.com/./v1", "plain segments"),
        ("https://api.example.com/%zz", "plain segments"),
        ("https://api.example.com/{x}", "plain segments"),
        ("https://api.example.com:0", "1 to 65535"),
        ("https://api.example.com:65536", "1 to 65535"),
        ("https://api.example.com:", "1 to 65535"),
        ("https://api.example.com:+443", "1 to 65535"),
        ("https://api.example.com:443:443", "1 to 65535"),
        ("https://api..example.com", "neither the name"),
        ("https://api.example.com.", "neither the name"),
        ("https://-a.example.com", "neither the name"),
        ("https://%61pi.example.com", "neither the name"),
        ("https://" + "a." * 127 + "com", "neither the name"),
        ("https://2130706433/", "neither the name"),
        ("https://0x7f000001/", "neither the name"),
        ("https://0177.0.0.1/", "neither the name"),
        ("https://127.1/", "neither the name"),
        ("https://1.2.3.4.5", "neither the name"),
        ("https://[::1", "in brackets"),
        ("https://[::1]x", "in brackets"),
        ("https://[fe80::1%25eth0]/", "no zone"),
        ("https://[fe80::1%eth0]/", "no zone"),
        ("https://[1.2.3.4]/", "no IPv6 address"),
        ("http://api.example.com/v1", "is https"),
        ("https://127.0.0.1/", "no host on the public internet"),
        ("https://127.0.0.1:11435/", "no host on the public internet"),
        ("https://localhost", "no host on the public internet"),
        ("https://a.localhost", "no host on the public internet"),
        ("https://redis:6379", "no host on the public internet"),
        ("https://metadata.google.internal/computeMetadata", "no host on the public internet"),
        ("https://printer.local", "no host on the public internet"),
        ("https://nas.home.arpa", "no host on the public internet"),
        ("https://169.254.169.254/latest", "no host on the public internet"),
        ("https://100.100.100.200", "no host on the public internet"),
        ("https://10.0.0.6", "no host on the public internet"),
        ("https://192.168.1.1", "no host on the public internet"),
        ("https://0.0.0.0", "no host on the public internet"),
        ("https://224.0.0.1", "no host on the public internet"),
        ("https://255.255.255.255", "no host on the public internet"),
        ("https://[::1]", "no host on the public internet"),
        ("https://[::]", "no host on the public internet"),
        ("https://[::ffff:127.0.0.1]", "no host on the public internet"),
        ("https://[::ffff:8.8.8.8]", "no host on the public internet"),
        ("https://[64:ff9b::7f00:1]", "no host on the public internet"),
        ("https://[2002:7f00:1::]", "no host on the public internet"),
        ("https://[2001:0:7f00:1::]", "no host on the public internet"),
        ("https://[fd00:ec2::254]", "no host on the public internet"),
        ("https://[fe80::1]", "no host on the public internet"),
        ("https://[ff02::1]", "no host on the public internet"),
        ("https://[2001:db8::1]", "no host on the public internet"),
        ("https://127.0.0.1:11434", "allowed by http only"),
        ("http://10.0.0.5", "allowed by https only"),
        ("https://gateway.example.com/v1", "this gateway itself"),
        ("https://gateway.example.com:443", "this gateway itself"),
        ("https://GATEWAY.example.com:0443", "1 to 65535"),
    ],
)
def test_a_base_url_leads_nowhere_else(url, words):
    """Every spelling of inside addresses, other schemes, passwords, queries, and of ourselves is refused with the rule."""
    with pytest.raises(BadBaseUrl, match=words) as caught:
        checked(url, Provider.COMPATIBLE, allow=LISTED, ourselves="https://gateway.example.com")
    assert "secret" not in str(caught.value)


_SIGNS = st.text("abcxyz019.:/@[]%#?\\_-~\x00 \näd0。7f", max_size=24)


@given(st.one_of(_SIGNS, _SIGNS.map("https://{}".format), _SIGNS.map("https://api.example.com{}".format)))
def test_the_proxy_reads_what_we_take_the_same_way(url):
    """One host, one port: whatever is taken here, the proxy's strict reading takes, and standard readings agree."""
    from urllib.parse import urlsplit

    try:
        base = parse(url)
    except BadBaseUrl:
        return
    authority, other = parse_authority(base.authority), urlsplit(str(base))
    assert str(authority) == base.authority
    assert (other.scheme, other.hostname, other.port) == (base.scheme, authority.host, authority.port)
    assert (other.path, other.query, other.fragment, other.username) == (base.prefix, "", "", None)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ((Provider.OPENAI, "", ""), Base("https", "api.openai.com")),
        ((Provider.ANTHROPIC, "", ""), Base("http", "10.0.0.1:80", "/a")),
        ((Provider.ANTHROPIC, "https://x.example.com/y", ""), Base("https", "x.example.com", "/y")),
        ((Provider.GEMINI, "", ""), Base("https", "generativelanguage.googleapis.com")),
        ((Provider.BEDROCK, "", "eu-west-1"), Base("https", "bedrock-runtime.eu-west-1.amazonaws.com")),
        ((Provider.COMPATIBLE, URL, ""), Base("https", "models.example.com", "/v1")),
    ],
)
def test_calls_go_to_the_keys_base_the_operators_or_the_providers_own(given, base):
    """In this order."""
    assert base_of(*given, [("anthropic", "http://10.0.0.1:80/a/v1")]) == base


# --- a provider, and the gateway's parts before it


class Hosts:
    """In the place of the proxy and the providers behind it: HTTP on a Unix socket. `answers` by the target's beginning."""

    def __init__(self):
        self.answers = {}
        self.asked = []  # (target, fields)
        self.waiting = asyncio.Event()  # somebody was asked that hangs

    async def serve(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *rest = head.rstrip().split("\r\n")
                target = line.split(" ")[1]
                self.asked.append((target, dict(one.lower().split(": ", 1) for one in rest)))
                status, told = next((one for name, one in self.answers.items() if target.startswith(name)), (404, {}))
                if status == "hang":
                    self.waiting.set()
                    await asyncio.Event().wait()
                body = told if isinstance(told, bytes) else json.dumps(told).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\n" % status)
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def lists(self, name, *models):
        self.answers[name] = (200, {"object": "list", "data": [{"id": model} for model in models]})


@pytest.fixture
async def hosts(tmp_path):
    made = Hosts()
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.closing(writer):
            await made.serve(reader, writer)

    server = await asyncio.start_unix_server(serve, tmp_path / "hosts")
    yield made
    server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def site_of(store, folder, *, key="the encryption key", old=(), **more):
    options = Options(socket="", upstream=str(folder / "hosts"), state=str(folder), **more)
    secrets = Secrets("jwt", key, "", "", old)
    sealer = Sealer(secrets)
    parts = dict.fromkeys(("identifier", "catalogs", "breakers", "limiter", "usage"))
    return Site(options, secrets, store, sealer=sealer, sender=Sender(options.upstream, sealer, options), **parts)


@pytest.fixture
async def site(store, tmp_path, hosts):
    made = site_of(store, tmp_path, allow=("http://127.0.0.1:11434",))
    await guard(store, made.sealer)
    yield made
    made.sender.close()


class Person:
    """Who calls routes, as the application would for him."""

    def __init__(self, site, user_id, email, *, admin=False, session=True):
        self.site = site
        self.id = user_id
        role = Role.ADMIN if admin else Role.MEMBER
        proof = {"session_id": "s"} if session else {"key_id": 1}
        self.caller = Caller(user_id, email, role, frozenset(Scope), **proof)

    async def __call__(self, method, path, body=None, **query):
        """What is answered, as JSON says it."""
        parts = path.strip("/").split("/")
        for route in providers.ROUTES:
            names = route.path.strip("/").split("/")
            if route.method != method or len(names) != len(parts):
                continue
            params = {n[1:-1]: p for n, p in zip(names, parts, strict=True) if n.startswith("{")}
            if all(n.startswith("{") or n == p for n, p in zip(names, parts, strict=True)):
                break
        else:
            raise AssertionError(path)
        try:
            taken = msgspec.json.decode(json.dumps(body or {}), type=route.takes) if route.takes else None
        except msgspec.ValidationError as error:
            raise Refusal(400, "invalid_request", str(error)) from None
        answer = await route.handler(Ask(self.site, self.caller, params, query, taken, "203.0.113.9"))
        encoded = msgspec.json.encode(answer)
        if route.gives is not None:
            msgspec.json.decode(encoded, type=route.gives)
        return json.loads(encoded)

    async def add(self, **body):
        return await self("POST", "/manage/providers", {"provider": "openai", "api_key": OPENAI, **body})

    async def refused(self, status, method, path, body=None, **query):
        with pytest.raises(Refusal) as caught:
            await self(method, path, body, **query)
        assert caught.value.status == status, caught.value.message
        return caught.value


@pytest.fixture
async def ann(site):
    return Person(site, await add_user(site.store, "ann@example.com"), "ann@example.com")


@pytest.fixture
async def bob(site):
    return Person(site, await add_user(site.store, "bob@example.com"), "bob@example.com")


@pytest.fixture
async def admin(site):
    return Person(site, await add_user(site.store, "root@example.com", "admin"), "root@example.com", admin=True)


async def everything(store):
    """All that the store holds, as one text."""
    held = []
    async with store.reading() as connection:
        for table in metadata.sorted_tables:
            held += [str(tuple(row)) for row in await connection.execute(select(table))]
    return "\n".join(held)


# --- keeping and showing


def test_every_route_takes_a_managing_key_or_a_session():
    """None is open to whoever may only call models."""
    assert {(route.access, route.scope) for route in providers.ROUTES} == {(Access.KEY, Scope.MANAGE)}


async def test_a_key_is_kept_and_never_shown(ann, site, caplog):
    """The answer and the list have its end only; the store has it encrypted; no log has it."""
    caplog.set_level(logging.DEBUG)
    made = await ann.add(label=" work ", api_key=OPENAI)
    assert {**made, "created_at": "", "id": 0} == {
        "id": 0,
        "provider": "openai",
        "label": "work",
        "base_url": "",
        "region": "",
        "shared": False,
        "own": True,
        "created_at": "",
        "tested_at": None,
        "key_hint": "6789",
        "readable": True,
    }
    assert await ann("GET", "/manage/providers") == [made]
    changed = await ann("PATCH", f"/manage/providers/{made['id']}", {"api_key": OPENAI[:-4] + "ABCD"})
    assert changed == {**made, "key_hint": "ABCD"}
    held = await everything(site.store)
    for part in (OPENAI, OPENAI[:-4], OPENAI[8:20]):
        assert part not in held + json.dumps([made, changed]) + caplog.text
    async with site.store.reading() as connection:
        row = (await connection.execute(select(provider_keys))).one()
    assert (row.key_version, row.key_id) == (1, site.sealer.key_id)


async def test_nothing_is_an_empty_list_and_not_null(ann):
    """Of keys, of models, of all models."""
    assert await ann("GET", "/manage/providers") == []
    assert await ann("GET", "/manage/models") == {}
    made = await ann.add()
    assert await ann("GET", f"/manage/providers/{made['id']}/models") == []
    assert await ann("GET", "/manage/models") == {"openai": []}


@pytest.mark.parametrize(
    ("spelling", "provider"),
    [("google", "gemini"), ("claude", "anthropic"), ("OpenAI", "openai"), ("Gemini", "gemini"), ("bedrock", "bedrock")],
)
async def test_other_spellings_of_a_provider_are_one(ann, spelling, provider):
    """What is kept has the one name."""
    region = {"region": "us-east-1"} if provider == "bedrock" else {}
    assert (await ann.add(provider=spelling, api_key="k" * 30, **region))["provider"] == provider


BAD = [
    ({"provider": "mistral"}, "provider"),
    ({"provider": ""}, "provider"),
    ({"provider": "openai\r\nx: y"}, "provider"),
    ({"api_key": ""}, "api_key"),
    ({"api_key": " \t\n"}, "api_key"),
    ({"api_key": OPENAI + "\n"}, "api_key"),
    ({"api_key": OPENAI + "\r\nX-Evil: 1"}, "api_key"),
    ({"api_key": OPENAI + "\0"}, "api_key"),
    ({"api_key": "two words"}, "api_key"),
    ({"api_key": OPENAI + "ä"}, "api_key"),
    ({"api_key": OPENAI + "\u2028"}, "api_key"),
    ({"api_key": "k" * 8193}, "api_key"),
    ({"api_key": ANTHROPIC}, "api_key"),
    ({"api_key": "AIzaSyA0123456789012345678901234567890123"}, "api_key"),
    ({"api_key": "gsk_0123456789"}, "api_key"),
    ({"api_key": "llmp_0123456789"}, "api_key"),
    ({"api_key": "llmp_0123456789", "base_url": URL}, "api_key"),
    ({"api_key": json.dumps(AWS)}, "api_key"),
    ({"api_key": AWS}, "api_key"),
    ({"provider": "anthropic"}, "api_key"),
    ({"provider": "gemini", "api_key": ANTHROPIC}, "api_key"),
    ({"label": "x" * 256}, "label"),
    ({"label": "a\nb"}, "label"),
    ({"label": "\x1b[31m"}, "label"),
    ({"region": "us-east-1"}, "region"),
    ({"provider": "openai-compatible"}, "base_url"),
    ({"provider": "openai-compatible", "base_url": "http://169.254.169.254/v1"}, "base_url"),
    ({"base_url": "https://me:pass@example.com"}, "base_url"),
    ({"base_url": "http://localhost:11434"}, "base_url"),
    ({"provider": "bedrock", "api_key": "k" * 30}, "region"),
    ({"provider": "bedrock", "api_key": "k" * 30, "region": "us-east-9"}, "region"),
    ({"provider": "bedrock", "api_key": "k" * 30, "region": "us-east-1.evil.com/"}, "region"),
    ({"provider": "bedrock", "api_key": "k" * 30, "region": "x/../y", "base_url": URL}, "region"),
    ({"provider": "bedrock", "api_key": "AKIAIOSFODNN7EXAMPLE", "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": "{}", "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": "{", "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": json.dumps({**AWS, "x": "y"}), "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": {**AWS, "access_key_id": "no"}, "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": {**AWS, "secret_access_key": "a\nb"}, "region": "us-east-1"}, "api_key"),
    ({"provider": "bedrock", "api_key": {**AWS, "session_token": "a b"}, "region": "us-east-1"}, "api_key"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:60])
async def test_bad_input_is_named_and_not_kept(tmp_path, body, param):
    """400, naming the field and the rule, without the key. Nothing is stored."""
    ann = Person(site_of(None, tmp_path), 1, "ann@example.com")
    given = {"provider": "openai", "api_key": OPENAI, **body}
    refusal = await ann.refused(400, "POST", "/manage/providers", given)  # there is no store to keep it in
    assert refusal.param == param and refusal.message.startswith(f"{param}: ") and len(refusal.message) < 400
    assert refusal.message.isprintable()
    for secret in (OPENAI, ANTHROPIC, AWS["secret_access_key"], str(given["api_key"])):
        assert len(secret) < 8 or secret not in refusal.message


@pytest.mark.parametrize("extra", ["id", "user_id", "encrypted_key", "key_version", "key_id", "created_at", "own"])
async def test_no_other_field_can_be_set(ann, extra):
    """Unknown ones are refused, when a key is made and when it is changed."""
    made = await ann.add()
    assert (
        extra
        in (
            await ann.refused(400, "POST", "/manage/providers", {"provider": "openai", "api_key": OPENAI, extra: 1})
        ).message
    )
    assert extra in (await ann.refused(400, "PATCH", f"/manage/providers/{made['id']}", {extra: 1})).message


async def test_awss_credentials_are_kept_for_signing(ann, site, hosts):
    """As an object or as its text; the hint is of the id, which is no secret; calls are signed with them."""
    hosts.answers["/bedrock/bedrock.us-east-1.amazonaws.com/foundation-models"] = (
        200,
        {"modelSummaries": [{"modelId": "amazon.nova-lite-v1:0"}]},
    )
    hosts.answers["/bedrock/bedrock.us-east-1.amazonaws.com/inference-profiles"] = (
        200,
        {"inferenceProfileSummaries": []},
    )
    for key in (AWS, json.dumps(AWS, indent=1), {**AWS, "session_token": "t" * 900}):
        made = await ann.add(provider="bedrock", region="us-east-1", api_key=key, test=True)
        assert made["key_hint"] == "MPLE" and made["region"] == "us-east-1"
        assert "/us-east-1/bedrock/" in hosts.asked[-1][1]["authorization"]
    assert AWS["secret_access_key"] not in json.dumps(await ann("GET", "/manage/providers"))


@pytest.mark.parametrize(("key", "hint"), [("k" * 19, ""), ("k" * 16 + "last", "last"), ("{not json" * 5, "")])
def test_only_a_long_key_has_a_hint(key, hint):
    """Four characters of a short one would be too many."""
    assert provider_fields.hint(key) == hint


async def test_a_user_has_a_bounded_number_of_keys(ann, bob, monkeypatch):
    """Each costs a look at its provider twice a day."""
    monkeypatch.setattr(providers, "MOST", 2)
    await ann.add()
    await ann.add()
    await ann.refused(409, "POST", "/manage/providers", {"provider": "openai", "api_key": OPENAI})
    await bob.add()


# --- whose it is


async def test_anothers_keys_are_not_there(ann, bob, admin):
    """Every route answers as for an id that nobody has; an admin's session is no exception."""
    made = await ann.add()
    for other in (bob, admin):
        assert await other("GET", "/manage/providers") == []
        assert await other("GET", "/manage/models") == {}
        for key_id in (made["id"], 999_999):
            path = f"/manage/providers/{key_id}"
            said = [
                await other.refused(404, "PATCH", path, {"label": "mine"}),
                await other.refused(404, "DELETE", path),
                await other.refused(404, "DELETE", path, force="true"),
                await other.refused(404, "GET", path + "/models"),
            ]
            assert {one.message for one in said} == {f"there is no provider key {key_id}"}
    for text in ("1abc", "-1", "", "٣", "1" * 19, "1;--"):
        await ann.refused(404, "GET", f"/manage/providers/{text or '0x'}/models")
    assert await ann("GET", "/manage/providers") == [made]


async def test_shared_keys_are_for_all_to_see_and_for_admins_to_change(ann, admin, site):
    """Only an admin's session shares; others see the key marked, without its end, and cannot touch it."""
    body = {"provider": "openai", "api_key": OPENAI, "shared": True}
    assert (await ann.refused(403, "POST", "/manage/providers", body)).code == "admin_needed"
    own = await ann.add()
    await ann.refused(403, "PATCH", f"/manage/providers/{own['id']}", {"shared": True})
    by_key = Person(site, admin.id, "root@example.com", admin=True, session=False)
    await by_key.refused(403, "POST", "/manage/providers", body)

    made = await admin.add(shared=True, label="team")
    path = f"/manage/providers/{made['id']}"
    assert made["shared"] and made["own"] and made["key_hint"] == "6789"
    seen = await ann("GET", "/manage/providers")
    assert seen == [own, {**made, "own": False, "key_hint": ""}]
    assert await ann("GET", path + "/models") == []
    for body in ({"label": "x"}, {"api_key": OPENAI}, {"shared": False}):
        await ann.refused(403, "PATCH", path, body)
        await by_key.refused(403, "PATCH", path, body)
    await ann.refused(403, "DELETE", path)

    colleague = Person(site, await add_user(site.store, "two@example.com", "admin"), "two@example.com", admin=True)
    changed = await colleague("PATCH", path, {"api_key": OPENAI[:-4] + "NEW1"})
    assert not changed["own"] and changed["key_hint"] == ""
    assert (await admin("GET", "/manage/providers"))[0]["key_hint"] == "NEW1"  # sealed for its owner, and readable
    assert await colleague("PATCH", path, {"shared": False}) == {**changed, "shared": False}
    await colleague.refused(404, "PATCH", path, {"shared": True})
    assert await ann("GET", "/manage/providers") == [own]


# --- changing


async def test_each_field_can_be_changed(ann):
    """Alone or together; what is left out stays; nothing at all is refused."""
    made = await ann.add(provider="openai-compatible", base_url=URL, label="old")
    path = f"/manage/providers/{made['id']}"
    assert await ann("PATCH", path, {"label": "new"}) == {**made, "label": "new"}
    other = {"base_url": "https://other.example.com/api/", "api_key": "n" * 30}
    changed = await ann("PATCH", path, other)
    assert changed == {**made, "label": "new", "base_url": "https://other.example.com/api", "key_hint": "nnnn"}
    assert (await ann.refused(400, "PATCH", path, {})).code == "nothing_to_change"
    assert (await ann.refused(400, "PATCH", path, {"base_url": ""})).param == "base_url"
    assert (await ann.refused(400, "PATCH", path, {"region": "us-east-1"})).param == "region"
    bedrock = await ann.add(provider="bedrock", region="us-east-1", api_key="k" * 30)
    path = f"/manage/providers/{bedrock['id']}"
    assert (await ann("PATCH", path, {"region": "eu-west-1"}))["region"] == "eu-west-1"
    assert (await ann.refused(400, "PATCH", path, {"region": None})).param == "region"


async def test_no_key_that_is_there_is_sent_elsewhere(ann, hosts):
    """Whoever may manage keys may not read them: a new base URL takes the key anew, tested or not."""
    made = await ann.add()
    path = f"/manage/providers/{made['id']}"
    for body in ({"base_url": "https://evil.example.com"}, {"base_url": "https://evil.example.com", "test": True}):
        assert (await ann.refused(400, "PATCH", path, body)).param == "base_url"
    assert hosts.asked == []
    assert await ann("GET", "/manage/providers") == [made]
    kept = await ann.add(base_url=URL)
    same = await ann("PATCH", f"/manage/providers/{kept['id']}", {"base_url": URL + "/", "label": "x"})
    assert same == {**kept, "label": "x"}


async def test_a_key_that_cannot_be_read_says_so_and_can_be_given_anew(ann, site):
    """After the encryption key was lost, or the row was altered."""
    made = await ann.add()
    async with site.store.writing() as connection:
        await connection.execute(update(provider_keys).values(encrypted_key="", key_id=""))
    assert await ann("GET", "/manage/providers") == [{**made, "readable": False, "key_hint": ""}]
    path = f"/manage/providers/{made['id']}"
    assert (await ann.refused(400, "PATCH", path, {"test": True})).param == "test"
    assert await ann("PATCH", path, {"api_key": OPENAI}) == made


async def test_acts_are_noted_without_secrets(ann, site):
    """Who did what to which key, from where."""
    made = await ann.add(label="a")
    await ann("PATCH", f"/manage/providers/{made['id']}", {"label": "b", "api_key": OPENAI[:-1]})
    await ann("DELETE", f"/manage/providers/{made['id']}")
    async with site.store.reading() as connection:
        rows = (await connection.execute(select(audit_log).order_by(audit_log.c.id))).all()
    assert [(row.action, row.object, row.detail) for row in rows] == [
        ("provider_key.create", f"provider_key:{made['id']}", {"provider": "openai", "shared": False}),
        ("provider_key.change", f"provider_key:{made['id']}", {"fields": ["encrypted_key", "label"]}),
        ("provider_key.delete", f"provider_key:{made['id']}", {"aliases": []}),
    ]
    assert {(row.user_id, row.address) for row in rows} == {(ann.id, "203.0.113.9")}


async def test_every_change_is_known_at_once(ann, site):
    """The store's counter moves, so that every machine forgets what it remembers."""
    seen = []
    site.store.on_change(lambda: seen.append(1))
    made = await ann.add()
    await ann("PATCH", f"/manage/providers/{made['id']}", {"label": "b"})
    await ann("DELETE", f"/manage/providers/{made['id']}")
    assert len(seen) == 3


async def test_a_gateway_that_outlived_its_encryption_key_keeps_nothing(ann, site, tmp_path):
    """After a rotation, a process with the old key only would write what nobody reads: 503."""
    await rotating.rotate(site.store, Sealer(Secrets("jwt", "another", "", "", ("the encryption key",))))
    body = {"provider": "openai", "api_key": OPENAI}
    assert (await ann.refused(503, "POST", "/manage/providers", body)).code == "encryption_key_replaced"
    assert await ann("GET", "/manage/providers") == []


# --- deleting


async def add_alias(site, user_id, name, key_id, chain=()):
    values = {"user_id": user_id, "alias": name, "target_model": "m", "provider_key_id": key_id, "chain": list(chain)}
    async with site.store.writing() as connection:
        await connection.execute(insert(model_aliases).values(values))


async def aliases(site):
    async with site.store.reading() as connection:
        rows = await connection.execute(select(model_aliases).order_by(model_aliases.c.alias))
        return {row.alias: row.chain for row in rows}


async def test_a_key_that_aliases_use_stays(ann, bob, admin, site):
    """409 names one's own aliases, those that have it in their chain too, and only counts those of others."""
    key, other = await admin.add(shared=True), await admin.add()
    step = {"provider_key_id": key["id"], "model": "m", "rank": 0, "weight": 1}
    stay = {**step, "provider_key_id": other["id"]}
    await add_alias(site, admin.id, "fast", key["id"])
    await add_alias(site, admin.id, "spare", other["id"], [stay, step])
    await add_alias(site, admin.id, "unconcerned", other["id"], [stay])
    await add_alias(site, bob.id, "secret-plan", key["id"])
    path = f"/manage/providers/{key['id']}"
    refusal = await admin.refused(409, "DELETE", path)
    assert refusal.message == (
        "aliases use this provider key: fast, spare; 1 of other people; ?force=true removes it from them"
    )
    await admin.refused(400, "DELETE", path, force="1")
    assert len(await aliases(site)) == 4
    await admin("DELETE", path, force="true")
    assert await aliases(site) == {"spare": [stay], "unconcerned": [stay]}
    assert [one["id"] for one in await admin("GET", "/manage/providers")] == [other["id"]]


async def test_what_is_deleted_leaves_nothing(ann, site, hosts):
    """Its models and its due time go with it, by the route and with its user."""
    hosts.lists("/openai/api.openai.com", "gpt-5")
    key = await ann.add()
    await ann.add()
    assert await model_lists.refresh(site, key["id"])
    await ann("DELETE", f"/manage/providers/{key['id']}")
    await ann.refused(404, "DELETE", f"/manage/providers/{key['id']}")
    async with site.store.reading() as connection:
        assert set(await connection.scalars(select(facts.c.name))) == {"canary", "oldest", "store"}
    assert await count(site, provider_models) == 0
    assert await count(site, provider_keys) == 1


async def count(site, table):
    async with site.store.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(table))


# --- testing


async def test_a_tested_key_is_kept_when_the_provider_takes_it(ann, hosts):
    """It was asked with that key, at the right place."""
    hosts.lists("/openai/api.openai.com/v1/models", "gpt-5")
    made = await ann.add(test=True)
    assert made["tested_at"] is not None
    [(target, sent)] = hosts.asked
    assert (target, sent["authorization"]) == ("/openai/api.openai.com/v1/models", f"bearer {OPENAI.lower()}")
    again = await ann("PATCH", f"/manage/providers/{made['id']}", {"test": True})
    assert again["tested_at"] >= made["tested_at"] and len(hosts.asked) == 2
    changed = await ann("PATCH", f"/manage/providers/{made['id']}", {"api_key": OPENAI[:-1]})
    assert changed["tested_at"] is None  # this one nobody has tested


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (
            (401, {"error": {"message": f"Incorrect API key provided: {OPENAI}.", "code": "invalid_api_key"}}),
            400,
            "key_refused",
        ),
        ((403, {"error": {"message": "Country not supported"}}), 400, "key_refused"),
        ((400, {"error": {"message": "API key not valid."}}), 400, "key_refused"),
        ((404, {"error": {"message": "nothing here"}}), 400, "invalid_request"),
        ((429, {"error": {"message": "slow down"}}), 502, "test_failed"),
        ((500, b"<html>\x1b[31m oops"), 502, "test_failed"),
        ((503, b""), 502, "test_failed"),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_a_key_that_the_provider_refuses_is_not_kept(ann, site, hosts, answer, status, code):
    """The provider's words come back, without the key; nothing is stored, and no key that was there is replaced."""
    kept = await ann.add(label="kept")
    before = await everything(site.store)
    hosts.answers["/openai/"] = answer
    for method, path in (("POST", "/manage/providers"), ("PATCH", f"/manage/providers/{kept['id']}")):
        body = {"api_key": OPENAI, "test": True} | ({"provider": "openai"} if method == "POST" else {})
        refusal = await ann.refused(status, method, path, body)
        assert refusal.code == code and str(answer[0]) in refusal.message
        assert OPENAI[8:20] not in refusal.message and "\x1b" not in refusal.message
    if answer[0] == 401:
        assert "Incorrect API key provided: (the key)" in refusal.message
    assert await everything(site.store) == before


async def test_a_provider_that_nobody_reaches_leaves_nothing(ann, site, tmp_path):
    """The proxy is away: 502, nothing is stored."""
    (tmp_path / "hosts").unlink()
    refusal = await ann.refused(
        502, "POST", "/manage/providers", {"provider": "openai", "api_key": OPENAI, "test": True}
    )
    assert refusal.code == "test_failed" and await count(site, provider_keys) == 0


@given(st.text("ab-0", min_size=1, max_size=40), st.text("ab-0 \n\x1b{}", max_size=200), st.text("ab-0 ", max_size=30))
def test_a_providers_words_never_hold_the_key(key, before, after):
    """Nor eight characters of it in a row, nor what moves a terminal; and they are short."""
    said = provider_fields.without_key(before + key + after, key)
    size = min(8, len(key))
    for word in said.replace("(the key)", "").split():
        assert not any(key[at : at + size] in word for at in range(len(key) - size + 1))
    assert said.isprintable() and len(said) <= 300


# --- lists of models


async def models_of(site, key_id):
    async with site.store.reading() as connection:
        query = select(provider_models.c.model_id).where(provider_models.c.provider_key_id == key_id)
        return set(await connection.scalars(query))


class Clock:
    def __init__(self):
        self.at = now()

    def __call__(self):
        return self.at

    def passes(self, **time):
        self.at += timedelta(**time)


async def test_a_list_is_what_the_provider_last_said(ann, site, hosts):
    """New ids come, old ones go, and the store's counter moves only when something changed."""
    key, clock, seen = await ann.add(), Clock(), []
    site.store.on_change(lambda: seen.append(1))
    for models, told in ((("a", "b", "c"), 1), (("b", "d"), 2), (("d", "b"), 2)):
        hosts.lists("/openai/", *models)
        assert await model_lists.refresh(site, key["id"], clock)
        assert await models_of(site, key["id"]) == set(models) and len(seen) == told
        clock.passes(hours=14)
    assert await ann("GET", f"/manage/providers/{key['id']}/models") == ["b", "d"]


async def test_all_models_are_those_of_ones_own_and_shared_keys(ann, bob, admin, site, hosts):
    """By provider, each once; nobody sees what another's key opens."""
    hosts.lists("/openai/api.openai.com", "gpt-5", "gpt-4o")
    hosts.lists("/openai/models.example.com/v1/models", "llama")
    hosts.lists("/anthropic/", "claude-opus-4-5")
    first, second = await ann.add(), await ann.add(label="another")
    local = await ann.add(provider="openai-compatible", base_url=URL)
    shared = await admin.add(provider="anthropic", api_key=ANTHROPIC, shared=True)
    for key in (first, second, local, shared):
        assert await model_lists.refresh(site, key["id"])
    team = {"anthropic": ["claude-opus-4-5"]}
    assert await ann("GET", "/manage/models") == {
        **team,
        "openai": ["gpt-4o", "gpt-5"],
        "openai-compatible": ["llama"],
    }
    assert await bob("GET", "/manage/models") == team
    assert await bob("GET", f"/manage/providers/{shared['id']}/models") == ["claude-opus-4-5"]


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": {"message": f"bad key {OPENAI}"}}),
        (500, b""),
        (200, b"<html>"),
        (200, {"data": []}),
        (200, b"[[["),
    ],
    ids=str,
)
async def test_a_failure_leaves_the_old_list(ann, site, hosts, caplog, answer):
    """An empty or unreadable answer is one too. It is tried again within the hour; the log has no key."""
    key, clock = await ann.add(), Clock()
    hosts.lists("/openai/", "a")
    assert await model_lists.refresh(site, key["id"], clock)
    clock.passes(hours=14)
    hosts.answers["/openai/"] = answer
    asked = len(hosts.asked)
    assert not await model_lists.refresh(site, key["id"], clock)
    assert not await model_lists.refresh(site, key["id"], clock)  # not due yet
    assert len(hosts.asked) == asked + 1
    assert await models_of(site, key["id"]) == {"a"}
    assert OPENAI not in caplog.text and "not known anew" in caplog.text
    clock.passes(hours=1)
    hosts.lists("/openai/", "b")
    assert await model_lists.refresh(site, key["id"], clock)
    assert await models_of(site, key["id"]) == {"b"}


async def test_ids_that_cannot_be_kept_are_left_out(ann, site, hosts, monkeypatch):
    """Too long ones, ones that move a terminal, and what is beyond the limit; the rest is kept."""
    monkeypatch.setattr(model_lists, "MOST", 3)
    key = await ann.add()
    hosts.lists("/openai/", "a", "x" * 256, "x" * 255, "evil\x1b[2J", "new\nline", "", "b", "c", "d")
    assert await model_lists.refresh(site, key["id"])
    assert await models_of(site, key["id"]) == {"a", "b", "c"}


async def test_one_machine_of_many_asks(ann, site, hosts, store_url, tmp_path):
    """They are all told that a list is due, and one request is made; a machine that dies meanwhile does not keep it."""
    key, clock = await ann.add(), Clock()
    hosts.answers["/openai/"] = ("hang", b"")
    async with opened(store_url) as second:
        other = site_of(second, tmp_path)
        dying = asyncio.create_task(model_lists.refresh(site, key["id"], clock))
        await hosts.waiting.wait()
        assert not await model_lists.refresh(other, key["id"], clock)
        assert len(hosts.asked) == 1
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        hosts.lists("/openai/", "a")
        clock.passes(minutes=4)
        assert not await model_lists.refresh(other, key["id"], clock)
        clock.passes(minutes=2)
        both = await asyncio.gather(*(model_lists.refresh(one, key["id"], clock) for one in (site, other, site)))
        assert sorted(both) == [False, False, True] and len(hosts.asked) == 2
        other.sender.close()


async def test_a_key_that_changes_while_it_is_asked_is_asked_again(ann, site, hosts):
    """What the old key opens is not said of the new one, however late it comes."""
    key = await ann.add()
    asked, go, listed = asyncio.Event(), asyncio.Event(), site.sender.models

    async def late(key):
        models = await listed(key)
        asked.set()
        await go.wait()
        return models

    hosts.lists("/openai/", "of the old key")
    slow = replace(site, sender=SimpleNamespace(models=late))
    asking = asyncio.create_task(model_lists.refresh(slow, key["id"]))
    await asked.wait()
    await ann("PATCH", f"/manage/providers/{key['id']}", {"api_key": OPENAI[:-1]})
    hosts.lists("/openai/", "of the new key")
    assert await model_lists.refresh(site, key["id"])  # due, though somebody is at it
    go.set()
    assert not await asking
    assert await models_of(site, key["id"]) == {"of the new key"}


@contextlib.asynccontextmanager
async def running(site):
    task = asyncio.create_task(model_lists.run(site))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(site, key_id, models):
    """Waits for a list."""
    async with asyncio.timeout(20):
        while await models_of(site, key_id) != models:
            await asyncio.sleep(0.02)


async def test_a_new_or_changed_key_is_looked_at_at_once(ann, site, hosts):
    """By the task in the background, without anybody waiting; keys that were there at the start too."""
    hosts.lists("/openai/api.openai.com", "a")
    hosts.lists("/openai/models.example.com", "local")
    early = await ann.add()
    async with running(site):
        await until(site, early["id"], {"a"})
        late = await ann.add()
        await until(site, late["id"], {"a"})
        body = {"base_url": URL, "api_key": "k" * 30}
        hosts.lists("/openai/models.example.com", "local")
        await ann("PATCH", f"/manage/providers/{late['id']}", body)
        await until(site, late["id"], {"local"})
        asked = len(hosts.asked)
        await ann("PATCH", f"/manage/providers/{early['id']}", {"label": "x"})
    assert len(hosts.asked) == asked


async def test_a_provider_that_hangs_holds_nothing_up(ann, bob, site, hosts):
    """Neither routes, nor other lists, nor the end."""
    hosts.answers["/openai/models.example.com"] = ("hang", b"")
    hosts.lists("/openai/api.openai.com", "a")
    async with running(site):
        for _ in range(model_lists.AT_ONCE - 1):
            await ann.add(provider="openai-compatible", base_url=URL)
        await hosts.waiting.wait()
        key = await bob.add()
        await until(site, key["id"], {"a"})
        assert len(await ann("GET", "/manage/providers")) == model_lists.AT_ONCE - 1
    assert len(hosts.asked) >= 2


async def test_the_task_survives_what_it_meets(ann, bob, site, hosts, caplog):
    """A provider of another program's, an unreadable key, a user deleted while his key is asked about, leftovers."""
    async with site.store.writing() as connection:
        odd = {"user_id": ann.id, "provider": "mistral", "encrypted_key": "?", "key_version": 0}
        await connection.execute(insert(provider_keys).values([odd, {**odd, "provider": "openai"}]))
        await connection.execute(insert(facts).values(name="models.999999", value="2999"))
    hosts.answers["/openai/models.example.com"] = ("hang", b"")
    hosts.lists("/openai/api.openai.com", "a")
    going = await bob.add(provider="openai-compatible", base_url=URL)
    async with running(site) as task:
        await hosts.waiting.wait()
        async with site.store.writing() as connection:
            await connection.execute(delete(users).where(users.c.id == bob.id))
        hosts.lists("/openai/models.example.com", "local")
        key = await ann.add()
        await until(site, key["id"], {"a"})
        assert not task.done()
    assert await models_of(site, going["id"]) == set()
    async with site.store.reading() as connection:
        assert "models.999999" not in set(await connection.scalars(select(facts.c.name)))
    assert [one["provider"] for one in await ann("GET", "/manage/providers")] == ["mistral", "openai", "openai"]


async def test_a_list_of_a_key_that_goes_meanwhile_is_dropped(ann, site, hosts):
    """The answer comes when the key's user is gone: nothing is written, nothing fails."""
    key = await ann.add()
    asked, go = asyncio.Event(), asyncio.Event()
    listed = site.sender.models

    class Slow:
        async def models(self, key):
            asked.set()
            await go.wait()
            return await listed(key)

    hosts.lists("/openai/", "a")
    sender, site.sender = site.sender, Slow()
    asking = asyncio.create_task(model_lists.refresh(site, key["id"]))
    await asked.wait()
    async with site.store.writing() as connection:
        await connection.execute(delete(users).where(users.c.id == ann.id))
    go.set()
    assert not await asking
    site.sender = sender
    assert await count(site, provider_models) == 0


async def test_a_key_is_in_clear_nowhere_on_disk(gateways, fake):
    """Through the whole program: given, tested, listed, used; then every file of the home is searched, logs and all."""
    secret = "sk-a-key-that-must-be-in-no-file-0123456789"
    gateway = await asyncio.to_thread(gateways, allow=(fake.url,))

    def use():
        given = {"provider": "openai-compatible", "api_key": secret, "base_url": f"{fake.url}/v1", "test": True}
        made = gateway.want(201, "POST", "/manage/providers", given, gateway.admin)
        path = f"/manage/providers/{made['id']}"
        deadline = time.monotonic() + 30
        while not (models := gateway.want(200, "GET", path + "/models", None, gateway.admin)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert gateway.want(200, "GET", "/manage/models", None, gateway.admin) == {"openai-compatible": models}
        gateway.alias("fast", models[0], made["id"])
        call = {"model": "fast", "messages": [{"role": "user", "content": "hello"}]}
        gateway.want(200, "POST", "/v1/chat/completions", call, gateway.key())
        assert gateway.ask("DELETE", path, None, gateway.admin).status == 409
        bad = {**given, "provider": "openai", "base_url": "", "api_key": secret + "\n"}
        refused = gateway.ask("POST", "/manage/providers", bad, gateway.admin)
        assert refused.status == 400 and refused.json["error"]["param"] == "api_key"
        gateway.daemon.stop()
        return [made, refused.json]

    shown = json.dumps(await asyncio.to_thread(use)) + "\n".join(gateway.daemon.lines)
    files = [path for path in gateway.daemon.home.rglob("*") if path.is_file()]
    assert any(path.name.startswith("gateway") and path.suffix == ".db" for path in files) and len(files) > 5
    holding = [path for path in files if secret[3:-4].encode() in path.read_bytes()]
    assert holding == [] and secret[3:-4] not in shown
