"""What the proxy says of itself and of those around it: `/health`, `/health/sinks`, `/health/loki`,
`/health/bedrock`, `/metrics`.

Made when asked for, from what is in memory and a few small files. Leaves out how bytes are carried.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from llm_proxy.journal.writer import JournalState
from llm_proxy.proxy import answers, standing
from llm_proxy.proxy.standing import Disks, Lane
from llm_proxy.wire.exposition import CONTENT_TYPE, Sample

if TYPE_CHECKING:
    from llm_proxy.proxy.bedrock import BedrockDoor
    from llm_proxy.proxy.core import Core, OwnAnswer
    from llm_proxy.proxy.gateway import GatewayDoor
    from llm_proxy.proxy.server import ProxyConfig

# The keeper's numbers that `/metrics` passes on: name in its snapshot, name here, help.
_KEEPER_METRICS = (
    ("exchanges", "llm_proxy_keeper_exchanges_total", "Exchanges written to the log files."),
    ("interrupted", "llm_proxy_keeper_interrupted_total", "Exchanges that ended because the proxy did."),
    ("errors", "llm_proxy_keeper_errors_total", "Failed attempts to write a log file."),
    ("damaged_blocks", "llm_proxy_keeper_damaged_blocks_total", "Journal blocks that could not be read."),
    ("truncated_exchanges", "llm_proxy_keeper_truncated_total", "Exchanges of which not everything was kept."),
    ("lag_bytes", "llm_proxy_keeper_lag_bytes", "Journal bytes not in the log files yet."),
)
# What is told of each sink: name here, help, value.
_SINK_METRICS = (
    ("llm_proxy_sink_ok", "1 while the sink gets its calls in time.", lambda lane: int(lane.state == "ok")),
    ("llm_proxy_sink_waiting", "Calls the sink has not got yet.", lambda lane: lane.waiting),
    ("llm_proxy_sink_lag_seconds", "Seconds for which it has not had all of them; 0: it has.", lambda lane: lane.lag),
    ("llm_proxy_sink_passed_total", "Calls the sink has got.", lambda lane: lane.passed),
    ("llm_proxy_sink_parked_total", "Calls it could not take, which were put aside.", lambda lane: lane.parked),
    ("llm_proxy_sink_gone_total", "Calls whose log was deleted before the sink got them.", lambda lane: lane.gone),
    ("llm_proxy_sink_retries_total", "How often something was offered to the sink again.", lambda lane: lane.retries),
)
_ENTRIES = 2  # in the log, of a call
Gauges = dict[str, tuple[str, Iterable[Sample]]]


class Report:
    """Answers for one proxy."""

    def __init__(
        self, config: ProxyConfig, core: Core, bedrock: BedrockDoor | None, gateway: GatewayDoor | None = None
    ) -> None:
        self._config = config
        self._core = core
        self._bedrock = bedrock
        self._gateway = gateway
        self._since = time.time()
        self._started = time.monotonic()
        self.disks = Disks(config.disks)

    def answers(self) -> dict[bytes, OwnAnswer]:
        """By path."""
        return {
            b"/health": self._health,
            b"/health/bedrock": self._health_bedrock,
            b"/health/loki": self._health_loki,
            b"/health/sinks": self._health_sinks,
            b"/metrics": self._metrics,
        }

    def _recording(self, keeper: dict[str, Any]) -> tuple[str, str]:
        """How the record stands: ok, degraded or stopped, and why."""
        state = self._journal()
        if state is None:
            return "stopped", self._config.unrecorded
        if state.recording != "ok":
            return state.recording, state.reason
        if not keeper:
            return "degraded", "the keeper is not running; the journal keeps everything until it is"
        if keeper.get("state") != "ok":
            return "degraded", str(keeper.get("last_error") or "the keeper reports trouble")
        return "ok", ""

    def _journal(self) -> JournalState | None:
        journal = self._core.tee.journal
        return journal.state() if journal is not None else None

    def _keeper(self) -> dict[str, Any]:
        """The keeper's last snapshot; empty where it does not run."""
        return standing.snapshot(self._config.keeper_snapshot)

    def _lanes(self) -> dict[str, Lane]:
        return standing.lanes(self._config.lanes_snapshot, self._config.sinks, time.time())

    def _lag(self, keeper: dict[str, Any]) -> tuple[float, float]:
        """(bytes, seconds) by which the log files are behind; without a keeper, the journal and its last word."""
        state = self._journal()
        ring, segments = (state.backlog, state.segments) if state is not None else (0, 0)
        if keeper:
            since = standing.number(keeper, "behind_since")
            size = standing.number(keeper, "lag_bytes") + ring
        else:
            since = standing.number(standing.last_words(self._config.keeper_snapshot), "updated")
            size = segments + ring
        return size, max(0.0, time.time() - since) if since else 0.0

    # -- answers ------------------------------------------------------------------------------------------------

    def _health(self) -> bytes:
        keeper = self._keeper()
        recording, reason = self._recording(keeper)
        size, seconds = self._lag(keeper)
        config = self._config
        body = {
            "status": "ok",
            "app": "llm-proxy",
            "version": config.version,
            "instance": config.instance,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
            "recording": recording,
            "reason": reason,
            "log_dir": config.log_dir,
            "open": len(self._core.relays),
            "proxy": {"open": len(self._core.relays), "connections": len(self._core.clients)},
            "keeper": {"state": str(keeper.get("state")) if keeper else "down"},
            "sinks": {name: {"state": lane.state, "waiting": lane.waiting} for name, lane in self._lanes().items()},
            "disk": {name: {"free": free} for name, free in self.disks.free.items()},
            "lag": {"bytes": size, "seconds": round(seconds, 3)},
        }
        if self._gateway is not None:  # whether its process serves is /health/gateway's to tell
            body["gateway"] = {"open": self._gateway.open}
        return answers.answer(200, json.dumps(body).encode())

    def _health_sinks(self) -> bytes:
        keeper, lanes = self._keeper(), self._lanes()
        recording, reason = self._recording(keeper)
        sinks = {name: asdict(lane) for name, lane in lanes.items()}
        body = {"recording": recording, "reason": reason, "sinks": sinks, "keeper": keeper}
        good = recording == "ok" and all(lane.state == "ok" for lane in lanes.values())
        return answers.answer(200 if good else 503, json.dumps(body).encode())

    def _health_loki(self) -> bytes:
        """The reference program's names, and what is true."""
        lane = self._lanes().get("loki")
        if lane is None:
            body: dict[str, object] = {"status": "disabled", "last_error": None, "last_error_time": None}
            return answers.answer(404, json.dumps(body).encode())
        good = lane.state == "ok"
        body = {
            "status": "ok" if good else "unhealthy",
            "state": lane.state,
            "lag": {"entries": lane.waiting * _ENTRIES, "seconds": lane.lag},
            "entries_sent": lane.counted.get("entries", 0),
            "entries_dropped": lane.gone * _ENTRIES,
            "entries_parked": lane.parked,
            "retries": lane.retries,
            "last_error": lane.last_error or None,
            "last_error_time": _utc(lane.last_error_at) if lane.last_error_at else None,
        }
        return answers.answer(200 if good else 503, json.dumps(body).encode())

    def _health_bedrock(self) -> bytes:
        """Decode errors are the keeper's: a client gets its bytes whatever they mean."""
        troubles = self._keeper().get("troubles")
        bad = troubles.get("decode", 0) if isinstance(troubles, dict) else 0
        body: dict[str, object] = {"status": "disabled" if self._bedrock is None else "ok"}
        if self._bedrock is not None:
            body |= self._bedrock.health()
        return answers.answer(200, json.dumps(body | {"decode_errors": bad}).encode())

    def _metrics(self) -> bytes:
        keeper = self._keeper()
        gauges = self._own_gauges(keeper) | self._keeper_gauges(keeper) | self._sink_gauges()
        if self._gateway is not None:
            gauges |= self._gateway.gauges()
        text = self._core.metrics.text(gauges).encode()
        text += standing.figures(self._config.keeper_snapshot, keeper.get("pid"))
        return answers.answer(200, text, content_type=CONTENT_TYPE)

    def _own_gauges(self, keeper: dict[str, Any]) -> Gauges:
        core, losses, state = self._core, self._core.tee.losses, self._journal()
        recording, _ = self._recording(keeper)
        _, lag = self._lag(keeper)
        streams = sum(relay.is_streaming for relay in core.relays)
        one: tuple[tuple[str, str, float], ...] = (
            ("llm_proxy_start_time_seconds", "When the proxy started.", round(self._since, 3)),
            ("llm_proxy_connections_open", "Client connections open now.", len(core.clients)),
            ("llm_proxy_exchanges_open", "Exchanges under way now.", len(core.relays)),
            ("llm_proxy_streams_open", "Of these, those whose response is coming in.", streams),
            ("llm_proxy_upstream_idle", "Upstream connections kept for reuse.", len(core.pool)),
            ("llm_proxy_recording_ok", "1 while everything is recorded.", int(recording == "ok")),
            ("llm_proxy_journal_backlog_bytes", "In the ring.", state.backlog if state else 0),
            ("llm_proxy_journal_segment_bytes", "In segment files.", state.segments if state else 0),
            (
                "llm_proxy_journal_lag_seconds",
                "Seconds for which the log files have been behind; 0: they are not.",
                lag,
            ),
            ("llm_proxy_record_lost_exchanges_total", "Exchanges not recorded at all.", losses.exchanges),
            ("llm_proxy_record_dropped_frames_total", "Body pieces not recorded.", losses.frames),
            ("llm_proxy_record_dropped_bytes_total", "Bytes of these.", losses.octets),
            ("llm_proxy_keeper_up", "1 while the keeper runs.", int(bool(keeper))),
        )
        gauges: Gauges = {name: (text, [Sample({}, value)]) for name, text, value in one}
        gauges["llm_proxy_build_info"] = "Always 1.", [Sample({"version": self._config.version}, 1)]
        free = [Sample({"folder": name}, free) for name, free in self.disks.free.items()]
        gauges["llm_proxy_disk_free_bytes"] = "Free on the file systems of the log and state folders.", free
        return gauges

    def _keeper_gauges(self, keeper: dict[str, Any]) -> Gauges:
        """Those that are numbers."""
        return {
            name: (text, [Sample({}, value)])
            for key, name, text in _KEEPER_METRICS
            if (value := standing.number(keeper, key)) or keeper.get(key) == 0
        }

    def _sink_gauges(self) -> Gauges:
        lanes = self._lanes()
        if not lanes:
            return {}
        gauges: Gauges = {
            name: (text, [Sample({"sink": sink}, value(lane)) for sink, lane in lanes.items()])
            for name, text, value in _SINK_METRICS
        }
        gauges["llm_proxy_sink_state"] = (
            "1 for the state the sink is in.",
            [Sample({"sink": sink, "state": lane.state}, 1) for sink, lane in lanes.items()],
        )
        sent = [(sink, lane.counted) for sink, lane in lanes.items() if lane.counted]
        if sent:
            gauges["llm_proxy_sink_sent_total"] = (
                "What the sink itself counts of what it has sent.",
                [Sample({"sink": sink, "what": what}, n) for sink, counted in sent for what, n in counted.items()],
            )
        return gauges


def _utc(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return ""
