"""What `--env` prints: the base URLs a shell should export, or nothing.

Nothing at all unless the daemon is alive and ours; never an error, never a wait. A variable that points elsewhere is
the user's own and stays. Leaves out prompt hooks and rc files.
"""

from __future__ import annotations

import os

from llm_proxy import paths
from llm_proxy.service import state

# What follows http://127.0.0.1:PORT in each variable. The OpenAI clients add paths without /v1: the base has it.
VARIABLES = {
    "ANTHROPIC_BASE_URL": "/anthropic/api.anthropic.com",
    "OPENAI_BASE_URL": "/openai/api.openai.com/v1",
    "OPENAI_API_BASE": "/openai/api.openai.com/v1",
    "GOOGLE_GEMINI_BASE_URL": "/gemini/generativelanguage.googleapis.com",
}
_OURS = ("http://127.0.0.1:", "http://localhost:")  # the second is how the reference program wrote it

EXPORT = {"sh": "export {}='{}'\n", "bash": "export {}='{}'\n", "zsh": "export {}='{}'\n", "fish": "set -gx {} '{}'\n"}
UNSET = {"sh": "unset {}\n", "bash": "unset {}\n", "zsh": "unset {}\n", "fish": "set -e {}\n"}


def main(arguments: list[str]) -> None:
    """Print for `llm-proxy --env [--shell NAME] [--unset]`. Never raises, so that no shell start-up shows an error."""
    try:
        text = _answer(arguments, dict(os.environ))
        while text:
            text = text[os.write(1, text.encode()) :]  # ASCII: bytes are characters
    except Exception:  # a new shell is no place for our troubles; --status tells them
        pass


def exports(port: int, environ: dict[str, str], shell: str = "sh") -> str:
    """Lines that set every variable which is unset or already ours."""
    line = EXPORT[shell]
    return "".join(
        line.format(name, base_url(name, port))
        for name in VARIABLES
        if not environ.get(name) or is_ours(name, environ[name])
    )


def unsets(environ: dict[str, str], shell: str = "sh") -> str:
    """Lines that unset every variable whose value is ours."""
    return "".join(UNSET[shell].format(name) for name in VARIABLES if is_ours(name, environ.get(name, "")))


def base_url(name: str, port: int) -> str:
    return f"http://127.0.0.1:{port}{VARIABLES[name]}"


def is_ours(name: str, value: str) -> bool:
    """Whether a value has the form we print, whatever its port."""
    for start in _OURS:
        if value.startswith(start):
            port, slash, path = value.removeprefix(start).partition("/")
            base = VARIABLES[name]
            return port.isdecimal() and slash + path in (base, base.removesuffix("/v1"))
    return False


def _answer(arguments: list[str], environ: dict[str, str]) -> str:
    shell = _shell(arguments)
    if "--unset" in arguments:
        return unsets(environ, shell)
    if environ.get("NO_LLM_PROXY"):
        return ""
    run = state.read_run(paths.state_folder())
    return exports(run.port, environ, shell) if run is not None and state.alive(run) else ""


def _shell(arguments: list[str]) -> str:
    for position, word in enumerate(arguments):
        if word == "--shell" and position + 1 < len(arguments):
            return arguments[position + 1]
        if word.startswith("--shell="):
            return word.removeprefix("--shell=")
    return "sh"
