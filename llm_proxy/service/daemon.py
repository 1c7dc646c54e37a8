"""The daemon's life: listen, open the journal, carry, drain, settle, leave.

Two roles: `foreground`, started by a person and known to nobody else, and `service`, one per user, found by others
through the state folder. Whatever of the record cannot be had (folder, journal, keeper), traffic is carried without
it, loudly. Leaves out how bytes are carried (`proxy`) and kept (`journal`, `keeper`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_proxy import __version__, paths
from llm_proxy.errors import AlreadyRunning, CannotListen, ConfigError, CrashLoop, LlmProxyError, StateUnusable
from llm_proxy.journal.writer import Journal, JournalBusy, has_ring, writer_lock
from llm_proxy.proxy.explorer import Explorer
from llm_proxy.proxy.server import Proxy, ProxyConfig
from llm_proxy.service import (
    activation,
    attached,
    bedrock,
    crashes,
    environment,
    models,
    orphans,
    passing,
    remote,
    state,
    target,
)
from llm_proxy.service.exploring import Exploring
from llm_proxy.service.exploring import options as exploring_options
from llm_proxy.service.keeping import arguments
from llm_proxy.service.listen import Listeners, listen, listen_again
from llm_proxy.service.manager import Manager
from llm_proxy.service.supervise import Supervisor
from llm_proxy.service.voice import Voice, VoiceHandler

if TYPE_CHECKING:
    from llm_proxy.explorer.options import Options as ExploringOptions
    from llm_proxy.proxy.relay import Relay
    from llm_proxy.service.gateway import Gatewaying
    from llm_proxy.settings import Loaded, Settings

log = logging.getLogger(__name__)

STICKY_PATIENCE = 1.0  # seconds to wait for the port of last time
HANDOVER_PATIENCE = 40.0  # seconds a new daemon waits for one that is draining
RETRY = 5.0  # seconds between attempts to record, or to be found, after all
SETTLE_LIMIT = 4.0  # seconds for the keeper; with the drain's 25 s it stays below systemd's 30 s
LANES_LIMIT = 11.0  # seconds for the lanes, which need 10 at most, where there is as much
STOP_LIMIT = 29.0  # seconds for everything
_MOST_JOURNALS = 64
# One bytecode switch interval of the drain thread is latency for every stream; 0.5 ms instead of 5 ms.
_SWITCH_INTERVAL = 0.0005


def run(loaded: Loaded, *, service: bool) -> int:
    """Carry until told to stop; the exit status. Raises CannotListen, AlreadyRunning, ConfigError, CrashLoop."""
    with spoken() as voice:
        return carry(Service(loaded, voice) if service else Daemon(loaded.settings, voice, loaded.door))


def carry(daemon: Daemon) -> int:
    """The whole life of `daemon` in this process; the exit status. Raises as `run` does."""
    os.umask(0o077)
    _raise_file_limit()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    with contextlib.closing(daemon):
        daemon.take_place()
        # The loop is not closed: that waits for its helper threads, and a resolver may hang in one of them.
        _new_loop(daemon.settings.loop).run_until_complete(daemon.live())
    return 0


class Daemon:
    """One foreground run. Mutable state: the sockets, the journal, the keeper, and how often it was asked to stop."""

    role = "foreground"
    unrecorded = "there is no journal"
    status = ""  # one line for the service manager, beside "running"
    serves_on = 0.0  # for which part of the drain's time new calls are carried too

    def __init__(self, settings: Settings, voice: Voice, door: str = "") -> None:
        self.settings = settings
        self.voice = voice
        self.door = door  # one that brings sinks of its own
        self.manager = Manager()
        self.instance = os.urandom(16).hex()
        self.listeners = Listeners((), 0, ())
        self.journal: Journal | None = None
        self.keeper: Supervisor | None = None
        self.lanes: Supervisor | None = None
        self.exploring: Exploring | None = None
        self.gatewaying: Gatewaying | None = None
        self.bedrock = bedrock.configured(settings)
        self.target = target.configured(settings)
        self.bases = target.bases(settings)
        self.models = models.configured(settings)
        self.tls = models.tls(settings)
        self._stopped_at = 0.0
        self._stop = asyncio.Event()
        self._force = asyncio.Event()

    def take_place(self) -> None:
        """Everything that may refuse a start, before any loop runs."""
        with contextlib.suppress(StateUnusable):  # opening the journal says what is wrong
            state.prepare(paths.state_folder())
        self.listeners = self._listen()
        target.refuse_ourselves(self.target, self.bases, self.listeners.port)
        models.refuse_ourselves(self.models, self.listeners.port)
        self.gatewaying = self._gateway()

    def close(self) -> None:
        for link in self.listeners.sockets:
            link.close()

    async def live(self) -> None:
        """From the first connection to the last line on disk."""
        self._listen_to_signals()
        self._open_journal()
        self.exploring = self._explorer()
        if self.bedrock is not None:
            self.bedrock = bedrock.past_us(self.bedrock, self.listeners.port)
        proxy = Proxy(self._proxy_config(), self.journal)
        proxy.core.witness = self._witness()
        await proxy.listen(self.listeners.sockets)
        self._start_keeper()
        if self.gatewaying is not None:
            self.gatewaying.start()
        for warning in (*self.listeners.warnings, *remote.warnings(self.settings), *passing.warnings(self.settings)):
            log.warning("%s", warning)
        self._announce()
        loop = asyncio.get_running_loop()
        chores = [loop.create_task(chore) for chore in self._chores(proxy)]
        self.manager.ready(self.status)
        await self._stop.wait()
        self.manager.stopping(0.0 if self.gatewaying is None else self.gatewaying.drain_delay)
        self._withdraw()
        if self.gatewaying is not None:
            proxy.end_connections()
            await self.gatewaying.drain(self._force)
        self._stopped_at = time.monotonic()
        for chore in chores:
            chore.cancel()
        await self._drain(proxy)
        await proxy.close()
        if self.bedrock is not None:
            await self.bedrock.keys.close()
        await asyncio.gather(self._settle(), self._stop_exploring(), self._stop_gateway())
        self.manager.close()

    def _chores(self, proxy: Proxy) -> Iterator[Coroutine[Any, Any, None]]:
        """What is done beside carrying, from the start on."""
        yield self._retry_journal(proxy)
        yield self._settle_the_dead()
        yield orphans.bury()
        if self.exploring is not None and proxy.explorer is not None:
            yield self.exploring.watch(proxy.explorer)

    def _listen(self) -> Listeners:
        return listen(self.settings.host, self.settings.port)

    def _announce(self) -> None:
        """Say what a person needs to use us."""
        port = self.listeners.port
        url = f"{'https' if self.tls is not None else 'http'}://127.0.0.1:{port}"
        self.voice.say(
            f"llm-proxy {__version__} listens on {url}\n"
            f"{self._records_into()}\n"
            f"explorer: llm-proxy --explore{'' if port == 8080 else f' --port {port}'}\n"
            f"{self._how_to_use_it(url)}\nCtrl-C stops it."
        )

    def _witness(self) -> Callable[[Relay], None] | None:
        """Who tells of each call on the console."""
        if self.settings.console == "none":
            return None
        from llm_proxy.service import console

        colours = os.isatty(1) and "NO_COLOR" not in os.environ
        return console.witness(self.voice.say, self.settings.console, self.settings.console_level, colours=colours)

    def _records_into(self) -> str:
        """A line for each sink."""
        if self.journal is None:
            return "session logs: nowhere yet, see below"
        bodies = () if self.settings.body_limit else ("of bodies nothing is recorded",)
        return "\n".join((*self._sinks(), *bodies))

    def _sinks(self) -> tuple[str, ...]:
        logs = (f"session logs: {self.settings.log_dir}",) if passing.SESSIONS in self.settings.sinks else ()
        return (*logs, *passing.lines(self.settings))

    def _how_to_use_it(self, url: str) -> str:
        if self.target is not None:
            added = ", ".join(name for name, _ in self.target.headers)
            return f"every path goes to {self.target.base}{added and f', with {added}'}\n\nBase URL for clients: {url}"
        if self.models is not None:
            return models.lines(self.models, url)
        if self.gatewaying is not None:
            return self.gatewaying.lines(url)
        if self.door == "taco":
            exports = f"export ANTHROPIC_BASE_URL='{url}'\nexport OPENAI_BASE_URL='{url}/v1'\n"
            exports += f"export GOOGLE_GEMINI_BASE_URL='{url}'"
        else:
            exports = environment.exports(self.listeners.port, {})
        door = ""
        if self.bedrock is not None:
            door = f"{self.bedrock.line}\n"
            exports += f"\nand for Claude Code on Bedrock:\n\n{environment.bedrock_exports(self.listeners.port)}"
        upstreams = "".join(f"bare API paths of {name} go to {base}\n" for name, base in self.bases.items())
        return f"{upstreams}{door}{remote.line(self.settings)}\nTo use it, paste into a shell:\n\n{exports}"

    def _withdraw(self) -> None:
        """Stop being found, before anything is closed."""

    def _journal_folders(self) -> Iterator[Path]:
        whose = passing.name(self.settings, self.door) or self.role
        return (Path(paths.journal_folder(f"{whose}-{number}")) for number in range(1, _MOST_JOURNALS + 1))

    def _open_journal(self) -> None:
        """The first journal folder that nobody else writes. On failure says so and leaves `journal` None."""
        trouble = "all journal folders are in use"
        for folder in self._journal_folders():
            try:
                self.journal = Journal.open(folder, ring_size=self.settings.ring_size, cap=self.settings.cap)
                return
            except JournalBusy:  # another daemon, or the keeper of a killed one that still settles it
                continue
            except OSError as exc:
                trouble = f"{folder}: {exc.strerror or exc}"
                break
        log.error(
            "NOT RECORDING: the journal cannot be opened (%s). Calls are carried, and it is tried again.", trouble
        )

    def _start_keeper(self) -> None:
        if self.journal is None:
            return
        self.keeper = self._keeper_of(self.journal.folder)
        self.journal.on_drained = self._journal_has_grown
        self.keeper.start()
        if passing.sinks(self.settings) and self.lanes is None:
            told = passing.options(self.settings, self.door)
            errors = f"{self.journal.folder}/lanes.err"
            self.lanes = Supervisor("llm_proxy.lanes", (told.to_json(),), errors=errors, variables=told.variables())
            self.lanes.start()

    def _journal_has_grown(self) -> None:
        """Called by the journal's thread."""
        if self.keeper is not None:
            self.keeper.wake()
        if self.lanes is not None:
            self.lanes.wake()
        if self.exploring is not None:
            self.exploring.wake()

    async def _stop_exploring(self) -> None:
        if self.exploring is not None:
            await self.exploring.stop()

    async def _stop_gateway(self) -> None:
        """Its calls have ended, or were cut, with the proxy's; what is left is to write down what they used."""
        if self.gatewaying is not None:
            await self.gatewaying.stop(0.2 if self._force.is_set() else SETTLE_LIMIT)

    def _gateway(self) -> Gatewaying | None:
        """Not started yet: it calls back through sockets of ours."""
        if not self.settings.gateway_enabled:
            return None
        from llm_proxy.service.gateway import Gatewaying

        return Gatewaying(self.settings, str(self.listeners.port))

    def _explorer(self) -> Exploring | None:
        """Not started yet: the first visit does that."""
        socket = f"{paths.state_folder()}/explorer-{self.listeners.port}.sock"
        return Exploring(socket, lambda: self._exploring_options(socket))

    def _exploring_options(self, socket: str) -> ExploringOptions:
        return exploring_options(
            self.settings,
            index=paths.index_file(self.settings.log_dir),
            state=paths.state_folder(),
            journal=str(self.journal.folder) if self.journal is not None else "",
            socket=socket,
            version=__version__,
            gateway=self.gatewaying.sockets if self.gatewaying is not None else (),
        )

    def _keeper_of(self, folder: Path) -> Supervisor:
        return Supervisor("llm_proxy.keeper", arguments(self.settings, folder), errors=f"{folder}/keeper.err")

    async def _settle_the_dead(self) -> None:
        """Journals whose daemon and keeper were both killed: what they hold goes into the logs now."""
        own = self.journal.folder if self.journal is not None else None
        for folder in unsettled(Path(paths.journal_folder(""))):
            if folder != own:
                log.info("settling %s, left over from a daemon that was killed", folder)
                await self._keeper_of(folder).settle()

    async def _retry_journal(self, proxy: Proxy) -> None:
        while self.journal is None:
            await asyncio.sleep(RETRY)
            await asyncio.to_thread(self._open_journal)  # a disk in trouble may take its time
            if self.journal is not None:
                proxy.tee.use(self.journal)
                self._start_keeper()
                log.warning("recording after all, into %s", self.settings.log_dir)

    def _proxy_config(self) -> ProxyConfig:
        settings = self.settings
        first = next(self._journal_folders())
        return ProxyConfig(
            instance=self.instance,
            version=__version__,
            hosts=settings.hosts,
            origins=(*settings.origins, *models.pages(settings)),
            allow=settings.allow,
            policy=settings.policy,
            remote_routes=remote.is_open(settings),
            remote=remote.configured(settings),
            environment=dict(os.environ),
            connect_timeout=settings.connect_timeout,
            header_timeout=settings.header_timeout,
            idle_timeout=settings.idle_timeout,
            max_connections=settings.max_connections,
            record_limit=settings.body_limit,
            keeper_snapshot=(self.journal.folder if self.journal is not None else first) / "keeper.json",
            lanes_snapshot=passing.options(settings, self.door).place / "sinks.json",
            sinks=passing.sinks(settings),
            disks={"logs": settings.log_dir, "state": paths.state_folder()},
            log_dir=settings.log_dir,
            bedrock=None if self.bedrock is None else self.bedrock.door,
            target=self.target,
            models=self.models,
            tls=self.tls,
            bases=self.bases,
            explorer=Explorer(unavailable=self.unrecorded) if self.exploring is None else self.exploring.explorer,
            gateway=None if self.gatewaying is None else self.gatewaying.door,
            gateway_socket="" if self.gatewaying is None else self.gatewaying.upstream,
            unrecorded=self.unrecorded,
        )

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal is gone; the streams are not
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        if hasattr(signal, "SIGXFSZ"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file size limit is an error of that write, no more

    def _asked_to_stop(self) -> None:
        (self._force if self._stop.is_set() else self._stop).set()

    async def _drain(self, proxy: Proxy) -> None:
        """Let open calls end, up to the limit or a second signal."""
        limit = self.settings.drain_timeout
        log.info("stopping: open calls have %g s to end, a second signal cuts them", limit)
        loop = asyncio.get_running_loop()
        draining = loop.create_task(proxy.drain(limit, serving=limit * self.serves_on))
        forced = loop.create_task(self._force.wait())
        await asyncio.wait({draining, forced}, return_when=asyncio.FIRST_COMPLETED)
        if draining.done() and (cut := draining.result()):
            log.warning("%d open calls were cut after %g s", cut, limit)
        elif not draining.done():
            log.warning("a second signal: open calls are cut")
        draining.cancel()
        forced.cancel()
        await asyncio.gather(draining, forced, return_exceptions=True)

    async def _settle(self) -> None:
        """The journal to disk, then the keeper's time to turn it into log files."""
        if self.journal is not None:
            self.journal.close()
        if self.keeper is not None:
            await self.keeper.stop(0.2 if self._force.is_set() else SETTLE_LIMIT)
        if self.lanes is not None:
            left = STOP_LIMIT - (time.monotonic() - self._stopped_at)
            await self.lanes.stop(0.2 if self._force.is_set() else min(LANES_LIMIT, max(left, 1.0)))


class Service(Daemon):
    """The one daemon of a user: holds the lock, keeps its port, and says in the state folder where it is."""

    role = "service"
    serves_on = 0.5  # clients know no other daemon, and what is begun should have time to end

    def __init__(self, loaded: Loaded, voice: Voice) -> None:
        super().__init__(loaded.settings, voice)
        if self.target is not None:
            log.warning("target.url is for runs in a terminal: this daemon serves all providers, and no single target")
            self.target = None
        if self.tls is not None:
            log.warning("named.tls_cert is for runs in a terminal: shells and clients find this daemon by http://")
            self.tls = None
        self._explicit_port = "port" in loaded.sources
        self._folder = paths.state_folder()
        self._lock: int | None = None
        self._manager_listens = False
        self._line = ""

    def take_place(self) -> None:
        try:
            state.prepare(self._folder)
            self._lock = take_lock(self._folder)
            self._count_start()
        except StateUnusable as exc:
            log.error("%s; this daemon runs, but `--env` and `--status` cannot find it", exc)
        self.listeners = self._listen()
        target.refuse_ourselves(None, self.bases, self.listeners.port)
        models.refuse_ourselves(self.models, self.listeners.port)
        try:
            self.gatewaying = self._gateway()
        except LlmProxyError as exc:  # it is not in the way of anybody else's calls
            log.error("NO GATEWAY: %s; all other calls are carried", exc)

    def _count_start(self) -> None:
        # systemd counts itself, and starts the safe unit
        if not self.manager.counts_crashes and crashes.looping(self._folder):
            raise CrashLoop(f"{crashes.LIMIT} starts within {crashes.WINDOW:g} s have crashed")

    def close(self) -> None:
        super().close()
        if self._lock is not None:
            os.close(self._lock)

    def _listen(self) -> Listeners:
        given = activation.inherited()
        self._manager_listens = bool(given.of_unit)
        if given.kept and (self._manager_listens or not self._is_wanted(given.kept[0].getsockname())):
            self.manager.give_up(activation.KEPT)
            for link in given.kept:
                link.close()
            given = given._replace(kept=())
        if sockets := given.of_unit or given.kept:
            return Listeners(sockets, sockets[0].getsockname()[1], ())
        found = self._bind()
        self.manager.keep(activation.KEPT, found.sockets)
        return found

    def _is_wanted(self, address: tuple[str, int]) -> bool:
        host, port = address[:2]
        return host == self.settings.host and (not self._explicit_port or self.settings.port in (0, port))

    def _bind(self) -> Listeners:
        host = self.settings.host
        if self._explicit_port:
            return listen(host, self.settings.port)
        last = state.read_port(self._folder, "last_port")
        if last is None:
            return listen(host, 0)
        try:
            return listen_again(host, last, STICKY_PATIENCE)
        except CannotListen as exc:
            moved = listen(host, 0)
            text = f"{exc}; port {moved.port} is used instead, so shells opened before must be told anew"
            return moved._replace(warnings=(text, *moved.warnings))

    def _announce(self) -> None:
        """Write where we are, now that we listen, and say so."""
        port = self.listeners.port
        if self._lock is not None and (trouble := self._write_state(port)):
            log.error("%s; `--env` and `--status` cannot find this daemon", trouble)
        log.info("llm-proxy %s listens on http://127.0.0.1:%d", __version__, port)
        for line in self._sinks():
            log.info("%s", line)
        if self.bedrock is not None:
            log.info("%s", self.bedrock.line)

    def _write_state(self, port: int) -> str:
        """What is in the way; empty where all is written."""
        line = state.this_run(port, self.instance).line()
        try:
            state.secret(self._folder)
            for name, text in (("last_port", str(port)), ("port", str(port)), ("run", line)):
                state.write(self._folder, name, text)
        except StateUnusable as exc:
            return str(exc)
        self._line = line
        return ""

    def _chores(self, proxy: Proxy) -> Iterator[Coroutine[Any, Any, None]]:
        yield from super()._chores(proxy)
        yield self._retry_state()
        yield self._lead_clients()
        yield self._first_run()

    async def _retry_state(self) -> None:
        """A full disk has room again, in time."""
        while self._lock is not None and not self._line:
            await asyncio.sleep(RETRY)
            if not await asyncio.to_thread(self._write_state, self.listeners.port):
                log.warning("`--env` and `--status` find this daemon after all")

    async def _lead_clients(self) -> None:
        """Clients that are attached to a port we no longer have are given the new one."""
        if self._line and attached.astray(self._folder, self.listeners.port):
            await asyncio.to_thread(_lead, self._folder, self.listeners.port)

    async def _first_run(self) -> None:
        """What Homebrew could not do at installation."""
        if self._line and os.environ.get("LLM_PROXY_FIRST_RUN") == "shell":
            await asyncio.to_thread(_set_up_shells_once, self._folder)

    def _withdraw(self) -> None:
        if self._lock is not None:
            crashes.forget(self._folder)
        if not self._line or state.read(self._folder, "run") != self._line.encode():
            return
        if self._manager_listens:
            with contextlib.suppress(StateUnusable):
                activation.announce(self.listeners.port, self._folder)
        else:
            state.remove(self._folder, "run")
            state.remove(self._folder, "port")

    def _journal_folders(self) -> Iterator[Path]:
        yield Path(paths.journal_folder(self.role))
        yield from super()._journal_folders()


def _set_up_shells_once(folder: str) -> None:
    """Started by Homebrew, which sets up no shell itself; the receipt says that it is done."""
    import subprocess

    from llm_proxy.service import receipt

    if receipt.load(folder) is not None:
        return
    command = [sys.executable, "-I", "-m", "llm_proxy", "--setup-shell"]
    try:
        receipt.Receipt(folder, autostart="brew").save()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
    except (LlmProxyError, OSError, subprocess.TimeoutExpired) as exc:
        log.error("new shells were not set up: %s; `llm-proxy --setup-shell` does it", exc)
        return
    for line in done.stdout.splitlines():
        log.info("first run: %s", line)


def _lead(folder: str, port: int) -> None:
    from llm_proxy.service import attach  # with all formats, so only now

    try:
        reports = attach.follow(folder, port)
    except LlmProxyError as exc:
        log.error("attached clients may look for us at another port: %s", exc)
        return
    for report in reports:
        if report.error:
            log.error("%s looks for us at port %d still: %s", report.client, report.port, report.error)
        else:
            log.info("%s: its configuration leads to port %d now", report.client, report.port)


def unsettled(root: Path) -> list[Path]:
    """Journal folders that nobody writes and that are not settled: a ring, or a keeper that did not get to its end."""
    left = (folder for folder in sorted(root.glob("*/")) if has_ring(folder) or not _has_ended(folder))
    return [folder for folder in left if not _is_written(folder)]


def _has_ended(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "keeper.json").read_bytes())["state"] == "stopped")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_written(folder: Path) -> bool:
    try:
        with writer_lock(folder):
            return False
    except (JournalBusy, OSError):
        return True


def take_lock(folder: str) -> int:
    """The daemon's lock, waiting for one that is draining. Raises AlreadyRunning, StateUnusable."""
    deadline = time.monotonic() + HANDOVER_PATIENCE
    while True:
        held = state.lock(folder)
        if held is not None:
            return held
        other = state.read_run(folder)
        if other is not None and state.alive(other):
            raise AlreadyRunning(f"already running, pid {other.pid}, port {other.port}")
        if time.monotonic() > deadline:
            raise AlreadyRunning(f"{folder}/lock is held by a daemon that neither serves nor ends")
        time.sleep(0.05)  # before the loop runs; the other one is starting or draining


@contextlib.contextmanager
def spoken() -> Iterator[Voice]:
    """Messages go out without ever blocking; the standard library's own logging is led there too."""
    voice = Voice()
    root = logging.getLogger()
    handler = VoiceHandler(voice)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield voice
    finally:
        root.removeHandler(handler)
        voice.close()


def _new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name != "asyncio":
        try:
            import uvloop

            return uvloop.new_event_loop()
        except ImportError:
            if name == "uvloop":
                raise ConfigError("loop is uvloop, but uvloop is not installed; auto takes it where it is") from None
    return asyncio.new_event_loop()


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS: "unlimited" is more than the kernel takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
