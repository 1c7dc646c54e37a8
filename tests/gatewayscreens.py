"""The gateway's pages in a browser: one gateway for all tests of a module, and people who have signed in to it.

`look("/keys", "ada@example.com", dark=True, width=400)` is a page as ada sees it; `""` is somebody who has not signed
in. `judge(page)` finds what must hold on every page. No request of a page goes elsewhere, nothing breaks its security
policy, no script fails.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests import browser as browsers
from tests.gatewaybed import PASSWORD, Answer, Gateway, a_gateway

ROOT = "/llm-proxy/team"
ADMIN = "admin@example.com"
LOOKS = {"light": {}, "dark": {"dark": True}, "narrow": {"width": 400}}

browser = browsers.browser
visit = browsers.visit


class Person:
    """Who asks without a browser: the cookie that comes is sent again, forms bring what their page has."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.cookie = ""

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Header fields by names with underscores; one that is empty is left out."""
        told = {name.replace("_", "-"): value for name, value in headers.items() if value}
        if self.cookie:
            told.setdefault("Cookie", f"llm_proxy_team={self.cookie}")
        answer = self.gateway.ask(method, ROOT + path, body, headers=told)
        for line in answer.headers.get_all("Set-Cookie", ()):
            self.cookie = line.partition(";")[0].partition("=")[2]
        return answer

    def token(self, path: str) -> str:
        """That the forms of a page bring."""
        found = re.search(rb'name="token" value="(\w+)"', self.get(path).body)
        assert found is not None, path
        return found[1].decode()

    def post(self, path: str, fields: dict[str, Any], **headers: str) -> Answer:
        """As a browser does. Fields and header fields of the same names come instead of the usual ones."""
        told = {"token": None, "do": "", **fields}
        if told["token"] is None:
            told["token"] = self.token(path)
        usual = {"Origin": self.gateway.url, "Sec_Fetch_Site": "same-origin"}
        usual |= {"Content_Type": "application/x-www-form-urlencoded"}
        return self.ask("POST", path, urlencode(told, doseq=True).encode(), **(usual | headers))

    def sign_in(self, email: str, password: str = PASSWORD) -> Person:
        assert self.post("/log-in", {"email": email, "password": password}).status == 303
        return self


class Screens:
    """A gateway that is there, and its people's browsers' cookies."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._cookies: dict[str, str] = {}
        assert gateway.admin

    @property
    def url(self) -> str:
        return self.gateway.url + ROOT

    def person(self, email: str = "") -> Person:
        """With a session of the account of this address, made where there is none; without, a stranger."""
        made = Person(self.gateway)
        if email:
            if email not in self._cookies:
                if email != ADMIN:
                    self.gateway.ask("POST", "/auth/signup", {"email": email, "password": PASSWORD})
                self._cookies[email] = made.sign_in(email).cookie
            made.cookie = self._cookies[email]
        return made

    def cookies(self, email: str) -> list[dict[str, str]]:
        """For `context.add_cookies`."""
        if not email:
            return []
        return [{"name": "llm_proxy_team", "value": self.person(email).cookie, "url": self.gateway.url + "/llm-proxy"}]


@contextlib.contextmanager
def some_screens(home: Any, **more: Any) -> Iterator[Screens]:
    with a_gateway(home, **more) as gateway:
        yield Screens(gateway.wait())


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screens]:
    with some_screens(tmp_path_factory.mktemp("screens")) as made:
        yield made


@pytest.fixture
def look(screens: Screens, visit: Callable[..., Page]) -> Callable[..., Page]:
    return lambda path, email="", **options: visit(screens.url + path, cookies=screens.cookies(email), **options)


@pytest.fixture(scope="module")
def windows(browser: Browser, screens: Screens) -> Iterator[Callable[[str, str], Page]]:
    """`windows(look, email)`: one page for each look and person, to go from address to address."""
    found: dict[tuple[str, str], Page] = {}

    def window(look: str, email: str) -> Page:
        if (look, email) not in found:
            width, dark = LOOKS[look].get("width", 1280), LOOKS[look].get("dark", False)
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
            )
            context.add_cookies(screens.cookies(email))
            found[look, email] = context.new_page()
        return found[look, email]

    yield window
    for page in found.values():
        page.context.close()


def judge(page: Page) -> None:
    """No violation that axe-core knows of, one h1, and no wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")
    assert page.locator("h1").count() == 1
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert not found, "\n".join(
        f"{one['id']}: {one['help']}\n"
        + "\n".join(f"  {node['html'][:200]}\n    {node['failureSummary']}" for node in one["nodes"][:4])
        for one in found
    )
