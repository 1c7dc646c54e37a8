"""How Loki stands is told as it is: by /health/loki, /health/sinks, /metrics and --status, also while Loki hangs."""

import getpass
import json
import os
import time
from pathlib import Path

from tests.fakeloki import FakeLoki
from tests.lokibed import until
from tests.test_health import exposition, facts, get, write
from tests.test_health_sinks import LANE, ask, say

TOKEN = "glc_eyJvIjoiMTIzNDU2Nzg5MCJ9"


async def test_health_tells_state_lag_and_counts(rigs, tmp_path):
    """In the reference program's names; 200 only while Loki gets its entries in time, 404 where nobody asked for it."""
    lanes = tmp_path / "sinks.json"
    write(tmp_path / "keeper.json")
    rig = await rigs(keeper_snapshot=tmp_path / "keeper.json", lanes_snapshot=lanes, sinks=("loki", "csv"))
    assert (await facts(rig, "/health/loki"))[0] == 503  # nobody has said anything yet
    told = LANE | {"retries": 4, "counted": {"entries": 30, "pushes": 2, "bytes": 999}}
    say(lanes, loki=told, csv=LANE)
    status, body = await facts(rig, "/health/loki")
    assert status == 200 and body == {
        "status": "ok",
        "state": "ok",
        "lag": {"entries": 0, "seconds": 0.0},
        "entries_sent": 30,
        "entries_dropped": 4,
        "entries_parked": 1,
        "retries": 4,
        "last_error": None,
        "last_error_time": None,
    }
    found = exposition((await get(rig, "/metrics")).payload)
    assert found["llm_proxy_sink_retries_total", (("sink", "loki"),)] == 4
    for what, count in told["counted"].items():
        assert found["llm_proxy_sink_sent_total", (("sink", "loki"), ("what", what))] == count
    sick = {"state": "retrying", "waiting": 3, "since": time.time() - 5, "last_error": "no", "last_error_at": 1e9}
    say(lanes, loki=told | sick, csv=LANE)
    status, body = await facts(rig, "/health/loki")
    assert (status, body["status"], body["state"]) == (503, "unhealthy", "retrying")
    assert body["lag"]["entries"] == 6 and 5 <= body["lag"]["seconds"] < 20
    assert (body["last_error"], body["last_error_time"]) == ("no", "2001-09-09T01:46:40.000+00:00")
    say(lanes, loki=told | {"waiting": 3, "since": time.time() - 100}, csv=LANE)
    assert (await facts(rig, "/health/loki"))[0] == 503  # it gets on, but is far behind
    odd = {"counted": {"a b": 1, "x" * 99: 1, "entries": "many", "n": 10**400}, "last_error_at": 1e17}
    say(lanes, loki=told | odd, csv=LANE)
    status, body = await facts(rig, "/health/loki")
    assert status == 200 and body["entries_sent"] == 0
    assert exposition((await get(rig, "/metrics")).payload)
    assert rig.core.metrics.faults == 0
    other = await rigs(lanes_snapshot=lanes, sinks=("csv",))
    status, body = await facts(other, "/health/loki")
    assert status == 404 and body == {"status": "disabled", "last_error": None, "last_error_time": None}


# -- real daemons ----------------------------------------------------------------------------------------------------


def configured(environ, text):
    path = Path(environ["HOME"], ".config/llm-proxy/config.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_call_of_an_official_sdk_arrives_and_all_pages_say_so_and_none_a_credential(
    start, command, environ, provider
):
    """SDK -> daemon -> Loki; then Loki hangs, and figures go on; then it refuses; no page, file or line has the token."""
    with FakeLoki(user="me", password=TOKEN) as loki:
        place = loki.url.removeprefix("http://").partition("/")[0]
        configured(
            environ, f'[loki]\nenabled = true\nurl = "http://me:{TOKEN}@{place}"\nbatch_wait = "50ms"\nretry_max = 1\n'
        )
        daemon = start("--service", "--port", "0")
        assert daemon.port
        page = lambda: health(daemon, "/health/loki")  # noqa: E731
        until(lambda: page()[0] == 200, page)
        ask(daemon, provider, "one", "two")
        loki.wait(entries=2 * 5)
        assert {entry.told("log_type") for entry in loki.entries()} == {
            *("session_start", "request", "response", "turn_start", "turn_end")
        }
        (one, two) = loki.entries(log_type="request")
        assert one.json["body"].count("one") and two.json["body"].count("two")
        assert one.told("provider") == "anthropic" and one.told("environment") == "development"
        assert one.told("machine") == one.json["_meta"]["machine"] == f"{getpass.getuser()}@{os.uname().nodename}"
        until(lambda: page()[1]["entries_sent"] == 10, page)
        assert page()[1]["lag"] == {"entries": 0, "seconds": 0.0}
        loki.hang = True
        ask(daemon, provider, "three")
        until(lambda: page()[1]["lag"]["entries"] == 2, page)
        ask(daemon, provider, "four")
        until(lambda: page()[1]["lag"]["entries"] == 4, page)
        assert page()[1]["lag"]["seconds"] > 0
        loki.fail, loki.fail_body = 500, f"{TOKEN} did it"
        loki.hang = False
        until(lambda: page()[1]["status"] == "unhealthy", page)
        status, body = page()
        assert status == 503 and body["retries"] > 0 and body["last_error"] == "Loki answered 500: [masked] did it"
        shown = command("--status").stdout
        assert "loki: retrying, 2 calls passed on, 2 waiting for " in shown
        assert "the sink loki is tried again, 2 calls wait: Loki answered 500: [masked] did it" in shown
        assert health(daemon, "/health/sinks")[0] == 503 and health(daemon, "/health")[0] == 200
        loki.fail = 0
        loki.wait(entries=4 * 5)
        until(lambda: page()[0] == 200, page)
        shown += command("--status", "--json").stdout + "".join(map(str, (page(), health(daemon, "/health/sinks"))))
        shown += command("doctor").stdout
        assert daemon.stop() == 0
        shown += "".join(daemon.lines)
        folder = Path(environ["HOME"])
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "config.toml"]
        assert daemon.state / "sinks.json" in files
        shown += "".join(path.read_text(errors="replace") for path in files)
        assert TOKEN not in shown


def health(daemon, path):
    """(status, facts)."""
    import http.client
    from contextlib import closing

    with closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=5)) as link:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, json.loads(answer.read())


def test_without_a_url_the_daemon_runs_and_says_that_nothing_is_sent(start, command, environ, provider):
    """It never gets in the way: loudly at the start, in --status and in /health/loki."""
    configured(environ, "[loki]\nenabled = true\n")
    daemon = start("--service", "--port", "0")
    assert daemon.port
    daemon.wait_for_line("loki.url is empty: NOTHING IS SENT to Loki")
    until(lambda: health(daemon, "/health/loki")[1]["state"] == "broken", lambda: health(daemon, "/health/loki"))
    status, body = health(daemon, "/health/loki")
    assert status == 503 and "loki.url is empty" in body["last_error"]
    assert "the sink loki cannot be used: nothing is sent to Loki: loki.url is empty" in command("--status").stdout
    ask(daemon, provider, "carried all the same")
    daemon.entries(until=lambda found: any(one["type"] == "response" for one in found))


def test_a_stop_takes_what_was_just_said_to_loki(start, environ, provider):
    """SIGTERM right behind a call, long before `batch_wait` is over: it arrives before the daemon has ended."""
    with FakeLoki() as loki:
        configured(environ, f'sinks = ["sessions", "loki"]\n[loki]\nurl = "{loki.url}"\nbatch_wait = "1h"\n')
        daemon = start("--port", "0")
        until(lambda: health(daemon, "/health/loki")[0] == 200, lambda: health(daemon, "/health/loki"))
        assert any(f"Loki: http://127.0.0.1:{loki.port}" in line for line in daemon.lines)
        ask(daemon, provider, "last words")
        assert daemon.stop(30) == 0
        if not any("did not settle" in line for line in daemon.lines):
            assert loki.accepted == 5
