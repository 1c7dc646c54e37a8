"""The gateway's pages in a real browser: signing up, in and out, keys, client settings, the account."""

from __future__ import annotations

import re

import pytest

from tests import gatewayscreens
from tests.gatewaybed import PASSWORD
from tests.gatewayscreens import ADMIN, LOOKS, judge

browser, visit, screens, look, windows = (
    gatewayscreens.browser,
    gatewayscreens.visit,
    gatewayscreens.screens,
    gatewayscreens.look,
    gatewayscreens.windows,
)

ADA = "ada@example.com"
PAGES = {
    "sign in": ("", "/log-in"),
    "sign up": ("", "/sign-up"),
    "sign up by an invitation": ("", "/sign-up?invitation=llmi_0123"),
    "keys": (ADA, "/keys"),
    "no keys": ("grace@example.com", "/keys"),
    "client settings": (ADA, "/clients"),
    "account": (ADA, "/account"),
    "account of an administrator": (ADMIN, "/account"),
    "sign out": (ADA, "/log-out"),
    "not found": (ADA, "/nowhere"),
    "not allowed": ("", "/nowhere"),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_a_page_is_for_everybody(screens, windows, look, name):
    """axe-core finds nothing, in light and dark and at 400 px, where nothing scrolls sideways."""
    email, path = PAGES[name]
    if email == ADA:
        screens.gateway.ask(
            "POST", "/auth/key", {"name": "a name " * 12}, token=screens.gateway.sign_in(_there(screens))
        )
    page = windows(look, email)
    page.goto(screens.url + path)
    judge(page)


def _there(screens):
    screens.person(ADA)
    return ADA


def test_somebody_signs_up_makes_a_key_and_calls_with_it(screens, look):
    """From nothing to a key that opens the gateway, by forms alone."""
    page = look("/keys")
    assert page.url.startswith(f"{screens.url}/log-in?next=")
    page.get_by_role("link", name="Sign up").click()
    page.get_by_label("E-mail address").fill("lin@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    page.get_by_role("link", name="API keys").click()
    assert page.get_by_role("heading", name="API keys").is_visible()
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("Read usage").check()
    page.get_by_role("button", name="Make a key").click()
    key = page.locator("#new-key").inner_text().strip()
    assert re.fullmatch(r"llmp_[0-9A-Za-z]{49}", key)
    assert screens.gateway.ask("GET", "/v1/models", token=key).status == 200
    assert screens.gateway.ask("GET", "/manage/usage", token=key).status == 200
    page.goto(f"{screens.url}/keys")
    assert key not in page.content(), "a key is shown once"
    page.locator("summary", has_text="Revoke").click()
    page.get_by_role("button", name="Revoke for good").click()
    assert "is revoked" in page.get_by_role("status").inner_text()
    assert screens.gateway.ask("GET", "/v1/models", token=key).code == "revoked_key"
