"""Serves the pages: finds the page, asks who comes, reads its form, shows what came of it. Loaded with the first visit.

A form that is done leads on (303), so that loading the page again does not do it again; one that is refused shows its
page once more, with what was typed and why. Leaves out who comes (`door`) and what pages do.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from llm_proxy.gateway import withdrawn
from llm_proxy.gateway.app import PEER, peer, said
from llm_proxy.gateway.facts import Caller, Role
from llm_proxy.gateway.refusals import STORE_AWAY, Refusal
from llm_proxy.gateway.routes import NOBODY, Access
from llm_proxy.gateway.screens import door, render
from llm_proxy.gateway.screens.page import ROOT, Answer, File, Form, Html, Lead, Page, Visit
from llm_proxy.gateway.screens.table import pages
from llm_proxy.gateway.site import Site
from llm_proxy.gateway.store.database import StoreAway
from llm_proxy.web.assets import CACHE
from llm_proxy.web.safety import HEADERS

log = logging.getLogger("llm_proxy.gateway")

MOST_FIELDS: Final = 2000
_LOG_IN: Final = "/log-in"
_FAILED: Final = Refusal(500, "internal_error", "This page could not be made; the gateway's log says why.")
_NO_PAGE: Final = Refusal(404, "not_found", "There is nothing at this address.")
_HEADINGS: Final = {
    400: "This cannot be read",
    403: "Not for you",
    404: "Not here",
    405: "Not done this way",
    409: "That does not go together",
    413: "Too much",
    429: "Too often",
    500: "A defect of ours",
    503: "Not now",
}
# A form of ours says where it came from (`Origin`) only if the page lets it.
_HEADERS: Final = {**HEADERS, "Referrer-Policy": "same-origin", "Cache-Control": "no-store"}


async def serve(site: Site, request: web.Request) -> web.StreamResponse:
    """Answers a request for anything below the root."""
    below = request.path.removeprefix(ROOT)
    response = _file(below) if below.startswith("/static/") else await _Serving(site, request).answer(below)
    response.headers.update({name: value for name, value in _HEADERS.items() if name not in response.headers})
    return response


def _file(below: str) -> web.Response:
    file = render.assets.file(below.removeprefix("/static/"))
    if file is None:
        return web.Response(status=404)
    return web.Response(body=file.data, content_type=file.type, headers={"Cache-Control": CACHE})


@cache
def _found() -> tuple[tuple[re.Pattern[str], Page], ...]:
    return tuple((re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", page.path)), page) for page in pages())


def _page_at(below: str) -> tuple[Page, Mapping[str, str]]:
    """Raises Refusal 404."""
    for pattern, page in _found():
        if match := pattern.fullmatch(below):
            return page, match.groupdict()
    raise _NO_PAGE


class _Serving:
    """Of one request. What is known so far is what an error's page can show: `page` and `caller`."""

    def __init__(self, site: Site, request: web.Request) -> None:
        self.site, self.request = site, request
        options = site.options
        self.origins = door.origins(request, options, trusted=_trusted(request, options.trusted_proxies))
        self.secure = self.origins[0].startswith("https:")
        self.page: Page | None = None
        self.caller: Caller = NOBODY

    async def answer(self, below: str) -> web.Response:
        try:
            door.refuse_name(self.request, self.site.options)
            if not below:
                return self.led(Lead("/"))
            if door.came_across(self.request):
                return self.html("across", {"title": "llm-proxy", "here": self.request.rel_url.raw_path_qs})
            self.page, params = _page_at(below)
            return await self._page_answer(self.page, params)
        except Refusal as refusal:
            return self.refused(refusal)
        except StoreAway:
            return self.refused(STORE_AWAY)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s failed", self.request.method, below)
            return self.refused(_FAILED)

    async def _page_answer(self, page: Page, params: Mapping[str, str]) -> web.Response:
        """Raises Refusal, StoreAway."""
        request, site = self.request, self.site
        if request.method not in ("GET", "HEAD", "POST") or (request.method == "POST" and not page.acts):
            allow = "GET, HEAD, POST" if page.acts else "GET, HEAD"
            raise Refusal(405, "method_not_allowed", f"This page takes {allow}.", headers={"Allow": allow})
        try:
            self.caller = await self._visitor()
        except Refusal as refusal:
            if refusal.status != 401 or page.machine:
                raise
            return self._to_log_in(page)
        if page.access is Access.ADMIN and self.caller.role is not Role.ADMIN:
            raise Refusal(403, "admin_needed", "This page is for administrators.")
        visit = Visit(
            site=site,
            page=page,
            caller=self.caller,
            params=params,
            query=dict(request.query),
            form=Form([]),
            address=peer(request, site.options.trusted_proxies),
            origin=self.origins[0],
            token=_forms(site).token(self.caller.session_id),
        )
        if request.method != "POST":
            return self._shown(visit, await page.show(visit))
        visit = replace(visit, form=await _form(request))
        withdrawn.check(site.options, request)
        door.refuse_form(request, self.origins, visit.token, visit.form.get("token"))
        try:
            return self._shown(visit, await _act(visit))
        except Refusal as refusal:
            visit = replace(visit, trouble=refusal)
        except StoreAway:
            visit = replace(visit, trouble=STORE_AWAY)
        return self._shown(visit, await page.show(visit))

    async def _visitor(self) -> Caller:
        """NOBODY on a public page, where nobody has signed in. Raises Refusal 401."""
        cookie = door.brought(self.request)
        page = self.page
        try:
            return await self.site.identifier.visitor(cookie)
        except Refusal:
            if page is None or page.access is not Access.PUBLIC:
                raise
            return NOBODY

    def _to_log_in(self, page: Page) -> web.Response:
        """And back, where the way there can be gone again."""
        back = self.request.rel_url.raw_path_qs if self.request.method != "POST" else ROOT + page.path.partition("{")[0]
        lead = Lead(f"{_LOG_IN}?{urlencode({'next': back})}")
        return self.led(replace(lead, cookie="") if door.COOKIE in self.request.cookies else lead)

    # -- what is answered ---------------------------------------------------------------------------------------

    def _shown(self, visit: Visit, answer: Answer) -> web.Response:
        match answer:
            case Lead():
                return self.led(answer)
            case File():
                headers = {"Content-Type": answer.type}
                if answer.name:
                    headers["Content-Disposition"] = f'attachment; filename="{answer.name}"'
                return web.Response(body=answer.data, headers=headers)
            case Html():
                status = visit.trouble.status if visit.trouble is not None else answer.status
                values = {"title": visit.page.title, "visit": visit, "typed": visit.typed, **answer.values}
                told = visit.page.said.get(visit.query.get("said", ""), "") if visit.trouble is None else ""
                response = self.html(answer.template, {**values, "told": told, "trouble": visit.trouble}, status)
                response.headers.update(visit.trouble.headers if visit.trouble is not None else {})
                return response

    def led(self, lead: Lead) -> web.Response:
        response = web.Response(status=303, headers={"Location": lead.location})
        if lead.cookie is not None:
            response.headers["Set-Cookie"] = door.cookie(lead.cookie, secure=self.secure)
        return response

    def html(self, template: str, values: Mapping[str, Any], status: int = 200) -> web.Response:
        shared = {
            "caller": self.caller,
            "page": self.page,
            "links": _links(self.caller),
            "version": self.site.options.version,
        }
        form = _forms(self.site).token(self.caller.session_id)
        text = render.page(template, **{"told": "", "trouble": None, "token": form, **shared, **values})
        return web.Response(text=text, status=status, content_type="text/html")

    def refused(self, refusal: Refusal) -> web.Response:
        if self.page is not None and self.page.machine:
            return said(refusal)
        heading, passing = _HEADINGS.get(refusal.status, "This did not work"), refusal.status == 503
        sent, again = self.request.method == "POST", self.request.rel_url.raw_path_qs if passing else ""
        values = {"title": heading, "refusal": refusal, "sent": sent, "again": again}
        response = self.html("error", values, refusal.status)
        response.headers.update(refusal.headers)
        if passing and not sent:
            response.headers["Refresh"] = refusal.headers.get("Retry-After", "5")  # what that is to programs
        return response


@dataclass(frozen=True, slots=True)
class Link:
    href: str
    label: str
    path: str
    admin: bool


@cache
def _all_links() -> tuple[tuple[Access, Link], ...]:
    shown = sorted((page for page in pages() if page.nav), key=lambda page: page.order)
    return tuple(
        (page.access, Link(ROOT + page.path, page.nav, page.path, page.access is Access.ADMIN)) for page in shown
    )


def _links(caller: Caller) -> list[Link]:
    """Those in the navigation that this caller may follow."""
    if caller is NOBODY:
        return []
    return [link for access, link in _all_links() if access is not Access.ADMIN or caller.role is Role.ADMIN]


async def _act(visit: Visit) -> Answer:
    """Raises Refusal."""
    act = visit.page.acts.get(visit.form.get("do"))
    if act is None:
        raise Refusal(400, "invalid_request", "this form does not say what to do; load the page anew")
    return await act(visit)


async def _form(request: web.Request) -> Form:
    """Raises Refusal."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise Refusal(415, "invalid_request", "a form of ours is sent as application/x-www-form-urlencoded")
    try:
        text = (await request.read()).decode("ascii")
        return Form(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_FIELDS))
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, "too_large", "this is more than a form may have") from None
    except ValueError:
        raise Refusal(400, "invalid_request", "this is no form as browsers send it") from None


@cache
def _forms_of(secret: str) -> door.Forms:
    return door.Forms(secret)


def _forms(site: Site) -> door.Forms:
    return _forms_of(site.secrets.jwt_secret)


def _trusted(request: web.Request, networks: tuple[str, ...]) -> bool:
    """Whether the connection is of a proxy that the operator trusts to say how clients came."""
    try:
        address = ip_address(request.headers.get(PEER, ""))
    except ValueError:
        return False
    return any(address in ip_network(one, strict=False) for one in networks)
