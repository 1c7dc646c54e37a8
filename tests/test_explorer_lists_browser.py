"""Home, search and figures in a real browser: keys, links that keep what was chosen, charts, and all of it without scripts."""

from __future__ import annotations

import time
import uuid

import pytest

from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from scripts.make_logs import make
from tests import journals
from tests.browser import Served, browser, look, served, visit  # noqa: F401  # fixtures
from tests.explored import live
from tests.test_explorer_live import with_id


def text(page, selector):
    return page.locator(selector).first.inner_text()


def test_keys_go_through_the_sessions(look):  # noqa: F811
    """j and k move the focus from session to session, Enter opens the one that has it."""
    page = look("/")
    titles = page.locator(".row .ttl").all_inner_texts()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.innerText") == titles[1]
    where = page.evaluate("document.activeElement.href")
    page.keyboard.press("Enter")
    page.wait_for_url(where)


@pytest.mark.parametrize("scripts", [True, False])
def test_filters_are_links_that_add_up_and_come_off(look, scripts):  # noqa: F811
    """Everything chosen stands in the address, also without scripts, and each chip takes one thing back."""
    page = look("/", java_script_enabled=scripts)
    page.locator(".facets a", has_text="ledger").click()
    page.locator(".facets a", has_text="with errors").click()
    assert {"project=ledger", "status=errors"} <= set(page.url.partition("?")[2].split("&"))
    assert text(page, ".bar2 b") == "1"
    page.locator(".row.head a", has_text="Cost").click()
    assert "sort=cost" in page.url and "project=ledger" in page.url
    page.locator(".chip", has_text="status").click()
    assert "status" not in page.url and "sort=cost" in page.url and "project=ledger" in page.url
    assert int(text(page, ".bar2 b")) > 1
    page.locator(".hist a").last.click()
    assert "from=" in page.url and "to=" in page.url


@pytest.mark.parametrize("scripts", [True, False])
def test_pages_lead_on_and_back(look, scripts):  # noqa: F811
    """The last page has what the first ones had not, and says that it is the last."""
    page = look("/?n=5", java_script_enabled=scripts)
    seen = page.locator(".row .ttl").evaluate_all("all => all.map(one => one.href)") if scripts else []
    total = int(text(page, ".bar2 b"))
    number = 1
    while page.locator("a[rel=next]").count():
        page.locator("a[rel=next]").click()
        number += 1
        if scripts:
            seen += page.locator(".row .ttl").evaluate_all("all => all.map(one => one.href)")
    assert number == -(-total // 5) and page.get_by_text("the last page").count()
    assert not scripts or len(seen) == len(set(seen)) == total


def test_a_hit_opens_the_turn_that_holds_it(look):  # noqa: F811
    """From the search line to the marked word in the conversation."""
    page = look("/")
    page.keyboard.press("/")
    page.keyboard.type("iterated role:assistant")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?*")
    assert page.locator("#bq").input_value() == "iterated role:assistant"
    assert text(page, ".snip mark") == "iterated"
    page.locator(".snip").first.click()
    page.wait_for_url("**/sessions/*")
    turn = page.locator(".turn.found")
    turn.wait_for()
    assert turn.locator("mark", has_text="iterated").count()


def test_a_facet_puts_its_filter_into_the_line(look):  # noqa: F811
    page = look("/search?q=reconcile")
    before = int(text(page, ".bar2 b"))
    page.locator(".facets a", has_text="tool result").click()
    assert page.locator("#bq").input_value() == "reconcile role:tool"
    assert int(text(page, ".bar2 b")) < before
    page.locator(".facets a[aria-current]").first.click()
    assert page.locator("#bq").input_value() == "reconcile"


def test_the_command_is_copied(look):  # noqa: F811
    page = look("/search?q=reconcile role:tool", permissions=["clipboard-read", "clipboard-write"])
    page.locator("[data-copy]").click()
    page.locator(".toast").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "llm-proxy search 'reconcile role:tool'"


def test_charts_are_drawn_in_the_colours_of_the_theme(look):  # noqa: F811
    """A canvas for each panel, drawn anew where the theme changes; the table is a click away."""
    page = look("/figures")
    panels = page.locator(".fig").count()
    assert panels >= 7 and page.locator(".fig canvas").count() == panels
    coloured = """name => {
        const canvas = document.querySelector('#tokens canvas');
        const colour = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
        const wanted = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let at = 0; at < data.length; at += 4) found += data[at + 3] > 250 && wanted.every((one, part) => Math.abs(data[at + part] - one) < 3);
        return found;
    }"""
    assert page.evaluate(coloured, "--tk-write") > 20
    light = page.evaluate("document.querySelector('#tokens canvas').toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("was => document.querySelector('#tokens canvas').toDataURL() !== was", arg=light)
    assert page.evaluate(coloured, "--tk-write") > 20
    assert page.locator("#spend table").is_hidden()
    page.locator("#spend [data-toggle]").click()
    assert page.locator("#spend table").is_visible() and page.locator("#spend canvas").is_hidden()
    page.locator("#spend [data-toggle]").click()
    assert page.locator("#spend canvas").is_visible()


def test_a_chart_tells_what_is_under_the_pointer(look):  # noqa: F811
    page = look("/figures?range=7d")
    box = page.locator("#requests .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 13.5 / 14, box["y"] + box["height"] / 2)
    legend = page.locator("#requests .legend")
    last = page.locator("#requests tbody tr").last
    assert last.locator("th").text_content() in legend.inner_text()
    assert last.locator("td").first.text_content() in legend.inner_text()


def test_a_day_alone_is_a_point(tmp_path, visit):  # noqa: F811
    """Lines are drawn where nothing but today was recorded: no line leads through one value."""
    alone = Served(tmp_path, scenes=[live])
    try:
        page = visit(alone.url + "/figures", cookies=alone.cookies)
        drawn = """() => {
            const canvas = document.querySelector('#latency canvas');
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
                const parts = data.slice(at, at + 3);
                found += data[at + 3] > 250 && Math.max(...parts) - Math.min(...parts) > 30;
            }
            return found;
        }"""
        assert page.evaluate(drawn) > 5
    finally:
        alone.close()


def test_figures_without_scripts_are_tables(look):  # noqa: F811
    """And the link of a panel leads to its table."""
    page = look("/figures", java_script_enabled=False)
    assert page.locator(".fig table").count() == page.locator(".fig table:visible").count() >= 7
    assert not page.locator(".fig canvas").count()
    page.locator("#cache [data-toggle]").click()
    assert "tab=table" in page.url and page.url.endswith("#cache")


def test_a_window_that_narrows_narrows_the_charts(look):  # noqa: F811
    page = look("/figures")
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_function("() => document.querySelector('#tokens canvas').getBoundingClientRect().right < 400")
    assert page.evaluate("document.documentElement.scrollWidth") == 400


def begin(served, number):  # noqa: F811
    """A session comes into the record, and its call into the journal."""
    before = set(session_ids(served))
    make(served.made.logs, calls=1, sessions=1, seed=number, end=int(time.time()) + 31 * 86_400 + number)
    indexer = Indexer(served.made.index, served.made.logs)
    indexer.catch_up_all()
    indexer.close()
    (new,) = set(session_ids(served)) - before
    with open_index(served.made.index) as index:
        (call,) = index.calls_of(new)
    served.add(*(with_id(frame, uuid.UUID(call.id)) for frame in journals.Call(number).frames))
    return new


def session_ids(served):  # noqa: F811
    with open_index(served.made.index) as index:
        return [row.id for row in index.sessions(Filter(), None)]


def test_a_new_session_comes_in_by_itself(look, served):  # noqa: F811
    """At the top of the list it is shown as soon as it is recorded."""
    page = look("/")
    page.locator("#list[data-following]").wait_for()
    new = begin(served, 41)
    page.locator(f".row a[href$='{new}']").wait_for()
    assert page.locator("#pill").is_hidden()


def test_a_reader_is_not_moved(look, served):  # noqa: F811
    """Further down a pill says that there is something new, and the list stays as it is until it is asked for."""
    page = look("/", height=300)
    page.locator("#list[data-following]").wait_for()
    page.evaluate("scrollTo(0, 250)")
    new = begin(served, 42)
    page.locator("#pill button", has_text="1 new call").wait_for()
    assert page.evaluate("scrollY") == 250 and not page.locator(f".row a[href$='{new}']").count()
    page.locator("#pill button").click()
    page.locator(f".row a[href$='{new}']").wait_for()
    assert page.evaluate("scrollY") == 0 and page.locator("#pill").is_hidden()
