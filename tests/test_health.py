"""What the proxy says of itself: /health, /health/sinks and /metrics, with and without journal and keeper."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.proxy.metrics import Metrics
from llm_proxy.proxy.server import Proxy, ProxyConfig
from llm_proxy.records.exchange import Ending
from llm_proxy.wire.exposition import Sample
from tests.rig import Message, Rig, StartRig

SNAPSHOT = {"pid": os.getpid(), "state": "ok", "exchanges": 7, "interrupted": 1, "errors": 0, "lag_bytes": 12}


async def get(rig: Rig, path: str, method: str = "GET", more: str = "") -> Message:
    wire = rig.client()
    await wire.send(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n".encode())
    message = await wire.message(to_head=method == "HEAD")
    wire.close()
    return message


async def facts(rig: Rig, path: str) -> tuple[int, dict[str, Any]]:
    answer = await get(rig, path)
    assert answer.get(b"content-type") == b"application/json" and answer.get(b"cache-control") == b"no-store"
    return answer.status, json.loads(answer.payload)


def write(snapshot: Path, **changes: object) -> None:
    snapshot.write_text(json.dumps(SNAPSHOT | changes))


def dead_pid() -> int:
    """Of a process that has ended and been reaped."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


async def test_health_says_who_we_are(rigs: StartRig, tmp_path: Path) -> None:
    """Enough to tell one daemon from another, and how the record stands."""
    write(tmp_path / "keeper.json")
    rig = await rigs(
        instance="0123", version='1.2"3', log_dir="/logs/\u2028é", keeper_snapshot=tmp_path / "keeper.json"
    )
    status, body = await facts(rig, "/health")
    assert status == 200
    assert body.pop("uptime") >= 0
    assert body == {
        "status": "ok",
        "app": "llm-proxy",
        "version": '1.2"3',
        "instance": "0123",
        "pid": os.getpid(),
        "recording": "ok",
        "reason": "",
        "log_dir": "/logs/\u2028é",
        "open": 0,
        "proxy": {"open": 0, "connections": 1},
        "keeper": {"state": "ok"},
        "sinks": {},
        "disk": {},
        "lag": {"bytes": 12, "seconds": 0},
    }


async def test_health_follows_the_keeper(rigs: StartRig, tmp_path: Path) -> None:
    """/health is 200 whatever the keeper does; /health/sinks is 503 unless all is well; /metrics has keeper_up."""
    snapshot = tmp_path / "keeper.json"
    rig = await rigs(keeper_snapshot=snapshot)

    async def stands(recording: str, reason: str, up: int) -> None:
        status, body = await facts(rig, "/health")
        assert (status, body["status"], body["recording"]) == (200, "ok", recording) and reason in body["reason"]
        status, body = await facts(rig, "/health/sinks")
        assert (status, body["recording"]) == (200 if recording == "ok" else 503, recording)
        assert bool(body["keeper"]) is bool(up)
        found = exposition((await get(rig, "/metrics")).payload)
        assert found["llm_proxy_keeper_up", ()] == up
        assert found["llm_proxy_recording_ok", ()] == (recording == "ok")
        assert (("llm_proxy_keeper_exchanges_total", ()) in found) is bool(up)

    await stands("degraded", "not running", 0)
    write(snapshot)
    await stands("ok", "", 1)
    write(snapshot, state="degraded", last_error="/logs: No space left on device")
    await stands("degraded", "No space left", 1)
    write(snapshot, state="stopped")
    await stands("degraded", "not running", 0)
    write(snapshot, pid=dead_pid())
    await stands("degraded", "not running", 0)
    for text in (
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"pid": "x", "state": "ok"}',
        '{"pid": [], "state": "ok"}',
        "\xff",
        "[" * 100_000,
    ):
        snapshot.write_bytes(text.encode("latin-1"))
        await stands("degraded", "not running", 0)
    for pid in (0, -1, 10**30):
        write(snapshot, pid=pid)
        await stands("degraded", "not running", 0)
    snapshot.unlink()
    snapshot.mkdir()
    await stands("degraded", "not running", 0)
    assert rig.core.metrics.faults == 0


async def test_odd_numbers_of_the_keeper_do_not_spoil_the_metrics(rigs: StartRig, tmp_path: Path) -> None:
    """What is no number is left out, the rest is still valid."""
    write(tmp_path / "keeper.json", exchanges="x\ny", interrupted=None, errors=True, lag_bytes=1.5, damaged_blocks=[])
    rig = await rigs(keeper_snapshot=tmp_path / "keeper.json")
    found = exposition((await get(rig, "/metrics")).payload)
    assert found["llm_proxy_keeper_lag_bytes", ()] == 1.5
    assert not any(name in ("llm_proxy_keeper_exchanges_total", "llm_proxy_keeper_errors_total") for name, _ in found)


async def test_without_a_journal_calls_are_carried_and_said_to_be_unrecorded(rig: Rig) -> None:
    """`stopped` with the reason, while /health is 200."""
    bare = Proxy(ProxyConfig(), None)
    listener = socket.create_server(("127.0.0.1", 0))
    rig.port = listener.getsockname()[1]
    await bare.listen([listener])
    try:
        status, body = await facts(rig, "/health")
        assert (status, body["recording"], body["reason"]) == (200, "stopped", "there is no journal")
        assert (await facts(rig, "/health/sinks"))[0] == 503
        assert (await rig.exchange(b"{}", fake="fixed=10")).status == 200
        found = exposition((await get(rig, "/metrics")).payload)
        assert found["llm_proxy_recording_ok", ()] == 0
        assert found["llm_proxy_record_lost_exchanges_total", ()] == 1
    finally:
        await bare.close()


@pytest.mark.parametrize("path", ["/health", "/health/sinks", "/metrics"])
async def test_our_own_answers_are_proper_http(rig: Rig, path: str) -> None:
    """HEAD has GET's head and no body; a query changes nothing; the connection goes on; nothing is carried or recorded."""
    wire = rig.client()
    plain = f"{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    await wire.send(f"GET {plain}HEAD {plain}".encode())
    answer, head = await wire.message(), await wire.message(to_head=True)
    assert answer.complete and len(answer.payload) == int(answer.get(b"content-length"))
    assert head.status == answer.status and head.get(b"content-type") == answer.get(b"content-type")
    await wire.send(f"GET {path}?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert (await wire.message()).status == answer.status
    assert answer.get(b"x-content-type-options") == b"nosniff" and b"access-control" not in answer.head.lower()
    for more, ended in (("Connection: close\r\n", "fin"), ("Content-Length: 3\r\n", "fin")):
        last = rig.client()
        await last.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\nabc".encode())
        assert (await last.message()).status == answer.status
        await last.to_the_end()
        assert last.ended in (ended, "rst") and len(re.findall(rb"HTTP/1\.1 \d", last.received)) == 1
    assert rig.core.metrics.exchanges == {} and await rig.exchanges() == []
    for near in (f"{path}/", f"/{path}", f"{path}x"):
        assert (await get(rig, near)).status == 404


# -- /metrics ------------------------------------------------------------------------------------------------------

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.+)\}})? ([0-9.e+-]+|[+-]Inf|NaN)")
_UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
Labels = tuple[tuple[str, str], ...]


def exposition(text: bytes) -> dict[tuple[str, Labels], float]:
    """Read Prometheus' text format 0.0.4, strictly: HELP then TYPE then the samples of that family, each once."""
    found: dict[tuple[str, Labels], float] = {}
    kinds: dict[str, str] = {}
    family = helped = ""
    assert text.endswith(b"\n")
    for line in text.decode().split("\n")[:-1]:
        if match := re.fullmatch(rf"# HELP ({_NAME}) (\S.*)", line):
            helped = match[1]
        elif match := re.fullmatch(rf"# TYPE ({_NAME}) (counter|gauge|histogram)", line):
            family = match[1]
            assert family == helped and family not in kinds, line
            kinds[family] = match[2]
            assert (match[2] == "counter") is family.endswith("_total"), line
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            name, inside, value = sample[1], sample[2] or "", float(sample[3])
            suffixes = ("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",)
            assert name in [family + suffix for suffix in suffixes], line
            labels = tuple(
                (match[1], re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], match[2]))
                for match in _LABEL.finditer(inside)
            )
            assert sum(len(match[0]) for match in _LABEL.finditer(inside)) == len(inside), line
            assert (name, labels) not in found, line
            found[name, labels] = value
    return found


async def test_metrics_count_what_happened(rig: Rig) -> None:
    """Exchanges by provider, ending and status; our own answers by code; connections; the time to the head as a histogram."""
    for _ in range(3):
        assert (await rig.exchange(b"{}", fake="fixed=10")).status == 200
    assert (await rig.exchange(b"{}", fake="status=529")).status == 529
    assert (await rig.exchange(b"{}", fake="reset=head")).status == 502
    assert (await get(rig, "/nothing/here")).status == 404
    assert (await get(rig, "/health", more="Origin: null\r\n")).status == 403
    answer = await get(rig, "/metrics")
    assert answer.get(b"content-type") == b"text/plain; version=0.0.4; charset=utf-8"
    found = exposition(answer.payload)

    def exchanges(ending: str, status: str) -> float:
        return found["llm_proxy_exchanges_total", (("provider", "anthropic"), ("ending", ending), ("status", status))]

    assert exchanges("complete", "200") == 3
    assert exchanges("complete", "529") == 1
    assert exchanges("upstream_failed", "0") == 1
    assert found["llm_proxy_answers_total", (("code", "no_route"),)] == 1
    assert found["llm_proxy_answers_total", (("code", "not_allowed"),)] == 1
    assert found["llm_proxy_connections_accepted_total", ()] == 8
    assert found["llm_proxy_upstream_connects_total", ()] >= 1
    assert found["llm_proxy_faults_total", ()] == 0
    assert found["llm_proxy_exchanges_open", ()] == 0
    assert found["llm_proxy_connections_open", ()] >= 1
    heads = [value for (name, _), value in found.items() if name == "llm_proxy_time_to_head_seconds_bucket"]
    assert heads == sorted(heads) and heads[-1] == found["llm_proxy_time_to_head_seconds_count", ()] == 4
    assert 0 < found["llm_proxy_time_to_head_seconds_sum", ()] < 10


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line ends in a value are still one sample."""
    metrics = Metrics()
    metrics.count_answer('a"b\\c\nd')
    metrics.count_exchange("p", Ending.COMPLETE, None, 0, 0, 0)
    text = metrics.text({"llm_proxy_build_info": ("Always 1.", [Sample({"version": '1"\n\\'}, 1)])})
    found = exposition(text.encode())
    assert found["llm_proxy_answers_total", (("code", 'a"b\\c\nd'),)] == 1
    assert found["llm_proxy_build_info", (("version", '1"\n\\'),)] == 1
