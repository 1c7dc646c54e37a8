"""What a route is: its path, who may come, what it takes and gives. One table of them makes the server and its OpenAPI.

Who may come is part of the route that was matched, never of a URL that is looked at a second time, and there is no
default. Leaves out serving them (`app`), describing them (`openapi`) and what they do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aiohttp import web

from llm_proxy.gateway.facts import Caller, Scope

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site


class Access(StrEnum):
    """Who may come. A key needs the route's scope; `SESSION` and `ADMIN` are for people who have signed in."""

    PUBLIC = "public"
    KEY = "key"  # an API key with the route's scope, or a session
    SESSION = "session"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to a managing route, read and checked. `body` is what the route takes, None for nothing."""

    site: Site
    caller: Caller
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Any
    address: str  # the client's, as far as it can be believed
    accept: str = ""  # its header Accept

    def number(self, name: str) -> int:
        """A number in the path. Raises Refusal 404: what is no number is nobody's."""
        from llm_proxy.gateway.refusals import not_found

        text = self.params[name]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise not_found(f"{name} {text[:40]!r}")
        return int(text)


@dataclass(frozen=True, slots=True)
class Document:
    """An answer that is no JSON, of the media type `kind`."""

    body: bytes
    kind: str
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Ask], Awaitable[Any]]
Raw = Callable[["Site", Caller, web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """`handler` gives what is answered as JSON (msgspec encodes it), None for no body; a `raw` one answers itself.

    `takes` is a msgspec Struct that forbids unknown fields, `gives` a type msgspec can describe; `query` says what the
    query's parameters are. A handler may give a `Document` of the media type `also` too. For a PUBLIC route `caller` is
    `NOBODY`.
    """

    method: str
    path: str
    access: Access
    summary: str
    handler: Handler | None = None
    raw: Raw | None = None
    scope: Scope | None = None  # of an Access.KEY route
    takes: Any = None
    gives: Any = None
    also: str = ""
    status: int = 200
    query: Mapping[str, str] = field(default_factory=dict)
    dialect: str = ""  # of a raw one, in which its errors are said: chat, responses, anthropic


NOBODY = Caller(0, "", role=None, scopes=frozenset())  # type: ignore[arg-type]
