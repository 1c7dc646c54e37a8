"""The fake Loki is as strict as the real one, and breaks as it is told to."""

import gzip
import http.client
import json
import signal
import ssl
import subprocess
import sys
import time
import zlib

import pytest

from tests.fakeloki import FakeLoki
from tests.fakeprovider.certificate import CERTIFICATE, tls_context

STREAM = {"app": "llm-proxy", "log_type": "request"}
MINUTE = 60 * 10**9


@pytest.fixture
def loki():
    with FakeLoki() as one:
        yield one


def body(*values, **labels):
    return json.dumps({"streams": [{"stream": labels or STREAM, "values": list(values)}]}).encode()


def value(line="a line", ago=0, metadata=None, now=None):
    ts = str((time.time_ns() if now is None else now) - ago)
    return [ts, line] if metadata is None else [ts, line, metadata]


def push(loki, data, path="/loki/api/v1/push", timeout=10, tls=None, **headers):
    """Status, words and headers of the answer."""
    fields = {"Content-Type": "application/json"} | {name.replace("_", "-"): told for name, told in headers.items()}
    link = connected(loki, timeout, tls)
    try:
        link.request("POST", path, data, {name: told for name, told in fields.items() if told})
        answer = link.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        link.close()


def connected(loki, timeout=10, tls=None):
    if tls is not None:
        return http.client.HTTPSConnection("127.0.0.1", loki.port, timeout=timeout, context=tls)
    return http.client.HTTPConnection("127.0.0.1", loki.port, timeout=timeout)


def query(loki, words, **more):
    from urllib.parse import urlencode

    link = connected(loki)
    try:
        link.request("GET", "/loki/api/v1/query_range?" + urlencode({"query": words, **more}))
        answer = link.getresponse()
        return answer.status, json.loads(answer.read()) if answer.status == 200 else answer.read().decode()
    finally:
        link.close()


# --- rules


def test_what_is_good_is_kept_with_its_metadata(loki):
    """204, and a query gives it back."""
    assert push(loki, body(value("one", metadata={"session": "s"})))[:2] == (204, "")
    (entry,) = loki.entries(log_type="request")
    assert (entry.text, entry.metadata, entry.labels) == ("one", (("session", "s"),), tuple(sorted(STREAM.items())))
    assert loki.entries(log_type="response") == []
    assert [(seen.status, seen.entries) for seen in loki.pushes] == [(204, 1)]


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("", lambda data: data),
        ("gzip", gzip.compress),
        ("deflate", lambda data: (c := zlib.compressobj(wbits=-15)).compress(data) + c.flush()),
    ],
)
def test_codings_that_loki_takes(loki, coding, packed):
    """Plain, gzip, bare deflate."""
    assert push(loki, packed(body(value())), Content_Encoding=coding)[0] == 204
    assert loki.accepted == 1


@pytest.mark.parametrize(
    ("data", "headers", "words"),
    [
        (body(value()), {"Content_Encoding": "zstd"}, "not supported"),
        (b"no gzip", {"Content_Encoding": "gzip"}, "gzip"),
        (gzip.compress(body(value()))[:-9], {"Content_Encoding": "gzip"}, "EOF"),
        (zlib.compress(body(value())), {"Content_Encoding": "deflate"}, "deflate"),
        (body(value()), {"Content_Type": "text/plain"}, "corrupt"),
        (b"{", {}, "couldn't parse"),
        (b"[]", {}, "couldn't parse"),
        (b'{"streams":[{"stream":{"a":"b"}}]}', {}, "no values"),
        (body([time.time_ns(), "line"]), {}, "no string of digits"),
        (body([str(time.time_ns()), 1]), {}, "no string"),
        (body(value(metadata={"session": 1})), {}, "no string"),
        (body(value(metadata={"a-b": "c"})), {}, "not valid"),
        (body(value(), **{"log-type": "x"}), {}, "not valid"),
        (body(value(), app=1), {}, "no string"),
        (body(value(), **{f"label_{n}": "x" for n in range(16)}), {}, "16 label names; limit 15"),
        (body(value(), app="x" * 2049), {}, "value too long"),
        (body(value("x" * 262_145)), {}, "Max entry size"),
        (body(value("é" * 131_073)), {}, "Max entry size"),
        (body(value(ago=7 * 24 * 60 * MINUTE + MINUTE)), {}, "too old"),
        (body(value(ago=-60 * MINUTE)), {}, "too new"),
        (body(value(metadata={"a": "x" * 65_536})), {}, "larger than"),
        (body(value(metadata={f"n{n}": "x" for n in range(129)})), {}, "129 names"),
    ],
    ids=lambda value: (
        value if isinstance(value, str) else ""
    ),  # bodies hold the time, and names must be the same each run
)
def test_what_loki_refuses(loki, data, headers, words):
    """400 with the reason, and nothing of it is kept."""
    status, said, _ = push(loki, data, **headers)
    assert status == 400 and words in said
    assert loki.entries() == []


def test_limits_are_where_they_are_said_to_be(loki):
    """The last length, number and age that are good."""
    assert push(loki, body(value("x" * 262_144), **{f"label_{n}": "x" for n in range(15)}))[0] == 204
    assert push(loki, body(value(ago=7 * 24 * 60 * MINUTE - MINUTE), app="old"))[0] == 204
    assert push(loki, body(value("")))[0] == 204


def test_an_empty_label_is_no_label_and_an_empty_set_is_a_stream(loki):
    """As the real one takes them."""
    assert push(loki, b'{"streams":[{"stream":{},"values":[["%d","x"]]}]}' % time.time_ns())[0] == 204
    assert push(loki, body(value("y"), app="a", environment=""))[0] == 204
    assert [entry.labels for entry in loki.entries()] == [(), (("app", "a"),)]
    assert push(loki, b'{"streams":[]}')[0] == 204


def test_good_entries_of_a_refused_push_are_kept(loki):
    """A push is taken in part."""
    good = {"stream": STREAM, "values": [value("good"), value("x" * 300_000), value("good too")]}
    bad = {"stream": {f"label_{n}": "x" for n in range(20)}, "values": [value("a"), value("b")]}
    status, said, _ = push(loki, json.dumps({"streams": [bad, good]}).encode())
    assert status == 400 and "total ignored: 3 out of 5" in said
    assert [entry.text for entry in loki.entries()] == ["good", "good too"]
    assert (loki.accepted, loki.refused) == (2, 3)


def test_a_stream_takes_what_is_up_to_an_hour_behind_its_newest(loki):
    """Out of order within the window; another stream has a window of its own."""
    now = time.time_ns()
    assert push(loki, body(value("new", now=now)))[0] == 204
    assert push(loki, body(value("ten minutes", 10 * MINUTE, now=now)))[0] == 204
    assert push(loki, body(value("an hour", 60 * MINUTE, now=now)))[0] == 204
    status, said, _ = push(loki, body(value("more", 60 * MINUTE + 1, now=now)))
    assert status == 400 and "too far behind" in said
    assert push(loki, body(value("more", 60 * MINUTE + 1, now=now), app="other"))[0] == 204
    assert [entry.text for entry in loki.entries(**STREAM)] == ["an hour", "ten minutes", "new"]


def test_the_same_entry_is_kept_once(loki):
    """Same stream, time and line; each of them makes another."""
    now = time.time_ns()
    for data in (body(value(now=now)), body(value(now=now, metadata={"a": "b"})), body(value(now=now), app="b")):
        assert push(loki, data)[0] == 204
    assert push(loki, body(value(now=now + 1), value("other", now=now)))[0] == 204
    assert (loki.accepted, loki.duplicates, len(loki.entries())) == (4, 1, 4)


def test_who_may_push(loki):
    """Basic, bearer, tenants."""
    data = body(value())
    loki.user, loki.password = "ann", "secret"
    assert push(loki, data)[0] == 401
    assert push(loki, data, Authorization="Basic YW5uOndyb25n")[0] == 401
    assert push(loki, data, Authorization="Basic YW5uOnNlY3JldA==")[0] == 204
    loki.user = loki.password = ""
    loki.bearer = "token"
    assert push(loki, data)[0] == 401
    assert push(loki, data, Authorization="Bearer token")[0] == 204
    loki.bearer, loki.multi_tenant = "", True
    status, said, _ = push(loki, data)
    assert (status, said) == (401, "no org id\n")
    assert push(loki, data, X_Scope_OrgID="team")[0] == 204
    assert len(loki.entries("team")) == 1 and len(loki.entries("fake")) == 1 and loki.entries("other") == []


# --- queries


def test_queries_select_by_labels_and_metadata(loki):
    """What a dashboard asks, in a small form."""
    now = time.time_ns()
    first, second = (
        value("one", now=now, metadata={"session": "s1"}),
        value("two", now=now + 1, metadata={"session": "s2"}),
    )
    push(loki, body(first, second))
    push(loki, body(value("three", now=now + 2), app="llm-proxy", log_type="response"))

    def lines(words, **more):
        status, told = query(loki, words, **more)
        assert status == 200, told
        return [line for stream in told["data"]["result"] for _, line in stream["values"]]

    assert lines('{app="llm-proxy"}') == ["three", "two", "one"]
    assert lines('{app="llm-proxy"}', direction="forward", limit=2) == ["one", "two"]
    assert lines('{app="llm-proxy", log_type="request"} | session="s2"') == ["two"]
    assert lines('{app="llm-proxy"} | session!="s2" | log_type="request"') == ["one"]
    assert lines('{app="llm-proxy"}', start=now + 1, end=now + 2) == ["two"]
    assert query(loki, '{log_type="request"} | session="s1"')[1]["data"]["result"] == [
        {"stream": STREAM | {"session": "s1"}, "values": [[str(now), "one"]]}
    ]
    assert query(loki, "{}")[0] == 400 and query(loki, "rate(x)")[0] == 400


# --- trouble


def test_it_fails_as_often_as_it_is_told_to(loki):
    """429 with Retry-After, then well; nothing of a failed push is kept."""
    loki.fail, loki.fail_next, loki.retry_after = 429, 2, "3"
    for _ in range(2):
        status, said, headers = push(loki, body(value()))
        assert (status, headers["Retry-After"]) == (429, "3") and "rate limit" in said
    assert loki.entries() == []
    assert push(loki, body(value()))[0] == 204
    loki.fail, loki.fail_next = 500, None
    assert [push(loki, body(value()))[0] for _ in range(2)] == [500, 500]
    assert [seen.status for seen in loki.pushes] == [429, 429, 204, 500, 500]


def test_it_hangs_until_it_is_taken_back(loki):
    """No answer; then the connection ends and nothing is kept."""
    loki.hang = True
    with pytest.raises(TimeoutError):
        push(loki, body(value()), timeout=0.2)
    link = connected(loki)
    link.request("POST", "/loki/api/v1/push", body(value()), {"Content-Type": "application/json"})
    loki.wait(pushes=2)
    loki.hang = False
    with pytest.raises(http.client.RemoteDisconnected):
        link.getresponse()
    link.close()
    assert [seen.status for seen in loki.pushes] == [None, None] and loki.entries() == []


def test_it_keeps_what_it_answers_too_late(loki):
    """The client has gone, its entries are there: what it sends again is a duplicate."""
    loki.late = 0.5
    data = body(value())
    with pytest.raises(TimeoutError):
        push(loki, data, timeout=0.1)
    loki.wait(entries=1)
    loki.late = 0
    assert push(loki, data)[0] == 204
    assert (loki.accepted, loki.duplicates) == (1, 1)


def test_it_dies_and_comes_back_on_the_same_port(loki):
    """Connections are refused, open ones end; what was kept stays."""
    assert push(loki, body(value()))[0] == 204
    link = connected(loki)
    link.request("GET", "/ready")
    assert link.getresponse().read() == b"ready\n"
    port = loki.port
    loki.close()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        link.request("GET", "/ready")
        link.getresponse()
    link.close()
    with pytest.raises(ConnectionRefusedError):
        push(loki, body(value()))
    loki.open()
    assert loki.port == port and len(loki.entries()) == 1
    assert push(loki, body(value()))[0] == 204


def test_it_is_slow_and_not_ready(loki):
    """Slow before it takes anything; /ready says 503."""
    loki.slow = 0.2
    began = time.monotonic()
    assert push(loki, body(value()))[0] == 204
    assert time.monotonic() - began >= 0.2
    loki.ready = False
    link = connected(loki)
    link.request("GET", "/ready")
    assert link.getresponse().status == 503
    link.close()
    assert push(loki, b"", "/elsewhere")[0] == 404


def test_waiting_tells_what_was_missing(loki):
    """A test that waits in vain says what had come."""
    push(loki, body(value()))
    with pytest.raises(TimeoutError, match="1 entries of 2"):
        loki.wait(entries=2, timeout=0.05)


def test_it_speaks_tls():
    """With a certificate of its own; who does not trust it sends nothing."""
    with FakeLoki(tls=tls_context()) as loki:
        assert loki.url.startswith("https://")
        assert push(loki, body(value()), tls=ssl.create_default_context(cafile=CERTIFICATE))[0] == 204
        with pytest.raises(ssl.SSLCertVerificationError):
            push(loki, body(value()), tls=ssl.create_default_context())
        assert len(loki.pushes) == 1


def test_it_runs_alone():
    """`python -m tests.fakeloki`."""
    with subprocess.Popen([sys.executable, "-m", "tests.fakeloki"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None

        class Other:
            port = int(process.stdout.readline().split()[1])

        assert push(Other, body(value()))[0] == 204
        link = connected(Other)
        link.request("GET", "/fake/counts")
        assert json.loads(link.getresponse().read()) == {"accepted": 1, "duplicates": 0, "refused": 0, "pushes": 1}
        link.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
