"""The explorer of a team's gateway as its visitors see it: through the daemon's port, by cookie, key or the owner's secret.

`gave` makes people's calls through the gateway and waits until the explorer tells whoever runs the machine of all.
"""

import http.client
import json
from contextlib import closing, contextmanager
from typing import NamedTuple

from llm_proxy.explorer import guard
from tests.gatewayattacks import until
from tests.gatewayscreens import Person

ROOT = "/llm-proxy"
COOKIE = "llm_proxy_team"


class Visitor(NamedTuple):
    """Whoever comes with these header fields."""

    gateway: object
    headers: dict

    def ask(self, path, method="GET", **headers):
        told = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.gateway.ask(method, ROOT + path, headers=told)

    def want(self, path, status=200):
        answer = self.ask(path)
        assert answer.status == status, (path, answer)
        return answer.body.decode("utf-8", "replace")

    def json(self, path):
        return json.loads(self.want(f"/api{path}"))

    def sessions(self):
        return [one for group in self.json("/sessions?n=200")["groups"] for one in group["sessions"]]

    def calls(self):
        """Ids of all calls, and the session of each."""
        return {
            call["id"]: one["id"]
            for one in self.sessions()
            for call in self.json(f"/sessions/{one['id']}?view=calls")["calls"]
        }


def owner(gateway):
    """Whoever runs the machine."""
    state = gateway.daemon.state
    secret = (state / guard.SECRET).read_text() if (state / guard.SECRET).exists() else guard.new_secret(state)
    return Visitor(gateway, guard.bearer(secret))


def by_form(gateway, email):
    """Somebody who has signed in on the pages; `Person` can do more there."""
    person = Person(gateway).sign_in(email)
    return person, by_cookie(gateway, person.cookie)


def by_cookie(gateway, cookie):
    return Visitor(gateway, {"Cookie": f"{COOKIE}={cookie}"})


def by_bearer(gateway, token):
    return Visitor(gateway, {"Authorization": f"Bearer {token}"})


def begun(visitor):
    """The explorer's process is there: the first visits may find it starting."""
    until(lambda: visitor.ask("/api/sessions").status != 503)
    return visitor


def recorded(gateway, number):
    """All calls that the gateway has made for somebody, by id with their sessions, once there are so many."""
    whole = begun(owner(gateway))

    def found():
        calls = [
            call
            for one in whole.sessions()
            for call in whole.json(f"/sessions/{one['id']}?view=calls")["calls"]
            if call["account"] and call["response"]
        ]
        return {call["id"]: call["session"] for call in calls} if len(calls) >= number else None

    return until(found, 60)


@contextmanager
def live(visitor, query="", **headers):
    """What comes of an event stream, line by line."""
    with closing(http.client.HTTPConnection("127.0.0.1", visitor.gateway.port, timeout=30)) as link:
        told = visitor.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        link.request("GET", f"{ROOT}/live/events{query}", headers=told)
        yield Stream(link.getresponse())


class Stream:
    def __init__(self, answer):
        self.answer = answer
        self.status = answer.status
        self.came = ""

    def until(self, mark):
        """All that came so far, once this has come; or the stream is over."""
        while mark not in self.came:
            line = self.answer.readline()
            if not line:
                break
            self.came += line.decode()
        return self.came
