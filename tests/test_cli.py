"""The command line: pages a person can read, and exit statuses a script can rely on."""

import json
import os
import signal
import subprocess
import sys

import pytest

from llm_proxy import __version__
from llm_proxy.service import status


def test_version_and_help(command):
    """Both answer on stdout and exit 0, in the reference's one-dash form too."""
    assert command("--version").stdout == f"llm-proxy {__version__}\n"
    for flag in ("--help", "-h", "-help"):
        done = command(flag)
        assert done.returncode == 0 and "--setup" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("arguments", [["--prot", "1"], ["serve"], ["--json"], ["--port"], ["--stat"]])
def test_wrong_usage_exits_2(command, arguments):
    """One line on stderr that says what, and nothing was started."""
    done = command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("llm-proxy: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("mode", [[], ["--service"], ["--status"]])
def test_a_wrong_setting_exits_78(command, mode):
    """In every mode that reads settings: systemd takes it as no reason to try again."""
    done = command(*mode, "--port", "70000")
    assert done.returncode == 78 and done.stdout == ""
    assert done.stderr == "llm-proxy: --port: port must be a whole number from 0 to 65535, got '70000'\n"
    done = command(*mode, "--config", "/nonexistent/config.toml")
    assert (done.returncode, done.stderr) == (78, "llm-proxy: --config: there is no file /nonexistent/config.toml\n")


def test_a_reader_who_has_seen_enough_is_no_error(environ):
    """`llm-proxy --help | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-I", "-m", "llm_proxy", "--help"]
    done = subprocess.run(command, env=environ, stdout=writing, stderr=subprocess.PIPE, timeout=30)
    os.close(writing)
    assert done.stderr == b""


def test_status_without_a_daemon(command, environ):
    """Exit 1, and why; the same as JSON."""
    done = command("--status")
    assert done.returncode == 1 and "NOT RUNNING (no daemon has said that it runs)" in done.stdout
    facts = json.loads(command("--status", "--json").stdout)
    assert facts["running"] is False and facts["logs"]["folder"] == f"{environ['HOME']}/.llm-provider-logs"


def test_status_of_a_running_daemon(command, start):
    """Exit 0, port, pid, recording, log folder, and how this shell's variables stand to it."""
    daemon = start("--service")
    daemon.wait_for_recording()
    other = {
        "OPENAI_BASE_URL": "https://gateway.example",
        "OPENAI_API_BASE": "http://127.0.0.1:1/openai/api.openai.com/v1",
    }
    ours = {"ANTHROPIC_BASE_URL": f"{daemon.url}/anthropic/api.anthropic.com"}
    done = command("--status", env=other | ours)
    assert done.returncode == 0 and done.stderr == ""
    for words in (
        "RUNNING",
        str(daemon.port),
        f"pid {daemon.pid}",
        "ANTHROPIC_BASE_URL points here",
        "OPENAI_BASE_URL is overridden by you: https://gateway.example",
        "OPENAI_API_BASE points at a port that is not the daemon's",
        "GOOGLE_GEMINI_BASE_URL is not set",
    ):
        assert words in done.stdout
    facts = json.loads(command("--status", "--json").stdout)
    assert (facts["running"], facts["pid"], facts["port"]) == (True, daemon.pid, daemon.port)
    assert facts["recording"] == "ok" and facts["version"] == __version__ and facts["uptime"] < 60
    assert facts["keeper"]["state"] == "ok"


def test_status_of_a_daemon_that_hangs(command, start):
    """It is stopped with SIGSTOP: status says that it does not answer, and does not hang itself."""
    daemon = start("--service")
    assert daemon.port
    daemon.signal(signal.SIGSTOP)
    try:
        done = command("--status")
    finally:
        daemon.signal(signal.SIGCONT)
    assert "does not answer /health within 2 s" in done.stdout


def test_status_after_kill_9(command, start):
    """The state file is left over, and said to be."""
    daemon = start("--service")
    assert daemon.port
    daemon.kill()
    done = command("--status")
    assert done.returncode == 1 and "left over from a daemon that is gone" in done.stdout


def test_the_walk_over_the_logs_is_bounded_and_follows_no_link(tmp_path):
    """A link to / or a loop would never end; a limit of nothing counts nothing and says so."""
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.jsonl").write_bytes(b"x" * 1000)
    (tmp_path / "root").symlink_to("/")
    (tmp_path / "day" / "loop").symlink_to(tmp_path)
    assert status.walk(str(tmp_path)) == status.Logs(str(tmp_path), 1000, 1, counted=True)
    assert not status.walk(str(tmp_path), limit=-1).counted
    assert status.walk(str(tmp_path / "absent")) == status.Logs(str(tmp_path / "absent"), 0, 0, counted=True)


def test_large_logs_are_mentioned(command, environ):
    """Nothing is deleted, so beyond 10 GB a person should know."""
    folder = f"{environ['HOME']}/.llm-provider-logs"
    os.mkdir(folder)
    with open(f"{folder}/big.jsonl", "wb") as file:
        file.truncate(10 * 10**9)
    assert "Warning" not in command("--status").stdout
    with open(f"{folder}/big.jsonl", "ab") as file:
        file.truncate(10 * 10**9 + 1)
    assert "Warning: the logs in" in command("--status").stdout
