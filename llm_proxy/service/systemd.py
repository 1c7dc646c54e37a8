"""This user's systemd manager, through systemctl and loginctl: each call has a limit and an error that says why.

Leaves out what the units hold.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llm_proxy.errors import SetupFailed

_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_LINGERING = Path("/var/lib/systemd/linger")
_QUERY_LIMIT = 5.0  # seconds
_CHANGE_LIMIT = 150.0  # starting waits for a daemon that drains (30 s) and for readiness (60 s)


class Systemd:
    """`trouble` says why there is no manager to talk to; empty where there is one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ) | {"LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        self._environ |= _bus(environ)
        self.trouble = self._trouble()

    def ask(self, *arguments: str) -> str:
        """Output of a query to the user manager. Raises SetupFailed."""
        return _run(["systemctl", "--user", *arguments], self._environ, _QUERY_LIMIT)

    def tell(self, *arguments: str) -> None:
        """A change. Raises SetupFailed."""
        _run(["systemctl", "--user", *arguments], self._environ, _CHANGE_LIMIT)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit; empty where it has none or the manager does not answer."""
        try:
            return self.ask("show", "--property", name, unit).strip().partition("=")[2]
        except SetupFailed:
            return ""

    def enable_linger(self) -> None:
        """Run without a login. Raises SetupFailed; without polkit that is root's to allow."""
        _run(["loginctl", "enable-linger", user_name()], self._environ, _QUERY_LIMIT)

    def disable_linger(self) -> None:
        _run(["loginctl", "disable-linger", user_name()], self._environ, _QUERY_LIMIT)

    def _trouble(self) -> str:
        if not _BOOTED.is_dir():
            return "this system was not started by systemd"
        if shutil.which("systemctl", path=self._environ.get("PATH")) is None:
            return "there is no systemctl"
        if not self._environ.get("XDG_RUNTIME_DIR"):
            return f"user {os.getuid()} has no session, so no service manager"
        try:
            self.ask("show-environment")
        except SetupFailed as exc:
            return str(exc)
        return ""


def lingers() -> bool:
    """Whether this user's manager runs without a login."""
    return (_LINGERING / user_name()).exists()


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _bus(environ: Mapping[str, str]) -> dict[str, str]:
    """Where the manager listens: the place logind makes, if it is ours; else what the environment says, if that is."""
    for folder in (f"/run/user/{os.getuid()}", environ.get("XDG_RUNTIME_DIR", "")):
        try:
            if folder and Path(folder).stat().st_uid == os.getuid():
                return {"XDG_RUNTIME_DIR": folder, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus"}
        except OSError:
            continue
    return {"XDG_RUNTIME_DIR": ""}


def _run(command: list[str], environ: Mapping[str, str], limit: float) -> str:
    shown = " ".join(command[:1] + [word for word in command[1:] if word != "--property"])
    try:
        done = subprocess.run(
            command,
            env=environ,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise SetupFailed(f"`{shown}` did not answer within {limit:g} s") from None
    except OSError as exc:
        raise SetupFailed(f"`{shown}` cannot be run: {exc.strerror}") from exc
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise SetupFailed(f"`{shown}` failed: {said[0] if said else f'status {done.returncode}'}")
    return done.stdout
