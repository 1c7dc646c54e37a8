"""A conversation in a real browser: it arrives as one scrolls, opens what is opened, and works without scripts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest

from llm_proxy.explorer import guard
from llm_proxy.index.ingest import Indexer
from scripts import make_conversation
from tests.browser import browser, visit  # noqa: F401  # fixtures
from tests.explored import record

NOW = 1_795_000_000


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An explorer of its own process, with a realistic record and a conversation of 100 turns."""
    folder = tmp_path_factory.mktemp("served")
    made = record(folder, NOW)
    long = make_conversation.make(made.logs, turns=100, size=120_000, end=NOW)
    indexer = Indexer(made.index, made.logs)
    indexer.catch_up_all()
    indexer.close()
    state = folder / "state"
    state.mkdir(mode=0o700)
    secret = guard.new_secret(state)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {"index": str(made.index), "logs": str(made.logs), "state": str(state), "port": port}
    process = subprocess.Popen([sys.executable, "-m", "llm_proxy.explorer", json.dumps(options)])
    root = f"http://127.0.0.1:{port}/llm-proxy"
    try:
        _wait(f"{root}/", process)
        yield SimpleNamespace(root=root, made=made, long=long["session"], headers=guard.bearer(secret))
    finally:
        process.terminate()
        process.wait(20)


def _wait(url, process):
    for _ in range(400):
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=10)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)  # nothing tells when a process listens
    raise AssertionError("the explorer did not begin to listen")


@pytest.fixture
def open_page(visit, served):  # noqa: F811
    def go(path, **how):
        return visit(f"{served.root}/sessions/{path}", extra_http_headers=served.headers, **how)

    return go


def until(page, condition):
    """Playwright's own waiting evaluates text in the page, which our policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def turns(page):
    return page.evaluate("[...document.querySelectorAll('#turns .turn:not(.user)')].map((one) => one.id)")


def test_turns_arrive_as_one_scrolls(open_page, served):
    """First forty, then the others before they are reached; in the end all, in order, each once."""
    page = open_page(served.long)
    assert turns(page)[:40] == [f"t{number}" for number in range(1, 41)]
    for _ in range(30):
        if len(turns(page)) == 100:
            break
        known = len(turns(page))
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        until(page, f"document.querySelectorAll('#turns .turn:not(.user)').length > {known}")
    assert turns(page) == [f"t{number}" for number in range(1, 101)]
    assert page.locator("[data-turns]").count() == 0


def test_a_link_into_the_middle_shows_what_is_around(open_page, served):
    """Earlier turns come above on demand, and what is read stays where it is."""
    page = open_page(f"{served.long}?from=61#t70")
    until(page, "Math.abs(document.getElementById('t70').getBoundingClientRect().top - 48) < 24")
    assert turns(page)[0] == "t61"
    page.evaluate("document.getElementById('t61').scrollIntoView()")
    page.wait_for_timeout(200)
    before = page.evaluate("document.getElementById('t61').getBoundingClientRect().top")
    page.evaluate("document.querySelector('[data-earlier]').click()")
    page.wait_for_selector("#t21", state="attached")
    assert turns(page)[:2] == ["t21", "t22"] and "t60" in turns(page)
    after = page.evaluate("document.getElementById('t61').getBoundingClientRect().top")
    assert abs(after - before) < 40
    assert "1–20" in page.inner_text("[data-earlier]")


def test_what_is_folded_is_fetched_when_it_is_opened(open_page, served):
    """System prompt, tools and long results; a picture is loaded when its card is opened, from here."""
    page = open_page(served.made.sessions["ledger"])
    page.click("#sys summary")
    page.wait_for_selector("#sys .opened .md")
    assert "You are an interactive agent" in page.inner_text("#sys .opened")
    page.click("#t2 details.tool summary")
    page.click("#t2 [data-more]")
    page.wait_for_selector("#t2 .opened pre")
    assert "run 59:" in page.inner_text("#t2 .opened") and page.locator("#t2 .io pre").count() == 2
    picture = page.locator("#u6 img")
    assert picture.evaluate("(one) => one.naturalWidth") == 0
    page.click("#u6 details.shot summary")
    until(page, "document.querySelector('#u6 img').naturalWidth === 24")


def test_a_search_lands_on_the_words(open_page, served):
    """The mark is on the screen, though it stood in a closed tool."""
    call = served.made.calls["ledger"][1]
    page = open_page(f"{served.made.sessions['ledger']}?call={call}&q=reconcile_groups_match")
    until(
        page,
        "(() => { const at = document.querySelector('#turns mark')?.getBoundingClientRect();"
        " return at && at.height > 0 && at.top > 40 && at.bottom < innerHeight; })()",
    )


def test_keys_go_through_turns_and_trouble(open_page, served):
    """`j` moves the focus from turn to turn, `n` from trouble to trouble, `t` opens all thinking."""
    page = open_page(served.made.sessions["ledger"])
    for expected in ("u1", "t1", "t2"):
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.id") == expected
    page.keyboard.press("n")
    page.wait_for_timeout(400)
    assert 0 < page.evaluate("document.querySelector('[data-trouble]').getBoundingClientRect().top") < 900
    page.keyboard.press("t")
    assert page.evaluate("[...document.querySelectorAll('details.th')].every((one) => one.open)")


def test_without_scripts_everything_is_a_link(open_page, served):
    """Turns are paged, parts have pages of their own."""
    page = open_page(served.long, java_script_enabled=False)
    assert page.locator(".turn:not(.user)").count() == 40
    page.click("a[rel=next]")
    assert "from=41" in page.url and page.locator("#t41").count() == 1
    page.goto(f"{served.root}/sessions/{served.made.sessions['ledger']}")
    page.click("#tools summary")
    page.click("#tools a")
    assert "WebFetch" in page.inner_text("main") and page.locator("h1").inner_text().startswith("Tools")


@pytest.mark.parametrize(
    ("name", "how"),
    [("ledger", {"width": 400}), ("hostile", {"width": 400}), ("plain", {}), ("ledger-fork", {"dark": True})],
    ids=["narrow", "hostile", "failures", "dark"],
)
def test_pages_are_fit_for_everybody(open_page, served, name, how):
    """With all folds open axe finds nothing, nothing runs that somebody wrote, and nothing is wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    for query in ("", "?view=calls"):
        page = open_page(served.made.sessions[name] + query, **how)
        page.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true; })")
        until(page, "!document.querySelector('main details[open] > [data-soon]')")
        found = Axe().run(page).response["violations"]
        assert not found, [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("window.pwned") is None
