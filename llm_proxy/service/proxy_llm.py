"""The configuration of proxy-llm (LLMInteractionRecorderProxy), as values of our settings.

Every key of it is in one of the tables below: it has its meaning here, or is refused by name, all of them at once.
Pure, apart from `load`. Leaves out checking the values, which the settings' rules do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from llm_proxy import paths, settings
from llm_proxy.errors import ConfigError
from llm_proxy.service import doors
from llm_proxy.settings import BY_NAME, Loaded

Given = tuple[str, object, str]  # setting, value, who says so

# Sections that only its files have; `models` alone would be ours too.
SECTIONS = (
    *("server", "storage", "proxy", "monitoring", "logging", "daily_export", "modelscope", "huggingface", "agent"),
    "models",
)
KEYS = {
    "server.host": "host",
    "server.port": "port",
    "server.tls_cert": "named.tls_cert",
    "server.tls_key": "named.tls_key",
    "storage.directory": "dataset.folder",
    "storage.compress": "dataset.compress",
    "storage.rotate": "dataset.rotate",
    "storage.max_size": "dataset.max_size",
    "proxy.max_body_size": "named.max_body",
    "proxy.rate_limit": "named.rate_limit",
    "logging.level": "console.level",
}
ENVIRONMENT = {"PROXY_PORT": "port", "PROXY_STORAGE_DIR": "dataset.folder"}
# Read together with others, in `_auth` and `_pages`.
_TOGETHER = (
    *("proxy.enable_auth", "proxy.auth_header", "proxy.auth_token", "proxy.enable_cors", "proxy.allowed_origins"),
    "logging.request_log",
)


class Fixed(NamedTuple):
    """A key whose other values mean nothing here: those that are taken, and what there is in the place of others."""

    values: tuple[object, ...]
    instead: str


_MESSAGES = "llm-proxy's own messages go to standard error"
_BODIES = "the record has every body, see log_dir"
_PUSH = "nothing is pushed to dataset hubs; `llm-proxy export --format dataset` writes what could be"
FIXED = {
    "storage.format": Fixed(("jsonl", ""), "records are JSON lines"),
    "proxy.enable_stream": Fixed((True,), "a stream passes as a stream, always"),
    "monitoring.enable_health": Fixed((True,), "/health is always there"),
    "monitoring.enable_metrics": Fixed((True,), "/metrics is always there"),
    "monitoring.metrics_path": Fixed(("/metrics", ""), "metrics are at /metrics"),
    "logging.file": Fixed(("",), f"{_MESSAGES}; `2>>FILE` keeps them"),
    "logging.max_size_mb": Fixed((0,), _MESSAGES),
    "logging.max_backups": Fixed((0,), _MESSAGES),
    "logging.max_age_days": Fixed((0,), _MESSAGES),
    "logging.compress": Fixed((False,), _MESSAGES),
    "logging.console": Fixed((True,), _MESSAGES),
    "logging.request_body_log": Fixed((False,), _BODIES),
    "logging.response_body_log": Fixed((False,), _BODIES),
    "logging.upstream_http_log": Fixed((False,), _BODIES),
    "daily_export.enable": Fixed((False,), "`llm-proxy export --format dataset` in a timer of yours exports daily"),
    "modelscope.enable": Fixed((False,), _PUSH),
    "huggingface.enable": Fixed((False,), _PUSH),
}
# What else these sections hold means nothing where they are off; `enable` says whether they are.
_OFF = ("daily_export", "modelscope", "huggingface")
_OF_LOGS = ("logging.upstream_log_max_bytes",)
_LLAMA = ("llama_api", "llama_api_key", "llama_model")
_AGENT = "agent: there is no agent here; take the section out"

_VARIABLE = re.compile(r"\$\{([^}]+)\}")
_TYPO = re.compile(r"\{[A-Z_][A-Z0-9_]*\}")


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: str | None) -> tuple[Loaded, tuple[str, ...]]:
    """The settings, whoever's configuration `config` is, and what has to be said of it. Raises ConfigError."""
    tree = settings.tree(paths.expand(config)) if config is not None else {}
    if config is None or not is_theirs(tree):
        return settings.load(flags, environ, config), ()
    said, warnings = given(tree, config, environ)
    # Ours are stronger: a flag, and a variable that is called as we call it.
    kept = [one for one in said if one[0] not in flags and not environ.get(BY_NAME[one[0]].env)]
    loaded = settings.load(flags, environ, None, kept)
    return doors.through(loaded, doors.PROXY_LLM, always=True), warnings


def is_theirs(tree: Mapping[Any, Any]) -> bool:
    return any(name in tree and name not in BY_NAME and name != "models" for name in SECTIONS)


def given(tree: Mapping[Any, Any], path: str, environ: Mapping[str, str]) -> tuple[list[Given], tuple[str, ...]]:
    """What a configuration and the environment say, weakest first, and warnings. Raises ConfigError."""
    wrong = [f"there is no setting {name!r}" for name in tree if name not in SECTIONS]
    if "agent" in tree:
        wrong.append(_AGENT)
    used = {name: value for name, value in tree.items() if name in SECTIONS and name != "agent"}
    off = [name for name in _OFF if isinstance(used.get(name), dict) and not used[name].get("enable")]
    full = _expanded({name: value for name, value in used.items() if name not in off}, environ, path, wrong)
    models, told = full.pop("models", None) or [], dict(_flat(full))
    wrong += [problem for name, value in told.items() if (problem := _refusal(name, value))]
    if not models:
        wrong.append("models lists none; each needs a name and a base_url")
    said: list[Given] = [("models", list(_models(models, wrong)), path)]
    said += [(KEYS[name], value, f"{path}: {name}") for name, value in told.items() if name in KEYS and value != ""]
    said += _auth(told, path, wrong)
    said += _pages(told, path)
    if told.get("logging.request_log"):
        said.append(("console.format", "plain", f"{path}: logging.request_log"))
    if wrong:
        raise ConfigError(f"{path}: " + "; ".join(wrong))
    warnings = _alone(said, path)
    said += [(name, environ[variable], variable) for variable, name in ENVIRONMENT.items() if environ.get(variable)]
    return said, warnings


def _refusal(name: str, value: object) -> str:
    """What is wrong with a key and its value; empty where nothing is."""
    fixed = FIXED.get(name)
    if fixed is not None:
        return "" if value in fixed.values or value is None else f"{name} is {value!r}, but {fixed.instead}"
    known = name in KEYS or name in _TOGETHER or name in _OF_LOGS
    return "" if known else f"there is no setting {name!r}"


def _models(models: object, wrong: list[str]) -> Iterator[object]:
    """Each without what only concerned llama.cpp."""
    if not isinstance(models, list):
        wrong.append("models must be a list")
        return
    for model in models:
        if not isinstance(model, dict):
            yield model
            continue
        for name in _LLAMA:
            if model.get(name):
                wrong.append(f"models.{name} is set, but llama.cpp is reached at its base_url, like any other")
        yield {name: value for name, value in model.items() if name not in _LLAMA and value not in (None, "")}


def _auth(told: Mapping[str, object], path: str, wrong: list[str]) -> Iterator[Given]:
    if not _is_on(told.get("proxy.enable_auth", False)):
        return
    token = told.get("proxy.auth_token")
    if not token:
        wrong.append("proxy.enable_auth is true, but proxy.auth_token is empty")
        return
    yield "named.token", str(token), f"{path}: proxy.auth_token"
    if header := told.get("proxy.auth_header"):
        yield "named.header", header, f"{path}: proxy.auth_header"


def _pages(told: Mapping[str, object], path: str) -> Iterator[Given]:
    origins = told.get("proxy.allowed_origins")
    if origins and _is_on(told.get("proxy.enable_cors", True)):
        yield "named.origins", origins, f"{path}: proxy.allowed_origins"


def _alone(said: list[Given], path: str) -> tuple[str, ...]:
    """Without a token only this machine is served, whatever `server.host` says: else anybody could spend the keys."""
    values = {name: value for name, value, _ in said}
    host = values.get("host")
    if values.get("named.token") or host in (None, "localhost") or str(host).startswith(("127.", "::1")):
        return ()
    said.append(("host", "127.0.0.1", path))
    return (
        f"{path}: server.host is {host!r}, but without proxy.enable_auth only this machine is served, on 127.0.0.1: "
        "others could spend the keys of your models",
    )


def _is_on(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in ("true", "1", "yes", "on"))


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _expanded(tree: Any, environ: Mapping[str, str], path: str, wrong: list[str], place: str = "") -> Any:
    """With `${VAR}` in every scalar replaced; what the result must be, the settings' rules say."""
    if isinstance(tree, dict):
        return {name: _expanded(value, environ, path, wrong, f"{place}.{name}") for name, value in tree.items()}
    if isinstance(tree, list):
        return [_expanded(value, environ, path, wrong, f"{place}[{number}]") for number, value in enumerate(tree)]
    if not isinstance(tree, str):
        return tree
    place = place.removeprefix(".")
    if _TYPO.fullmatch(tree):
        wrong.append(f"{place} is {tree!r}: a variable is written ${tree}")
    for name in _VARIABLE.findall(tree):
        if not environ.get(name):
            wrong.append(f"{place} names the variable {name}, which is not set")
    return _VARIABLE.sub(lambda match: environ.get(match[1], ""), tree)
