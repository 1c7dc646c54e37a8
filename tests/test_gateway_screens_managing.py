"""The gateway's managing pages in a real browser: aliases, provider keys, users, teams, limits, machines,
the audit log."""

import http.server
import json
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from tests import gatewayscreens
from tests.gatewaybed import PASSWORD
from tests.gatewayscreens import ADMIN, judge, some_screens

browser, visit, look, windows = (
    gatewayscreens.browser,
    gatewayscreens.visit,
    gatewayscreens.look,
    gatewayscreens.windows,
)

ADA = "ada@example.com"
SECRET = "sk-of-the-team-0123456789"
HOSTILE = '"><script>alert(1)</script>'
GONE = "0123456789abcdef"  # a machine
PAGES = {
    "aliases": (ADMIN, "/aliases"),
    "no aliases of one's own": (ADA, "/aliases"),
    "new alias": (ADMIN, "/aliases/new"),
    "alias": (ADMIN, "/aliases/edit?alias=smart"),
    "provider keys": (ADMIN, "/providers"),
    "provider keys of a member": (ADA, "/providers"),
    "new provider key": (ADMIN, "/providers/new"),
    "provider key": (ADMIN, "/providers/{key}"),
    "users": (ADMIN, "/users"),
    "user": (ADMIN, "/users/1"),
    "teams": (ADMIN, "/teams"),
    "team": (ADMIN, "/teams/{team}"),
    "limits": (ADMIN, "/limits"),
    "limits of a member": (ADA, "/limits"),
    "limit": (ADMIN, "/limits/edit?of=everybody:0"),
    "machines": (ADMIN, "/machines"),
    "audit": (ADMIN, "/audit"),
}


class Models(http.server.BaseHTTPRequestHandler):
    """A provider that lists its models to whoever has the key, and tells others what they sent."""

    def do_GET(self):
        sent = self.headers.get("Authorization", "")
        good = sent == f"Bearer {SECRET}"
        told = {"data": [{"id": "tiny"}, {"id": "vast"}]} if good else {"error": {"message": f"{sent} is unknown here"}}
        body = json.dumps(told).encode()
        self.send_response(200 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    """Its base URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def screens(tmp_path_factory, host):
    with some_screens(tmp_path_factory.mktemp("managing"), allow=[host.removesuffix("/v1")]) as made:
        yield made


@pytest.fixture(scope="module")
def made(screens, host):
    """Things of all kinds, of which `key` and `team` are numbers."""
    gateway = screens.gateway
    screens.person(ADA)
    key = gateway.provider("openai-compatible", host, label=f"team {HOSTILE}", api_key=SECRET, shared=True)
    gateway.alias("fast", "tiny", key, shared=True)
    fast = next(one["id"] for one in gateway.want(200, "GET", "/manage/aliases", token=gateway.admin))
    more = {"chain": [{"provider_key_id": key, "model": "vast"}], "fallback_alias_id": fast, "light_model": "tiny"}
    gateway.alias("smart", "vast", key, use_light_model=True, light_model_threshold=200, **more)
    gateway.alias(HOSTILE, "a-model-whose-name-is-longer-than-any-card-is-wide-and-has-no-blank", key)
    team = gateway.want(201, "POST", "/manage/teams", {"name": "Core", "monthly_budget": 20}, gateway.admin)["id"]
    gateway.want(204, "PUT", f"/manage/teams/{team}/members/1", token=gateway.admin)
    gateway.want(201, "POST", "/manage/invitations", {"email": "bob@example.com"}, gateway.admin)
    gateway.want(200, "PUT", "/manage/limits/everybody/0", {"requests_day": 1000, "spend_month": 50}, gateway.admin)
    _seen(screens, timedelta(hours=1))
    ada = gateway.want(200, "GET", "/auth/me", token=gateway.sign_in(ADA))["id"]
    number = gateway.want(202, "DELETE", f"/manage/users/{ada}/conversations", {}, gateway.admin)["id"]
    _keep(screens, "INSERT INTO deletion_reports VALUES (?, ?, ?, 3, ?)", number, "feed" * 4, _written(), HOSTILE)
    return {"key": key, "team": team}


def _seen(screens, ago):
    """A machine that shares the store said so long ago that it lives."""
    _keep(screens, "INSERT OR REPLACE INTO machines VALUES (?, ?, '1', ?, ?)", GONE, HOSTILE, HOSTILE, _written(ago))


def _written(ago=timedelta()):
    return (datetime.now(UTC) - ago).strftime("%Y-%m-%d %H:%M:%S.%f")


def _keep(screens, statement, *values):
    with closing(sqlite3.connect(screens.gateway.log.with_name("gateway.db"), timeout=20)) as link, link:
        link.execute(statement, values)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_everybody(screens, made, windows, name):
    """axe-core finds nothing, in light and, at 400 px where nothing scrolls sideways, in dark; folds are open."""
    email, path = PAGES[name]
    page = windows("light", email)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.goto(screens.url + path.format(**made)).status == 200
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    judge(page)
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 900})
    judge(page)


def _alias(screens, name):
    found = screens.gateway.want(200, "GET", "/manage/aliases", token=screens.gateway.admin)
    return next((one for one in found if one["alias"] == name), None)


def test_an_alias_is_made_and_changed_without_a_script(screens, made, look):
    """A form with a chain whose rows are added, moved and taken away; the API has what it said, in its order."""
    page = look("/aliases", ADMIN, java_script_enabled=False)
    page.get_by_role("link", name="New alias").click()
    page.get_by_label("Name").fill("team/best")
    page.get_by_label("Model", exact=True).fill("vast")
    for number, model in enumerate(("first", "second", "third")):
        page.get_by_role("button", name="Add a step").click()
        page.get_by_role("group", name=f"Step {number + 1}").get_by_label("Model").fill(model)
    page.get_by_role("button", name="Step 3 up").click()
    page.get_by_role("button", name="Take step 1 away").click()
    page.get_by_label("Then the alias").select_option(label="smart (vast)")
    page.locator("summary", has_text="Light and long").click()
    page.get_by_label("Short prompts go to a light model").check()
    page.get_by_label("Light model", exact=True).fill("tiny")
    page.get_by_label("below so many tokens").fill("512")
    page.get_by_label("Parameters").fill('{"temperature": 0.2}')
    page.get_by_role("button", name="Make the alias").click()
    assert page.get_by_role("status").inner_text() == "The alias is there: calls may name it."
    kept = _alias(screens, "team/best")
    assert [(step["model"], step["rank"]) for step in kept["chain"]] == [("third", 1), ("second", 2)]
    assert (kept["light_model"], kept["light_model_threshold"], kept["use_light_model"]) == ("tiny", 512, True)
    assert kept["parameters"] == {"temperature": 0.2}
    card = page.get_by_role("region", name="team/best")
    assert "light: tiny below 512 tokens" in card.inner_text() and "then the alias smart" in card.inner_text()
    card.get_by_role("link", name="Change").click()
    page.get_by_label("Name").fill("best")
    page.get_by_label("Then the alias").select_option("")
    page.get_by_role("button", name="Save", exact=True).click()
    assert _alias(screens, "team/best") is None
    changed = _alias(screens, "best")
    assert changed["fallback_alias_id"] is None
    assert {**changed, "alias": "team/best", "fallback_alias_id": kept["fallback_alias_id"]} == kept
    page.get_by_role("region", name="best", exact=True).get_by_text("Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").locator("visible=true").click()
    assert page.get_by_role("status").inner_text() == "The alias is deleted."
    assert _alias(screens, "best") is None


def test_a_ring_of_fallbacks_is_refused_in_the_api_s_words(screens, made, look):
    """What was typed stays in the form, and the alias as it was."""
    page = look("/aliases/edit?alias=fast", ADMIN)
    screens.gateway.want(200, "PATCH", "/manage/aliases/smart", {"shared": True}, screens.gateway.admin)
    page.get_by_label("Model", exact=True).fill("other")
    page.get_by_label("Then the alias").select_option(label="smart (vast)")
    page.get_by_role("button", name="Save", exact=True).click()
    said = page.get_by_role("alert").inner_text()
    assert "the fallbacks would go in a circle: fast -> smart -> fast" in said
    assert page.get_by_label("Model", exact=True).input_value() == "other"
    assert page.get_by_label("Then the alias").get_attribute("aria-invalid") == "true"
    judge(page)
    assert _alias(screens, "fast")["target_model"] == "tiny"


@pytest.mark.parametrize(
    ("field", "text", "said"),
    [
        ("weight", "many", "Weight: a whole number is wanted, not 'many'"),
        ("light_model_threshold", "-5", "Light model below: a whole number is wanted, not '-5'"),
        ("parameters", "[1]", "Parameters: a JSON object is wanted"),
        ("alias", "fast", "there is an alias 'fast' of yours already"),
        ("provider_key_id", "999999", "there is no provider key 999999"),
    ],
)
def test_what_a_form_cannot_say_is_told_by_its_field_s_name(screens, made, field, text, said):
    """Nothing is kept, and an alias that is there is not written over by a new one."""
    before = screens.gateway.want(200, "GET", "/manage/aliases", token=screens.gateway.admin)
    fields = {"do": "save", "alias": "new", "target_model": "x", "provider_key_id": made["key"], field: text}
    answer = screens.person(ADMIN).post("/aliases/new", fields)
    assert answer.status in (400, 404, 409)
    assert said.replace("'", "&#39;") in answer.body.decode()
    assert screens.gateway.want(200, "GET", "/manage/aliases", token=screens.gateway.admin) == before


def test_a_provider_key_is_kept_tested_and_deleted_and_never_shown(screens, made, look, host):
    """One that the provider refuses is not kept; its words come without the key. Aliases that need a key are told of."""
    page = look("/providers", ADMIN)
    page.get_by_role("link", name="Add a key").click()
    page.get_by_label("Provider", exact=True).select_option(label="OpenAI-compatible host")
    page.get_by_label("Label").fill("spare")
    page.get_by_label("Key", exact=True).fill("sk-not-the-right-one-999999")
    page.get_by_label("Base URL").fill(host)
    page.get_by_role("button", name="Keep the key").click()
    said = page.get_by_role("alert").inner_text()
    assert "nothing was kept" in said and "is unknown here" in said and "999999" not in page.content()
    assert page.get_by_label("Base URL").input_value() == host
    page.get_by_label("Key", exact=True).fill(f" {SECRET}\n")
    page.get_by_role("button", name="Keep the key").click()
    assert "kept, encrypted" in page.get_by_role("status").inner_text()
    row = page.get_by_role("row", name="spare")
    assert "…6789" in row.inner_text() and SECRET not in page.content()
    page.get_by_role("button", name="Test spare").click()
    assert page.get_by_role("status").inner_text() == "The provider takes this key."
    id = next(one["id"] for one in _keys(screens) if one["label"] == "spare")
    screens.gateway.alias("leads to spare", "tiny", id)
    page.get_by_role("link", name="Change spare").click()
    assert SECRET not in page.content()
    page.get_by_label("Label").fill("other")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="Change other").click()
    page.get_by_text("Delete this key").click()
    assert "leads to spare" in page.get_by_text("These aliases of yours use it").inner_text()
    page.get_by_role("button", name="Delete for good").click()
    assert "aliases use this provider key: leads to spare" in page.get_by_role("alert").inner_text()
    page.get_by_text("Delete this key").click()
    page.get_by_label("Also delete the aliases").check()
    page.get_by_role("button", name="Delete for good").click()
    assert page.get_by_role("status").inner_text() == "The provider key is deleted."
    assert _alias(screens, "leads to spare") is None and id not in [one["id"] for one in _keys(screens)]


def _keys(screens):
    return screens.gateway.want(200, "GET", "/manage/providers", token=screens.gateway.admin)


def test_the_models_of_keys_are_offered(screens, made, look):
    """The form's list has what the provider lists, once it has been asked."""
    page = look("/aliases/new", ADMIN)
    page.wait_for_function(
        "() => { if (document.querySelector('#models option[value=tiny]')) return true; location.reload(); return false }",
        polling=500,
    )
    assert page.get_by_label("Model", exact=True).get_attribute("list") == "models"


def test_an_invitation_s_link_makes_an_account_once(screens, made, look, visit):
    """It is shown this once; whoever opens it signs up as what it says, and administrators see who has."""
    page = look("/users", ADMIN)
    page.get_by_label("E-mail address").fill("eve@example.com")
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("#invitation-link").inner_text()
    assert link.startswith(f"{screens.url}/sign-up?invitation=llmi_")
    judge(page)
    page.goto(f"{screens.url}/users")
    assert "llmi_" not in page.content()
    guest = visit(link)
    guest.get_by_label("E-mail address").fill("eve@example.com")
    guest.get_by_label("Password", exact=True).fill(PASSWORD)
    guest.get_by_label("Password again").fill(PASSWORD)
    guest.get_by_role("button", name="Sign up").click()
    page.reload()
    assert "used" in page.locator("[aria-labelledby=invited]").get_by_role("row", name="eve@example.com").inner_text()
    page.get_by_role("link", name="Change eve@example.com").click()
    page.get_by_label("May sign in").uncheck()
    page.get_by_label("Requests a day").fill("1,000")
    page.get_by_role("button", name="Save").click()
    row = page.locator("[aria-labelledby=all]").get_by_role("row", name="eve@example.com").inner_text()
    assert "switched off" in row and "1,000" in row
    assert screens.gateway.ask("POST", "/auth/login", {"email": "eve@example.com", "password": PASSWORD}).status == 403
    page.get_by_role("link", name="Change eve@example.com").click()
    page.get_by_text("Delete this account").click()
    page.get_by_role("button", name="Delete for good").click()
    assert "eve@example.com" not in [
        one["email"] for one in screens.gateway.want(200, "GET", "/manage/users", token=screens.gateway.admin)
    ]


def test_the_last_administrator_stays(screens, made):
    """The refusal is on the page, in the API's words."""
    answer = screens.person(ADMIN).post("/users/1", {"do": "save", "role": "member", "active": "yes"})
    assert answer.status == 409 and "this is the last administrator" in answer.body.decode()


def test_a_team_has_members_and_a_budget(screens, made, look):
    """Made, changed and left by forms; what is no amount is told."""
    page = look("/teams", ADMIN)
    page.get_by_label("Name").fill("Design")
    page.get_by_label("Budget").fill("lots")
    page.get_by_role("button", name="Make the team").click()
    assert "an amount in US dollars is wanted, not 'lots'" in page.get_by_role("alert").inner_text()
    page.get_by_label("Budget").fill("$1,200.50")
    page.get_by_role("button", name="Make the team").click()
    row = page.get_by_role("row", name="Design").inner_text()
    assert "$1,200" in row or "$1,201" in row
    page.get_by_role("link", name="Change Design").click()
    page.get_by_label("Add somebody").select_option(ADA)
    page.get_by_role("button", name="Add").click()
    teams = screens.gateway.want(200, "GET", "/manage/teams", token=screens.gateway.admin)
    kept = next(one for one in teams if one["name"] == "Design")
    assert kept["monthly_budget"] == 1200.5 and [one["email"] for one in kept["members"]] == [ADA]
    page.get_by_role("button", name=f"Take {ADA} out").click()
    page.get_by_text("Delete this team").click()
    page.get_by_role("button", name="Delete for good").click()
    assert page.get_by_role("row", name="Design").count() == 0


def test_a_limit_is_set_and_its_holder_sees_it(screens, made, look):
    """What a form says the API has; empty fields limit nothing; removed it is gone."""
    page = look("/limits", ADMIN)
    page.get_by_label("Whom or what").select_option(label=ADA)
    page.get_by_role("button", name="Go on").click()
    assert page.locator("h1").inner_text() == f"User {ADA}"
    page.get_by_label("Tokens a day").fill("2,000,000")
    page.get_by_label("Spending a day").fill("$2.50")
    page.get_by_role("button", name="Save").click()
    limits = screens.gateway.want(200, "GET", "/manage/limits", token=screens.gateway.admin)
    kept = next(one for one in limits if one["subject"] == "user")
    assert (kept["tokens_day"], kept["spend_day"], kept["requests_day"]) == (2_000_000, 2.5, None)
    told = look("/limits", ADA)
    assert "0 of 2,000,000" in told.content() and "$0 of $2.50" in told.content() and "All limits" not in told.content()
    page.get_by_role("link", name=f"Change limits: User {ADA}").click()
    assert page.get_by_label("Spending a day").input_value() == "2.5"
    page.get_by_text("Remove these limits").click()
    page.get_by_role("button", name="Remove them").click()
    assert [
        one["subject"] for one in screens.gateway.want(200, "GET", "/manage/limits", token=screens.gateway.admin)
    ] == ["everybody"]


def test_somebody_s_key_is_limited_and_revoked_on_his_page(screens, made, look):
    """Chosen where it stands, by its name; the key itself is never shown."""
    key = screens.gateway.want(200, "POST", "/auth/key", {"name": "ci"}, screens.gateway.sign_in(ADA))
    page = look("/users", ADMIN)
    page.get_by_role("link", name=f"Change {ADA}").click()
    row = page.get_by_role("row", name="ci")
    assert f"{key['prefix']}…" in row.inner_text() and "never" in row.inner_text()
    assert key["token"] not in page.content()
    row.get_by_role("link", name="Limit ci").click()
    assert page.locator("h1").inner_text() == f"API key ci of {ADA}"
    page.get_by_label("Requests a day").fill("9")
    page.get_by_role("button", name="Save").click()
    limits = screens.gateway.want(200, "GET", "/manage/limits", token=screens.gateway.admin)
    assert [one["requests_day"] for one in limits if one["subject"] == "key" and one["subject_id"] == key["id"]] == [9]
    page.go_back()
    page.go_back()
    judge(page)
    page.get_by_role("row", name="ci").locator("summary").click()
    page.get_by_role("button", name="Revoke for good").click()
    assert "is revoked" in page.get_by_role("status").inner_text() and page.get_by_role("row", name="ci").count() == 0
    assert screens.gateway.ask("GET", "/v1/models", token=key["token"]).code == "revoked_key"
    screens.gateway.want(204, "DELETE", f"/manage/limits/key/{key['id']}", token=screens.gateway.admin)


def test_a_machine_that_is_gone_is_forgotten(screens, made, look):
    """Asked about first, and refused where it serves after all; no deletion waits for it any more."""
    page = look("/machines", ADMIN)
    all_of_them = page.get_by_role("region", name="Machines, table")
    gone = all_of_them.locator("tbody tr", has_text="away")
    (here,) = all_of_them.locator("tbody tr", has_text="serving").all()
    assert here.get_by_text("Forget").count() == 0 and GONE[:8] in gone.inner_text()
    deletion = page.get_by_role("region", name="Deletions, table").locator("tbody tr")
    assert f"{ADA} (asked for by {ADMIN})" in deletion.inner_text() and "3 conversations, " in deletion.inner_text()
    assert f"left: {HOSTILE}" in deletion.inner_text() and f"{HOSTILE}: away" in deletion.inner_text()
    assert deletion.locator(".tag").inner_text() == "away"
    gone.locator("summary").click()
    assert "1 deletion waits for it, and will no longer" in gone.inner_text()
    _seen(screens, timedelta())
    gone.get_by_role("button").click()
    assert f"machine {GONE} serves: stop it first" in page.get_by_role("alert").inner_text()
    _seen(screens, timedelta(hours=1))
    page.goto(f"{screens.url}/machines")
    gone.locator("summary").click()
    gone.get_by_role("button").click()
    assert "The machine is forgotten" in page.get_by_role("status").inner_text() and gone.count() == 0
    page.wait_for_function(
        "() => { if (document.querySelector('section:last-of-type .tag.ok')) return true; location.reload(); }",
        polling=500,
    )
    page.goto(f"{screens.url}/audit?action=machine")
    assert f"machine:{GONE}" in page.locator("tbody tr").inner_text()
    _seen(screens, timedelta(hours=1))


def test_the_audit_log_is_looked_through(screens, made, look):
    """By kind, newest first, a page after the other; no secret is in it."""
    gateway = screens.gateway
    for number in range(60):
        gateway.want(200, "PATCH", "/manage/users/1", {"rate_limit_minute": 1000 + number}, gateway.admin)
    page = look("/audit", ADMIN)
    page.get_by_label("What").select_option(label="Users")
    page.get_by_role("button", name="Show").click()
    rows = page.locator("tbody tr")
    assert rows.count() == 50 and "rate limit minute: 1059" in rows.first.inner_text()
    page.get_by_role("link", name="Older").click()
    assert "rate limit minute: 1009" in rows.first.inner_text()
    assert SECRET not in page.content()
    gateway.want(200, "PATCH", "/manage/users/1", {"rate_limit_minute": None}, gateway.admin)


def test_who_is_no_administrator_finds_nothing_of_others(screens, made):
    """Pages and forms of administrators are 403; others' aliases and keys are as if they were not there."""
    gateway = screens.gateway
    private = gateway.want(
        201, "POST", "/manage/providers", {"provider": "openai", "api_key": SECRET, "label": "private"}, gateway.admin
    )["id"]
    gateway.alias("private", "gpt-5", private)
    ada = screens.person(ADA)
    for path in (
        "/users",
        "/users/1",
        "/teams",
        f"/teams/{made['team']}",
        "/machines",
        "/audit",
        "/limits/edit?of=everybody:0",
    ):
        assert ada.get(path).status == 403, path
        assert ada.post(path, {"token": ada.token("/limits"), "do": "save"}).status in (403, 405), path
    for path in (f"/providers/{private}", "/aliases/edit?alias=private", "/providers/x", "/providers/99999999999999"):
        assert ada.get(path).status == 404, path
    for path, fields in (
        ("/aliases", {"do": "delete", "alias": "private"}),
        ("/aliases", {"do": "delete", "alias": "fast"}),
        ("/aliases/new", {"do": "save", "alias": "mine", "target_model": "x", "provider_key_id": private}),
        ("/providers", {"do": "test", "id": private}),
        ("/providers", {"do": "test", "id": made["key"]}),
    ):
        answer = ada.post(path, {"token": ada.token("/limits"), **fields})
        assert answer.status in (403, 404), (path, answer.status)
        assert b"private" not in answer.body.replace(b'value="private"', b"").replace(b"alias &#39;private&#39;", b"")
    assert _alias(screens, "private") and _alias(screens, "fast")
    assert b"private" not in ada.get("/aliases").body + ada.get("/aliases/new").body + ada.get("/providers").body
    shared = ada.get(f"/providers/{made['key']}")
    assert shared.status == 200 and b"Administrators change it" in shared.body and b'name="api_key"' not in shared.body


def test_names_are_text(screens, made):
    """Whatever somebody has called a thing, no page has it as markup."""
    for email, path in PAGES.values():
        body = screens.person(email).get(path.format(**made)).body.decode()
        assert "<script>alert" not in body, path
    assert (
        HOSTILE.replace('"', "&#34;").replace("<", "&lt;").replace(">", "&gt;")
        in screens.person(ADMIN).get("/aliases").body.decode()
    )
