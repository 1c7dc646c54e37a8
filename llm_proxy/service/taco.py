"""Taco's own configuration, in both of its forms, and its environment: as values of our settings.

Pure. Leaves out reading the file and checking the values: the settings' rules say what is wrong, under Taco's names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from llm_proxy.errors import ConfigError

Given = tuple[str, object, str]  # setting, value, who says so

PORT = 4567
ENABLED = "recording.enabled"

# Taco's keys: those of its README, and the nested ones.
KEYS = {
    "port": "port",
    "recordingEnabled": ENABLED,
    "recordingPath": "daily.folder",
    "claudeUpstream": "upstreams.anthropic",
    "openaiUpstream": "upstreams.openai",
    "geminiUpstream": "upstreams.gemini",
    "recording.enabled": ENABLED,
    "recording.path": "daily.folder",
    "providers.claude.upstream_url": "upstreams.anthropic",
    "providers.openai.upstream_url": "upstreams.openai",
    "providers.gemini.upstream_url": "upstreams.gemini",
    "logging.format": "console.format",
    "logging.level": "console.level",
}
# There is one storage and one format; whoever names another would look for it in vain.
FIXED = {"recording.storage": "file", "recording.format": "jsonl"}
ENVIRONMENT = {
    "TACO_PORT": "port",
    "TACO_RECORDING_ENABLED": ENABLED,
    "TACO_RECORDING_PATH": "daily.folder",
    "TACO_CLAUDE_UPSTREAM": "upstreams.anthropic",
    "TACO_OPENAI_UPSTREAM": "upstreams.openai",
    "TACO_GEMINI_UPSTREAM": "upstreams.gemini",
}
# Recording that is switched off keeps bodies off the disk, the journal's too.
NOT_RECORDED = {"record.metadata_only": True, "record.body_limit": 0}


def given(tree: Mapping[str, Any], path: str, environ: Mapping[str, str]) -> tuple[list[Given], bool]:
    """What a configuration `tree` read from `path` and the environment say, weakest first, and whether to record.

    Raises ConfigError.
    """
    said: list[Given] = [("port", PORT, "start"), ("console.format", "pretty", "start"), *_from_file(tree, path)]
    said += [(name, environ[variable], variable) for variable, name in ENVIRONMENT.items() if environ.get(variable)]
    recording = True
    for name, value, source in said:
        if name == ENABLED:
            recording = _is_on(value, source)
    kept = [one for one in said if one[0] != ENABLED]
    if not recording:
        kept += [(name, value, ENABLED) for name, value in NOT_RECORDED.items()]
    return kept, recording


def _from_file(tree: Mapping[str, Any], path: str) -> Iterator[Given]:
    for name, value in _flat(tree):
        if name in FIXED:
            if value != FIXED[name]:
                raise ConfigError(f"{path}: {name} must be {FIXED[name]!r}, got {value!r}")
        elif name in KEYS:
            yield KEYS[name], value, f"{path}: {name}"
        else:
            close = get_close_matches(name, (*KEYS, *FIXED), 1)
            hint = f"did you mean {close[0]!r}?" if close else "docs/doors.md lists all"
            raise ConfigError(f"{path}: Taco has no setting {name!r}; {hint}")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(known.startswith(f"{name}.") for known in (*KEYS, *FIXED)):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _is_on(value: object, source: str) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    found = value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(f"{source} must be true or false, got {value!r}")
    return found
