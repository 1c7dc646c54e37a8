"""The daemon's life: one per user, a port that stays, a stop that lets calls end, and nothing that can block it."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llm_proxy.service import state

EVENTS = "words=60"


async def _call(daemon, fake, faults):
    """Open a streaming call through the daemon; (reader, writer) once the answer's first bytes are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    body = b'{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
    head = (
        f"POST /anthropic/127.0.0.1:{fake.port}/v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{daemon.port}\r\n"
        f"Content-Type: application/json\r\nX-Fake: {faults}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    return reader, writer, await asyncio.wait_for(reader.readuntil(b"message_start"), 10)


def _in_thread(function, *arguments):
    return asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def test_foreground_says_how_to_use_it(start, environ):
    """URL, log folder and the lines to paste; it writes no state for others to find."""
    daemon = start("--port", "0")
    daemon.wait_for_line(rf"export ANTHROPIC_BASE_URL='{daemon.url}/anthropic/api.anthropic.com'")
    daemon.wait_for_line(rf"session logs: {daemon.logs}")
    assert daemon.health()["status"] == "ok"
    assert state.read_run(str(daemon.state)) is None and state.read(str(daemon.state), "port") is None
    assert daemon.stop() == 0


def test_two_foregrounds_record_side_by_side(start):
    """Each has a journal of its own."""
    first, second = start("--port", "0"), start("--port", "0")
    first.wait_for_recording()
    second.wait_for_recording()
    assert first.port != second.port


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_both_loops_serve_and_stop(start, loop):
    """Nothing depends on which one it is."""
    daemon = start("--port", "0", env={"LLM_PROXY_LOOP": loop})
    assert daemon.health()["status"] == "ok"
    daemon.signal(signal.SIGINT)
    assert daemon.wait() == 0


def test_service_says_where_it_is_and_leaves_cleanly(start):
    """`run` and `port` after listening, private, gone after a stop; `last_port` stays."""
    daemon = start("--service")
    run = _wait_for_run(daemon)
    assert (run.port, run.pid) == (daemon.port, daemon.pid) and state.alive(run)
    assert state.read(str(daemon.state), "port") == str(daemon.port).encode()
    assert daemon.health()["instance"] == run.instance
    assert daemon.stop() == 0
    assert state.read_run(str(daemon.state)) is None and state.read(str(daemon.state), "port") is None
    assert state.read_port(str(daemon.state), "last_port") == daemon.port


def _wait_for_run(daemon):
    deadline = time.monotonic() + 60
    while (run := state.read_run(str(daemon.state))) is None or run.pid != daemon.pid:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_port_is_the_same_after_a_restart(start, end):
    """Also after kill -9: shells that were open before keep working."""
    first = start("--service")
    port = _wait_for_run(first).port
    getattr(first, end)()
    assert start("--service").port == port


def test_a_taken_port_of_last_time_is_given_up(start):
    """A second of patience, then another port, and a warning that says so."""
    first = start("--service")
    port = _wait_for_run(first).port
    first.stop()
    with socket.create_server(("127.0.0.1", port)):
        second = start("--service")
        assert second.port != port
        second.wait_for_line(rf"cannot listen on 127.0.0.1:{port}: Address already in use; port {second.port} is used")
        assert _wait_for_run(second).port == second.port


def test_an_explicit_port_wins_with_service_too(start, free_port):
    """Whoever set it means it."""
    assert start("--service", env={"LLM_PROXY_PORT": str(free_port)}).port == free_port


@pytest.mark.parametrize("role", [(), ("--service",)])
def test_a_taken_explicit_port_is_an_error(command, role):
    """No other port is taken in its place; exit 1 and a line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
        done = command(*role, "--port", str(port))
    assert done.returncode == 1
    assert f"llm-proxy: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_localhost_reaches_it_on_both_families(start):
    """The same port on 127.0.0.1 and [::1], or a warning."""
    daemon = start("--port", "0")
    assert daemon.health()
    with socket.socket(socket.AF_INET6) as link:
        link.settimeout(5)
        try:
            link.connect(("::1", daemon.port))
        except OSError:
            daemon.wait_for_line(r"cannot listen on \[::1\]")


def test_a_taken_port_on_the_other_family_is_a_warning(start, free_port):
    """[::1] belongs to somebody else: we serve on 127.0.0.1 and say which URL is ours."""
    with socket.socket(socket.AF_INET6) as link:
        link.bind(("::1", free_port))
        link.listen()
        daemon = start("--port", str(free_port))
        daemon.wait_for_line(rf"cannot listen on \[::1\]:{free_port}: .* clients must use http://127.0.0.1:{free_port}")
        assert daemon.health()["status"] == "ok"


def test_the_second_daemon_steps_back(start, command):
    """It names the first one and exits 0."""
    daemon = start("--service")
    _wait_for_run(daemon)
    done = command("--service")
    assert done.returncode == 0
    assert done.stdout == f"llm-proxy: already running, pid {daemon.pid}, port {daemon.port}\n"


def test_twenty_daemons_at_once_are_one(environ):
    """Shells of a tmux session start together: exactly one daemon remains, and `port` is whole at every instant."""
    command = [sys.executable, "-I", "-m", "llm_proxy", "--service"]
    folder = f"{environ['HOME']}/.local/state/llm-proxy"
    many = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(20)
    ]
    try:
        with ThreadPoolExecutor(20) as pool:
            ended = list(pool.map(lambda process: _end(process, folder), many))
        losers = [text for text in ended if text is not None]
        run = state.read_run(folder)
        assert len(losers) == 19
        assert set(losers) == {f"llm-proxy: already running, pid {run.pid}, port {run.port}\n"}
        assert state.read(folder, "port") == str(run.port).encode()
    finally:
        for process in many:
            if process.poll() is None:
                process.terminate()
            process.wait(20)
            process.stdout.close()


def _end(process, folder):
    """What a daemon that stepped back said; None for the one that runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            process.wait(0.1)
            return process.stdout.read()
        except subprocess.TimeoutExpired:
            raw = state.read(folder, "run")
            assert raw is None or state.parse_run(raw)
            if raw is not None and state.parse_run(raw).pid == process.pid:
                return None
    raise AssertionError("neither running nor ended")


async def test_sigterm_lets_a_stream_end(start, fake):
    """No new connections, the open call ends whole, `run` is gone at once, exit 0."""
    daemon = start("--service")
    await _in_thread(_wait_for_run, daemon)
    reader, writer, _ = await _call(daemon, fake, f"slow=20; {EVENTS}")
    daemon.signal(signal.SIGTERM)
    await _in_thread(daemon.wait_for_line, "stopping")
    assert state.read_run(str(daemon.state)) is None
    rest = await asyncio.wait_for(reader.read(), 20)
    assert b"message_stop" in rest and rest.endswith(b"0\r\n\r\n")
    writer.close()
    assert await _in_thread(daemon.wait) == 0
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", daemon.port)


async def test_the_drain_has_a_limit(start, fake):
    """A stream that does not end is cut after the limit: exit 0, and how many were cut."""
    daemon = start("--port", "0", env={"LLM_PROXY_DRAIN_TIMEOUT": "0.3"})
    reader, writer, _ = await _call(daemon, fake, "endless; slow=20")
    assert await _in_thread(daemon.stop) == 0
    daemon.wait_for_line("1 open calls were cut after 0.3 s")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_second_signal_forces(start, fake):
    """The first one waits for the stream; the second does not."""
    daemon = start("--port", "0")
    _, writer, _ = await _call(daemon, fake, "endless; slow=20")
    daemon.signal(signal.SIGINT)
    await _in_thread(daemon.wait_for_line, "stopping")
    begun = time.monotonic()
    daemon.signal(signal.SIGINT)
    assert await _in_thread(daemon.wait) == 0
    assert time.monotonic() - begun < 10  # the limit is 25 s
    daemon.wait_for_line("a second signal: open calls are cut")
    writer.close()


def test_a_restart_waits_for_the_one_that_drains(start):
    """Stop and start at once: the new one takes over lock and port when the old one has gone."""
    first = start("--service")
    port = _wait_for_run(first).port
    first.signal(signal.SIGTERM)
    second = start("--service")
    assert second.port == port and first.wait() == 0


def test_a_pipe_nobody_reads_blocks_nothing(environ):
    """stdout and stderr full and unread: calls are answered, and SIGTERM still ends it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    command = [sys.executable, "-I", "-m", "llm_proxy", "--service"]
    process = subprocess.Popen(command, env=environ, stdout=writing, stderr=writing)
    try:
        folder = f"{environ['HOME']}/.local/state/llm-proxy"
        deadline = time.monotonic() + 60
        while (run := state.read_run(folder)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(50):
            link = http.client.HTTPConnection("127.0.0.1", run.port, timeout=5)
            link.request("GET", "/nowhere")
            assert link.getresponse().status == 404
            link.close()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


def test_a_lost_terminal_and_closed_pipes_end_nothing(start):
    """SIGHUP, and a reader of stderr that has gone."""
    reading, writing = os.pipe()
    daemon = start("--port", "0", env={"LLM_PROXY_LOOP": "asyncio"})
    os.close(reading)
    os.close(writing)
    assert daemon.port
    daemon.signal(signal.SIGHUP)
    assert daemon.health()["status"] == "ok"
    assert daemon.process.poll() is None


def test_a_journal_that_cannot_be_opened_stops_no_traffic(start, environ):
    """Recording is off, loudly; calls are carried; it records again once the folder can be used."""
    folder = f"{environ['HOME']}/.local/state/llm-proxy"
    state.prepare(folder)
    with open(f"{folder}/journal", "w"):
        pass  # a file where the folder should be
    daemon = start("--service", env={"LLM_PROXY_LOOP": "asyncio"})
    daemon.wait_for_line("NOT RECORDING: the journal cannot be opened")
    facts = daemon.health()
    assert facts["status"] == "ok" and facts["recording"] == "stopped"
    os.unlink(f"{folder}/journal")
    daemon.wait_for_line("recording after all")
    daemon.wait_for_recording()


def test_a_state_folder_that_cannot_be_used_stops_no_traffic(start, environ):
    """A file where the folder should be: it serves, and says that nobody will find it."""
    os.makedirs(f"{environ['HOME']}/.local/state")
    with open(f"{environ['HOME']}/.local/state/llm-proxy", "w"):
        pass
    daemon = start("--service")
    daemon.wait_for_line("`--env` and `--status` cannot find it")
    assert daemon.health()["status"] == "ok"


def test_a_killed_keeper_is_started_again(start):
    """Traffic flows meanwhile, and the new one works on the same journal."""
    daemon = start("--port", "0")
    first = _keeper(daemon)
    os.kill(first, signal.SIGKILL)
    daemon.wait_for_line("the keeper was killed by signal 9; traffic flows on, it is started again in 0.2 s")
    assert daemon.health()["status"] == "ok"
    assert _keeper(daemon, other_than=first) != first


def test_the_journal_of_a_killed_pair_is_settled_by_the_next_daemon(start):
    """Daemon and keeper died together (a container, the OOM killer): whoever starts next, in any role, goes on."""
    first = start("--port", "0")
    first.wait_for_recording()  # so that it has the first journal
    second = start("--port", "0")
    second.wait_for_recording()
    keeper = _keeper(second)
    second.signal(signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    second.kill()
    assert first.stop() == 0
    snapshot = second.state / "journal/foreground-2/keeper.json"
    assert json.loads(snapshot.read_text())["state"] != "stopped"
    third = start("--service")
    third.wait_for_line("settling .*/foreground-2, left over")
    deadline = time.monotonic() + 60
    while json.loads(snapshot.read_text())["state"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not any("foreground-1" in line for line in third.lines)


def _keeper(daemon, other_than=0):
    """The pid of the daemon's keeper, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with open(f"/proc/{daemon.pid}/task/{daemon.pid}/children") as file:
            for child in map(int, file.read().split()):
                with open(f"/proc/{child}/cmdline", "rb") as command:
                    if b"llm_proxy.keeper" in command.read() and child != other_than:
                        return child
        time.sleep(0.02)
    raise AssertionError("no keeper")


def test_ctrl_c_in_the_terminal_reaches_only_the_daemon(start):
    """The keeper is in a session of its own: it settles what the drain still brings."""
    daemon = start("--port", "0", start_new_session=True)
    keeper = _keeper(daemon)
    assert os.getsid(keeper) != os.getsid(daemon.pid)
    os.killpg(daemon.pid, signal.SIGINT)
    assert daemon.wait() == 0
    assert not any("keeper was killed" in line or "keeper ended" in line for line in daemon.lines)


def test_systemd_is_told(start, tmp_path):
    """It is given the port to keep; READY=1 once it listens, WATCHDOG=1 from the loop, STOPPING=1 before anything is closed."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        daemon = start("--service", env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"})
        told, kept, _, _ = socket.recv_fds(manager, 100, 4)
        assert told == b"FDSTORE=1\nFDNAME=kept"
        for fd in kept:
            with socket.socket(fileno=fd) as link:
                assert link.getsockname()[1] == daemon.port
        assert kept and manager.recv(100) == b"READY=1"
        assert daemon.health()["status"] == "ok"
        assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        daemon.signal(signal.SIGTERM)
        while (told := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1"
        assert daemon.wait() == 0


def test_the_file_limit_is_raised(start):
    """A soft limit of 256 must not mean 100 connections."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    daemon = start("--port", "0", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)))
    assert daemon.port
    with open(f"/proc/{daemon.pid}/limits") as file:
        line = next(line for line in file if line.startswith("Max open files"))
    assert line.split()[3] == line.split()[4]
