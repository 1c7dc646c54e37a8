"""One call in a real browser: parts unfold, more events come, keys lead on, programs are copied; most of it unscripted."""

from __future__ import annotations

import time

import pytest

from llm_proxy.index.ingest import Indexer
from tests.browser import browser, look, served, visit  # noqa: F401  # fixtures
from tests.explored import SECOND, Maker, Session


@pytest.fixture(scope="module")
def long(served):  # noqa: F811
    """The id of a call whose answer has 1,200 events."""
    maker = Maker(served.made.logs, time.time_ns())
    maker._number = 50_000
    session = Session(maker, "long", "openai", "api.openai.com", maker.now - 60 * SECOND)
    events = [(n, f'data: {{"n": {n}}}\n\n') for n in range(1200)]
    id = session.call("/v1/chat/completions", {"model": "m"}, events=events)
    indexer = Indexer(served.made.index, served.made.logs)
    indexer.catch_up_all()
    indexer.close()
    return id


@pytest.fixture
def ledger(served):  # noqa: F811
    return served.made.calls["ledger"]


def test_a_part_of_the_body_is_fetched_when_it_is_opened(look, ledger):  # noqa: F811
    """And only then; what is in it unfolds further."""
    page = look(f"/calls/{ledger[7]}?tab=http")
    tools = page.locator("details:has(> summary .key:text-is('\"tools\"'))").first
    assert "mcp__ledger__balance" not in page.content()
    with page.expect_response(lambda answer: "/json?" in answer.url):
        tools.locator("> summary").click()
    tools.locator("> ul > li > details").first.wait_for()
    assert tools.locator("> ul > li").count() == 10
    last = tools.locator("> ul > li").last
    if last.locator("> details[data-fetch]").count():
        with page.expect_response(lambda answer: "/json?" in answer.url):
            last.locator("> details > summary").click()
    else:
        last.locator("> details > summary").click()
    last.get_by_text("mcp__ledger__balance", exact=False).first.wait_for()


def test_without_scripts_a_part_is_a_page_of_its_own(look, ledger):  # noqa: F811
    """Folding, downloads and parts are links and details."""
    page = look(f"/calls/{ledger[7]}?tab=http", java_script_enabled=False)
    tools = page.locator("details:has(> summary .key:text-is('\"tools\"'))").first
    tools.locator("> summary").click()
    tools.get_by_role("link", name="show by itself").click()
    assert page.locator(".jt > li > details[open] > ul > li").count() == 10
    page.get_by_role("link", name="Overview").click()
    page.get_by_text("Download").click()
    assert page.get_by_role("link", name="HAR").is_visible()


def test_more_events_come_below_those_there_are(look, long):  # noqa: F811
    """500 rows at a time, until all are there."""
    page = look(f"/calls/{long}?tab=events")
    for rows in (1000, 1200):
        with page.expect_response(lambda answer: "/events?" in answer.url):
            page.locator("[data-more]").click()
        page.locator(f".ev tbody tr:nth-child({rows})").wait_for()
    assert page.locator("[data-more]").count() == 0
    assert page.locator(".ev tbody tr").count() == 1200
    assert page.locator(".ev tbody tr").last.locator("td").first.inner_text() == "1,200"


def test_keys_lead_to_the_neighbours_and_to_the_diff(look, ledger):  # noqa: F811
    """[ and ] keep the tab; d shows what changed."""
    page = look(f"/calls/{ledger[7]}?tab=events")
    page.keyboard.press("[")
    page.wait_for_url(f"**/calls/{ledger[6]}?tab=events")
    page.keyboard.press("]")
    page.wait_for_url(f"**/calls/{ledger[7]}?tab=events")
    page.keyboard.press("d")
    page.wait_for_url("**tab=diff")
    assert page.locator(".break").inner_text().startswith("cached prefix ends here")
    page.keyboard.press("u")
    page.wait_for_url("**/sessions/**")


def test_programs_are_copied(look, ledger):  # noqa: F811
    """The same text that the link shows without scripts."""
    page = look(f"/calls/{ledger[0]}", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("link", name="Copy as cURL").click()
    page.get_by_role("status").wait_for()
    assert page.get_by_role("status").inner_text() == "Copied"
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("curl -X POST 'https://api.anthropic.com/v1/messages?beta=true'")
    assert "-H 'Authorization: '\"$ANTHROPIC_AUTH_TOKEN\"" in copied


def test_everything_hostile_stays_text(look, served):  # noqa: F811
    """On each tab, and in each part that is fetched."""
    page = look("/", width=400)
    for id in served.made.calls["hostile"]:
        for tab in ("overview", "diff", "events", "http", "raw"):
            page.goto(f"{served.url}/calls/{id}?tab={tab}")
            # The elements as they are now: a locator would look again, and what is open no longer counts.
            for fold in page.query_selector_all("details:not([open]) > summary")[:12]:
                if fold.is_visible():
                    fold.click(timeout=5000)
            page.wait_for_load_state("networkidle")
            assert page.evaluate("window.pwned === undefined")
            assert page.evaluate("document.documentElement.scrollWidth === innerWidth"), (id, tab)
