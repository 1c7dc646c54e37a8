"""`/manage/metrics`: what this machine's processes know of limits, failing providers and the usage log, for Prometheus.

Of several processes the one that is asked asks the others, and every sample says whose it is: a series that were now
of this one and now of that one would seem to jump. What passes through the machine the proxy tells at `/metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from llm_proxy.gateway import siblings
from llm_proxy.gateway.facts import Caller, Role, Scope
from llm_proxy.gateway.manage import standing
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access, Route
from llm_proxy.wire.exposition import CONTENT_TYPE, Sample, family, together

if TYPE_CHECKING:
    from llm_proxy.gateway.site import Site

_PATH: Final = "/manage/metrics"
_OF: Final = "of"
_PROCESS: Final = "process"
_TOLD: Final = "1 for a process whose metrics are here, 0 for one that did not answer in time."


async def _metrics(site: Site, caller: Caller, request: web.Request) -> web.Response:
    """By a key too, unlike what else is an administrator's: nobody signs in for Prometheus."""
    if caller.role is not Role.ADMIN:
        raise Refusal(403, "admin_needed", "this is for administrators and their keys")
    of = request.query.get(_OF, "")
    if of not in ("", _PROCESS):
        raise Refusal(400, "invalid_request", f"of: must be {_PROCESS} or left out, not {of[:40]!r}", param=_OF)
    told = await _own(site)
    if site.options.workers and not of:
        told = await _of_all(site, told, request)
    return web.Response(body=told.encode(), headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"})


async def _own(site: Site) -> str:
    stands = await standing.metrics(site)
    return "\n".join((*stands, *site.limiter.metrics(), *site.breakers.metrics(), *site.usage.metrics(), ""))


async def _of_all(site: Site, own: str, request: web.Request) -> str:
    """Processes have numbers, from 1, in the order of their sockets."""
    sockets = site.options.workers
    others = [path for path in sockets if path != site.options.socket]
    answers = await siblings.asked(others, f"{_PATH}?{_OF}={_PROCESS}", request.headers)
    found = dict(zip(others, answers, strict=True)) | {site.options.socket: own.encode()}
    texts = {str(number): found[path] for number, path in enumerate(sockets, 1)}
    whole = {number: text.decode() for number, text in texts.items() if text is not None}
    samples = [Sample({"worker": number}, int(number in whole)) for number in texts]
    return "\n".join((
        *together("worker", whole),
        *family("llm_proxy_gateway_worker_told", "gauge", _TOLD, samples),
        "",
    ))  # fmt: skip


ROUTES: Final = (
    Route(
        "GET",
        _PATH,
        Access.KEY,
        "Limits, failing providers and the usage log of this machine, for Prometheus; for administrators only",
        raw=_metrics,
        scope=Scope.USAGE,
        query={_OF: f"`{_PROCESS}` tells only of the process that answers, where there are several."},
        dialect="chat",
    ),
)
