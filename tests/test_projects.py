"""Which process called: its program, folder, repository and branch, seen from the outside, and never a wrong one."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import psutil
import pytest

from llm_proxy.keeper import projects
from llm_proxy.keeper.projects import Client, Projects, repository, script_name
from tests.rig import Rig

GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "PATH": os.environ["PATH"]}


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *identity, *words], cwd=folder, env=GIT, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a repository `shop` on branch `main`, and one with nothing."""
    shop = tmp_path / "shop"
    (shop / "src/deep").mkdir(parents=True)
    git(shop, "init", "-q", "-b", "main")
    git(shop, "commit", "-q", "--allow-empty", "-m", "first")
    (tmp_path / "plain").mkdir()
    return tmp_path


# --- repositories


def test_a_folder_of_a_repository(tree: Path) -> None:
    """Its main folder and the branch, from however deep within; the branch of this moment."""
    shop = str(tree / "shop")
    assert repository(shop) == repository(f"{shop}/src/deep") == (shop, "main")
    git(tree / "shop", "switch", "-q", "-c", "feature/café")
    assert repository(f"{shop}/src") == (shop, "feature/café")
    git(tree / "shop", "switch", "-q", "--detach")
    assert repository(shop) == (shop, "")


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    """The branch is named before it exists."""
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert repository(str(tmp_path)) == (str(tmp_path), "trunk")


def test_a_worktree_counts_to_its_repository(tree: Path) -> None:
    """Wherever it lies; with its own branch."""
    git(tree / "shop", "worktree", "add", "-q", "-b", "fix", "../elsewhere")
    assert repository(str(tree / "elsewhere")) == (str(tree / "shop"), "fix")


@pytest.mark.parametrize("name", ["shop.git", "bare/.bare"])
def test_worktrees_of_a_bare_repository(tree: Path, name: str) -> None:
    """There is no main folder then: it is the repository itself, or the folder around a hidden one."""
    (tree / name).parent.mkdir(exist_ok=True)
    git(tree, "clone", "-q", "--bare", "shop", name)
    git(tree / name, "worktree", "add", "-q", "../work", "main")
    root = tree / "bare" if name == "bare/.bare" else tree / name
    assert repository(str((tree / name).parent / "work")) == (str(root), "main")


def test_a_submodule_is_a_repository_of_its_own(tree: Path) -> None:
    """It is worked on for itself."""
    git(tree, "init", "-q", "-b", "main", "outer")
    git(tree / "outer", "submodule", "--quiet", "add", str(tree / "shop"), "inner")
    assert repository(str(tree / "outer/inner")) == (str(tree / "outer/inner"), "main")


def test_what_only_looks_like_a_repository(tree: Path) -> None:
    """Nothing is said of it, nothing waits for it, and the search goes on above."""
    plain = tree / "plain"
    assert repository(str(plain)) == repository("/") == ("", "")
    (plain / ".git").mkdir()
    assert repository(str(plain)) == ("", "")
    os.mkfifo(plain / ".git/HEAD")
    assert repository(str(plain)) == ("", "")
    within = tree / "shop/within"
    within.mkdir()
    (within / ".git").write_text("no link")
    assert repository(str(within)) == (str(tree / "shop"), "main")
    (within / ".git").write_text("gitdir: " + "x" * 9999)
    assert repository(str(within)) == (str(within), "")


# --- programs


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/local/bin/claude", "claude"),
        ("/home/a/.local/bin/aider", "aider"),
        ("/usr/lib/node_modules/@anthropic-ai/claude-code/cli.js", "claude"),
        ("/usr/lib/node_modules/@openai/codex/bin/codex.js", "codex"),
        ("/x/node_modules/@google/gemini-cli/dist/index.js", "gemini"),
        ("/x/node_modules/a/node_modules/opencode-ai/bin/opencode", "opencode-ai"),
        ("/x/node_modules/.bin/opencode", "opencode"),
        ("/home/a/tools/agent.py", "agent"),
        ("/home/a/tools/agent/main.py", "agent"),
        ("/home/a/tools/agent/src/cli.mts", "agent"),
        ("/main.py", "main"),
        ("/srv/a.b.py", "a.b"),
    ],
)
def test_a_script_is_called_what_people_call_it(path: str, name: str) -> None:
    """By its package, its folder, or itself."""
    assert script_name(path) == name


CALLER = """
import socket, sys
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(link.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Callers:
    """Processes that connect to a socket of this test, which stands for the proxy."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *command: str, cwd: Path | None = None) -> tuple[subprocess.Popen[str], int]:
        """The process, and the port it called from; PORT in the command is ours."""
        words = [str(self.listener.getsockname()[1]) if word == "PORT" else word for word in command]
        process = subprocess.Popen(words, cwd=cwd or self.folder, stdin=PIPE, stdout=PIPE, text=True)
        self.running.append(process)
        self.accepted.append(self.listener.accept()[0])
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    def script(self, name: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CALLER)
        return str(path)

    def end(self, process: subprocess.Popen[str]) -> None:
        process.communicate("", timeout=10)


@pytest.fixture
def callers(tmp_path: Path) -> Iterator[Callers]:
    made = Callers(tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.communicate(timeout=10)
    for one in (*made.accepted, made.listener):
        one.close()


def here(port: int) -> Client | None:
    """What a keeper of this test's process would say."""
    return Projects(os.getpid()).client(port, time.time_ns())


def test_a_script_in_a_repository(callers: Callers, tree: Path) -> None:
    """All there is to know."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT", cwd=tree / "shop/src")
    shop = str(tree / "shop")
    assert here(port) == Client("agent", process.pid, f"{shop}/src", "shop", shop, "main")
    said = here(port)
    assert said is not None
    assert said.entry() == {
        "program": "agent",
        "pid": process.pid,
        "cwd": f"{shop}/src",
        "project": "shop",
        "root": shop,
        "branch": "main",
    }


def test_a_script_outside_of_any_repository(callers: Callers, tree: Path) -> None:
    """The project is its folder; what is not known is not in the entry."""
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT", cwd=tree / "plain")
    said = here(port)
    assert said is not None and said.entry().keys() == {"program", "pid", "cwd", "project"}
    assert (said.project, said.cwd) == ("plain", str(tree / "plain"))


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("PYTHON -u -X dev -W ignore tools/cli.py PORT", "tools"),
        ("PYTHON -m agent PORT", "agent"),
        ("PYTHON -um tools.agent PORT", "tools"),
        ("PYTHON agent.py PORT --api-key sk-canary", "agent"),
        ("PYTHON -c CODE PORT sk-canary", "PYTHON"),
        ("LINK PORT sk-canary", "my-agent"),
    ],
)
def test_programs_by_how_they_are_started(callers: Callers, words: str, program: str) -> None:
    """The name of what runs; never a word of its arguments, which may be secret."""
    for name in ("agent.py", "tools/cli.py", "tools/agent.py"):
        callers.script(name)
    link = callers.folder / "my-agent"
    link.write_text(f"#!{sys.executable}\n{CALLER}")
    link.chmod(0o755)
    known = {"PYTHON": sys.executable, "CODE": CALLER, "LINK": str(link)}
    python = os.path.basename(sys.executable)
    _, port = callers.start(*(known.get(word, word) for word in words.split()))
    said = here(port)
    assert said is not None and said.program == program.replace("PYTHON", python)
    assert "canary" not in repr(said)


def test_a_program_that_gave_itself_a_name(callers: Callers) -> None:
    """As Claude Code does: an interpreter that is not called so is no interpreter."""
    words = ("bash", "-c", 'exec -a /opt/bin/claude "$0" "$@"', sys.executable, callers.script("agent.py"), "PORT")
    process, port = callers.start(*words)
    said = here(port)
    assert said is not None and (said.program, said.pid) == ("claude", process.pid)


# --- what cannot be known


def test_a_process_that_has_ended(callers: Callers) -> None:
    """Nothing is said, and nobody else is taken for it."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    callers.end(process)
    assert here(port) is None
    assert here(0) is here(1) is None


def test_a_process_that_was_seen_and_has_ended(callers: Callers) -> None:
    """A call that is told a moment later is still its call; later its port may be anybody's."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    seen = Projects(os.getpid())
    assert seen.client(port, time.time_ns()) is not None
    callers.end(process)
    said = seen.client(port, time.time_ns())
    assert said is not None and said.pid == process.pid
    seen._callers[port].looked -= projects.LOOK_AGAIN
    assert seen.client(port, time.time_ns()) is None


def test_a_call_of_long_ago_is_nobodys(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper was behind: who has the port now need not be who had it then."""
    monkeypatch.setattr(projects, "_CLOCK", 1e9)  # not because the process is younger than the call
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    assert Projects(os.getpid()).client(port, time.time_ns() - 60 * 10**9) is None


def test_a_process_that_began_after_the_call_did_not_make_it(callers: Callers) -> None:
    """The port has changed hands."""
    before = time.time_ns() - 5 * 10**9
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    assert here(port) is not None
    assert Projects(os.getpid()).client(port, before) is None


def test_only_connections_to_the_proxy_count(callers: Callers) -> None:
    """Another connection of this machine may have the same port."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    assert Projects(process.pid).client(port, time.time_ns()) is None


def test_another_users_process_is_not_told_of(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the system lets us look."""
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert here(port) is None


@pytest.mark.parametrize("refusal", [psutil.AccessDenied(), psutil.NoSuchProcess(1), PermissionError(13, "no")])
def test_a_system_that_tells_nothing(callers: Callers, monkeypatch: pytest.MonkeyPatch, refusal: Exception) -> None:
    """No permission, a process that goes while it is looked at: nothing is said, nothing is raised."""
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")

    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(psutil, "Process", refuse)
    assert here(port) is None
    monkeypatch.setattr(psutil, "net_connections", refuse)
    assert here(port) is None


def test_a_process_that_tells_only_its_name(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then that is what is known."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")

    def refuse(one: psutil.Process) -> None:
        raise psutil.AccessDenied

    for name in ("cwd", "cmdline"):
        monkeypatch.setattr(psutil.Process, name, refuse)
    assert here(port) == Client(psutil.Process(process.pid).name(), process.pid)


def test_where_processes_are_asked_one_by_one(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS refuses to tell of all at once."""
    process, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")

    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    said = here(port)
    assert said is not None and said.pid == process.pid


def test_a_folder_that_never_answers_holds_nothing_up(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is gone: it costs one wait, and when it is back all is known."""
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT")
    found, back = Projects(os.getpid()), threading.Event()
    real = projects.repository
    monkeypatch.setattr(projects, "repository", lambda folder: back.wait() and real(folder))
    monkeypatch.setattr(projects, "LOOK_AGAIN", 0.0)
    begun = time.monotonic()
    assert [found.client(port, time.time_ns()) for _ in range(3)] == [None] * 3
    assert time.monotonic() - begun < 3 * projects.PATIENCE
    back.set()
    for thread in found._waiting.values():
        thread.join()
    assert found.client(port, time.time_ns()) is not None


def test_looking_is_dear_and_done_seldom(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look answers for all who are there; then a few in a row, then four a second; a port of nobody's waits."""
    ports = [callers.start(sys.executable, callers.script("agent.py"), "PORT")[1] for _ in range(3)]
    looks = []
    real = psutil.net_connections
    monkeypatch.setattr(psutil, "net_connections", lambda kind: looks.append(kind) or real(kind))
    clock = time.monotonic()
    monkeypatch.setattr(projects.time, "monotonic", lambda: clock)
    found = Projects(os.getpid())
    assert all(found.client(port, time.time_ns()) for port in ports * 50) and len(looks) == 1
    for _ in range(50):
        assert found.client(1, time.time_ns()) is None
    assert len(looks) == 2
    for port in range(2, 50):
        assert found.client(port, time.time_ns()) is None
    assert len(looks) == projects.SCANS_AT_ONCE
    clock += 1.01
    for port in range(50, 100):
        assert found.client(port, time.time_ns()) is None
    assert len(looks) == 2 * projects.SCANS_AT_ONCE


def test_a_branch_that_changes_is_seen(callers: Callers, tree: Path) -> None:
    """A client lives for days; the branch is the one of a moment ago."""
    _, port = callers.start(sys.executable, callers.script("agent.py"), "PORT", cwd=tree / "shop")
    found = Projects(os.getpid())
    first = found.client(port, time.time_ns())
    git(tree / "shop", "switch", "-q", "-c", "next")
    assert found.client(port, time.time_ns()) == first is not None
    found._callers[port].looked -= projects.LOOK_AGAIN
    again = found.client(port, time.time_ns())
    assert again is not None and (again.branch, first.branch) == ("next", "main")


# --- through the proxy and the keeper


async def test_the_journal_has_the_port_of_every_call(rig: Rig) -> None:
    """Of the connection it came over."""
    first, second = rig.client(), rig.client()
    for wire in (first, second, first):
        await wire.send(rig.request(b"{}"))
        await wire.message()
    ports = [one.frames[0].port for one in await rig.exchanges(3)]
    assert ports == [wire.socket.getsockname()[1] for wire in (first, second, first)]


ASK = """
import http.client, json, sys
link = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": sys.argv[3]}]})
link.request("POST", f"/anthropic/127.0.0.1:{sys.argv[2]}/v1/messages", body, {"Content-Type": "application/json"})
assert link.getresponse().read()
print("done", flush=True)
sys.stdin.read()
"""


async def test_sessions_tell_their_projects(daemon: Any, fake: Any, tree: Path) -> None:
    """Real programs in a repository, in its worktree, and in a folder without one."""
    daemon.wait_for_recording()
    git(tree / "shop", "worktree", "add", "-q", "-b", "fix", "../elsewhere")
    (tree / "helper.py").write_text(ASK)
    expected = {
        "shop/src": {"project": "shop", "root": str(tree / "shop"), "branch": "main"},
        "elsewhere": {"project": "shop", "root": str(tree / "shop"), "branch": "fix"},
        "plain": {"project": "plain"},
    }
    running = {}
    for folder in expected:
        words = (sys.executable, str(tree / "helper.py"), str(daemon.port), str(fake.port), f"question of {folder}")
        pipe = asyncio.subprocess.PIPE
        running[folder] = await asyncio.create_subprocess_exec(*words, cwd=tree / folder, stdin=pipe, stdout=pipe)
        assert await running[folder].stdout.readline() == b"done\n"
    entries = daemon.entries(until=lambda entries: sum(entry["type"] == "response" for entry in entries) == 3)
    found = {entry["client"]["cwd"]: entry["client"] for entry in entries if entry["type"] == "session_start"}
    for folder, facts in expected.items():
        process = running[folder]
        cwd = str(tree / folder)
        assert found[cwd] == {"program": "helper", "pid": process.pid, "cwd": cwd} | facts
        await process.communicate(b"")


async def test_the_record_does_not_need_to_know_who_called(daemon: Any, fake: Any, tree: Path) -> None:
    """A program that is gone before the keeper looks: its call is recorded, without a client."""
    daemon.wait_for_recording()
    keeper = psutil.Process(daemon.pid).children()[0]
    keeper.suspend()
    words = (sys.executable, "-c", ASK, str(daemon.port), str(fake.port), "question")
    gone = await asyncio.create_subprocess_exec(*words, cwd=tree, stdin=asyncio.subprocess.DEVNULL)
    assert await gone.wait() == 0
    keeper.resume()
    entries = daemon.entries(until=lambda entries: len(entries) == 3)
    assert [entry["type"] for entry in entries] == ["session_start", "request", "response"]
    assert "client" not in entries[0]
