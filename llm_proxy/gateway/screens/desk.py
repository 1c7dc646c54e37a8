"""The managing API from within, for whoever sits before a screen: the same routes, rules, checks and words.

A page neither reads nor changes anything by itself. It calls a route, whose rule for who may come holds here too, and
gets what would be answered as JSON, or the refusal. Leaves out who that is (`door`) and how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Ask, Route
from llm_proxy.gateway.site import Site


@cache
def _routes() -> Mapping[tuple[str, str], Route]:
    from llm_proxy.gateway.table import table  # which has the screens' routes too

    return {(route.method, route.path.replace(":[^/]+", "")): route for route in table() if route.handler is not None}


@dataclass(frozen=True, slots=True)
class Desk:
    """`caller` is NOBODY or has signed in; `address` is the client's, for the audit log."""

    site: Site
    caller: Caller
    address: str

    @property
    def admin(self) -> bool:
        return self.caller.is_admin

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        **params: object,
    ) -> Any:
        """What the route `method path` gives; `params` are those in its path. Raises Refusal, KeyError."""
        route = _routes()[method, path]
        assert route.handler is not None
        if route.access is not Access.PUBLIC and self.caller.session_id is None:
            raise Refusal(401, "session_needed", "this takes a session: sign in")
        if route.access is Access.ADMIN and self.caller.role is not Role.ADMIN:
            raise Refusal(403, "admin_needed", "this is for administrators")
        told = {name: str(value) for name, value in params.items()}
        given = _body(route, body or {}) if route.takes is not None else None
        return await route.handler(Ask(self.site, self.caller, told, query or {}, given, self.address))


def _body(route: Route, body: Mapping[str, Any]) -> Any:
    """Raises Refusal 400, as for a body that came as JSON."""
    try:
        return msgspec.convert(body, route.takes)
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$")
        field = where.strip("`.")
        raise Refusal(400, "invalid_request", f"{field}: {words}" if field else words, param=field) from None
