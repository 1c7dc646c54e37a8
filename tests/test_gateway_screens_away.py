"""The gateway's pages while its store is away: they say so, keep who has signed in, and come back by themselves."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import gatewayscreens
from tests.gatewaybed import SECRETS, a_gateway
from tests.gatewayscreens import ADMIN, ROOT, Screens, judge
from tests.postgresbed import SERVER
from tests.storeaway import shut, unlock

browser, visit = gatewayscreens.browser, gatewayscreens.visit

PAGES = (
    *("/usage", "/providers", "/aliases", "/aliases/new", "/keys", "/clients", "/limits", "/account", "/users"),
    *("/users/1", "/teams", "/audit"),
)
AT_ONCE = 15.0  # seconds, where nothing hangs


@pytest.fixture(scope="module")
def away(tmp_path_factory):
    """A gateway whose store is away, of which an administrator's browser is known, and that store's URL."""
    url = SERVER.url(asyncio.run(SERVER.create()))
    with a_gateway(tmp_path_factory.mktemp("away"), env=SECRETS | {"DATABASE_URL": url}) as gateway:
        screens = Screens(gateway.wait())
        known = screens.person(ADMIN)
        assert known.get("/keys").status == 200
        known.forms = known.token("/keys")
        asyncio.run(shut(url))
        yield screens, known, url


@pytest.mark.parametrize("path", PAGES)
def test_a_page_says_that_the_store_is_away(away, path):
    """503 with the reason, asked for again by the browser itself, and nobody is signed out."""
    _, known, _ = away
    begun = time.monotonic()
    answer = known.get(path)
    assert time.monotonic() - begun < AT_ONCE
    assert (answer.status, answer.headers["Refresh"]) == (503, "5") and answer.headers["Retry-After"] == "5"
    text = answer.body.decode()
    assert "store cannot be reached" in text and f'href="{ROOT}{path}">Try again' in text
    assert "Set-Cookie" not in answer.headers and "Traceback" not in text


def test_who_is_not_known_yet_is_not_sent_away(away):
    """A cookie that cannot be looked up is kept; who has none is told the same; what needs no store is there."""
    screens, known, _ = away
    stranger = screens.person()
    told = stranger.get("/keys", Cookie=f"llm_proxy_team={known.cookie[:-2]}xx")
    assert told.status in (303, 503)  # a forged one is refused without the store
    assert stranger.get("/log-in").status == 503
    machine = stranger.get("/me", Cookie=f"llm_proxy_team={known.cookie}")
    assert machine.status in (200, 503) and machine.headers.get_content_type() == "application/json"
    assert stranger.get("/static/team.css").status == 200


def test_a_form_says_that_it_may_not_have_been_kept(away):
    """And is not sent again by itself."""
    _, known, _ = away
    answer = known.post("/keys", {"token": known.forms, "do": "make", "scope": "models", "name": "lost"})
    assert answer.status == 503 and "Refresh" not in answer.headers
    assert "may not have been kept" in answer.body.decode()


def test_a_browser_comes_back_by_itself(away, visit):
    """Whoever waits before the page sees it once the store is there, without a hand."""
    screens, known, url = away
    cookies = [{"name": "llm_proxy_team", "value": known.cookie, "url": f"{screens.gateway.url}/llm-proxy"}]
    page = visit(f"{screens.url}/keys", cookies=cookies)
    assert page.locator("h1").inner_text() == "Not now"
    judge(page)
    with ThreadPoolExecutor(1) as beside:  # a loop runs here already, which is the browser's
        beside.submit(asyncio.run, unlock(url)).result()
    page.get_by_role("heading", name="API keys").wait_for(timeout=40_000)
    assert page.get_by_role("heading", name="Your keys").is_visible()
