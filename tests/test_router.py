"""Where a request goes: a pure table of targets and fields, and the words for those that go nowhere."""

from __future__ import annotations

import base64
import dataclasses

import pytest

from llm_proxy.proxy.authority import Allowed, BadAuthority
from llm_proxy.proxy.router import NoRoute, Policy, Route, Router
from llm_proxy.wire.head import parse_request

ANTHROPIC = "https://api.anthropic.com"
OPENAI = "https://api.openai.com"
GEMINI = "https://generativelanguage.googleapis.com"
CHATGPT = "https://chatgpt.com"

JWT = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"x"}', b'{"sub":1}', b"sig"))
LOGIN = f"Authorization: Bearer {JWT}"
ACCOUNT = "ChatGPT-Account-ID: 12ab"
CLAUDE = "anthropic-version: 2023-06-01"
GOOGLE = "x-goog-api-key: k"
KEY = "Authorization: Bearer sk-proj-a.b.c"


def route(target: str, *fields: str, router: Router | None = None) -> Route:
    """The route of a GET request."""
    lines = [f"GET {target} HTTP/1.1", "Host: 127.0.0.1", *fields]
    head = parse_request(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
    return (router or Router(allow=Allowed())).route(head, head.target)


def gone_to(found: Route) -> str:
    """Scheme, host and target in one string."""
    return f"{found.scheme}://{found.authority}{found.target.decode('latin-1')}"


PATHS = {
    # provider paths
    "/anthropic/api.anthropic.com/v1/messages": ("anthropic", f"{ANTHROPIC}/v1/messages"),
    "/anthropic/api.anthropic.com/v1/messages?beta=true": ("anthropic", f"{ANTHROPIC}/v1/messages?beta=true"),
    "/claude/api.anthropic.com/v1/messages": ("anthropic", f"{ANTHROPIC}/v1/messages"),
    "/google/generativelanguage.googleapis.com/v1beta/models/g:generateContent": (
        "gemini",
        f"{GEMINI}/v1beta/models/g:generateContent",
    ),
    "/gemini/generativelanguage.googleapis.com/v1/models/g:generateContent": (
        "gemini",
        f"{GEMINI}/v1/models/g:generateContent",
    ),
    "/openai/api.openai.com/v1/chat/completions": ("openai", f"{OPENAI}/v1/chat/completions"),
    "/openai/API.OpenAI.com/v1/models": ("openai", f"{OPENAI}/v1/models"),
    "/openai/api.openai.com:443/v1/models": ("openai", f"{OPENAI}:443/v1/models"),
    "/openai/my.example.org:8443/v1/models": ("openai", "https://my.example.org:8443/v1/models"),
    "/openai/127.0.0.1:8000/v1/models": ("openai", "http://127.0.0.1:8000/v1/models"),
    "/openai/localhost:8000/v1/models": ("openai", "http://localhost:8000/v1/models"),
    "/openai/LOCALHOST/v1/models": ("openai", "http://localhost/v1/models"),
    "/openai/[::1]:8000/v1/models": ("openai", "http://[::1]:8000/v1/models"),
    "/openai/localhost.evil.com/v1/models": ("openai", "https://localhost.evil.com/v1/models"),
    "/openai/192.168.1.5:8000/v1/models": ("openai", "https://192.168.1.5:8000/v1/models"),  # the dialler denies it
    # what is behind the host passes as it was written
    "/openai/h.example/": ("openai", "https://h.example/"),
    "/openai/h.example": ("openai", "https://h.example/"),
    "/openai/h.example?a=/b": ("openai", "https://h.example/?a=/b"),
    "/openai/h.example/?": ("openai", "https://h.example/?"),
    "/openai/h.example//v1//x/": ("openai", "https://h.example//v1//x/"),
    "/openai/h.example/a/../b/./c": ("openai", "https://h.example/a/../b/./c"),
    "/openai/h.example/%2e%2e/a%2Fb%3fc/%41": ("openai", "https://h.example/%2e%2e/a%2Fb%3fc/%41"),
    "/openai/h.example/a\\b;c=d@e": ("openai", "https://h.example/a\\b;c=d@e"),
    "/openai/h.example/caf\xe9": ("openai", "https://h.example/caf\xe9"),
    "/openai/h.example/openai/other.example/x": ("openai", "https://h.example/openai/other.example/x"),
    "/openai/h.example/v1/x?u=http://127.0.0.1/": ("openai", "https://h.example/v1/x?u=http://127.0.0.1/"),
    # a base URL that ends at the host
    "/anthropic/api.anthropic.com/messages": ("anthropic", f"{ANTHROPIC}/v1/messages"),
    "/anthropic/api.anthropic.com/messages/count_tokens?x": ("anthropic", f"{ANTHROPIC}/v1/messages/count_tokens?x"),
    "/openai/api.openai.com/responses": ("openai", f"{OPENAI}/v1/responses"),
    "/openai/api.openai.com/chat/completions": ("openai", f"{OPENAI}/v1/chat/completions"),
    "/openai/h.example/chat/completions": ("openai", "https://h.example/chat/completions"),
    "/anthropic/api.anthropic.com/messages_x": ("anthropic", f"{ANTHROPIC}/messages_x"),
    "/anthropic/api.anthropic.com/api/hello": ("anthropic", f"{ANTHROPIC}/api/hello"),
    # bare paths
    "/v1/messages": ("anthropic", f"{ANTHROPIC}/v1/messages"),
    "/v1/messages?beta=true": ("anthropic", f"{ANTHROPIC}/v1/messages?beta=true"),
    "/v1/messages/count_tokens": ("anthropic", f"{ANTHROPIC}/v1/messages/count_tokens"),
    "/v1/messages/batches/x%3Ay": ("anthropic", f"{ANTHROPIC}/v1/messages/batches/x%3Ay"),
    "/v1/complete": ("anthropic", f"{ANTHROPIC}/v1/complete"),
    "/messages": ("anthropic", f"{ANTHROPIC}/v1/messages"),
    "/messages?beta=true": ("anthropic", f"{ANTHROPIC}/v1/messages?beta=true"),
    "/messages/count_tokens": ("anthropic", f"{ANTHROPIC}/v1/messages/count_tokens"),
    "/v1/completions": ("openai", f"{OPENAI}/v1/completions"),
    "/v1/chat/completions": ("openai", f"{OPENAI}/v1/chat/completions"),
    "/chat/completions": ("openai", f"{OPENAI}/v1/chat/completions"),
    "/chat/completions?x=1": ("openai", f"{OPENAI}/v1/chat/completions?x=1"),
    "/responses": ("openai", f"{OPENAI}/v1/responses"),
    "/responses/resp_1/cancel": ("openai", f"{OPENAI}/v1/responses/resp_1/cancel"),
    "/v1/responses": ("openai", f"{OPENAI}/v1/responses"),
    "/embeddings": ("openai", f"{OPENAI}/v1/embeddings"),
    "/models": ("openai", f"{OPENAI}/v1/models"),
    "/v1/models": ("openai", f"{OPENAI}/v1/models"),
    "/v1/files": ("openai", f"{OPENAI}/v1/files"),
    "/v1/": ("openai", f"{OPENAI}/v1/"),
    # Gemini by its verbs; OpenAI's fine-tuned models have colons in their names
    "/v1beta/models": ("gemini", f"{GEMINI}/v1beta/models"),
    "/v1alpha/models/g:streamGenerateContent?alt=sse": ("gemini", f"{GEMINI}/v1alpha/models/g:streamGenerateContent?alt=sse"),
    "/v1/models/gemini-3.1-pro:generateContent": ("gemini", f"{GEMINI}/v1/models/gemini-3.1-pro:generateContent"),
    "/v1/models/g:streamGenerateContent?alt=sse": ("gemini", f"{GEMINI}/v1/models/g:streamGenerateContent?alt=sse"),
    "/v1/models/g:countTokens": ("gemini", f"{GEMINI}/v1/models/g:countTokens"),
    "/v1/models/g:embedContent": ("gemini", f"{GEMINI}/v1/models/g:embedContent"),
    "/v1/models/g:batchEmbedContents": ("gemini", f"{GEMINI}/v1/models/g:batchEmbedContents"),
    "/v1/tunedModels/t:generateContent": ("gemini", f"{GEMINI}/v1/tunedModels/t:generateContent"),
    "/v1/models/ft:gpt-4o:org::abcDEF": ("openai", f"{OPENAI}/v1/models/ft:gpt-4o:org::abcDEF"),
    "/v1/models/ft:babbage": ("openai", f"{OPENAI}/v1/models/ft:babbage"),
    "/v1/fine_tuning/jobs/ft:x": ("openai", f"{OPENAI}/v1/fine_tuning/jobs/ft:x"),
    "/v1/chat/completions?x=a:generateContent": ("openai", f"{OPENAI}/v1/chat/completions?x=a:generateContent"),
    # Codex with a ChatGPT login
    "/backend-api/codex/responses": ("openai", f"{CHATGPT}/backend-api/codex/responses"),
    "/backend-api/codex/models?client_version=1": ("openai", f"{CHATGPT}/backend-api/codex/models?client_version=1"),
    "/openai/api.openai.com/backend-api/codex/responses": ("openai", f"{CHATGPT}/backend-api/codex/responses"),
    "/openai/chatgpt.com/backend-api/codex/responses": ("openai", f"{CHATGPT}/backend-api/codex/responses"),
}  # fmt: skip


@pytest.mark.parametrize("target", PATHS)
def test_a_target_has_its_route(target: str) -> None:
    """Provider and upstream by the path alone; Host is the upstream's, and nothing else is rewritten."""
    provider, url = PATHS[target]
    found = route(target)
    assert (found.provider, gone_to(found)) == (provider, url)
    assert found.host == str(found.authority).encode()
    assert (found.key.scheme, found.key.host) == (found.scheme, found.authority.host)
    assert found.key.port == (found.authority.port or {"https": 443, "http": 80}[found.scheme])


FIELDS = {
    ("/v1/models", CLAUDE): f"{ANTHROPIC}/v1/models",
    ("/v1/files", CLAUDE): f"{ANTHROPIC}/v1/files",
    ("/v1/models", GOOGLE): f"{GEMINI}/v1/models",
    ("/v1/models", KEY): f"{OPENAI}/v1/models",
    ("/v1/models", "x-api-key: k"): f"{OPENAI}/v1/models",
    ("/v1/responses", ACCOUNT, LOGIN): f"{CHATGPT}/backend-api/codex/responses",
    ("/v1/responses", "chatgpt-account-id: 1"): f"{CHATGPT}/backend-api/codex/responses",
    ("/v1/responses", LOGIN): f"{CHATGPT}/backend-api/codex/responses",
    ("/v1/responses", LOGIN.replace("Bearer", "bearer")): f"{CHATGPT}/backend-api/codex/responses",
    ("/responses", LOGIN): f"{CHATGPT}/backend-api/codex/responses",
    ("/v1/v1/responses", LOGIN): f"{CHATGPT}/backend-api/codex/v1/responses",
    ("/models?client_version=1", LOGIN): f"{CHATGPT}/backend-api/codex/models?client_version=1",
    ("/openai/api.openai.com/v1/responses", LOGIN): f"{CHATGPT}/backend-api/codex/responses",
    ("/openai/API.openai.com/v1/responses", LOGIN): f"{CHATGPT}/backend-api/codex/responses",
    ("/openai/h.example/v1/responses", LOGIN): "https://h.example/v1/responses",
    ("/v1/responses", KEY): f"{OPENAI}/v1/responses",
    ("/v1/responses", "ChatGPT-Account-ID:"): f"{OPENAI}/v1/responses",
    ("/v1/responses", "Authorization: Bearer a.b"): f"{OPENAI}/v1/responses",
    ("/v1/responses", "Authorization: Bearer a..c"): f"{OPENAI}/v1/responses",
    ("/v1/responses", "Authorization: Bearer a.b.c.d"): f"{OPENAI}/v1/responses",
    ("/v1/responses", f"Authorization: Basic {JWT}"): f"{OPENAI}/v1/responses",
    ("/v1/responses", f"x-api-key: {JWT}"): f"{OPENAI}/v1/responses",
    ("/v1/messages", LOGIN): f"{ANTHROPIC}/v1/messages",  # Claude's own tokens are none of OpenAI's business
    ("/v1/messages", ACCOUNT): f"{ANTHROPIC}/v1/messages",
    ("/v1beta/models", LOGIN): f"{GEMINI}/v1beta/models",
}


@pytest.mark.parametrize("asked", FIELDS)
def test_fields_decide_where_the_path_does_not(asked: tuple[str, ...]) -> None:
    """Model lists by the provider's own field, OpenAI calls by the kind of login."""
    target, *fields = asked
    assert gone_to(route(target, *fields)) == FIELDS[asked]


NOWHERE = (
    "/",
    "/?x",
    "/v1",
    "/favicon.ico",
    "/anthropic",
    "/anthropic/",
    "/anthropic/?x=1",
    "/anthropic//v1/messages",
    "//v1/messages",
    "//api.anthropic.com/v1/messages",
    "/Anthropic/api.anthropic.com/v1/messages",
    "/bedrock/api.anthropic.com/v1/messages",
    "/%61nthropic/api.anthropic.com/v1/messages",
    "/openai/%61pi.openai.com/v1/models",
    "/openai/api.openai.com%2f/v1",
    "/openai/api.openai.com./v1",
    "/openai/a@b/v1",
    "/openai/a:b@c/v1",
    "/openai/a\\b/v1",
    "/openai/127.1/v1",
    "/openai/caf\xe9.com/v1",
    "/openai/http:/h.example/v1",
    "/openai/http://h.example/v1",
    "/openai/h.example:0/v1",
    "/openai/../v1",
    "/openai/-x/v1",
    "/messages_x",
    "/v2/messages",
    "/backend-api/codex",
    "/backend-api/me",
)


@pytest.mark.parametrize("target", NOWHERE)
def test_what_has_no_route_is_told_how_to_write_one(target: str) -> None:
    """404 with an example, never a guess."""
    with pytest.raises(NoRoute) as caught:
        route(target)
    assert caught.value.status == 404
    assert "/anthropic/api.anthropic.com/v1/messages" in caught.value.message


def test_the_allow_list_decides_the_scheme() -> None:
    """A listed host has the scheme it is listed with and is marked so; its neighbours are not."""
    router = Router(
        allow=Allowed(["http://192.168.1.5:8000", "https://localhost:8443", "Gpu.lan", "http://[fd00::1]:80/"])
    )
    for named, scheme, listed in (
        ("192.168.1.5:8000", "http", True),
        ("192.168.1.5:8001", "https", False),
        ("192.168.1.5", "https", False),
        ("localhost:8443", "https", True),
        ("localhost:8444", "http", False),
        ("gpu.lan", "https", True),
        ("GPU.lan", "https", True),
        ("gpu.lan:443", "https", False),
        ("[fd00::1]:80", "http", True),
        ("x.gpu.lan", "https", False),
    ):
        found = route(f"/openai/{named}/v1/models", router=router)
        assert (found.scheme, found.listed) == (scheme, listed), named


@pytest.mark.parametrize("entry", ["ftp://h", "://h", "http://h/path", "http://a@h", "h:0", "127.1", "", "http://"])
def test_a_bad_allow_list_is_refused_at_the_start(entry: str) -> None:
    """An entry that could mean something else than it says."""
    with pytest.raises(BadAuthority):
        Allowed([entry])


def test_the_known_policy_serves_providers_and_listed_hosts_only() -> None:
    """Everything else is refused with the line that would allow it."""
    router = Router(allow=Allowed(["http://127.0.0.1:11434"]), policy=Policy.KNOWN)
    for target in (
        "/v1/messages",
        "/openai/api.openai.com/v1/models",
        "/backend-api/codex/models",
        "/gemini/generativelanguage.googleapis.com/v1beta/models",
        "/openai/127.0.0.1:11434/v1/models",
    ):
        route(target, router=router)
    for named in (
        "h.example",
        "127.0.0.1:8000",
        "localhost",
        "api.openai.com:8443",
        "api.openai.com.evil.com",
        "xapi.openai.com",
    ):
        with pytest.raises(NoRoute) as caught:
            route(f"/openai/{named}/v1/models", router=router)
        assert caught.value.status == 403
        assert f'allow = ["https://{named}"]' in caught.value.message


def test_pass_through_can_be_switched_off() -> None:
    """On an address that others can reach, neither provider paths nor bare ones are served unless a setting says so."""
    router = Router(allow=Allowed(), enabled=False)
    for target in ("/v1/messages", "/anthropic/api.anthropic.com/v1/messages", "/backend-api/codex/responses", "/"):
        with pytest.raises(NoRoute) as caught:
            route(target, router=router)
        assert caught.value.status == 404 and "remote_routes" in caught.value.message


def test_routes_are_remembered_by_everything_they_depend_on() -> None:
    """The same target with another login is another route; the memory has an end."""
    router = Router(allow=Allowed())
    assert route("/v1/models", router=router) is route("/v1/models", "X-Other: 1", router=router)
    seen = {
        gone_to(route("/v1/models", *fields, router=router))
        for fields in ((), (CLAUDE,), (GOOGLE,), (LOGIN,), (ACCOUNT,))
    }
    assert len(seen) == 4
    for number in range(2 * Router.REMEMBERED):
        route(f"/v1/files/{number}", router=router)
    assert len(router._known) <= Router.REMEMBERED


def test_a_secret_in_the_query_is_masked_for_the_record_alone() -> None:
    """The upstream gets the key, the journal does not."""
    found = route("/v1beta/models?key=AIzaSECRET&alt=sse")
    assert found.target == b"/v1beta/models?key=AIzaSECRET&alt=sse"
    assert b"AIzaSECRET" not in found.masked and found.masked.endswith(b"&alt=sse")
    assert b"AIzaSECRET" not in found.facts
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.provider = "x"  # type: ignore[misc]
