"""A single target, driven as the users of HTTP LLM Proxy Stream drive theirs; each weakness of that program is a test."""

import contextlib
import csv
import fcntl
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_proxy.service import passing
from llm_proxy.settings import Settings

KEY = "sk-proj-0123456789abcdefghij"
TOKEN = "a-token-of-24-characters"


@pytest.fixture
def work(environ):
    """The folder in which the command is given."""
    folder = Path(environ["HOME"], "work")
    folder.mkdir()
    return folder


@pytest.fixture
def target(start, work, provider):
    """Start `llm-proxy --target-url` towards the fake provider, in that folder."""

    def begin(*arguments, path="", **options):
        url = f"http://127.0.0.1:{provider.port}{path}"
        return start("--target-url", url, "-p", "0", *arguments, cwd=options.pop("cwd", work), **options)

    return begin


def ask(daemon, method="POST", path="/v1/chat/completions", body=None, host="127.0.0.1", **fields):
    """(status, headers, body) of one call; field names with _ for -."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    with contextlib.closing(http.client.HTTPConnection(host, daemon.port, timeout=20)) as link:
        link.request(method, path, data, headers)
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


def chat(text="hello"):
    return {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": text}]}


def rows(path, count):
    """The rows of a CSV file, once there are so many; then no more come for a moment."""
    deadline = time.monotonic() + 60
    while True:
        text = path.read_text() if path.exists() else ""
        found = list(csv.reader(io.StringIO(text, newline="")))
        if len(found) >= count and text.endswith("\n"):  # a long one is not written at once
            assert len(found) == count, found
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def everything_on_disk(home):
    return b"".join(path.read_bytes() for path in Path(home).rglob("*") if path.is_file())


# --- as its README says


def test_a_path_in_the_target_is_kept(target, work, provider):
    """`--target-url https://api.openai.com/v1` leads `/chat/completions` to `/v1/chat/completions`; queries stay."""
    daemon = target(path="/v1")
    status, _, body = ask(daemon, path="/chat/completions?n=1&q=a,b", body=chat())
    assert status == 200 and json.loads(body)["object"] == "chat.completion"
    (row,) = rows(work / "log.csv", 1)
    assert row[:2] == ["POST", f"http://127.0.0.1:{provider.port}/v1/chat/completions?n=1&q=a,b"]
    assert json.loads(row[2]) == chat()
    assert row[3].encode() == body


def test_start_up_says_where_calls_and_rows_go(target, work, provider):
    """Target, session logs and CSV file; of a header that is added only the name."""
    daemon = target("-a", f"Authorization: Bearer {KEY}", "-l", "mine.csv")
    daemon.wait_for_line(rf"every path goes to http://127.0.0.1:{provider.port}, with Authorization$")
    daemon.wait_for_line(rf"session logs: {daemon.logs}")
    daemon.wait_for_line(rf"CSV: {work}/mine.csv")
    assert KEY not in "".join(daemon.lines)


def test_the_short_options_are_the_references(command):
    """-h and -V answer; -p -t -a -l -T are in the help of --target-url, which is on the page."""
    assert command("-V").stdout.startswith("llm-proxy ")
    assert "--target-url URL" in command("-h").stdout
    page = command("-t", "-h").stdout
    for option in ("-p, --port", "-t, --target-url", "-a, --add-header", "-l, --log-file", "-T, --timeout"):
        assert option in page


def test_every_path_but_ours_is_the_targets(target):
    """`/health`, `/model/…`, provider paths and `/` go there too; what is below /llm-proxy/ is ours."""
    daemon = target()
    for path in (
        "/health",
        "/metrics",
        "/",
        "/model/x/converse",
        "/anthropic/api.anthropic.com/v1/messages",
        "/any?a=b",
    ):
        _, _, body = ask(daemon, "GET", path, X_Fake="echo", Accept="text/html")
        assert body.startswith(f"GET {path} HTTP/1.1\r\n".encode()), body
    status, _, body = ask(daemon, "GET", "/llm-proxy/health")
    assert status == 200 and json.loads(body)["app"] == "llm-proxy"


def test_the_explorer_opens_beside_it(target, command):
    """Found by its port, though `/health` is the target's."""
    daemon = target()
    daemon.port  # noqa: B018  # it listens
    done = command("--explore", "--port", str(daemon.port))
    assert f"http://127.0.0.1:{daemon.port}/llm-proxy/" in done.stdout, done.stderr


def test_a_configuration_file_and_the_environment_do_the_same(start, environ, work, provider):
    """`[target]` in the file, its headers from the environment: no secret in any process' arguments."""
    config = Path(environ["HOME"], "config.toml")
    config.write_text(f'sinks = ["sessions"]\n[target]\nurl = "http://127.0.0.1:{provider.port}/v1/"\n')
    env = {"LLM_PROXY_TARGET_HEADERS": f"Authorization: Bearer {KEY}\nX-Team: blue"}
    daemon = start("--port", "0", "--config", str(config), env=env, cwd=work)
    _, _, body = ask(daemon, "GET", "/models", X_Fake="echo")
    assert body.startswith(b"GET /v1/models HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}\r\n".encode() in body and b"X-Team: blue\r\n" in body
    seen = subprocess.run(["ps", "-ww", "axo", "args"], capture_output=True, text=True, check=True).stdout
    assert KEY not in seen
    assert daemon.stop() == 0
    assert not (work / "log.csv").exists()  # `sinks` says so


def test_the_headers_reach_no_other_process_arguments(target):
    """Whoever writes them on the command line shows them there, and nowhere else."""
    daemon = target("-a", f"Authorization: Bearer {KEY}")
    daemon.port  # noqa: B018  # it listens

    def holders():
        listed = subprocess.run(["ps", "-ww", "axo", "pid,args"], capture_output=True, text=True, check=True).stdout
        return [int(line.split()[0]) for line in listed.splitlines() if KEY in line]

    deadline = time.monotonic() + 10  # a child that is just being made has our arguments until it has its own
    while (found := holders()) != [daemon.pid]:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_a_service_serves_every_provider_all_the_same(start, provider):
    """Shells and clients lead to provider paths of it: a single target would break them. It says so."""
    daemon = start("--service", env={"LLM_PROXY_TARGET_URL": "http://127.0.0.1:1"})
    daemon.wait_for_line("target.url is for runs in a terminal")
    assert ask(daemon, "GET", f"/openai/127.0.0.1:{provider.port}/v1/models")[0] == 200
    assert daemon.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--target-url", "ftp://x"), 78, "--target-url: target.url must be a URL such as"),
        (("-t", "https://user:pw@host"), 78, "--target-url: target.url must be a URL such as"),
        (("-t", "https://host/v1?a=b"), 78, "--target-url: target.url must be a URL such as"),
        (("-t", "http://1.2.3"), 78, "target.url is 'http://1.2.3': not a canonical IPv4 address"),
        (("-t", "http://127.0.0.1:1", "-a", f"Bearer {KEY}"), 78, "--add-header: target.headers must be fields such as"),
        (("-t", "http://127.0.0.1:1", "-a", "Content-Length: 5"), 78, "--add-header: target.headers must be"),
        (("-t", "http://127.0.0.1:1", "-a", "X: a\r\nY: b"), 78, "--add-header: target.headers must be"),
        (("-t", "http://127.0.0.1:1", "-T", "soon"), 2, "--timeout must be minutes from 0, for none, to 1440, got 'soon'"),
        (("-t", "http://127.0.0.1:1", "--csv-columns", "url,nope"), 78, "--csv-columns: csv.columns must be"),
        (("-a", "X-Team: blue"), 2, "--add-header goes with --target-url"),
        (("-l", "log.csv"), 2, "--log-file goes with --target-url"),
        (("--service", "-t", "http://127.0.0.1:1"), 2, "--target-url goes with a run in this terminal, not with --service"),
        (("-t", "http://localhost:{port}", "-p", "{port}"), 78, "which is llm-proxy itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(command, free_port, arguments, status, said):
    """The option, its rule and the value; never a header's value. Nothing is started."""
    done = command(*(word.format(port=free_port) for word in arguments))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr and KEY not in done.stderr


# --- the weaknesses of the original


def test_a_request_of_a_megabyte_is_carried_and_logged_whole(target, work):
    """It answered 413 beyond 256 KiB."""
    text = "long prompt " * 100_000
    status, _, body = ask(target(), body=chat(text), X_Fake="upload-sink")
    assert status == 200 and json.loads(body)["size"] == len(json.dumps(chat(text)))
    (row,) = _unlimited(lambda: rows(work / "log.csv", 1))
    assert json.loads(row[2]) == chat(text)


def _unlimited(read):
    before = csv.field_size_limit(1 << 24)
    try:
        return read()
    finally:
        csv.field_size_limit(before)


def test_added_headers_are_several_and_may_hold_colons(target):
    """It took one, and none with a second `:`. Each takes the place of the client's field of its name, in any case."""
    daemon = target(
        "-a", f"Authorization:  Bearer {KEY}", "-a", "X-Where: http://a:1/b", "-a", "X-Two: a", "-a", "X-Two: b"
    )
    _, _, body = ask(daemon, X_Fake="echo", AUTHORIZATION="Bearer mine", X_Two="c", X_Kept="d", body=chat())
    lines = body.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert [line for line in lines if line.lower().startswith("authorization")] == [f"Authorization: Bearer {KEY}"]
    assert [line for line in lines if line.startswith("X-Two")] == ["X-Two: a", "X-Two: b"]
    assert {"X-Where: http://a:1/b", "X-Kept: d"} <= set(lines)


def test_added_credentials_are_nowhere_on_disk(target, work, environ):
    """Neither the key nor a value whose name says nothing; the record has the fields, masked."""
    daemon = target("-a", f"Authorization: Bearer {KEY}", "-a", "X-Corp: hush-hush-4711")
    assert ask(daemon, body=chat())[0] == 200
    rows(work / "log.csv", 1)
    request = next(one for one in daemon.entries(until=lambda all: len(all) >= 3) if one["type"] == "request")
    assert request["headers"]["Authorization"] == ["Bearer sk-proj-...ghij"]
    assert request["headers"]["X-Corp"][0].startswith("[masked sha256:")
    assert daemon.stop() == 0
    found = everything_on_disk(environ["HOME"])
    assert b"X-Corp" in found
    assert KEY.encode() not in found and b"hush-hush-4711" not in found


def test_a_stream_lives_longer_than_the_timeout(target, work):
    """It was cut at the age of `--timeout`; here only silence counts (1.2 s)."""
    daemon = target("-T", "0.02", "--csv-columns", "status,ending,response")
    begun = time.monotonic()
    status, _, body = ask(daemon, body=chat() | {"stream": True}, X_Fake="slow=400")
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    assert time.monotonic() - begun > 2.4
    (row,) = rows(work / "log.csv", 1)
    assert row[:2] == ["200", "complete"] and row[2].encode() == body


def test_a_silent_target_is_given_up_after_the_timeout(target, work):
    """With an answer that names it; and the call is a row."""
    daemon = target("-T", "0.02", "--csv-columns", "status,ending,error")
    status, headers, _ = ask(daemon, body=chat(), X_Fake="hang=now")
    assert status == 504 and headers["X-LLM-Proxy-Error"]
    (row,) = rows(work / "log.csv", 1)
    assert row[:2] == ["", "timed_out"] and "1.2 s" in row[2]


def test_a_timeout_of_zero_is_none(target):
    """There it failed every call at once."""
    assert ask(target("-T", "0"), body=chat(), X_Fake="delay=1500")[0] == 200


def test_empty_failed_and_cut_calls_are_rows_too(target, start, work, provider):
    """It logged only calls that came to a good end with a body."""
    daemon = target("--csv-header", "--csv-columns", "method,status,ending,model,tokens,duration_ms,url")
    ask(daemon, body=chat())
    ask(daemon, "DELETE", "/v1/files/file-1", X_Fake="no-body=204")
    ask(daemon, "HEAD", "/v1/models")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        ask(daemon, body=chat() | {"stream": True}, X_Fake="reset=300")
    with socket.create_connection(("127.0.0.1", daemon.port)) as link:  # a client that leaves
        data = json.dumps(chat() | {"stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Fake: endless; slow=20\r\n"
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert link.recv(100)
    header, *found = rows(work / "log.csv", 6)
    assert header == ["method", "status", "ending", "model", "tokens", "duration_ms", "url"]
    assert [row[:3] for row in found] == [
        ["POST", "200", "complete"],
        ["DELETE", "204", "complete"],
        ["HEAD", "200", "complete"],
        ["POST", "200", "upstream_failed"],
        ["POST", "200", "client_gone"],
    ]
    assert found[0][3] == "gpt-4.1-mini" and int(found[0][4]) > 0 and all(row[5].isdigit() for row in found)
    elsewhere = work / "dead"
    elsewhere.mkdir()
    dead = start("-t", "http://127.0.0.1:1", "-p0", "--csv-columns", "status,ending,error", cwd=elsewhere)
    assert ask(dead, body=chat())[0] == 502
    ((status, ending, error),) = rows(elsewhere / "log.csv", 1)
    assert (status, ending) == ("", "upstream_failed") and "127.0.0.1:1" in error


def test_a_comma_in_the_url_stays_in_its_column(target, work):
    """Method and URL were never quoted; formulas and secrets stood there as they came."""
    daemon = target("--csv-defuse")
    ask(
        daemon,
        "PUT",
        "/any,thing?q=1",
        body=b'=HYPERLINK("http://evil")\nAKIAIOSFODNN7EXAMPLE and AKIAIOSFODNN7QWERTYZ',
        X_Fake="echo",
    )
    (row,) = rows(work / "log.csv", 1)
    assert len(row) == 4
    assert row[1].endswith("/any,thing?q=1") and row[2].startswith("'=HYPERLINK")
    assert "AKIAIOSFODNN7QWERTYZ" not in row[2] + row[3]


def test_the_file_may_be_moved_while_it_is_written(target, work):
    """Rotation: the rows go on in a new file, none is lost; both are the user's alone."""
    daemon = target()
    for number in range(3):
        ask(daemon, body=chat(f"call {number}"))
        rows(work / "log.csv", 1)
        (work / "log.csv").rename(work / f"log.{number}.csv")
    assert [json.loads(rows(work / f"log.{number}.csv", 1)[0][2]) for number in range(3)] == [
        chat(f"call {number}") for number in range(3)
    ]
    assert (work / "log.0.csv").stat().st_mode & 0o777 == 0o600


def test_every_method_passes(target, work):
    """HEAD and OPTIONS were refused, and so browsers."""
    daemon = target("--csv-columns", "method,status", env={"LLM_PROXY_LISTEN_ORIGINS": "https://tool.example"})
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
        _, _, body = ask(daemon, method, "/v1/x", X_Fake="echo", Origin="https://tool.example")
        assert body.startswith(f"{method} /v1/x ".encode())
    assert ask(daemon, "HEAD", "/v1/models")[0] == 200
    assert len(rows(work / "log.csv", 8)) == 8


def test_duplicate_fields_and_hop_by_hop_ones(target):
    """The last of two won, and the connection's own fields were passed on."""
    daemon = target("-a", "X-Team: blue")
    _, _, body = ask(daemon, "GET", "/v1/x", X_Fake="echo", Connection="X-Hop", X_Hop="1", Keep_Alive="timeout=5")
    assert b"X-Hop" not in body and b"Keep-Alive" not in body and b"X-Team: blue" in body
    _, headers, _ = ask(daemon, "GET", "/v1/models", X_Fake="head-fields=6")
    doubled = [name for name in headers if len(headers.get_all(name)) > 1]
    assert doubled


def test_the_users_key_is_for_the_users_own_programs(target):
    """It was an open relay on every address: this listens on loopback, and a page in a browser is turned away."""
    daemon = target("-a", f"Authorization: Bearer {KEY}")
    origin = f"http://127.0.0.1:{daemon.port}"
    status, headers, body = ask(daemon, body=chat(), Origin=origin)
    assert status == 403 and headers["X-LLM-Proxy-Error"] == "not_allowed" and b"not for browsers" in body
    assert ask(daemon, body=chat(), Host="evil.example")[0] == 403
    assert ask(daemon, body=chat())[0] == 200


_FOREIGN = """
import os, socket, sys
"".encode("idna")  # imported now: the interpreter may lie where the other user cannot read
os.setgroups([]); os.setgid(65534); os.setuid(65534)
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
link.sendall(b"GET /v1/models HTTP/1.1\\r\\nHost: localhost\\r\\n" + sys.argv[2].encode() + b"\\r\\n\\r\\n")
print(link.recv(65536).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a program as somebody else")
def test_another_user_of_the_machine_needs_the_token(target):
    """And without added headers there is nothing to guard."""
    guarded = target("-a", f"Authorization: Bearer {KEY}", env={"LLM_PROXY_LISTEN_TOKEN": TOKEN})
    plain = target()

    def foreign(daemon, field):
        done = subprocess.run(
            [sys.executable, "-I", "-c", _FOREIGN, str(daemon.port), field], capture_output=True, text=True, timeout=20
        )
        return done.stdout

    assert foreign(guarded, "X-A: b").startswith("HTTP/1.1 403 ")
    assert foreign(guarded, f"x-api-key: {TOKEN}").startswith("HTTP/1.1 200 ")
    assert foreign(plain, "X-A: b").startswith("HTTP/1.1 200 ")


def test_other_machines_need_a_token_and_the_target_never_sees_it(target, command, environ, work):
    """A bind beyond loopback with added headers is refused without one."""
    done = command("-t", "http://127.0.0.1:1", "-a", f"Authorization: Bearer {KEY}", "--host", "0.0.0.0", "-p", "0")
    assert done.returncode == 78 and "set listen.token" in done.stderr
    daemon = target("-a", f"Authorization: Bearer {KEY}", "--host", "0.0.0.0", env={"LLM_PROXY_LISTEN_TOKEN": TOKEN})
    _, _, body = ask(daemon, path="/v1/x", X_Fake="echo", X_API_Key=TOKEN, body=chat())
    assert f"Authorization: Bearer {KEY}\r\n".encode() in body and TOKEN.encode() not in body
    _, _, body = ask(daemon, path=f"/secret/{TOKEN}/v1/x", X_Fake="echo", X_API_Key="of-the-client", body=chat())
    assert body.startswith(b"POST /v1/x HTTP/1.1") and b"of-the-client" in body and TOKEN.encode() not in body
    rows(work / "log.csv", 2)
    assert daemon.stop() == 0
    assert TOKEN.encode() not in everything_on_disk(environ["HOME"])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_bodies_are_decoded_in_the_log_and_untouched_on_the_wire(target, work, coding):
    """Only gzip was decoded, and only one member of it."""
    status, headers, body = ask(target(), body=chat(), X_Fake=coding)
    assert status == 200 and headers["Content-Encoding"] == coding
    (row,) = rows(work / "log.csv", 1)
    assert json.loads(row[3])["object"] == "chat.completion" and row[3].encode() != body


# --- and beside others


def test_each_run_logs_its_own_calls_from_the_first_on(target, start, work, provider, environ):
    """Two runs in two folders and a daemon with a CSV file of its own: none has the others' calls, none waits."""
    config = Path(environ["HOME"], "config.toml")
    config.write_text('sinks = ["sessions", "csv"]\n')
    other = work / "other"
    other.mkdir()
    usual = start("--port", "0", "--config", str(config))
    deadline = time.monotonic() + 60
    while not (usual.state / "sinks.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    one, two = target(), target(cwd=other)
    for number in range(3):
        ask(one, body=chat(f"one {number}"))
        ask(two, body=chat(f"two {number}"))
        ask(usual, path=f"/openai/127.0.0.1:{provider.port}/v1/chat/completions", body=chat(f"usual {number}"))
    for file, name in ((work / "log.csv", "one"), (other / "log.csv", "two"), (usual.logs / "log.csv", "usual")):
        said = [json.loads(row[2])["messages"][0]["content"] for row in rows(file, 3)]
        assert said == [f"{name} {number}" for number in range(3)]


def test_calls_from_before_the_lanes_began_are_rows_too(target, work, environ):
    """The process that writes the file starts later than the proxy: here it waits for its lock, as long as the test holds that."""
    home = environ["HOME"]
    folders = {"daily_folder": f"{home}/.llm-provider-logs", "dataset_folder": f"{home}/.llm-provider-dataset"}
    name = passing.name(Settings(sinks=("sessions", "csv"), csv_file=f"{work}/log.csv", **folders), "target")
    place = Path(home, ".local/state/llm-proxy/lanes", name)
    place.mkdir(parents=True)
    with (place / "lanes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        daemon = target()
        ask(daemon, body=chat("early"))
        daemon.entries(until=lambda all: any(one["type"] == "response" for one in all))
        assert not (place / "sinks.db").exists()
    assert json.loads(rows(work / "log.csv", 1)[0][2]) == chat("early")


def test_a_killed_run_loses_no_row(target, work):
    """SIGKILL at once after the answer: the next run in the same folder has the call, once, before its own."""
    first = target()
    first.port  # noqa: B018  # it listens
    ask(first, body=chat("before"))
    first.kill()
    second = target()
    ask(second, body=chat("after"))
    said = [json.loads(row[2])["messages"][0]["content"] for row in rows(work / "log.csv", 2)]
    assert sorted(said) == ["after", "before"]
