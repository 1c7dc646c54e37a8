"""What watching costs: streams with and without somebody who looks at them, and how soon their words are on a screen.

The explorer is the daemon's own. Streams are measured in turns, alone and with somebody who takes all live events,
because machines are not the same from one minute to the next: with curl, for what a browser needs to paint is not ours.
The screen is a headless Chromium's.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median

from playwright.sync_api import Page, sync_playwright

from bench_suite.added import percentiles
from bench_suite.contestants import PATIENCE, Contestant, event_source, ours
from bench_suite.streams import open_streams
from bench_suite.table import Row
from llm_proxy.explorer import guard
from tests.browser import _FLAGS, executable

STREAMS = 150
SETTLE = 2.0  # seconds until all streams flow
_LOOK = 0.002  # seconds between two looks at the stream: as exact as the figure is

# When text of a call grew, in ms since 1970: the journal's words are on the page.
_OBSERVE = """() => { window.grown = []; new MutationObserver(() => window.grown.push(Date.now()))
    .observe(document.querySelector('#flights'), {childList: true, subtree: true, characterData: true}); }"""


def _entrance(to: Contestant) -> tuple[str, str, str]:
    """The explorer's root, and the cookie's name and value; its first visit starts it."""
    assert to.record is not None
    state = to.record.home / ".local/state/llm-proxy"
    secret = state / "secret"
    keys = guard.Keys(secret.read_text().strip() if secret.exists() else guard.new_secret(state))
    name, value = keys.cookie, keys.session(time.time())
    end = time.monotonic() + PATIENCE
    while True:
        link = http.client.HTTPConnection("127.0.0.1", to.port, timeout=PATIENCE)
        link.request("GET", "/llm-proxy/live", headers={"Cookie": f"{name}={value}"})
        status = link.getresponse().status
        link.close()
        if status == 200:
            return f"http://127.0.0.1:{to.port}/llm-proxy", name, value
        if time.monotonic() > end:
            raise TimeoutError(f"the explorer answers {status}")
        time.sleep(0.1)


@contextmanager
def watched(to: Contestant) -> Iterator[None]:
    """Somebody takes all live events."""
    url, name, value = _entrance(to)
    command = ["curl", "-sN", "-o", os.devnull, "-H", f"Cookie: {name}={value}", f"{url}/live/events"]
    with subprocess.Popen(command) as process:
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError("nobody was watching any more")
        finally:
            process.terminate()


@contextmanager
def _screen(to: Contestant) -> Iterator[Page]:
    """Chromium on the live page, following."""
    url, name, value = _entrance(to)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(_FLAGS))
        context = browser.new_context()
        context.add_cookies([{"name": name, "value": value, "url": url}])
        page = context.new_page()
        page.goto(f"{url}/live")
        page.wait_for_function("document.querySelector('#follow b').textContent === 'Following'")
        try:
            yield page
        finally:
            browser.close()


def rows(*, quick: bool) -> list[Row]:
    count, seconds = (2, 3.0) if quick else (12, 4.0)
    alone: list[tuple[float, float]] = []
    looked_at: list[tuple[float, float]] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(event_source())
        to = stack.enter_context(ours(upstream))
        for number in range(count):
            for found in ((alone, looked_at), (looked_at, alone))[number % 2]:
                with ExitStack() as look:
                    if found is looked_at:
                        look.enter_context(watched(to))
                    found.append(_delays(to, seconds))
        p50, p95 = _to_screen(to, seconds * 4)
    cells = {found is looked_at: _cell(found) for found in (alone, looked_at)}
    ratio = median(two[1] / one[1] for one, two in zip(alone, looked_at, strict=True))
    return [
        Row("live, per event, unwatched", {"ours": cells[False]}),
        Row("live, p99 per event, watched", {"ours": cells[True]}, judged=ratio),
        Row("live, from the source to the screen, p50", {"ours": f"{p50:,.0f} ms, p95 {p95:,.0f} ms"}, judged=p50),
    ]


def _cell(found: Sequence[tuple[float, float]]) -> str:
    return "p50 {:,.0f} µs, p99 {:,.0f} µs".format(*(median(one[place] for one in found) for place in (0, 1)))


def _delays(to: Contestant, seconds: float) -> tuple[float, float]:
    """p50 and p99 from the source through us to the client, µs."""
    with open_streams(to, STREAMS) as streams:
        streams.delays(SETTLE)
        return percentiles(streams.delays(seconds))


def _to_screen(to: Contestant, seconds: float) -> tuple[float, float]:
    """p50 and p95 in ms from the source's send to the next growth of the page's text, of one stream."""
    sent = []
    with _screen(to) as page, open_streams(to, 1) as streams:
        streams.delays(SETTLE)
        page.evaluate(_OBSERVE)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sent += [time.time() * 1000 - delay / 1e6 for delay in streams.delays(_LOOK)]
        time.sleep(1)
        grown = page.evaluate("window.grown")
    took = sorted(min((at - one for at in grown if at >= one), default=1e9) for one in sent)
    return took[len(took) // 2], took[len(took) * 95 // 100]
