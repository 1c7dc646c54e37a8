"""`/manage/metrics`: what this process knows of limits, providers that fail and its usage log, for Prometheus.

Each machine tells of itself. What passes through it the proxy tells at `/metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from llm_proxy.gateway.facts import Caller, Role, Scope
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Route
from llm_proxy.wire.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site


async def _metrics(site: Site, caller: Caller, request: web.Request) -> web.Response:
    """By a key too, unlike what else is an administrator's: nobody signs in for Prometheus."""
    if caller.role is not Role.ADMIN:
        raise Refusal(403, "admin_needed", "this is for administrators and their keys")
    lines = (*site.limiter.metrics(), *site.breakers.metrics(), *site.usage.metrics(), "")
    return web.Response(
        body="\n".join(lines).encode(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
    )


ROUTES: Final = (
    Route(
        "GET",
        "/manage/metrics",
        Access.KEY,
        "Limits, failing providers and the usage log of this process, for Prometheus; for administrators only",
        raw=_metrics,
        scope=Scope.USAGE,
        dialect="chat",
    ),
)
