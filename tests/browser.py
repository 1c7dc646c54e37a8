"""A real browser for tests: Debian's Chromium, driven by Playwright, and what must hold on every page it visits.

`visit(url)` gives a page on which any error, any report of the content security policy and any request to elsewhere
fails the test. Where there is no Chromium the tests skip and say so, unless CI_REQUIRE_BROWSER is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def executable() -> str:
    """Chromium's path; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI_REQUIRE_BROWSER"):
            pytest.fail("no chromium, and CI_REQUIRE_BROWSER is set")
        pytest.skip("needs Chromium (Debian's package chromium)")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable(), args=list(_FLAGS))
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`visit(url, dark=False, width=1280, **context options)`: a page that has loaded."""
    contexts = []
    troubles: list[str] = []

    def go(url: str, *, dark: bool = False, width: int = 1280, height: int = 900, **options: object) -> Page:
        home = urlsplit(url).netloc
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"error on {page.url}: {error}"))
        page.on("console", lambda said: troubles.append(f"{said.type}: {said.text}") if said.type == "error" else None)
        page.on(
            "request",
            lambda sent: (
                None
                if urlsplit(sent.url).netloc == home or sent.url.startswith(("data:", "blob:"))
                else troubles.append(f"request to {sent.url}")
            ),
        )
        page.goto(url)
        return page

    yield go
    for context in contexts:
        context.close()
    assert not troubles, "\n".join(troubles)
