"""A real browser for tests: Debian's Chromium, driven by Playwright, and what must hold on every page it visits.

`visit(url)` gives a page on which any error, any report of the content security policy and any request to elsewhere
fails the test. `Served` is an explorer with a realistic record and a journal that tests write. Where there is no
Chromium the tests skip and say so, unless CI_REQUIRE_BROWSER is set.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from playwright.sync_api import Browser, Page, sync_playwright

from llm_proxy.explorer import guard
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.site import BELL, application
from tests import explored, journals

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


class Served:
    """An explorer in a thread of its own. `add` writes frames into its journal and rings, as a daemon does."""

    def __init__(
        self, folder: Path, now: float | None = None, scenes: Iterable[explored.Scene] = explored.SCENES
    ) -> None:
        self.made = explored.record(folder, now, scenes)
        self.journal = journals.Journal(folder / "journal")
        (folder / "journal/keeper.json").write_text(json.dumps({"pid": os.getpid(), "state": "ok"}))
        state = folder / "state"
        state.mkdir(mode=0o700)
        secret = guard.new_secret(state)
        self.headers = guard.bearer(secret)
        keys = guard.Keys(secret)
        self._cookie = keys.cookie, keys.session(time.time())
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/llm-proxy"
        made, journal = self.made, str(folder / "journal")
        self._options = Options(str(made.index), str(made.logs), str(state), journal, version="1.0")
        self._loop = asyncio.new_event_loop()
        self._begun, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._begun.wait(20)

    async def _serve(self) -> None:
        self._app = application(self._options)
        self._runner = runner = web.AppRunner(
            self._app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        self._begun.set()
        await self._stop.wait()
        await runner.cleanup()

    @property
    def cookies(self) -> list[dict[str, str]]:
        """For `context.add_cookies`, as somebody has it who came in."""
        return [{"name": self._cookie[0], "value": self._cookie[1], "url": self.url}]

    def add(self, *frames: bytes) -> None:
        self.journal.add(*frames)
        self._loop.call_soon_threadsafe(self._app[BELL].ring)

    def disconnect(self) -> None:
        """Cut all connections, as a daemon that starts again does."""

        def cut() -> None:
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

        self._loop.call_soon_threadsafe(cut)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()
        self.journal.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    executable()
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    made.close()


@pytest.fixture
def look(served: Served, visit: Callable[..., Page]) -> Callable[..., Page]:
    """`look("/live", ...)`: a page of `served`, as its user sees it."""
    return lambda path, **options: visit(served.url + path, cookies=served.cookies, **options)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`visit(url, dark=False, width=1280, cookies=(), **context options)`: a page that has loaded."""
    contexts = []
    troubles: list[str] = []

    def go(
        url: str, *, dark: bool = False, width: int = 1280, height: int = 900, cookies: object = (), **options: object
    ) -> Page:
        home = urlsplit(url).netloc
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        contexts.append(context)
        context.add_cookies(list(cookies))
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(f"error on {page.url}: {error}"))
        # What could not be loaded is told better below; a page that says "not found" is meant.
        page.on(
            "console",
            lambda said: (
                troubles.append(f"{said.type}: {said.text}")
                if said.type == "error" and not said.text.startswith("Failed to load resource")
                else None
            ),
        )
        page.on(
            "response",
            lambda came: (
                troubles.append(f"status {came.status} for {came.url}")
                if came.status >= 400 and not came.request.is_navigation_request()
                else None
            ),
        )
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
