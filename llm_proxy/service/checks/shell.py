"""The shell: its variables, the files that set them, the commands on its PATH."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil

from llm_proxy import paths
from llm_proxy.errors import LlmProxyError
from llm_proxy.service import block, environment, process, receipt, shells
from llm_proxy.service.checks.daemon import listens
from llm_proxy.service.checks.scene import Finding, Scene, edit, note, problem, quoted
from llm_proxy.service.origin import DEB_PREFIX, DEB_REMOVE
from llm_proxy.service.status import shown

_SHELL_FILES = (
    *(".bashrc", ".bash_profile", ".bash_login", ".profile", ".zshrc", ".zshenv", ".zprofile", ".zlogin"),
    *(".pam_environment", ".config/fish/config.fish"),
)
_NAMES = "|".join(environment.VARIABLES)
_ASSIGNMENT = re.compile(rf"^\s*(?:export\s+|setenv\s+|set\s+-\S+\s+)*({_NAMES})[=\s]\s*[\"']?(https?://[^\s\"';]+)")

# Variables with which a client goes elsewhere, whatever the base URLs say.
_ASIDE = {
    "ANTHROPIC_API_BASE": "LiteLLM's calls to Anthropic",
    "ANTHROPIC_UNIX_SOCKET": "Claude Code's calls",
    "CLAUDE_CODE_USE_BEDROCK": "Claude Code's calls, to Bedrock,",
    "CLAUDE_CODE_USE_VERTEX": "Claude Code's calls, to Vertex AI,",
    "CLAUDE_CODE_USE_FOUNDRY": "Claude Code's calls, to Foundry,",
    "GOOGLE_VERTEX_BASE_URL": "Gemini's calls to Vertex AI",
    "CODE_ASSIST_ENDPOINT": "Gemini CLI's calls with a Google login",
}

_HTTP_PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_HTTPS_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


class Install(NamedTuple):
    """One way in which the program came here, where it lies, and the command that removes it."""

    way: str
    place: Path
    remove: str


def variables(scene: Scene) -> Iterator[Finding]:
    status = scene.status
    for variable in status.variables:
        if variable.points == "old port":
            mend = 'eval "$(llm-proxy --env)"' if status.running else scene.unset(variable.name)
            yield problem(f"{variable.name} is {variable.value}, where none of ours listens", mend)
        elif variable.points == "elsewhere":
            yield _elsewhere(scene, variable.name, variable.value)
    if scene.environ.get("NO_LLM_PROXY"):
        yield note("NO_LLM_PROXY keeps new shells out of it", scene.unset("NO_LLM_PROXY"))
    elif status.running and all(variable.points == "unset" for variable in status.variables):
        yield note("this shell's clients do not use it", 'eval "$(llm-proxy --env)"')
    for name, calls in _ASIDE.items():
        if scene.environ.get(name):
            yield note(f"{name} is set: {calls} do not pass here", scene.unset(name))


def shell_files(scene: Scene) -> Iterator[Finding]:
    """Base URLs written down, which outlive a daemon and reach every program; and our own lines."""
    live = scene.status.port if scene.status.running else 0
    for path in _files():
        for number, name, value in _assignments(path):
            if environment.is_ours(name, value) and value == environment.base_url(name, live):
                text = f"{path}:{number} sets {name} to a port; one day another program may have it"
                yield note(text, edit(path, number))
            elif environment.is_ours(name, value) or _is_dead(value):
                yield problem(f"{path}:{number} sets {name} to {shown(value)}, where none listens", edit(path, number))
    yield from _blocks(scene)


def _blocks(scene: Scene) -> Iterator[Finding]:
    found = [target.path for target in shells.targets(scene.environ) if target.path.exists()]
    whole = True
    for path in found:
        try:
            block.blocks(path.read_bytes())
        except (LlmProxyError, OSError) as exc:
            whole = False
            yield problem(f"{path}: {exc}", edit(path))
    if whole and found and receipt.load(scene.state) and not shells.patched(scene.environ):
        yield note("no file of your shells has our lines, so new shells do not use it", "llm-proxy --setup-shell")


def path_order(scene: Scene) -> Iterator[Finding]:
    own = Path(process.program())
    first = next(_commands(scene.environ), None)
    mend = f'export PATH={quoted(own.parent)}:"$PATH"'
    if first is None:
        yield note(f"no `llm-proxy` is on the PATH; this one is {own}", mend)
    elif first.resolve() != own.resolve():
        yield problem(f"`llm-proxy` is {first} in this shell, while this one is {own}", mend)


def installs(scene: Scene) -> Iterator[Finding]:
    found = list(_installs(scene.environ))
    if len(found) < 2:
        return
    # the one that is not talking now
    surplus = next((i for i in found if not Path(sys.prefix).resolve().is_relative_to(i.place.resolve())), found[0])
    ways = ", ".join(f"by {install.way} in {install.place}" for install in found)
    yield problem(f"it is installed more than once: {ways}", surplus.remove)


def proxies(scene: Scene) -> Iterator[Finding]:
    """Forward proxies: the clients' calls to loopback must not go through one, the daemon's may have to."""
    environ = scene.environ
    name = next((name for name in _HTTP_PROXIES if environ.get(name)), "")
    excepted = re.split(r"[,\s]+", environ.get("no_proxy") or environ.get("NO_PROXY") or "")
    if name and not {"127.0.0.1", "127.0.0.0/8", "*"}.intersection(excepted):
        old = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        wanted = quoted(",".join(filter(None, ("127.0.0.1", "localhost", old))))
        text = f"{name} is set and NO_PROXY does not name 127.0.0.1: clients ask the proxy for this machine"
        yield problem(text, f"export NO_PROXY={wanted} no_proxy={wanted}")
    name = next((name for name in _HTTPS_PROXIES if environ.get(name)), "")
    if name and scene.status.running and not _daemon_has(scene.status.pid, _HTTPS_PROXIES):
        give = (
            f'systemctl --user set-environment "{name}=${name}"; ' if scene.status.autostart.means == "systemd" else ""
        )
        yield note(f"{name} is set here, but the daemon was started without it", give + scene.restart())


def _elsewhere(scene: Scene, name: str, value: str) -> Finding:
    if _is_dead(value):
        return problem(f"{name} is {shown(value)}, where nothing listens", scene.unset(name))
    return note(f"{name} is {shown(value)}, another tool's: its calls do not pass here", scene.unset(name))


def _is_dead(value: str) -> bool:
    """Whether it leads to a port of this machine that takes no connection. Nothing farther is asked."""
    try:
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return False
    return (host == "localhost" or host == "::1" or host.startswith("127.")) and not listens(host, port)


def _files() -> Iterator[Path]:
    home = Path(paths.home())
    yield from (home / name for name in _SHELL_FILES)
    yield from sorted((home / ".config/environment.d").glob("*.conf"))
    yield Path("/etc/environment")


def _assignments(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, value) of every base URL that the file sets."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines() if path.stat().st_size < 1 << 20 else []
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        if found := _ASSIGNMENT.match(line):
            yield number, found[1], found[2]


def _commands(environ: Mapping[str, str]) -> Iterator[Path]:
    for folder in environ.get("PATH", "").split(os.pathsep):
        path = Path(folder) / "llm-proxy"
        if folder.startswith("/") and path.is_file() and os.access(path, os.X_OK):
            yield path


def _installs(environ: Mapping[str, str]) -> Iterator[Install]:
    home, data = Path(paths.home()), Path(paths.data_folder())
    launcher = home / ".local/bin/llm-proxy"
    if (data / "versions").is_dir() and launcher.exists():
        yield Install("install.sh", data / "versions", f"{quoted(launcher)} --uninstall")
    if DEB_PREFIX.is_dir():
        yield Install("apt", DEB_PREFIX, DEB_REMOVE)
    for prefix in _brew_prefixes(environ):
        if (prefix / "opt/llm-proxy").exists():
            yield Install("Homebrew", prefix / "opt/llm-proxy", "brew uninstall llm-proxy")
            break
    for way, place in (("uv", data.parent / "uv/tools/llm-proxy"), ("pipx", data.parent / "pipx/venvs/llm-proxy")):
        if place.is_dir():
            yield Install(way, place, {"uv": "uv tool", "pipx": "pipx"}[way] + " uninstall llm-proxy")


def _brew_prefixes(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where Homebrew may be: as it says, beside each `brew` on the PATH, and where it installs itself."""
    if said := environ.get("HOMEBREW_PREFIX"):
        yield Path(said)
    for folder in environ.get("PATH", "").split(os.pathsep):
        if (Path(folder) / "brew").is_file():
            yield Path(folder).parent
    yield from map(Path, ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"))


def _daemon_has(pid: int, names: tuple[str, ...]) -> bool:
    try:
        environ = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return True  # nothing is known
    return any(environ.get(name) for name in names)
