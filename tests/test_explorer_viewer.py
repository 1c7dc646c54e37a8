"""Each of the gateway's users sees his own calls in the explorer, and of others' nothing, whatever he asks."""

import asyncio
import contextlib
import json
import re
import threading
import time
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from aiohttp.test_utils import TestClient, TestServer

from llm_proxy.cli.search import search
from llm_proxy.cli.sessions import sessions
from llm_proxy.cli.stats import stats
from llm_proxy.explorer import guard, site, viewer
from llm_proxy.explorer.bell import Bell
from llm_proxy.explorer.options import Options
from llm_proxy.explorer.routes import EXTRAS, PAGES
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.queries import Filter, open_index
from llm_proxy.index.viewer import EVERYTHING, NOBODY, Viewer
from llm_proxy.wire import attribution
from llm_proxy.wire.attribution import Attribution
from tests.explored import SCENES, Made, Session, png, record
from tests.gatewaybed import Gateway, a_gateway
from tests.gatewayscreens import Person
from tests.journals import Call, Journal

NAMES = ("alice", "bob")
WORD = "quince"  # in every conversation of these, so that whoever searches for it finds what he may
SECRET = "sk-ant-api03-" + "Zx8Qw3Lm5Np7Rt9Vb2Yc4"
MAIL = "carol.jones@example.org"


def said(name: str, *, of: str = "", picture: bytes = b"") -> dict:
    content: list[dict] = [{"type": "text", "text": f"canary-{name} {WORD} {of} {SECRET} {MAIL}"}]
    if picture:
        import base64

        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(picture).decode()}
        content.append({"type": "image", "source": source})
    return {"model": f"model-{name}", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}


def answered(name: str) -> dict:
    usage = {"input_tokens": 10, "output_tokens": 5}
    text = [{"type": "text", "text": f"canary-{name} answered {WORD}"}]
    about = {"id": "msg_1", "type": "message", "role": "assistant", "stop_reason": "end_turn"}
    return about | {"model": f"model-{name}", "content": text, "usage": usage}


def _scene(name: str, *callers: str):
    """A session, and whose its calls are, one after the other."""

    def scene(maker: Any) -> None:
        client = {"program": f"canary-{name}-program", "project": f"canary-{name}-project", "cwd": f"/canary-{name}"}
        start = maker.now - 3600 * 10**9
        session = Session(maker, name, "anthropic", "api.anthropic.com", start, client=client)
        for place, caller in enumerate(callers):
            colour = (len(caller), place, len(name))
            body = said(caller, of=f"turn {place}", picture=png(colour=colour))
            failed = {"status": 400} if place == 2 else {}
            answer = {"type": "error", "error": {"type": "bad", "message": f"canary-{caller} failed"}}
            session.call("/v1/messages", body, answer if failed else answered(caller), **failed)

    return scene


OWN = {"alice": ("alice",) * 3, "bob": ("bob",) * 3, "owner": ("owner",) * 3, "mixed": ("alice", "bob") * 2}


class Told(NamedTuple):
    """The record, the gateway, and whose each call is (`calls`: call id -> name; `sessions`: id -> names)."""

    made: Made
    gateway: Gateway
    accounts: dict[str, str]
    tokens: dict[str, str]
    calls: dict[str, str]
    sessions: dict[str, frozenset[str]]

    def traces(self, *names: str) -> set[str]:
        """What tells of these people's calls: ids, words."""
        foreign = {id for id, name in self.calls.items() if name in names}
        foreign |= {id for id, owners in self.sessions.items() if owners <= set(names)}
        return foreign | {f"canary-{name}" for name in names}

    @property
    def sockets(self) -> tuple[str, ...]:
        return (str(self.gateway.daemon.state / f"gateway-{self.gateway.port}.sock"),)


def _attribute(made: Made, accounts: dict[str, str]) -> tuple[dict[str, str], dict[str, frozenset[str]]]:
    """The logs as the gateway's calls are recorded; the conversations there are go round."""
    round_ = ("alice", "bob", "owner")
    calls: dict[str, str] = {}
    for place, (name, ids) in enumerate(made.calls.items()):
        whose = OWN.get(name) or (round_[place % 3],) * len(ids)
        calls |= dict(zip(ids, whose, strict=True))
    sessions: dict[str, set[str]] = {}
    for file in made.logs.rglob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        for line in lines:
            name = calls.get(line["_meta"].get("request_id"), "")
            if name:
                sessions.setdefault(line["_meta"]["session"], set()).add(name)
            if line["type"] == "request" and name in accounts:
                whose = {"account": accounts[name], "user": f"{name}@example.com", "request": "r", "attempt": 1}
                line["gateway"] = whose
        file.write_text("".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines))
    made.index.unlink()
    indexer = Indexer(made.index, made.logs)
    indexer.catch_up_all()
    indexer.close()
    return calls, {id: frozenset(names) for id, names in sessions.items()}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with a_gateway(home) as gateway:
        gateway.wait()
        tokens = {"admin": gateway.admin} | {name: gateway.member(f"{name}@example.com") for name in NAMES}
        accounts = {
            name: gateway.want(200, "GET", "/auth/viewer", token=token)["account"] for name, token in tokens.items()
        }
        made = record(tmp_path_factory.mktemp("record"), scenes=(*SCENES, *(_scene(*one) for one in _scenes())))
        yield Told(made, gateway, accounts, tokens, *_attribute(made, accounts))


def _scenes():
    return ((name, *callers) for name, callers in OWN.items())


@contextlib.asynccontextmanager
async def _explorer(told: Told, tmp_path, token: str = "", **options):
    """The explorer as a process of the daemon's would serve it; without a token as whoever runs the machine asks."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    headers = {"Authorization": f"Bearer {token}"} if token else guard.bearer(guard.new_secret(state))
    given = {"gateway": told.sockets, "index": str(told.made.index), "logs": str(told.made.logs)} | options
    app = site.application(Options(state=str(state), **given))
    async with TestClient(TestServer(app), headers=headers) as client:
        yield client


async def _ask(client: TestClient, path: str) -> tuple[int, str]:
    async with client.get(f"/llm-proxy{path}", allow_redirects=False) as answer:
        return answer.status, (await answer.read()).decode("utf-8", "replace")


def lists() -> list[str]:
    """Every page and file that is not about one thing, with each word that its parameters take."""
    found = []
    for one in (*PAGES, *EXTRAS):
        if "{" in one.path or one.path == "/live/events":
            continue
        queries = [{}, {"utc": "1"}]
        queries += [{param.name: choice} for param in one.params for choice in param.choices]
        if one.path == "/search":
            queries = [*(query | {"q": WORD} for query in queries), {"q": "answered"}, {"q": "role:user canary"}]
        if one.path.startswith("/figures"):
            queries += [{"by": "session", "of": "groups", "model": "model-bob"}]
        below = ["", "/api"] if one in PAGES else [""]
        for query in queries:
            for root in below:
                path = "/sessions" if one.path == "/" and root else one.path
                found.append(f"{root}{path}?{urlencode(query)}")
    return list(dict.fromkeys(found))


def about(told: Told, session: str, call: str, picture: str = "0" * 64) -> list[str]:
    """Every address that names a session, a call or a picture."""
    found = []
    for one in (*PAGES, *EXTRAS):
        if "{" not in one.path:
            continue
        id = picture if "{sha256}" in one.path else call if one.path.startswith("/calls/") else session
        path = re.sub(r"\{\w+\}", quote(id, safe=""), one.path)
        queries = [{}, *({param.name: choice} for param in one.params for choice in param.choices)]
        named = {"session": session, "call": call} if picture in path else {}
        if path.endswith("/part"):
            queries = [{"call": call, "part": part} for part in ("system", "tools", "earlier", "0.0")]
        for query in queries:
            asked = urlencode(query | named)
            found += [f"{root}{path}?{asked}" for root in (("", "/api") if one in PAGES else ("",))]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("name", NAMES)
async def test_no_list_search_figure_or_file_tells_of_others(told, tmp_path, name):
    """Each page, as HTML, JSON and CSV, with each word its parameters take: no id and no word of anybody else's."""
    others = told.traces(*({"alice", "bob", "owner"} - {name}))
    async with _explorer(told, tmp_path, told.tokens[name]) as client:
        seen = ""
        for path in lists():
            status, text = await _ask(client, path)
            assert status == 200, (path, text[:300])
            assert not [trace for trace in others if trace in text], path
            seen += text
    own = [id for id, owners in told.sessions.items() if name in owners]
    assert len(own) > 3 and all(id in seen for id in own) and f"canary-{name}" in seen


async def test_what_is_not_mine_is_not_there(told, tmp_path):
    """Every route with every foreign session, call and picture answers 404, and the same as for what never was."""
    foreign = [id for id, name in told.calls.items() if name != "alice"]
    session_of = {call: told.made.sessions[name] for name, ids in told.made.calls.items() for call in ids}
    async with _explorer(told, tmp_path, told.tokens["alice"]) as client:
        for call in foreign:
            session = session_of[call]
            shared = "alice" in told.sessions[session]
            # All addresses for some of them, the pages for all.
            some = about(told, session, call) if call in (*told.made.calls["bob"], *told.made.calls["mixed"]) else ()
            for path in (*some, f"/calls/{call}", f"/api/calls/{call}", f"/sessions/{session}?call={call}"):
                if shared and path.startswith(("/sessions/", "/api/sessions/")) and call not in path:
                    continue
                status, text = await _ask(client, path)
                if status == 308 and path.startswith("/session/"):  # an older address, of whatever session
                    continue
                assert status == 404 or (status == 307 and "fmt=md" in path), (path, status)
                assert "canary-bob" not in text and "canary-owner" not in text


async def test_what_is_mine_is_there_as_ever(told, tmp_path):
    """One's own conversation is what whoever runs the machine sees of it, to the byte."""
    call, session = told.made.calls["alice"][0], told.made.sessions["alice"]
    async with _explorer(told, tmp_path, told.tokens["alice"]) as mine, _explorer(told, tmp_path) as whole:
        for path in about(told, session, call):
            if path.startswith(("/api", "/sessions")) and "/part" not in path:
                assert await _ask(mine, path) == await _ask(whole, path) or "rendered in" in (await _ask(mine, path))[1]
        assert (await _ask(mine, f"/calls/{call}?dl=request"))[1] == json.dumps(
            said("alice", of="turn 0", picture=png(colour=(5, 0, 5))), ensure_ascii=False
        )


async def test_of_a_session_of_two_each_sees_his_own_calls(told, tmp_path):
    """Not the other's, nor what the session is called and where it began; sums are of one's own calls."""
    session, calls = told.made.sessions["mixed"], told.made.calls["mixed"]
    for name, other in (("alice", "bob"), ("bob", "alice")):
        async with _explorer(told, tmp_path, told.tokens[name]) as client:
            status, text = await _ask(client, f"/api/sessions/{session}?view=calls")
            found = json.loads(text)
            mine = [id for id in calls if told.calls[id] == name]
            assert status == 200 and [one["id"] for one in found["calls"]] == mine
            assert found["session"]["calls"] == len(mine) and f"canary-{other}" not in text and "mixed" not in text
            assert found["session"]["models"] == [f"model-{name}"]
            listed = json.loads((await _ask(client, "/api/sessions?n=200"))[1])
            (row,) = [one for group in listed["groups"] for one in group["sessions"] if one["id"] == session]
            assert row["sums"]["calls"] == len(mine) and row["title"] == "" and row["models"] == [f"model-{name}"]
            for path in (f"/sessions/{session}/export?fmt=md", f"/sessions/{session}/export?fmt=jsonl"):
                status, text = await _ask(client, path)
                assert status == 200 and f"canary-{name}" in text and f"canary-{other}" not in text


def test_sums_of_all_viewers_are_the_whole(told):
    """By session, by quarter of an hour and by call: each viewer's come to what his calls come to."""
    with open_index(told.made.index) as index:
        rows = list(index.calls(Filter()))
    for name, account in told.accounts.items():
        wanted = [row for row in rows if row.account == account]
        with open_index(told.made.index, Viewer(account)) as index:
            seen = [row.id for row in index.calls(Filter())]
            assert seen == [row.id for row in wanted] == [row.id for row in rows if told.calls[row.id] == name]
            (slots,) = index.rows("SELECT coalesce(sum(calls), 0), coalesce(sum(output), 0) FROM slots", {})
            (sums,) = index.rows("SELECT coalesce(sum(calls), 0), coalesce(sum(output), 0) FROM sessions", {})
            models = sum(count for (count,) in index.rows("SELECT calls FROM session_models", {}))
        output = sum(row.usage.output for row in wanted if row.usage)
        assert slots == sums == (len(wanted), output)
        assert models == sum(1 for row in wanted if row.model)
    with open_index(told.made.index, NOBODY) as index:
        tables = (
            "calls",
            "sessions",
            "session_models",
            "session_files",
            "files",
            "slots",
            "messages",
            "texts",
            "gists",
        )
        assert [next(index.rows(f"SELECT count(*) FROM {name}", {})) for name in tables] == [(0,)] * len(tables)
    with open_index(told.made.index, Viewer(told.accounts["admin"], "full")) as index:
        seen = {row.id for row in index.calls(Filter())}
    assert seen == {id for id, name in told.calls.items() if name != "owner"}
    assert EVERYTHING.sees("") == "full" and Viewer("00000001.1", "full").sees("") == "none"


# --- administrators


async def test_by_default_an_administrator_sees_that_and_how_much_not_what(told, tmp_path):
    """With `metadata`: lists and figures of everybody, no word of anybody's, and none of what no gateway called."""
    async with _explorer(told, tmp_path, told.tokens["admin"], admin_sees="metadata") as client:
        seen = ""
        for path in lists():
            status, text = await _ask(client, path)
            assert status == 200 and not [one for one in told.traces("owner") if one in text], path
            seen += text
        session, call = told.made.sessions["alice"], told.made.calls["alice"][0]
        assert session in seen and told.made.sessions["bob"] in seen
        for path in about(told, session, call):
            status, text = await _ask(client, path)
            if status == 200:
                assert path.startswith((f"/sessions/{session}", f"/api/sessions/{session}")), path
            else:
                assert status in (403, 404, 307, 308), (path, status)
            seen += text
        assert (await _ask(client, f"/calls/{call}?tab=raw"))[0] == 403
    # What a client's program and project are called is no word of a conversation.
    assert "canary-" not in re.sub("canary-[a-z]+-(project|program)", "", seen)


@pytest.mark.parametrize(("policy", "secret"), [("redacted", False), ("full", True)])
async def test_an_operator_may_let_administrators_read(told, tmp_path, policy, secret):
    """Redacted: without what looks like a secret or names a person, and nothing of it is found by searching. Full: as it is."""
    session, call = told.made.sessions["bob"], told.made.calls["bob"][0]
    async with _explorer(told, tmp_path, told.tokens["admin"], admin_sees=policy) as client:
        for path in about(told, session, call):
            status, text = await _ask(client, path)
            assert status in (200, 307, 308, 404, 400, 410), (path, status)
            assert secret or (SECRET not in text and MAIL not in text), path
        status, text = await _ask(client, f"/calls/{call}?dl=request")
        assert status == 200 and "canary-bob" in text and (SECRET in text) == (MAIL in text) == secret
        hits = json.loads((await _ask(client, f"/api/search?q={WORD}"))[1])["hits"]
        assert bool(hits) == secret
        assert await _titles(client) == {"alice", "bob"}
        texts = "".join([(await _ask(client, path))[1] for path in lists()])
        assert "canary-bob" in texts and (SECRET in texts) == secret
        assert not [one for one in told.traces("owner") if one in texts]


def test_what_is_normal_is_kept_for_whom_it_is_shown_to(told):
    """A shared index answers a narrower question than the viewer's, who finds the times all the same."""
    from llm_proxy.explorer.pages.live import _Normals
    from llm_proxy.index.record import Record

    asked, narrowed = Viewer("00000001.1", "redacted"), Viewer("00000001.1", "metadata")
    normals = _Normals()
    with open_index(told.made.index, narrowed) as index:
        found = normals.all(Record(index, told.made.logs), asked)
    assert found and normals.known(str(told.made.logs), asked) == found
    assert not normals.known(str(told.made.logs), narrowed)


async def test_one_user_keeps_nobody_else_waiting(told, tmp_path):
    """However many pages he asks for, leaving before they come, others' are made; the owner can always watch."""
    ann, bob = Viewer("00000001.1"), Viewer("00000001.2")
    options = Options(index=str(told.made.index), logs=str(told.made.logs), state=str(tmp_path))
    asked = site.Site(options, Bell())
    freed = threading.Event()
    try:
        slow = [asyncio.create_task(asked.ask(ann, lambda record: freed.wait(20))) for _ in range(4)]
        await asyncio.sleep(0)
        for task in slow[:2]:
            task.cancel()
        slow += [asyncio.create_task(asked.ask(ann, lambda record: freed.wait(20))) for _ in range(4)]
        async with asyncio.timeout(10):
            for viewer in (bob, EVERYTHING):
                assert await asked.ask(viewer, lambda record: "answered") == "answered"
        freed.set()
        assert await asyncio.gather(*slow[2:]) == [True] * 6
        async with contextlib.AsyncExitStack() as stack:
            for number in range(40):
                await stack.enter_async_context(asked.live.watching(Viewer(f"00000001.{number + 1}")))
            assert [await stack.enter_async_context(asked.live.watching(who)) for who in (bob, EVERYTHING)] == [
                False,
                True,
            ]
    finally:
        freed.set()
        await asked.close()


async def _titles(client: TestClient) -> set[str]:
    """Whose conversations' first words stand in the list."""
    found = json.loads((await _ask(client, "/api/sessions?n=200"))[1])
    titles = [one["title"] for group in found["groups"] for one in group["sessions"]]
    return {title.split()[0].removeprefix("canary-") for title in titles if title.startswith("canary-")}


async def test_with_none_an_administrator_is_like_everybody(told, tmp_path):
    """He sees his own calls, of which there are none here."""
    async with _explorer(told, tmp_path, told.tokens["admin"], admin_sees="none") as client:
        status, text = await _ask(client, "/api/sessions")
        assert status == 200 and json.loads(text)["total"] == 0


async def test_whose_it_is_stands_where_several_peoples_calls_are_shown(told, tmp_path):
    """For the owner and administrators: in the list, as a filter, as groups of figures; for nobody else."""
    admin = {"token": told.tokens["admin"], "admin_sees": "metadata"}
    for who in ({}, admin):
        async with _explorer(told, tmp_path, **who) as client:
            home = json.loads((await _ask(client, "/api/sessions?n=200"))[1])
            users = {one["id"]: one["users"] for group in home["groups"] for one in group["sessions"]}
            for id, owners in told.sessions.items():
                if id in users:
                    assert users[id] == [f"{name}@example.com" for name in NAMES if name in owners]
            (facet,) = [one for one in home["facets"] if one["name"] == "user"]
            assert {one["value"]: one["count"] for one in facet["values"]} == {
                f"{name}@example.com": sum(name in owners for owners in told.sessions.values()) for name in NAMES
            }
            chosen = json.loads((await _ask(client, "/api/sessions?n=200&user=Bob@example.com"))[1])
            found = {one["id"] for group in chosen["groups"] for one in group["sessions"]}
            assert found == {id for id, owners in told.sessions.items() if "bob" in owners}
            page = (await _ask(client, "/?user=bob@example.com"))[1]
            assert "user: bob@example.com" in page and "User of the gateway" in page
            groups = {one["key"]: one for one in json.loads((await _ask(client, "/api/figures?by=user"))[1])["groups"]}
            for name in NAMES:
                assert groups[f"{name}@example.com"]["sums"]["calls"] == list(told.calls.values()).count(name)
            assert ("" in groups) == (not who)
            assert "gateway’s project" in (await _ask(client, "/figures?by=team"))[1]
            assert (await _ask(client, "/figures?by=gateway_project"))[0] == 200
            assert "bob@example.com" in (await _ask(client, "/values?of=user"))[1]
            assert "bob@example.com" in (await _ask(client, "/sessions.csv"))[1]
    for who in ({"token": told.tokens["alice"]}, {"token": told.tokens["admin"], "admin_sees": "none"}):
        async with _explorer(told, tmp_path, **who) as client:
            home = json.loads((await _ask(client, "/api/sessions?n=200"))[1])
            assert not [one for one in home["facets"] if one["name"] == "user"]
            assert not [one["users"] for group in home["groups"] for one in group["sessions"] if one["users"]]
            assert json.loads((await _ask(client, "/api/sessions?user=bob@example.com"))[1])["count"] == 0
            assert "gateway’s project" not in (await _ask(client, "/figures"))[1]
            assert "bob@" not in (await _ask(client, "/api/figures?by=user"))[1]


async def test_where_no_gateway_called_nothing_is_new(tmp_path):
    """One user's daemon: no facet, no column, no groups of users."""
    made = record(tmp_path / "record", scenes=(_scene("owner", "owner"),))
    (state := tmp_path / "state").mkdir(mode=0o700)
    secret = guard.bearer(guard.new_secret(state))
    app = site.application(Options(state=str(state), index=str(made.index), logs=str(made.logs)))
    async with TestClient(TestServer(app), headers=secret) as client:
        home, figures = (await _ask(client, "/"))[1], (await _ask(client, "/figures"))[1]
        assert "canary-owner" in home and "gateway" not in home and "gateway" not in figures
        assert "user" not in [one["name"] for one in json.loads((await _ask(client, "/api/sessions"))[1])["facets"]]


# --- who comes in


async def test_only_what_the_gateway_vouches_for_opens(told, tmp_path):
    """A session or a key that may read conversations; no other key, nothing wrong, nothing twice. A key is no admin."""
    key = told.gateway.key(told.tokens["alice"], scopes=["conversations"])
    powerless = told.gateway.key(told.tokens["alice"], scopes=["models", "usage", "manage"])
    admins = told.gateway.key(told.gateway.admin, scopes=["conversations"])
    async with _explorer(told, tmp_path, admin_sees="full") as client:
        for token, status, calls in ((key, 200, True), (powerless, 401, False), (key[:-1] + "x", 401, False)):
            async with client.get("/llm-proxy/api/sessions", headers={"Authorization": f"Bearer {token}"}) as answer:
                assert answer.status == status and (told.made.sessions["alice"] in await answer.text()) == calls
        async with client.get("/llm-proxy/api/sessions", headers={"Authorization": f"Bearer {admins}"}) as answer:
            assert (await answer.json())["total"] == 0
        for headers in ({"Authorization": "Basic eDp5"}, {"Authorization": "Bearer "}, {"Cookie": "llm_proxy_team=x"}):
            headers = {"Authorization": "", **headers}
            async with client.get("/llm-proxy/api/sessions", headers=headers) as answer:
                assert answer.status == 401


def test_through_the_daemon_by_cookie_and_key_and_by_any_of_its_names(told):
    """A browser signs in on the team's pages and sees its own; after it has signed out it does not, soon."""
    gateway = told.gateway
    assert gateway.ask("GET", "/llm-proxy/api/sessions").status == 401
    person = Person(gateway).sign_in("alice@example.com")
    cookie = {"Cookie": f"llm_proxy_team={person.cookie}"}
    deadline = time.monotonic() + 30
    while (answer := gateway.ask("GET", "/llm-proxy/api/sessions", headers=cookie)).status == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert answer.status == 200 and answer.json["total"] == 0  # the daemon's own record is empty
    named = cookie | {"Host": "10.1.2.3:8080"}
    assert gateway.ask("GET", "/llm-proxy/api/sessions", headers=named).status == 200
    assert gateway.ask("GET", "/llm-proxy/api/sessions", headers=cookie | {"Host": "evil.example"}).status == 403
    page = gateway.ask("GET", "/llm-proxy/", headers={"Accept": "text/html"})
    assert page.status == 401 and b"/llm-proxy/team/log-in" in page.body
    assert person.post("/log-out", {}).status == 303
    deadline = time.monotonic() + 10
    while gateway.ask("GET", "/llm-proxy/api/sessions", headers=cookie).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)


async def test_while_the_gateway_is_away_nobody_comes_in_by_it(told, tmp_path):
    """Neither with what was good a moment before, for longer than it is remembered; its owner does."""
    async with _explorer(told, tmp_path, gateway=(str(tmp_path / "gone.sock"),)) as client:
        for token, status in ((told.tokens["alice"], 401), ("", 200)):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with client.get("/llm-proxy/api/sessions", headers=headers) as answer:
                assert answer.status == status


async def test_another_users_program_is_no_owner(told, tmp_path):
    """With the owner's own secret or cookie, where the proxy has seen whose program asks; the team's way is open."""
    async with _explorer(told, tmp_path) as client:
        marked = {guard.STRANGERS: "1234"}
        async with client.get("/llm-proxy/api/sessions", headers=marked) as answer:
            assert answer.status == 401
        headers = marked | {"Authorization": f"Bearer {told.tokens['alice']}"}
        async with client.get("/llm-proxy/api/sessions", headers=headers) as answer:
            assert answer.status == 200


# --- live, and what is remembered for everybody


SSE = ("Content-Type: text/event-stream",)


def _live(told: Told, serial: int, name: str) -> Call:
    account = told.accounts.get(name)
    fields = attribution.fields(Attribution(account=account)) if account else []
    events = (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": f"canary-{name} and more. "},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "So it goes on. "}},
    )
    stream = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events)
    return Call(
        serial,
        why="gateway" if account else "bare path",
        request_headers=[f"{header}: {value}" for header, value in fields],
        headers=SSE,
        wall=time.time_ns(),
        pieces=[(101, stream.encode())],
    )


@contextlib.asynccontextmanager
async def _stream(client: TestClient, token: str):
    """All that comes of an event stream, as a function that waits for a mark and gives what came until then."""
    async with client.get("/llm-proxy/live/events", headers={"Authorization": f"Bearer {token}"}) as answer:
        assert answer.status == 200

        async def until(mark: str) -> str:
            came = ""
            async with asyncio.timeout(10):
                while mark not in came:
                    came += (await answer.content.readline()).decode()
            return came

        await until("event: hello")
        yield until


async def test_live_pages_tell_of_ones_own_calls_alone(told, tmp_path):
    """Words, ids, even the number of events of others' calls reach no stream and no page; administrators by policy."""
    journal = Journal(tmp_path / "journal")
    calls = {name: _live(told, place, name) for place, name in enumerate(("bob", "owner", "alice"), 1)}
    foreign = {str(calls[name].id) for name in ("bob", "owner")} | {"canary-bob", "canary-owner"}
    async with (
        _explorer(told, tmp_path, told.tokens["alice"], journal=str(journal.folder), admin_sees="metadata") as client,
        _stream(client, told.tokens["alice"]) as until,
        _stream(client, told.tokens["admin"]) as until_admin,
    ):
        for call in calls.values():
            journal.add(call.open, call.request, call.head, *call.response)
        client.app[site.BELL].ring()
        came = await until("canary-alice")
        came += (await _ask(client, "/live"))[1] + (await _ask(client, "/api/live"))[1]
        for call in calls.values():
            journal.add(call.end)
        client.app[site.BELL].ring()
        came += await until("event: over")
        assert not [one for one in foreign if one in came] and "\nid: " not in came
        came = await until_admin(str(calls["alice"].id))
        came = re.sub("canary-[a-z]+-(project|program)", "", came)
        assert str(calls["bob"].id) in came and "canary-" not in came and str(calls["owner"].id) not in came


async def test_of_a_session_of_two_no_stream_tells_what_it_is_called(told):
    """Its first words and its project are another's; in a session of one's own they stand."""
    from llm_proxy.explorer.live.hub import Flight, _apart, _places
    from llm_proxy.index.record import Record

    with open_index(told.made.index) as index:
        found = dict(_places(Record(index, told.made.logs), [told.made.calls["mixed"][1], told.made.calls["bob"][1]]))
    mixed, own = (Flight(None, place, row) for row, place in found.values())
    assert mixed.place.title and mixed.place.project
    shown = _apart(mixed)
    assert (shown.place.title, shown.project, shown.row.project) == ("", "", "")
    assert _apart(own) == own and own.place.title


async def test_a_stream_ends_with_the_session_it_began_with(told, tmp_path, monkeypatch):
    """Who signs out sees no further words on a page that is open."""
    monkeypatch.setattr(viewer, "REMEMBERED", 0.0)
    token = told.gateway.sign_in("bob@example.com")
    journal = Journal(tmp_path / "journal")
    async with _explorer(told, tmp_path, token, journal=str(journal.folder)) as client:
        async with client.get("/llm-proxy/live/events") as answer:
            await answer.content.readuntil(b"event: hello")
            assert told.gateway.ask("POST", "/auth/logout", token=token).status == 204
            call = _live(told, 1, "bob")
            deadline = time.monotonic() + 10
            while not answer.content.at_eof():
                journal.add(call.open)
                client.app[site.BELL].ring()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(answer.content.readany(), 0.2)
                assert time.monotonic() < deadline
        async with client.get("/llm-proxy/live/events") as answer:
            assert answer.status == 401


async def test_what_pages_remember_for_the_owner_they_tell_nobody_else(told, tmp_path):
    """How much is recorded, what is normal, turns put together: made for one viewer, shown to that one."""
    owner = f"/sessions/{told.made.sessions['bob']}"
    async with _explorer(told, tmp_path) as client:
        whole = [(await _ask(client, path))[1] for path in ("/", "/live", owner)]
        holds = re.search(r"[\d,]+ sessions, [\d,]+ calls", whole[0])
        assert holds is not None and "canary-bob" in whole[2]
        client.session.headers["Authorization"] = f"Bearer {told.tokens['alice']}"
        for path in ("/", "/live", "/api/", "/nothing-here"):
            _, text = await _ask(client, path)
            assert holds[0] not in text and str(tmp_path) not in text, path
        assert (await _ask(client, owner))[0] == 404


def test_commands_choose_by_user(told, capsys):
    """`--user` takes a whole address, whatever the case: sessions, sums and hits of that one."""
    place = ["--log-dir", str(told.made.logs), "--json"]
    for name, others in (("alice", ("bob", "owner")), ("Bob", ("alice", "owner"))):
        chosen = ["--user", f"{name}@Example.com", *place]
        assert sessions(["--limit", "500", *chosen]) == 0
        listed = {one["id"] for one in json.loads(capsys.readouterr().out)["sessions"]}
        assert listed == {id for id, owners in told.sessions.items() if name.lower() in owners}
        assert stats(chosen) == 0
        counted = json.loads(capsys.readouterr().out)
        assert str(list(told.calls.values()).count(name.lower())) in json.dumps(counted)
        assert search([WORD, *chosen]) == 0
        hits = capsys.readouterr().out
        assert f"canary-{name.lower()}" in hits
        assert not [one for one in others if f"canary-{one}" in hits]
    assert sessions(["--user", "alice", *place]) == 0
    assert json.loads(capsys.readouterr().out) == {"sessions": []}
