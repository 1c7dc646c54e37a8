"""Attached clients: their own configuration leads to the daemon, and is given back byte for byte, whatever happens."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.errors import CannotAttach, StateUnusable, UsageError
from llm_proxy.service import attach, attached, userfile
from llm_proxy.service.clients import CLIENTS, FORMATS, Wish
from tests.fakeprovider import FakeProvider
from tests.test_clients import TEXT, claude_environment, client, run

__all__ = ["client"]

PORT, OTHER = 43210, 54321
BASE = f"http://127.0.0.1:{PORT}"
SECRET = "sk-ant-not-to-be-copied-0000"

# Where each client's file lies in a home, what stood in it before, and what its own parser has to read afterwards.
FILES = {
    "codex": {".codex/config.toml": b'# mine\nmodel = "gpt-5.5"  # the good one\n\n[tui]\r\ntheme = "dark"\n'},
    "claude": {
        ".claude/settings.json": b'{\n\t"env": {"ANTHROPIC_API_KEY": "%s"},\n\t"b": [1, 2.50]}' % SECRET.encode()
    },
    "gemini": {
        ".gemini/.env": b"# keys\nGEMINI_API_KEY=" + SECRET.encode(),
        ".gemini/settings.json": b'{\n  // mine\n  "ui": {"theme": "x"},\n}\n',
    },
    "opencode": {".config/opencode/opencode.json": b'{"provider": {"anthropic": {"options": {"timeout": 5}}}}\n'},
    "aider": {".aider.conf.yml": b"model: sonnet # mine\nset-env:\n    - A=b\nread: [a.md, b.md]\n"},
}


class Home:
    """A home of its own, as the functions below see it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.state = str(folder / ".local/state/llm-proxy")

    def write(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def snapshot(self) -> dict[str, tuple[int, str]]:
        """Every entry outside our state: its mode, and its content or where it leads."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            name = str(path.relative_to(self.path))
            if name.startswith(".local"):
                continue
            facts = path.lstat()
            link = path.is_symlink()
            content = (
                str(path.readlink())
                if link
                else hashlib.sha256(path.read_bytes()).hexdigest()
                if path.is_file()
                else ""
            )
            found[name] = (stat.S_IMODE(facts.st_mode), content)
        return found

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def attach(self, name: str, port: int = PORT, **more: Any) -> attach.Report:
        return attach.attach(self.state, name, Wish(port, {}, more.pop("login", "")), **more)

    def detach(self, *names: str, **more: Any) -> list[attach.Report]:
        reports = attach.detach(self.state, names or None, **more)
        assert not [report.error for report in reports if report.error]
        return reports

    def states(self) -> dict[str, str]:
        return {standing.client: standing.state for standing in attach.standings(self.state)}


@contextlib.contextmanager
def at_home(folder: Path) -> Iterator[Home]:
    """`HOME` for as long as it lasts. (Hypothesis has no use for fixtures that live as long as a test.)"""
    before = os.environ["HOME"]
    os.environ["HOME"] = str(folder)
    try:
        yield Home(folder)
    finally:
        os.environ["HOME"] = before


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where fsync costs nothing, for what is done hundreds of times."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder).resolve()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with at_home(tmp_path) as found:
        yield found


@pytest.mark.parametrize("there", [True, False], ids=["with its file", "with nothing"])
@pytest.mark.parametrize("name", CLIENTS)
def test_attach_and_detach(home: Home, name: str, there: bool) -> None:
    """The base URL stands in the client's own file, nothing else has changed; detach leaves every byte and mode as before."""
    if there:
        home.write(FILES[name])
        for file in FILES[name]:
            (home.path / file).chmod(0o640)
    before = home.snapshot()
    report = home.attach(name)
    assert (report.state, report.port) == ("attached", PORT)
    assert home.states()[name] == "attached"
    for file, original in FILES[name].items():
        data = home.read(file)
        assert stat.S_IMODE((home.path / file).stat().st_mode) == (0o640 if there else 0o600)
        if there:
            kept = [line for line in re.split(rb"[\s{},\[\]]+", original) if line]
            assert [word for word in kept if word not in data] == []
    text = b"".join(home.read(file) for file in FILES[name]).decode()
    assert text.count(BASE) == {"opencode": 2, "aider": 2}.get(name, 1)
    assert home.detach(name)[0].state == "detached"
    assert home.snapshot() == before
    assert home.states()[name] == "detached"
    assert not Path(home.state, attached.JOURNAL).exists()


def test_what_each_client_reads() -> None:
    """The values, as each client's own parser finds them: OpenAI's and the AI SDK's bases end in /v1, the others do not."""
    wanted = {
        "codex": {"openai_base_url": f"{BASE}/openai/api.openai.com/v1"},
        "claude": {"env.ANTHROPIC_BASE_URL": f"{BASE}/anthropic/api.anthropic.com"},
        "gemini": {
            "GOOGLE_GEMINI_BASE_URL": f"{BASE}/gemini/generativelanguage.googleapis.com",
            "security.auth.selectedType": "gemini-api-key",
        },
        "opencode": {
            "provider.anthropic.options.baseURL": f"{BASE}/anthropic/api.anthropic.com/v1",
            "provider.openai.options.baseURL": f"{BASE}/openai/api.openai.com/v1",
        },
        "aider": {
            "set-env.OPENAI_API_BASE": f"{BASE}/openai/api.openai.com/v1",
            "set-env.ANTHROPIC_API_BASE": f"{BASE}/anthropic/api.anthropic.com",
        },
    }
    for name, each in CLIENTS.items():
        plans = each.plans(Wish(PORT, {}))
        assert {".".join(keys): value for plan in plans for keys, value in plan.values} == wanted[name]


def test_attaching_again_changes_nothing(home: Home) -> None:
    """Neither the files nor what detach gives back; another port or login takes the place of the first."""
    home.write(FILES["codex"])
    before = home.snapshot()
    home.attach("codex")
    during = home.snapshot()
    assert [file.done for file in home.attach("codex").files] == ["unchanged"]
    assert home.snapshot() == during
    home.attach("codex", OTHER)
    assert f'openai_base_url = "http://127.0.0.1:{OTHER}/openai'.encode() in home.read(".codex/config.toml")
    home.attach("codex", login="chatgpt")
    home.detach("codex")
    assert home.snapshot() == before
    assert home.detach("codex")[0].state == "detached"


def test_codex_with_a_chatgpt_login(home: Home) -> None:
    """Codex's own file tells how it is logged in; then a provider of its own is used, quiet and without a detour."""
    home.write(FILES["codex"] | {".codex/auth.json": b'{"OPENAI_API_KEY": null, "tokens": {"access_token": "x"}}'})
    before = home.snapshot()
    home.attach("codex")
    facts = tomllib.loads(home.read(".codex/config.toml").decode())
    assert facts["model_provider"] == "llm-proxy" and "openai_base_url" not in facts
    assert facts["model_providers"]["llm-proxy"] == {
        "name": "OpenAI through llm-proxy",
        "base_url": f"{BASE}/backend-api/codex",
        "wire_api": "responses",
        "requires_openai_auth": True,
    }
    home.detach()
    assert home.snapshot() == before


def test_a_folder_named_by_the_environment(home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
    """CODEX_HOME is where Codex looks. When it is moved, the old place is given back."""
    elsewhere = tmp_path_factory.mktemp("codex")
    home.attach("codex")
    attach.attach(home.state, "codex", Wish(PORT, {"CODEX_HOME": str(elsewhere)}))
    assert home.snapshot() == {} and (elsewhere / "config.toml").exists()
    home.detach()
    assert not list(elsewhere.iterdir())


def test_no_copy_of_a_credential_is_made(home: Home) -> None:
    """The files hold keys; the journal holds only the undo of our own edit, for the user's eyes alone."""
    for name, files in FILES.items():
        home.write(files)
        home.attach(name)
    journal = Path(home.state, attached.JOURNAL)
    assert SECRET.encode() not in journal.read_bytes()
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600


# What a file holds, whose it is, and the reason for leaving it alone.
BAD = {
    "invalid TOML": ("codex", b'model = "x\n', "Illegal character"),
    "a duplicate key": ("codex", b"a = 1\na = 2\n", "Cannot overwrite"),
    "another provider": ("codex", b'model_provider = "azure"\n', "model_providers.azure.base_url"),
    "a table in its place": ("codex", b"[openai_base_url]\nx = 1\n", "not a plain value"),
    "not UTF-8": ("codex", b'a = "\xff"\n', "not UTF-8 at byte 5"),
    "invalid JSON": ("claude", b'{"env": {}', "line 1: the end"),
    "comments where none may be": ("claude", b'{\n// x\n"a": 1}', "line 2"),
    "a trailing comma": ("claude", b'{"a": 1,}', "line 1"),
    "an array": ("claude", b"[1]", "is not an object"),
    "an object in its place": ("claude", b'{"env": {"ANTHROPIC_BASE_URL": {}}}', "not a plain value"),
    "env that is text": ("claude", b'{"env": "x"}', "env is not an object"),
    "nested for ever": ("claude", b'{"a":' + b"[" * 100_000, "nested more than"),
    "Google's login": ("gemini", b'{"security": {"auth": {"selectedType": "oauth-personal"}}}', "oauth-personal"),
    "a flow mapping": ("aider", b"{a: 1}\n", "line 1"),
    "a list on its line": ("aider", b"set-env: [A=b]\n", "set-env (line 1)"),
    "an open quote": ("aider", b'a: "x\nset-env: y"\n', "line 1"),
    "too large": ("codex", b"#" * (userfile.LARGEST + 1), "it is not edited"),
}


class TestRefused:
    """What cannot be edited safely is refused with a reason, and nothing is changed."""

    @pytest.mark.parametrize("case", BAD)
    def test_by_what_it_holds(self, home: Home, case: str) -> None:
        """Broken, or written in a way that cannot be edited without guessing."""
        name, data, words = BAD[case]
        home.write({list(FILES[name])[-1]: data})
        before = home.snapshot()
        with pytest.raises(CannotAttach, match=re.escape(words)):
            home.attach(name)
        assert home.snapshot() == before and home.states()[name] == "detached"

    def test_read_only(self, home: Home) -> None:
        """Somebody meant it, root or not."""
        home.write(FILES["codex"])
        (home.path / ".codex/config.toml").chmod(0o444)
        self._refused(home, "read-only")

    def test_hard_links(self, home: Home) -> None:
        """Replacing the file would part them."""
        home.write(FILES["codex"])
        (home.path / "other").hardlink_to(home.path / ".codex/config.toml")
        self._refused(home, "2 hard links")

    def test_a_folder_or_a_pipe_in_its_place(self, home: Home) -> None:
        """Neither is read, and nobody waits for a pipe's writer."""
        (home.path / ".codex/config.toml").mkdir(parents=True)
        self._refused(home, "is not a file")
        (home.path / ".codex/config.toml").rmdir()
        os.mkfifo(home.path / ".codex/config.toml")
        self._refused(home, "is not a file")

    def test_a_pipe_in_place_of_an_attached_file(self, home: Home) -> None:
        """It came afterwards: the list and detach do not wait for its writer either, and say so."""
        home.attach("codex")
        (home.path / ".codex/config.toml").unlink()
        os.mkfifo(home.path / ".codex/config.toml")
        assert home.states()["codex"] == "changed"
        assert "is not a file" in attach.detach(home.state)[0].error

    def test_a_link_out_of_the_home(self, home: Home, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Of the file, or of a folder above it."""
        outside = tmp_path_factory.mktemp("store")
        (outside / "config.toml").write_bytes(b"")
        (home.path / ".codex").mkdir()
        (home.path / ".codex/config.toml").symlink_to(outside / "config.toml")
        self._refused(home, "outside")
        shutil.rmtree(home.path / ".codex")
        (home.path / ".codex").symlink_to(outside)
        self._refused(home, "outside")
        assert (outside / "config.toml").read_bytes() == b""

    def test_a_link_to_itself(self, home: Home) -> None:
        """It leads nowhere."""
        (home.path / ".codex").mkdir()
        (home.path / ".codex/config.toml").symlink_to("config.toml")
        self._refused(home, "is not a file")

    def test_a_file_of_somebody_else(self, home: Home) -> None:
        """It would become ours."""
        if os.geteuid():
            pytest.skip("giving a file away takes root")
        home.write(FILES["codex"])
        os.chown(home.path / ".codex/config.toml", 12345, -1)
        self._refused(home, "belongs to user 12345")

    def _refused(self, home: Home, words: str) -> None:
        special = not (home.path / ".codex/config.toml").is_file()
        before = None if special else home.snapshot()
        with pytest.raises(CannotAttach, match=re.escape(words)):
            home.attach("codex")
        assert special or home.snapshot() == before
        assert not Path(home.state, attached.JOURNAL).exists()

    @pytest.mark.parametrize("name", ["cursor", "llm", "boto3", "nonsense", "../codex"])
    def test_other_clients_by_name(self, home: Home, name: str) -> None:
        """With what to do instead."""
        with pytest.raises(UsageError, match=r"127\.0\.0\.1:PORT|--env|ENDPOINT"):
            home.attach(name)


@pytest.mark.parametrize("target", ["dotfiles/codex.toml", "dangling"])
def test_a_link_within_the_home_is_followed(home: Home, target: str) -> None:
    """The file it leads to is edited, the link stays a link; detach gives both back."""
    if target != "dangling":
        home.write({target: b"a = 1\n"})
    (home.path / ".codex").mkdir()
    (home.path / ".codex/config.toml").symlink_to(f"../{target}")
    before = home.snapshot()
    home.attach("codex")
    assert (home.path / ".codex/config.toml").is_symlink()
    assert BASE.encode() in home.read(target)
    home.detach()
    assert home.snapshot() == before


def test_a_journal_that_cannot_be_read_is_kept(home: Home) -> None:
    """It is needed to undo, so nothing goes on without it, and it is not written over."""
    home.attach("codex")
    journal = Path(home.state, attached.JOURNAL)
    for bad in (b"", b"{}", b'{"version": 9, "attachments": []}', b"\xff", b'{"version": 1, "attachments": [{}]}'):
        journal.write_bytes(bad)
        for act in (lambda: home.attach("claude"), lambda: home.detach(), lambda: attach.follow(home.state, OTHER)):
            with pytest.raises(StateUnusable):
                act()
        assert journal.read_bytes() == bad and attached.listed(home.state) == ()


class TestChangedMeanwhile:
    """A file its owner has changed is restored value by value, and the changes stay."""

    def test_their_changes_stay(self, home: Home) -> None:
        """In every format: what was added is there after detach, our values are not."""
        added = {
            ".codex/config.toml": b"\n[mine]\nx = 1 # kept\n",
            ".gemini/.env": b"\nMINE=1\n",
            ".aider.conf.yml": b"mine: 1 # kept\n",
        }
        for name, files in FILES.items():
            home.write(files)
            home.attach(name)
            for file in files:
                data = home.read(file)
                more = data + added[file] if file in added else data.replace(b"{", b'{"mine": 1, ', 1)
                (home.path / file).write_bytes(more)
            assert home.states()[name] == "attached"
            home.detach(name)
            for file, original in files.items():
                end = b"" if original.endswith(b"\n") else b"\n" if file in added else b""
                expected = original + end + added[file] if file in added else original.replace(b"{", b'{"mine": 1, ', 1)
                assert home.read(file) == expected, file

    def test_a_value_they_have_changed_is_theirs(self, home: Home) -> None:
        """Detach leaves it; the list says that it leads elsewhere."""
        home.write({".codex/config.toml": b'openai_base_url = "https://old.example/v1" # was\n'})
        home.attach("codex")
        (home.path / ".codex/config.toml").write_bytes(b'openai_base_url = "https://new.example/v1" # mine\n')
        assert home.states()["codex"] == "changed"
        attach.follow(home.state, OTHER)
        home.detach()
        assert home.read(".codex/config.toml") == b'openai_base_url = "https://new.example/v1" # mine\n'

    def test_the_value_before_comes_back(self, home: Home) -> None:
        """As it was written, beside their change."""
        home.write({".codex/config.toml": b"openai_base_url = 'https://old.example/v1' # was\n"})
        home.attach("codex")
        (home.path / ".codex/config.toml").write_bytes(home.read(".codex/config.toml") + b"x = 1\n")
        home.detach()
        assert home.read(".codex/config.toml") == b"openai_base_url = 'https://old.example/v1' # was\nx = 1\n"

    def test_a_file_they_have_removed_stays_removed(self, home: Home) -> None:
        """Nothing comes back from us."""
        home.write(FILES["codex"])
        home.attach("codex")
        (home.path / ".codex/config.toml").unlink()
        home.detach()
        assert not (home.path / ".codex/config.toml").exists()

    def test_a_file_they_have_broken_is_named(self, home: Home) -> None:
        """It stays as it is and attached, with the keys to take out by hand; mended, it can be detached."""
        home.attach("claude")
        good = home.read(".claude/settings.json")
        (home.path / ".claude/settings.json").write_bytes(good[:-2])
        (report,) = attach.detach(home.state, ["claude"])
        assert report.state == "failed" and "remove env.ANTHROPIC_BASE_URL by hand" in report.error
        assert home.read(".claude/settings.json") == good[:-2]
        (home.path / ".claude/settings.json").write_bytes(good[:-2] + b" }")
        home.detach()
        assert home.snapshot() == {}


class TestFollow:
    """The daemon's port has changed."""

    def test_every_attached_file_is_rewritten(self, home: Home) -> None:
        """Also one that was changed meanwhile; and detach still gives back what was there before us."""
        for files in FILES.values():
            home.write(files)
        before = home.snapshot()
        for name in FILES:
            home.attach(name)
        (home.path / ".gemini/.env").write_bytes(home.read(".gemini/.env") + b"MINE=1\n")
        assert attached.astray(home.state, OTHER)
        reports = attach.follow(home.state, OTHER)
        assert {report.client: report.error for report in reports} == dict.fromkeys(FILES, "")
        assert attach.follow(home.state, OTHER) == [] and not attached.astray(home.state, OTHER)
        for file in (file for files in FILES.values() for file in files):
            assert BASE.encode() not in home.read(file)
        assert f"127.0.0.1:{OTHER}/gemini/".encode() in home.read(".gemini/.env")
        home.detach()
        assert home.read(".gemini/.env") == FILES["gemini"][".gemini/.env"] + b"\nMINE=1\n"
        home.write({".gemini/.env": FILES["gemini"][".gemini/.env"]})
        assert home.snapshot() == before

    def test_what_cannot_be_rewritten_is_told(self, home: Home) -> None:
        """The others are."""
        home.attach("codex")
        home.attach("claude")
        (home.path / ".codex/config.toml").chmod(0o400)
        errors = {report.client: report.error for report in attach.follow(home.state, OTHER)}
        assert "read-only" in errors["codex"] and errors["claude"] == ""
        (home.path / ".codex/config.toml").chmod(0o600)
        assert [report.client for report in attach.follow(home.state, OTHER)] == ["codex"]

    @pytest.mark.parametrize("how", ["stop", "kill"])
    def test_the_daemon_does_it_at_its_start(
        self, start: Any, command: Any, environ: Any, free_port: int, how: str
    ) -> None:
        """A real daemon, gone and started on another port; `--status` lists the client all the while."""
        home = Path(environ["HOME"])
        first = start("--service")
        assert first.port
        assert command("attach", "codex").returncode == 0
        config = home / ".codex/config.toml"
        assert f":{first.port}/" in config.read_text()
        getattr(first, how)()
        status = command("--status")
        assert f"Warning: codex is attached to port {first.port}, where no daemon of ours listens" in status.stdout
        second = start("--service", "--port", str(free_port))
        second.wait_for_line("codex: its configuration leads to port")
        assert f":{free_port}/" in config.read_text()
        status = command("--status")
        assert f"codex ({config})" in status.stdout and "is attached to port" not in status.stdout
        facts = json.loads(command("--status", "--json").stdout)
        assert facts["attached"] == [
            {"client": "codex", "port": free_port, "finished": True, "files": [str(config)]},
        ]
        assert command("detach", "codex").returncode == 0
        assert not config.parent.exists()


# A process that forks at each line of its input, and is killed at the n-th thing it asks the kernel for.
_VICTIM = """
import os, signal, sys
from llm_proxy.service import attach, clients
COUNTED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "fcntl.flock"}
def hook(event, arguments):
    global left
    if event in COUNTED:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
for line in sys.stdin:
    home, left, act, name = line.split()
    child = os.fork()
    if child == 0:
        os.environ["HOME"] = home
        left = int(left)
        state = home + "/.local/state/llm-proxy"
        sys.addaudithook(hook)
        if act == "attach":
            attach.attach(state, name, clients.Wish(43210, {}))
        elif act == "detach":
            attach.detach(state, [name])
        else:
            attach.follow(state, 54321)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.parametrize("there", [True, False], ids=["with its file", "with nothing"])
@pytest.mark.parametrize("name", ["codex", "gemini"])
@pytest.mark.parametrize("act", ["attach", "detach", "follow"])
def test_kill_9_at_every_step(memory: Path, act: str, name: str, there: bool) -> None:
    """Killed anywhere, each file is whole, as before or as after, and every next command leads to where it should."""
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdin and victim.stdout
        for after in ("detach", "attach", "follow"):
            status, step = -9, 0
            while status == -9:
                step += 1
                folder = memory / f"{after}{step}"
                folder.mkdir()
                with at_home(folder) as home:
                    if there:
                        home.write(FILES[name])
                    before = home.snapshot()
                    contents = {file: {home.read(file) if there else None} for file in FILES[name]}
                    for port in (OTHER, PORT):
                        home.attach(name, port)
                        for file, known in contents.items():
                            known.add(home.read(file))
                    if act == "attach":
                        home.detach()
                    victim.stdin.write(f"{folder} {step} {act} {name}\n")
                    victim.stdin.flush()
                    status = int(victim.stdout.readline())
                    for file, known in contents.items():
                        path = folder / file
                        assert (path.read_bytes() if path.exists() else None) in known
                    assert home.states()[name] in ("attached", "unfinished", "detached")
                    if after == "attach":
                        home.attach(name)
                        assert home.states()[name] == "attached"
                        assert BASE.encode() in b"".join(home.read(file) for file in FILES[name])
                    if after == "follow":
                        attach.follow(home.state, OTHER)
                    home.detach()
                    assert home.snapshot() == before, (after, step)
                shutil.rmtree(folder)
            assert status == 0 and step > 5


def test_many_at_once(start: Any, environ: Any) -> None:
    """Ten commands at a time take turns: none is lost, and the files end as one after another would leave them."""
    home = Path(environ["HOME"])
    assert start("--service").port
    for files in FILES.values():
        Home(home).write(files)
    before = Home(home).snapshot()

    def all_of(verb: str, names: list[str]) -> None:
        begun = [
            subprocess.Popen([sys.executable, "-I", "-m", "llm_proxy", verb, name], env=environ, stdout=subprocess.PIPE)
            for name in names
        ]
        for process in begun:
            process.communicate(timeout=60)
            assert process.returncode == 0

    all_of("attach", [*CLIENTS, *CLIENTS])
    assert {entry.client for entry in attached.listed(str(home / ".local/state/llm-proxy"))} == set(CLIENTS)
    all_of("detach", [*CLIENTS, *CLIENTS])
    assert Home(home).snapshot() == before


class TestCommand:
    """`llm-proxy attach`, `detach`."""

    def test_without_a_daemon(self, command: Any, environ: Any) -> None:
        """A client would be pointed at nothing: refused. Listing and detaching need no daemon."""
        done = command("attach", "codex")
        assert done.returncode == 1 and "no daemon runs" in done.stderr
        assert not (Path(environ["HOME"]) / ".codex").exists()
        assert command("detach", "--all").returncode == 0
        done = command("attach")
        assert done.returncode == 0
        assert [line.split(maxsplit=1) for line in done.stdout.splitlines()] == [[n, "not attached"] for n in CLIENTS]

    def test_dry_run_writes_nothing(self, command: Any, start: Any, environ: Any) -> None:
        """It says what would be done, to which file."""
        home = Home(Path(environ["HOME"]))
        assert start("--service").port
        done = command("attach", *CLIENTS, "--dry-run")
        assert done.returncode == 0 and done.stderr == ""
        assert f"would create {home.path}/.codex/config.toml: openai_base_url" in done.stdout
        assert home.snapshot() == {} and not list(Path(home.state).glob("*attached*"))
        assert command("attach", "codex").returncode == 0
        during = home.snapshot()
        done = command("detach", "--all", "--dry-run")
        assert f"would remove {home.path}/.codex/config.toml" in done.stdout and home.snapshot() == during

    def test_json(self, command: Any, start: Any, environ: Any) -> None:
        """The same facts for programs."""
        port = start("--service").port
        path = f"{environ['HOME']}/.claude/settings.json"
        facts = json.loads(command("attach", "claude-code", "--json").stdout)
        (entry,) = facts["clients"]
        assert (entry["client"], entry["state"], entry["port"], entry["error"]) == ("claude", "attached", port, "")
        assert entry["files"] == [{"path": path, "done": "created", "keys": ["env.ANTHROPIC_BASE_URL"]}]
        facts = json.loads(command("attach", "--json").stdout)
        assert {"client": "claude", "state": "attached", "port": port, "files": [path]} in facts["clients"]
        facts = json.loads(command("detach", "--all", "--json").stdout)
        assert [(c["client"], c["state"]) for c in facts["clients"]] == [("claude", "detached")]

    def test_one_that_fails_does_not_stop_the_others(self, command: Any, start: Any, environ: Any) -> None:
        """Exit 1, its reason on stderr, the rest attached."""
        assert start("--service").port
        home = Home(Path(environ["HOME"]))
        home.write({".codex/config.toml": b"=\n"})
        done = command("attach", "codex", "claude")
        assert done.returncode == 1 and "codex: " in done.stderr and "claude: attached" in done.stdout
        assert home.read(".codex/config.toml") == b"=\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            ("attach", "nonsense"),
            ("attach", "claude", "--login", "chatgpt"),
            ("attach", "codex", "--login", "x"),
            ("attach", "--all"),
            ("detach",),
            ("detach", "codex", "--all"),
            ("detach", "cursor"),
        ],
    )
    def test_wrong_usage(self, command: Any, arguments: tuple[str, ...]) -> None:
        """Exit 2 and one line."""
        done = command(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("llm-proxy: ") and done.stderr.count("\n") == 1


# Documents as people write them: keys, comments, blank lines, tables, either line end.
_WORD = st.text("abcdefgxyz", min_size=1, max_size=4)
_TOML_VALUE = st.sampled_from(
    [
        "1",
        "-2.50",
        "true",
        '"x # y"',
        "'''\na\n'''",
        "[1, 2, # c\n 3]",
        "{ k = 1 }",
        "2026-11-01",
        "nan",
        '"""a\\\n b"""',
    ]
)
_GAP = st.sampled_from(["", "", "# a comment\n", "\n", "  # indented\n\n", "\t\n"])
_TOML_LINE = st.builds("{}{}{}={}{}{}\n".format, _GAP, st.sampled_from(["", "  "]), _WORD, st.sampled_from(["", " "]),
                       _TOML_VALUE, st.sampled_from(["", "  # why", " "]))  # fmt: skip
_TOML_TABLE = st.builds(
    lambda gap, name, lines: f"{gap}{name}\n{''.join(lines)}",
    _GAP,
    st.one_of(
        st.builds("[{}]".format, _WORD),
        st.builds("[{}.{}]".format, _WORD, _WORD),
        st.builds("[[{}]]".format, _WORD),
        st.builds("[model_providers.{}]".format, _WORD),
    ),
    st.lists(_TOML_LINE, max_size=3),
)


def _valid_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True


_TOML = st.builds(
    lambda lines, tables, tail, crlf: ("".join([*lines, *tables]) + tail).replace("\n", "\r\n" if crlf else "\n"),
    st.lists(st.one_of(_TOML_LINE, st.just('openai_base_url = "https://x.example" # old\n')), max_size=4),
    st.lists(_TOML_TABLE, max_size=4),
    st.sampled_from(["", "# the end", "\n\n", "z = 1"]),
    st.booleans(),
).filter(_valid_toml)

_NAMES = st.sampled_from(["env", "a", "provider", "anthropic", "options", 'q"\\', "ANTHROPIC_BASE_URL", "é", ""])
_SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)
)
_TREE = st.recursive(
    _SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=3))
)


@st.composite
def _json(draw: Any, comments: bool) -> str:
    """A JSON object in somebody's style."""
    spaces = ["", "", " ", "\n", "\n  ", "\n\t", "\r\n    "]
    space = st.sampled_from([*spaces, " // c\n", '/* {" */'] if comments else spaces)

    def text(node: Any) -> str:
        def between() -> str:
            return str(draw(space))

        if isinstance(node, dict):
            parts = [f"{between()}{json.dumps(k)}{between()}:{between()}{text(v)}{between()}" for k, v in node.items()]
            opening, closing = "{}"
        elif isinstance(node, list):
            parts = [f"{between()}{text(value)}{between()}" for value in node]
            opening, closing = "[]"
        else:
            return json.dumps(node, ensure_ascii=draw(st.booleans()))
        trailing = "," + between() if parts and comments and draw(st.booleans()) else ""
        return opening + (",".join(parts) or between()) + trailing + closing

    tree = draw(st.dictionaries(_NAMES, _TREE, max_size=4))
    return draw(space) + text(tree) + draw(space)


_DOTENV = st.lists(
    st.sampled_from(
        ["A=1", "# c", "", "export B='x y' # c", 'C="two\nlines"', "GOOGLE_GEMINI_BASE_URL=http://x # was", "D"]
    ),
    max_size=5,
).map("\n".join)
_YAML = st.lists(
    st.sampled_from(
        [
            "a: 1",
            "# c",
            "",
            "b:\n  - x\n  - y: z",
            "c: 'q' # c",
            "d: |\n  set-env:\n  text",
            "e: [1, 2]",
            "set-env:\n- A=b\n- ANTHROPIC_API_BASE=http://x # was",
            "set-env:",
            "f: {a: b}",
        ]
    ),
    max_size=4,
    unique_by=lambda part: part[:3],
).map("\n".join)
_DOCUMENTS = {
    "codex": (".codex/config.toml", _TOML),
    "claude": (".claude/settings.json", _json(comments=False)),
    "gemini": (".gemini/.env", _DOTENV),
    "opencode": (".config/opencode/opencode.json", _json(comments=True)),
    "aider": (".aider.conf.yml", _YAML),
}


@pytest.mark.parametrize("name", CLIENTS)
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_detach_after_attach_is_nothing_at_all(memory: Path, name: str, data: Any) -> None:
    """For any document: attached, moved to another port and detached, every byte is back; or it was refused untouched."""
    file, documents = _DOCUMENTS[name]
    mark = data.draw(st.sampled_from(["", "", "\ufeff"])) if name != "codex" else ""
    raw = (mark + data.draw(documents)).encode()
    login = data.draw(st.sampled_from(["api-key", "chatgpt"])) if name == "codex" else ""
    with at_home(memory / "home") as home:
        home.write({file: raw})
        before = home.snapshot()
        try:
            home.attach(name, login=login)
        except CannotAttach:
            assert home.snapshot() == before
        else:
            assert home.states()[name] == "attached"
            attach.follow(home.state, OTHER)
            home.detach()
            assert home.read(file) == raw
            assert home.snapshot() == before
        shutil.rmtree(home.path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=_TOML, values=st.sampled_from([("openai_base_url",), ("model_providers", "llm-proxy", "name"), ("new", "b")])
)
def test_toml_put_and_drop_touch_one_value(text: str, values: tuple[str, ...]) -> None:
    """As the standard library's parser reads it; every comment stays."""
    form = FORMATS["toml"]
    _one_value(form, text, values, lambda source: tomllib.loads(source))


_TOML_CORNERS = [
    'model_providers.x.name = "y"\n',
    'model_providers.x.name = "y"\nmodel_provider = "llm-proxy"\n',
    "model_providers = {}\n",
    'model_providers = {x = {name = "1"}}\nq = 2\n[z]',
    "[model_providers.a]\n[z]\n[model_providers.b]\nq = 1\n",
    "[[model_providers]]\n",
    '[model_providers]\nx.name = "q"\n[z]\n',
    "[model_providers.x.y]\n[model_providers]\nb = 1\n",
    '[ model_providers . "llm-proxy" ] # c\nname = "z"\n',
    '"new" = {b = 1}\n',
    '[model_providers]\nllm-proxy.name = "x"\n',
    "#only",
]


@pytest.mark.parametrize("text", _TOML_CORNERS)
@pytest.mark.parametrize("keys", [("model_providers", "llm-proxy", "name"), ("new", "b")], ids=".".join)
def test_toml_in_every_spelling(text: str, keys: tuple[str, ...]) -> None:
    """Dotted keys, inline tables, tables out of order: edited rightly, or refused."""
    _one_value(FORMATS["toml"], text, keys, tomllib.loads)


def test_the_last_of_equal_names_holds() -> None:
    """In .env files, in JSON and in lists of NAME=value: that one is read, changed and taken out."""
    for form, keys, text in (
        ("dotenv", ("A",), "A=1\nB=2\nexport A='2' # c\n"),
        ("json", ("A",), '{"A": "1", "B": 2, "A": "2"}'),
        ("yaml", ("x", "A"), "x:\n  - A=1\n  - B=2\n  - A=2 # c\n"),
    ):
        format = FORMATS[form]
        found = format.look(text, keys)
        assert found.raw is not None and format.value(found.raw) == "2"
        after = format.put(text, keys, format.raw("3"))
        assert after == text.replace("'2'", "3").replace('"2"', '"3"').replace("A=2", "A=3")
        assert "A=1" in format.drop(after, keys, 9) or '"A": "1"' in format.drop(after, keys, 9)
        assert "3" not in format.drop(after, keys, 9)


@settings(max_examples=200, deadline=None)
@given(text=_YAML.map(lambda text: text + "\n"))
def test_yaml_put_and_drop_touch_one_item(text: str) -> None:
    """As PyYAML reads it: the list has our items, all else is as it was."""
    form, parsed = FORMATS["yaml"], lambda source: yaml.safe_load(source) or {}
    wanted = parsed(text)
    wanted["set-env"] = sorted(
        [item for item in wanted.get("set-env") or [] if not item.startswith("ANTHROPIC")]
        + ["ANTHROPIC_API_BASE=http://y", "OPENAI_API_BASE=http://z"]
    )
    after = form.put(text, ("set-env", "ANTHROPIC_API_BASE"), "http://y")
    after = form.put(after, ("set-env", "OPENAI_API_BASE"), "http://z")
    facts = parsed(after)
    facts["set-env"] = sorted(facts["set-env"])
    assert facts == wanted


@pytest.mark.parametrize("comments", [False, True])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_json_put_and_drop_touch_one_value(comments: bool, data: Any) -> None:
    """As the standard library's parser reads it, with comments and trailing commas taken out for it."""
    text = data.draw(_json(comments))
    keys = data.draw(st.lists(_NAMES, min_size=1, max_size=3).map(tuple))
    _one_value(FORMATS["jsonc" if comments else "json"], text, keys, _lenient)


def _lenient(text: str) -> Any:
    """JSON with comments and trailing commas, by a way of its own."""
    token = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
    plain = token.sub(lambda found: found[1] or " ", text)
    parts = re.split(r'("(?:\\.|[^"\\])*")', plain)
    parts[::2] = [re.sub(r",(\s*)$", r",\1", part) for part in parts[::2]]
    return json.loads("".join(re.sub(r",(\s*[}\]])", r"\1", p) if n % 2 == 0 else p for n, p in enumerate(parts)))


def _one_value(form: Any, text: str, keys: tuple[str, ...], parsed: Any) -> None:
    wanted = parsed(text)
    node = wanted
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
    try:
        found = form.look(text, keys)
        after = form.put(text, keys, form.raw("http://x"))
    except ValueError:
        return
    node[keys[-1]] = "http://x"
    assert _same(parsed(after), wanted)
    assert form.value(form.look(after, keys).raw) == "http://x"
    again = form.drop(after, keys, found.depth) if found.raw is None else form.put(after, keys, found.raw)
    assert _same(parsed(again), parsed(text))
    for comment in re.findall(r"# [a-z ]+|// c|/\* \{\" \*/", text):
        assert again.count(comment) == text.count(comment) == after.count(comment)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True, default=repr) == json.dumps(other, sort_keys=True, default=repr)


def test_uninstall_detaches(start: Any, command: Any, environ: Any) -> None:
    """Its state goes with it, so nothing could be given back afterwards."""
    home = Home(Path(environ["HOME"]))
    for files in FILES.values():
        home.write(files)
    before = home.snapshot()
    assert start("--service").port
    assert command("attach", *CLIENTS).returncode == 0
    assert home.snapshot() != before
    done = command("--uninstall")
    after = home.snapshot()
    assert {name: facts for name, facts in after.items() if name in before} == before, done.stdout + done.stderr
    assert not Path(home.state).exists()


def test_uninstall_keeps_what_it_cannot_detach_without(command: Any, environ: Any) -> None:
    """A journal that cannot be read, or a file that cannot be given back: told, exit 1, and the state stays."""
    home = Home(Path(environ["HOME"]))
    with at_home(home.path):
        home.attach("codex")
    config, journal = home.path / ".codex/config.toml", Path(home.state, attached.JOURNAL)
    config.chmod(0o400)
    done = command("--uninstall")
    assert done.returncode == 1 and "is read-only" in done.stdout + done.stderr and journal.exists()
    config.chmod(0o600)
    good = journal.read_bytes()
    journal.write_bytes(b"{")
    done = command("--uninstall")
    assert done.returncode == 1 and "is needed to detach" in done.stdout + done.stderr and journal.exists()
    journal.write_bytes(good)
    assert command("--uninstall").returncode == 0
    assert home.snapshot() == {} and not Path(home.state).exists()


def _chatgpt_login() -> str:
    """What Codex keeps after a login, with nothing in it that is anybody's."""
    claims = {"exp": 4102444800, "email": "a@b.example", "https://api.openai.com/auth": {"chatgpt_account_id": "acc", "chatgpt_plan_type": "pro"}}  # fmt: skip
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    ]
    jwt = ".".join([*parts, "c2ln"])
    tokens = {"id_token": jwt, "access_token": jwt, "refresh_token": "none", "account_id": "acc"}
    return json.dumps({"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2099-01-01T00:00:00Z"})


@pytest.mark.parametrize("login", ["api-key", "chatgpt"])
async def test_the_real_codex_reads_it(
    client: Any, start: Any, command: Any, environ: Any, fake: FakeProvider, login: str
) -> None:
    """Attached, `codex exec` gets its answer through the daemon, with the fake provider in the place of the real one."""
    program = client("codex")
    daemon = start("--service")
    daemon.wait_for_recording()
    home = Path(environ["HOME"])
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").write_text("# mine\n[tui]\n")
    if login == "chatgpt":
        (home / ".codex/auth.json").write_text(_chatgpt_login())
    done = command("attach", "codex")
    assert done.returncode == 0, done.stderr
    config = home / ".codex/config.toml"
    attached_text = config.read_text()
    assert f"127.0.0.1:{daemon.port}" in attached_text
    here = attached_text.replace("api.openai.com", f"127.0.0.1:{fake.port}").replace(
        f"{daemon.port}/backend-api", f"{daemon.port}/openai/127.0.0.1:{fake.port}/backend-api"
    )
    config.write_text(here)
    keys = {} if login == "chatgpt" else {"CODEX_API_KEY": "sk-dummy-0000000000000000"}
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home / ".codex")} | keys
    out = await run(program, "exec", "--skip-git-repo-check", "hi", env=env, cwd=home)
    assert out.strip().endswith(TEXT)
    path = "/backend-api/codex/responses" if login == "chatgpt" else "/v1/responses"
    assert any(path in seen.raw_head.decode("latin-1") for seen in fake.requests)
    config.write_text(attached_text)
    assert command("detach", "codex").returncode == 0
    assert config.read_text() == "# mine\n[tui]\n"


async def test_the_real_claude_code_reads_it(
    client: Any, start: Any, command: Any, environ: Any, fake: FakeProvider
) -> None:
    """Attached, `claude -p` gets its answer through the daemon with no base URL in its environment."""
    program = client("claude")
    assert start("--service").port
    assert command("attach", "claude").returncode == 0
    home = Path(environ["HOME"])
    config = home / ".claude/settings.json"
    config.write_text(config.read_text().replace("api.anthropic.com", f"127.0.0.1:{fake.port}"))
    env = claude_environment(home, "")
    del env["ANTHROPIC_BASE_URL"]
    assert (await run(program, "-p", "hi", env=env, cwd=home)).strip() == TEXT
    assert len(fake.requests) == 1
