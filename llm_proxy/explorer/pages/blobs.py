"""Recorded pictures, by their hash, from the call that a conversation names.

The hash is compared with what stands in that call's bodies; no path is made of it. Whatever the bytes are called there,
they are sent as the kind of picture that they begin as, and do nothing.
"""

from __future__ import annotations

import re

from aiohttp import web

from llm_proxy.explorer import blobs
from llm_proxy.explorer.asking import BadValue, NotFound, Param, text
from llm_proxy.explorer.page import Extra
from llm_proxy.explorer.pages.session import call_of
from llm_proxy.explorer.reading import Calls
from llm_proxy.explorer.render import ROOT
from llm_proxy.index.record import Record

PARAMS: tuple[Param, ...] = (
    text("session", "Id of the session that shows it."),
    text("call", "Id of the call whose body holds it."),
)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
# Opened by itself, it is in a sandbox of its own.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}
# What has a hash for a name never changes; of what a team's user sees a browser that others use too keeps nothing.
_KEPT = "private, max-age=31536000, immutable"


def blob(record: Record, session: str, call: str, wanted: str) -> blobs.Blob:
    """Raises NotFound, BadValue."""
    if not _HASH.fullmatch(wanted):
        raise BadValue("sha256", "64 hex digits", wanted)
    row = call_of(record, session, call)
    calls = Calls(record)
    for answer in (False, True):
        for found in blobs.pictures(calls.bodies(row, answer=answer)):
            if found.sha256 == wanted:
                return found
    raise NotFound("This call holds no picture with that hash.")


async def _send(request: web.Request) -> web.StreamResponse:
    from llm_proxy.explorer.site import SITE, asked_of

    asked = asked_of(request, request.path.removeprefix(ROOT), PARAMS)
    wanted = asked.ids["sha256"]
    found = await request.app[SITE].ask(
        asked.viewer, lambda record: blob(record, asked["session"], asked["call"], wanted)
    )
    name = f"{wanted[:16]}.{found.type.partition('/')[2]}"
    # As a download where it is opened as a page; an <img> shows it all the same.
    alone = request.headers.get("Sec-Fetch-Dest", "document") != "image"
    headers = _HEADERS | {"Content-Disposition": f'{"attachment" if alone else "inline"}; filename="{name}"'}
    headers["Cache-Control"] = _KEPT if asked.viewer.sees_everything else "no-store"
    return web.Response(body=found.data, headers=headers | {"Content-Type": found.type})


EXTRAS = (Extra("/blobs/{sha256}", _send, "A recorded picture.", PARAMS),)
