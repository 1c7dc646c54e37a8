"""Each provider's paths: which APIs a model of his speaks, and the target of a call, as the proxy takes it. Pure.

Leaves out credentials and bodies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote

from llm_proxy.gateway.base_urls import BadBaseUrl, Base, base_of, to_allow
from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sending.client import Unreachable
from llm_proxy.wire import aws_regions, bedrock_paths

_OPENAI: Final = {
    "chat": "/chat/completions",
    "responses": "/responses",
    "embeddings": "/embeddings",
    "completions": "/completions",
}
# Provider -> API -> path, and the one of a stream where that is another. `{}` is the model.
PATHS: Final[dict[Provider, dict[str, tuple[str, ...]]]] = {
    Provider.OPENAI: {api: (f"/v1{path}",) for api, path in _OPENAI.items()},
    Provider.COMPATIBLE: {api: (path,) for api, path in _OPENAI.items() if api != "responses"},
    Provider.ANTHROPIC: {"anthropic": ("/v1/messages",), "count_tokens": ("/v1/messages/count_tokens",)},
    Provider.GEMINI: {
        "gemini": ("/v1beta/models/{}:generateContent", "/v1beta/models/{}:streamGenerateContent?alt=sse"),
        "embed_gemini": ("/v1beta/models/{}:batchEmbedContents",),
    },
    Provider.BEDROCK: {
        "bedrock": ("/model/{}/converse", "/model/{}/converse-stream"),
        "anthropic": ("/model/{}/invoke", "/model/{}/invoke-with-response-stream"),
    },
}
_LISTS: Final = {
    Provider.OPENAI: "/v1/models",
    Provider.COMPATIBLE: "/models",
    Provider.ANTHROPIC: "/v1/models",
    Provider.GEMINI: "/v1beta/models",
    Provider.BEDROCK: "",  # there are two of them
}
# How the proxy calls them in its paths.
_NAMES: Final = {provider: provider.value for provider in Provider} | {Provider.COMPATIBLE: "openai"}

# OpenAI's models by name -> what they speak, the preferred API first; the first row that fits counts. Models that
# reason keep their thoughts from one turn to the next in the Responses API only.
_BY_MODEL: Final = tuple(
    (re.compile(pattern), apis)
    for pattern, apis in (
        (r"text-embedding-.*", ("embeddings",)),
        (r"gpt-3\.5-turbo-instruct.*|babbage-002|davinci-002", ("completions",)),
        (r"(?:o\d|gpt-\d[\d.]*)-pro.*|.*deep-research.*|.*codex.*|computer-use.*", ("responses",)),
        (r"gpt-audio.*|gpt-4o.*-(?:audio|search)-.*|gpt-\d[\d.]*-search.*", ("chat",)),
        (r"o\d.*|gpt-(?:[5-9]|\d\d)(?!.*-chat).*", ("responses", "chat")),
        (r".*", ("chat", "responses", "embeddings", "completions")),
    )
)
_ANTHROPICS = re.compile(r"(?:.*[./])?anthropic\..*")


class Address(NamedTuple):
    """`target` is what the proxy is asked for; `host` and `path`, its query included, are the provider's own."""

    target: str
    host: str
    path: str


@lru_cache(maxsize=1024)
def speaks(provider: Provider, model: str) -> tuple[str, ...]:
    """The APIs, by their names here, that a model is spoken to in; the first is the one to translate to."""
    if provider is Provider.OPENAI:
        return next(apis for pattern, apis in _BY_MODEL if pattern.fullmatch(model))
    if provider is Provider.BEDROCK and _ANTHROPICS.fullmatch(model) is None:
        return ("bedrock",)
    return tuple(PATHS[provider])


class Addresses:
    """`bases`: (provider, URL) in the place of the provider's own; `allow`: what the proxy allows."""

    def __init__(self, bases: Iterable[tuple[str, str]], allow: Iterable[str]) -> None:
        self._bases = dict(bases)
        parted = (entry.rpartition("://") for entry in allow)
        self._schemes = {host.rstrip("/").lower(): scheme or "https" for scheme, _, host in parted}
        self.call = lru_cache(maxsize=1024)(self._call)

    def _call(self, provider: Provider, base_url: str, region: str, model: str, api: str, stream: bool) -> Address:
        """Where a call goes. Raises Unreachable, Refusal 400 for a model that no path can name, and KeyError for an API
        that the provider does not speak.
        """
        path = PATHS[provider][api][-1 if stream else 0]
        if "{}" in path:
            path = path.format(_encoded(provider, model))
        if provider is Provider.BEDROCK:
            try:
                path = bedrock_paths.read(b"POST", path.encode()).target.decode()
            except bedrock_paths.NotSigned as error:
                raise _no_model(error.message) from None
        return self._at(provider, self._base(provider, base_url, region), path)

    def models(self, provider: Provider, base_url: str, region: str, rest: str) -> Address:
        """Where a provider's models are listed; `rest` stands behind the path. Raises Unreachable."""
        base = self._base(provider, base_url, region)
        if provider is Provider.BEDROCK and base.authority == _runtime_host(region):
            base = base._replace(authority=aws_regions.control_host(region))
        return self._at(provider, base, _LISTS[provider] + rest)

    def _base(self, provider: Provider, base_url: str, region: str) -> Base:
        try:
            base = base_of(provider, base_url, region, self._bases.items())
        except BadBaseUrl as error:
            raise Unreachable("bad_base_url", str(error)) from None
        except KeyError:
            words = f"a key of {provider.value} needs a base URL, or a region that AWS is known to have, not {region!r}"
            raise Unreachable("bad_base_url", words) from None
        # The proxy's paths name no scheme: it takes the listed one, else https. A key is not sent by another.
        listed = self._schemes.get(base.authority)
        if base_url and base.scheme != (listed or "https"):
            words = f"{base} may not be called until the operator lists it: {to_allow(base)}"
            raise Unreachable("upstream_not_allowed", words)
        return base

    def _at(self, provider: Provider, base: Base, path: str) -> Address:
        path = base.prefix + path
        return Address(f"/{_NAMES[provider]}/{base.authority}{path}", base.authority, path)


def _runtime_host(region: str) -> str:
    return aws_regions.runtime_host(region) if region in aws_regions.REGIONS else ""


def _encoded(provider: Provider, model: str) -> str:
    """As one segment of a path. Raises Refusal 400 for what would be none, or another one."""
    name = model.removeprefix("models/") if provider is Provider.GEMINI else model
    if not name.strip("."):
        raise _no_model(f"{model[:100]!r} is no name of a model")
    return quote(name, safe="-_.~", errors="replace")


def _no_model(words: str) -> Refusal:
    """Whoever calls chooses the name, so it says nothing of the provider."""
    return Refusal(400, "invalid_request", f"model: {words}", param="model")
