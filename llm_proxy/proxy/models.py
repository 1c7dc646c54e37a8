"""The door of named models: which paths it takes, which models there are, and who may spend their keys.

Leaves out the exchange itself (`named`), what is asked of every request (`front`), and reading the configuration.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from llm_proxy.proxy import answers
from llm_proxy.proxy.authority import Base, parse_authority
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.front import Front, dressed
from llm_proxy.proxy.named import NamedRelay
from llm_proxy.proxy.router import NoRoute, Route, bare_provider
from llm_proxy.wire.head import RequestHead
from llm_proxy.wire.hop import Instead
from llm_proxy.wire.masking import masked_credential

if TYPE_CHECKING:
    from llm_proxy.proxy.client import ClientConnection
    from llm_proxy.proxy.core import Core
    from llm_proxy.proxy.requests import Request

WHY = "named model"
_NOWHERE = Base("http", parse_authority("no-upstream"))  # in the record of a request that named no model of ours

_CALL = re.compile(
    rb"(?:/v1)?/(chat/completions|completions|embeddings|responses|api/chat|messages(?:/count_tokens)?)(\?.*)?"
)
_MODELS = re.compile(rb"(?:/v1)?/models(?:/([^?]+))?(?:\?.*)?")
_SAME = {b"api/chat": b"chat/completions"}
_VERSIONED = re.compile(rb"/v[0-9][^/]*\Z")
_SHOWN = 50  # names in a message
# The client's own proofs of who it is, and what only its connection to us is about.
_NOT_PASSED = frozenset(
    b"authorization x-api-key x-llm-proxy-token api-key x-goog-api-key cookie expect origin content-encoding "
    b"access-control-request-method access-control-request-headers".split()
)
_CREATED = 1_677_649_999  # seconds; SDKs want a number, and nobody knows when


@dataclass(frozen=True, slots=True)
class NamedModel:
    """`name` is what clients ask for, `model` what its upstream is asked for. A base is None where there is none.

    `timeout` is seconds of silence, 0 for those of every upstream; `max_retries` how often a connection is tried again.
    """

    name: str
    model: str
    openai: Base | None
    anthropic: Base | None
    api_key: str = field(repr=False)
    timeout: float = 0.0
    max_retries: int = 2


@dataclass(frozen=True, slots=True)
class Models:
    """What is configured. `max_body` is bytes; `guard` is asked who may call where `front` has no token."""

    models: tuple[NamedModel, ...]
    guard: Guard = field(repr=False)
    front: Front = field(repr=False)
    max_body: int


class ModelsDoor:
    """One for a proxy."""

    def __init__(self, config: Models) -> None:
        self.front = config.front
        self.max_body = config.max_body
        self._guard = config.guard
        self._models = {model.name: model for model in config.models}
        self._dropped = _NOT_PASSED | {config.front.header}

    def route(self, head: RequestHead, target: bytes) -> Route | None:
        """The route of a call as far as its head tells; None where the path is not this door's. Raises NoRoute."""
        match = _CALL.fullmatch(target)
        if match is None:
            return None
        provider = "anthropic" if match[1].startswith(b"messages") else "openai"
        if head.method != b"POST":
            raise NoRoute(405, "method_not_allowed", "named models are called with POST", provider)
        return Route.at(_NOWHERE, target, provider=provider, why=WHY, door=self, instead=Instead(self._dropped))

    def refusal(self, client: ClientConnection, request: Request) -> str:
        """Why this caller is not served; empty where it is. Who has brought the token has been let in already."""
        if self.front.token:
            return ""
        head = request.prepared.head
        return self._guard.refusal(head, b"", client.caller, page=self.front.is_page(head))

    def relay(self, core: Core, client: ClientConnection, request: Request) -> NamedRelay:
        return NamedRelay(core, client, request, self)

    def named(self, name: str, provider: str) -> NamedModel:
        """Raises NoRoute."""
        model = self._models.get(name)
        if model is None:
            known = [known for known in self._models if known]
            listed = ", ".join(known[:_SHOWN]) + (f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else "")
            raise NoRoute(
                404, "model_not_found", f"there is no model {name[:200]!r} here; there are {listed}", provider
            )
        return model

    def towards(self, model: NamedModel, head: RequestHead, target: bytes) -> Route:
        """The route of a call to `model`. Raises NoRoute."""
        match = _CALL.fullmatch(target)
        assert match is not None  # it has a route
        path, query = match[1], match[2] or b""
        provider = "anthropic" if path.startswith(b"messages") else "openai"
        base = model.anthropic if provider == "anthropic" else model.openai
        if base is None:
            raise NoRoute(404, "no_such_api", _other_api(model.name, provider), provider)
        path = _SAME.get(path, path)
        if provider == "anthropic" and not _VERSIONED.search(base.prefix):
            path = b"v1/" + path
        sent = base.prefix + b"/" + path + query
        key = model.api_key.encode("latin-1")
        fields = [(b"Authorization", b"Bearer " + key)] + [(b"x-api-key", key)] * (provider == "anthropic")
        return Route.at(
            base,
            sent,
            provider=provider,
            why=WHY,
            door=self,
            instead=Instead(
                self._dropped,
                tuple(b"%b: %b" % one for one in fields) if key else (),
                tuple(b"%b: %b" % (name, masked_credential(value)) for name, value in fields) if key else (),
            ),
            patience=model.timeout,
        )

    # -- what is answered here ------------------------------------------------------------------------------------

    def answer(self, head: RequestHead, target: bytes) -> tuple[str, bytes] | None:
        """The answer to a request that goes nowhere, and the code it counts under, "" for none; else None."""
        told = self.front.answer(head, target, bare_provider(head, target) or "")
        if told is not None:
            return told
        listed = self._listing(head, target)
        return None if listed is None else ("", dressed(listed, self.front.cors(head)))

    def _listing(self, head: RequestHead, target: bytes) -> bytes | None:
        """The answer to `GET /v1/models` and `/v1/models/{id}`; None for other requests."""
        match = _MODELS.fullmatch(target)
        if match is None or head.method not in (b"GET", b"HEAD"):
            return None
        shape = "anthropic" if head.get(b"anthropic-version") is not None else "openai"
        describe = _anthropic if shape == "anthropic" else _openai
        if match[1] is not None:
            try:
                model = self.named(unquote_to_bytes(match[1]).decode("utf-8", "replace"), shape)
            except NoRoute as error:
                return answers.error(error.status, error.code, error.message, provider=shape)
            return answers.answer(200, json.dumps(describe(model)).encode())
        data = [describe(model) for model in self._models.values()]
        body: dict[str, object] = {"data": data}
        if shape == "anthropic":
            body |= {"has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
        else:
            body = {"object": "list"} | body
        return answers.answer(200, json.dumps(body).encode())


def _openai(model: NamedModel) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": _CREATED, "owned_by": model.name}


def _anthropic(model: NamedModel) -> dict[str, object]:
    return {"type": "model", "id": model.name, "display_name": model.name, "created_at": "2023-03-01T05:53:19Z"}


def _other_api(name: str, provider: str) -> str:
    if provider == "anthropic":
        return (
            f"model {name!r} has no base_url_anthropic, so it does not speak Anthropic's API; call it at "
            "/v1/chat/completions, or let the gateway translate"
        )
    return f"model {name!r} has no base_url, so it does not speak OpenAI's API; call it at /v1/messages"
