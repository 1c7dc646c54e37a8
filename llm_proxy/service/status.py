"""What `--status` tells: whether the daemon runs and records, where the logs are, what this shell's clients use.

Looks at the state folder, asks `/health` and `/health/sinks`, and walks the log folder, each within a limit.
Leaves out deciding anything: it only reads.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm_proxy import __version__, paths
from llm_proxy.errors import SetupFailed
from llm_proxy.service import (
    activation,
    attached,
    environment,
    launchd,
    packaged,
    process,
    receipt,
    shells,
    state,
    systemd,
    units,
)
from llm_proxy.service.attached import Attached
from llm_proxy.service.passthrough import is_safe

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

LARGE_LOGS = 10 * 10**9  # bytes; beyond it a person should know
_WALK_LIMIT = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Keeper:
    """The keeper's last snapshot. `lag` is bytes of journal not yet in log files."""

    state: str = "unknown"
    pid: int = 0
    lag: int = 0
    last_error: str = ""
    last_exchange: str = ""  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Sink:
    """A sink's lane, as `/health/sinks` tells it. `waiting` and `parked` are calls, `lag` seconds."""

    name: str
    state: str
    waiting: int = 0
    lag: float = 0.0
    passed: int = 0
    parked: int = 0
    warning: str = ""
    last_error: str = ""
    last_error_at: str = ""  # UTC, ISO 8601


@dataclass(frozen=True, slots=True)
class Gateway:
    """The daemon's gateway: "off", "serving" or "not answering"; `url` is its place on this machine."""

    state: str = "off"
    url: str = ""
    reason: str = ""  # why it does not answer


@dataclass(frozen=True, slots=True)
class Logs:
    """The log folder and its size in bytes; `counted` is False where the walk ran out of time."""

    folder: str
    size: int
    files: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """A base URL variable of this shell: "ours", "elsewhere", "old port" or "unset". No value holds a secret."""

    name: str
    value: str
    points: str


@dataclass(frozen=True, slots=True)
class Autostart:
    """What starts the daemon: "systemd", "launchd", "brew", "shell" or "" (nothing that setup knows of)."""

    means: str = ""
    state: str = ""  # of the unit or job, in its manager's words
    without_login: bool = False
    socket_activation: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """Everything `--status` knows."""

    running: bool
    reason: str  # why it does not run, or does not answer
    version: str
    pid: int = 0
    port: int = 0
    url: str = ""
    uptime: float = 0.0  # seconds
    recording: str = ""
    recording_reason: str = ""
    safe_mode: bool = False
    autostart: Autostart = field(default_factory=Autostart)
    keeper: Keeper = field(default_factory=Keeper)
    sinks: tuple[Sink, ...] = ()  # those beside the session logs
    gateway: Gateway = field(default_factory=Gateway)
    logs: Logs = field(default_factory=lambda: Logs("", 0, 0, True))
    shells: tuple[str, ...] = ()  # the files that point new ones here
    variables: tuple[Variable, ...] = ()
    attached: tuple[Attached, ...] = ()
    warnings: tuple[str, ...] = ()


def look(settings: Settings, environ: dict[str, str]) -> Status:
    """Find out. Takes a few seconds at most, whatever hangs."""
    folder = paths.state_folder()
    run = state.read_run(folder)
    if run is not None and run.instance == activation.NOBODY and process.health(run):
        run = state.read_run(folder)  # systemd listened; our question has started the daemon
    started = autostart(folder, environ)
    clients = attached.listed(folder)
    if run is None or not state.alive(run):
        logs = walk(settings.log_dir)
        return Status(
            running=False,
            reason=_why_not_found(folder),
            version=__version__,
            autostart=started,
            logs=logs,
            shells=tuple(shells.patched(environ)),
            variables=tuple(variables(0, environ)),
            attached=clients,
            warnings=(*_warnings(logs, Keeper()), *_astray(clients, 0)),
        )
    health = process.health(run)
    logs = walk(_text(health, "log_dir") or settings.log_dir)
    records = process.health(run, "/health/sinks") if health else {}
    keeper = _keeper(records.get("keeper")) if health else Keeper()
    sinks = _sinks(records.get("sinks"))
    return Status(
        running=True,
        reason="" if health else f"it does not answer /health within {process.HEALTH_LIMIT:g} s",
        version=_text(health, "version") or __version__,
        pid=run.pid,
        port=run.port,
        url=f"http://127.0.0.1:{run.port}",
        uptime=_uptime(run.pid),
        recording=_text(health, "recording") or "unknown",
        recording_reason=_text(health, "reason"),
        safe_mode=is_safe(run, folder),
        autostart=started,
        keeper=keeper,
        sinks=sinks,
        gateway=_gateway(run) if "gateway" in health else Gateway(),
        logs=logs,
        shells=tuple(shells.patched(environ)),
        variables=tuple(variables(run.port, environ)),
        attached=clients,
        warnings=(*_warnings(logs, keeper), *_behind(sinks), *_astray(clients, run.port)),
    )


def _why_not_found(folder: str) -> str:
    if pid := process.owner(folder):
        return f"process {pid} is starting or stopping, or cannot write into {folder}"
    if state.read(folder, "run") is not None:
        return "the state file is left over from a daemon that is gone"
    return "no daemon has said that it runs"


def as_json(status: Status) -> str:
    return json.dumps(asdict(status), indent=2)


def as_text(status: Status) -> str:
    """A page for a person: label, value, and warnings at the end."""
    running = "RUNNING in safe mode" if status.safe_mode else "RUNNING"
    rows = [("Status", running if status.running else f"NOT RUNNING ({status.reason})")]
    if status.running:
        rows += [
            ("Port", str(status.port)),
            ("URL", status.url),
            ("Process", f"pid {status.pid}, up {_duration(status.uptime)}, version {status.version}"),
            ("Recording", status.recording + (f" ({status.recording_reason})" if status.recording_reason else "")),
            ("Keeper", f"{status.keeper.state}, {_size(status.keeper.lag)} behind"),
            ("Last call", status.keeper.last_exchange or "none since it started"),
        ]
        rows += [("Sinks" if not n else "", _lane_sentence(sink)) for n, sink in enumerate(status.sinks)]
        if status.gateway.state != "off":
            rows.append(("Gateway", _gateway_sentence(status.gateway)))
    more = "" if status.logs.counted else "more than "
    rows.append(("Started by", _autostart_sentence(status.autostart)))
    rows.append(("Logs", f"{status.logs.folder} ({more}{_size(status.logs.size)} in {status.logs.files} files)"))
    rows.append(("New shells", ", ".join(status.shells) or "do not use it; `llm-proxy --setup-shell` changes that"))
    rows += [("Attached" if not n else "", f"{c.client} ({', '.join(c.files)})") for n, c in enumerate(status.attached)]
    rows += [("This shell" if not n else "", text) for n, text in enumerate(_shell_sentences(status))]
    lines = [f"{label + ':' if label else '':<12}{value}" for label, value in rows]
    if status.running and status.reason:
        lines.append(f"Warning: {status.reason}")
    return printable("\n".join([*lines, *(f"Warning: {text}" for text in status.warnings)]))


def variables(port: int, environ: dict[str, str]) -> list[Variable]:
    """How this shell's base URLs stand to a daemon on `port` (0: none)."""

    def points(name: str, value: str) -> str:
        if not value:
            return "unset"
        if not environment.is_ours(name, value):
            return "elsewhere"
        return "ours" if value == environment.base_url(name, port) else "old port"

    values = ((name, environ.get(name, "")) for name in environment.VARIABLES)
    return [Variable(name, shown(value) if value else "", points(name, value)) for name, value in values]


def shown(url: str) -> str:
    """A URL without what may be secret in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "no URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else "no URL"


def printable(text: str) -> str:
    """Text that does nothing to a terminal but stand there, line by line."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def walk(folder: str, limit: float = _WALK_LIMIT) -> Logs:
    """Count the files for at most `limit` seconds. Links are not followed; what cannot be read is not counted."""
    deadline = time.monotonic() + limit
    waiting, size, files = [folder], 0, 0
    while waiting:
        if time.monotonic() > deadline:
            return Logs(folder, size, files, counted=False)
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        size += entry.stat(follow_symlinks=False).st_size
                        files += 1
        except OSError:
            continue
    return Logs(folder, size, files, counted=True)


def _keeper(facts: object) -> Keeper:
    """From its snapshot as the daemon passes it on; empty where no keeper runs."""
    if not isinstance(facts, dict) or not facts:
        return Keeper(state="not running")
    return Keeper(
        state=_text(facts, "state") or "unknown",
        pid=_number(facts, "pid"),
        lag=_number(facts, "lag_bytes"),
        last_error=_text(facts, "last_error"),
        last_exchange=_moment(facts.get("last_exchange_at")),
    )


def _sinks(facts: object) -> tuple[Sink, ...]:
    if not isinstance(facts, dict):
        return ()
    return tuple(
        Sink(
            name=str(name),
            state=_text(told, "state") or "unknown",
            waiting=_number(told, "waiting"),
            lag=float(told["lag"]) if isinstance(told.get("lag"), int | float) else 0.0,
            passed=_number(told, "passed"),
            parked=_number(told, "parked"),
            warning=_text(told, "warning"),
            last_error=_text(told, "last_error"),
            last_error_at=_moment(told.get("last_error_at")),
        )
        for name, told in facts.items()
        if isinstance(told, dict)
    )


def _gateway(run: state.Run) -> Gateway:
    """One that is switched on."""
    url = f"http://127.0.0.1:{run.port}"
    told = process.health(run, "/health/gateway")
    if _text(told, "status") == "ok":
        return Gateway("serving", url)
    error = told.get("error")
    reason = _text(error, "message") if isinstance(error, dict) else ""
    return Gateway("not answering", url, reason or f"nothing came within {process.HEALTH_LIMIT:g} s")


def _gateway_sentence(gateway: Gateway) -> str:
    return f"{gateway.state} at {gateway.url}" + (f" ({gateway.reason})" if gateway.reason else "")


def _lane_sentence(sink: Sink) -> str:
    said = [f"{sink.name}: {sink.state}", f"{sink.passed} calls passed on"]
    said += [f"{sink.waiting} waiting for {_duration(sink.lag)}"] if sink.waiting else []
    said += [f"{sink.parked} put aside"] if sink.parked else []
    return ", ".join(said)


_LAGS = {
    "lagging": "is behind",
    "retrying": "is tried again",
    "broken": "cannot be used",
    "silent": "gives no sign of life",
    "down": "is not running",
}


def _behind(sinks: Sequence[Sink]) -> Iterator[str]:
    for sink in sinks:
        if sink.state in _LAGS:
            waiting = f", {sink.waiting} calls wait" if sink.waiting else ""
            error = f": {sink.last_error}" if sink.last_error else ""
            yield f"the sink {sink.name} {_LAGS[sink.state]}{waiting}{error}"
        if sink.warning:
            yield f"the sink {sink.name} reports: {sink.warning}"


def _warnings(logs: Logs, keeper: Keeper) -> tuple[str, ...]:
    found = []
    if logs.size > LARGE_LOGS:
        found.append(f"the logs in {logs.folder} take {_size(logs.size)}; old days can be deleted or moved at any time")
    if keeper.state != "ok" and keeper.last_error:
        found.append(f"the keeper reports: {keeper.last_error}")
    return tuple(found)


def _astray(clients: Sequence[Attached], port: int) -> Iterator[str]:
    """Clients whose configuration leads to where nothing of ours listens (`port` 0: nowhere)."""
    for client in clients:
        if client.port != port:
            mend = f"`llm-proxy attach {client.client}`" if port else "`llm-proxy --setup` starts the daemon"
            yield (
                f"{client.client} is attached to port {client.port}, where no daemon of ours listens; {mend}, "
                f"`llm-proxy detach {client.client}` undoes it"
            )


def autostart(folder: str, environ: dict[str, str]) -> Autostart:
    """By the receipt and the manager it names, or a package's units. Takes a few seconds at most."""
    known = receipt.load(folder) or receipt.Receipt(folder)
    by_call = known.port > 0 or (packaged.folder() is not None and packaged.is_enabled(units.SOCKET))
    by_package = packaged.folder() is not None and (by_call or packaged.is_enabled(units.SERVICE))
    if known.autostart == "systemd" or (by_package and not known.autostart):
        manager = systemd.Systemd(environ)
        unit = manager.trouble or manager.show(units.SERVICE, "ActiveState")
        return Autostart("systemd", unit, systemd.lingers(), socket_activation=by_call)
    if known.autostart == "launchd":
        return Autostart("launchd", _launchd_state())
    return Autostart(known.autostart)


def _launchd_state() -> str:
    try:
        return "loaded" if launchd.is_loaded(units.LABEL) else "not loaded"
    except SetupFailed as exc:
        return str(exc)


def _autostart_sentence(autostart: Autostart) -> str:
    says = {
        "systemd": f"systemd ({autostart.state}), "
        + ("also without a login" if autostart.without_login else "at login")
        + (", or at the first call" if autostart.socket_activation else ""),
        "launchd": f"launchd ({autostart.state})",
        "brew": "Homebrew's service",
        "shell": "new shells, when none runs",
    }
    return says.get(autostart.means, "nothing known; `llm-proxy --setup` changes that")


def _uptime(pid: int) -> float:
    import psutil

    try:
        return max(0.0, time.time() - psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _text(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name)
    return value if isinstance(value, str) else ""


def _number(facts: dict[str, Any], name: str) -> int:
    value = facts.get(name)
    return value if isinstance(value, int) else 0


def _moment(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and value:
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    return ""


def _shell_sentences(status: Status) -> list[str]:
    if any(variable.value for variable in status.variables):
        return [_sentence(variable) for variable in status.variables]
    return ["does not use it, new ones do" if status.shells and status.running else "does not use it"]


def _sentence(variable: Variable) -> str:
    says = {
        "unset": "is not set",
        "ours": "points here",
        "elsewhere": f"is overridden by you: {variable.value}",
        "old port": f"points at a port that is not the daemon's: {variable.value}",
    }
    return f"{variable.name} {says[variable.points]}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
