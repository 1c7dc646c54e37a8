"""A team's explorer under attack: nobody sees what is another's, whatever he sends, and whoever is shut out is out."""

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from llm_proxy.explorer import guard
from llm_proxy.explorer.live.hub import OF_ONE
from llm_proxy.explorer.viewer import REMEMBERED
from llm_proxy.index.bodies import key_of
from tests.explored import png
from tests.gatewayattacks import raw, team, until
from tests.gatewaybed import PASSWORD
from tests.gatewayscreens import Person
from tests.gatewayviews import Visitor, by_bearer, by_cookie, by_form, live, owner, recorded

ALICE, BOB, ADMIN = "alice@one.example", "bob@two.example", "admin@example.com"
PNG = png(colour=(7, 70, 170))
SHUT_OUT = REMEMBERED + 3.0  # seconds: what is remembered, and a busy machine
LOOKS = "/llm-proxy/api/sessions?n=200"


class Ours:
    """The gateway, and what alice and bob have called: `hers` and `his` are ids of calls, `session` those of sessions."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.keys = {
            name: gateway.key(token, scopes=["models", "conversations"])
            for name, token in (("alice", gateway.alice), ("bob", gateway.bob))
        }
        picture = {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}
        shown = [{"type": "text", "text": "canary-alicepicture"}, {"type": "image_url", "image_url": picture}]
        self.call("alice", shown)
        self.call("bob", "canary-bob")
        # One client's id of its session, and one history, told by both.
        for name in ("alice", "bob"):
            self.call(name, f"canary-{name}same", headers={"X-Session-Id": "one-for-both"})
        for name in ("alice", "bob"):
            history = [("user", "hello there"), ("assistant", "well met"), ("user", f"canary-{name}history")]
            self.call(name, [{"role": role, "content": text} for role, text in history])
        self.session = recorded(gateway, 6)
        self.owner = owner(gateway)
        told = {id: self.owner.want(f"/calls/{id}?dl=request") for id in self.session}
        self.hers, self.his = ([id for id in told if f"canary-{name}" in told[id]] for name in ("alice", "bob"))
        self.picture = next(id for id in self.hers if "alicepicture" in told[id])
        self.alice, self.bob = (by_bearer(gateway, self.keys[name]) for name in ("alice", "bob"))
        self.foreign = {*self.hers, *(self.session[id] for id in self.hers), "canary-alice", ALICE}

    def call(self, name, said, headers=None):
        messages = said if isinstance(said, list) and "role" in said[0] else [{"role": "user", "content": said}]
        body = {"model": "ours", "messages": messages, "max_tokens": 50}
        answer = self.gateway.ask("POST", "/v1/chat/completions", body, self.keys[name], headers=headers)
        assert answer.status == 200, answer

    def person(self, email):
        """Somebody new who has signed in on the pages, and the token of a session of his."""
        token = self.gateway.member(email)
        return by_form(self.gateway, email)[1], token

    def id_of(self, email):
        users = self.gateway.want(200, "GET", "/manage/users", token=self.gateway.admin)
        return next(one["id"] for one in users if one["email"] == email)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    with team(tmp_path_factory.mktemp("team"), LLM_PROXY_GATEWAY_ADMIN_SEES="full") as gateway:
        yield Ours(gateway)


# --- the way in

SPELLINGS = (
    *("/llm-proxy//api/sessions", "//llm-proxy/api/sessions", "/./llm-proxy/api/sessions", "/LLM-PROXY/api/sessions"),
    *("/llm-proxy/API/sessions", "/llm-proxy/api/sessions/", "/llm-proxy/api/sessions;x=1", "/llm-proxy;/api/sessions"),
    *("/llm-proxy/static/../api/sessions", "/llm-proxy/static/%2e%2e/api/sessions", "/llm-proxy/static%2f..%2fapi/sessions"),
    *("/llm-proxy/static/..%2fapi%2fsessions", "/llm-proxy/s%74atic/../api/sessions", "/llm-proxy/api%2fsessions"),
    *("/llm-proxy/team/../api/sessions", "/llm-proxy/team/%2e%2e/api/sessions", "/llm-proxy/team/..;/api/sessions"),
    *("/llm-proxy/health/../api/sessions", "/llm-proxy/metrics/../api/sessions", "/llm-proxy/team/static/../../api/sessions"),
    *("/auth/../llm-proxy/api/sessions", "/v1/models/../../llm-proxy/api/sessions", "/%6clm-proxy/api/sessions"),
    *("/llm-proxy/api/sessions%00", "/llm-proxy/api/sessions%0d%0aX-A: b", "/llm-proxy/api/sessions#/static/"),
    *("http://127.0.0.1/llm-proxy/api/sessions", "http://elsewhere.example/llm-proxy/api/sessions", "/llm-proxy/api/\\sessions"),
    *("/llm-proxy/%65ntry", "/llm-proxy/entry/", "/llm-proxy/entry;x", "/llm-proxy/entry?file=x.jsonl&offset=0&length=99"),
    *("/llm-proxy//elsewhere.example/?token=x", "/llm-proxy/\\elsewhere.example?token=x", "/llm-proxy?token=x", "/?token=x"),
)  # fmt: skip


@pytest.mark.parametrize("who", ["nobody", "bob"])
def test_no_spelling_of_a_path_opens_what_is_closed(ours, who):
    """Nothing of alice's comes by any of them, and nothing leads elsewhere."""
    lines = [f"{name}: {value}" for name, value in ours.bob.headers.items()] if who == "bob" else []
    ids = [f"/llm-proxy/calls/{ours.hers[0]}{more}" for more in ("/", "/..", "%2f", ";", "?dl=request", "%00")]
    for target in (*SPELLINGS, *ids, f"/llm-proxy/api/calls/../calls/{ours.hers[0]}", LOOKS):
        answer = raw(ours.gateway.port, "GET", target.replace(" ", "%20"), *lines)
        body = answer.body.decode("utf-8", "replace")
        assert not [one for one in ours.foreign - {ours.hers[0]} if one in body], target
        if who == "nobody":
            assert answer.status in (0, 303, 307, 400, 401, 403, 404, 405), (target, answer)
            assert "canary" not in body and b'"groups"' not in answer.body
        assert answer.status < 500, (target, answer)
        lead = answer.headers.get("Location", "/llm-proxy")
        assert re.match(r"/llm-proxy(?![^/?])", lead), (target, lead)


def test_credentials_that_are_none_open_nothing(ours):
    """Wrong, doubled, of another kind, too long, not even ASCII: 401, and never a failure of ours."""
    person, visitor = by_form(ours.gateway, BOB)
    session, cookie = ours.gateway.bob, person.cookie
    name = "llm_proxy_team"
    secret = (ours.gateway.daemon.state / guard.SECRET).read_text()
    tries = (
        *(f"Authorization: {one}" for one in ("Bearer", "Bearer \xff", "Bearer ~", f"Bearer {cookie}", f"Basic {secret}")),
        *(f"Authorization: Bearer {one}" for one in ("x" * 9000, secret[:-1] + "x", ours.keys["bob"].upper(), f"{session}, x")),
        *(f"Cookie: {name}={one}" for one in ("", "\xff", "\x01", "x" * 9000, session, ours.keys["bob"], secret, f'"{cookie}')),
        *(f"Cookie: {other}={cookie}" for other in (name.upper(), "LLM_proxy_team", f"{name}2", f"__Host-{name}")),
        f"Cookie: {name}={cookie}; {name}={ours.gateway.alice}",
        f"X-API-Key: {secret}",
        f"Proxy-Authorization: Bearer {secret}",
    )  # fmt: skip
    for line in tries:
        answer = raw(ours.gateway.port, "GET", LOOKS, line)
        assert answer.status in (400, 401, 431), (line[:60], answer)
    twice = raw(ours.gateway.port, "GET", LOOKS, f"Authorization: Bearer {session}", f"Authorization: Bearer {session}")
    assert twice.status in (400, 401)
    assert visitor.ask("/api/sessions").status == 200
    assert raw(ours.gateway.port, "GET", LOOKS, f"Cookie: {name}={cookie}; {name}={cookie}").status == 200


def test_a_cookie_that_another_page_has_set_is_not_taken_for_ours(ours):
    """A page at another port of this host can set one: two sessions at once are refused, on pages and in the explorer;
    signing in makes a session anew."""
    gateway = ours.gateway
    mine, his = Person(gateway).sign_in(ALICE), Person(gateway).sign_in(BOB)
    both = (
        f"llm_proxy_team={his.cookie}; llm_proxy_team={mine.cookie}",
        f"llm_proxy_team={mine.cookie}; llm_proxy_team={his.cookie}",
    )
    for cookies in both:
        assert raw(gateway.port, "GET", LOOKS, f"Cookie: {cookies}").status == 401
        answer = raw(gateway.port, "GET", "/llm-proxy/team/me", f"Cookie: {cookies}")
        assert answer.status == 400 and b"example" not in answer.body, answer
        answer = raw(gateway.port, "GET", "/llm-proxy/team/keys", f"Cookie: {cookies}")
        assert answer.status == 400 and b"delete" in answer.body.lower(), answer
    before = his.cookie
    victim = Person(gateway)
    victim.cookie = before
    assert victim.post("/log-out", {}).status == 303
    victim.cookie = before
    victim.sign_in(ALICE)
    assert victim.cookie not in (before, mine.cookie)
    until(lambda: by_cookie(gateway, before).ask("/api/sessions").status == 401, SHUT_OUT)


def test_the_mark_of_a_strangers_program_cannot_be_lost(ours):
    """The owner's secret is worth nothing in another user's program, whatever fields it sends; nor is the mark a way in."""
    secret = (ours.gateway.daemon.state / guard.SECRET).read_text()
    tries = ((), ("Connection: X-LLM-Proxy-Stranger, keep-alive",), ("X-LLM-Proxy-Stranger: 0", "x-llm-proxy-stranger: 0"),
             ("Connection: x-llm-proxy-stranger", "TE: trailers"), ("Upgrade: websocket", "Connection: Upgrade"))  # fmt: skip
    script = (
        "import encodings.idna, json, os, socket, sys\n"  # all that it needs: he may not read our Python
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for request in json.load(sys.stdin):\n"
        f"    link = socket.create_connection(('127.0.0.1', {ours.gateway.port}), 20)\n"
        "    link.sendall(request.encode('latin-1')); print(link.recv(12).decode()[9:])\n"
    )
    head = f"GET {LOOKS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {{}}\r\n"
    requests = [head.format(secret) + "".join(f"{line}\r\n" for line in more) + "\r\n" for more in tries]
    requests += [head.format(ours.keys["bob"]) + "\r\n"]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], input=json.dumps(requests), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["401"] * len(tries) + ["200"], done
    for mark in ("X-LLM-Proxy-Stranger: 0", "x-LLM-proxy-STRANGER:", "X-LLM-Proxy-Stranger:\t"):
        assert raw(ours.gateway.port, "GET", LOOKS, f"Authorization: Bearer {secret}", mark).status == 401
        assert raw(ours.gateway.port, "GET", LOOKS, mark).status == 401
    assert ours.owner.ask("/api/sessions").status == 200


def test_only_another_machines_key_opens_entries_and_entries_alone(ours):
    """No credential of a user's, nor the owner's; with the key no file but logs, and no page."""
    state = ours.gateway.daemon.state
    key = key_of((state / guard.SECRET).read_text())
    machine = by_bearer(ours.gateway, key)
    folder = ours.gateway.daemon.home / ".llm-provider-logs"
    logs = next(folder.rglob("*.jsonl"))
    file = str(logs.relative_to(folder))
    length = len(logs.read_bytes().splitlines()[0])
    path = f"/entry?file={file}&offset=0&length={length}"
    assert machine.ask(path).status == 200
    for visitor in (
        Visitor(ours.gateway, {}),
        ours.bob,
        ours.owner,
        by_bearer(ours.gateway, key[:-1]),
        by_cookie(ours.gateway, key),
    ):
        assert visitor.ask(path).status == 401
    assert machine.ask(path, "POST").status == 405
    escape = os.path.relpath(state / guard.SECRET, folder)
    for other in (
        escape,
        f"{file.partition('/')[0]}/../{file}",
        str(logs),
        f"./{file}",
        f"{file}%00",
        f"..%2f{folder.name}/{file}",
        "",
        "%2e%2e/x.jsonl",
    ):
        assert machine.ask(f"/entry?file={other}&offset=0&length={length}").status == 404, other
    for numbers in (
        "offset=-1&length=9",
        f"offset=5&length={length}",
        "offset=9999999999999999&length=1",
        "offset=0&length=0",
        "offset=0",
    ):
        assert machine.ask(f"/entry?file={file}&{numbers}").status == 404, numbers
    assert machine.ask("/api/sessions").status == 401 and machine.ask("/").status == 401


# --- what is another's


def test_what_both_have_said_is_told_to_each_as_his_own(ours):
    """One client's session id for both, one history: each has sessions of his own, and no trace of the other's."""
    for visitor, own, other in ((ours.alice, ours.hers, "canary-bob"), (ours.bob, ours.his, "canary-alice")):
        assert visitor.calls().keys() == set(own)
        told = "".join(visitor.want(f"/sessions/{ours.session[id]}/export?fmt=jsonl") for id in own)
        told += (
            visitor.want("/") + visitor.want("/api/search?q=hello") + visitor.want("/figures.csv?by=session&of=groups")
        )
        assert other not in told
    assert not {ours.session[id] for id in ours.hers} & {ours.session[id] for id in ours.his}


def test_a_picture_needs_its_call(ours):
    """By its digest alone it is nobody's; its owner's browser keeps none of it, as others may use that browser."""
    digest, call = sha256(PNG).hexdigest(), ours.picture
    path = f"/blobs/{digest}?session={ours.session[call]}&call={call}"
    mine = ours.alice.ask(path)
    assert mine.status == 200 and mine.body == PNG and mine.headers["Cache-Control"] == "no-store"
    his = ours.his[0]
    for other in (
        path,
        f"/blobs/{digest}",
        f"/blobs/{digest}?session={ours.session[his]}&call={his}",
        f"/blobs/{digest}?session={ours.session[his]}&call={call}",
    ):
        assert ours.bob.ask(other).status == 404, other
    assert "immutable" in ours.owner.ask(path).headers["Cache-Control"]


def test_no_answer_tells_whether_something_is_anothers(ours):
    """Compared with one's own, looked for, opened, listed: alice's ids are answered like ids that never were."""
    his, hers = ours.his[0], ours.hers[0]
    never = re.sub("[0-9a-f]", "0", hers)
    own, session = ours.session[his], ours.session[hers]
    gone = re.sub(r"[0-9a-f]{8}$", "0" * 8, session)
    paths = (
        "/calls/{call}", "/api/calls/{call}", "/calls/{call}?dl=har", "/calls/{call}?tab=raw",
        f"/calls/{his}?tab=diff&against={{call}}", f"/api/calls/{his}?tab=diff&against={{call}}",
        f"/sessions/{own}?call={{call}}", f"/sessions/{own}/turns?call={{call}}", f"/sessions/{own}/part?call={{call}}&part=system",
        "/sessions/{session}", "/api/sessions/{session}", "/sessions/{session}/export?fmt=md", "/sessions/{session}/turns",
        "/search?q={call}", "/api/search?q=session:{session}+canary", "/api/search?q=call:{call}", "/live?session={session}",
        "/api/sessions?before=1.{session}", "/api/sessions?project={session}", "/api/values?of=model&project={session}",
    )  # fmt: skip
    for path in paths:
        answers = []
        for call, id in ((hers, session), (never, gone)):
            answer = ours.bob.ask(path.format(call=call, session=id))
            body = answer.body.decode().replace(call, "CALL").replace(id, "SESSION")
            body = re.sub(
                r'"(?:now_ns|took_ms)":\d+|rendered in [^<]*|data-now[^>]*|\d\d:\d\d:\d\d|[\d.,]+ m?s\b', "", body
            )
            answers.append((answer.status, body))
        assert answers[0] == answers[1], path
        assert "canary-alice" not in answers[0][1]


def test_nobody_writes_into_anothers_record(ours):
    """A client that names alice's account, by the gateway or past it: nothing of it becomes hers."""
    before = ours.alice.calls().keys()
    account = ours.gateway.want(200, "GET", "/auth/viewer", token=ours.gateway.alice)["account"]
    forged = {
        "X-LLM-Proxy-Gateway-Account": account,
        "x-llm-proxy-gateway-user": ALICE,
        "X-Llm-Proxy-Gateway-Attempt": "1",
    }
    ours.call("bob", "canary-bobforged", forged)
    host = ours.gateway.echo.url.removeprefix("http://")
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "canary-bobpast"}]}).encode()
    for target in (f"/openai/{host}/v1/chat/completions", "/v1/chat/completions"):
        ours.gateway.ask("POST", target, body, "sk-of-his-own-0123456789", headers=forged)
    until(lambda: len(ours.bob.calls()) > len(ours.his))
    assert "canary-bobforged" in "".join(ours.bob.want(f"/calls/{id}?dl=request") for id in ours.bob.calls())
    assert ours.alice.calls().keys() == before


# --- live


def test_a_stream_cannot_be_taken_up_where_anothers_ended(ours):
    """With an id that the owner's stream was given: it begins anew, with what is one's own, and has no numbers."""
    with live(ours.owner) as whole:
        last = re.search(r"id: (\S+)\nevent: hello", whole.until("data: {"))[1]
        ours.call("alice", "canary-alicelive slowly")
        whole.until("event: over")
        with (
            live(ours.bob, Last_Event_ID=last) as stream,
            live(ours.bob, Last_Event_ID="0-0", query="?only=marks") as marks,
        ):
            for one in (stream, marks):
                came = one.until("data: {")
                assert "event: hello" in came and "\nid:" not in came and "alice" not in came
            ours.call("bob", "canary-boblive")
            for one in (stream, marks):
                came = one.until("event: over")
                assert "canary-alice" not in came and "\nid:" not in came and came.count("event: over") == 1


def test_one_account_does_not_take_all_places_of_live_pages(ours):
    """Eight; a ninth is told so, others find room, and so does he when one has left. By whatever credential."""
    _, cookie = by_form(ours.gateway, BOB)
    with contextlib.ExitStack() as open:
        for number in range(OF_ONE):
            stream = open.enter_context(live((ours.bob, cookie)[number % 2]))
            assert stream.status == 200
            stream.until("event: hello")
        with live(cookie) as ninth:
            assert ninth.status == 503
        with live(ours.alice) as hers, live(ours.owner) as whole:
            assert hers.status == whole.status == 200

    def room():
        with live(ours.bob) as stream:
            return stream.status == 200

    until(room)


# --- who is shut out


def test_whoever_is_shut_out_is_out_within_seconds(ours):
    """Switched off, deleted, signed out, with a new password, a revoked key: no page and no open stream goes on. An
    administrator who is one no longer sees no more than his own."""
    gateway = ours.gateway
    names = ("off", "deleted", "out", "password", "key")
    came = {name: ours.person(f"{name}@ends.example") for name in names}
    visitors = {name: visitor for name, (visitor, _) in came.items()}
    ids = {name: ours.id_of(f"{name}@ends.example") for name in names}
    revoked, key = gateway.new_key(came["key"][1], scopes=["conversations"])
    visitors["key"] = by_bearer(gateway, key)
    person, visitors["out"] = by_form(gateway, "out@ends.example")
    own = gateway.key(came["out"][1], scopes=["models"])
    demoted, _ = ours.person("demoted@ends.example")
    promoted = gateway.want(
        200, "PATCH", f"/manage/users/{ours.id_of('demoted@ends.example')}", {"role": "admin"}, gateway.admin
    )
    demoted = by_form(gateway, "demoted@ends.example")[1]
    assert demoted.json("/sessions")["total"] > 0 and promoted["role"] == "admin"
    assert {visitor.ask("/api/sessions").status for visitor in visitors.values()} == {200}
    with live(visitors["out"]) as stream:
        stream.until("event: hello")
        gateway.want(200, "PATCH", f"/manage/users/{ids['off']}", {"active": False}, gateway.admin)
        gateway.want(204, "DELETE", f"/manage/users/{ids['deleted']}", token=gateway.admin)
        assert person.post("/log-out", {}).status == 303
        change = {"current_password": PASSWORD, "new_password": "another long and private one"}
        gateway.want(204, "POST", "/auth/password", change, came["password"][1])
        gateway.want(204, "DELETE", f"/auth/key/{revoked}", token=came["key"][1])
        gateway.want(
            200, "PATCH", f"/manage/users/{ours.id_of('demoted@ends.example')}", {"role": "member"}, gateway.admin
        )
        began = time.monotonic()
        until(lambda: {visitor.ask("/api/sessions").status for visitor in visitors.values()} == {401}, SHUT_OUT)
        until(lambda: demoted.json("/sessions")["total"] == 0, SHUT_OUT)
        assert time.monotonic() - began < SHUT_OUT
        body = {"model": "ours", "messages": [{"role": "user", "content": "canary-outlater"}], "stream": True}
        assert gateway.ask("POST", "/v1/chat/completions", body, own).status == 200
        assert "canary-outlater" not in stream.until("no such mark"), "what he says by a key goes to no stream of then"


def test_a_new_user_with_an_old_address_sees_nothing_of_the_former(ours):
    """Neither what he had said, by any way, nor does what the former one had open the new one's."""
    gateway, email = ours.gateway, "taken@again.example"
    former, token = ours.person(email)
    key = gateway.key(token, scopes=["models", "conversations"])
    body = {"model": "ours", "messages": [{"role": "user", "content": "canary-former"}]}
    assert gateway.ask("POST", "/v1/chat/completions", body, key).status == 200
    (call,) = until(lambda: former.calls())
    gateway.want(204, "DELETE", f"/manage/users/{ours.id_of(email)}", token=gateway.admin)
    new, token = ours.person(email)
    for path in ("/", "/api/sessions", "/api/search?q=former", "/api/figures", "/live", f"/calls/{call}"):
        assert "canary-former" not in new.ask(path).body.decode(), path
    assert new.json("/sessions")["total"] == 0 and new.ask(f"/calls/{call}").status == 404
    until(lambda: former.ask("/api/sessions").status == 401, SHUT_OUT)
    assert by_bearer(gateway, key).ask("/api/sessions").status == 401


# --- the pages' forms


def test_forms_assign_no_more_than_they_show(ours):
    """A role, an account, somebody else's number, a thing shared with all: what a form does not have, it does not do."""
    gateway = ours.gateway
    more = {
        "role": "admin",
        "is_admin": "1",
        "active": "1",
        "user_id": ours.id_of(ADMIN),
        "shared": "on",
        "id": "1",
        "scopes": "manage",
    }
    person = Person(gateway)
    fields = {"email": "mass@forms.example", "password": PASSWORD, "again": PASSWORD, "invitation": ""}
    assert person.post("/sign-up", more | fields).status == 303
    for path, given in (
        ("/account", {"do": "privacy", "level": "metadata"}),
        ("/keys", {"do": "make", "name": "mine", "scope": "models", "expires": "7"}),
    ):
        assert person.post(path, more | given).status < 400
    (me,) = (
        one
        for one in gateway.want(200, "GET", "/manage/users", token=gateway.admin)
        if one["email"] == "mass@forms.example"
    )
    assert me["role"] == "member"
    token = gateway.sign_in("mass@forms.example")
    assert [one["scopes"] for one in gateway.want(200, "GET", "/auth/key", token=token)] == [["models"]]
    for path, given in (
        (
            "/aliases/new",
            {
                "do": "save",
                "alias": "for-all",
                "target_model": "gpt-4o",
                "provider_key_id": gateway.shared,
                "shared": "on",
            },
        ),
        ("/users/1", {"do": "save", "role": "admin"}),
    ):
        assert person.post(path, {"token": person.token("/account"), **given}).status in (400, 403), path
    assert person.ask("GET", "/users").status == 403
