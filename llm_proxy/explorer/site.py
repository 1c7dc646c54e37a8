"""The explorer as one aiohttp application: every page from the same few lines.

A page is served as HTML and, with the same parameters, as JSON under `api/`. Leaves out who may come in (`guard`), what
pages show (`pages`) and where it listens (`__main__`).
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web

from llm_proxy.explorer import api, asking, guard, highlight, markdown, render, sharing
from llm_proxy.explorer.asking import Absent, Asked, BadValue, NotFound, Withheld
from llm_proxy.explorer.bell import Bell
from llm_proxy.explorer.live.hub import Hub
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.page import File, Handler, Page
from llm_proxy.explorer.routes import EXTRAS, PAGES
from llm_proxy.explorer.sharing import NoIndexYet, Records
from llm_proxy.explorer.status import Standing
from llm_proxy.explorer.viewer import Team
from llm_proxy.index.queries import IndexUnavailable, TookTooLong
from llm_proxy.index.record import Record
from llm_proxy.index.viewer import EVERYTHING, NOBODY, Viewer
from llm_proxy.records import privacy
from llm_proxy.records.redaction import Redactor
from llm_proxy.web.assets import CACHE

log = logging.getLogger(__name__)

THREADS = 4  # views at a time: they hold the interpreter lock, and there are few readers
OF_ONE = 2  # of one account, which must not keep the others out
FRESH = 2.0  # seconds

T = TypeVar("T")
Fresh = Callable[[], None]


class Site:
    """What all handlers share: the options and the right to ask the record."""

    def __init__(self, options: Options, bell: Bell, fresh: Fresh | None = None) -> None:
        self.options = options
        self._fresh = fresh
        self._fresh_until = 0.0
        self.templates = render.environment()
        self.standing = Standing(options)
        # Only for others' calls: what whoever asks for redaction of his own has taken out, too.
        self.redactor = Redactor((*options.patterns, *privacy.PERSONAL), lambda kind, secret: 0)
        self._records = Records(options, self.redactor)
        self.live = Hub(options, bell, partial(self.ask, EVERYTHING))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="view")
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # by account

    async def ask(self, viewer: Viewer, question: Callable[[Record], T], limit: float = 2.0) -> T:
        """Ask what the viewer may see, in a worker thread, within `limit` seconds.

        Raises TookTooLong, IndexUnavailable, and what it raises.
        """
        loop = asyncio.get_running_loop()
        if not viewer.account:
            return await loop.run_in_executor(self._threads, self._asked, viewer, question, limit)
        turns = self._turns.setdefault(viewer.account, asyncio.Semaphore(OF_ONE))
        await turns.acquire()
        job = self._threads.submit(self._asked, viewer, question, limit)

        def ended(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(turns.release)

        job.add_done_callback(ended)  # not when whoever asked goes: the thread works on
        return await asyncio.wrap_future(job)

    async def run(self, work: Callable[[], T]) -> T:
        """Anything else that takes longer than a few milliseconds: rendering, decoding."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def freshen(self) -> None:
        """Stand-alone: take in what has been logged meanwhile, at most every other second."""
        if self._fresh is not None and time.monotonic() > self._fresh_until:
            self._fresh_until = time.monotonic() + FRESH
            await self.run(self._fresh)

    def _asked(self, viewer: Viewer, question: Callable[[Record], T], limit: float) -> T:
        def asked(record: Record) -> T:
            until = time.monotonic() + limit
            record.index.stop_at(until)
            if viewer.sees_everything:
                self.standing.count(record)
            return question(replace(record, until=until))

        return self._records.ask(viewer, asked)

    def html(self, name: str, asked: Asked, **values: Any) -> str:
        """A whole page."""
        status = self.standing.status(asked.now, outlined=not asked.viewer.sees_everything)
        return render.page(self.templates, name, asked, status=status, alone=self.alone, **{"api": "", **values})

    @property
    def alone(self) -> str:
        """This machine's name while its own record is shown in place of that of several machines, else ""."""
        shared = self.options.shared
        return shared.machine if shared is not None and self._records.away else ""

    def fragment(self, name: str, asked: Asked, **values: Any) -> str:
        """A template that is no whole page."""
        return self.templates.get_template(name).render(asked=asked, **values)

    def warm(self) -> None:
        """What a page's first visit would wait for: its template, and the libraries it asks."""
        for name in self.templates.list_templates():
            self.templates.get_template(name)
        markdown.rendered("`x`")
        highlight.highlighted("x = 1", "python")

    async def close(self) -> None:
        await self.live.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._records.close)


SITE = web.AppKey("site", Site)
TEAM = web.AppKey("team", Team)
BELL = web.AppKey("bell", Bell)  # event streams: `await request.app[BELL].wait(seconds)`


def application(
    options: Options, *, fresh: Fresh | None = None, stranger: guard.Stranger | None = None
) -> web.Application:
    """All paths, under `render.ROOT`, behind the guard; `/` leads there.

    `fresh` brings the index up to date, in a worker thread, before the first page of all is made; `stranger` says of a
    connection that another user's program holds its other end. Through the daemon, keeper and proxy see to both.
    """
    team = Team(options.gateway, options.admin_sees)
    keeper = guard.Guard(Path(options.state), options.hosts, stranger, team)
    others = sharing.middleware(keeper, Path(options.logs))
    app = web.Application(middlewares=[others, guard.middleware(keeper, render.ROOT, _refused), _errors])
    app[BELL] = Bell()
    app[SITE] = Site(options, app[BELL], fresh)
    app[TEAM] = team
    for page in PAGES:
        app.router.add_get(render.ROOT + page.path, _html(page))
        app.router.add_get(f"{render.ROOT}/api{page.path if page.path != '/' else '/sessions'}", _json(page))
    for extra in EXTRAS:
        app.router.add_get(render.ROOT + extra.path, extra.handler)
    app.router.add_get(f"{render.ROOT}/api/", _api)
    app.router.add_get(f"{render.ROOT}/api/openapi.json", _description)
    app.router.add_get(render.ROOT + "/static/{name:.+}", _static)
    for path in ("/", render.ROOT):
        app.router.add_get(path, _lead_home)
    app.router.add_get(f"{render.ROOT}/api", _lead_to_api)
    app.on_response_prepare.append(guard.add_headers)
    app.on_response_prepare.append(_tell_alone)
    app.on_cleanup.append(_close)
    return app


async def _lead_home(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": f"{render.ROOT}/"})


async def _lead_to_api(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": f"{render.ROOT}/api/"})


async def _api(request: web.Request) -> web.StreamResponse:
    if not api.wants_page(request):
        return web.Response(body=as_json(api.overview()), content_type="application/json")
    site, asked = request.app[SITE], asked_of(request, "/api/", ())
    secret = f"$(cat {shlex.quote(f'{site.options.state}/{guard.SECRET}')})"
    bearer = secret if asked.viewer.sees_everything else "llmp_…"
    values = {"operations": api.operations(), "bearer": bearer}
    page = site.html("api", asked, origin=f"http://{request.host}", api=f"{render.ROOT}/api/openapi.json", **values)
    return web.Response(text=page, content_type="text/html")


async def _description(request: web.Request) -> web.StreamResponse:
    return web.Response(body=api.description(request.app[SITE].options.version), content_type="application/json")


def _wants_json(request: web.Request) -> bool:
    below = f"{render.ROOT}/api/"
    return request.path.startswith(below) and not (request.path == below and api.wants_page(request))


def _refused(request: web.Request, refusal: guard.Refusal) -> web.StreamResponse:
    """What the guard says, without anything of the record."""
    headers = {405: {"Allow": ", ".join(guard.READ_ONLY)}, 401: {"WWW-Authenticate": "Bearer"}}.get(refusal.status, {})
    if _wants_json(request):
        body = as_json({"error": refusal.heading, "message": refusal.text + _command(refusal)})
        return web.Response(body=body, status=refusal.status, content_type="application/json", headers=headers)
    site = request.app[SITE]
    page = site.templates.get_template("door.html").render(refusal=refusal, command=_command(refusal).strip())
    return web.Response(text=page, status=refusal.status, content_type="text/html", headers=headers)


def _command(refusal: guard.Refusal) -> str:
    return " llm-proxy explore" if refusal.status == 401 else ""


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever no handler has an answer for: an unknown path, a defect."""
    try:
        return await handler(request)
    except (NotFound, Absent, Withheld, BadValue, TookTooLong, IndexUnavailable) as error:
        return _answer(request, _words(error))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        status, heading = error.status, "No such page" if error.status == 404 else error.reason
        text = "The explorer has nothing at this address." if status == 404 else ""
    except Exception:
        if request.get(guard.ANSWERED):  # it has begun: there is no other way to tell than breaking off
            raise
        log.exception("a page failed")
        status, heading = 500, "A defect of ours"
        text = "This page could not be made. The record is untouched; explorer-*.err in the state folder tells more."
    return _answer(request, Trouble(status, heading, text))


async def _tell_alone(request: web.Request, response: web.StreamResponse) -> None:
    if alone := request.app[SITE].alone:
        response.headers["X-LLM-Proxy-Record"] = f"{alone} only"


async def _close(app: web.Application) -> None:
    await app[SITE].close()


def asked_of(request: web.Request, path: str, params: tuple[asking.Param, ...]) -> Asked:
    """The parameters of a request, `path` below the root. Raises BadValue."""
    return asking.asked(
        path, params, list(request.query.items()), dict(request.match_info), datetime.now(UTC), request[guard.VIEWER]
    )


def _path_of(request: web.Request) -> str:
    return request.path.removeprefix(render.ROOT) or "/"


def _html(page: Page) -> Handler:
    async def show(request: web.Request) -> web.StreamResponse:
        site = request.app[SITE]
        path = _path_of(request)
        try:
            asked = asked_of(request, path, page.params)
            if page.path == "/":
                await site.freshen()
            shown = await site.ask(asked.viewer, lambda record: _shown(site, page, record, asked), page.limit)
        except (NotFound, Absent, Withheld, BadValue, TookTooLong, IndexUnavailable) as error:
            return _answer(request, _words(error))
        return sent(shown) if isinstance(shown, File) else web.Response(text=shown, content_type="text/html")

    return show


def sent(file: File) -> web.Response:
    """A file to be saved: whatever is in it, a browser shows none of it."""
    headers = {"X-Content-Type-Options": "nosniff"}
    if file.name:
        name = re.sub(r"[^\w.-]+", "-", file.name, flags=re.ASCII).strip(".-") or "file"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return web.Response(body=file.data, headers=headers | {"Content-Type": file.type})


def _shown(site: Site, page: Page, record: Record, asked: Asked) -> str | File:
    view = _view(site, page, record, asked)
    if isinstance(view, File):
        return view
    same = render.link(asked).replace(render.ROOT, f"{render.ROOT}/api", 1)
    if page.path == "/":
        same = same.replace("/api/", "/api/sessions", 1)
    return site.html(page.name, asked, view=view, api=same)


def _view(site: Site, page: Page, record: Record, asked: Asked) -> Any:
    return page.view(record, asked, site.live) if page.with_live else page.view(record, asked)


def _json(page: Page) -> Handler:
    async def tell(request: web.Request) -> web.StreamResponse:
        site = request.app[SITE]
        try:
            asked = asked_of(request, _path_of(request).removeprefix("/api"), page.params)
            if page.path == "/":
                await site.freshen()
            told = await site.ask(asked.viewer, lambda record: _told(site, page, record, asked), page.limit)
        except (NotFound, Absent, Withheld, BadValue, TookTooLong, IndexUnavailable) as error:
            return _answer(request, _words(error))
        return sent(told) if isinstance(told, File) else web.Response(body=told, content_type="application/json")

    return tell


def _told(site: Site, page: Page, record: Record, asked: Asked) -> bytes | File:
    view = _view(site, page, record, asked)
    return view if isinstance(view, File) else as_json(view)


def as_json(view: Any) -> bytes:
    """Decimals become numbers, written exactly."""
    return _ENCODER.encode(view)


_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Trouble(NamedTuple):
    """What a page says instead: the cause, what still holds, in how many seconds it asks again by itself (0: not)."""

    status: int
    heading: str
    text: str
    holds: str = ""
    again: int = 0
    inner: str = ""  # told to whoever runs the machine alone


def _words(error: Exception) -> Trouble:
    match error:
        case BadValue():
            text = f"{error.name} must be {error.rule}; it was {error.value[:200]!r}."
            return Trouble(400, f"“{error.name}” cannot be read", text)
        case NotFound():
            holds = "It may have been deleted with its log file, or belong to another log folder."
            return Trouble(404, "Not recorded", f"{error}", holds)
        case Absent():
            return Trouble(410, "Not here any more", f"{error}")
        case Withheld():
            text = "This gateway lets its administrators see that there was this call, and nothing that was said."
            return Trouble(403, "Not yours to read", text)
        case TookTooLong():
            text = "The query was stopped so that nothing else waits for it."
            return Trouble(503, "This took too long", text, "Narrow it by date, project or model, and try again.")
        case NoIndexYet():
            text = "The index is made when the daemon starts, and from logs that are there already."
            return Trouble(503, "Nothing is indexed yet", text, "This page looks again by itself.", 2)
        case _:
            holds = "The log files are untouched; `llm-proxy reindex` makes the index new."
            return Trouble(503, "The index cannot be read", "", holds, 5, str(error))


def _answer(request: web.Request, trouble: Trouble) -> web.Response:
    """What went wrong, as the page or the JSON that was asked for."""
    viewer = request.get(guard.VIEWER, NOBODY)
    if viewer.sees_everything and trouble.inner:
        trouble = trouble._replace(text=trouble.inner)
    status, headers = trouble.status, {"Retry-After": str(trouble.again)} if trouble.again else {}
    if _wants_json(request):
        body = as_json({"error": trouble.heading, "message": f"{trouble.text} {trouble.holds}".strip()})
        return web.Response(body=body, status=status, content_type="application/json", headers=headers)
    asked = Asked(_path_of(request), {"utc": "0"}, viewer=viewer)
    page = request.app[SITE].html("error", asked, trouble=trouble)
    if trouble.again:
        headers["Refresh"] = str(trouble.again)  # what Retry-After is to programs
    return web.Response(text=page, status=status, content_type="text/html", headers=headers)


async def _static(request: web.Request) -> web.StreamResponse:
    file = render.assets.file(request.match_info["name"])
    if file is None:
        raise web.HTTPNotFound
    return web.Response(body=file.data, content_type=file.type, headers={"Cache-Control": CACHE})
