"""What the README tells a reader to type works as it stands there, all of it, in homes that are thrown away.

Only upstream hosts are replaced by the fake provider, `claude` by a command that prints its base URL, and Homebrew is
simulated by a `brew` that puts the program on the PATH and starts it as its services do.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import HTTPCookieProcessor, build_opener

import anthropic
import pytest

from llm_proxy.service import environment
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import Gateway
from tests.installbed import Person, stub
from tests.release import NEW, OLD, copy_sources
from tests.runtimes import bundled
from tests.test_install import PIP

__all__ = ["bundled"]

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

# In the order in which one home meets them: the command, what is shown then, and what is not.
LIFE = [
    ("sh scripts/install.sh", r"llm-proxy 9\.9 is installed", "not be|XX"),
    ("llm-proxy --status", r"^Status: +RUNNING$(?s:.*)^Recording: +ok$", "Warning"),
    ("llm-proxy doctor", "^ok  this shell's base URLs lead to it$", "XX"),
    ("llm-proxy run -- claude", r"^http://127\.0\.0\.1:\d+/anthropic/api\.anthropic\.com$", "asked directly"),
    ("NO_LLM_PROXY=1 llm-proxy run -- claude", "^asked directly$", "http"),
    ('eval "$(llm-proxy --env --unset --shell bash)"; claude', "^asked directly$", "http"),
    ("llm-proxy attach", "^codex +not attached$", "cut short"),
    ("llm-proxy attach codex", "^codex: attached to", "failed"),
    ("llm-proxy sessions", "Guten Tag", "Traceback"),
    ("llm-proxy view", "^Guten Tag$(?s:.*)Grüße", "Traceback"),
    ("llm-proxy search hello", "(?i)hello", "Traceback"),
    ("llm-proxy stats --by model", "claude-readme", "Traceback"),
    ("llm-proxy explore", r"^http://127\.0\.0\.1:\d+/llm-proxy/\?token=\S+$", "Traceback"),
    ("llm-proxy --setup", "llm-proxy runs on", "XX"),
    ("llm-proxy --uninstall", "^ok  remove .*bin/llm-proxy$", "XX"),
]
CURL = 'curl -fsSL "$URL/install.sh" | sh'
UPGRADE = "llm-proxy upgrade"
BACK = "llm-proxy upgrade --rollback"
BREW = "brew install llm-proxy && brew services start llm-proxy"
UNBREW = "brew services stop llm-proxy && llm-proxy --uninstall && brew uninstall llm-proxy"
POSIX = 'if command -v llm-proxy >/dev/null 2>&1; then eval "$(llm-proxy --env)"; fi'
FISH = "llm-proxy --env --shell fish | source"
TAIL = "tail -qn 1 ~/.llm-provider-logs/*/*/*.jsonl"
BEDROCK = "BEDROCK_REGION=us-west-2 llm-proxy --port 9999"
BEDROCK_SHELL = 'eval "$(llm-proxy --env --bedrock)"'
TARGET = "llm-proxy --target-url https://api.openai.com/v1"
TACO = "llm-proxy start"
NAMED = "llm-proxy --config config.yaml"
DOORS = (TARGET, TACO, NAMED)
GATEWAY = "llm-proxy gateway --port 8080"
TESTS = "sh scripts/test.sh"  # what runs these tests


def shown() -> set[str]:
    """Every command: the lines of the blocks without their comments, and what stands in a sentence."""
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
    lines = {re.sub(r"\s+#.*", "", line) for line in blocks.splitlines()}
    prose = re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)
    return lines | {text for text in re.findall(r"`([^`]+)`", prose) if re.match(r"(llm-proxy|sh|brew) ", text)}


def test_every_command_is_run_here() -> None:
    """Nothing is shown that no test runs, and no test runs what is no longer shown."""
    run = {command.removesuffix("; claude") for command, _, _ in LIFE}
    assert shown() == run | {
        CURL,
        UPGRADE,
        BACK,
        BREW,
        UNBREW,
        POSIX,
        FISH,
        TAIL,
        BEDROCK,
        BEDROCK_SHELL,
        *DOORS,
        GATEWAY,
        TESTS,
    }
    assert subprocess.run(["sh", "-n", "scripts/test.sh"], cwd=ROOT, timeout=20).returncode == 0


def test_the_first_screenful_is_enough() -> None:
    """Install, what it is, how it works, privacy, how to get rid of it."""
    first = "\n".join(README.splitlines()[:50])
    for words in (LIFE[0][0], CURL, BREW, "How it works", "Privacy", "llm-proxy --uninstall", "llm-proxy doctor"):
        assert words in first


# --- a home, from the installation to its end -------------------------------------------------------------------------


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Somebody with an empty home but for rc files, and with a `claude` that says where it would ask."""
    somebody = Person(tmp_path / "home", PIP | {"PYTHON": sys.executable})
    stub(tmp_path / "bin", "claude", 'echo "${ANTHROPIC_BASE_URL:-asked directly}"')
    yield somebody
    somebody.close()


def typed(person: Person, command: str, **changes: str) -> str:
    """What a new terminal shows: the rc files, and then the command. It must succeed."""
    path = f"{person.home.parent}/bin:{person.environ()['PATH']}"
    environ = person.environ(PATH=path, **changes)
    done = subprocess.run(
        ["bash", "-i", "-c", command],
        env=environ,
        cwd=person.home.parent / "checkout" if "scripts/" in command else person.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    text = re.sub(r"bash: (cannot set terminal process group|no job control).*\n", "", done.stdout)
    assert done.returncode == 0, text
    return text


async def test_a_home_from_installation_to_uninstall(person: Person, fake: FakeProvider) -> None:
    """Each command in a new terminal of one home; a real client's stream in between. The home is then what it was."""
    checkout = person.home.parent / "checkout"
    copy_sources(checkout, "9.9")
    shutil.copytree(ROOT / "scripts", checkout / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for command, expected, unexpected in LIFE:
        if command == "llm-proxy sessions":
            await asyncio.to_thread(_stream, person, fake)
        text = await asyncio.to_thread(typed, person, command)
        assert (found := re.search(expected, text, re.MULTILINE)), f"{command}\n{text}"
        if command == "llm-proxy explore":
            assert "Guten Tag" in await asyncio.to_thread(_looked_at, found[0])
        assert not re.search(unexpected, text), f"{command}\n{text}"
    assert person.snapshot() == person.before
    listed = await asyncio.to_thread(typed, person, TAIL)
    assert [json.loads(line)["type"] for line in listed.splitlines()] == ["response"]


def _looked_at(url: str) -> str:
    """The explorer's home, as an installed one serves it; its style and scripts come too."""
    browser = build_opener(HTTPCookieProcessor())
    with browser.open(url, timeout=30) as answer:
        page = str(answer.read().decode())
    for path in re.findall(r'(?:href|src)="(/llm-proxy/static/[^"]+)"', page):
        browser.open(urljoin(url, path), timeout=30).close()
    return page


def _stream(person: Person, fake: FakeProvider) -> None:
    """A conversation by the SDK, until it is in the index."""
    base = f"http://127.0.0.1:{person.status()['port']}/anthropic/127.0.0.1:{fake.port}"
    said: list[Any] = [{"role": "user", "content": "Guten Tag"}]
    with (
        anthropic.Anthropic(base_url=base, api_key="k", max_retries=0) as client,
        client.messages.stream(model="claude-readme", max_tokens=9, messages=said) as stream,
    ):
        assert "".join(stream.text_stream) == "".join(SENTENCE)
    deadline = time.monotonic() + 60
    while "".join(SENTENCE).strip() not in person.command("view").stdout:
        assert time.monotonic() < deadline, "the call is not in the record"


def test_a_release_by_curl(person: Person, bundled: Any, serve: Any, tmp_path: Path) -> None:
    """The line as it is; `$URL` is a page of this machine that serves what a release would."""
    server = serve(shutil.copytree(bundled.page, tmp_path / "page", symlinks=True))
    (tmp_path / "page/install.sh").write_text(server.script)
    text = typed(person, CURL, URL=server.url, LLM_PROXY_VERSION=OLD)
    assert "New shells use it by themselves." in text
    assert all(person.new_shells().values())
    assert f"llm-proxy {NEW} is installed" in typed(person, UPGRADE)
    assert f"llm-proxy {OLD} is installed" in typed(person, BACK)
    typed(person, "llm-proxy --uninstall")
    assert person.snapshot() == person.before


BREWS = """\
case "$1 $2" in
    "install llm-proxy") mkdir -p {prefix}/opt/llm-proxy && ln -s {program} {prefix}/bin/llm-proxy ;;
    "uninstall llm-proxy") rm -r {prefix}/opt/llm-proxy {prefix}/bin/llm-proxy ;;
    "services start")
        LLM_PROXY_FIRST_RUN=shell setsid {prefix}/bin/llm-proxy --service </dev/null >{prefix}/log 2>&1 &
        echo $! >{prefix}/pid
        ;;
    "services stop")
        kill "$(cat {prefix}/pid)"
        while kill -0 "$(cat {prefix}/pid)"; do sleep 0.1; done 2>/dev/null
        ;;
    *) exit 64 ;;
esac
"""


def test_homebrew_simulated(person: Person, tmp_path: Path) -> None:
    """Install, start its service, and new shells use it; then it all goes, and the home is what it was."""
    (person.home / ".local/state").mkdir(parents=True)
    before = person.snapshot()
    program = shlex.quote(f"{sys.prefix}/bin/llm-proxy")
    stub(tmp_path / "bin", "brew", BREWS.format(prefix=shlex.quote(str(tmp_path)), program=program))
    typed(person, BREW)
    deadline = time.monotonic() + 60
    while not person.rc_files()[".bashrc"].startswith(person.before[".bashrc"][2].decode() + "# >>>"):
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    text = typed(person, "claude; llm-proxy --status")
    assert re.match(r"http://127\.0\.0\.1:\d+/anthropic/", text) and "Homebrew" in text
    text = typed(person, UNBREW)
    assert "the program itself was installed otherwise and stays" in text
    assert person.snapshot() == before
    assert typed(person, "claude") == "asked directly\n"


# --- the lines for a shell, and the example in Python -----------------------------------------------------------------


@pytest.fixture
def shell(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a shell that has `llm-proxy` on its PATH, put there as the installer does."""
    launcher = Path(environ["HOME"], ".local/bin/llm-proxy")
    launcher.parent.mkdir(parents=True)
    launcher.write_text((ROOT / "packaging/launcher.sh").read_text().replace("@PYTHON@", sys.executable))
    launcher.chmod(0o755)
    return environ | {"PATH": f"{launcher.parent}:{environ['PATH']}"}


def run(shell: dict[str, str], name: str, text: str) -> str:
    done = subprocess.run([name, "-c", text], env=shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["sh", "bash", "zsh", "fish"])
def test_the_line_for_the_shell(start: Any, shell: dict[str, str], name: str) -> None:
    """With the daemon it sets the four variables, without it nothing; it never fails."""
    if not shutil.which(name):
        pytest.fail(f"{name} is missing; scripts/test.sh installs it")
    show = "\n".join((FISH if name == "fish" else POSIX, *(f'echo "${name}"' for name in environment.VARIABLES)))
    assert run(shell, name, show).split() == []
    daemon = start("--service")
    assert daemon.wait_for_line("session logs")
    assert run(shell, name, show).split() == [f"{daemon.url}{path}" for path in environment.VARIABLES.values()]
    assert run(shell | {"NO_LLM_PROXY": "1"}, name, show).split() == []


async def test_the_python_example(daemon: Any, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients get their answers through the daemon, and the record is where the README says."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    text, count = re.subn(r"api\.(anthropic|openai)\.com", f"127.0.0.1:{fake.port}", example)
    assert count == 2
    names: dict[str, Any] = {}
    tree = ast.parse(text.replace(":PORT", f":{daemon.port}"))
    imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "README", "exec"), names)
    claude, gpt = (eval(ast.unparse(node), names) for node in tree.body if isinstance(node, ast.Expr))
    said = [{"role": "user", "content": "hi"}]
    with claude, gpt:
        message = await asyncio.to_thread(claude.messages.create, model="m", max_tokens=9, messages=said)
        assert message.content[0].text == "".join(SENTENCE)
        response = await asyncio.to_thread(gpt.responses.create, model="m", input="hi")
        assert response.output_text == "".join(SENTENCE)
    entries = await asyncio.to_thread(
        daemon.entries, 20, lambda entries: sum(entry["type"] == "response" for entry in entries) == 2
    )
    assert {entry["path"] for entry in entries if entry["type"] == "request"} == {"/v1/messages", "/v1/responses"}


def test_the_lines_for_bedrock(start: Any, shell: dict[str, str], free_port: int) -> None:
    """The first signs, wherever credentials may come from; the second gives Claude Code its three variables."""
    variables, _, arguments = BEDROCK.partition(" llm-proxy ")
    name, _, region = variables.partition("=")
    daemon = start(*arguments.replace("9999", str(free_port)).split(), env={name: region})
    assert daemon.port == free_port and daemon.wait_for_line("is signed for us-west-2")
    assert daemon.wait_for_line("CLAUDE_CODE_USE_BEDROCK")
    service = start("--service", env={name: region})
    assert service.wait_for_line("is signed for us-west-2")
    show = "\n".join((BEDROCK_SHELL, *(f'echo "${name}"' for name in environment.BEDROCK)))
    assert run(shell, "bash", show).split() == ["1", service.url, "1"]


def test_other_programs_ways_in_open_as_shown(start: Any, tmp_path: Path) -> None:
    """Their usual ports may be taken here, so these are others."""
    options = {"env": {"LLM_PROXY_PORT": "0", "TACO_PORT": "0"}, "cwd": tmp_path}
    target = start(*shlex.split(TARGET)[1:], **options)
    assert target.wait_for_line("every path goes to https://api.openai.com/v1$")
    assert target.wait_for_line(f"CSV: {tmp_path}/log.csv")
    taco = start(*shlex.split(TACO)[1:], **options)
    assert taco.wait_for_line(f"recordings: {tmp_path}/recordings/")
    model = {"name": "gpt-4", "base_url": "https://api.openai.com/v1", "api_key": "${A_KEY}", "model": "gpt-4-turbo"}
    (tmp_path / "config.yaml").write_text(json.dumps({"server": {"host": "127.0.0.1"}, "models": [model]}))
    named = start(*shlex.split(NAMED)[1:], env=options["env"] | {"A_KEY": "sk-readme"}, cwd=tmp_path)
    assert named.wait_for_line(r"^  gpt-4: https://api\.openai\.com/v1, as gpt-4-turbo$")
    assert named.wait_for_line(f"dataset: {tmp_path}/data$")


def test_the_line_for_a_team(start: Any, free_port: int) -> None:
    """From nothing: it says where clients find it and who is the administrator, and takes the first account."""
    arguments = [str(free_port) if word == "8080" else word for word in shlex.split(GATEWAY)[1:]]
    gateway = Gateway(start(*arguments)).wait()
    gateway.daemon.wait_for_line(rf"gateway: http://127\.0\.0\.1:{free_port}/v1 for OpenAI's clients")
    gateway.daemon.wait_for_line("the very first is the administrator's")
    assert gateway.want(200, "GET", "/auth/me", token=gateway.admin)["role"] == "admin"


def test_without_a_daemon_it_runs_in_the_terminal(start: Any, free_port: int) -> None:
    """`llm-proxy` alone, until Ctrl-C; 8080 may be taken here, so the port is another."""
    assert "`llm-proxy` alone runs in the terminal, on port 8080" in README
    daemon = start(env={"LLM_PROXY_PORT": str(free_port)})
    assert daemon.port == free_port and daemon.health()["status"] == "ok"
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0
