"""Nobody else's page, name, token or session opens the gateway's pages, and a session there ends when it must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests import gatewayscreens
from tests.gatewaybed import PASSWORD
from tests.gatewayscreens import ADMIN, ROOT, Person, some_screens

browser, visit, screens, look = (
    gatewayscreens.browser,
    gatewayscreens.visit,
    gatewayscreens.screens,
    gatewayscreens.look,
)

ADA, GRACE = "ada@example.com", "grace@example.com"


def alert(answer):
    """What a page says of a form that was refused."""
    found = re.search(r'role="alert">(.*?)</p>', answer.body.decode(), re.DOTALL)
    return re.sub("<[^>]+>", "", found[1]) if found else ""


# --- the cookie


def test_the_cookie_is_for_pages_of_ours_alone(screens):
    """No script reads it, no other site sends it, and over plain HTTP it is not marked for TLS."""
    person = Person(screens.gateway)
    answer = person.post("/log-in", {"email": ADMIN, "password": PASSWORD})
    _, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert set(attributes) == {"Max-Age=2592000", "Path=/llm-proxy", "HttpOnly", "SameSite=Strict"}
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_cookie_opens_no_route_and_no_token_opens_a_page(screens):
    """So another site's form has nothing that it could ask the API with, and a stolen token no page."""
    person = screens.person(ADA)
    cookie = {"Cookie": f"llm_proxy_team={person.cookie}"}
    gateway = screens.gateway
    assert person.get("/me").json["email"] == ADA  # looked up, and so remembered
    assert gateway.ask("GET", "/auth/me", headers=cookie).code == "missing_credential"
    assert gateway.ask("POST", "/auth/key", {}, headers=cookie).status == 401
    assert gateway.ask("GET", "/auth/me", token=person.cookie).code == "invalid_token"
    assert gateway.ask("GET", "/v1/models", token=person.cookie).code == "invalid_token"
    tokens = gateway.ask("POST", "/auth/login", {"email": ADA, "password": PASSWORD}).json
    key = gateway.key(tokens["token"])
    for other in (tokens["token"], tokens["refresh_token"], key, "", "x", person.cookie[:-1], f"{person.cookie}A"):
        stranger = Person(gateway)
        stranger.cookie = other
        assert stranger.get("/me").status == 401, other[:30]
        assert stranger.ask("GET", "/me", Cookie="", Authorization=f"Bearer {other}").status == 401


@pytest.mark.parametrize("how", ["log-out", "password", "switched off", "revoked session"])
def test_a_session_ends(screens, how):
    """At once, for the cookie as for everything else of that session; a page then leads to signing in, and back."""
    email = f"{how.replace(' ', '-')}@example.com"
    screens.gateway.ask("POST", "/auth/signup", {"email": email, "password": PASSWORD})
    person = Person(screens.gateway).sign_in(email)
    kept = person.cookie
    assert person.get("/keys").status == 200
    match how:
        case "log-out":
            answer = person.post("/log-out", {"token": person.token("/keys")})
            assert "Max-Age=0" in answer.headers["Set-Cookie"] and person.cookie == ""
        case "password":
            new = "another long and private one"
            session = screens.gateway.sign_in(email)
            told = {"current_password": PASSWORD, "new_password": new}
            assert screens.gateway.ask("POST", "/auth/password", told, session).status == 204
        case "switched off":
            number = person.get("/me").json["id"]
            answer = screens.gateway.ask("PATCH", f"/manage/users/{number}", {"active": False}, screens.gateway.admin)
            assert answer.status == 200
        case _:
            sid = json.loads(_claims(kept))["sid"]
            _revoke(screens, sid)
    person.cookie = kept
    _until(lambda: person.get("/keys").status == 303)
    answer = person.get("/keys")
    assert answer.headers["Location"] == f"{ROOT}/log-in?next=%2Fllm-proxy%2Fteam%2Fkeys"


def _claims(token):
    import base64

    middle = token.split(".")[1]
    return base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4))


def _revoke(screens, sid):
    """As another machine does it: in the store."""
    import sqlite3

    path = screens.gateway.daemon.home / ".local/share/llm-proxy/gateway/gateway.db"
    with sqlite3.connect(path, timeout=20) as store:
        store.execute("UPDATE sessions SET revoked_at = '2026-01-01 00:00:00' WHERE id = ?", (sid,))
        store.execute("UPDATE changes SET count = count + 1")
    store.close()


def _until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- forms of others

OURS = object()
FORMS = {
    "no origin": {"Origin": ""},
    "a sandbox's": {"Origin": "null"},
    "another site's": {"Origin": "https://evil.example"},
    "another port's": {"Origin": "http://127.0.0.1:1"},
    "another scheme's": {"Origin": OURS},
    "across sites": {"Sec_Fetch_Site": "cross-site"},
    "of the same site": {"Sec_Fetch_Site": "same-site"},
}


@pytest.mark.parametrize("path", ["/log-in", "/sign-up", "/keys", "/account", "/log-out"])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_another_page_is_not_taken(screens, path, name):
    """Whatever it brings: also the token of the session."""
    person = screens.person("" if path in ("/log-in", "/sign-up") else ADA)
    token = person.token(path)
    headers = {
        key: screens.gateway.url.replace("http", "https") if value is OURS else value
        for key, value in FORMS[name].items()
    }
    fields = {"do": "make" if path == "/keys" else "", "email": "new@example.com", "password": PASSWORD, "token": token}
    answer = person.post(path, {**fields, "again": PASSWORD, "scope": "models"}, **headers)
    assert answer.status == 403 and b"another site" in answer.body
    assert "Set-Cookie" not in answer.headers and b"llmp_" not in answer.body


@pytest.mark.parametrize("token", ["", "0" * 64, "\u0100", "of another session", "of nobody"])
def test_a_form_needs_the_token_of_its_session(screens, token):
    """One that somebody got for himself is no good in another's browser."""
    person = screens.person(ADA)
    sent = {"of another session": screens.person(GRACE).token("/keys"), "of nobody": screens.person().token("/log-in")}
    answer = person.post("/keys", {"do": "make", "scope": "models", "token": sent.get(token, token)})
    assert answer.status == 403 and b"another session" in answer.body and b"llmp_" not in answer.body


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content_Type": "application/json"}, b"{}", 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
        ({"Content_Type": "text/plain"}, b"do=make", 415),
        ({}, b"a=%ff", 400),
        ({}, "ä=1".encode(), 400),
        ({}, b"&".join(b"a=1" for _ in range(3000)), 400),
        ({}, b"a=" + b"x" * (2 << 20), 413),
        ({}, b"do=nothing+of+the+kind", 403),
    ],
)
def test_what_is_no_form_is_refused(screens, headers, body, status):
    """As the rest is: with a page, and never with a failure of ours."""
    usual = {"Origin": screens.gateway.url, "Content_Type": "application/x-www-form-urlencoded"}
    answer = screens.person(ADA).ask("POST", "/keys", body, **(usual | headers))
    assert answer.status == status and answer.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_other_methods_do_nothing(screens, method):
    """Nor is anything said to a preflight."""
    answer = screens.person(ADA).ask(method, "/keys")
    assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD, POST"
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# --- names

HOSTS = {
    "127.0.0.1": 200,
    "localhost:8080": 200,
    "[::1]:8080": 200,
    "10.1.2.3:8080": 200,
    "evil.example": 403,
    "evil.example:8080": 403,
    "127.0.0.1.evil.example": 403,
    "localhost.evil.example": 403,
    "gateway": 403,
}


@pytest.mark.parametrize("host", HOSTS)
def test_a_page_is_asked_by_a_name_of_ours(screens, host):
    """A site that makes its own name lead here (DNS rebinding) gets nothing, not even the way to sign up."""
    person = screens.person()
    assert person.get("/log-in", Host=host).status == HOSTS[host]
    origin = f"http://{host}"
    fields = {"email": "rebound@example.com", "password": PASSWORD, "again": PASSWORD}
    answer = person.post("/sign-up", {**fields, "token": person.token("/log-in")}, Host=host, Origin=origin)
    assert (answer.status == 403) == (HOSTS[host] == 403)


def test_only_a_link_of_another_site_is_followed(screens):
    """Pictures, scripts, frames and requests of other sites' pages get nothing."""
    person = screens.person(ADA)
    for mode, dest in (("no-cors", "image"), ("no-cors", "script"), ("cors", "empty"), ("navigate", "iframe")):
        answer = person.get("/keys", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode=mode, Sec_Fetch_Dest=dest)
        assert (answer.status == 403 and ADA.encode() in answer.body) or b"another site" in answer.body, (mode, dest)
    answer = person.get("/keys", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document")
    assert answer.status == 200 and b'http-equiv="refresh"' in answer.body and ADA.encode() not in answer.body


def test_a_link_in_a_mail_opens_the_page_for_who_has_signed_in(screens, look, visit):
    """The browser sends no cookie where another site leads it here; it comes a second time, from here."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f'<link rel="icon" href="data:,"><a href="{screens.url}/account">there</a>'.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        # localhost and 127.0.0.1 are two sites; what a page of one may load of the other is not the question here
        context = look("/log-in", ADA).context
        page = context.new_page()
        page.goto(f"http://localhost:{server.server_port}/")
        page.get_by_role("link", name="there").click()
        page.get_by_role("heading", name="My account").wait_for()
        assert ADA in page.locator("main").inner_text()
    finally:
        server.shutdown()
        server.server_close()


# --- signing in

BACK = {
    "/llm-proxy/team/keys": True,
    "/llm-proxy/sessions/abc?n=2&view=calls": True,
    "/llm-proxy/": True,
    "": False,
    "https://evil.example/": False,
    "//evil.example/llm-proxy/": False,
    "/llm-proxy//evil.example": False,
    "/llm-proxy/\\evil.example": False,
    "/llm-proxy/%0d%0aSet-Cookie:x": True,
    "/llm-proxy/x\r\nSet-Cookie: a=b": False,
    "/llm-proxy@evil.example/": False,
    "/llm-proxy.evil.example/": False,
    "/auth/me": False,
    "javascript:alert(1)": False,
}


@pytest.mark.parametrize("back", BACK)
def test_signing_in_leads_back_within_the_pages(screens, back):
    """Never to another host, and nothing of it gets into the head of the answer."""
    person = Person(screens.gateway)
    answer = person.post("/log-in", {"email": ADMIN, "password": PASSWORD, "next": back})
    assert answer.status == 303
    assert answer.headers["Location"] == (back if BACK[back] else f"{ROOT}/")
    assert len(answer.headers.get_all("Set-Cookie")) == 1


def test_guessing_becomes_slow(screens):
    """By the same throttle as the API's: with a page that says so, and when to come again; what was typed is there."""
    email = "guessed@example.com"
    person = screens.person(email) and Person(screens.gateway)
    token = person.token("/log-in")
    fields = {"email": email, "password": "not the right one", "token": token}
    answers = [person.post("/log-in", fields) for _ in range(9)]
    assert [one.status for one in answers] == [401] * 8 + [429]
    assert "is wrong" in alert(answers[0]) and f'value="{email}"' in answers[0].body.decode()
    assert "not the right one" not in answers[0].body.decode()
    assert int(answers[8].headers["Retry-After"]) > 0 and "too many attempts" in alert(answers[8])
    login = {"email": email, "password": PASSWORD}
    assert screens.gateway.ask("POST", "/auth/login", login).status == 429, "they count together"


# --- what pages show


def test_what_people_write_stays_text(screens, look):
    """Names of keys are shown, not run; in the page that asks before it revokes, too."""
    hostile = """"><script>document.title='run'</script><img src=x onerror="document.title='run'">{{ 7*7 }}'"""
    person = screens.person("hostile@example.com")
    answer = person.post("/keys", {"do": "make", "scope": "models", "name": hostile, "expires": "7"})
    assert answer.status == 200 and b"<script>document" not in answer.body
    page = look("/keys", "hostile@example.com")
    assert page.locator("tbody th").inner_text() == hostile
    assert page.title() == "API keys · llm-proxy"
    answer = person.post("/keys", {"do": "make", "name": hostile, "expires": '"><b>'})
    assert answer.status == 400 and b"<b>" not in answer.body.replace(b"<b>Not done:</b>", b"")


def test_nobody_revokes_anothers_key(screens):
    """What is another's is as if it were not there."""
    gateway = screens.gateway
    screens.person(ADA)
    session = gateway.sign_in(ADA)
    key = gateway.key(session, name="hers")
    number = next(one["id"] for one in gateway.ask("GET", "/auth/key", token=session).json if one["name"] == "hers")
    for id in (number, 10**9, "x", "", "1/../2"):
        answer = screens.person(GRACE).post("/keys", {"do": "revoke", "id": id})
        assert answer.status == 404 and "there is no" in alert(answer), id
    assert gateway.ask("GET", "/v1/models", token=key).status == 200


def test_every_answer_says_what_browsers_must_keep_to(screens):
    """Pages, errors, files and what leads on: nothing inline, nothing kept, framed by nobody."""
    person = screens.person(ADA)
    static = re.search(r'href="/llm-proxy/team(/static/[^"]*team.css)"', person.get("/keys").body.decode())[1]
    for path in ("", "/", "/log-in", "/keys", "/nowhere", "/me", static, "/static/nothing.css", "/static/../keys.py"):
        headers = person.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"] and "unsafe" not in str(headers)
        assert headers["X-Frame-Options"] == "DENY" and headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin", "a form must say where it came from"
        kept = path == static
        assert headers["Cache-Control"] == ("public, max-age=31536000, immutable" if kept else "no-store"), path
    for path in ("/static/nothing.css", "/static/../serving.py", "/static/%2e%2e/serving.py"):
        assert person.get(path).status == 404


def test_the_explorer_keeps_its_own_paths(screens):
    """What only begins like ours is not ours."""
    assert screens.gateway.ask("GET", "/llm-proxy/teams").status in (401, 403, 503)
    assert screens.gateway.ask("GET", "/llm-proxy/team?x=1").headers["Location"] == f"{ROOT}/"


# --- behind TLS


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    """One behind a server with TLS, which only invited people may join."""
    env = {
        "LLM_PROXY_GATEWAY_PUBLIC_URL": "https://llm.example.com",
        "LLM_PROXY_GATEWAY_TRUSTED_PROXIES": "127.0.0.1/32",
        "LLM_PROXY_GATEWAY_SIGNUP": "invite",
    }
    with some_screens(tmp_path_factory.mktemp("behind"), env=env) as made:
        yield made


@pytest.mark.parametrize("headers", [{"Host": "llm.example.com"}, {"X_Forwarded_Proto": "https"}])
def test_over_tls_the_cookie_is_for_tls_alone(behind, headers):
    """By the public address, or by what a trusted server before us says."""
    person = Person(behind.gateway)
    origin = "https://llm.example.com" if "Host" in headers else behind.gateway.url.replace("http:", "https:")
    token = person.token("/log-in")
    fields = {"email": ADMIN, "password": PASSWORD, "token": token}
    answer = person.post("/log-in", fields, Origin=origin, **headers)
    assert answer.status == 303 and answer.headers["Set-Cookie"].endswith("; Secure")
    answer = person.post("/log-in", fields, Origin="http://llm.example.com", **headers)
    assert answer.status == 403


def test_clients_are_told_the_public_address(behind):
    """Wherever the page itself was asked."""
    page = behind.person(ADMIN).get("/clients").body.decode()
    assert "https://llm.example.com/v1" in page and behind.gateway.url not in page


def test_an_invitation_is_a_link(behind):
    """It brings along what signing up takes, once; without one there is no way in."""
    person = Person(behind.gateway)
    fields = {"email": ADA, "password": PASSWORD, "again": PASSWORD}
    answer = person.post("/sign-up", fields)
    assert answer.status == 403 and "takes an invitation" in alert(answer)
    token = behind.gateway.want(201, "POST", "/manage/invitations", {"email": ADA}, behind.gateway.admin)["token"]
    assert token in person.get(f"/sign-up?invitation={token}").body.decode()
    answer = person.post("/sign-up", {**fields, "email": GRACE, "invitation": token})
    assert answer.status == 403 and "for another e-mail address" in alert(answer)
    answer = person.post("/sign-up", {**fields, "invitation": f" {token} "})
    assert answer.status == 303 and person.get("/me").json["email"] == ADA
    answer = Person(behind.gateway).post("/sign-up", {**fields, "email": GRACE, "invitation": token})
    assert answer.status == 403 and "was used" in alert(answer)


# --- what it costs


def test_a_gateway_without_visitors_loads_no_templates():
    """Its process stays small until the first page is asked for."""
    code = "import sys, llm_proxy.gateway.__main__, llm_proxy.gateway.table\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "llm_proxy.gateway.app" in loaded
    assert not {"jinja2", "markupsafe"} & loaded and not [one for one in loaded if ".screens." in one]
