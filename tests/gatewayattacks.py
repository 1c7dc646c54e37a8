"""A team's gateway to be attacked: accounts, keys and aliases of two tenants, a provider that repeats what it is told,
and requests written byte by byte, as no well-behaved client would.
"""

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.gatewaybed import PASSWORD, SECRETS, Gateway, a_gateway

CANARY = re.compile(r"canary-[0-9a-z]+")
SCOPES = ("models", "usage", "manage")
# Whose requests come without a key of ours is carried to a provider; where that would be, nobody listens.
NOWHERE = "http://127.0.0.1:9"
DEAD = dict.fromkeys(("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GEMINI_BASE_URL"), NOWHERE)


class Raw(NamedTuple):
    status: int
    headers: Any
    body: bytes


def raw(port, method, target, *lines, body=b"", timeout=30):
    """One request whose line and fields are sent as they are written, and its answer; status 0 for none."""
    told = [f"{method} {target} HTTP/1.1", *lines, "Connection: close"]
    if not any(line.startswith("Host:") for line in lines):
        told.insert(1, "Host: 127.0.0.1")
    if body:
        told.append(f"Content-Length: {len(body)}")
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as link:
        link.sendall("\r\n".join((*told, "", "")).encode("latin-1") + body)
        answer = http.client.HTTPResponse(link, method=method)
        try:
            answer.begin()
            return Raw(answer.status, answer.headers, answer.read())
        except (http.client.HTTPException, ConnectionError):
            return Raw(0, {}, b"")


class Echo(BaseHTTPRequestHandler):
    """OpenAI's and Anthropic's answers, whose text is the canary of the request; `server.seen` are targets and fields."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        if self._misbehaves():
            return
        self._answer({"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]})

    def do_POST(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.path, dict(self.headers)))
        if self._misbehaves():
            return
        said = " ".join(CANARY.findall(data.decode("utf-8", "replace")))
        self.pause = 0.05 if b"slowly" in data else 0
        streams = re.search(rb'"stream": ?true', data) is not None  # a provider may read more than JSON
        said = {"anthropic": _message, "openai": _completion}[self._kind()](said, streams)
        self._answer(said) if isinstance(said, dict) else self._events(said)

    def _misbehaves(self):
        """Whether it did, as the path has it."""
        key = self.headers.get("Authorization") or self.headers.get("x-api-key")
        said = {"error": {"message": f"Incorrect API key provided: {key}", "type": "auth", "code": "x"}}
        if "/redirect" in self.path:
            self._answer({}, 307, Location=self.server.elsewhere)
        elif "/refuse" in self.path:  # some tell the key
            self._answer(said, 401)
        elif "/fail" in self.path:
            self._answer(said, 400)
        else:
            return False
        return True

    def _kind(self):
        return "anthropic" if self.path.endswith("/messages") else "openai"

    def _answer(self, value, status=200, **fields):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, field in fields.items():
            self.send_header(name, field)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _events(self, events):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for name, event in events:
                told = event if isinstance(event, str) else json.dumps(event)
                data = (f"event: {name}\n" if name else "").encode() + f"data: {told}\n\n".encode()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                self.wfile.flush()
                time.sleep(self.pause)
            self.wfile.write(b"0\r\n\r\n")


def _completion(said, streams):
    head = {"id": "chatcmpl-1", "created": 1, "model": "gpt-4o"}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    if not streams:
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return {**head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(delta, reason=None, **more):
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return "", {**head, "object": "chat.completion.chunk", "choices": choices, **more}

    words = [chunk({"content": part}) for part in ("the ", "word ", "is ", said)]
    last = ("", {**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
    return [chunk({"role": "assistant", "content": ""}), *words, chunk({}, "stop"), last, ("", "[DONE]")]


def _message(said, streams):
    usage = {"input_tokens": 7, "output_tokens": 3}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "usage": usage}
    if not streams:
        content = [{"type": "text", "text": said}]
        return {**message, "content": content, "stop_reason": "end_turn", "stop_sequence": None}

    def event(kind, **more):
        return kind, {"type": kind, **more}

    return [
        event("message_start", message={**message, "content": [], "stop_reason": None, "stop_sequence": None}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": part})
            for part in ("the ", "word ", "is ", said)
        ),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 3}),
        event("message_stop"),
    ]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request, client_address):
        """A caller who has left."""


@contextlib.contextmanager
def echoing():
    """A provider; `seen` is what came, `url` where."""
    server = _Server(("127.0.0.1", 0), Echo)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}"
    server.elsewhere = f"{server.url}/stolen/v1/chat/completions"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# What shows a secret, once, to whom it is for.
SHOWS = {"/auth/login": ("token", "refresh_token"), "/auth/refresh": ("token", "refresh_token")}
SHOWS |= {"/auth/key": ("token",), "/manage/invitations": ("token",)}


class Team(Gateway):
    """A gateway with two tenants, `alice` and `bob`; what alice has are `hers`, `claude` and the aliases of these names.

    `tokens` are everybody's who may come: sessions, alice's keys by scope, an administrator's key of all scopes. All
    that must never come out is in `secrets`, all that came out in `answers`.
    """

    def __init__(self, daemon, echo):
        super().__init__(daemon)
        self.echo = echo
        self.secrets = {PASSWORD, *SECRETS.values()}
        self.answers = []
        self.count = 0

    def ask(self, method, path, *arguments, **more):
        answer = super().ask(method, path, *arguments, **more)
        told = answer.body
        if method == "POST" and answer.status < 300:
            for name in SHOWS.get(path, ()):
                secret = answer.json[name]
                self.secrets.add(secret)
                told = told.replace(secret.encode(), b"")
        self.answers.append((method, path, str(answer.headers).encode() + told))
        return answer

    def fresh(self, prefix="thing"):
        """A name nobody has yet."""
        self.count += 1
        return f"{prefix}{self.count}"

    def provider_key(self, owner, kind="openai", path="", **more):
        secret = f"sk-canary-{self.fresh('provider')}-{os.urandom(12).hex()}"
        self.secrets.add(secret)
        return self.provider(kind, self.echo.url + path, owner, secret, **more)

    def new_key(self, owner, **more):
        """An API key: its id and itself."""
        made = self.want(200, "POST", "/auth/key", more, owner)
        return made["id"], made["token"]

    def found(self):
        """Signs everybody up, and gives them what they have."""
        self.alice, self.bob = self.member("alice@one.example"), self.member("bob@two.example")
        self.tokens = {"nobody": "", **{scope: self.new_key(self.alice, scopes=[scope])[1] for scope in SCOPES}}
        self.tokens |= {"admin's key": self.new_key(self.admin, scopes=list(SCOPES))[1]}
        self.tokens |= {"alice": self.alice, "bob": self.bob, "admin": self.admin}
        users = {one["email"]: one["id"] for one in self.want(200, "GET", "/manage/users", token=self.admin)}
        self.ids = SimpleNamespace(
            alice=users["alice@one.example"], bob=users["bob@two.example"], admin=users["admin@example.com"]
        )
        self.teams = {}
        for name, user in (("one", self.ids.alice), ("two", self.ids.bob)):
            team = self.want(201, "POST", "/manage/teams", {"name": name, "monthly_budget": 100}, self.admin)["id"]
            self.want(204, "PUT", f"/manage/teams/{team}/members/{user}", token=self.admin)
            self.teams[name] = team
        self.hers = self.provider_key(self.alice)
        self.claude = self.provider_key(self.alice, "anthropic")
        self.bobs = self.provider_key(self.bob)
        self.shared = self.provider_key(self.admin, shared=True)
        self.alias("hers", "gpt-4o", self.hers, self.alice)
        self.alias("hers-claude", "claude-sonnet-4-5", self.claude, self.alice)
        self.alias("his", "gpt-4o", self.bobs, self.bob)
        self.shared_claude = self.provider_key(self.admin, "anthropic", shared=True)
        self.alias("ours", "gpt-4o", self.shared, shared=True)
        self.alias("ours-claude", "claude-sonnet-4-5", self.shared_claude, shared=True)
        return self

    def call(self, model, text, token, path="/v1/chat/completions", **more):
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}
        return self.ask("POST", path, body, token)


@contextlib.contextmanager
def team(home, **env):
    """A Team in this folder, until the end of the block."""
    with echoing() as echo, a_gateway(home, (echo.url, NOWHERE), DEAD | env) as gateway:
        yield Team(gateway.daemon, echo).wait().found()


def until(found, timeout=30):
    """What `found` returns once that is something."""
    deadline = time.monotonic() + timeout
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return value
