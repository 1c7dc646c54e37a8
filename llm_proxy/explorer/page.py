"""What a page is: a path, its parameters, a view made of the record, and a template that shows the view.

Each page is served twice, as HTML and as the same view in JSON under `api/`. Leaves out how (`site`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from llm_proxy.explorer.asking import Param

# (Record, Asked) -> view. Runs in a worker thread, with a read connection of its own. Returns a frozen dataclass of
# plain values (also tuples, Decimal, other such dataclasses): what the template shows and what the API gives; or a
# File. Raises NotFound, Absent, BadValue.
View = Callable[..., Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class File:
    """What a view gives instead of what a page shows: bytes to be saved as `name`; without one, a text to read."""

    name: str
    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """`path` begins with / and is relative to the explorer's root; `{id}` parts are matched up to the next slash."""

    path: str
    name: str  # of the template, and of the operation in the API's description
    title: str  # one sentence for the API's description
    params: tuple[Param, ...]
    view: View
    limit: float = 2.0  # seconds its queries may take
    with_live: bool = False  # its view is also given what is in flight: view(record, asked, live)


@dataclass(frozen=True, slots=True)
class Extra:
    """A path that is no page: a fragment, a download, an event stream. Described in the API where `title` is given."""

    path: str
    handler: Handler
    title: str = ""
    params: tuple[Param, ...] = ()
