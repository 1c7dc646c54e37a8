"""A gateway of the daemon that runs always: switched on in the configuration, told of by status and doctor, kept by uninstall."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_proxy.service.gateway import MEMORY
from tests.gatewaybed import Gateway


@pytest.fixture
def served(start, environ):
    """A service whose configuration has it."""
    config = Path(environ["HOME"]) / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[gateway]\nenabled = true\n")
    daemon = start("--service", "--port", "0")
    return Gateway(daemon).wait()


def told(command):
    """By `--status`, as text and as JSON, and by doctor: what it finds of the gateway."""
    asked = (("--status",), ("--status", "--json"), ("doctor", "--json"))
    with ThreadPoolExecutor(len(asked)) as pool:  # each waits for a gateway that does not answer
        text, facts, doctor = (done.stdout for done in pool.map(lambda words: command(*words), asked))
    lines = [line for line in text.splitlines() if line.startswith("Gateway:")]
    checks = {check["name"]: check["findings"] for check in json.loads(doctor)["checks"]}
    return lines, json.loads(facts)["gateway"], checks["gateway"]


def gateway_process(daemon):
    """Its pid, by its parent and its name."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == daemon.pid and b"llm_proxy.gateway" in words:
            return int(entry.name)
    raise AssertionError("no process of a gateway")


def test_it_serves_and_status_says_where(served, command):
    """A line and an object where it serves; where it does not, why, and doctor has a command; then it serves again."""
    line, facts, findings = told(command)
    assert line == [f"Gateway:    serving at {served.url}"] and findings == []
    assert facts == {"state": "serving", "url": served.url, "reason": ""}
    assert served.daemon.health()["gateway"] == {"open": 0}
    pid = gateway_process(served.daemon)
    os.kill(pid, signal.SIGSTOP)
    try:
        line, facts, findings = told(command)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert line == [f"Gateway:    not answering at {served.url} (nothing came within 2 s)"]
    assert facts["state"] == "not answering"
    assert [(one["severity"], one["mend"]) for one in findings] == [("problem", "llm-proxy gateway check")]
    assert told(command)[1]["state"] == "serving"


_HASHES = """
import asyncio
from llm_proxy.gateway.passwords import Passwords

def size():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

async def grown():
    passwords, before = Passwords(), size()
    for _ in range(3):
        await passwords.hash("a long and private one")
    print(size() - before)
    passwords.close()

asyncio.run(grown())
"""


def test_what_a_password_takes_is_given_back(served):
    """Its hash takes 19 MB for a moment, in a process that is to stay small."""
    environ = Path(f"/proc/{gateway_process(served.daemon)}/environ").read_bytes().split(b"\0")
    assert all(f"{name}={value}".encode() in environ for name, value in MEMORY.items())
    grown = {}
    for told in ({}, MEMORY):
        done = subprocess.run([sys.executable, "-c", _HASHES], env=os.environ | told, capture_output=True, check=True)
        grown[bool(told)] = int(done.stdout)
    assert grown[True] < grown[False] - 15_000_000


def test_status_has_no_such_line_without_one(start, command):
    """A daemon without a gateway says that it has none only to programs."""
    daemon = start("--service", "--port", "0")
    daemon.wait_for_recording()
    line, facts, findings = told(command)
    assert line == [] and facts == {"state": "off", "url": "", "reason": ""} and findings == []
    assert "gateway" not in daemon.health()


def test_uninstall_keeps_what_a_team_has_and_purge_does_not(served, start, command, environ):
    """Accounts and the key of all provider keys outlive the program: the next installation goes on with them."""
    served.sign_up("admin@example.com")
    folder = Path(environ["HOME"]) / ".local/share/llm-proxy/gateway"
    done = command("--uninstall")
    assert done.returncode == 0, done.stdout
    assert f"the gateway's store and keys stay in {folder}" in done.stdout
    assert served.daemon.wait() == 0 and not served.daemon.state.exists()
    secrets = folder / "secrets.json"
    assert secrets.stat().st_mode & 0o777 == 0o600 and folder.stat().st_mode & 0o777 == 0o700
    again = Gateway(start("--service", "--port", "0")).wait()
    assert again.sign_in("admin@example.com")
    assert command("--uninstall", "--purge").returncode == 0
    assert again.daemon.wait() == 0 and not folder.exists()


def test_a_gateway_that_cannot_be_had_is_in_nobodys_way(start, environ):
    """Its secrets can be read by others: the service says so, and carries everything else."""
    config = Path(environ["HOME"]) / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[gateway]\nenabled = true\n")
    kept = Path(environ["HOME"]) / ".local/share/llm-proxy/gateway/secrets.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    kept.chmod(0o644)
    daemon = start("--service", "--port", "0")
    assert "must be yours and 0600" in daemon.wait_for_line("NO GATEWAY: (.+); all other calls are carried")[1]
    assert daemon.health()["status"] == "ok"
