"""`--uninstall`: undo what setup and the daemon did, in the order in which nothing is left pointing at nothing.

Shells first, the program last; the journal becomes log files before state is removed. Whatever the user has changed
is left and named. Every step may find its work done already. Leaves out what other tools installed: Homebrew is
asked to stop its service, a package's units are switched off, and what removes the program is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from llm_proxy import paths, settings
from llm_proxy.errors import CannotAttach, ConfigError, SetupFailed
from llm_proxy.service import (
    attached,
    brew,
    gateway_secrets,
    launchd,
    packaged,
    process,
    receipt,
    shells,
    systemd,
    units,
)
from llm_proxy.service.daemon import unsettled
from llm_proxy.service.keeping import arguments
from llm_proxy.service.origin import origin
from llm_proxy.service.setup import unit_folder, why_not
from llm_proxy.service.steps import Steps
from llm_proxy.service.supervise import Supervisor

_UNITS = (units.SOCKET, units.SERVICE, units.SAFE)  # stopped in this order, none starts another again
_SETTLE_LIMIT = 60.0  # seconds for the keeper to turn a journal into log files


def run(steps: Steps, environ: Mapping[str, str], *, purge: bool, platform: str = sys.platform) -> int:
    """Do it; the exit status: 0, or 1 where something could not be removed."""
    if refusal := why_not(environ):
        steps.say("user", "failed", refusal)
        return 1
    undo = _Uninstall(steps, environ, purge)
    undo.shells()
    detached = undo.clients()
    if not undo.homebrew(platform):
        return 1
    undo.service(platform)
    undo.daemon()
    if undo.journal() and detached:
        undo.data()
        undo.places()
    return 1 if steps.failed else 0


class _Uninstall:
    def __init__(self, steps: Steps, environ: Mapping[str, str], purge: bool) -> None:
        self.steps, self.environ, self.purge = steps, environ, purge
        self.state = Path(paths.state_folder())
        self.receipt = receipt.load(str(self.state)) or receipt.Receipt(str(self.state))
        self.versions = Path(paths.data_folder()) / "versions"
        self.folders = (*self.receipt.folders, *receipt.made(str(self.state)))
        self.settings = _settings(environ)
        self.logs = Path(self.settings.log_dir)

    def shells(self) -> None:
        """rc files."""
        shells.unsetup(self.steps, self.environ)

    def clients(self) -> bool:
        """Whether every attached client has its own configuration back; the state is needed for that."""
        clients = attached.listed(str(self.state))
        if not clients and (journal := self.state / attached.JOURNAL).exists():
            self.steps.say("client", "failed", f"{journal} cannot be read, and is needed to detach clients")
            return False
        given_back = True
        for client in clients:
            text = f"give {client.client} its configuration back: {', '.join(client.files)}"
            given_back &= self.steps.do("client", text, functools.partial(_detach, str(self.state), client.client))
        return given_back

    def homebrew(self, platform: str) -> bool:
        """Whether Homebrew's service does not start the daemon again, as soon as it is stopped."""
        try:
            if not brew.starts_it(platform):
                return True
        except SetupFailed as exc:
            self.steps.say("service", "warning", str(exc))
            return True
        return self.steps.do("service", f"stop Homebrew's service: {brew.STOP}", brew.stop)

    def service(self, platform: str) -> None:
        if platform == "darwin":
            self._launchd()
        else:
            self._systemd()

    def _systemd(self) -> None:
        steps, folder = self.steps, unit_folder()
        links = [folder / place / name for name, place in packaged.LINKS.items()]
        linked = {link.name for link in links if link.is_symlink()}
        brought = packaged.folder() is not None
        names = [name for name in _UNITS if brought or name in linked or (folder / name).exists()]
        manager = systemd.Systemd(self.environ) if names else None
        if manager is not None and not manager.trouble:
            steps.do("service", f"stop and disable {', '.join(names)}", lambda: _disable(manager, names))
        elif manager is not None:
            steps.say("service", "warning", f"no systemd for this user: {manager.trouble}")
        for link in links:
            if link.is_symlink() and not steps.dry_run:  # systemctl leaves it where the unit's file is gone
                steps.do("file", f"remove {link}", link.unlink)
                with contextlib.suppress(OSError):
                    link.parent.rmdir()
        for path in map(Path, self.receipt.files):
            self._remove(path)
        if manager is not None and not manager.trouble:
            steps.do("manager", "tell systemd that they are gone", lambda: manager.tell("daemon-reload"))
        if self.receipt.linger and systemd.lingers():
            steps.do("linger", "no longer run without a login", systemd.Systemd(self.environ).disable_linger)

    def _launchd(self) -> None:
        if launchd.available():
            self.steps.do("service", f"unload {units.LABEL}", lambda: launchd.unload(units.LABEL))
        for path in map(Path, self.receipt.files):
            self._remove(path)
        self._tree(Path(paths.home()) / "Library/Logs/llm-proxy")

    def daemon(self) -> None:
        pid = process.owner(str(self.state))
        if pid:
            self.steps.do("daemon", f"stop the daemon (pid {pid})", lambda: process.stop(str(self.state), pid))

    def journal(self) -> bool:
        """Whether all that was carried is in the session logs now (or nobody wants them)."""
        folders = unsettled(self.state / "journal") if self.state.exists() else []
        if not folders or self.purge:
            return True
        keep = f"write what was carried last into {self.logs}"
        return self.steps.do("journal", keep, lambda: asyncio.run(_settle(folders, self.settings)))

    def data(self) -> None:
        """What is the user's own goes only when asked for."""
        datasets = Path(self.settings.dataset_folder)
        if self.purge:
            self._remove_written(self.logs, "~/.llm-provider-logs")
            self._remove_written(datasets, "~/.llm-provider-dataset")
            self._tree(Path(paths.config_file()).parent)
            self._tree(Path(paths.data_folder()))
            return
        gateway = Path(gateway_secrets.folder())
        kept = {"session logs": self.logs, "datasets": datasets, "the gateway's store and keys": gateway}
        for what, folder in kept.items():
            if folder.exists():
                self.steps.say("logs", "unchanged", f"{what} stay in {folder}")

    def places(self) -> None:
        self._tree(self.state)
        self._tree(self.versions)
        launcher = Path(paths.home()) / ".local/bin/llm-proxy"
        for draft in launcher.parent.glob(".llm-proxy.[0-9]*"):  # of an installation that was killed
            self.steps.do("program", f"remove {draft}", draft.unlink)
        if _is_our_launcher(launcher):
            self.steps.do("program", f"remove {launcher}", launcher.unlink)
        elif not Path(sys.prefix).is_relative_to(self.versions):
            text = f"the program itself was installed otherwise and stays: {process.program()}"
            self.steps.say("program", "unchanged", f"{text}; to remove it: {origin().remove}")
        for folder in sorted(self.folders, key=len, reverse=True):  # inner ones first
            with contextlib.suppress(OSError):  # not empty: somebody else uses it
                if not self.steps.dry_run:
                    Path(folder).rmdir()

    def _remove(self, path: Path) -> None:
        """A file that setup wrote, if it is still that."""
        if self.receipt.holds(path):
            self.steps.do("file", f"remove {path}", path.unlink)
        elif path.exists() or path.is_symlink():
            self.steps.say("file", "warning", f"{path} is not as setup wrote it, so it stays")

    def _tree(self, folder: Path) -> None:
        if folder.is_symlink():
            self.steps.say("folder", "warning", f"{folder} is a link and stays")
        elif folder.exists():
            self.steps.do("folder", f"remove {folder}", lambda: shutil.rmtree(folder))

    def _remove_written(self, folder: Path, default: str) -> None:
        """What was recorded."""
        if folder == Path(paths.expand(default)):
            self._tree(folder)
        elif folder.exists():  # a folder somebody chose may hold more than that
            self.steps.say("logs", "warning", f"{folder} was chosen by you: delete what you like of it")


def _detach(state: str, client: str) -> None:
    from llm_proxy.service import attach

    for report in attach.detach(state, [client]):
        if report.error:
            raise CannotAttach(report.error)


def _disable(manager: systemd.Systemd, names: list[str]) -> None:
    """Stop them, and take them out of every login."""
    with contextlib.suppress(SetupFailed):  # one whose file is gone; its link is removed after this
        manager.tell("disable", "--quiet", *names)
    if running := [name for name in names if manager.show(name, "ActiveState") not in ("", "inactive", "failed")]:
        manager.tell("stop", *running)
    with contextlib.suppress(SetupFailed):  # there is nothing to reset
        manager.tell("reset-failed", *names)


async def _settle(folders: list[Path], configured: settings.Settings) -> None:
    for folder in folders:
        keeper = Supervisor("llm_proxy.keeper", arguments(configured, folder), errors=f"{folder}/keeper.err")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(keeper.settle(), _SETTLE_LIMIT)
    if left := unsettled(folders[0].parent):
        raise SetupFailed(f"{left[0]} still holds calls, {left[0]}/keeper.err may say why; --purge gives them up")


def _settings(environ: Mapping[str, str]) -> settings.Settings:
    try:
        return settings.load({}, environ, None).settings
    except ConfigError:
        usual = settings.Settings()
        logs, datasets = paths.expand(usual.log_dir), paths.expand(usual.dataset_folder)
        return replace(usual, log_dir=logs, dataset_folder=datasets)


def _is_our_launcher(path: Path) -> bool:
    """Whether the command there runs a version that our installer put into its place."""
    try:
        return not path.is_symlink() and b"/llm-proxy/versions/" in path.read_bytes()[:65536]
    except OSError:
        return False
