"""Every setting, once: name, type, default, rule and one sentence, as the fields of `Settings`.

Sources, strongest first: flags, environment (`LLM_PROXY_…`), the configuration file, the default. Only `service` and
`cli` read settings; the parts receive plain values. Leaves out what a setting does to its part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from itertools import chain
from typing import Any, NamedTuple

from llm_proxy import paths
from llm_proxy.errors import ConfigError

KIB, MIB, GB = 1 << 10, 1 << 20, 10**9

# Powers of 1024 only where they are spelled so: "2 GB" is what disk makers and du --si call two gigabytes.
_UNITS = {"GB": GB, "GiB": 1 << 30, "MB": 10**6, "MiB": MIB, "kB": 10**3, "KiB": KIB, "B": 1}
_BY_SPELLING = {"": 1} | {unit.lower(): size for unit, size in _UNITS.items()}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)
_NETWORK = re.compile(r"[0-9a-f:.]{2,45}(?:/[0-9]{1,3})?", re.ASCII)
_HOST_NAME = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]{0,252}[a-z0-9])?)(?::\d{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"(?:[a-z][a-z0-9+.-]*)://[^\s/?#@]+", re.ASCII)
_UPSTREAM = re.compile(rf"(?:https?://)?{_HOST_NAME.pattern}", re.ASCII)
_ENDPOINT = rf"https?://{_HOST_NAME.pattern}/?"
_BASE = rf"(?i:https?://{_HOST_NAME.pattern})(?:/[!-\"$->@-~]*)?"
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)[ \t]*")
# They are the message's or the connection's own (RFC 9110 §7.6.1).
_NOT_ADDED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer"}
    | {"proxy-connection", "proxy-authorization"}
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be, in words, and the function that reads it (text or a file's value; ValueError if not).

    A `secret` one is shown in no message.
    """

    words: str
    read: Callable[[Any], Any]
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """One of `models`: what clients call it, where it is, what it is called there. `timeout` is seconds, 0 for none."""

    name: str
    base_url: str = ""
    base_url_anthropic: str = ""
    api_key: str = field(default="", repr=False)
    model: str = ""
    timeout: float = 0.0
    max_retries: int = 2


class _Hidden:
    def __repr__(self) -> str:
        return "something else"


class _WrongItem(ValueError):
    """One value of a table breaks its own rule: its name within the table, that rule, the value."""

    def __init__(self, name: str, words: str, value: object) -> None:
        super().__init__(name)
        self.name = name
        self.words = words
        self.value = value


def _whole(low: int, high: int) -> Rule:
    def read(value: object) -> int:
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Rule(f"a whole number from {low} to {high}", read)


def _seconds(low: float, high: float) -> Rule:
    def read(value: object) -> float:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not low <= number <= high:  # NaN fails this too
            raise ValueError
        return number

    return Rule(f"a number of seconds from {low:g} to {high:g}", read)


def _days() -> Rule:
    seconds = _seconds(0, 36_500)
    return Rule("a number of days, 0 for never", seconds.read)


def _size(low: int, high: int) -> Rule:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].lower() not in _BY_SPELLING:
            raise ValueError
        number = int(float(match[1]) * _BY_SPELLING[match[2].lower()])
        if not low <= number <= high:
            raise ValueError
        return number

    return Rule(f'a size such as "64 MiB" or "2 GB", from {size_text(low)} to {size_text(high)}', read)


def _choice(*names: str) -> Rule:
    def read(value: object) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Rule("one of " + ", ".join(names), read)


def _headers() -> Rule:
    def fields(value: object) -> list[str]:
        import json

        if isinstance(value, str):
            value = json.loads(value) if value.lstrip().startswith("{") else value.splitlines()
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
            value = [f"{name}: {text}" for name, text in value.items()]
        if not isinstance(value, list | tuple):
            raise ValueError
        return [line for line in value if line != ""]

    def read(value: object) -> tuple[tuple[str, str], ...]:
        found = [_HEADER.fullmatch(line) for line in fields(value)]
        kept = tuple((match[1], match[2]) for match in found if match is not None)
        if len(kept) < len(found) or any(name.lower() in _NOT_ADDED for name, _ in kept):
            raise ValueError
        return kept

    words = 'fields such as "X-Team: blue", none of Host, Content-Length and those of the connection'
    return Rule(f"{words} (a line each, or JSON, in the environment; in a file a table does too)", read, secret=True)


LEVELS = ("none", "metadata", "redacted", "full")  # of what is kept or shown, from the least to the most
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)


def _duration(value: object) -> float:
    """Seconds as a number, or as in `120s` and `1m30s`. Raises ValueError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())) and match[0]:
        return sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1, 0.001), strict=True))
    return float(_seconds(0, 86400).read(value))


def _models() -> Rule:
    name_rule = _text(r"[^\x00-\x1f\x7f]{1,200}", "a name of at most 200 characters")
    url = _text(_BASE, "a URL such as https://api.openai.com/v1")
    key = _text(r"[\x21-\x7e]{1,4096}", "a key without spaces")
    retries = _whole(0, 10)
    rules = {
        "name": name_rule,
        "base_url": url,
        "base_url_anthropic": url,
        "api_key": key,
        "model": name_rule,
        "timeout": Rule('a time such as "120s", or seconds', _duration),
        "max_retries": retries,
    }

    def one(table: object) -> Model:
        name = table.get("name") if isinstance(table, dict) else None
        if not isinstance(table, dict) or not isinstance(name, str) or not name:
            raise _WrongItem("name", "what clients call the model", name)
        read: dict[str, Any] = {}
        for item, value in table.items():
            if item not in rules:
                raise _WrongItem(f'"{name}"', f"a table of {', '.join(rules)}", item)
            try:
                read[item] = rules[item].read(value)
            except (ValueError, TypeError, OverflowError):
                shown = _Hidden() if item == "api_key" else value
                raise _WrongItem(f'"{name}".{item}', rules[item].words, shown) from None
        model = Model(**read)
        if not model.base_url and not model.base_url_anthropic:
            raise _WrongItem(f'"{name}"', "given a base_url, a base_url_anthropic, or both", "neither")
        return model if model.model else replace(model, model=model.name)

    def read(value: object) -> tuple[Model, ...]:
        import json

        tables = json.loads(value) if isinstance(value, str) else value
        if not isinstance(tables, list | tuple):
            raise ValueError
        models = tuple(one(table) for table in tables)
        for number, model in enumerate(models):
            if any(model.name == other.name for other in models[:number]):
                raise _WrongItem("name", "different for each model", model.name)
        return models

    return Rule(
        "a table per model, with name, base_url or base_url_anthropic, api_key, and perhaps model, timeout and "
        "max_retries (a list in JSON in the environment)",
        read,
        secret=True,
    )


def _file() -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise ValueError
        return paths.expand(value) if value.strip() else ""

    return Rule("a file; ~ is your home, or nothing", read)


def _yes_or_no() -> Rule:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        if not isinstance(value, str) or value.strip().lower() not in words:
            raise ValueError
        return words[value.strip().lower()]

    return Rule("true or false", read)


def _switch() -> Rule:
    yes_or_no = _yes_or_no()

    def read(value: object) -> str:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        return "true" if yes_or_no.read(value) else "false"

    return Rule("true, false or auto", read)


def _folder() -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError
        return paths.expand(value)

    return Rule("a folder; ~ is your home", read)


def _address() -> Rule:
    import socket

    def read(value: object) -> str:
        text = "127.0.0.1" if value == "localhost" else value
        if not isinstance(text, str):
            raise ValueError
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, text))
        except OSError:
            raise ValueError from None

    return Rule("an IP address of this machine, or localhost", read)


def _list_of(pattern: re.Pattern[str], words: str) -> Rule:
    def read(value: object) -> tuple[str, ...]:
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ValueError
        kept = tuple(item.lower() for item in items if item != "")
        if not all(isinstance(item, str) and pattern.fullmatch(item) for item in kept):
            raise ValueError
        return kept

    return Rule(f"a list (with commas in the environment) of {words}", read)


def _text(pattern: str, words: str) -> Rule:
    compiled = re.compile(pattern, re.ASCII)

    def read(value: object) -> str:
        if not isinstance(value, str) or (value and compiled.fullmatch(value.strip()) is None):
            raise ValueError
        return value.strip()

    return Rule(f"{words}, or nothing", read)


# What may be priced: classes of tokens per million, and by use. `records.pricing` computes with them.
_PRICED = (
    *("input", "input_audio", "input_image", "cache_read", "cache_read_audio", "cache_write_5m", "cache_write_1h"),
    *("output", "reasoning", "output_audio", "output_image"),
    *("requests", "web_search", "file_search", "code_execution"),
)


def _prices() -> Rule:
    from decimal import Decimal, InvalidOperation

    def number(name: str, value: object) -> str:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                dollars = Decimal(str(value))
            except InvalidOperation:
                dollars = Decimal("NaN")
            if dollars.is_finite() and 0 <= dollars <= 1_000_000:
                return str(dollars)
        raise _WrongItem(name, "a number of US dollars, 0 or more", value)

    def of_model(model: str, table: object) -> tuple[tuple[str, str], ...]:
        if not isinstance(table, dict) or not table:
            raise _WrongItem(f'"{model}"', "a table such as {input = 1.5, output = 6}", table)
        for name in table:
            if name not in _PRICED:
                raise _WrongItem(f'"{model}"', f"a table of prices for {', '.join(_PRICED)}", name)
        return tuple((name, number(f'"{model}".{name}', value)) for name, value in table.items())

    def read(value: object) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
        import json

        tables = json.loads(value) if isinstance(value, str) else dict(value)  # type: ignore[call-overload]
        if not isinstance(tables, dict) or not all(isinstance(model, str) and model for model in tables):
            raise ValueError
        return tuple((model, of_model(model, table)) for model, table in tables.items())

    example = '{"my-model" = {input = 1.5, output = 6}}'
    return Rule(f"a table per model or pattern of models, such as {example} (JSON in the environment)", read)


_PATTERN_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_LONGEST_PATTERN = 500


def _patterns() -> Rule:
    words = "a regular expression of at most 500 characters that matches no empty text and repeats no repetition"

    def pattern(name: str, value: object) -> str:
        if _PATTERN_NAME.fullmatch(name) is None:
            raise _WrongItem(f'"{name}"', "named in capitals, digits and _, such as EMPLOYEE_ID", name)
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATTERN:
            raise _WrongItem(name, words, value)
        try:
            compiled = re.compile(value)
        except (re.error, OverflowError, RecursionError):
            raise _WrongItem(name, words, value) from None
        if compiled.search("") or _repeats_a_repetition(value):
            raise _WrongItem(name, words, value)
        return value

    def read(value: object) -> tuple[tuple[str, str], ...]:
        import json

        table = json.loads(value) if isinstance(value, str) else dict(value)  # type: ignore[call-overload]
        if not isinstance(table, dict):
            raise ValueError
        return tuple((str(name), pattern(str(name), given)) for name, given in table.items())

    return Rule(
        "a table of names and regular expressions, such as {EMPLOYEE_ID = 'E-[0-9]{6}'} (JSON in the environment)", read
    )


def _repeats_a_repetition(pattern: str) -> bool:
    """Whether it holds something like `(a+)*`, which can take for ever on a text that it does not match."""
    from re import _constants, _parser  # type: ignore[attr-defined]

    loops = (_constants.MAX_REPEAT, _constants.MIN_REPEAT)

    def within(part: Any, inside: bool) -> bool:
        if isinstance(part, tuple) and len(part) == 2 and part[0] in loops:
            _, high, repeated = part[1]
            endless = high == _constants.MAXREPEAT
            return (endless and inside) or within(repeated, inside or endless)
        return isinstance(part, tuple | list | _parser.SubPattern) and any(within(one, inside) for one in part)

    return within(_parser.parse(pattern), False)


def _server() -> Rule:
    """A URL that may hold credentials, which are for nobody to see."""
    from urllib.parse import urlsplit

    def read(value: object) -> str:
        if not isinstance(value, str) or len(value) > 2048:
            raise ValueError
        text = value.strip()
        parts = urlsplit(text)
        if text and (
            re.fullmatch(r"[!-~]+", text) is None
            or parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.fragment
            or parts.port == 0  # asking for it raises ValueError where it is none
        ):
            raise ValueError
        return text

    return Rule("a URL such as http://127.0.0.1:3100, or nothing", read, secret=True)


def _store() -> Rule:
    """It may hold a password; which parameters it has is the driver's business."""
    return replace(
        _text(
            r"postgres(?:ql)?://[!-~]{1,2000}|sqlite:///[!-~]{1,2000}",
            "postgresql://… or sqlite:////path",
        ),
        secret=True,
    )


def _postgres() -> Rule:
    return replace(_text(r"postgres(?:ql)?://[!-~]{1,2000}", "postgresql://user:password@host/database"), secret=True)


def _redis() -> Rule:
    return replace(_text(r"(?:rediss?|unix)://[!-~]{1,2000}", "redis://… or rediss://…"), secret=True)


_SINK = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)


def _own_sinks() -> Rule:
    def read(value: object) -> tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]:
        import json

        tables = json.loads(value) if isinstance(value, str) else dict(value)  # type: ignore[call-overload]
        if not isinstance(tables, dict):
            raise ValueError
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise _WrongItem(str(name), "a table of options", table)
        return tuple((str(name), tuple(table.items())) for name, table in tables.items())

    return Rule("a table per sink of your own, such as {mine = {path = '/srv'}} (JSON in the environment)", read)


def _columns() -> Rule:
    known = (
        *("method", "url", "request", "response", "time", "status", "ending", "error", "provider", "model"),
        *(
            "input_tokens",
            "output_tokens",
            "tokens",
            "cost",
            "duration_ms",
            "first_token_ms",
            "project",
            "session",
            "id",
        ),
    )

    def read(value: object) -> tuple[str, ...]:
        items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(item in known for item in items if item != ""):
            raise ValueError
        return tuple(str(item) for item in items if item != "")

    return Rule(f"a list (with commas in the environment) of {', '.join(known)}", read)


def _projects() -> Rule:
    def read(value: object) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise ValueError
        kept = [item.strip() for item in items if item.strip()]
        return tuple(paths.expand(item) if item.startswith("~") else item for item in kept)

    return Rule("a list (with commas in the environment) of names, or of folders such as ~/oss/*", read)


def size_text(size: int) -> str:
    """The shortest exact spelling: "8 MiB", "2 GB", else bytes."""
    return next(f"{size // unit} {name}" for name, unit in _UNITS.items() if size % unit == 0 and (size or unit == 1))


def _setting(name: str, default: Any, rule: Rule, sentence: str) -> Any:
    metadata = {"name": name, "rule": rule, "sentence": sentence}
    return field(default=default, metadata=metadata, repr=not rule.secret)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings with their values. Sizes are bytes, times seconds, folders absolute once loaded."""

    port: int = _setting(
        "port",
        8080,
        _whole(0, 65535),
        "Port to listen on; 0 takes a free one. With `--service` only a port set here holds.",
    )
    host: str = _setting("host", "127.0.0.1", _address(), "Address to listen on. 127.0.0.1 serves this machine alone.")
    log_dir: str = _setting("log_dir", "~/.llm-provider-logs", _folder(), "Folder of the session logs.")
    drain_timeout: float = _setting(
        "drain_timeout", 25.0, _seconds(0, 86400), "How long open calls may go on after a stop was asked for."
    )
    loop: str = _setting(
        "loop", "auto", _choice("auto", "uvloop", "asyncio"), "Event loop; auto is uvloop where it is installed."
    )
    console: str = _setting(
        "console.format",
        "none",
        _choice("none", "pretty", "json", "plain"),
        "Whether each call is told on stdout once it is over, and how.",
    )
    console_level: str = _setting(
        "console.level",
        "info",
        _choice("debug", "info", "warn", "error"),
        "Of which calls: info is all of them, warn those with a status from 300 on, error from 400 on or with none.",
    )
    hosts: tuple[str, ...] = _setting(
        "listen.hosts", (), _list_of(_HOST_NAME, "host names"), "`Host` names accepted beside the loopback names."
    )
    origins: tuple[str, ...] = _setting(
        "listen.origins",
        (),
        _list_of(_ORIGIN, "origins such as https://tool.example"),
        "Browser origins that may call.",
    )
    remote_routes: bool = _setting(
        "listen.remote_routes",
        False,
        _yes_or_no(),
        "Whether pass-through routes are open to whoever comes when `host` is not a loopback address, without a token.",
    )
    max_connections: int = _setting(
        "listen.max_connections",
        4096,
        _whole(1, 1_000_000),
        "Client connections held at a time; the limit on open files may allow fewer.",
    )
    token: str = _setting(
        "listen.token",
        "",
        replace(_text(r"[\x21-\x7e]{16,512}", "at least 16 letters, digits or signs without a space"), secret=True),
        "What opens the doors that spend your credentials to callers that are not your own programs on this machine, "
        "and everything else where `host` is not a loopback address.",
    )
    policy: str = _setting(
        "upstreams.policy",
        "public",
        _choice("public", "known"),
        "Which upstreams may be called: any public host and loopback, or the known providers only.",
    )
    allow: tuple[str, ...] = _setting(
        "upstreams.allow",
        (),
        _list_of(_UPSTREAM, "upstreams such as http://192.168.1.5:8000"),
        "Upstreams allowed beyond the policy, with the scheme written here.",
    )
    connect_timeout: float = _setting(
        "upstreams.connect_timeout", 30.0, _seconds(0.1, 3600), "Limit for reaching an upstream, TLS included."
    )
    header_timeout: float = _setting(
        "upstreams.header_timeout", 1800.0, _seconds(0, 86400), "Limit for the first byte of an answer; 0 is none."
    )
    idle_timeout: float = _setting(
        "upstreams.idle_timeout", 1800.0, _seconds(0, 86400), "Limit for silence within an answer; 0 is none."
    )
    anthropic: str = _setting(
        "upstreams.anthropic",
        "",
        _text(_BASE, "a URL such as https://llm.example.com/team-a"),
        "Where bare API paths of Anthropic go, instead of https://api.anthropic.com.",
    )
    openai: str = _setting(
        "upstreams.openai",
        "",
        _text(_BASE, "a URL such as https://llm.example.com/team-a"),
        "Where bare API paths of OpenAI go, instead of https://api.openai.com.",
    )
    gemini: str = _setting(
        "upstreams.gemini",
        "",
        _text(_BASE, "a URL such as https://llm.example.com/team-a"),
        "Where bare API paths of Gemini go, instead of https://generativelanguage.googleapis.com.",
    )
    target_url: str = _setting(
        "target.url",
        "",
        _text(_BASE, "a URL such as https://api.openai.com/v1, without query or password"),
        "The one upstream that every path goes to, behind the path written here; for runs in a terminal.",
    )
    target_headers: tuple[tuple[str, str], ...] = _setting(
        "target.headers",
        (),
        _headers(),
        "Header fields that go to the target, in the place of a client's of these names.",
    )
    models: tuple[Model, ...] = _setting(
        "models", (), _models(), "Models by names of your own, each at an upstream with a key; this opens their door."
    )
    named_token: str = _setting(
        "named.token",
        "",
        replace(_text(r"[\x21-\x7e]{1,512}", "letters, digits or signs without a space"), secret=True),
        "What every request has to bring, except those for `/health` and the explorer.",
    )
    named_header: str = _setting(
        "named.header",
        "Authorization",
        _text(r"[A-Za-z0-9_-]{1,64}", "the name of a header field"),
        "The field in which `named.token` comes; as a bearer token and as `x-api-key` it is taken too.",
    )
    named_origins: tuple[str, ...] = _setting(
        "named.origins",
        (),
        _list_of(
            re.compile(rf"\*|{_ORIGIN.pattern}", re.ASCII), "origins such as https://tool.example, or * with a token"
        ),
        "Pages of other sites that may call named models (CORS).",
    )
    named_rate_limit: int = _setting(
        "named.rate_limit", 0, _whole(0, 1_000_000), "Calls of named models a minute; 0 is no limit."
    )
    named_max_body: int = _setting(
        "named.max_body",
        32 * MIB,
        _size(KIB, 1 << 30),
        "Largest body of a request; its model is read before it is sent, and so it is held in memory, whole.",
    )
    named_tls_cert: str = _setting(
        "named.tls_cert", "", _file(), "Certificate (PEM) with which the port speaks TLS; for runs in a terminal."
    )
    named_tls_key: str = _setting("named.tls_key", "", _file(), "Its key.")
    bedrock_region: str = _setting(
        "bedrock.region",
        "",
        _text(r"[a-z0-9-]{4,32}", "an AWS region such as us-west-2"),
        "Region in which Amazon Bedrock is called; this switches Bedrock on.",
    )
    bedrock_secret: bool = _setting(
        "bedrock.secret", False, _yes_or_no(), "Whether callers must bring the local secret, your own programs too."
    )
    bedrock_profile: str = _setting(
        "bedrock.profile",
        "",
        _text(r"[^\x00-\x1f\x7f]{1,128}", "the name of a profile in AWS's own files"),
        "Profile that credentials are taken from.",
    )
    bedrock_endpoint: str = _setting(
        "bedrock.endpoint",
        "",
        _text(_ENDPOINT, "a URL such as https://vpce-1.bedrock-runtime.us-west-2.vpce.amazonaws.com"),
        "Where models are called instead of at the region's own host.",
    )
    bedrock_control_endpoint: str = _setting(
        "bedrock.control_endpoint",
        "",
        _text(_ENDPOINT, "a URL such as https://bedrock-fips.us-west-2.amazonaws.com"),
        "Where models and inference profiles are listed; where only `bedrock.endpoint` is set, that one.",
    )
    bedrock_max_body: int = _setting(
        "bedrock.max_body",
        25 * 10**6,
        _size(KIB, 1 << 30),
        "Largest body of a request; it is signed, and so held in memory, whole.",
    )
    bedrock_max_concurrent: int = _setting(
        "bedrock.max_concurrent",
        0,
        _whole(0, 100_000),
        "Calls under way at a time; the others wait, first come, first served. 0 is no limit.",
    )
    ring_size: int = _setting(
        "journal.ring_size", 8 * MIB, _size(MIB, 1 << 30), "Shared memory between the wire and the disk."
    )
    cap: int = _setting(
        "journal.cap", 2 * GB, _size(16 * MIB, 1 << 50), "Disk the journal may take; beyond it bodies are not recorded."
    )
    body_limit: int = _setting(
        "record.body_limit", 32 * MIB, _size(0, 1 << 40), "Bytes kept of each body; more is carried, not recorded."
    )
    metadata_only: bool = _setting(
        "record.metadata_only",
        False,
        _yes_or_no(),
        "Record who called what, when, with which tokens and cost, and no word of what was said.",
    )
    sinks: tuple[str, ...] = _setting(
        "sinks",
        ("sessions",),
        _list_of(_SINK, "names of sinks: sessions, daily, csv, dataset, loki, or one of your own"),
        "What the record is written to; without `sessions`, session logs go two days after their last line.",
    )
    daily_folder: str = _setting(
        "daily.folder", "~/.llm-provider-logs", _folder(), "Folder of the files `recordings-YYYY-MM-DD.jsonl`."
    )
    csv_file: str = _setting("csv.file", "~/.llm-provider-logs/log.csv", _folder(), "The CSV file, a row per call.")
    csv_header: bool = _setting("csv.header", False, _yes_or_no(), "Begin the file with a row that names the columns.")
    csv_columns: tuple[str, ...] = _setting(
        "csv.columns", ("method", "url", "request", "response"), _columns(), "The columns, in order."
    )
    csv_defuse: bool = _setting(
        "csv.defuse",
        False,
        _yes_or_no(),
        "Put `'` before cells that a spreadsheet would take for a formula.",
    )
    dataset_folder: str = _setting(
        "dataset.folder", "~/.llm-provider-dataset", _folder(), "Folder of the dataset's records and streams."
    )
    dataset_compress: bool = _setting("dataset.compress", False, _yes_or_no(), "Write records compressed (gzip).")
    dataset_rotate: str = _setting(
        "dataset.rotate",
        "daily",
        _choice("daily", "weekly", "size"),
        "When a session's records go on in a new file.",
    )
    dataset_max_size: int = _setting(
        "dataset.max_size", 100 * 10**6, _size(10**3, 1 << 50), "Size of a file of records where `rotate` is size."
    )
    own_sinks: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = _setting(
        "sink", (), _own_sinks(), "Options for sinks of your own, a table for each by its name."
    )
    loki_enabled: bool = _setting(
        "loki.enabled", False, _yes_or_no(), "Send each call to Grafana Loki too; the same as `loki` in `sinks`."
    )
    loki_url: str = _setting(
        "loki.url", "", _server(), "Where Loki takes entries; a URL without a path gets `/loki/api/v1/push`."
    )
    loki_auth_token: str = _setting(
        "loki.auth_token",
        "",
        replace(_text(r"[\x21-\x7e]{1,4096}", "a token without spaces"), secret=True),
        "Sent as a bearer token.",
    )
    loki_username: str = _setting(
        "loki.username", "", _text(r"[^\x00-\x1f\x7f:]{1,256}", "a name without a colon"), "Who sends (basic auth)."
    )
    loki_password: str = _setting(
        "loki.password",
        "",
        replace(_text(r"[^\x00-\x1f\x7f]{1,4096}", "a password"), secret=True),
        "The password, or the key, that goes with it.",
    )
    loki_tenant: str = _setting(
        "loki.tenant",
        "",
        _text(r"[A-Za-z0-9!_.*'()|-]{1,150}", "a tenant's id"),
        "Whose entries they are, where Loki has several tenants (`X-Scope-OrgID`).",
    )
    loki_ca_file: str = _setting(
        "loki.ca_file", "", _file(), "Certificates (PEM) by which Loki is known, instead of the system's."
    )
    loki_batch_size: int = _setting("loki.batch_size", 1000, _whole(1, 100_000), "Most entries in one push.")
    loki_max_batch_bytes: int = _setting(
        "loki.max_batch_bytes", MIB, _size(64 * KIB, 64 * MIB), "Largest push, before compression."
    )
    loki_batch_wait: float = _setting(
        "loki.batch_wait",
        5.0,
        Rule('a time such as "5s" or "500ms", or seconds', _duration),
        "How long fewer entries wait for others.",
    )
    loki_retry_max: int = _setting(
        "loki.retry_max",
        5,
        _whole(1, 1000),
        "Attempts in a row that may fail before the sink counts as unhealthy; it goes on trying, without an end.",
    )
    loki_use_gzip: bool = _setting("loki.use_gzip", True, _yes_or_no(), "Compress what is pushed.")
    loki_environment: str = _setting(
        "loki.environment",
        "development",
        _text(r"[^\x00-\x1f\x7f]{1,128}", "a name"),
        "The label `environment` of everything.",
    )
    loki_machine: str = _setting(
        "loki.machine",
        "",
        _text(r"[^\x00-\x1f\x7f]{1,128}", "a name"),
        "The label `machine` of everything; as each call's record has it (`user@host`) where it is empty.",
    )
    loki_max_line: int = _setting(
        "loki.max_line",
        250 * KIB,
        _size(KIB, 8 * MIB),
        "Longest line; of what is longer the content is left out, with a note of where it is. Loki's limit is 256 KiB.",
    )
    otlp_enabled: str = _setting(
        "otlp.enabled",
        "auto",
        _switch(),
        "Send traces and metrics to an OpenTelemetry backend; auto: where an endpoint is named.",
    )
    otlp_endpoint: str = _setting(
        "otlp.endpoint",
        "",
        _text(_BASE, "a URL such as http://localhost:4318, without query or password"),
        "Where OTLP/HTTP is taken; `/v1/traces` and `/v1/metrics` are put behind it.",
    )
    otlp_headers: tuple[tuple[str, str], ...] = _setting(
        "otlp.headers", (), _headers(), "Header fields that go with everything sent there, such as a key."
    )
    otlp_content: str = _setting(
        "otlp.content",
        "auto",
        _switch(),
        "Put what was said into the spans; auto: as OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT says, else not.",
    )
    otlp_traces: bool = _setting("otlp.traces", True, _yes_or_no(), "Send a span per call.")
    otlp_metrics: bool = _setting("otlp.metrics", True, _yes_or_no(), "Send histograms of tokens and times.")
    otlp_service_name: str = _setting(
        "otlp.service_name",
        "",
        _text(r"[^\x00-\x1f\x7f]{1,255}", "a name"),
        "What the backend calls this service; `llm-proxy` where neither this nor OTEL_SERVICE_NAME says.",
    )
    otlp_compression: str = _setting(
        "otlp.compression",
        "",
        _text(r"gzip|none", "gzip or none"),
        "How what is sent is compressed; gzip where neither this nor OTEL_EXPORTER_OTLP_COMPRESSION says.",
    )
    otlp_timeout: float = _setting(
        "otlp.timeout",
        0.0,
        _seconds(0, 60),
        "How long the backend may take; 0: as OTEL_EXPORTER_OTLP_TIMEOUT says, else 10.",
    )
    otlp_certificate: str = _setting(
        "otlp.certificate", "", _file(), "Certificates (PEM) to trust instead of the usual ones."
    )
    gateway_enabled: bool = _setting(
        "gateway.enabled", False, _yes_or_no(), "Serve a team: one API with keys, aliases and limits of its own."
    )
    gateway_database_url: str = _setting(
        "gateway.database_url",
        "",
        _store(),
        "Where accounts, keys and usage are; empty: a SQLite file of this machine.",
    )
    gateway_redis_url: str = _setting(
        "gateway.redis_url", "", _redis(), "Where limits are counted that several machines share."
    )
    gateway_signup: str = _setting(
        "gateway.signup",
        "auto",
        _choice("auto", "open", "invite", "closed"),
        "Who may make an account; auto: anybody on a loopback address, elsewhere who is invited.",
    )
    gateway_raw_models: bool = _setting(
        "gateway.raw_models", True, _yes_or_no(), "Whether models may be called by their providers' names too."
    )
    gateway_drop: bool = _setting(
        "gateway.drop",
        False,
        _yes_or_no(),
        "Leave out what the model's API cannot say, instead of refusing it, where a caller does not choose.",
    )
    gateway_rate_limit_minute: int = _setting(
        "gateway.rate_limit_minute",
        0,
        _whole(0, 10**9),
        "Requests a minute of a user without a limit of his own; 0 is none.",
    )
    gateway_rate_limit_daily: int = _setting(
        "gateway.rate_limit_daily",
        0,
        _whole(0, 10**9),
        "Requests a day of a user without a limit of his own; 0 is none.",
    )
    gateway_first_token_timeout: float = _setting(
        "gateway.first_token_timeout",
        120.0,
        _seconds(1, 86400),
        "How long a model may be silent before the next of its chain is asked.",
    )
    gateway_public_url: str = _setting(
        "gateway.public_url",
        "",
        _text(_BASE, "a URL such as https://llm.example.com, without query or password"),
        "By which URL clients reach the gateway, where it is not the one they came by.",
    )
    gateway_trusted_proxies: tuple[str, ...] = _setting(
        "gateway.trusted_proxies",
        (),
        _list_of(_NETWORK, "networks such as 10.0.0.0/8"),
        "Load balancers whose `X-Forwarded-For` tells the client's address.",
    )
    gateway_workers: int = _setting("gateway.workers", 1, _whole(1, 64), "How many processes serve the gateway.")
    gateway_drain_delay: float = _setting(
        "gateway.drain_delay",
        0.0,
        _seconds(0, 300),
        "How long a gateway that is told to stop still takes requests, so that load balancers see it is not ready.",
    )
    gateway_privacy: str = _setting(
        "gateway.privacy",
        "full",
        _choice(*LEVELS),
        "How much is kept of the conversations of a user who has not chosen.",
    )
    gateway_privacy_floor: str = _setting(
        "gateway.privacy_floor", "none", _choice(*LEVELS), "The least that users may choose to be kept."
    )
    gateway_privacy_ceiling: str = _setting(
        "gateway.privacy_ceiling", "full", _choice(*LEVELS), "The most that is kept of any user's conversations."
    )
    gateway_admin_sees: str = _setting(
        "gateway.admin_sees",
        "metadata",
        _choice(*LEVELS),
        "What administrators see of other users' conversations in the explorer.",
    )
    index_database_url: str = _setting(
        "index.database_url",
        "",
        _postgres(),
        "A PostgreSQL in which all machines' records can be looked at; empty: each machine shows its own.",
    )
    index_machine: str = _setting(
        "index.machine",
        "",
        _text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, '.', '_' and '-', 64 at most"),
        "This machine's name there; empty: the host's name.",
    )
    index_address: str = _setting(
        "index.address",
        "",
        _text(_BASE, "a URL such as http://10.0.0.5:7000, without query or password"),
        "By which URL other machines reach this one's port, to show what was recorded here; empty: they do not.",
    )
    bodies_s3_bucket: str = _setting(
        "bodies.s3_bucket",
        "",
        _text(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name"),
        "A bucket of S3-compatible storage to which session files are copied; empty: none is.",
    )
    bodies_s3_prefix: str = _setting(
        "bodies.s3_prefix",
        "llm-proxy",
        _text(r"[A-Za-z0-9._/-]{1,200}", "letters, digits, '.', '_', '-' and '/'"),
        "What the names of all copies begin with.",
    )
    bodies_s3_endpoint: str = _setting(
        "bodies.s3_endpoint",
        "",
        _text(_BASE, "a URL such as https://storage.example.com"),
        "Where the storage is; empty: Amazon's.",
    )
    bodies_s3_region: str = _setting(
        "bodies.s3_region", "", _text(r"[a-z0-9-]{1,64}", "a region such as eu-central-1"), "The storage's region."
    )
    bodies_s3_access_key: str = _setting(
        "bodies.s3_access_key",
        "",
        _text(r"[!-~]{1,200}", "an access key's id"),
        "Whose access; empty: found as Amazon's SDKs find it.",
    )
    bodies_s3_secret_key: str = _setting(
        "bodies.s3_secret_key",
        "",
        replace(_text(r"[!-~]{1,200}", "a secret access key"), secret=True),
        "The secret of that access key.",
    )
    bodies_s3_after: float = _setting(
        "bodies.s3_after",
        300.0,
        _seconds(0, 86400),
        "How long a session file must have rested before it is copied.",
    )
    retention_days: float = _setting(
        "retention.days", 0.0, _days(), "Age at which session files are deleted; also from the index and all sums."
    )
    retention_bodies_days: float = _setting(
        "retention.bodies_days",
        0.0,
        _days(),
        "Age at which requests' and answers' bodies are taken out of session files; tokens, cost and times stay.",
    )
    retention_compress_days: float = _setting(
        "retention.compress_days", 0.0, _days(), "Age at which session files are compressed (zstd)."
    )
    retention_max_size: int = _setting(
        "retention.max_size",
        0,
        _size(0, 1 << 50),
        "Disk the log folder may take; beyond it the oldest closed session files are deleted. 0 is no limit.",
    )
    redact: bool = _setting(
        "redaction.enabled",
        True,
        _yes_or_no(),
        "Put tokens such as `<AWS_KEY#3>` in the place of secrets in the record.",
    )
    patterns: tuple[tuple[str, str], ...] = _setting(
        "redaction.patterns", (), _patterns(), "What else is a secret here, by kinds of your own."
    )
    redact_off_for: tuple[str, ...] = _setting(
        "redaction.off_for", (), _projects(), "Projects whose calls are recorded as they are."
    )
    prices: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = _setting(
        "prices",
        (),
        _prices(),
        "What models cost that no list knows, or you something else: US dollars per million tokens, or per use.",
    )


class Row(NamedTuple):
    """One setting as the documentation, the environment and the error messages see it."""

    name: str
    attribute: str
    default: Any
    rule: Rule
    sentence: str

    @property
    def env(self) -> str:
        return "LLM_PROXY_" + self.name.upper().replace(".", "_")


class Loaded(NamedTuple):
    """The settings, and for each that is not a default the source that gave it ("--port", "LLM_PROXY_PORT", a file).

    `door` names the way in that was asked for (`service.doors`), "" for the usual ones.
    """

    settings: Settings
    sources: dict[str, str]
    door: str = ""


def _row(entry: Field[Any]) -> Row:
    facts = entry.metadata
    return Row(facts["name"], entry.name, entry.default, facts["rule"], facts["sentence"])


# Other names of settings: as the Go program's files and environment have them, and AWS's own. Ours win.
OTHER_KEYS = {"bedrock_region": "bedrock.region", "bedrock_secret": "bedrock.secret"}
OTHER_VARIABLES = {
    "bedrock.region": "BEDROCK_REGION",
    "bedrock.endpoint": "AWS_ENDPOINT_URL_BEDROCK_RUNTIME",
    "bedrock.control_endpoint": "AWS_ENDPOINT_URL_BEDROCK",
}

# Options that are not called as their setting is.
FLAGS = {
    "target.url": "--target-url",
    "target.headers": "--add-header",
    "upstreams.header_timeout": "--timeout",
    "upstreams.idle_timeout": "--timeout",
    "csv.file": "--log-file",
    "csv.header": "--csv-header",
    "csv.columns": "--csv-columns",
    "csv.defuse": "--csv-defuse",
}

TABLE = tuple(_row(entry) for entry in fields(Settings))
BY_NAME = {row.name: row for row in TABLE}


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    config: str | None,
    also: Iterable[tuple[str, object, str]] = (),
) -> Loaded:
    """Settings from all sources; `flags` by setting name, `config` the `--config` file. Raises ConfigError.

    `also`: (setting, value, source) from a file or environment of another program, weakest first; they win.
    """
    values = {row.attribute: row.rule.read(row.default) for row in TABLE}
    sources: dict[str, str] = {}
    for name, value, source in chain(_given(flags, environ, config), also):
        row = BY_NAME[name]
        try:
            values[row.attribute] = row.rule.read(value)
        except _WrongItem as wrong:
            raise ConfigError(
                f"{source}: {name}.{wrong.name} must be {wrong.words}, got {_shown(wrong.value)}"
            ) from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            got = "something else" if row.rule.secret else _shown(value)
            raise ConfigError(f"{source}: {name} must be {row.rule.words}, got {got}") from None
        sources[name] = source
    return Loaded(Settings(**values), sources)


def _given(
    flags: Mapping[str, object], environ: Mapping[str, str], config: str | None
) -> Iterator[tuple[str, object, str]]:
    """(setting, value, source), weakest source first."""
    yield from _from_file(paths.expand(config) if config else paths.config_file(), required=config is not None)
    for row in TABLE:
        for variable in (OTHER_VARIABLES.get(row.name, ""), row.env):
            if environ.get(variable):  # an empty variable is an unset one, as in the reference
                yield row.name, environ[variable], variable
    for name, value in flags.items():
        if value is not None:
            yield name, value, FLAGS.get(name) or "--" + name.replace("_", "-")


def _from_file(path: str, *, required: bool) -> Iterator[tuple[str, object, str]]:
    for name, value in _flat(tree(path, required=required), path):
        yield name, value, path


def tree(path: str, *, required: bool = True) -> dict[Any, Any]:
    """What a configuration file holds, in the format its suffix names. Raises ConfigError."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            raw = file.read()
    except FileNotFoundError:
        if required:
            raise ConfigError(f"--config: there is no file {path}") from None
        return {}
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    return _parsed(path, raw)


def _flat(tree: Mapping[Any, Any], path: str, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of the file as dotted names. A section is whatever some setting's name begins with."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        name = OTHER_KEYS.get(name, name)
        if name in BY_NAME:
            yield name, value
        elif isinstance(value, dict) and any(known.startswith(name + ".") for known in BY_NAME):
            yield from _flat(value, path, name + ".")
        else:
            raise ConfigError(f"{path}: there is no setting {name!r} (its value is {_shown(value)}){_nearest(name)}")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    last = {known.rpartition(".")[2]: known for known in BY_NAME}
    close = get_close_matches(name, BY_NAME, 1) or [
        last[k] for k in get_close_matches(name.rpartition(".")[2], last, 1)
    ]
    return f"; did you mean {close[0]!r}?" if close else "; docs/settings.md lists all"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _parsed(path: str, raw: bytes) -> dict[Any, Any]:
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix not in _FORMATS:
        raise ConfigError(f"{path}: a configuration file ends in {', '.join(_FORMATS)}, got {suffix or 'no suffix'!r}")
    try:
        tree = _FORMATS[suffix](raw.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not UTF-8 at byte {exc.start}") from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    if tree is None:  # an empty YAML file
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, got {_shown(tree)}")
    return tree


def _toml(text: str) -> Any:
    import tomllib

    return tomllib.loads(text)


def _json(text: str) -> Any:
    import json

    return json.loads(text)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ValueError("YAML needs PyYAML (pip install 'llm-proxy[yaml]'); TOML and JSON need nothing") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(" ".join(str(exc).split())) from exc


_FORMATS: dict[str, Callable[[str], Any]] = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}
