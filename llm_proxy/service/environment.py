"""What `--env` prints: the base URLs a shell should export, and its prompt hook; and `run`, the same for one command.

Nothing at all unless the daemon is alive and ours; never an error, never a wait. A variable that points elsewhere is
the user's own and stays. packaging/launcher.sh gives the same answers without Python, wherever it can see the state.
Leaves out rc files.
"""

# pathlib alone would double the time of `--env`.
# ruff: noqa: PTH120, PTH123

from __future__ import annotations

import os
import sys

from llm_proxy import paths
from llm_proxy.service import state

# What follows http://127.0.0.1:PORT in each variable. The OpenAI clients add paths without /v1: the base has it.
VARIABLES = {
    "ANTHROPIC_BASE_URL": "/anthropic/api.anthropic.com",
    "OPENAI_BASE_URL": "/openai/api.openai.com/v1",
    "OPENAI_API_BASE": "/openai/api.openai.com/v1",
    "GOOGLE_GEMINI_BASE_URL": "/gemini/generativelanguage.googleapis.com",
}
# What points Claude Code at Bedrock through us; asked for by `--bedrock` alone, because it changes who is billed.
BEDROCK = {
    "CLAUDE_CODE_USE_BEDROCK": "1",
    "ANTHROPIC_BEDROCK_BASE_URL": "http://127.0.0.1:{port}",
    "CLAUDE_CODE_SKIP_BEDROCK_AUTH": "1",
}
_OURS = ("http://127.0.0.1:", "http://localhost:")  # the second is how the reference program wrote it

_POSIX = ("export {}='{}'\n", "unset {}\n", "{}='{}'\n")
_FISH = ("set -gx {} '{}'\n", "set -e {}\n", "set -g {} '{}'\n")
# How each shell exports, unsets, and sets a variable of its own.
_LINES = {"sh": _POSIX, "bash": _POSIX, "zsh": _POSIX, "fish": _FISH}
_HOOKS = {"bash": "prompt.sh", "zsh": "prompt.sh", "fish": "prompt.fish"}
_PORT = "_llm_proxy_port"  # in a shell with the hook: what its variables name; empty: nothing; off: it was told to stop


def main(arguments: list[str]) -> None:
    """Print for `llm-proxy --env [--bedrock] [--shell NAME] [--unset]`. Never raises: shells run it at start."""
    try:
        text = _answer(arguments, dict(os.environ))
        while text:
            text = text[os.write(1, text.encode()) :]  # ASCII: bytes are characters
    except Exception:  # a new shell is no place for our troubles; --status tells them
        pass


def run(command: list[str]) -> OSError:
    """Become `command`, pointed at the daemon, or at nothing of ours where none serves. What is returned is why not."""
    environ = dict(os.environ)
    port = _serving_port(environ)
    for name in VARIABLES:
        value = environ.get(name, "")
        if port and (not value or is_ours(name, value)):
            environ[name] = base_url(name, port)
        elif is_ours(name, value):
            del environ[name]
    import signal

    for number in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)):
        signal.signal(number, signal.SIG_DFL)  # the interpreter ignores them; the command must not inherit that
    try:
        os.execvpe(command[0], command, environ)
    except OSError as exc:
        return exc


def exports(port: int, environ: dict[str, str], shell: str = "sh") -> str:
    """Lines that set every variable which is unset or already ours."""
    line = _LINES[shell][0]
    return "".join(
        line.format(name, base_url(name, port))
        for name in VARIABLES
        if not environ.get(name) or is_ours(name, environ[name])
    )


def unsets(environ: dict[str, str], shell: str = "sh") -> str:
    """Lines that unset every variable whose value is ours."""
    return "".join(_LINES[shell][1].format(name) for name in VARIABLES if is_ours(name, environ.get(name, "")))


def base_url(name: str, port: int) -> str:
    return f"http://127.0.0.1:{port}{VARIABLES[name]}"


def is_ours(name: str, value: str) -> bool:
    """Whether a value has the form we print, whatever its port."""
    return _leads_here(value, VARIABLES[name])


def _leads_here(value: str, base: str) -> bool:
    for start in _OURS:
        if value.startswith(start):
            port, slash, path = value.removeprefix(start).partition("/")
            return port.isdecimal() and port.isascii() and slash + path in (base, base.removesuffix("/v1"))
    return False


def bedrock_exports(port: int, shell: str = "sh") -> str:
    """Lines that point Claude Code at Bedrock through us."""
    return "".join(_LINES[shell][0].format(name, value.format(port=port)) for name, value in BEDROCK.items())


def _bedrock(environ: dict[str, str], shell: str, port: int, *, unset: bool) -> str:
    """All of them or none: where the base URL leads elsewhere, signing elsewhere must not be switched off."""
    url = environ.get("ANTHROPIC_BEDROCK_BASE_URL", "")
    ours = _leads_here(url, "")
    if ours and (unset or (shell and not port)):
        return "".join(_LINES[shell or "sh"][1].format(name) for name in BEDROCK)
    if unset or not port or (url and not ours) or _signs_nothing(port):
        return ""
    return bedrock_exports(port, shell or "sh")


def _signs_nothing(port: int) -> bool:
    """Whether the daemon says that its Bedrock door is off; then this says so too."""
    from llm_proxy.service import process  # no shell's start asks this

    run = state.read_run(paths.state_folder())
    if run is None or run.port != port or process.health(run, "/health/bedrock", 0.3).get("status") != "disabled":
        return False
    words = "the daemon signs nothing for Bedrock: set bedrock.region in its configuration and start it anew"
    print(f"llm-proxy: {words}", file=sys.stderr)
    return True


def _answer(arguments: list[str], environ: dict[str, str]) -> str:
    shell = _shell(arguments)
    if "--bedrock" in arguments:
        return _bedrock(environ, shell, _serving_port(environ), unset="--unset" in arguments)
    hooked = shell in _HOOKS
    if "--unset" in arguments:
        return unsets(environ, shell or "sh") + (_LINES[shell][2].format(_PORT, "off") if hooked else "")
    if environ.get("NO_LLM_PROXY"):
        return unsets(environ, shell) if shell else ""
    port = _serving_port(environ)
    if port:
        text = exports(port, environ, shell or "sh")
    elif shell:
        text = unsets(environ, shell)
        try:
            _autostart()
        except OSError:  # another shell is at it, or it cannot be done
            pass
    else:
        text = ""
    return text + _hook(shell, port) if hooked and not environ.get("LLM_PROXY_NO_HOOK") else text


def _serving_port(environ: dict[str, str]) -> int:
    """0 where no daemon of ours serves, or this shell wants none."""
    found = None if environ.get("NO_LLM_PROXY") else state.read_run(paths.state_folder())
    return found.port if found is not None and state.serving(found) else 0


def _hook(shell: str, port: int) -> str:
    with open(f"{os.path.dirname(__file__)}/hooks/{_HOOKS[shell]}", encoding="ascii") as file:
        return _LINES[shell][2].format(_PORT, port or "") + file.read()


def _autostart() -> None:
    """Where setup found no service manager, a new shell starts the daemon and does not wait for it. Raises OSError."""
    folder = paths.state_folder()
    with open(f"{folder}/setup.json", encoding="utf-8") as file:
        if '"autostart": "shell"' not in file.read(65536):
            return
    import fcntl

    create = os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{folder}/autostart.lock", os.O_RDWR | create, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # whoever holds it is such a daemon, or starts it
    output = os.open(f"{folder}/autostart.log", os.O_WRONLY | os.O_TRUNC | create, 0o600)
    nothing = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-m", "llm_proxy", "--service"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in ((nothing, 0), (output, 1), (output, 2), (lock, 9))],
        setsid=True,
    )


def _shell(arguments: list[str]) -> str:
    """The shell named, empty where none is."""
    for position, word in enumerate(arguments):
        if word == "--shell" and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith("--shell="):
            return word.removeprefix("--shell=")
    return ""
