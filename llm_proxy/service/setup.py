"""`--setup`: start the daemon at every login by the best means there are, and point new shells at it.

The ladder is systemd, launchd, or else new shells. Every step may find its work done already and can be repeated; the
last asks the daemon itself. Leaves out the units' text, the shells' files and undoing it all.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from llm_proxy import paths
from llm_proxy.errors import CannotListen, SetupFailed, StateUnusable
from llm_proxy.service import brew, launchd, listen, packaged, process, receipt, shells, state, systemd, units
from llm_proxy.service.steps import Steps

RUNNING, FAILED, SHELL_NOT_EDITED, NO_AUTOSTART = 0, 1, 3, 4


class Wishes(NamedTuple):
    """What the command line asks for."""

    shell: bool = True
    socket_activation: bool = False


def run(steps: Steps, wishes: Wishes, environ: Mapping[str, str], *, platform: str = sys.platform) -> int:
    """Do it; the exit status. What fails is told in `steps`; nothing is raised for it."""
    if refusal := why_not(environ):
        steps.say("user", "failed", refusal)
        return FAILED
    setup = _Setup(steps, wishes, environ)
    autostart = setup.with_launchd() if platform == "darwin" else setup.with_systemd()
    if steps.failed:
        return FAILED
    edited = setup.shells() if wishes.shell else True
    if not autostart:
        setup.by_shell()
    setup.answer()
    if steps.failed:
        return FAILED
    if not edited:
        return SHELL_NOT_EDITED
    return RUNNING if autostart or wishes.shell else NO_AUTOSTART


def why_not(environ: Mapping[str, str]) -> str:
    """Why setup or uninstall must not be run by this user in this home; empty where it may."""
    home = environ.get("HOME", "")
    if os.geteuid() == 0 and environ.get("SUDO_USER"):
        return "run it as yourself, without sudo: it works in your own home and needs no root"
    if not home.startswith("/"):
        return f"HOME must be an absolute path, it is {home!r}"
    try:
        uid = Path(home).stat().st_uid
    except OSError as exc:
        return f"your home {home} cannot be used: {exc.strerror}"
    return "" if uid == os.geteuid() else f"HOME is {home}, which belongs to user {uid}, not to you ({os.geteuid()})"


def unit_folder() -> Path:
    return Path(paths.home()) / ".config/systemd/user"


def agent_path() -> Path:
    return Path(paths.home()) / f"Library/LaunchAgents/{units.LABEL}.plist"


class _Setup:
    """One run. Mutable state: the receipt."""

    def __init__(self, steps: Steps, wishes: Wishes, environ: Mapping[str, str]) -> None:
        self.steps, self.wishes, self.environ = steps, wishes, environ
        self.state = paths.state_folder()
        self.receipt = receipt.load(self.state) or receipt.Receipt(self.state)
        self.program = process.program()

    # -- systemd --------------------------------------------------------------------------------------------------

    def with_systemd(self) -> bool:
        """Whether it starts the daemon now and at every boot or login."""
        manager = systemd.Systemd(self.environ)
        if manager.trouble:
            self.steps.say("service", "warning", f"no systemd for this user: {manager.trouble}")
            if is_wsl():
                self.steps.say("service", "warning", "WSL starts systemd with `[boot] systemd=true` in /etc/wsl.conf")
            return False
        if self._brewed("linux"):
            return True
        brought = packaged.folder()
        changed = self._write_units(brought)
        if self.steps.failed:
            return True
        self._start(manager, changed, brought or unit_folder())
        self._linger(manager)
        return True

    def _write_units(self, brought: Path | None) -> bool:
        """Whether any of them changed. A package brings all but a socket unit with a port chosen for this user."""
        with_socket = self.wishes.socket_activation or self.receipt.port > 0
        texts: dict[str, str] = {}
        try:
            if brought is None:
                texts[units.SAFE] = units.safe(self.program)
                texts[units.SERVICE] = units.service(self.program, socket_activation=with_socket)
            if with_socket:
                port, ipv6 = self._port_to_keep()
                self.receipt.port = port
                texts[units.SOCKET] = units.socket(self.program, port, ipv6=ipv6)
        except SetupFailed as exc:
            self.steps.say("unit", "failed", str(exc))
            return False
        outcomes = [self._write(unit_folder() / name, text.encode()) for name, text in texts.items()]
        if brought is not None:
            self.steps.say("unit", "unchanged", f"{brought / units.SERVICE} is the package's")
            if not (folder := unit_folder()).is_dir():  # for systemctl's links, and remembered
                self.steps.do("folder", f"make {folder}", lambda: self.receipt.make_folder(folder))
            outcomes += [self._give_way(unit_folder() / name) for name in (units.SAFE, units.SERVICE)]
        return "done" in outcomes

    def _give_way(self, path: Path) -> str:
        """Take away a unit that an earlier setup wrote, since it would hide the package's; the outcome."""
        if path.exists() and self.receipt.holds(path):
            done = self.steps.do("file", f"remove {path}, which hides the package's", lambda: self._drop(path))
            return "done" if done else "failed"
        if path.exists() or path.is_symlink():
            self.steps.say("file", "warning", f"{path} is yours and hides the package's")
        return "unchanged"

    def _drop(self, path: Path) -> None:
        path.unlink()
        del self.receipt.files[str(path)]
        self.receipt.save()

    def _port_to_keep(self) -> tuple[int, bool]:
        """The port of last time, or a free one; and whether [::1] has it too."""
        last = self.receipt.port or state.read_port(self.state, "last_port") or 0
        if last:
            return last, _has_ipv6()
        chosen = listen.listen("127.0.0.1", 0)
        for link in chosen.sockets:
            link.close()
        return chosen.port, len(chosen.sockets) == 2

    def _write(self, path: Path, content: bytes) -> str:
        """One of our files; the outcome."""
        outcome, text = "would", f"write {path}"
        if self.steps.dry_run:
            outcome = self.receipt.outcome(path, content)
            outcome = "would" if outcome == "done" else outcome
        else:
            try:
                outcome = self.receipt.write(path, content)
            except (OSError, SetupFailed, StateUnusable) as exc:
                outcome, text = "failed", f"{text}: {exc}"
        if outcome == "warning":
            text = f"{path} is not as setup wrote it, so it stays; the new one is {path}.new"
        self.steps.say("file", outcome, text)
        return outcome

    def _start(self, manager: systemd.Systemd, changed: bool, folder: Path) -> None:
        steps = self.steps
        names = [units.SERVICE, *([units.SOCKET] if self.receipt.port else [])]
        self.receipt.autostart = "systemd"
        if not (
            steps.do("receipt", f"note it in {self.state}/{receipt.NAME}", self.receipt.save)
            and steps.do("manager", "tell systemd of the units", lambda: _reload(manager, folder))
        ):
            return
        pid, main = process.owner(self.state), manager.show(units.SERVICE, "MainPID")
        if pid and str(pid) != main:
            text = f"stop the daemon that {units.SERVICE} did not start (pid {pid})"
            steps.do("daemon", text, lambda: process.stop(self.state, pid))
        steps.do("enable", "start it at every login", lambda: manager.tell("enable", "--quiet", *names))
        if pid and str(pid) == main and not changed and process.is_of_this_installation(pid):
            steps.say("daemon", "unchanged", f"{units.SERVICE} runs (pid {pid})")
        else:
            steps.do("daemon", f"start {units.SERVICE}", lambda: _restart(manager, names))

    def _linger(self, manager: systemd.Systemd) -> None:
        """Without it the daemon ends with the last logout. It is no failure: new logins start it."""
        if systemd.lingers():
            self.steps.say("linger", "unchanged", "it runs without a login")
            return
        if self.steps.dry_run:
            self.steps.say("linger", "would", "let it run without a login")
            return
        self.receipt.linger = True
        try:
            self.receipt.save()
            manager.enable_linger()
        except (SetupFailed, OSError) as exc:
            self.receipt.linger = False
            with contextlib.suppress(SetupFailed, OSError):
                self.receipt.save()
            remedy = f"sudo loginctl enable-linger {systemd.user_name()}"
            self.steps.say("linger", "warning", f"it stops when you log out ({exc}); to let it run on: {remedy}")
            return
        self.steps.say("linger", "done", "let it run without a login")

    # -- launchd --------------------------------------------------------------------------------------------------

    def with_launchd(self) -> bool:
        """As `with_systemd`."""
        if not launchd.available():
            self.steps.say("service", "warning", "there is no launchctl")
            return False
        try:
            if self._brewed("darwin"):
                return True
        except SetupFailed as exc:
            self.steps.say("service", "warning", str(exc))
            return False
        logs = Path(paths.home()) / "Library/Logs/llm-proxy"
        self.steps.do("folder", f"make {logs}", lambda: self.receipt.make_folder(logs))
        outcome = self._write(agent_path(), units.agent(self.program, str(logs)))
        self.receipt.autostart = "launchd"
        self.steps.do("receipt", f"note it in {self.state}/{receipt.NAME}", self.receipt.save)
        pid = process.owner(self.state)
        loaded = launchd.is_loaded(units.LABEL)
        if loaded and pid and outcome == "unchanged" and process.is_of_this_installation(pid):
            self.steps.say("daemon", "unchanged", f"{units.LABEL} runs (pid {pid})")
            return True
        if pid and not loaded:
            self.steps.do("daemon", f"stop the running daemon (pid {pid})", lambda: process.stop(self.state, pid))
        self.steps.do("daemon", f"load {units.LABEL}", lambda: launchd.load(units.LABEL, str(agent_path())))
        return True

    def _brewed(self, platform: str) -> bool:
        """Whether Homebrew's service starts it; a second one would be in its way."""
        if not brew.starts_it(platform):
            return False
        self.steps.say("service", "unchanged", "Homebrew's service starts it, so there is no need of another")
        self.receipt.autostart = "brew"
        self.steps.do("receipt", f"note it in {self.state}/{receipt.NAME}", self.receipt.save)
        return True

    # -- without a manager ----------------------------------------------------------------------------------------

    def by_shell(self) -> None:
        """New shells start it; for now, this command does."""
        steps = self.steps
        self.receipt.autostart = "shell"
        steps.do("receipt", f"note it in {self.state}/{receipt.NAME}", self.receipt.save)
        steps.say("service", "warning", "no service manager starts the daemon: the next new shell does, when none runs")
        pid = process.owner(self.state)
        if pid and process.is_of_this_installation(pid):
            steps.say("daemon", "unchanged", f"it runs (pid {pid})")
            return
        if pid:
            steps.do("daemon", f"stop the running daemon (pid {pid})", lambda: process.stop(self.state, pid))
        steps.do("daemon", "start it", self._start_detached)

    def _start_detached(self) -> None:
        """Again where a daemon of another version was quicker, as after an upgrade that was broken off."""
        for _ in range(2):
            process.start_detached((self.program, "--service"), self.state)
            pid = process.wait_until_it_answers(self.state).pid
            if process.is_of_this_installation(pid):
                return
            process.stop(self.state, pid)
        raise SetupFailed(f"a daemon of another installation comes first (pid {pid})")

    def shells(self) -> bool:
        """Whether new shells will find the daemon."""
        return shells.setup(self.steps, self.environ)

    def answer(self) -> None:
        """Only a daemon that answers runs. Its keeper has a moment, so that what is shown next is no false alarm."""
        if self.steps.dry_run or self.steps.failed:
            return
        try:
            run = process.wait_until_it_answers(self.state)
        except SetupFailed as exc:
            self.steps.say("running", "failed", str(exc))
            return
        if trouble := process.wait_until_it_records(run):
            self.steps.say("recording", "warning", f"calls are carried, but their record is in trouble: {trouble}")
        self.steps.say("running", "done", f"llm-proxy runs on http://127.0.0.1:{run.port}")


def _reload(manager: systemd.Systemd, folder: Path) -> None:
    """`folder` is where the service's unit is to come from, unless the user has one of their own."""
    manager.tell("daemon-reload")
    own = unit_folder() / units.SERVICE
    found, wanted = manager.show(units.SERVICE, "FragmentPath"), own if own.exists() else folder / units.SERVICE
    if not found or Path(found).resolve() != wanted.resolve():
        raise SetupFailed(f"it takes {units.SERVICE} from {found or 'nowhere'}, not from {wanted}")


def _restart(manager: systemd.Systemd, names: Sequence[str]) -> None:
    with contextlib.suppress(SetupFailed):  # it has never heard of them
        manager.tell("reset-failed", *names)
    if units.SOCKET in names and manager.show(units.SOCKET, "ActiveState") != "active":
        manager.tell("stop", units.SERVICE)  # it holds the port that the socket unit is to take
        manager.tell("start", units.SOCKET)
    manager.tell("restart", units.SERVICE)


def _has_ipv6() -> bool:
    try:
        listen.listen("::1", 0).sockets[0].close()
    except CannotListen:
        return False
    return True


def is_wsl() -> bool:
    try:
        return "microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower()
    except OSError:
        return False
