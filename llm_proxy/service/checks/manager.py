"""What starts the daemon: systemd, launchd, Homebrew or new shells; one of them, and working."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llm_proxy.errors import SetupFailed
from llm_proxy.service import launchd, receipt, systemd, units
from llm_proxy.service.checks.scene import Finding, Scene, note, problem, quoted
from llm_proxy.service.setup import is_wsl, unit_folder

_ENABLE_SYSTEMD = "printf '[boot]\\nsystemd=true\\n' | sudo tee -a /etc/wsl.conf"


def service(scene: Scene) -> Iterator[Finding]:
    started = scene.status.autostart
    if not started.means:
        yield note("nothing starts it by itself", "llm-proxy --setup")
    elif started.means == "systemd" and started.state not in ("active", "activating"):
        yield problem(f"{units.SERVICE}: {started.state or 'unknown to systemd'}", "llm-proxy --setup")
    elif started.means == "launchd" and started.state != "loaded":
        yield problem(f"launchd's {units.LABEL}: {started.state}", "llm-proxy --setup")
    elif started.means == "shell" and is_wsl():
        yield note("only new shells start it; WSL can run systemd, after `wsl --shutdown`", _ENABLE_SYSTEMD)


def only_one(scene: Scene) -> Iterator[Finding]:
    """Homebrew's service and ours would start a daemon each, and one of them in vain, for ever."""
    if scene.platform == "darwin":
        both = launchd.available() and _loaded(units.LABEL) and _loaded(units.BREW_LABEL)
    else:
        both = all((unit_folder() / name).exists() for name in (units.SERVICE, units.BREW_UNIT))
    if both:
        yield problem("both Homebrew's service and the one of --setup start it", "brew services stop llm-proxy")


def linger(scene: Scene) -> Iterator[Finding]:
    started = scene.status.autostart
    if started.means == "systemd" and not started.without_login:
        yield note("it stops when you log out", f"sudo loginctl enable-linger {quoted(systemd.user_name())}")


def own_files(scene: Scene) -> Iterator[Finding]:
    """Units and agents that the user has changed, so that a newer one could not take their place."""
    known = receipt.load(scene.state)
    for path in map(Path, known.files if known else ()):
        if path.suffix == ".new" and path.exists():
            mine = path.with_suffix("")
            yield note(f"{mine} is yours; the one of this version is {path}", f"diff {quoted(mine)} {quoted(path)}")
        elif known and path.suffix != ".new" and not path.exists():
            yield problem(f"{path}, which setup wrote, is gone", "llm-proxy --setup")


def _loaded(label: str) -> bool:
    try:
        return launchd.is_loaded(label)
    except SetupFailed:
        return False
