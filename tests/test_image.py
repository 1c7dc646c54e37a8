"""The image: its Dockerfile is clean, its steps make what is promised, and the container can be reached, checked and stopped."""

import http.client
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import anthropic
import pytest

from tests.imagebed import DOCKERFILE, Container, Image, instructions, is_sent, why_not

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-24-characters"
KEY = "sk-ant-api03-the-providers-own-key"
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can")


def test_hadolint_finds_nothing():
    """Every rule, also those that only advise."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(DOCKERFILE)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_file_promises_what_it_should():
    """Two stages of one base by a tag that can be chosen, a fixed user, exec forms only, nothing but our port."""
    steps = instructions(DOCKERFILE.read_text())
    assert steps[0] == ("ARG", "PYTHON=3.13")
    assert [rest.split()[0] for name, rest in steps if name == "FROM"] == ["python:${PYTHON}-slim"] * 2
    last = dict(steps)
    assert last["USER"] == "10001:10001" and last["EXPOSE"] == "8080" and last["STOPSIGNAL"] == "SIGTERM"
    commands = [rest for name, rest in steps if name in ("RUN", "CMD", "ENTRYPOINT")]
    assert len(commands) >= 6 and all(rest.startswith("[") for rest in commands)
    assert "curl" not in DOCKERFILE.read_text() and not re.search(r"(?i)token|secret|password", last["ENV"])


def test_only_the_package_is_sent_to_the_engine():
    """No history, no environment, no test and no log of anybody gets near an image."""
    for name, rest in instructions(DOCKERFILE.read_text()):
        if name == "COPY" and "--from" not in rest:
            assert all(is_sent(path) and (ROOT / path).exists() for path in rest.split()[:-1])
    assert not any(is_sent(path) for path in (".git", ".venv", "tests", "docs", "scripts", "dist", ".env"))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    made = Image(tmp_path_factory.mktemp("image"))
    yield made
    made.close()


@pytest.fixture
def contain(image, tmp_path):
    """Start containers with one set of volumes, one after the other."""
    running = []

    def begin(**environ):
        for one in running:
            one.close()
        running.append(Container(image, tmp_path / "volumes", environ))
        return running[-1]

    yield begin
    for one in running:
        one.close()


@pytest.fixture
def provider():
    """A fake provider on loopback of a container's network, where the world stands for this test; its port."""
    running = []

    def begin(container):
        command = container.net(sys.executable, "-m", "tests.fakeprovider")
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        return int(running[-1].stdout.readline().split()[1])

    yield begin
    for one in running:
        one.terminate()
        one.wait(10)
        one.stdout.close()


def recorded(tmp_path, count, limit=60):
    """Log files and the responses in them, once there are `count`: the keeper, last in line, may go on at the next start."""
    deadline = time.monotonic() + limit
    while True:
        files = sorted((tmp_path / "volumes/var-log-llm-proxy").rglob("*.jsonl"))
        entries = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        answers = [one for one in entries if one["type"] == "response"]
        if len(answers) == count:
            return files, answers
        assert time.monotonic() < deadline, entries
        time.sleep(0.05)


def test_it_holds_the_program_and_no_installer(image):
    """Nothing of the program can be changed by its own user; no pip, no compiler's leavings, no setuid."""
    files = image.files("/opt/llm-proxy")
    assert any(name.endswith("/llm_proxy/__init__.py") for name in files)
    assert not any("/pip/" in name for name in files)
    for name, facts in files.items():
        assert facts.st_uid == 0 and not facts.st_mode & 0o6022, name


def test_a_client_outside_calls_through_it(contain, provider, tmp_path):
    """With the token, over the wire, by an SDK; the record lies in the volume, and a second container goes on with it."""
    container = contain(LLM_PROXY_LISTEN_TOKEN=TOKEN)
    container.until_it_answers()
    assert container.run(*container.image.facts["HEALTHCHECK"]).stdout == "/llm-proxy/health answers 200\n"
    port = provider(container)
    route = f"anthropic/127.0.0.1:{port}"
    for base, fields in (
        (f"http://{container.address}:8080/{route}", {"X-LLM-Proxy-Token": TOKEN, "Host": "localhost:8080"}),
        (f"http://{container.address}:8080/secret/{TOKEN}/{route}", {}),
    ):
        with anthropic.Anthropic(api_key=KEY, base_url=base, default_headers=fields, max_retries=0) as client:
            said = client.messages.create(model="claude-x", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
            assert said.content
    assert container.ask(f"/{route}/v1/models", Host="localhost:8080")[0] == 403
    status, seconds, output = container.stop()
    assert status == 0 and seconds < 10, output
    container = contain(LLM_PROXY_LISTEN_TOKEN=TOKEN)
    container.until_it_answers()
    told = container.run("llm-proxy", "sessions", "--json").stdout
    assert told.count("claude-x") >= 1
    files, answers = recorded(tmp_path, 2)
    assert [one["ending"] for one in answers] == ["complete"] * 2
    assert {one["_meta"]["machine"] for one in answers} == {"llm-proxy@llm-proxy"}
    for file in files:
        assert TOKEN not in file.read_text()
        assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (10001, 0o600)


def test_a_stream_that_is_open_at_the_stop_is_cut_in_time_and_recorded(contain, provider, tmp_path):
    """The engine kills after 10 s; before that the drain is over and the call is in the record as interrupted."""
    container = contain(LLM_PROXY_LISTEN_TOKEN=TOKEN)
    container.until_it_answers()
    port = provider(container)
    link = http.client.HTTPConnection(container.address, 8080, timeout=10)
    link.request(
        "POST",
        f"/secret/{TOKEN}/anthropic/127.0.0.1:{port}/v1/messages",
        b'{"model":"claude-x","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}',
        {"Host": "localhost:8080", "X-Fake": "endless; slow=100"},
    )
    answer = link.getresponse()
    assert answer.status == 200 and answer.read(10)
    status, seconds, output = container.stop()
    assert status == 0 and 4.9 < seconds < 10 and "1 open calls were cut after 5 s" in output, (seconds, output)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    answer.close()
    link.close()
    contain(LLM_PROXY_LISTEN_TOKEN=TOKEN).until_it_answers()
    _, (told,) = recorded(tmp_path, 1)
    assert told["ending"] == "interrupted" and told["chunks"]


def test_without_a_token_it_says_what_to_do(contain):
    """It starts, is healthy, refuses calls, and both the log and the answer name the variable."""
    container = contain()
    assert container.until_it_answers()[0] == 200
    status, body = container.ask("/anthropic/api.anthropic.com/v1/models", Host="localhost:8080")
    assert status == 404 and b"LLM_PROXY_LISTEN_TOKEN" in body
    status, _, output = container.stop()
    assert status == 0 and "there is no token: calls are refused. Set listen.token (LLM_PROXY_LISTEN_TOKEN" in output


def test_a_container_that_does_not_serve_is_unhealthy(contain):
    """The check fails where nobody answers."""
    container = contain(LLM_PROXY_LISTEN_TOKEN=TOKEN)
    container.until_it_answers()
    failed = container.run(*container.image.facts["HEALTHCHECK"], check=False, environ={"LLM_PROXY_PORT": "1"})
    assert failed.returncode == 1 and "no answer at port 1" in failed.stderr


def test_a_wrong_setting_ends_it_with_a_sentence(contain):
    """No loop of restarts without a reason in the log."""
    container = contain(LLM_PROXY_LISTEN_TOKEN="short")
    status, output = container.wait()
    assert status == 78 and "listen.token" in output and "16" in output and "short" not in output
