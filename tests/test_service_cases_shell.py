"""The failure cases of shells, by number: whatever has happened to the daemon or to the rc files, new shells start clean."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from llm_proxy.service import block, receipt, state
from tests.shellbed import ELSEWHERE, HOOKED, INSTANCE, SHELLS, Home, program, snapshot

WIDE = 5.0  # seconds; the promise is 50 ms, this catches a wait for something
OLD = "http://127.0.0.1:1/anthropic/api.anthropic.com"
MINE = "https://gateway.example"
# Every sh that may run the launcher.
SH = [["dash"], ["bash", "--posix"], ["busybox", "sh"], ["ksh"], ["mksh"], ["yash"], ["zsh", "--emulate", "sh"]]


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "ho me'x"
    folder.mkdir()
    made = Home(folder)
    yield made
    made.close()


def _new_shell(home, shell, **environ):
    """A new shell that greeted with nothing, soon; its variables. It must leave with the status it is told."""
    opened = home.shell(shell, **environ)
    assert opened.greeting == ""
    assert opened.took < WIDE
    variables = opened.variables()
    assert opened.exit(3) == 3
    return variables


# --- state and liveness -----------------------------------------------------------------------------------------------


def _fields(home, **changed):
    """Rewrite fields of the state file."""
    names = ("version", "port", "pid", "ticks", "boot", "instance")
    fields = dict(zip(names, home.run_line().split(), strict=True)) | changed
    home.set_run(" ".join(fields[name] for name in names) + "\n")


def alive(home):
    return home.daemon().port


def killed(home):
    daemon = home.daemon()
    daemon.kill()
    daemon.wait()


def rebooted(home):
    home.daemon()
    _fields(home, boot="00000000-0000-4000-8000-000000000000")


def recycled(home):
    home.daemon()
    _fields(home, ticks=str(int(home.run_line().split()[3]) + 1))


def zombie(home):
    daemon = home.daemon()
    daemon.kill()
    os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped


def other_server(home):
    """After a kill -9 another program has the port, and answers 200 to anything."""
    daemon = home.daemon()
    daemon.kill()
    daemon.wait()
    link = socket.create_server(("127.0.0.1", daemon.port))
    home.later(link.close)

    def answer():
        while True:
            try:
                with link.accept()[0] as peer:
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                return

    threading.Thread(target=answer, daemon=True).start()


def stopped(home):
    os.kill(home.daemon().pid, signal.SIGSTOP)


def without_state(home):
    shutil.rmtree(home.state)


def written(content, mode=0o600):
    """A daemon lives, and the state file holds this; LINE stands for its true statement."""

    def arrange(home):
        home.daemon()
        home.set_run(content.replace(b"LINE", home.run_line().strip().encode()), mode)

    return arrange


def fields(**changed):
    def arrange(home):
        home.daemon()
        _fields(home, **changed)

    return arrange


def symlink(home):
    home.daemon()
    (home.state / "run").rename(home.path / "elsewhere")
    (home.state / "run").symlink_to(home.path / "elsewhere")


def fifo(home):
    home.daemon()
    (home.state / "run").unlink()
    os.mkfifo(home.state / "run", 0o600)


def directory(home):
    home.daemon()
    (home.state / "run").unlink()
    (home.state / "run").mkdir()


def foreign(home):
    home.daemon()
    os.chown(home.state / "run", 12345, 12345)


def other_network(home):
    """A container that shares the home and the processes, not the network."""
    home.daemon(prefix=[program("unshare"), "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"])


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange it")

# Each row: the machine's state, by the number of its case. Only `alive` may give a new shell anything.
STATES = [
    ("D00-alive", alive),
    ("D00-never-started", without_state),
    ("D01-killed", killed),
    ("D02-rebooted", rebooted),
    ("D03-pid-recycled", recycled),
    ("D04-zombie", zombie),
    ("D05-port-has-another-server", other_server),
    ("D07-empty", written(b"")),
    ("D07-truncated", written(b"1 80")),
    ("D07-binary", written(bytes(range(256)))),
    ("D07-huge", written(b"1" * 20_000_000)),
    ("D07-huge-after-a-good-line", written(b"LINE\n" + b"x" * 20_000_000)),
    ("D07-two-lines", written(b"LINE\nLINE\n")),
    ("D07-seven-fields", written(b"LINE 7\n")),
    ("D07-version", fields(version="2")),
    ("D07-command-as-port", fields(port="$(touch${IFS}pwned)")),
    ("D07-command-as-pid", fields(pid="`touch${IFS}pwned`")),
    ("D07-quote-as-port", fields(port="1';touch${IFS}pwned;'")),
    ("D07-subscript-as-pid", fields(pid="a[$(touch${IFS}pwned)]")),
    ("D07-port-too-large", fields(port="65536")),
    ("D07-port-0", fields(port="0")),
    ("D07-port-very-large", fields(port="9" * 30)),
    ("D07-pid-0", fields(pid="0")),
    ("D07-path-as-pid", fields(pid="self")),
    ("D07-path-up-as-pid", fields(pid="1/../self")),
    ("D07-instance", fields(instance='"')),
    ("D07-symlink", symlink),
    ("D07-fifo", fifo),
    ("D07-directory", directory),
    ("D07-mode-0666", written(b"LINE\n", 0o666)),
    ("D07-mode-0620", written(b"LINE\n", 0o620)),
    pytest.param("D07-not-ours", foreign, marks=needs_root),
    ("D09-stopped", stopped),
    pytest.param("D11-other-network", other_network, marks=needs_root),
]
STATE_ROWS = [
    pytest.param(row.values[1], id=row.values[0], marks=row.marks)
    if hasattr(row, "marks")
    else pytest.param(row[1], id=row[0])
    for row in STATES
]
# The launcher under each sh is another test's; here a few states show that such a shell takes what it says.
NEW_SHELLS = [
    pytest.param(shell, row.values[0], id=f"{row.id}-{shell}", marks=row.marks)
    for row in STATE_ROWS
    for shell in SHELLS
    if shell in HOOKED or row.id in ("D00-alive", "D00-never-started", "D01-killed", "D07-command-as-port")
]


@pytest.mark.parametrize(("shell", "arrange"), NEW_SHELLS)
def test_a_new_shell(home, arrange, shell):
    """No state of the machine leaves it with a base URL at which nothing of ours listens, nor with a message."""
    home.patch(shell)
    port = arrange(home)
    expected = home.urls(port) if port else {}
    assert _new_shell(home, shell) == expected
    # what it inherits from an older shell (nested, tmux) is renewed, or dropped
    assert _new_shell(home, shell, ANTHROPIC_BASE_URL=OLD) == expected
    assert not list(home.path.rglob("pwned"))


@pytest.mark.parametrize("arrange", STATE_ROWS)
def test_the_launcher_says_what_python_says(home, arrange):
    """In each state, under every sh, byte for byte, without starting it: plain, with each shell's form, and undone."""
    port = arrange(home)
    started = home.path.parent / "python-started"
    (home.path.parent / "installed/bin/python").write_text(f"#!/bin/sh\ntouch {started}\n")
    python = [sys.executable, "-I", "-m", "llm_proxy"]
    environ = {
        "OPENAI_BASE_URL": MINE,
        "OPENAI_API_BASE": "http://localhost:4000/openai/api.openai.com",
        "ANTHROPIC_BASE_URL": OLD,
    }
    for words in (
        ["--env"],
        ["--env", "--shell", "sh"],
        ["--shell=fish", "-env"],
        ["--env", "--shell", "bash"],
        ["--unset", "--env"],
    ):
        expected = _output(home, [*python, *words], environ)
        assert bool(re.search(rb"'http://127.0.0.1:\d", expected)) is bool(port and "--unset" not in words)
        for shell in SH:
            begun = time.monotonic()
            assert _output(home, [*shell, str(home.launcher), *words], environ) == expected, shell
            assert time.monotonic() - begun < WIDE
    assert not list(home.path.rglob("pwned")) and not started.exists()


@pytest.mark.parametrize("shell", SH, ids=lambda words: words[-1].rpartition("/")[2])
def test_the_launcher_leaves_bedrock_to_python(home, shell):
    """`--env --bedrock` is no part of any shell's start, so Python answers: the same bytes, live and dead."""
    daemon = home.daemon()
    python = [sys.executable, "-I", "-m", "llm_proxy"]
    for words in (["--env", "--bedrock"], ["--bedrock", "--env", "--shell", "fish"]):
        expected = _output(home, [*python, *words], {})
        assert f"http://127.0.0.1:{daemon.port}'".encode() in expected
        assert _output(home, [*shell, str(home.launcher), *words], {}) == expected
    home.end(daemon)
    assert _output(home, [*shell, str(home.launcher), "--env", "--bedrock"], {}) == b""


@pytest.mark.parametrize("shell", SH, ids=lambda words: words[-1].rpartition("/")[2])
def test_D29_no_python_is_no_error(home, shell):
    """Where Python is needed and gone (HOME is unset), `--env` says nothing and exits 0."""
    shutil.rmtree(home.path.parent / "installed")
    assert _output(home, [*shell, str(home.launcher), "--env"], {"HOME": ""}) == b""


def _output(home, command, environ):
    """What a command prints. It must exit 0 and keep stderr empty."""
    done = subprocess.run(command, env=home.environ | environ, cwd=home.path, capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


@pytest.mark.parametrize("shell", SH, ids=lambda words: words[-1].rpartition("/")[2])
def test_without_proc(home, shell, tmp_path):
    """macOS, simulated by a launcher that looks for /proc elsewhere: the process exists, and /health knows its public id."""
    simulated = tmp_path / "launcher"
    simulated.write_text(home.launcher.read_text().replace("proc=/proc", "proc=/nonexistent"))
    serve = health(home, INSTANCE)
    command = [*shell, str(simulated), "--env"]
    assert _output(home, command, {}).startswith(b"export ANTHROPIC_BASE_URL='http://127.0.0.1:%d/" % serve.port)
    serve.instance = "0" * 32
    assert _output(home, command, {}) == b""
    serve.silent = True
    begun = time.monotonic()
    assert _output(home, command, {}) == b"" and time.monotonic() - begun < 0.3 + WIDE
    serve.silent, serve.instance = False, INSTANCE
    _fields(home, pid="4194304")  # above pid_max of any Linux
    assert _output(home, command, {}) == b""


def health(home, instance):
    """A thread that answers /health as the daemon `instance`, and a state file that names it and this process."""
    link = socket.create_server(("127.0.0.1", 0))
    home.later(link.close)
    facts = SimpleNamespace(port=link.getsockname()[1], instance=instance, silent=False)
    home.set_run(f"1 {facts.port} {os.getpid()} 0 - {instance}\n")

    def answer():
        while True:
            try:
                peer = link.accept()[0]
            except OSError:
                return
            if facts.silent:
                home.later(peer.close)
                continue
            with peer:
                peer.recv(4096)
                body = b'{"instance": "%s"}' % facts.instance.encode()
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    threading.Thread(target=answer, daemon=True).start()
    return facts


# --- rc files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rc:
    """A home before setup. `status`: 0 edited, 3 not; `left`: files that are otherwise than before after undoing it."""

    arrange: Callable[[Home], object]
    shell: str = "bash"
    status: int = 0
    left: Mapping[str, bytes] = field(default_factory=dict)
    says: str = ""
    starts: bool = True  # whether such a shell can be started at all


def file(name, content, mode=0o644):
    return lambda home: home.write(name, content, mode)


def both(*arrangements):
    return lambda home: [arrange(home) for arrange in arrangements]


def link(name, target):
    def arrange(home):
        (home.path / name).parent.mkdir(parents=True, exist_ok=True)
        (home.path / name).symlink_to(str(target).format(home=home.path))

    return arrange


def hard_link(home):
    home.write("dotfiles/bashrc", "# mine\n")
    os.link(home.path / "dotfiles/bashrc", home.path / ".bashrc")


def read_only_folder(home):
    home.write("dotfiles/bashrc", "# mine\n")
    link(".bashrc", "dotfiles/bashrc")(home)
    (home.path / "dotfiles").chmod(0o555)


def zdotdir(home):
    (home.path / "zsh").mkdir()
    home.write(".zshenv", "ZDOTDIR=$HOME/zsh\n")
    home.write("zsh/.zshrc", "# mine\n")


def config_home(home):
    home.environ["XDG_CONFIG_HOME"] = str(home.path / "conf")
    home.write("conf/fish/config.fish", "# mine\n")


def nothing(home):
    """There is no rc file."""


ours = block.patch(b"", b"old lines\n")
reference = b'\n# LLM Proxy\neval "$(llm-proxy --env)"\n'

RC_ROWS = {
    "D17-read-only-file": Rc(file(".bashrc", "# mine\n", 0o444), status=3, says="it is read-only"),
    "D17-link-into-a-store": Rc(
        both(file("store/bashrc", "# mine\n", 0o444), link(".bashrc", "{home}/store/bashrc")),
        status=3,
        says="it is read-only",
    ),
    "D17-read-only-folder": Rc(read_only_folder),
    "D17-a-folder-in-its-place": Rc(file(".bashrc/x", ""), status=3, says="it is not a plain file", starts=False),
    "D18-symlink": Rc(both(file("dotfiles/bashrc", "# mine\n", 0o640), link(".bashrc", "{home}/dotfiles/bashrc"))),
    "D18-relative-symlink": Rc(both(file("dotfiles/bashrc", "# mine\n"), link(".bashrc", "dotfiles/bashrc"))),
    "D18-dangling-symlink": Rc(link(".bashrc", "gone/bashrc")),
    "D18-chain": Rc(both(file("c/bashrc", "# mine\n"), link("b", "c/bashrc"), link(".bashrc", "{home}/b"))),
    "D18-loop": Rc(both(link("b", ".bashrc"), link(".bashrc", "b")), status=3, says="symbolic links", starts=False),
    "D19-hard-link": Rc(hard_link),
    "D20-no-newline": Rc(file(".bashrc", "# mine")),
    "D20-backslash": Rc(file(".bashrc", "true \\")),
    "D20-backslash-newline": Rc(file(".bashrc", "true \\\n")),
    "D21-crlf": Rc(file(".bashrc", "# mine\r\n# more\r\n")),
    "D21-cr": Rc(file(".bashrc", "# mine\r# more\r")),
    "D21-invalid-utf8": Rc(file(".bashrc", b"# caf\xe9 \xff\xfe\n")),
    "D21-nul": Rc(file(".bashrc", b"# a\0b\n")),
    "D21-empty": Rc(file(".bashrc", "")),
    "D22-old-block-moved-up": Rc(file(".bashrc", b"# a\n" + ours + b"# b\n"), left={".bashrc": b"# a\n# b\n"}),
    "D22-two-blocks": Rc(file(".bashrc", ours + b"# a\n" + ours), left={".bashrc": b"# a\n"}),
    "D22-edited": Rc(
        file(".bashrc", b"# a\n" + ours.replace(b"old lines\n", b"old lines\n# my own idea\n") + b"# b"),
        left={".bashrc": b"# a\n# b"},
    ),
    "D22-reference-block": Rc(file(".bashrc", b"# a\n" + reference + b"# b\n"), left={".bashrc": b"# a\n# b\n"}),
    "D22-half-a-block": Rc(
        file(".bashrc", b"# a\n" + block.BEGIN + b"\n# b\n"),
        status=3,
        says="line 2 begins a block of ours that does not end",
    ),
    "D22-the-other-half": Rc(
        file(".bashrc", block.END + b"\n# b\n"), status=3, says="line 1 ends a block of ours that has not begun"
    ),
    "D24-zdotdir": Rc(zdotdir, "zsh"),
    "D24-xdg-config-home": Rc(config_home, "fish"),
    "D24-bash-profile-alone": Rc(both(file(".bashrc", "# mine\n"), file(".bash_profile", "# no other file\n"))),
    "D24-bash-profile-without-bashrc": Rc(file(".bash_profile", "# mine\n")),
    "D24-bash-profile-dangling": Rc(both(link(".bash_profile", "gone"), file(".profile", "# mine"))),
    "D24-profile-alone": Rc(file(".profile", "# mine")),
    "D24-profile-that-does-not-source": Rc(both(file(".bashrc", "# mine\n"), file(".profile", "umask 022\n"))),
    "D24-profile-that-sources": Rc(both(file(".bashrc", "# mine\n"), file(".profile", ". ~/.bashrc"))),
    "D24-bash-profile-that-sources": Rc(both(file(".bashrc", "# mine\n"), file(".bash_profile", ". ~/.bashrc\n"))),
    "D30-none-bash": Rc(nothing),
    "D30-none-zsh": Rc(nothing, "zsh"),
    "D30-none-fish": Rc(nothing, "fish", starts=False),
    "D30-none-dash": Rc(nothing, "dash", status=3, says="there is no file of bash, zsh or fish", starts=False),
}


@pytest.mark.parametrize("row", RC_ROWS.values(), ids=RC_ROWS)
def test_rc_files_are_edited_and_restored(home, row):
    """Set up twice, used, undone twice: byte for byte, link for link, what it was; or untouched, with what to do."""
    home.environ["SHELL"] = program(row.shell)
    row.arrange(home)
    if row.status:
        home.write(".profile", ". ~/.bashrc\n")  # as in Debian: it needs no edit of its own
    before = snapshot(home.path)
    inodes = {path: path.stat().st_ino for path in home.path.rglob("*") if path.is_file() and path.stat().st_nlink > 1}
    done = home.command("--setup-shell")
    assert (done.returncode, done.stderr) == (row.status, "")
    assert row.says in done.stdout
    after = snapshot(home.path)
    if row.status:
        assert after == before
        assert 'eval "$(llm-proxy --env --shell' in done.stdout
    else:
        assert after != before and "ok  " in done.stdout
    again = home.command("--setup-shell")
    assert again.returncode == row.status and "ok  " not in again.stdout
    assert snapshot(home.path) == after
    if row.starts:
        daemon = home.daemon()
        opened = home.shell(row.shell, PLAIN.get(row.shell), PS1="PROMPT> ", PROMPT_COMMAND="PS1='PROMPT> '")
        assert opened.greeting == ""
        assert opened.variables() == ({} if row.status else home.urls(daemon.port))
        opened.close()
        home.end(daemon)
        _forget(home, row.shell)
    undone = home.command("--unsetup-shell")
    assert undone.stderr == "" and undone.returncode == (3 if "block" in row.says else 0)
    assert {path: path.stat().st_ino for path in inodes} == inodes
    for name, content in row.left.items():
        before[name] = (*before[name][:2], content)
    assert snapshot(home.path) == before
    assert home.command("--unsetup-shell").stdout == undone.stdout * (row.status == 3)


# Without an rc file there is nobody to set the prompt but the environment.
PLAIN = {
    "zsh": ["zsh", "-d", "-i", "+Z", "-o", "no_prompt_sp", "-o", "no_prompt_cr"],
    "fish": ["fish", "-i", "-C", "function fish_prompt; printf 'PROMPT> '; end; set -g fish_greeting ''"],
}


def _forget(home, shell):
    """What the run of a shell left in the home: its own history and caches, the state file of the process that played."""
    (home.state / "run").unlink()
    (home.path / "said").unlink(missing_ok=True)
    if shell == "fish":
        for name in (".local/share/fish", ".cache"):
            shutil.rmtree(home.path / name, ignore_errors=True)
        (home.path / ".local/share").rmdir()
        for name in (".config/fish/fish_variables", "conf/fish/fish_variables"):
            (home.path / name).unlink(missing_ok=True)
        for folder in ("completions", "functions", "conf.d"):
            for above in (".config/fish", "conf/fish"):
                with contextlib.suppress(OSError):
                    (home.path / above / folder).rmdir()


def test_D23_text_appended_after_the_block_stays(home):
    """Also where the file had no newline at its end."""
    for before in (b"# mine\n", b"# mine"):
        rc = home.write(".bashrc", before)
        home.environ["SHELL"] = program("bash")
        assert home.command("--setup-shell").returncode == 0
        with rc.open("ab") as file:
            file.write(b"export LATER=1\n")
        assert home.command("--unsetup-shell").returncode == 0
        assert rc.read_bytes() == b"# mine\nexport LATER=1\n"


def test_D17_a_failed_write_leaves_the_file(home):
    """A full disk, by a file size limit: the old bytes are there, nothing else is."""
    home.write(".profile", ". ~/.bashrc\n")
    for hard in (False, True):
        rc = home.write(".bashrc", b"# mine\n" * 1000)
        if hard:
            os.link(rc, home.path / "other")
        home.environ["SHELL"] = program("bash")
        before = snapshot(home.path)
        limit = (len(rc.read_bytes()) + 50, resource.RLIM_INFINITY)
        done = subprocess.run(
            [sys.executable, "-I", "-m", "llm_proxy", "--setup-shell"],
            env=home.environ,
            capture_output=True,
            text=True,
            timeout=30,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        assert done.returncode == 3 and "File too large" in done.stdout
        assert snapshot(home.path) == before


def test_a_dry_run_changes_nothing(home):
    """It says what would be done, as JSON too."""
    home.environ["SHELL"] = program("zsh")
    home.write(".bashrc", "# mine\n")
    before = snapshot(home.path)
    done = home.command("--setup-shell", "--dry-run")
    assert (
        done.returncode == 0
        and f"change {home.path}/.bashrc" in done.stdout
        and f"make {home.path}/.zshrc" in done.stdout
    )
    facts = json.loads(home.command("--setup-shell", "--dry-run", "--json").stdout)
    assert {step["outcome"] for step in facts["steps"]} == {"would"}
    assert snapshot(home.path) == before


def test_D24_a_login_shell_gets_it_by_bash_profile(home):
    """bash reads .bash_profile and no .bashrc there, unless the one sources the other."""
    home.environ["SHELL"] = program("bash")
    home.write(".bashrc", "PS1='PROMPT> '\n")
    home.write(".bash_profile", "PS1='PROMPT> '\n")
    assert home.command("--setup-shell").returncode == 0
    port = alive(home)
    opened = home.shell("bash", ["bash", "--noediting", "-l", "-i"])
    assert opened.variables() == home.urls(port)


@pytest.mark.parametrize("profile", ["nothing", ".bash_profile", ".bash_login", ".profile"])
def test_D24_a_login_shell_of_somebody_without_bashrc(home, profile):
    """Over ssh and in macOS' terminals bash is a login shell: the file it reads gets the lines, or .profile is made."""
    home.environ["SHELL"] = program("bash")
    if profile != "nothing":
        home.write(profile, "PS1='PROMPT> '\n")
    before = snapshot(home.path)
    assert home.command("--setup-shell").returncode == 0
    port = alive(home)
    login = ["bash", "--noediting", "-l", "-i"]
    opened = home.shell("bash", login, PROMPT_COMMAND="PS1='PROMPT> '")
    assert opened.greeting == "" and opened.variables() == home.urls(port)
    opened.close()
    _forget(home, "bash")
    assert home.command("--unsetup-shell").returncode == 0
    assert snapshot(home.path) == before


@pytest.mark.parametrize("shell", [*SH, ["bash"]], ids=" ".join)
def test_D24_others_who_read_profile_are_left_alone(home, shell):
    """A desktop's session reads .profile by its own sh: silence, no variable that would outlive the daemon."""
    home.environ["SHELL"] = program("bash")
    home.write(".profile", "LATER=yes\n")
    assert home.command("--setup-shell").returncode == 0
    assert block.BEGIN in (home.path / ".profile").read_bytes()
    alive(home)
    done = _output(home, [*shell, "-c", 'set -eu; . "$HOME/.profile"; echo "$LATER ${ANTHROPIC_BASE_URL-none}"'], {})
    assert done == b"yes none\n"


# --- shells that are open already -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", HOOKED)
def test_D01_D14_an_open_shell_follows_the_daemon(home, shell):
    """After kill -9 and after a clean stop the next prompt drops what was ours, and only that; a new port is taken over."""
    home.patch(shell)
    first = home.daemon()
    opened = home.shell(shell, OPENAI_BASE_URL=MINE)
    mine = {"OPENAI_BASE_URL": MINE}
    assert opened.variables() == home.urls(first.port) | mine
    home.end(first)
    opened.prompt()
    assert opened.variables() == mine
    second = home.daemon()
    opened.prompt()
    assert second.port != first.port and opened.variables() == home.urls(second.port) | mine
    third = home.daemon()  # while the second still lives: the statement decides
    opened.prompt()
    assert opened.variables() == home.urls(third.port) | mine
    (home.state / "run").unlink()
    opened.prompt()
    assert opened.variables() == mine
    assert opened.exit(0) == 0


@pytest.mark.parametrize("shell", HOOKED)
def test_D04_D09_an_open_shell_sees_a_daemon_that_hangs(home, shell):
    """Stopped, it is left at the next prompt; continued, it is used again; a zombie is dead."""
    home.patch(shell)
    daemon = home.daemon()
    opened = home.shell(shell)
    for number, expected in ((signal.SIGSTOP, {}), (signal.SIGCONT, home.urls(daemon.port)), (signal.SIGKILL, {})):
        daemon.send_signal(number)
        _await_state(daemon.pid, {signal.SIGSTOP: "T", signal.SIGCONT: "S", signal.SIGKILL: "Z"}[number])
        opened.prompt()
        assert opened.variables() == expected


def _await_state(pid, letter):
    """A signal to another process takes effect when the kernel gets to it."""
    deadline = time.monotonic() + 60
    while state._process(pid, "/proc")[0].decode() != letter:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("shell", HOOKED)
def test_D14_an_open_shell_outlives_the_program(home, shell):
    """Uninstalled: the prompt drops the variables without the command, and says nothing."""
    home.patch(shell)
    daemon = home.daemon()
    opened = home.shell(shell)
    assert opened.variables() == home.urls(daemon.port)
    home.end(daemon)
    shutil.rmtree(home.state)
    home.launcher.unlink()
    assert "llm" not in opened.do("") and opened.variables() == {}


@pytest.mark.parametrize("shell", HOOKED)
def test_the_hook_can_be_told_to_stop(home, shell):
    """LLM_PROXY_NO_HOOK=1 leaves things as they are; NO_LLM_PROXY=1 and --unset take the variables away, for good."""
    home.patch(shell)
    daemon = home.daemon()
    line = "set -g {} {}" if shell == "fish" else "{}={}"
    opened = home.shell(shell)
    opened.do(line.format("NO_LLM_PROXY", "1"))
    opened.prompt()
    assert opened.variables() == {}
    opened.do(line.format("NO_LLM_PROXY", "''"))
    opened.prompt()
    assert opened.variables() == home.urls(daemon.port)
    unset = f"llm-proxy --env --unset --shell {shell}"
    opened.do(f"{unset} | source" if shell == "fish" else f'eval "$({unset})"')
    opened.prompt()
    assert opened.variables() == {}
    again = home.shell(shell)
    again.do(line.format("LLM_PROXY_NO_HOOK", "1"))
    home.end(daemon)
    again.prompt()
    assert again.variables() == home.urls(daemon.port)
    assert "_llm_proxy" not in home.command("--env", "--shell", shell, LLM_PROXY_NO_HOOK="1").stdout


@pytest.mark.parametrize("shell", HOOKED)
def test_the_hook_starts_no_process(home, shell):
    """At a prompt where nothing has changed: strace sees no fork and no exec in the shell."""
    home.patch(shell)
    home.daemon()
    trace = home.path.parent / "trace"
    opened = home.shell(
        shell, [program("strace"), "-f", "-qq", "-e", "trace=process", "-o", str(trace), *SHELLS[shell]]
    )
    opened.do("echo be''gin >/dev/null")
    before = len(_forks(trace))
    for _ in range(5):
        opened.prompt()
    assert before and _forks(trace)[before:] == []


def _forks(trace):
    """Processes of the shell itself; not threads, nor what fish's own first start has left running."""
    text = trace.read_text()
    shell = text.partition(" ")[0]
    return re.findall(rf"^{shell} +(?:v?fork|clone3?|execve)\((?!.*CLONE_THREAD).*", text, re.MULTILINE)


# --- what the user's own rc file does to us ---------------------------------------------------------------------------

PRELUDES = {
    "D25-set-e": ("bash zsh", "set -e\n"),
    "D25-set-u": ("bash zsh", "set -u\n"),
    "D25-set-e-u-pipefail": ("bash zsh", "set -eu -o pipefail\n"),
    "D25-noclobber": ("bash zsh", "set -o noclobber\n"),
    "D25-ifs-digits": ("bash zsh", "IFS=0123456789\n"),
    "D25-ifs-slash": ("bash zsh", "IFS=':/.'\n"),
    "D25-ifs-empty": ("bash zsh", "IFS=\n"),
    "D25-aliases": (
        "bash zsh",
        "".join(
            f"alias {word}='echo ALIASED'\n"
            for word in ("eval", "command", "read", "return", "printf", "set", "kill", "local", "shopt")
        ),
    ),
    "D25-zsh-options": (
        "zsh",
        "setopt ksh_arrays sh_word_split glob_subst null_glob warn_create_global extended_glob\n",
    ),
    "D25-zsh-emulates-sh": ("zsh", "emulate sh\n"),
    "D25-posix": ("bash", "set -o posix\n"),
    "D25-nullglob-failglob": ("bash", "shopt -s failglob extglob\n"),
    "D25-noglob": ("bash zsh", "set -f\n"),
    "D25-path-unset-home-in-it": ("bash zsh fish", "PATH=/usr/bin:/bin\n"),
    "D27-string": ("bash", "PROMPT_COMMAND='true; '\n"),
    "D27-array": ("bash", "PROMPT_COMMAND=('true' 'true')\n"),
    "D27-array-without-first": ("bash", "PROMPT_COMMAND=([1]='true')\n"),
    "D27-readonly-precmd": ("zsh", "precmd() { true }; precmd_functions=(precmd)\n"),
}
PRELUDE_ROWS = [
    pytest.param(shell, text, id=f"{name}-{shell}")
    for name, (names, text) in PRELUDES.items()
    for shell in names.split()
]


@pytest.mark.parametrize(("shell", "text"), PRELUDE_ROWS)
def test_what_the_rc_file_has_set_does_not_matter(home, shell, text):
    """Options, aliases, IFS, prompt commands: URLs at the start, silence, and the hook does its work."""
    home.patch(shell, before="set -gx PATH /usr/bin /bin\n" if shell == "fish" and "PATH" in text else text)
    daemon = home.daemon()
    opened = home.shell(shell)
    assert opened.greeting == ""
    assert opened.variables() == home.urls(daemon.port)
    home.end(daemon)
    shown = opened.do("")
    assert "llm_proxy" not in shown and "ALIASED" not in shown
    assert opened.variables() == {}
    if shell != "fish":
        opened.do("false && true")  # no failure to `set -e`, and $? is 1
    daemon = home.daemon()
    shown = opened.do("")
    assert "llm_proxy" not in shown and "ALIASED" not in shown
    assert opened.variables() == home.urls(daemon.port)
    assert opened.exit(0) == 0


def test_D25_a_restricted_shell(home):
    """bash -r allows no redirection of output: the URLs are there, the hook is not, nothing complains."""
    home.patch("bash")
    daemon = home.daemon()
    opened = home.shell("bash", [*SHELLS["bash"], "-r"])
    assert opened.greeting == ""
    assert opened.do("echo $ANTHROPIC_BASE_URL $PROMPT_COMMAND").strip().startswith(f"http://127.0.0.1:{daemon.port}/")


def test_D27_a_readonly_prompt_command(home):
    """It cannot be extended: the shell starts clean, without the hook."""
    home.patch("bash", before="readonly PROMPT_COMMAND='true'\n", after="LATER=yes\n")
    daemon = home.daemon()
    opened = home.shell("bash")
    assert opened.greeting == "" and opened.variables() == home.urls(daemon.port)
    assert "yes" in opened.do("echo $LATER")


@pytest.mark.parametrize("shell", HOOKED)
def test_D27_status_and_last_argument_are_kept(home, shell):
    """What the user's prompt and next line see of the last command is what it left."""
    home.patch(shell, before="PROMPT_COMMAND='SEEN=$? LAST=$_'\n" if shell == "bash" else "")
    home.daemon()
    opened = home.shell(shell)
    status, last = ("$status", "") if shell == "fish" else ("$?", " $_")
    opened._pty.sendline("sh -c 'exit 7'")
    assert "st=7." in opened.do(f"echo st={status}.")
    if last:
        opened._pty.sendline("echo one two")
        assert "last=two." in opened.do("echo last=$_.")
    if shell == "bash":
        opened._pty.sendline("(exit 9)")
        assert "seen=9." in opened.do("echo seen=$SEEN.")
        opened._pty.sendline("echo one two")
        assert "last=two." in opened.do("echo last=$LAST.")


@pytest.mark.parametrize("shell", HOOKED)
def test_D15_the_users_own_value_stays(home, shell):
    """Set in the rc file before our block, or by the terminal: never ours, alive or dead."""
    home.patch(
        shell, before=f"{'set -gx ANTHROPIC_BASE_URL ' if shell == 'fish' else 'export ANTHROPIC_BASE_URL='}{MINE}\n"
    )
    mine = {"ANTHROPIC_BASE_URL": MINE}
    # fish reads conf.d before config.fish: there the user's line simply comes later
    assert _new_shell(home, shell, OPENAI_API_BASE=MINE) == mine | {"OPENAI_API_BASE": MINE}
    port = alive(home)
    assert _new_shell(home, shell, OPENAI_API_BASE=MINE) == home.urls(port) | mine | {"OPENAI_API_BASE": MINE}


def test_D16_shells_within_shells(home):
    """Nested, and started by a server that keeps an old environment as tmux does: each new one sees what is true now."""
    for shell in HOOKED:
        home.patch(shell)
    first = home.daemon()
    opened = home.shell("bash")
    inherited = home.urls(first.port)
    assert opened.variables() == inherited
    home.end(first)
    assert _new_shell(home, "zsh", **inherited) == {}
    opened.do("zsh -d -i")
    assert opened.variables() == {}
    second = home.daemon()
    opened.do("fish -i")
    assert opened.variables() == home.urls(second.port)
    for shell in HOOKED:
        assert _new_shell(home, shell, **inherited) == home.urls(second.port)
    (home.state / "run").unlink()
    opened.do("exit")
    opened.do("exit")  # the outermost has had both ports and neither is good
    assert opened.variables() == {}


def test_D16_another_shell_takes_over(home):
    """`exec zsh` from bash, after the daemon's port has changed."""
    home.patch("bash")
    home.patch("zsh")
    first = home.daemon()
    opened = home.shell("bash")
    assert opened.variables() == home.urls(first.port)
    second = home.daemon()
    opened.do("exec zsh -d -i")
    assert opened.variables() == home.urls(second.port)


@pytest.mark.parametrize("state", ["alive", "dead"])
@pytest.mark.parametrize(
    "command",
    [
        ["bash", "-ic", "true"],
        ["bash", "-lc", "true"],
        ["bash", "-c", ". ~/.bashrc"],
        ["zsh", "-d", "-ic", "true"],
        ["zsh", "-dc", ". ~/.zshrc"],
        ["fish", "-c", "true"],
        ["fish", "-lc", "true"],
    ],
    ids=" ".join,
)
def test_D26_rc_files_stay_silent(home, command, state):
    """scp, rsync and sftp break on any output of an rc file."""
    home.rc("bash")
    home.rc("zsh")
    home.rc("fish")
    home.environ["SHELL"] = program("bash")
    assert home.command("--setup-shell").returncode == 0
    if state == "alive":
        home.daemon()
    done = subprocess.run(
        command, env=home.environ, cwd=home.path, capture_output=True, timeout=30, start_new_session=True
    )
    shown = re.sub(rb"bash: (cannot set terminal process group|no job control).*\n", b"", done.stderr)
    assert (done.returncode, done.stdout, shown) == (0, b"", b"")


def test_D28_a_login_shell_whose_path_comes_later(home):
    """Debian's .profile reads .bashrc before it adds ~/.local/bin to PATH."""
    home.environ["PATH"] = ELSEWHERE
    home.rc("bash")
    home.write(".profile", '. "$HOME/.bashrc"\nPATH="$HOME/.local/bin:$PATH"\n')
    home.environ["SHELL"] = program("bash")
    assert home.command("--setup-shell").returncode == 0
    port = alive(home)
    opened = home.shell("bash", ["bash", "--noediting", "-l", "-i"])
    assert opened.greeting == "" and opened.variables() == home.urls(port)


@pytest.mark.parametrize("shell", HOOKED)
@pytest.mark.parametrize("left", ["nothing", "launcher", "broken"])
def test_D29_the_program_is_gone_and_the_block_is_left(home, shell, left):
    """No message, no delay: the command is gone, or what it needs is, or it is no program any more."""
    handler = {
        "bash": "command_not_found_handle",
        "zsh": "command_not_found_handler",
        "fish": "fish_command_not_found",
    }[shell]
    home.patch(
        shell,
        before=f"function {handler}; touch ~/asked; end\n"
        if shell == "fish"
        else f"{handler}() {{ touch ~/asked; }}\n",
    )
    alive(home)
    if left == "nothing":
        home.launcher.unlink()
    elif left == "launcher":
        shutil.rmtree(home.path.parent / "installed")
    else:
        home.launcher.write_bytes(b"\x7fELF\0\0garbage")
    opened = home.shell(shell)
    assert opened.greeting == "" and opened.took < WIDE
    assert left == "launcher" or opened.variables() == {}
    assert not (home.path / "asked").exists()  # distributions search for a package there, which takes its time


def test_D30_fish_without_a_file(home):
    """Its own file is made, works, and goes again with the folders made for it."""
    home.environ["SHELL"] = program("fish")
    assert home.command("--setup-shell").returncode == 0
    port = alive(home)
    opened = home.shell("fish", PLAIN["fish"])
    assert opened.greeting == "" and opened.variables() == home.urls(port)


# --- run, and a daemon that new shells start --------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["launcher", "python"])
class TestRun:
    """`llm-proxy run -- COMMAND`: the variables for one command, which replaces us."""

    @pytest.fixture
    def run(self, home, by):
        start = [str(home.launcher)] if by == "launcher" else [sys.executable, "-I", "-m", "llm_proxy"]

        def begin(*words, **options):
            options = {"capture_output": True, "text": True, "timeout": 30} | options
            return subprocess.run([*start, "run", *words], env=home.environ | options.pop("environ", {}), **options)

        return begin

    def test_it_points_one_command_at_the_daemon(self, home, run):
        """What is exported otherwise stays as it is, the launcher's own names included; our flags are the command's."""
        port = alive(home)
        own = {"OPENAI_API_BASE": MINE, "port": "3000", "line": "x", "state": "y"}
        done = run("--", "env", environ=own)
        found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        assert home.urls(port) | own == {
            name: value for name, value in found.items() if name in (*own, *home.urls(port))
        }
        assert run("printf", "%s ", "--env", "--shell", "a b").stdout == "--env --shell a b "

    def test_it_goes_directly_when_nothing_serves(self, home, run):
        """What an older shell left is taken away; the user's own stays."""
        killed(home)
        done = run("--", "env", environ={"ANTHROPIC_BASE_URL": OLD, "OPENAI_BASE_URL": MINE})
        assert [line for line in done.stdout.splitlines() if "_BASE" in line] == [f"OPENAI_BASE_URL={MINE}"]
        alive(home)
        assert "_BASE" not in run("--", "env", environ={"NO_LLM_PROXY": "1"}).stdout

    def test_status_and_signals_are_the_commands(self, run):
        """Exit status, death by a signal, SIGPIPE as usual; 127 and 126 as shells say."""
        assert run("--", "sh", "-c", "exit 42").returncode == 42
        assert run("sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
        assert run("--", "sh", "-c", "kill -PIPE $$; exit 0").returncode == -signal.SIGPIPE
        assert run("--", "no-such-command").returncode == 127
        assert run("--", "/etc/passwd").returncode == 126

    def test_without_a_command_it_is_wrong_usage(self, run):
        """Exit 2, one line."""
        for words in ((), ("--",), ("--port", "1")):
            done = run(*words)
            assert done.returncode == 2 and done.stderr.startswith("llm-proxy: run takes a command")


@pytest.mark.parametrize("by", ["launcher", "python"])
def test_a_new_shell_starts_the_daemon(home, by):
    """Where setup found no service manager: ten shells at once start one daemon, none waits, the next prompt has it."""
    home.patch("bash")
    if by == "python":
        home.write(".local/bin/llm-proxy", f'#!/bin/sh\nexec {sys.executable} -I -m llm_proxy "$@"\n', 0o755)
    receipt.Receipt(str(home.state), autostart="shell").save()
    opened = home.shell("bash")
    assert opened.greeting == "" and opened.took < WIDE and opened.variables() == {}
    command = [str(home.launcher), "--env", "--shell", "bash"]
    others = [subprocess.Popen(command, env=home.environ, stdout=subprocess.PIPE) for _ in range(10)]
    for other in others:
        assert b"_llm_proxy_prompt" in other.communicate(timeout=WIDE)[0]  # no daemon holds on to the pipe
    deadline = time.monotonic() + 60
    while (run := state.read_run(str(home.state))) is None or not state.serving(run):
        assert time.monotonic() < deadline, (home.state / "autostart.log").read_text()
        time.sleep(0.02)
    try:
        opened.prompt()
        assert opened.variables() == home.urls(run.port)
        assert os.getsid(run.pid) != os.getsid(opened._pty.pid)
        daemons = [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_daemon(pid, home)]
        assert daemons == [str(run.pid)]
        assert all(path.stat().st_mode & 0o077 == 0 for path in home.state.glob("autostart.*"))
    finally:
        os.kill(run.pid, signal.SIGTERM)
        while state.alive(run):
            time.sleep(0.02)


def _is_daemon(pid, home):
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as words:
            return f"HOME={home.path}\0".encode() in environ.read() and b"\0--service\0" in words.read()
    except OSError:
        return False
