"""What each client needs in its own configuration to talk to the daemon. Decides, and touches no file.

Every fact here was seen in a run of the client, or is in its documentation. Leaves out how a file is edited.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_proxy import paths
from llm_proxy.errors import CannotAttach, UsageError
from llm_proxy.service import environment, userfile
from llm_proxy.service.formats.base import Format, Keys, NotEditable, Value
from llm_proxy.service.formats.dotenv import Dotenv
from llm_proxy.service.formats.jsonc import Json
from llm_proxy.service.formats.toml import Toml
from llm_proxy.service.formats.yaml import Yaml

FORMATS: dict[str, Format] = {
    "toml": Toml(),
    "json": Json(comments=False),
    "jsonc": Json(comments=True),
    "dotenv": Dotenv(),
    "yaml": Yaml(),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One file, its format, and the values it needs, in order. Links may lead anywhere in `within` or the home."""

    path: str
    within: str
    format: str
    values: tuple[tuple[Keys, Value], ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for: the daemon's port, the caller's environment, and `--login` ("", "api-key" or "chatgpt")."""

    port: int
    environ: Mapping[str, str]
    login: str = ""

    def base(self, variable: str) -> str:
        return environment.base_url(variable, self.port)

    def folder(self, variable: str, default: str) -> tuple[str, str]:
        """(the client's folder, the folder that its links may not leave)."""
        named = self.environ.get(variable, "")
        return (paths.expand(named),) * 2 if named else (f"{paths.home()}/{default}", paths.home())


@dataclass(frozen=True, slots=True)
class Client:
    """`note` is what somebody who attaches it should know."""

    name: str
    plans: Callable[[Wish], tuple[Plan, ...]]
    note: str


def _codex(wish: Wish) -> tuple[Plan, ...]:
    folder, within = wish.folder("CODEX_HOME", ".codex")
    path = f"{folder}/config.toml"
    provider = _value(path, "toml", ("model_provider",))
    if provider not in (None, "openai", CODEX_PROVIDER):
        raise CannotAttach(
            f"codex: {path} says model_provider = {provider!r}, whose address is model_providers.{provider}.base_url; "
            f"http://127.0.0.1:{wish.port}/openai/HOST/v1 there leads to HOST through llm-proxy"
        )
    login = wish.login or _codex_login(f"{folder}/auth.json")
    if login == "chatgpt":
        table = ("model_providers", CODEX_PROVIDER)
        values: tuple[tuple[Keys, Value], ...] = (
            (("model_provider",), CODEX_PROVIDER),
            ((*table, "name"), "OpenAI through llm-proxy"),
            ((*table, "base_url"), f"http://127.0.0.1:{wish.port}/backend-api/codex"),
            ((*table, "wire_api"), "responses"),
            ((*table, "requires_openai_auth"), True),
        )
    else:
        values = ((("openai_base_url",), wish.base("OPENAI_BASE_URL")),)
    return (Plan(path, within, "toml", values),)


def _codex_login(path: str) -> str:
    """How Codex is logged in, from the names in its own file; the values stay unread."""
    try:
        facts = json.loads(_text(path))
    except ValueError:
        return "api-key"
    known = isinstance(facts, dict) and facts.get("tokens") and not facts.get("OPENAI_API_KEY")
    return "chatgpt" if known else "api-key"


def _claude(wish: Wish) -> tuple[Plan, ...]:
    folder, within = wish.folder("CLAUDE_CONFIG_DIR", ".claude")
    name = "ANTHROPIC_BASE_URL"
    return (Plan(f"{folder}/settings.json", within, "json", ((("env", name), wish.base(name)),)),)


def _gemini(wish: Wish) -> tuple[Plan, ...]:
    name = "GOOGLE_GEMINI_BASE_URL"
    folder, within = f"{paths.home()}/.gemini", paths.home()
    settings, login = f"{folder}/settings.json", ("security", "auth", "selectedType")
    selected = _value(settings, "jsonc", login)
    if selected not in (None, GEMINI_KEY):
        raise CannotAttach(
            f"gemini: {settings} says security.auth.selectedType = {selected!r}, and Gemini CLI heeds "
            f"{name} with {GEMINI_KEY!r} only"
        )
    return (
        Plan(f"{folder}/.env", within, "dotenv", (((name,), wish.base(name)),)),
        Plan(settings, within, "jsonc", ((login, GEMINI_KEY),)),
    )


def _opencode(wish: Wish) -> tuple[Plan, ...]:
    within = paths.home()
    folder = wish.environ.get("XDG_CONFIG_HOME") or f"{within}/.config"
    if wish.environ.get("XDG_CONFIG_HOME"):
        within = paths.expand(folder)
    base = f"{paths.expand(folder)}/opencode/opencode.json"
    path = f"{base}c" if os.path.lexists(f"{base}c") else base
    values: tuple[tuple[Keys, Value], ...] = (
        # the SDK inside adds paths without /v1, with either provider
        (("provider", "anthropic", "options", "baseURL"), wish.base("ANTHROPIC_BASE_URL") + "/v1"),
        (("provider", "openai", "options", "baseURL"), wish.base("OPENAI_BASE_URL")),
    )
    return (Plan(path, within, "jsonc", values),)


def _aider(wish: Wish) -> tuple[Plan, ...]:
    values: tuple[tuple[Keys, Value], ...] = (
        (("set-env", "OPENAI_API_BASE"), wish.base("OPENAI_API_BASE")),
        (("set-env", "ANTHROPIC_API_BASE"), wish.base("ANTHROPIC_BASE_URL")),
    )
    return (Plan(f"{paths.home()}/.aider.conf.yml", paths.home(), "yaml", values),)


CODEX_PROVIDER = "llm-proxy"
GEMINI_KEY = "gemini-api-key"

CLIENTS = {
    client.name: client
    for client in (
        Client("codex", _codex, "sessions already open go on as they are"),
        Client(
            "claude",
            _claude,
            "with any base URL of its own Claude Code switches off Remote Control, /schedule and the connectors",
        ),
        Client("gemini", _gemini, "a .env in the folder where Gemini CLI is started is read instead of this one"),
        Client("opencode", _opencode, "an opencode.json in a project outweighs this file"),
        Client("aider", _aider, "an openai-api-base of your own, or an .aider.conf.yml in a project, outweighs it"),
    )
}
ALIASES = {"claude-code": "claude", "gemini-cli": "gemini"}

_BY_SHELL = 'it reads the variables that `eval "$(llm-proxy --env)"` sets, or `llm-proxy run -- COMMAND`'
_BY_HAND = "its base URL is set in its own settings: http://127.0.0.1:PORT/{provider}/{host}/v1"
# Those that are asked for, and what to do instead.
REFUSED = {
    **dict.fromkeys(("llm", "litellm", "langchain", "pydantic-ai", "openai", "anthropic", "google-genai"), _BY_SHELL),
    **dict.fromkeys(("cline", "roo", "continue", "zed", "goose", "crush", "cursor", "windsurf", "kilo"), _BY_HAND),
    "boto3": "it reads AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
}


def client_called(name: str) -> Client:
    """Raises UsageError, with what to do instead where that is known."""
    known = ALIASES.get(name.lower(), name.lower())
    if known in CLIENTS:
        return CLIENTS[known]
    instead = REFUSED.get(known, f"those it knows: {', '.join(CLIENTS)}; elsewhere {_BY_HAND}")
    raise UsageError(f"{name} has no configuration that llm-proxy edits; {instead}")


def _value(path: str, form: str, keys: Keys) -> object:
    """A value of a client's file as it stands; None where it is absent, or the file cannot be read (told later)."""
    try:
        raw = FORMATS[form].look(_text(path), keys).raw
        return None if raw is None else FORMATS[form].value(raw)
    except (NotEditable, tomllib.TOMLDecodeError):
        return None


def _text(path: str) -> str:
    """The file's text; empty where it has none that we could take."""
    try:
        file = Path(path)
        return file.read_text("utf-8") if file.is_file() and file.stat().st_size <= userfile.LARGEST else ""
    except (OSError, ValueError):
        return ""
