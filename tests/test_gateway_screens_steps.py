"""From an empty gateway to a first call, by what its pages say comes next; and from there to what was recorded."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time

import pytest

from tests import gatewayscreens
from tests.gatewaybed import PASSWORD
from tests.gatewayscreens import ADMIN, ROOT, judge
from tests.test_gateway_screens_managing import SECRET, Models

browser, visit = gatewayscreens.browser, gatewayscreens.visit
STEPS = ["Add a provider key", "Make an alias", "Make an API key", "Put it into a client"]


class Provider(Models):
    """It answers as well."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"index": 0, "message": {"role": "assistant", "content": "hello yourself"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        told = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [message]}
        body = json.dumps(told | {"usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def host():
    """Its base URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def gateway(tmp_path, host):
    with gatewayscreens.a_gateway(tmp_path, allow=[host.removesuffix("/v1")]) as made:
        yield made.wait()


def _way(page):
    """The steps, and the one that comes next."""
    way = page.get_by_role("navigation", name="To the first call")
    return way, way.locator("[aria-current=step]").get_by_role("link")


def _sign_up(page, email):
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_label("Password again").fill(PASSWORD)
    page.get_by_role("button", name="Sign up").click()


def test_the_first_administrator_is_led_to_a_call_and_to_what_was_said(gateway, host, visit):
    """Each page names the next step; what the last one shows to be pasted works; then nothing is said of steps."""
    page = visit(gateway.url + ROOT)
    _sign_up(page, ADMIN)
    way, following = _way(page)
    assert [re.split(r"[\n,]", one)[0] for one in way.locator("li > span:last-child").all_inner_texts()] == STEPS
    judge(page)
    assert following.inner_text() == STEPS[0]
    following.click()
    page.get_by_label("Provider", exact=True).select_option(label="OpenAI-compatible host")
    page.get_by_label("Key", exact=True).fill(SECRET)
    page.get_by_label("Base URL").fill(host)
    page.get_by_label("Shared").check()
    page.get_by_role("button", name="Keep the key").click()
    assert following.inner_text() == STEPS[1]
    following.click()
    page.get_by_label("Name").fill("best")
    page.get_by_label("Model", exact=True).fill("tiny")
    page.get_by_label("Shared").check()
    page.get_by_role("button", name="Make the alias").click()
    assert following.inner_text() == STEPS[2]
    following.click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_role("button", name="Make a key").click()
    key = page.locator("#new-key").inner_text().strip()
    assert following.inner_text() == STEPS[3] and way.locator(".done").count() == 3
    judge(page)
    following.click()
    shown = page.locator("#s-curl").inner_text()
    body = json.loads(re.search(r"-d '(.+)'", shown)[1])
    assert body["model"] == "best"
    assert f"{gateway.url}/v1/chat/completions" in shown and "authorization: Bearer llmp_…" in shown
    assert gateway.ask("POST", "/v1/chat/completions", body, key).status == 200
    page.get_by_role("link", name="Usage").click()
    assert way.count() == 0 and page.locator("[aria-labelledby=h-calls] tbody tr").count() == 1

    page.get_by_role("link", name="Sessions").click()
    until = time.monotonic() + 30
    while not page.locator("main .row a.ttl").count():  # it is written a moment after the call
        assert time.monotonic() < until, page.locator("main").inner_text()
        page.reload()
    judge(page)
    page.get_by_role("link", name=ADMIN, exact=True).click()
    page.get_by_role("heading", name="My account").wait_for()
    page.get_by_role("link", name="Sessions").click()
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Team").click()
    page.get_by_role("heading", name="Usage", exact=True).wait_for()


def test_a_member_is_led_by_what_is_shared(gateway, host, visit):
    """Where there is an alias for everybody, a key is all he needs; he sees what is his, and that is nothing yet."""
    key = gateway.provider("openai-compatible", host, api_key=SECRET, shared=True)
    gateway.alias("best", "tiny", key, shared=True)
    page = visit(f"{gateway.url}{ROOT}/sign-up")
    _sign_up(page, "ada@example.com")
    way, following = _way(page)
    assert way.locator("li").count() == 2 and following.inner_text() == STEPS[2]
    page.get_by_role("link", name="Sessions").click()
    page.get_by_text("Nothing recorded of you yet").wait_for()
    judge(page)
    page.get_by_role("link", name="Client settings").click()
    page.get_by_role("heading", name="Client settings").wait_for()
    assert way.count() == 1
