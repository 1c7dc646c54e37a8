"""What is set of Loki reaches the lane, from every source; credentials are taken apart and never shown."""

import pytest

from llm_proxy import settings
from llm_proxy.errors import ConfigError
from llm_proxy.lanes.loki import plan
from llm_proxy.lanes.options import TABLES, options
from llm_proxy.lanes.posting import Poster
from llm_proxy.lanes.sink import Unusable
from llm_proxy.service import passing

TOKEN = "glc_eyJvIjoiMTIzNDU2Nzg5MCJ9"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def loaded(**environ):
    """Settings by the variables `LLM_PROXY_LOKI_…`."""
    return settings.load({}, {f"LLM_PROXY_LOKI_{name.upper()}": text for name, text in environ.items()}, None).settings


def test_defaults_are_the_reference_programs():
    """And off: nothing is sent anywhere unless somebody says so."""
    told = loaded()
    assert passing.sinks(told) == () and not told.loki_enabled
    assert (told.loki_batch_size, told.loki_batch_wait, told.loki_retry_max) == (1000, 5.0, 5)
    assert (told.loki_use_gzip, told.loki_environment) == (True, "development")
    assert passing.loki(told)["machine"] == ""  # as recorded: user@host


@pytest.mark.parametrize("listed", [(), ("sessions", "loki")])
def test_it_is_one_sink_whichever_way_it_is_switched_on(home, listed):
    """By its own switch, by the list, or both."""
    path = home / "c.toml"
    path.write_text(f"sinks = {list(listed or ('sessions',))}\n[loki]\nenabled = {'false' if listed else 'true'}\n")
    assert passing.sinks(settings.load({}, {}, str(path)).settings) == ("loki",)
    assert passing.sinks(settings.load({}, {"LLM_PROXY_LOKI_ENABLED": "1"}, str(path)).settings) == ("loki",)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:3100", "http://127.0.0.1:3100/loki/api/v1/push"),
        ("http://127.0.0.1:3100/", "http://127.0.0.1:3100/loki/api/v1/push"),
        ("https://loki.example/insert/loki/api/v1/push?a=b", "https://loki.example/insert/loki/api/v1/push?a=b"),
        ("https://me:p%40ss@loki.example:8443", "https://loki.example:8443/loki/api/v1/push"),
        ("http://[::1]:3100/x", "http://[::1]:3100/x"),
        ("", ""),
    ],
)
def test_a_url_is_used_as_it_is_without_what_is_secret_in_it(given, used):
    """A path of one's own stays; user and password become basic auth, decoded."""
    told = passing.loki(loaded(url=given))
    assert told["url"] == used
    assert (told["username"], told["password"]) == (("me", "p@ss") if "@" in given else ("", ""))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("url", "loki.example:3100", "loki.url must be a URL such as"),
        ("url", "ftp://loki.example", "loki.url must be a URL such as"),
        ("url", f"http://u:{TOKEN}@loki.example:99999", "loki.url must be a URL such as"),
        ("url", "http://a b/", "loki.url must be a URL such as"),
        ("batch_wait", "soon", "loki.batch_wait must be a time such as"),
        ("batch_size", "0", "loki.batch_size must be a whole number from 1"),
        ("max_batch_bytes", "1 kB", "loki.max_batch_bytes must be a size"),
        ("auth_token", f"{TOKEN} {TOKEN}", "loki.auth_token must be a token without spaces"),
        ("tenant", "a/b", "loki.tenant must be a tenant's id"),
        ("username", "a:b", "loki.username must be a name without a colon"),
    ],
)
def test_a_wrong_value_is_named_and_no_secret_is(name, value, words):
    """The setting and its rule; the value only where it cannot be a credential."""
    with pytest.raises(ConfigError) as caught:
        loaded(**{name: value})
    assert words in str(caught.value) and f"LLM_PROXY_LOKI_{name.upper()}" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_credentials_stand_neither_in_a_repr_nor_on_a_command_line():
    """They go to the process of the lanes by its environment, which other users cannot read."""
    told = loaded(enabled="true", url=f"http://u:{TOKEN}@127.0.0.1", password=TOKEN)
    given = passing.options(told)
    read = plan(dict(given.sinks)["loki"])
    assert TOKEN not in repr(told) + repr(given) + given.to_json() + repr(read.poster) + str(passing.lines(told))
    assert passing.lines(told) == ("Loki: http://127.0.0.1",)
    assert TOKEN in given.variables()[TABLES]
    assert options(given.to_json(), given.variables()[TABLES]) == given
    assert "dTp" in read.poster.headers["Authorization"]  # base64 of "u:"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "loki.url is empty, and must be a URL such as"),
        ({"url": "http://127.0.0.1", "auth_token": "a", "username": "b"}, "both are given"),
    ],
)
def test_what_cannot_work_is_said_when_the_sink_is_made(given, words):
    """The daemon runs without it; `--status` has the words."""
    with pytest.raises(Unusable, match=words):
        plan(passing.loki(loaded(**given)))


def test_what_keeps_everything_from_loki_is_warned_of_only_where_loki_is_wanted():
    """Loudly, at the start."""
    assert passing.warnings(loaded()) == ()
    assert "NOTHING IS SENT" in passing.warnings(loaded(enabled="true"))[0]
    assert "NOWHERE" in passing.lines(loaded(enabled="true"))[0]
    assert passing.warnings(loaded(enabled="true", url="http://127.0.0.1")) == ()
    twice = {"url": f"http://me:{TOKEN}@127.0.0.1", "auth_token": TOKEN}
    (said,) = passing.warnings(loaded(enabled="true", **twice))
    assert "NOTHING IS SENT" in said and TOKEN not in said
    assert passing.warnings(loaded(**twice)) == ()


class _Proxy:
    """A proxy that notes what it is asked for, and answers itself."""

    def __init__(self):
        import threading
        from http.server import BaseHTTPRequestHandler, HTTPServer

        seen = self.seen = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                seen.append((self.path, self.headers.get("Proxy-Authorization")))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_a_proxy_of_the_environment_is_used_for_others_than_this_machine(monkeypatch):
    """`HTTP_PROXY` with its credentials; never for loopback, nor for what NO_PROXY names."""
    proxy = _Proxy()
    try:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{proxy.server.server_port}")
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.server.server_port}")
        poster = Poster("http://loki.invalid:3100/push?a=b", {})
        assert poster.post(b"{}", {}).status == 204
        poster.close()
        assert proxy.seen == [("http://loki.invalid:3100/push?a=b", "Basic bWU6c2VjcmV0")]
        monkeypatch.setenv("NO_PROXY", "loki.invalid")
        monkeypatch.setenv("no_proxy", "loki.invalid")
        with pytest.raises(OSError):
            Poster("http://loki.invalid:3100/push", {}).post(b"{}", {})
        with pytest.raises(OSError):
            Poster("http://127.0.0.1:9/push", {}).post(b"{}", {})
        assert len(proxy.seen) == 1
    finally:
        proxy.close()
