"""The gateway's pages in a real browser: signing up, in and out, keys, client settings, the account."""

from __future__ import annotations

import re

import pytest

from tests import gatewayscreens
from tests.gatewaybed import PASSWORD, a_gateway
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
    "sign out": (ADA, "/log-out"),
    "not found": (ADA, "/nowhere"),
}


@pytest.fixture(scope="module", autouse=True)
def _long_name(screens):
    """ADA has a key already, with as long a name as there can be."""
    answer = screens.person(ADA).post("/keys", {"do": "make", "scope": "models", "name": "W" * 100})
    assert answer.status == 200


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", LOOKS)
def test_a_page_is_for_everybody(screens, windows, look, name):
    """axe-core finds nothing, in light and dark and at 400 px, where nothing scrolls sideways."""
    email, path = PAGES[name]
    page = windows(look, email)
    page.goto(screens.url + path)
    judge(page)


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


@pytest.mark.parametrize("script", [True, False])
def test_a_key_can_be_copied(screens, look, script):
    """By its button, which is there only where it can work."""
    page = look("/clients", ADA, java_script_enabled=script, permissions=["clipboard-read", "clipboard-write"])
    buttons = page.get_by_role("button", name="Copy: curl")
    assert buttons.is_visible() == script
    if script:
        buttons.click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == page.locator("#s-curl").inner_text()


def test_everything_is_done_without_scripts(screens, look):
    """Signing up and out and in, a key, its end, a new password: forms and links are enough."""
    new = "another long and private one"
    page = look("/sign-up", java_script_enabled=False)
    page.get_by_label("E-mail address").fill("plain@example.com")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill("not the same")
    page.get_by_role("button", name="Sign up").click()
    assert "not the same" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("E-mail address").input_value() == "plain@example.com"
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()
    page.goto(f"{screens.url}/keys")
    page.get_by_label("Name").fill("plain")
    page.get_by_role("button", name="Make a key").click()
    page.goto(f"{screens.url}/keys")
    page.locator("summary", has_text="Revoke").click()
    page.get_by_role("button", name="Revoke for good").click()
    page.get_by_text("You have no key yet").wait_for()
    page.goto(f"{screens.url}/account")
    page.get_by_label("Current password").fill(PASSWORD)
    page.get_by_label("New password", exact=True).fill(new)
    page.get_by_label("New password again").fill(new)
    page.get_by_role("button", name="Change it").click()
    assert "password is changed" in page.get_by_role("status").inner_text()
    page.get_by_role("button", name="Sign out").click()
    assert "signed out" in page.get_by_role("status").inner_text()
    page.get_by_label("E-mail address").fill("plain@example.com")
    page.get_by_label("Password").fill(new)
    page.get_by_role("button", name="Sign in").click()
    assert page.get_by_role("button", name="Sign out").is_visible()


def test_people_choose_what_is_kept_of_them_and_delete_it(screens, look):
    """As the API has it: the level holds, and the deletion is asked of every machine."""
    page = look("/account", "private@example.com")
    page.get_by_label("Keep").select_option(label="Figures only")
    page.get_by_role("button", name="Save").click()
    assert "Saved" in page.get_by_role("status").inner_text()
    session = screens.gateway.sign_in("private@example.com")
    assert screens.gateway.want(200, "GET", "/manage/privacy", token=session)["level"] == "metadata"
    page.locator("summary", has_text="Delete my conversations").click()
    page.get_by_role("button", name="Delete my conversations").click()
    assert "are being deleted" in page.get_by_role("status").inner_text()
    [deletion] = screens.gateway.want(200, "GET", "/manage/deletions", token=session)
    assert deletion["user_id"] == screens.gateway.want(200, "GET", "/auth/me", token=session)["id"]
    assert page.get_by_role("table").locator("tbody tr").count() == 1
    judge(page)


def test_only_administrators_see_what_is_theirs(screens, look):
    """In the navigation and by the address."""
    theirs = {"Users", "Teams", "Machines", "Audit"}
    shown = set(look("/keys", ADMIN).get_by_role("navigation", name="Main").get_by_role("link").all_inner_texts())
    assert theirs <= shown
    page = look("/keys", ADA)
    links = page.get_by_role("navigation", name="Main").get_by_role("link")
    assert set(links.all_inner_texts()) == shown - theirs
    assert links.get_by_text("API keys").count() == 1 and page.locator('nav a[aria-current="page"]').count() == 1
    for path in ("/users", "/teams", "/machines", "/audit"):
        assert screens.person(ADA).get(path).status == 403


def test_the_first_visitor_is_the_administrator(tmp_path, visit):
    """Whatever the setting says; where sign-up is closed, nobody comes after him."""
    with a_gateway(tmp_path, env={"LLM_PROXY_GATEWAY_SIGNUP": "closed"}) as gateway:
        page = visit(gateway.wait().url + gatewayscreens.ROOT)
        assert page.url.endswith("/team/sign-up") and "administrator's" in page.locator("main").inner_text()
        judge(page)
        page.get_by_label("E-mail address").fill(ADMIN)
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.get_by_label("Password again").fill(PASSWORD)
        page.get_by_role("button", name="Sign up").click()
        page.get_by_role("link", name="Audit").wait_for()
        page.get_by_role("button", name="Sign out").click()
        assert page.get_by_role("link", name="Sign up").count() == 0
        page.goto(f"{gateway.url}{gatewayscreens.ROOT}/sign-up")
        assert "Nobody can sign up here" in page.locator("main").inner_text()
        assert page.get_by_label("E-mail address").count() == 0
