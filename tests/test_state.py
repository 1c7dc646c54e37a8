"""The state folder's files: written whole, believed only when they are ours and true."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import StateUnusable
from llm_proxy.service import state

INSTANCE = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "state"
    state.prepare(str(path))
    return str(path)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as link:
        yield link


def _port(link):
    return link.getsockname()[1]


def test_a_run_line_comes_back_as_written(folder, listener):
    """What one process states about itself another reads, and it is alive."""
    run = state.this_run(_port(listener), INSTANCE)
    state.write(folder, "run", run.line())
    again = state.read_run(folder)
    assert again is not None and again.line() == run.line()
    assert again.pid == os.getpid() and state.alive(again)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_parser_raise(raw):
    """Whatever stands in the file: a statement in exactly our form, or nothing."""
    run = state.parse_run(raw)
    assert run is None or state.parse_run(run.line().encode()).line() == run.line()


@given(st.integers(0, 5), st.binary(min_size=1, max_size=40))
def test_a_poisoned_field_is_no_statement(position, poison):
    """A field holds digits or hex and nothing that a shell could run."""
    fields = state.Run(8080, 17, 99, "5b1ec66b-a105-4f54-b9cf-72ec200aae18", INSTANCE).line().strip().encode().split()
    fields[position] = poison
    run = state.parse_run(b" ".join(fields))
    if run is not None:
        assert set(run.line()) <= set("0123456789abcdef- \n")
        assert 0 < run.port < 65536 and run.pid > 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"2 8080 1 1 - " + INSTANCE.encode(),
        b"1 0 1 1 - " + INSTANCE.encode(),
        b"1 65536 1 1 - " + INSTANCE.encode(),
        b"1 8080 0 1 - " + INSTANCE.encode(),
        b"1 8080 -1 1 - " + INSTANCE.encode(),
        b"1 8080 1 1 - $(reboot)0000000000",
        b"1 8080 1 1 -  " + INSTANCE.encode(),
        b"1 8080 1 1 - " + INSTANCE.encode() + b"\n\n",
        "1 ٨٠٨٠ 1 1 - ".encode() + INSTANCE.encode(),
        b"1 8080 1 1 - " + INSTANCE.encode() + b" more",
    ],
)
def test_lines_that_state_nothing(line):
    """The form is strict: one deviation and there is no daemon."""
    assert state.parse_run(line) is None


def test_files_that_are_not_ours_alone_count_as_absent(folder, tmp_path):
    """A link, a loose mode, a FIFO, a folder, a large file: somebody else may have put it there."""
    line = "8080"
    state.write(folder, "good", line)
    assert state.read(folder, "good") == b"8080"
    os.symlink(f"{folder}/good", f"{folder}/link")
    os.mkfifo(f"{folder}/fifo", 0o600)
    os.mkdir(f"{folder}/folder")
    state.write(folder, "loose", line)
    os.chmod(f"{folder}/loose", 0o666)
    state.write(folder, "large", "8" * 300)
    for name in ("link", "fifo", "folder", "loose", "large", "absent", "nul\0"):
        assert state.read(folder, name) is None, name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_counts_as_absent(folder):
    """The owner must be us."""
    state.write(folder, "run", "8080")
    os.chown(f"{folder}/run", 65534, 65534)
    assert state.read(folder, "run") is None
    os.chown(folder, 65534, 65534)
    with pytest.raises(StateUnusable, match="belongs to user 65534"):
        state.prepare(folder)


def test_the_folder_and_its_files_are_private(folder):
    """0700 and 0600, also where the folder was open before and the umask would allow more."""
    os.chmod(folder, 0o755)
    before = os.umask(0)
    try:
        state.prepare(folder)
        state.write(folder, "run", "x")
        state.secret(folder)
        os.close(state.lock(folder))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    for name in ("run", "secret", "lock"):
        assert stat.S_IMODE(os.stat(f"{folder}/{name}").st_mode) == 0o600


def test_a_reader_never_sees_half_a_file(folder):
    """A file is replaced in one step: while it is rewritten again and again, every read is whole."""
    code = (
        "import sys; from llm_proxy.service import state\n"
        "while True:\n"
        "    for digit in '12':\n"
        "        state.write(sys.argv[1], 'port', digit * 200)\n"
    )
    state.write(folder, "port", "1" * 200)
    writer = subprocess.Popen([sys.executable, "-c", code, folder])
    try:
        deadline = time.monotonic() + 0.5
        seen = set()
        while time.monotonic() < deadline or len(seen) < 2:
            seen.add(state.read(folder, "port"))
            assert time.monotonic() < deadline + 20
    finally:
        writer.kill()
        writer.wait()
    assert seen == {b"1" * 200, b"2" * 200}


def test_the_secret_is_made_once(folder):
    """256 bits, kept; a damaged one is replaced."""
    first = state.secret(folder)
    assert len(first) == 64 and state.secret(folder) == first
    state.write(folder, "secret", "short")
    assert state.secret(folder) not in (first, "short")


def test_the_lock_dies_with_its_holder(folder):
    """kill -9 frees it: no stale lock can keep the next daemon from starting."""
    code = (
        "import sys; from llm_proxy.service import state\n"
        "assert state.lock(sys.argv[1]) is not None; print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert state.lock(folder) is None
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    held = state.lock(folder)
    assert held is not None
    os.close(held)


def _altered(run, **changes):
    facts = {name: getattr(run, name) for name in ("port", "pid", "ticks", "boot", "instance")} | changes
    return state.Run(**facts)


def test_a_daemon_of_another_life_is_not_alive(listener):
    """Another boot, another start time, another pid, a port it does not hold: each alone is enough."""
    run = state.this_run(_port(listener), INSTANCE)
    assert state.alive(run)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        unused = _port(gone)
    for change in (
        {"boot": "00000000-a105-4f54-b9cf-72ec200aae18"},
        {"boot": "-"},
        {"ticks": run.ticks + 1},
        {"pid": os.getppid()},
        {"pid": 2**30},
        {"port": unused},
    ):
        assert not state.alive(_altered(run, **change)), change


def test_a_port_held_by_another_process_is_not_ours(listener):
    """Our pid and start time with somebody else's listener: the state file lies, whoever wrote it."""
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        port = int(other.stdout.readline())
        assert not state.alive(state.this_run(port, INSTANCE))
    finally:
        other.communicate(b"\n")


def test_a_zombie_is_not_alive():
    """Under a parent that does not reap, a killed daemon keeps its pid and start time for ever."""
    code = (
        "import socket; from llm_proxy.service import state\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        f"print(state.this_run(s.getsockname()[1], '{INSTANCE}').line(), end='', flush=True); input()"
    )
    daemon = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    run = state.parse_run(daemon.stdout.readline())
    assert state.alive(run)
    daemon.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, daemon.pid, os.WEXITED | os.WNOWAIT)
    with open(f"/proc/{daemon.pid}/stat") as file:
        assert " Z " in file.read()
    assert not state.alive(run)
    daemon.communicate()


def test_a_command_name_cannot_forge_the_start_time(tmp_path):
    """The name in /proc/PID/stat may hold spaces and parentheses; fields count from the last one."""
    (tmp_path / "42").mkdir()
    fields = "S 1 42 42 0 -1 4194304 1162 0 2 0 1 1 0 0 20 0 1 0 118024 13418496"
    (tmp_path / "42" / "stat").write_text(f"42 (x) Z 1 2) {fields}\n")
    assert state._process(42, str(tmp_path)) == (b"S", 118024)


class TestWithoutProc:
    """Where there is no /proc (macOS; here simulated), /health must name the instance, in 100 ms."""

    NOWHERE = "/nonexistent"

    @staticmethod
    def _answering(payload):
        code = (
            "import socket, sys\n"
            "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
            "c, _ = s.accept(); c.recv(4096)\n"
            f"c.sendall({payload!r}); sys.stdin.read()"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return process, int(process.stdout.readline())

    def test_our_own_answer_is_believed(self):
        """The instance in the answer is ours, so the daemon is."""
        body = b'HTTP/1.1 200 OK\r\n\r\n{"instance":"%s"}' % INSTANCE.encode()
        process, port = self._answering(body)
        try:
            assert state.alive(state.this_run(port, INSTANCE, self.NOWHERE), self.NOWHERE)
        finally:
            process.communicate()

    def test_a_zombies_port_may_answer_and_it_is_still_dead(self, tmp_path):
        """Where the socket table cannot be read the process's state still counts."""
        body = b'HTTP/1.1 200 OK\r\n\r\n{"instance":"%s"}' % INSTANCE.encode()
        boot = "5b1ec66b-a105-4f54-b9cf-72ec200aae18"
        for letter, expected in (("S", True), ("Z", False), ("X", False)):
            proc = tmp_path / letter
            (proc / "sys/kernel/random").mkdir(parents=True)
            (proc / "sys/kernel/random/boot_id").write_text(boot + "\n")
            (proc / "42").mkdir()
            (proc / "42/stat").write_text(f"42 (p) {letter} 1 42 42 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 777 0\n")
            process, port = self._answering(body)
            try:
                assert state.alive(state.Run(port, 42, 777, boot, INSTANCE), str(proc)) is expected, letter
            finally:
                process.kill()  # where nothing asks it, it waits for ever
                process.communicate()

    def test_another_server_is_not_believed(self):
        """A 200 from somebody else says nothing."""
        process, port = self._answering(b'HTTP/1.1 200 OK\r\n\r\n{"instance":"0000000000000000"}')
        try:
            assert not state.alive(state.this_run(port, INSTANCE, self.NOWHERE), self.NOWHERE)
        finally:
            process.communicate()

    def test_a_silent_server_costs_a_tenth_of_a_second(self, listener):
        """It accepts and says nothing: the wait is bounded in all (the guard is wide)."""
        run = state.this_run(_port(listener), INSTANCE, self.NOWHERE)
        start = time.monotonic()
        assert not state.alive(run, self.NOWHERE)
        assert time.monotonic() - start < 2
