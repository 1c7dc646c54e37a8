"""The failure cases of shells, by number: whatever has happened to the daemon or to the rc files, new shells start clean."""

import os
import signal
import socket
import threading

import pytest

from tests.shellbed import HOOKED, INSTANCE, SHELLS, Home, program, snapshot

WIDE = 5.0  # seconds; the promise is 50 ms, this catches a wait for something
OLD = "http://127.0.0.1:1/anthropic/api.anthropic.com"
MINE = "https://gateway.example"


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
    home._stack.callback(link.close)

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
    home.state.rmdir()


def written(content, mode=0o600):
    """A daemon lives, and the state file holds this; LINE stands for its true statement."""

    def arrange(home):
        home.daemon()
        home.set_run(content.replace(b"LINE", home.run_line().strip().encode()), mode)

    return arrange


def field(**changed):
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
    ("D07-version", field(version="2")),
    ("D07-command-as-port", field(port="$(touch${IFS}pwned)")),
    ("D07-command-as-pid", field(pid="`touch${IFS}pwned`")),
    ("D07-quote-as-port", field(port="1';touch${IFS}pwned;'")),
    ("D07-subscript-as-pid", field(pid="a[$(touch${IFS}pwned)]")),
    ("D07-port-too-large", field(port="65536")),
    ("D07-port-0", field(port="0")),
    ("D07-port-very-large", field(port="9" * 30)),
    ("D07-pid-0", field(pid="0")),
    ("D07-path-as-pid", field(pid="self")),
    ("D07-path-up-as-pid", field(pid="1/../self")),
    ("D07-instance", field(instance='"')),
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
    pytest.param(row.values[1], id=row.values[0], marks=row.marks) if hasattr(row, "marks") else pytest.param(row[1], id=row[0])
    for row in STATES
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("arrange", STATE_ROWS)
def test_a_new_shell(home, arrange, shell):
    """No state of the machine leaves it with a base URL at which nothing of ours listens, nor with a message."""
    home.patch(shell)
    port = arrange(home)
    expected = home.urls(port) if port else {}
    assert _new_shell(home, shell) == expected
    # what it inherits from an older shell (nested, tmux) is renewed, or dropped
    assert _new_shell(home, shell, ANTHROPIC_BASE_URL=OLD) == expected
    assert not list(home.path.rglob("pwned"))
