"""What a page is: its path, who may come, what it shows and what its forms do. One table of them makes the site.

Leaves out who comes (`door`), serving (`serving`) and HTML (`render`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from llm_proxy.gateway.facts import Caller
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.routes import Access
from llm_proxy.gateway.screens.desk import Desk
from llm_proxy.gateway.site import Site

ROOT: Final = "/llm-proxy/team"


@dataclass(frozen=True, slots=True)
class Html:
    """A page from `templates/{template}.html`, with these values."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Lead:
    """On to another page of ours (`/keys`, below the root), which says what was done: a name in its `said`.

    `cookie` is a session that begins, "" one that ends. `outside` leads anywhere on this host, by a whole path.
    """

    path: str
    said: str = ""
    cookie: str | None = None
    outside: bool = False

    @property
    def location(self) -> str:
        place = self.path if self.outside else ROOT + self.path
        return place + (f"{'&' if '?' in place else '?'}{urlencode({'said': self.said})}" if self.said else "")


@dataclass(frozen=True, slots=True)
class File:
    """Something to be saved by this name, or, without one, read by a program."""

    data: bytes
    type: str
    name: str = ""


Answer = Html | Lead | File


class Form:
    """What was typed: each field once (`get`) or as often as it came (`all`)."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.pairs)

    def get(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page. `caller` is NOBODY on a public page that nobody who has signed in visits.

    `origin` is where the browser reaches us, as in `https://llm.example.com`. After a form that was refused, `trouble`
    says why, and `form` has what was typed.
    """

    site: Site
    page: Page
    caller: Caller
    params: Mapping[str, str]
    query: Mapping[str, str]
    form: Form
    address: str
    origin: str
    token: str  # that the page's forms bring
    trouble: Refusal | None = None

    @property
    def desk(self) -> Desk:
        """The managing API, for this caller."""
        return Desk(self.site, self.caller, self.address)

    @property
    def url(self) -> str:
        """What clients are told as the gateway's address."""
        return self.site.options.public_url.rstrip("/") or self.origin

    def typed(self, name: str, default: object = "") -> object:
        """What a form's field shows: what was typed into it before it was refused, else this."""
        return default if self.trouble is None else self.form.get(name)


Show = Callable[[Visit], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Page:
    """`path` is below the root, with parameters as in `/keys/{id}`. A form's button named `do` chooses among `acts`.

    A page with a `nav` is in the navigation, by `order`. `said` has the sentences for what was done (`Lead.said`).
    `machine`: errors are said in JSON.
    """

    path: str
    access: Access
    title: str
    show: Show
    acts: Mapping[str, Show] = field(default_factory=dict)
    nav: str = ""
    order: int = 0
    said: Mapping[str, str] = field(default_factory=dict)
    machine: bool = False
