"""`llm-proxy start`, driven as Taco's users drive theirs; each weakness of that program is a test."""

import contextlib
import datetime
import gzip
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_proxy.service import taco
from tests.test_doors_target import ask, chat, everything_on_disk

KEYS = {"X_API_Key": "sk-ant-api03-0123456789abcdef", "Anthropic_Version": "2023-06-01"}
MESSAGE = {"model": "claude-sonnet-4-6", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def work(environ):
    folder = Path(environ["HOME"], "work")
    folder.mkdir()
    return folder


@pytest.fixture
def upstreams(provider):
    """Taco's environment: each provider is the fake one."""
    return {
        f"TACO_{name.upper()}_UPSTREAM": f"http://127.0.0.1:{provider.port}" for name in ("claude", "openai", "gemini")
    }


@pytest.fixture
def begin(start, work, upstreams):
    """`llm-proxy start` in the folder `work`."""

    def run(*arguments, env=None, **options):
        return start("start", "--port", "0", *arguments, cwd=work, env=upstreams | (env or {}), **options)

    return run


@pytest.fixture
def command(work, environ):
    """A command of llm-proxy in that folder, to its end."""

    def run(*arguments, env=None):
        words = [sys.executable, "-I", "-m", "llm_proxy", *arguments]
        options = {"capture_output": True, "text": True, "timeout": 60, "cwd": work}
        return subprocess.run(words, env=environ | (env or {}), **options)

    return run


def recordings(folder, count):
    """The recordings in a folder, once there are so many."""
    deadline = time.monotonic() + 60
    while True:
        files = sorted(folder.glob("recordings-*.jsonl"))
        found = [
            json.loads(line)
            for file in files
            for line in file.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]
        if len(found) >= count:
            assert len(found) == count, found
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def configured(work, tree):
    (work / "config.json").write_text(json.dumps(tree))
    return "--config", "config.json"


# --- as its README says


def test_the_port_is_4567(command, work):
    """Held by the test, or by whoever has it on this machine."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        stack.enter_context(socket.create_server(("127.0.0.1", 4567)))
        done = command("start")
        assert done.returncode == 1 and "cannot listen on 127.0.0.1:4567" in done.stderr
        return
    assert "cannot listen on 127.0.0.1:4567" in command("start").stderr


def test_it_records_into_recordings(begin, work):
    """No file: `./recordings/recordings-YYYY-MM-DD.jsonl`, fields as its README has them; the variables to set are said."""
    daemon = begin()
    daemon.wait_for_line(f"export ANTHROPIC_BASE_URL='{daemon.url}'$")
    daemon.wait_for_line(f"export OPENAI_BASE_URL='{daemon.url}/v1'$")
    daemon.wait_for_line(f"recordings: {work}/recordings/recordings-YYYY-MM-DD.jsonl")
    status, _, body = ask(daemon, path="/v1/messages?beta=true", body=MESSAGE, Content_Type="application/json", **KEYS)
    assert status == 200
    (one,) = recordings(work / "recordings", 1)
    assert one["provider"] == "claude"
    assert (one["request"]["method"], one["request"]["path"], one["request"]["query"]) == (
        "POST",
        "/v1/messages",
        "beta=true",
    )
    assert one["request"]["body"] == MESSAGE and one["request"]["headers"]["Content-Type"] == ["application/json"]
    assert one["response"]["status"] == 200 and one["response"]["body"] == json.loads(body)
    assert one["response"]["streaming"] is False
    timing = one["timing"]
    assert timing["startTime"] <= timing["endTime"] and isinstance(timing["durationMs"], int)
    today = datetime.date.today().isoformat()
    assert (work / f"recordings/recordings-{today}.jsonl").exists()
    assert daemon.entries(until=lambda all: len(all) >= 3)  # session logs stay on


FLAT = {"port": 0, "recordingEnabled": True, "recordingPath": "./mine"}
NESTED = {
    "port": 0,
    "recording": {"enabled": True, "storage": "file", "path": "./mine", "format": "jsonl"},
    "logging": {"format": "plain", "level": "info"},
}


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_both_forms_of_its_configuration_hold(start, work, provider, form):
    """The README's flat one was ignored but for the port. An upstream has a path of its own, and is called in clear."""
    url = f"http://127.0.0.1:{provider.port}/below/"
    if form == "flat":
        tree = FLAT | {"claudeUpstream": url, "openaiUpstream": url}
    else:
        tree = NESTED | {"providers": {"claude": {"upstream_url": url}, "openai": {"upstream_url": url}}}
    daemon = start("start", *configured(work, tree), cwd=work)
    for path, fields in (("/v1/messages", KEYS), ("/v1/chat/completions", {})):
        _, _, body = ask(daemon, path=path, body=chat(), X_Fake="echo", **fields)
        assert body.startswith(f"POST /below{path} HTTP/1.1\r\n".encode())
    assert [one["provider"] for one in recordings(work / "mine", 2)] == ["claude", "openai"]
    if form == "nested":
        daemon.wait_for_line(r"^time=\S+ level=info provider=claude method=POST path=/below/v1/messages status=200 ")


def test_flag_over_environment_over_file(start, work, provider, free_port):
    """The port of the command line, the folder of the environment, the upstream of the file."""
    url = f"http://127.0.0.1:{provider.port}/file"
    tree = FLAT | {"port": 1, "openaiUpstream": url}
    env = {"TACO_PORT": "2", "TACO_RECORDING_PATH": "./of-environment", "TACO_RECORDING_ENABLED": "true"}
    daemon = start("start", "-port", str(free_port), *configured(work, tree), cwd=work, env=env)
    assert daemon.port == free_port
    assert ask(daemon, body=chat(), X_Fake="echo")[2].startswith(b"POST /file/v1/chat")
    recordings(work / "of-environment", 1)
    assert not (work / "mine").exists()


def test_recording_that_is_off_keeps_what_is_said_off_the_disk(begin, work, environ):
    """Neither recordings nor a body in the session log or the journal, while it runs and afterwards."""
    daemon = begin(env={"TACO_RECORDING_ENABLED": "false"})
    daemon.wait_for_line("of bodies nothing is recorded")
    said = "a sentence that nobody else says"
    for stream in (False, True):
        assert ask(daemon, body=chat(said) | {"stream": stream})[0] == 200
    daemon.entries(until=lambda all: sum(one["type"] == "response" for one in all) == 2)
    assert said.encode() not in everything_on_disk(environ["HOME"])
    assert b"fake provider" not in everything_on_disk(environ["HOME"])
    for ring in daemon.state.glob("journal/*/ring"):
        assert said.encode() not in Path(ring.read_text()).read_bytes()
    assert daemon.stop() == 0
    assert said.encode() not in everything_on_disk(environ["HOME"])
    assert not (work / "recordings").exists()


@pytest.mark.parametrize(
    ("tree", "env", "said"),
    [
        ({"recordingsPath": "x"}, {}, "Taco has no setting 'recordingsPath'; did you mean 'recordingPath'?"),
        ({"recording": {"storage": "s3"}}, {}, "recording.storage must be 'file', got 's3'"),
        ({"recording": {"enabled": "maybe"}}, {}, "recording.enabled must be true or false, got 'maybe'"),
        ({"port": "web"}, {}, "config.json: port: port must be a whole number from 0 to 65535, got 'web'"),
        ({"providers": {"mistral": {"upstream_url": "x"}}}, {}, "Taco has no setting 'providers.mistral'"),
        ({"logging": {"level": "loud"}}, {}, "logging.level: console.level must be one of debug, info, warn, error"),
        ({}, {"TACO_PORT": "http"}, "TACO_PORT: port must be a whole number from 0 to 65535, got 'http'"),
        ({}, {"TACO_CLAUDE_UPSTREAM": "api.x.com"}, "TACO_CLAUDE_UPSTREAM: upstreams.anthropic must be a URL such as"),
    ],
)
def test_what_is_wrong_in_it_is_named(command, work, tree, env, said):
    """The file or variable, the rule, the value; nothing is started."""
    done = command("start", *configured(work, tree), env=env)
    assert (done.returncode, done.stdout) == (78, "") and said in done.stderr


def test_files_that_are_not_there_or_no_json(command, work):
    """And an option that does not exist."""
    assert "there is no file" in command("start", "--config", "nowhere.json").stderr
    (work / "bad.json").write_text("{port: 1}")
    done = command("start", "--config", "bad.json")
    assert done.returncode == 78 and "bad.json" in done.stderr
    assert command("start", "--prot", "1").returncode == 2


def test_every_key_of_both_forms_means_a_setting(environ):
    """The table and the settings agree, each key is in the documentation."""
    from llm_proxy import settings

    page = (Path(__file__).parent.parent / "docs/doors.md").read_text()
    for name in {*taco.KEYS.values(), *taco.ENVIRONMENT.values()} - {taco.ENABLED}:
        assert name in settings.BY_NAME
    for name in (*taco.ENVIRONMENT, *(key.rpartition(".")[2] for key in taco.KEYS)):
        assert name in page, name


def test_lines_on_the_console(begin, work):
    """A line per call in the three formats it has; `warn` leaves out what went well."""
    daemon = begin()
    ask(daemon, body=chat())
    ask(daemon, "GET", "/v1/models?key=AIza0123456789012345678901234567890", X_Fake="status=429")
    daemon.wait_for_line(r"^\[\d\d:\d\d:\d\d\] openai \d+ms 200 /v1/chat/completions$")
    daemon.wait_for_line(r"^\[\d\d:\d\d:\d\d\] gemini \d+ms 429 /v1/models$")
    tree = {"port": 0, "logging": {"format": "json", "level": "warn"}}
    quiet = begin(*configured(work, tree))
    ask(quiet, body=chat())
    with socket.create_connection(("127.0.0.1", quiet.port)) as link:
        link.sendall(
            b"GET /v1/\x9b2Jmodels HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Fake: status=500\r\n\r\n"
        )
        with link.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 500")
    told = json.loads(quiet.wait_for_line(r'^(\{.*"status".*\})$')[1])
    assert told["level"] == "error" and told["status"] == 500 and told["path"] == r"/v1/\x9b2Jmodels"
    assert told["provider"] == "openai" and told["ending"] == "complete" and isinstance(told["duration_ms"], int)


# --- the weaknesses of the original

OPENAI = (
    "GET /v1/models", "GET /v1/models/gpt-4", "POST /v1/files", "GET /v1/files/file-1/content", "POST /v1/batches",
    "POST /v1/images/generations", "POST /v1/audio/speech", "POST /v1/moderations", "POST /v1/assistants",
    "POST /v1/fine_tuning/jobs", "POST /v1/responses", "POST /v1/embeddings", "POST /v1/completions",
)  # fmt: skip
GEMINI = (
    "POST /v1beta/models/gemini-2.5-pro:generateContent", "POST /v1/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
    "GET /v1beta/models", "POST /upload/v1beta/files", "GET /v1beta/cachedContents", "GET /v1alpha/corpora/x",
    "GET /v1beta/tunedModels", "GET /v1/models?key=AIza01234567890123456789",
)  # fmt: skip
CLAUDE = ("POST /v1/messages", "POST /v1/messages/count_tokens", "POST /v1/messages/batches", "POST /v1/complete")


def test_every_path_has_its_provider(start, work, provider):
    """`/v1/models/gpt-4`, files and batches went to Gemini; images, audio, moderations and assistants nowhere."""
    base = f"http://127.0.0.1:{provider.port}"
    tree = {"port": 0} | {f"{name}Upstream": f"{base}/{name}" for name in ("claude", "openai", "gemini")}
    daemon = start("start", *configured(work, tree), cwd=work)
    for name, calls in (("openai", OPENAI), ("gemini", GEMINI), ("claude", CLAUDE)):
        for call in calls:
            method, path = call.split()
            _, _, body = ask(daemon, method, path, X_Fake="echo")
            assert body.startswith(f"{method} /{name}{path} HTTP/1.1\r\n".encode()), (call, body)
    by_fields = (("claude", {"Anthropic-Version": "2023-06-01"}), ("gemini", {"X-Goog-Api-Key": "AIza"}))
    for name, fields in by_fields:
        for path in ("/v1/models", "/v1/files", "/v1/models/x"):
            assert ask(daemon, "GET", path, X_Fake="echo", **fields)[2].startswith(f"GET /{name}{path} ".encode())
    status, headers, body = ask(daemon, "GET", "/favicon.png")
    assert status == 404 and headers["Content-Type"] == "application/json"
    assert "no route for this path" in json.loads(body)["error"]["message"]


def test_keys_are_in_no_file_and_files_are_the_users_alone(begin, work, environ):
    """They stood in clear in files that everybody could read."""
    daemon = begin()
    ask(daemon, path="/v1/messages", body=MESSAGE, Cookie="session=0123456789abcdef", **KEYS)
    ask(daemon, "GET", "/v1beta/models?key=AIzaSyA-0123456789012345678901234567")
    ask(
        daemon,
        "GET",
        "/v1/models",
        Authorization="Bearer sk-proj-0123456789abcdef",
        X_Goog_Api_Key="AIzaSyB-0123456789012345678901234567",
    )
    recordings(work / "recordings", 3)
    for path in (work / "recordings").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (work / "recordings").stat().st_mode & 0o777 == 0o700
    assert daemon.stop() == 0
    found = everything_on_disk(environ["HOME"])
    for key in (b"sk-ant-api03-0123456789abcdef", b"0123456789abcdef", b"AIzaSyA-0", b"AIzaSyB-0"):
        assert key not in found


def _raw(daemon, path, fields):
    """A response's body as it came over the wire, chunks put together."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)) as link:
        link.request("POST", path, json.dumps(MESSAGE | {"stream": True}), fields)
        return link.getresponse().read()


def test_streams_pass_byte_for_byte(begin, work, provider):
    """CR LF became LF, a line beyond 1 MiB ended the stream, a compressed one grew a byte, binary files were taken for text."""
    daemon = begin()
    odd = b"data: a\r\n\r\ndata: b\r\rdata: no line end"
    fields = {"X-Fake": f"type=text/event-stream;bytes={odd.hex()}"}
    assert _raw(daemon, "/v1/messages", fields) == odd
    long = _raw(daemon, "/v1/messages", {"X-Fake": "huge=1500000;type=text/event-stream"})
    assert len(long) == 1_500_000
    packed = _raw(daemon, "/v1/messages", {"X-Fake": "gzip"})
    direct = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=20)
    with contextlib.closing(direct):
        direct.request("POST", "/v1/messages", json.dumps(MESSAGE | {"stream": True}), {"X-Fake": "gzip"})
        text = gzip.decompress(direct.getresponse().read())
    events = [line for line in text.splitlines() if line.startswith(b"event:")]
    assert [line for line in gzip.decompress(packed).splitlines() if line.startswith(b"event:")] == events
    binary = bytes(range(256))
    assert _raw(daemon, "/v1/files", {"X-Fake": f"type=application/octet-stream;bytes={binary.hex()}"}) == binary
    found = recordings(work / "recordings", 4)
    assert found[2]["response"]["streaming"] and found[2]["response"]["body"].encode() == gzip.decompress(packed)
    assert found[3]["response"]["body"].startswith("base64:") and not found[3]["response"]["streaming"]


def test_failed_and_interrupted_calls_are_recorded(begin, work):
    """Transport errors, and streams open at shutdown for longer than five seconds, were not."""
    daemon = begin(env={"TACO_GEMINI_UPSTREAM": "http://127.0.0.1:1", "LLM_PROXY_DRAIN_TIMEOUT": "0.5"})
    assert ask(daemon, path="/v1beta/models/x:generateContent", body={})[0] == 502
    with socket.create_connection(("127.0.0.1", daemon.port)) as link:
        data = json.dumps(MESSAGE | {"stream": True}).encode()
        head = "POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nX-Fake: endless; slow=20\r\n"
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        assert link.recv(100)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait(60) == 0
    failed, cut = recordings(work / "recordings", 2)
    assert failed["response"]["status"] == 0 and "127.0.0.1:1" in failed["error"]
    assert cut["response"]["streaming"] and "content_block_delta" in cut["response"]["body"] and cut["error"]


def test_bodies_are_exact(begin, work):
    """Big integers lost digits, keys were put in order, <>& were escaped."""
    body = (
        b'{"z":12345678901234567890123,"model":"gpt-4.1-mini","a":1.10,"messages":[{"role":"user","content":"<b>&"}]}'
    )
    assert ask(begin(), body=body)[0] == 200
    recordings(work / "recordings", 1)
    (file,) = (work / "recordings").iterdir()
    assert b'"body":' + body in file.read_bytes()


def test_its_commands_read_what_it_writes(begin, work, command):
    """`stats`, `view` (which showed nothing of OpenAI's streams) and `export`."""
    daemon = begin()
    ask(daemon, path="/v1/messages", body=MESSAGE, **KEYS)
    ask(daemon, "GET", "/v1/models", X_Fake="status=500")
    ask(daemon, body=chat() | {"stream": True})
    found = recordings(work / "recordings", 3)
    stats = command("stats", "--recordings", "./recordings").stdout
    assert "Total Requests: 3\nTotal Errors: 1\nError Rate: 33.33%\n" in stats
    assert "=== CLAUDE ===\nRequests: 1\n" in stats and "=== OPENAI ===\nRequests: 2\n" in stats
    shown = command("view", "--recordings", "./recordings", found[2]["id"]).stdout
    assert "Streaming: true" in shown and "provider:" in shown and '"object": "chat.completion.chunk"' in shown
    today = datetime.date.today().isoformat()
    done = command(
        "export", "--recordings", "./recordings", "--from", today, "--provider", "claude", "--output", "out.jsonl"
    )
    assert "count=1" in done.stdout
    (line,) = (work / "out.jsonl").read_text().splitlines()
    assert json.loads(line) == found[0]


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_days_are_cut_at_local_midnight(begin, work, command, zone):
    """Files had local dates and filters UTC's: a call of this minute is of today, wherever that is."""
    begun = time.time()
    daemon = begin(env={"TZ": zone})
    ask(daemon, body=chat())
    recordings(work / "recordings", 1)
    days = {
        subprocess.run(
            ["date", "-d", f"@{int(at)}", "+%F"], env={"TZ": zone}, capture_output=True, text=True
        ).stdout.strip()
        for at in (begun, time.time())
    }
    (file,) = (work / "recordings").iterdir()
    day = file.name.removeprefix("recordings-").removesuffix(".jsonl")
    assert day in days
    stats = command("stats", "--recordings", "recordings", "--from", day, "--to", day, env={"TZ": zone}).stdout
    assert "Total Requests: 1\n" in stats


def test_a_stream_has_no_age_and_the_port_is_on_loopback(begin, work):
    """After 300 s it was cut; and everybody in the network could call. Here only silence counts."""
    daemon = begin(env={"LLM_PROXY_UPSTREAMS_IDLE_TIMEOUT": "1.2"})
    begun = time.monotonic()
    status, _, body = ask(daemon, body=chat() | {"stream": True}, X_Fake="slow=400")
    assert status == 200 and body.endswith(b"data: [DONE]\n\n") and time.monotonic() - begun > 2.4
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    ours = {
        line.split()[1]
        for line in listening
        if line.split()[1].endswith(f":{daemon.port:04X}") and line.split()[3] == "0A"
    }
    assert ours == {f"0100007F:{daemon.port:04X}"}
