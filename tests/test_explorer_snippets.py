"""Calls to copy: programs that send the very same request, with credentials from the environment and nothing run."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from llm_proxy.explorer import jsontree, snippets
from tests.calls import call
from tests.explored import HOSTILE

BODIES = {
    "json": json.dumps({"model": "m", "text": 'it\'s "quoted" $HOME `id` \\n \n é 中'}, ensure_ascii=False),
    "hostile": json.dumps({"x": [*HOSTILE, "'; touch pwned; '", "$(touch pwned)", "'''", '"""', "\\"]}),
    "plain": "a\nb\r\nc'\n",
    "none": "",
}
HEADERS = {
    "Authorization": ["Bearer [masked sha256:01234567 len:108]"],
    "Content-Type": ["application/json"],
    "X-Api-Key": ["sk-ant-...mnop"],
    "X-Odd": ['it\'s $(touch pwned) `id` "q" \\', "twice"],
    "Content-Length": ["999"],
    "Accept-Encoding": ["gzip"],
    "Connection": ["keep-alive"],
}
SECRETS = {"ANTHROPIC_AUTH_TOKEN": "tok en'\"$x", "ANTHROPIC_API_KEY": "key"}


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        size = int(self.headers.get("Content-Length") or 0)
        self.server.got = (self.path, list(self.headers.items()), self.rfile.read(size))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def echo():
    server = http.server.HTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def made(echo, body, **entry):
    found = call(body, headers=HEADERS, upstream=f"127.0.0.1:{echo.server_port}", path="/v1/messages")
    found.request.update({"query": "beta=true&key=[masked sha256:89abcdef len:39]"} | entry)
    return found


def check(echo, body):
    path, headers, got = echo.got
    assert path == "/v1/messages?beta=true&key=from-env"
    assert got.decode() == body
    given = [(name.lower(), value) for name, value in headers]
    assert ("authorization", f"Bearer {SECRETS['ANTHROPIC_AUTH_TOKEN']}") in given
    assert ("x-api-key", "key") in given
    assert [value for name, value in given if name == "x-odd"] == HEADERS["X-Odd"]
    assert not any(value == "999" for _, value in given)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("name", BODIES)
def test_curl_sends_the_same(echo, tmp_path, name):
    """Run by a shell, the body arrives byte for byte, and nothing that was recorded is run."""
    script = snippets.curl(made(echo, BODIES[name]), "body.json")
    env = os.environ | SECRETS | {"KEY": "from-env"}
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=20)
    check(echo, BODIES[name])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", BODIES)
def test_python_sends_the_same(echo, tmp_path, name):
    """A program for httpx, run with its successor, which the official SDKs bring."""
    program = snippets.python(made(echo, BODIES[name]), "body.json")
    assert "import httpx\n" in program
    program = program.replace("import httpx\n", "import httpx2 as httpx\n")
    env = os.environ | SECRETS | {"KEY": "from-env"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=20
    )
    assert b"200" in done.stdout
    check(echo, BODIES[name])
    assert not list(tmp_path.iterdir())


def test_no_credential_is_written():
    """Not the mask, and not what a log of another program holds in the clear."""
    clear = {"Authorization": ["Bearer sk-ant-oat01-secret"], "Cookie": ["a=secret"], "Api-Key": ["secret"]}
    for text in (snippets.curl, snippets.python):
        said = text(call({}, headers=clear), "x")
        assert "secret" not in said
        assert "masked" not in said
    assert '"$OPENAI_API_KEY"' in snippets.curl(
        call({}, headers={"Authorization": ["Bearer sk-...wxyz"]}, provider="openai"), "x"
    )


def test_long_bodies_are_read_from_the_file_that_is_downloaded(echo, tmp_path):
    """Linux takes no longer argument."""
    body = json.dumps({"text": "x" * 200_000})
    script = snippets.curl(made(echo, body), "call-1-request.json")
    assert "--data-binary @call-1-request.json" in script
    assert "open('call-1-request.json', \"rb\").read()" in snippets.python(made(echo, body), "call-1-request.json")


def test_what_is_not_as_it_was_sent_is_said(echo):
    """Cut bodies, redacted secrets, other codings."""
    found = made(echo, "{}", truncated="limit", redacted={"AWS_KEY": 1}, content_encoding="gzip", transport="bedrock")
    said = snippets.curl(found, "x")
    assert said.count("# ") == 4
    assert all(line.startswith("#") for line in said.splitlines()[:4])


# --- JSON trees


def test_numbers_and_names_stand_as_in_the_bytes():
    """Large numbers, exponents, and names that come twice."""
    data = b'{"a":12345678901234567890123,"b":1e5,"c":1.10,"a":-0,"n":NaN,"t":"\\u00e9"}'
    root = jsontree.tree(jsontree.parse(data))
    assert [node.text for node in root.items] == ["12345678901234567890123", "1e5", "1.10", "-0", "NaN", '"é"']
    assert [node.twice for node in root.items] == [True, False, False, True, False, False]
    assert root.count == 6


def test_deeper_parts_are_given_when_asked_for():
    """Small ones at once; a part is named by its places, so that names may come twice."""
    value = jsontree.parse(json.dumps({"m": [{"c": list(range(200))}, "x" * 5000], "s": {"a": 1}}).encode())
    root = jsontree.tree(value)
    assert root.items[0].items is None
    assert root.items[1].items[0].text == "1"
    part = jsontree.tree(value, "0")
    assert part.items[0].items is None
    assert part.items[1].more == 3000
    assert len(jsontree.tree(value, "0.0.0").items) == 200
    assert jsontree.tree(value, "0.1", whole=True).more == 0
    for wrong in ("5", "0.9", "a", "0.1.1", "-1", "²"):
        with pytest.raises(KeyError):
            jsontree.tree(value, wrong)


def test_long_arrays_are_cut_and_say_so():
    """A tree of 100,000 items is not sent."""
    root = jsontree.tree(jsontree.parse(json.dumps(list(range(1000))).encode()))
    assert (len(root.items), root.left_out, root.count) == (400, 600, 1000)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 200_000, b"plain"])
def test_what_is_no_json_is_a_value_error(data):
    """Also what is nested too deeply."""
    with pytest.raises(ValueError):
        jsontree.parse(data)
