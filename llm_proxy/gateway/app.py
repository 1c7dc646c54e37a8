"""The routes as an aiohttp application: who comes is asked, bodies are read and checked, answers and errors are said.

Every route is made of its row in the table, so none can be without a rule for who may come. Leaves out what routes do.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Final

import msgspec
from aiohttp import web

from llm_proxy.gateway import withdrawn
from llm_proxy.gateway.calls import speaking
from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.refusals import STORE_AWAY, Refusal
from llm_proxy.gateway.routes import NOBODY, Access, Ask, Document, Route
from llm_proxy.gateway.site import Site
from llm_proxy.gateway.store.database import StoreAway

log = logging.getLogger("llm_proxy.gateway")

MOST = 1 << 20  # bytes of a managing route's body
PEER: Final = "X-LLM-Proxy-Peer"  # whose connection the proxy serves; nobody else can send it
SCREENS: Final = "/llm-proxy/team"  # pages for people are below
_JSON: Final = "application/json"
_FAILED: Final = Refusal(500, "internal_error", "the gateway failed at this; its log says why")
_encode: Final = msgspec.json.Encoder().encode

_Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(site: Site, table: Iterable[Route]) -> web.Application:
    """Serves the table, and says 404 and 405 for the rest in JSON."""
    app = web.Application(client_max_size=MOST)
    rows = tuple(table)
    for route in rows:
        app.router.add_route(route.method, route.path, _raw(site, route) if route.raw else _managed(site, route))
    paths: dict[str, list[str]] = {}
    for route in rows:
        paths.setdefault(route.path, []).append(route.method)
    for path, methods in paths.items():
        app.router.add_route("*", path, _only(methods))
    for path in (SCREENS, SCREENS + "/{below:.*}"):
        app.router.add_route("*", path, _screens(site))
    app.router.add_route("*", "/{anything:.*}", _nothing)
    return app


def _raw(site: Site, route: Route) -> _Serve:
    serve = route.raw
    assert serve is not None

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            caller = await _caller(site, route, request)
            return await serve(site, caller, request)
        except Refusal as refusal:
            site.refused[refusal.code] += 1
            return speaking.refusal(route.dialect, refusal)
        except StoreAway:
            return speaking.refusal(route.dialect, STORE_AWAY)
        except Exception:
            log.exception("%s %s failed", route.method, route.path)
            return speaking.refusal(route.dialect, _FAILED)

    return handle


def _managed(site: Site, route: Route) -> _Serve:
    serve = route.handler
    assert serve is not None
    decode = msgspec.json.Decoder(route.takes).decode if route.takes is not None else None

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            caller = await _caller(site, route, request)
            body = await _body(request, decode)
            withdrawn.check(site.options, request)
            address = peer(request, site.options.trusted_proxies)
            accept = ",".join(request.headers.getall("Accept", ()))
            given = await serve(Ask(site, caller, request.match_info, request.query, body, address, accept))
        except Refusal as refusal:
            site.refused[refusal.code] += 1
            return said(refusal)
        except StoreAway:
            return said(STORE_AWAY)
        except Exception:
            log.exception("%s %s failed", route.method, route.path)
            return said(_FAILED)
        return answer(given, route.status)

    return handle


async def _caller(site: Site, route: Route, request: web.Request) -> Caller:
    """Who comes, where he may. Raises Refusal."""
    if route.access is Access.PUBLIC:
        return NOBODY
    caller = await site.identifier.identify(request.headers, request.raw_path)
    if caller.session_id is None:
        if route.access is not Access.KEY:
            raise Refusal(403, "session_needed", "this takes a session: sign in, an API key does not do")
        if route.scope not in caller.scopes:
            raise Refusal(403, "scope_missing", f"this takes an API key with the scope {str(route.scope)!r}")
    elif route.access is Access.ADMIN and caller.role is not Role.ADMIN:
        raise Refusal(403, "admin_needed", "this is for administrators")
    return caller


async def _body(request: web.Request, decode: Callable[[bytes], Any] | None) -> Any:
    """Raises Refusal: too much, no JSON, or not what the route takes."""
    if decode is None:
        return None
    try:
        data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, "too_large", f"a body here has at most {MOST} bytes") from None
    try:
        return decode(data or b"{}")
    except msgspec.ValidationError as error:
        words, _, where = str(error).partition(" - at `$")
        raise Refusal(400, "invalid_request", f"body: {words}", param=where.strip("`.")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "invalid_json", f"the body is not JSON: {error}") from None


def peer(request: web.Request, trusted: tuple[str, ...]) -> str:
    """The client's address: of the proxy's connection, or the one that a trusted proxy before it has written last."""
    address = request.headers.get(PEER, "")
    networks = [ip_network(one, strict=False) for one in trusted]
    came_by = [part.strip() for line in request.headers.getall("X-Forwarded-For", ()) for part in line.split(",")]
    while came_by and networks and _within(address, networks):
        address = came_by.pop()
    return address[:64]


def _within(address: str, networks: Iterable[Any]) -> bool:
    try:
        return any(ip_address(address) in network for network in networks)
    except ValueError:
        return False


def answer(given: Any, status: int = 200) -> web.Response:
    """Nothing of ours is for a cache."""
    headers = {"Cache-Control": "no-store"}
    if given is None:
        return web.Response(status=204 if status == 200 else status, headers=headers)
    if isinstance(given, Document):
        headers |= {"Content-Type": given.kind, **given.headers}
        return web.Response(body=given.body, status=status, headers=headers)
    return web.Response(body=_encode(given), status=status, content_type=_JSON, headers=headers)


def said(refusal: Refusal) -> web.Response:
    """In the shape that OpenAI's SDKs read."""
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "code": refusal.code, "param": refusal.param or None}
    response = answer({"error": error}, refusal.status)
    response.headers.update(refusal.headers)
    if refusal.status == 401:
        response.headers.setdefault("WWW-Authenticate", "Bearer")
    return response


def _screens(site: Site) -> _Serve:
    async def handle(request: web.Request) -> web.StreamResponse:
        from llm_proxy.gateway.screens.serving import serve  # with what only pages need

        return await serve(site, request)

    return handle


def _only(methods: list[str]) -> _Serve:
    allowed = ", ".join(methods)

    async def handle(request: web.Request) -> web.StreamResponse:
        words = f"{request.method} is not for this path; {allowed}"
        return said(Refusal(405, "method_not_allowed", words, headers={"Allow": allowed}))

    return handle


async def _nothing(request: web.Request) -> web.StreamResponse:
    return said(Refusal(404, "not_found", f"there is nothing at {request.path[:200]}"))
