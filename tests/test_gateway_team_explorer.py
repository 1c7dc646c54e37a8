"""From the provider to the page: what people say through the gateway, they and nobody else find in the explorer."""

import contextlib
import re
from typing import NamedTuple

import pytest

from tests.gatewayattacks import Team, echoing
from tests.gatewaybed import a_gateway
from tests.gatewayviews import Visitor, begun, by_bearer, by_form, live, owner, recorded
from tests.test_explorer_viewer import WORD, about, lists

PEOPLE = {"alice": "alice@one.example", "bob": "bob@two.example"}
SECRET = "sk-ant-api03-" + "Zx8Qw3Lm5Np7Rt9Vb2Yc4"


class Said(NamedTuple):
    """What was called, by id: `whose` and in which session. `home` holds the daemon's folders."""

    home: object
    whose: dict
    session: dict
    keys: dict

    def of(self, name):
        return [id for id, other in self.whose.items() if other == name]

    def traces(self, name):
        ids = self.of(name)
        return {*ids, *(self.session[id] for id in ids), f"canary-{name}", PEOPLE[name]}


def call_all(gateway, name, key):
    """Streaming and not, in two APIs; each a conversation of its own."""
    made = 0
    for path, alias in (("/v1/chat/completions", "ours"), ("/v1/messages", "ours-claude")):
        for stream in (False, True):
            made += 1
            text = f"canary-{name}{made} {WORD} in {path} {SECRET}"
            answer = gateway.call(alias, text, key, path, stream=stream)
            assert answer.status == 200 and f"canary-{name}{made}".encode() in answer.body, answer
    return made


@contextlib.contextmanager
def a_daemon(home, echo, policy=""):
    env = {"LLM_PROXY_REDACTION_ENABLED": "false"} | ({"LLM_PROXY_GATEWAY_ADMIN_SEES": policy} if policy else {})
    with a_gateway(home, (echo.url,), env) as gateway:
        yield Team(gateway.daemon, echo).wait()


@pytest.fixture(scope="module")
def echo():
    with echoing() as echo:
        yield echo


@pytest.fixture(scope="module")
def first(tmp_path_factory, echo):
    """A daemon as it comes, with what two people have called."""
    home = tmp_path_factory.mktemp("team")
    with a_daemon(home, echo) as gateway:
        gateway.found()
        tokens = {"alice": gateway.alice, "bob": gateway.bob, "admin": gateway.admin}
        keys = {name: gateway.key(token, scopes=["models", "conversations"]) for name, token in tokens.items()}
        number = sum(call_all(gateway, name, keys[name]) for name in PEOPLE)
        calls = recorded(gateway, number)
        whole = owner(gateway)
        whose = {
            id: next(name for name in PEOPLE if f"canary-{name}" in whole.want(f"/calls/{id}?dl=request"))
            for id in calls
        }
        yield gateway, Said(home, whose, calls, keys)


def sees_only(visitor: Visitor, said: Said, name: str) -> None:
    """All that is his, whatever he asks, and nothing of the other."""
    (other,) = PEOPLE.keys() - {name}
    seen = ""
    for path in lists():
        text = visitor.want(path)
        assert not [trace for trace in said.traces(other) if trace in text], path
        seen += text
    assert all(f"canary-{name}{number}" in seen for number in (1, 2, 3, 4)), "the titles of all four"
    hits = visitor.json(f"/search?q={WORD}")
    assert {one["id"] for one in hits["sessions"]} == {said.session[id] for id in said.of(name)}
    assert visitor.calls().keys() == set(said.of(name))
    for id in said.of(name):
        assert visitor.ask(f"/calls/{id}").status == 200
        assert f"canary-{name}" in visitor.want(f"/calls/{id}?dl=response")
        assert f"canary-{name}" in visitor.want(f"/sessions/{said.session[id]}/export?fmt=md")
    for id in said.of(other)[:2]:
        for path in about(said, said.session[id], id):
            leads = path.startswith("/session/") or "fmt=md" in path  # as for what never was
            assert visitor.ask(path).status in ((404, 307, 308) if leads else (404,)), path


@pytest.mark.parametrize("name", PEOPLE)
def test_what_i_said_is_mine_by_the_browsers_form(first, name):
    """Streams and whole answers of two APIs: lists, search, figures, live and files have mine and no trace of others'."""
    gateway, said = first
    assert len(said.of(name)) == 4
    _, visitor = by_form(gateway, PEOPLE[name])
    sees_only(visitor, said, name)


@pytest.mark.parametrize("name", PEOPLE)
def test_and_by_my_key(first, name):
    """A key with the scope `conversations` reads what its owner does; one without it nothing."""
    gateway, said = first
    mine = by_bearer(gateway, said.keys[name])
    assert mine.calls().keys() == set(said.of(name))
    assert by_bearer(gateway, gateway.key(getattr(gateway, name), scopes=["models"])).ask("/").status == 401


def test_while_it_is_said_too(first):
    """Two people watch: each sees his own words come, and not that the other says any."""
    gateway, said = first
    viewers = {name: by_form(gateway, email)[1] for name, email in PEOPLE.items()}
    with live(viewers["alice"]) as hers, live(viewers["bob"]) as his:
        streams = {"alice": hers, "bob": his}
        for stream in streams.values():
            stream.until("event: hello")
        for name in ("alice", "bob"):
            text = f"slowly canary-{name}live"
            assert gateway.call("ours", text, said.keys[name], stream=True).status == 200
        for name, stream in streams.items():
            (other,) = PEOPLE.keys() - {name}
            came = stream.until("event: over")
            assert f"canary-{name}live" in came and f"canary-{other}" not in came
            assert came.count("event: opened") == 1
    with live(owner(gateway)) as whole:
        assert f"canary-{'alice'}" not in whole.until("event: hello").partition("event: hello")[0]


# --- administrators, by what operators set


def test_an_administrator_sees_figures_where_nothing_is_set(first):
    """As it comes: that there were calls, whose and how many, and no word of them."""
    gateway, said = first
    _, visitor = by_form(gateway, "admin@example.com")
    seen = "".join(visitor.want(path) for path in lists())
    assert all(session in seen for session in said.session.values())
    assert not re.search(r"canary-", seen)
    assert {visitor.ask(f"/calls/{id}").status for id in said.whose} == {403}
    assert by_bearer(gateway, said.keys["admin"]).json("/sessions")["total"] == 0


@pytest.mark.parametrize(
    ("policy", "status", "secret"), [("none", 404, None), ("redacted", 200, False), ("full", 200, True)]
)
def test_and_as_much_as_the_operator_says(first, echo, policy, status, secret):
    """The same record, the daemon started anew with another policy."""
    gateway, said = first
    gateway.daemon.kill()
    with a_daemon(said.home, echo, policy) as gateway:
        _, visitor = by_form(gateway, "admin@example.com")
        begun(visitor)
        for id in said.whose:
            answer = visitor.ask(f"/calls/{id}?dl=request")
            assert answer.status == status, answer
            assert secret is None or (SECRET.encode() in answer.body) == secret, answer
        assert bool(visitor.json("/sessions")["total"]) == (policy != "none")
        mine = by_form(gateway, PEOPLE["alice"])[1]
        assert set(said.of("alice")) <= mine.calls().keys() and not mine.calls().keys() & set(said.of("bob"))
        assert by_bearer(gateway, said.keys["admin"]).json("/sessions")["total"] == 0
