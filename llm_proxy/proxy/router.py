"""Where a request goes, from its head alone. Pure: a `Route`, or `NoRoute` with words for the caller.

Order: the gateway's pages; the rest of `/llm-proxy/…`, which is the explorer's; everything else to a single target,
where one is configured. Without one: the gateway's paths and calls of named models, where there are any; Bedrock's
paths, then provider paths `/{provider}/{host}/{path}`, then bare API paths to their provider's own host, or the one
configured in its place. What this process answers itself (`/health`, `/metrics`) is the server's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from llm_proxy.journal.frames import route_facts
from llm_proxy.proxy.authority import Allowed, Authority, BadAuthority, Base, parse_authority
from llm_proxy.wire import bedrock_paths
from llm_proxy.wire.head import RequestHead, Role
from llm_proxy.wire.hop import Instead
from llm_proxy.wire.masking import masked_target

if TYPE_CHECKING:
    from llm_proxy.proxy.bedrock import BedrockDoor
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.explorer import ExplorerDoor
    from llm_proxy.proxy.gateway import GatewayDoor
    from llm_proxy.proxy.models import ModelsDoor
    from llm_proxy.proxy.relay import Relay
    from llm_proxy.proxy.remote import Remote
    from llm_proxy.proxy.requests import Request
    from llm_proxy.proxy.target import TargetDoor

HOW = (
    "write /{provider}/{host}/{path}, as in /anthropic/api.anthropic.com/v1/messages or "
    "/openai/api.openai.com/v1/chat/completions; or a bare API path such as /v1/messages, /v1/chat/completions, "
    "/v1/responses; provider is one of anthropic, openai, gemini"
)

BEDROCK_OFF = (
    "Bedrock is not switched on; start llm-proxy with BEDROCK_REGION=us-west-2 in its environment, or set region "
    "under [bedrock] in its configuration"
)

# Names in paths, and the host each provider is reached at when the path names none.
PROVIDERS = {
    "anthropic": "anthropic",
    "claude": "anthropic",
    "openai": "openai",
    "gemini": "gemini",
    "google": "gemini",
}
HOSTS = {
    "anthropic": "api.anthropic.com",
    "openai": "api.openai.com",
    "gemini": "generativelanguage.googleapis.com",
}
CHATGPT = "chatgpt.com"
CODEX = b"/backend-api/codex"

# For clients that can only set a base URL: a secret of ours before a door's path.
SECRET_PATH = re.compile(rb"/secret/([^/?]+)(/[^?].*)", re.DOTALL)
_BEHIND_HOST = re.compile(rb"[/?]")
# Clients whose base URL ends at the host post to these without /v1; at the providers' own hosts no such path exists.
_NEEDS_V1 = {
    "api.anthropic.com": re.compile(rb"/messages(?:[/?].*)?"),
    "api.openai.com": re.compile(rb"/(?:chat/completions|completions|responses|embeddings|models)(?:[/?].*)?"),
}
# Under /v1 only Google's own verbs are Google's: OpenAI's fine-tuned models have colons in their names too.
# Logins travel here, in bodies that nobody masks: such calls are recorded without them.
CONFIDENTIAL = re.compile(rb"(?i)[^?]*/(?:oauth2?|tokens?)(?:[/?].*)?")
_GEMINI_PATHS = tuple(
    b"%b/%b/" % (before, version) for before in (b"", b"/upload") for version in (b"v1beta", b"v1alpha")
)
_GEMINI_KEY = re.compile(rb"\?(?:[^#]*&)?key=")  # OpenAI and Anthropic take keys in fields only
# What a gateway gave out begins so, this machine's or another's: its keys, its sessions' tokens ({"iss":"llm-proxy"),
# and the keys that TokenTracer gave out before it ({"exp":…,"iat":…,"scope":"api_key").
_GATEWAY_TOKEN = (
    rb"(?:llmp_|eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9\."
    rb"(?:eyJpc3MiOiJsbG0tcHJveHki|eyJleHAi[\w-]{40}c2NvcGUiOiJhcGlfa2V5))"
)
_GATEWAY_KEY = re.compile(rb"(?i:bearer[ \t]+)?" + _GATEWAY_TOKEN)
_GATEWAY_KEY_IN_QUERY = re.compile(rb"[?&][^=&]*=" + _GATEWAY_TOKEN)
_GEMINI_CALL = re.compile(
    rb"/v1/[A-Za-z]+/[^/:?]+:(?:(?:stream|batch)?[Gg]enerateContent|countTokens|(?:asyncBatchE|batchE|e)mbedContents?"
    rb"|predict(?:LongRunning)?)(?:\?.*)?"
)


class Policy(StrEnum):
    """Which hosts may be named in a path: any public one, or the providers' own and those listed."""

    PUBLIC = "public"
    KNOWN = "known"


class PoolKey(NamedTuple):
    """What must be equal for a connection to be used again."""

    scheme: str
    host: str
    port: int


class Door(Protocol):
    """What stands before upstreams that are called with credentials of ours."""

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Why this caller is not served; empty where it is."""

    def relay(self, core: Core, client: ClientConnection, request: Request) -> Relay:
        """The exchange."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where one request goes. `target` is the raw target sent upstream, `masked` the same for the record.

    `host` is the Host value sent; `listed`: the operator has allowed this host, so its addresses are not judged;
    `facts` is the route's part of the journal's OPEN frame; `remembered`: whether the like of its head comes again;
    `confidential`: its bodies are never recorded. `door`: who may call is asked there; `secret` is what the path names
    for it, and stands in no record. `instead`: fields of the configuration that are sent. `patience`: seconds of
    silence that end it, 0 for the limits of all.
    """

    provider: str
    scheme: str
    authority: Authority
    target: bytes
    masked: bytes
    host: bytes
    key: PoolKey
    listed: bool
    confidential: bool
    why: str
    facts: bytes
    door: Door | None = None
    secret: bytes = field(default=b"", repr=False)
    remembered: bool = True
    instead: Instead | None = field(default=None, repr=False)
    patience: float = 0.0

    @classmethod
    def at(
        cls,
        base: Base,
        target: bytes,
        *,
        provider: str,
        why: str,
        asked: bytes | None = None,
        listed: bool = True,
        confidential: bool = False,
        door: Door | None = None,
        secret: bytes = b"",
        remembered: bool = True,
        instead: Instead | None = None,
        patience: float = 0.0,
    ) -> Route:
        """To `target` at an upstream, whose own prefix is in it already. `asked`: recorded in the place of it.

        What configuration names is `listed`: a LAN's or a VPC endpoint's addresses are private.
        """
        return cls(
            provider=provider,
            scheme=base.scheme,
            authority=base.authority,
            target=target,
            masked=masked_target(target if asked is None else asked),
            host=str(base.authority).encode(),
            key=PoolKey(base.scheme, base.authority.host, base.port),
            listed=listed,
            confidential=confidential,
            why=why,
            facts=route_facts(provider, base.scheme, str(base.authority), why),
            door=door,
            secret=secret,
            remembered=remembered,
            instead=instead,
            patience=patience,
        )


class NoRoute(Exception):
    """No route: `status` and words for the caller, in the shape of `provider`'s errors."""

    def __init__(self, status: int, code: str, message: str, provider: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.provider = provider


class Router:
    """Remembers the routes it has made: targets repeat, and a head is routed on the hot path."""

    REMEMBERED = 512
    known_hosts = frozenset((*HOSTS.values(), CHATGPT))  # the providers' own

    def __init__(
        self,
        *,
        allow: Allowed,
        policy: Policy = Policy.PUBLIC,
        enabled: bool = True,
        bedrock: BedrockDoor | None = None,
        target: TargetDoor | None = None,
        models: ModelsDoor | None = None,
        bases: Mapping[str, Base] | None = None,
        remote: Remote | None = None,
    ) -> None:
        """`bases`: where bare API paths of a provider go instead of its own host."""
        self.explorer: ExplorerDoor | None = None
        self.gateway: GatewayDoor | None = None
        self._target = target
        self._models = models
        self._bases = bases or {}
        self._allow = allow
        self._bedrock = bedrock
        self._policy = policy
        self._enabled = enabled
        self._remote = remote
        self._known: dict[tuple[bytes, ...], Route] = {}

    def route(self, head: RequestHead, target: bytes) -> Route:
        """The route of a request for an origin-form target. Raises NoRoute."""
        screen = self.gateway is not None and self.gateway.shows(target)
        if self.explorer is not None and not screen and self.explorer.takes(head, target):
            return self.explorer.route(head, target)
        if self.gateway is not None and (route := self.gateway.route(head, target)) is not None:
            return route
        key = (head.method, target, *(field.line for _, field in head.special if field.role == Role.IDENTITY))
        known = self._known.get(key)
        if known is None:
            known = self._decide(head, target)
            if len(self._known) >= self.REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return known

    def _decide(self, head: RequestHead, target: bytes) -> Route:
        if self._target is not None:
            return self._target.route(head, target)
        if self._models is not None and (route := self._models.route(head, target)) is not None:
            return route
        opened = SECRET_PATH.fullmatch(target)
        secret, inner = (unquote_to_bytes(opened[1]), opened[2]) if opened is not None else (b"", target)
        if bedrock_paths.begins_here(inner):
            if self._bedrock is None:
                raise NoRoute(503, "bedrock_off", BEDROCK_OFF, "bedrock")
            return self._bedrock.route(head, inner, secret)
        if not self._enabled:
            raise NoRoute(
                404,
                "not_served",
                "other machines can reach this port, and it has no token: set listen.token (LLM_PROXY_LISTEN_TOKEN), "
                "which callers then bring; or listen.remote_routes, which serves whoever comes",
            )
        if self._remote is None:
            return self._pass_through(head, target)
        target, secret, instead = self._remote.without(head, target)
        door = self._remote if self._remote.asked else None
        return replace(self._pass_through(head, target), door=door, secret=secret, instead=instead)

    def _pass_through(self, head: RequestHead, target: bytes) -> Route:
        provider, named, path = named_in(target, PROVIDERS)
        if provider is not None:
            return self._as_meant(head, provider, named, path, "provider path")
        provider = bare_provider(head, target)
        if provider is None:
            raise NoRoute(404, "no_route", f"no route for this path: {HOW}")
        base = self._bases.get(provider)
        if base is not None:
            return self._at_base(provider, base, target)
        return self._as_meant(head, provider, HOSTS[provider], target, "bare path")

    def _at_base(self, provider: str, base: Base, target: bytes) -> Route:
        """A bare API path, at the upstream that is configured in the place of the provider's own."""
        missing = _NEEDS_V1.get(HOSTS[provider])
        if missing is not None and missing.fullmatch(target):
            target = b"/v1" + target
        target = base.prefix + target
        confidential = CONFIDENTIAL.fullmatch(target) is not None
        return Route.at(base, target, provider=provider, why="bare path", confidential=confidential)

    def _as_meant(self, head: RequestHead, provider: str, named: str, target: bytes, why: str) -> Route:
        """To a provider's host, with what its clients leave out put in."""
        if target.startswith(CODEX + b"/") and named == HOSTS["openai"]:
            named, why = CHATGPT, "codex path"
        elif provider == "openai" and named == HOSTS["openai"] and _is_chatgpt_login(head):
            named, why = CHATGPT, "chatgpt login"
            target = CODEX + (target[3:] if target.startswith(b"/v1/") else target)
        authority = authority_of(named)
        if str(authority) in self.known_hosts and brings_gateway_key(head, target):
            message = f"the key is a gateway's, which {authority} must not see, and no gateway is switched on here"
            raise NoRoute(404, "not_served", message, provider)
        missing = _NEEDS_V1.get(authority.host)
        if missing is not None and missing.fullmatch(target):
            target = b"/v1" + target
        return self._towards(provider, authority, target, why)

    def _towards(
        self,
        provider: str,
        authority: Authority,
        target: bytes,
        why: str,
        *,
        instead: Instead | None = None,
        remembered: bool = True,
    ) -> Route:
        """To a host that is named in a path, as far as the policy lets it. Raises NoRoute."""
        listed = self._allow.scheme(authority)
        if listed is None and self._policy is Policy.KNOWN and str(authority) not in self.known_hosts:
            message = (
                f'{authority} is not a known provider host; allow = ["https://{authority}"] under [upstreams] adds it'
            )
            raise NoRoute(403, "upstream_not_allowed", message)
        scheme = listed or ("http" if authority.is_loopback else "https")
        return Route.at(
            Base(scheme, authority),
            target,
            provider=provider,
            why=why,
            listed=listed is not None,
            confidential=CONFIDENTIAL.fullmatch(target) is not None,
            remembered=remembered,
            instead=instead,
        )


def named_in(target: bytes, providers: Mapping[str, str]) -> tuple[str | None, str, bytes]:
    """Provider, host and path of `/{provider}/{host}/{path}`; the provider is None where the target is none."""
    first, _, rest = target[1:].partition(b"/")
    provider = providers.get(first.decode("latin-1"))
    if provider is None or not rest:
        return None, "", b""
    named = _BEHIND_HOST.split(rest, maxsplit=1)[0]
    path = rest[len(named) :]
    return provider, named.decode("latin-1").lower(), path if path.startswith(b"/") else b"/" + path


def authority_of(named: str) -> Authority:
    """Raises NoRoute."""
    try:
        return parse_authority(named)
    except BadAuthority as error:
        raise NoRoute(404, "bad_upstream", f"upstream host: {error}; {HOW}") from None


def bare_provider(head: RequestHead, target: bytes) -> str | None:
    """The provider a bare API path is for: by the path where it tells, else by the headers, else OpenAI."""
    path = target.partition(b"?")[0]
    if path.startswith((b"/v1/messages", b"/v1/complete")) and path[12:13] in (b"", b"/"):
        return "anthropic"
    if path == b"/messages" or path.startswith(b"/messages/"):
        return "anthropic"
    if path.startswith(_GEMINI_PATHS) or _GEMINI_CALL.fullmatch(target):
        return "gemini"
    if path.startswith(CODEX + b"/") or _NEEDS_V1["api.openai.com"].fullmatch(path):
        return "openai"
    if not path.startswith(b"/v1/"):
        return None
    names = {field.name for _, field in head.special if field.role == Role.IDENTITY}
    if b"anthropic-version" in names:
        return "anthropic"
    return "gemini" if b"x-goog-api-key" in names or _GEMINI_KEY.search(target) else "openai"


def brings_gateway_key(head: RequestHead, target: bytes) -> bool:
    """Such a key, or a session's token, is for no provider to see."""
    return _GATEWAY_KEY_IN_QUERY.search(target) is not None or any(
        field.role == Role.IDENTITY and _GATEWAY_KEY.match(field.value) for _, field in head.special
    )


def _is_chatgpt_login(head: RequestHead) -> bool:
    """A ChatGPT login instead of an API key: its account header, or a bearer token that is a JWT."""
    if head.get(b"chatgpt-account-id"):
        return True
    scheme, _, token = (head.get(b"authorization") or b"").partition(b" ")
    if scheme.lower() != b"bearer" or token.startswith(b"sk-"):
        return False
    parts = token.split(b".")
    return len(parts) == 3 and all(parts)
