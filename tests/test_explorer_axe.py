"""Every page for everybody: axe-core finds nothing, in light and dark and at 400 px, where nothing scrolls sideways."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests import journals
from tests.browser import browser, served  # noqa: F401  # fixtures
from tests.test_explorer_live import ANTHROPIC, SSE, paced

LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (400, "light")}
PAGES = {
    "home": "/",
    "home, nothing matches": "/?project=nowhere",
    "home, sorted and filtered": "/?sort=cost&provider=anthropic",
    "search, empty": "/search",
    "search": "/search?q=order",
    "search, nothing found": "/search?q=zebrafinch",
    "figures": "/figures?range=30d",
    "figures, a table": "/figures?range=30d&tab=table&of=spend",
    "live": "/live",
    "conversation": "/sessions/{ledger}",
    "conversation, calls": "/sessions/{ledger}?view=calls",
    "conversation, hostile": "/sessions/{hostile}",
    "conversation, no conversation": "/sessions/{plain}",
    "call": "/calls/{call}",
    "call, diff": "/calls/{call}?tab=diff",
    "call, events": "/calls/{call}?tab=events",
    "call, bodies": "/calls/{call}?tab=http",
    "call, raw": "/calls/{call}?tab=raw",
    "call that failed": "/calls/{failed}",
    "API": "/api/",
    "not found": "/sessions/nothing-of-that-name",
    "bad value": "/?n=many",
}


@pytest.fixture(scope="module")
def pages(browser, served):  # noqa: F811
    """One page for each look, to go from address to address."""
    call = journals.Call(1, headers=SSE, pieces=paced(ANTHROPIC))
    waiting = journals.Call(2, target="/v1/chat/completions")
    served.add(*call.frames[:-1], waiting.open, waiting.request)
    contexts, found = [], {}
    for look, (width, scheme) in LOOKS.items():
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.add_cookies(served.cookies)
        contexts.append(context)
        found[look] = context.new_page()
    yield found
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_a_page_is_for_everybody(pages, served, look, name):  # noqa: F811
    """No violation that axe-core knows of, one h1, and no wider than the window."""
    page = pages[look]
    made = served.made
    ids = made.sessions | {"call": made.calls["ledger"][4], "failed": made.calls["plain"][2]}
    page.goto(served.url + PAGES[name].format(**ids))
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth")
    assert page.locator("h1").count() == 1
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    assert not found, "\n".join(
        f"{one['id']}: {one['help']}\n"
        + "\n".join(f"  {node['html'][:200]}\n    {node['failureSummary']}" for node in one["nodes"][:4])
        for one in found
    )
