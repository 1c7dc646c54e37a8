"""Everything by keys: rows, turns, trouble, pages, help; real focus moves, and keys are dead where one writes."""

import pytest

from tests.browser import browser, look, served, visit  # noqa: F401  # fixtures

FOCUS = "document.activeElement.pathname"


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def at(page, address):
    """Wait until the address, without its anchor, ends so."""
    page.wait_for_function("end => location.href.split('#')[0].endsWith(end)", arg=address)


def test_rows_are_gone_through_and_opened(look):  # noqa: F811
    """j and k move focus from title to title, Enter opens, u goes up, and back."""
    page = look("/")
    titles = [one.get_attribute("href") for one in page.locator(".row .ttl").all()]
    press(page, "j")
    assert page.evaluate(FOCUS) == titles[0]
    press(page, "j", "j", "k")
    assert page.evaluate(FOCUS) == titles[1]
    with page.expect_navigation():
        press(page, "Enter")
    assert "/sessions/" in page.url
    with page.expect_navigation():
        press(page, "u")
    page.wait_for_function("location.pathname === '/llm-proxy/'")


@pytest.mark.parametrize(("key", "address"), [("h", "/"), ("s", "/search"), ("f", "/figures"), ("l", "/live")])
def test_g_and_a_letter_go_to_a_page(look, key, address):  # noqa: F811
    """From anywhere."""
    page = look("/api/")
    press(page, "g", key)
    at(page, "/llm-proxy" + address)


def test_search_help_and_escape(look):  # noqa: F811
    """/ goes to the search field, where letters are letters; Esc leaves it. ? shows the keys, Esc closes them."""
    page = look("/")
    press(page, "/")
    page.keyboard.type("jgl?")
    assert page.locator("#q").input_value() == "jgl?" and page.url.endswith("/llm-proxy/")
    press(page, "Escape")
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    press(page, "?")
    assert page.locator("#keys").is_visible()
    press(page, "j", "g", "l")
    assert page.evaluate("document.querySelector('#keys').contains(document.activeElement)")
    press(page, "Escape")
    assert not page.locator("#keys").is_visible() and page.url.endswith("/llm-proxy/")


def test_keys_can_be_switched_off_and_modifiers_are_the_browsers(look):  # noqa: F811
    """WCAG 2.1.4; Ctrl and its like are never taken."""
    page = look("/")
    press(page, "Control+j", "Alt+j")
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    press(page, "?")
    page.get_by_role("button", name="switched off").click()
    press(page, "Escape", "j")
    assert page.evaluate("!document.activeElement.matches('.ttl')")
    page.reload()
    press(page, "j")
    assert page.evaluate("!document.activeElement.matches('.ttl')")


def test_turns_trouble_and_folds(served, look):  # noqa: F811
    """In a conversation: j from turn to turn, n and p to trouble and back, e unfolds the turn, t all thinking."""
    page = look(f"/sessions/{served.made.sessions['ledger']}")
    press(page, "j")
    first = page.evaluate("document.activeElement.closest('.turn')?.id")
    press(page, "j")
    second = page.evaluate("document.activeElement.closest('.turn')?.id")
    assert first and second and first != second
    press(page, "n")
    page.wait_for_function(
        "[...document.querySelectorAll('[data-trouble]')].some(one => Math.abs(one.getBoundingClientRect().top) < 160)"
    )
    press(page, "t")
    page.wait_for_function("[...document.querySelectorAll('details.th')].every(one => one.open)")
    press(page, "t")
    page.wait_for_function("[...document.querySelectorAll('details.th')].every(one => !one.open)")
    page.evaluate("document.querySelector('.turn:has(details) [data-item], .turn:has(details) a').focus()")
    opened = "[...document.activeElement.closest('.turn').querySelectorAll('details')].every(one => one.open)"
    was = page.evaluate(opened)
    press(page, "e")
    page.wait_for_function(f"({opened}) !== {str(was).lower()}")


def test_the_link_to_what_is_selected_is_copied(served, look):  # noqa: F811
    """y copies the page's address with the turn's anchor, and says so."""
    page = look(f"/sessions/{served.made.sessions['ledger']}", permissions=["clipboard-read", "clipboard-write"])
    press(page, "j", "y")
    page.get_by_text("Link copied").wait_for()
    turn = page.evaluate("document.activeElement.closest('.turn').id")
    assert page.evaluate("navigator.clipboard.readText()") == page.url.split("#")[0] + f"#{turn}"


def test_calls_are_leafed_through(served, look):  # noqa: F811
    """[ and ] go to the previous and the next call, d to the diff, u to the conversation."""
    calls = served.made.calls["ledger"]
    page = look(f"/calls/{calls[3]}")
    press(page, "]")
    page.wait_for_function("id => location.href.includes(id)", arg=calls[4])
    press(page, "[")
    page.wait_for_function("id => location.href.includes(id)", arg=calls[3])
    press(page, "d")
    page.wait_for_function("location.search.includes('tab=diff')")
    press(page, "u")
    page.wait_for_function("location.pathname.includes('/sessions/')")


def test_everything_has_a_link_or_a_button(look):  # noqa: F811
    """Tab alone reaches the skip link, the navigation, the search and, from the main part on, the first row."""
    page = look("/?project=ledger")
    reached = []
    for _ in range(100):
        press(page, "Tab")
        reached.append(
            page.evaluate("document.activeElement.className + '|' + document.activeElement.textContent.trim()")
        )
        if "|".join(reached).count("ttl"):
            break
    text = "\n".join(reached)
    assert text.startswith("skip|Skip to content") and "Live" in text and "ttl|" in text
