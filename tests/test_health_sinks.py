"""How sinks, lag and disks are told: in /health, /health/sinks, /metrics and --status, and only what is true now."""

import json
import os
import textwrap
import threading
import time
from pathlib import Path

import anthropic

from tests.test_health import dead_pid, exposition, facts, get, write

LANE = {
    "state": "ok",
    "waiting": 0,
    "since": 0.0,
    "passed": 7,
    "parked": 1,
    "gone": 2,
    "last_error": "",
    "last_error_at": 0.0,
}


def say(path, *, pid=0, state="running", updated=None, **lanes):
    told = {"pid": pid or os.getpid(), "state": state, "sinks": lanes, "updated": updated or time.time()}
    path.write_text(json.dumps(told))


async def test_a_lane_is_told_as_it_is(rigs, tmp_path):
    """Its state, what waits and for how long, its last error; 200 only while all is well, /health 200 always."""
    lanes = tmp_path / "sinks.json"
    write(tmp_path / "keeper.json")
    rig = await rigs(keeper_snapshot=tmp_path / "keeper.json", lanes_snapshot=lanes, sinks=("daily", "csv"))

    async def stands(status, daily):
        answered, told = await facts(rig, "/health/sinks")
        assert (answered, told["sinks"]["daily"]["state"]) == (status, daily)
        answered, health = await facts(rig, "/health")
        assert answered == 200 and health["sinks"]["daily"] == {
            "state": daily,
            "waiting": told["sinks"]["daily"]["waiting"],
        }
        found = exposition((await get(rig, "/metrics")).payload)
        assert found["llm_proxy_sink_ok", (("sink", "daily"),)] == (daily == "ok")
        assert found["llm_proxy_sink_state", (("sink", "daily"), ("state", daily))] == 1
        return told["sinks"]["daily"]

    await stands(503, "down")  # nobody has said anything yet
    say(lanes, daily=LANE, csv=LANE)
    told = await stands(200, "ok")
    assert told == {
        "state": "ok",
        "waiting": 0,
        "lag": 0.0,
        "passed": 7,
        "parked": 1,
        "gone": 2,
        "retries": 0,
        "counted": {},
        "warning": "",
        "last_error": "",
        "last_error_at": 0.0,
    }
    say(lanes, daily=LANE | {"waiting": 3, "since": time.time() - 5}, csv=LANE)
    told = await stands(200, "ok")
    assert told["waiting"] == 3 and 5 <= told["lag"] < 20
    say(lanes, daily=LANE | {"warning": "it takes no metrics"}, csv=LANE)
    assert (await stands(200, "ok"))["warning"] == "it takes no metrics"
    say(lanes, daily=LANE | {"waiting": 9, "since": time.time() - 120}, csv=LANE)
    await stands(503, "lagging")
    say(lanes, daily=LANE | {"state": "retrying", "last_error": "No space left", "last_error_at": 5.0}, csv=LANE)
    told = await stands(503, "retrying")
    assert (told["last_error"], told["last_error_at"]) == ("No space left", 5.0)
    say(lanes, daily=LANE | {"state": "broken"}, csv=LANE)
    await stands(503, "broken")
    say(lanes, csv=LANE)  # the lanes of another daemon, which knows no such sink
    await stands(503, "down")
    say(lanes, daily=LANE, csv=LANE | {"state": "retrying"})
    await stands(503, "ok")  # the other one is not
    say(lanes, daily=LANE, csv=LANE, updated=time.time() - 60)
    assert (await stands(503, "silent"))["passed"] == 7
    for text in ("", "[]", '{"sinks": []}', '{"pid": 1}', "[" * 100_000):
        lanes.write_text(text)
        await stands(503, "down")
    say(lanes, pid=dead_pid(), daily=LANE, csv=LANE)
    await stands(503, "down")
    say(lanes, state="stopped", daily=LANE, csv=LANE)
    await stands(503, "down")
    odd = {
        "state": [],
        "waiting": float("inf"),
        "since": -5,
        "parked": 10**400,
        "passed": None,
        "last_error": {"a": 1},
        "last_error_at": "now",
    }
    say(lanes, daily=odd, csv=LANE)
    await stands(503, "broken")
    assert rig.core.metrics.faults == 0


async def test_lag_is_told_in_bytes_and_seconds(rigs, tmp_path):
    """By the keeper while it lives; without one, since its last word."""
    write(tmp_path / "keeper.json", behind_since=time.time() - 30, lag_bytes=5000)
    rig = await rigs(keeper_snapshot=tmp_path / "keeper.json")
    _, body = await facts(rig, "/health")
    assert body["lag"]["bytes"] == 5000 and 30 <= body["lag"]["seconds"] < 60
    write(tmp_path / "keeper.json", pid=dead_pid(), updated=time.time() - 100)
    assert (await rig.exchange(b"x" * 10_000, fake="fixed=10")).status == 200
    await rig.exchanges(1)
    _, body = await facts(rig, "/health")
    assert body["keeper"] == {"state": "down"}
    assert body["lag"]["bytes"] > 10_000 and 100 <= body["lag"]["seconds"] < 150
    found = exposition((await get(rig, "/metrics")).payload)
    assert 100 <= found["llm_proxy_journal_lag_seconds", ()] < 150


async def test_only_the_living_keepers_figures_are_passed_on(rigs, tmp_path):
    """What an earlier one has left, or half a file, is not shown; the page stays valid."""
    snapshot, text = tmp_path / "keeper.json", "# HELP llm_proxy_x A.\n# TYPE llm_proxy_x gauge\nllm_proxy_x 1\n"
    write(snapshot)
    rig = await rigs(keeper_snapshot=snapshot)

    async def shown():
        return ("llm_proxy_x", ()) in exposition((await get(rig, "/metrics")).payload)

    assert not await shown()
    figures = tmp_path / "keeper.prom"
    figures.write_text(f"# {os.getpid()}\n{text}")
    assert await shown()
    figures.write_text(f"# {os.getpid()}\n{text[:-3]}")
    assert not await shown()
    figures.write_text(f"# {os.getpid() + 1}\n{text}")
    assert not await shown()
    figures.write_text(f"# {os.getpid()}\n{text}")
    write(snapshot, pid=dead_pid())
    assert not await shown()


async def test_free_space_is_looked_at_beside_the_traffic(rigs, tmp_path, monkeypatch):
    """A folder that is not there yet lies where its parent does; a disk that hangs holds up nobody."""
    rig = await rigs(disks={"logs": str(tmp_path / "not/yet"), "state": str(tmp_path)})
    free = await rig.until(lambda: rig.proxy._report.disks.free)
    assert set(free) == {"logs", "state"} and all(size > 0 for size in free.values())
    _, body = await facts(rig, "/health")
    assert body["disk"] == {name: {"free": size} for name, size in free.items()}
    found = exposition((await get(rig, "/metrics")).payload)
    assert found["llm_proxy_disk_free_bytes", (("folder", "logs"),)] == free["logs"]
    hangs, let_go = threading.Event(), threading.Event()

    def statvfs(path):
        hangs.set()
        let_go.wait(60)
        raise OSError

    monkeypatch.setattr(os, "statvfs", statvfs)
    try:
        other = await rigs(disks={"logs": str(tmp_path)})
        assert await other.until(hangs.is_set)
        assert (await facts(other, "/health"))[1]["disk"] == {}
        assert (await other.exchange(b"{}", fake="fixed=10")).status == 200
    finally:
        let_go.set()


# -- real daemons ----------------------------------------------------------------------------------------------------


def ask(daemon, provider, *questions):
    with anthropic.Anthropic(
        base_url=f"{daemon.url}/anthropic/127.0.0.1:{provider.port}", api_key="sk-ant-api03-0123456789", max_retries=0
    ) as client:
        for question in questions:
            said = [{"role": "user", "content": question}]
            client.messages.create(model="claude-sonnet-4-6", max_tokens=9, messages=said)


def until(true, told, limit=20):
    deadline = time.monotonic() + limit
    while not (found := true()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
    return found


SLOW = '''
import time
from pathlib import Path


class Slow:
    """Takes calls once a file is there; does not come back before."""

    counted = 5  # its own affair
    warning = "not so fast"

    def __init__(self, folder, options):
        self.gate = Path(options["gate"])

    def write(self, calls):
        while not self.gate.exists():
            time.sleep(0.02)

    def close(self):
        pass
'''


def test_status_tells_of_each_lane_and_warns_of_those_that_do_not_get_on(start, command, environ, provider, tmp_path):
    """One that is refused, one that takes its time and one that is well: a line each, a warning for who needs one."""
    site, gate = tmp_path / "site", tmp_path / "gate"
    (site / "slow-1.dist-info").mkdir(parents=True)
    (site / "slow.py").write_text(SLOW)
    (site / "slow-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1\n")
    (site / "slow-1.dist-info/entry_points.txt").write_text("[llm_proxy.sinks]\nslow = slow:Slow\n")
    folder = tmp_path / "daily"
    folder.write_text("in the way")
    config = Path(environ["HOME"], ".config/llm-proxy/config.toml")
    config.parent.mkdir(parents=True)
    config.write_text(
        textwrap.dedent(
            f"""
            sinks = ["sessions", "daily", "csv", "slow", "absent"]
            [daily]
            folder = "{folder}"
            [sink.slow]
            gate = "{gate}"
            """
        )
    )
    daemon = start("--service", "--port", "0", env={"PYTHONPATH": str(site)}, isolated=False)
    assert daemon.port

    def status():
        done = command("--status", "--json")
        assert done.returncode == 0, done.stderr
        return {sink["name"]: sink for sink in json.loads(done.stdout)["sinks"]}

    until(lambda: status().get("csv", {}).get("state") == "ok", status)
    ask(daemon, provider, "one", "two", "three")
    until(lambda: status()["csv"]["passed"] == 3 and status()["daily"]["state"] == "retrying", status)
    until(lambda: status()["slow"]["waiting"] == 3 and status()["daily"]["waiting"] == 3, status)
    found = status()
    assert found["slow"]["lag"] > 0 and found["csv"]["waiting"] == 0 and found["csv"]["lag"] == 0
    assert str(folder) in found["daily"]["last_error"] and found["daily"]["last_error_at"].startswith("20")
    assert found["absent"]["state"] == "broken" and "absent" in found["absent"]["last_error"]
    text = command("--status").stdout
    assert "csv: ok, 3 calls passed on\n" in text
    assert "daily: retrying, 0 calls passed on, 3 waiting for " in text
    warnings = [line for line in text.splitlines() if line.startswith("Warning: the sink")]
    assert len(warnings) == 3 and "the sink daily is tried again, 3 calls wait: " in text
    assert "the sink slow reports: not so fast\n" in text
    assert "the sink absent cannot be used: " in text
    gate.touch()
    folder.unlink()
    until(lambda: status()["slow"]["passed"] == 3, status)
    until(lambda: status()["daily"]["passed"] == 3, status, 60)
    assert "the sink daily" not in command("--status").stdout


def test_without_sinks_nothing_is_said_of_any(start, command):
    """The session logs are the keeper's, who has a line of its own."""
    daemon = start("--service", "--port", "0")
    assert daemon.port
    done = command("--status", "--json")
    assert json.loads(done.stdout)["sinks"] == []
    assert "Sinks:" not in command("--status").stdout
