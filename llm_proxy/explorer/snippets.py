"""A call to make again: as a curl command, and as a Python program with httpx.

Pure. Credentials, which the record holds masked, are read from environment variables. Everything that came from the
record is quoted, so that nothing in it is run. Leaves out calls that are no plain request (WebSocket).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import quote

from llm_proxy.formats.call import Call, headers_of

# Linux takes no longer argument (MAX_ARG_STRLEN, 128 KiB): a longer body is read from the file that is downloaded.
LONGEST_ARGUMENT = 100_000

# Set by the client that sends it, or about this one connection only.
_LEFT_OUT = frozenset(
    {"host", "content-length", "connection", "transfer-encoding", "accept-encoding", "keep-alive", "expect"}
    | {"proxy-connection", "te", "trailer", "upgrade"}
)
# What masking leaves: see `wire.masking`.
_MASKED = re.compile(r"\[masked sha256:[0-9a-f]{8} len:[0-9]+\]|\bsk-(?:ant-|proj-)?\.\.\.(?:[A-Za-z0-9_-]{4})?")
_FOREIGN_MASK = re.compile(r"sk-[\w-]*\.\.\.[\w-]*|\*{3,}|\[?redacted\]?", re.IGNORECASE)
_SECRET = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "x-amz-security-token"}
)
# The variables that people have, by provider and field.
_VARIABLES = {
    ("anthropic", "x-api-key"): "ANTHROPIC_API_KEY",
    ("anthropic", "authorization"): "ANTHROPIC_AUTH_TOKEN",
    ("openai", "authorization"): "OPENAI_API_KEY",
    ("gemini", "x-goog-api-key"): "GEMINI_API_KEY",
    ("gemini", "key"): "GEMINI_API_KEY",
    ("bedrock", "authorization"): "AWS_BEARER_TOKEN_BEDROCK",
}


class Word(NamedTuple):
    """A piece of a text: as it is, or the value of an environment variable."""

    text: str
    variable: bool = False


Words = tuple[Word, ...]


def curl(call: Call, name: str) -> str:
    """`name`: the file that a long body is downloaded to."""
    lines = [f"curl {_shell((Word(call.row.method),), '-X ')}{_shell(_url(call))}"]
    lines += [_shell((Word(f"{field}: "), *value), "-H ").rstrip() for field, value in _headers(call)]
    body = call.request_body
    if body:
        lines.append(_curl_body(body, name))
    if call.streamed:
        lines.append("--no-buffer")
    return _notes(call, "# ") + " \\\n  ".join(lines) + "\n"


def _curl_body(body: bytes, name: str) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and len(body) <= LONGEST_ARGUMENT and "\0" not in text:
        return f"--data-raw {shlex.quote(text)}"
    return f"--data-binary {shlex.quote('@' + name)}"


def _shell(words: Words, before: str = "") -> str:
    """One argument: single quotes around what is recorded, double quotes around variables."""
    quoted = "".join(f'"${word.text}"' if word.variable else shlex.quote(word.text) for word in words if word.text)
    return f"{before}{quoted} " if before else quoted


def python(call: Call, name: str) -> str:
    """A program for httpx."""
    headers, url = _headers(call), _url(call)
    fields = list(headers)
    needs_os = any(word.variable for _, value in fields for word in value) or any(word.variable for word in url)
    lines = ["import os", ""] if needs_os else []
    lines += ["import httpx", "", f"URL = {_expression(url)}", "HEADERS = ["]
    lines += [f"    ({field!r}, {_expression(value)})," for field, value in fields]
    lines += ["]"]
    body = call.request_body
    if body:
        lines.append(f"BODY = {_python_body(body, name)}")
    content = ", content=BODY" if body else ""
    lines += [
        "",
        f"with httpx.stream({call.row.method!r}, URL, headers=HEADERS{content}, timeout=600) as response:",
        "    print(response.status_code, response.reason_phrase)",
        "    for text in response.iter_text():",
        '        print(text, end="", flush=True)',
    ]
    return _notes(call, "# ") + "\n".join(lines) + "\n"


def _python_body(body: bytes, name: str) -> str:
    if len(body) > LONGEST_ARGUMENT:
        return f'open({name!r}, "rb").read()'
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return repr(body)
    return f"{text!r}.encode()"


def _expression(words: Words) -> str:
    told = [f"os.environ[{word.text!r}]" if word.variable else repr(word.text) for word in words if word.text]
    return " + ".join(told) or "''"


def _notes(call: Call, comment: str) -> str:
    """What is not as it was sent."""
    request = call.request or {}
    notes = []
    if request.get("truncated") or request.get("left_out"):
        notes.append("The body was not recorded as a whole: what is here is not what was sent.")
    if request.get("redacted"):
        notes.append("Secrets in the body stand as tokens such as <AWS_KEY#3>.")
    if request.get("content_encoding"):
        notes.append("The body was sent compressed; here it is not.")
    if request.get("transport") == "bedrock":
        notes.append("It was signed with AWS credentials on its way; sign it, or send it to llm-proxy again.")
    return "".join(f"{comment}{note}\n" for note in notes)


# --- what is sent


def _headers(call: Call) -> Iterator[tuple[str, Words]]:
    coded = "content_encoding" in (call.request or {})
    for name, values in headers_of(call.request).items():
        if name.lower() in _LEFT_OUT or (coded and name.lower() == "content-encoding"):
            continue
        for value in values:
            yield name, _value(call, name.lower(), value)


def _value(call: Call, name: str, value: str) -> Words:
    mask = _MASKED.search(value) or (_FOREIGN_MASK.search(value) if name in _SECRET else None)
    if mask is not None:
        return Word(value[: mask.start()]), Word(_variable(call, name), True), Word(value[mask.end() :])
    if name in _SECRET:  # logs of other programs may hold it in the clear
        scheme, blank, _ = value.partition(" ")
        return Word(scheme + blank if blank else ""), Word(_variable(call, name), True)
    return (Word(value),)


def _url(call: Call) -> Words:
    """With variables for the query's masked values."""
    words = []
    rest = call.url
    while (mask := _MASKED.search(rest)) is not None:
        name = re.split(r"[?&]", rest[: mask.start()])[-1].removesuffix("=")
        words += [Word(_safe(rest[: mask.start()])), Word(_variable(call, name), True)]
        rest = rest[mask.end() :]
    return (*words, Word(_safe(rest)))


def _safe(url: str) -> str:
    """A recorded URL has no blanks or control characters; where somebody wrote one into a log, it is encoded."""
    return quote(url, safe="%/:?#[]@!$&'()*+,;=~-._|{}^\"<>`\\")


def _variable(call: Call, name: str) -> str:
    known = _VARIABLES.get((call.row.provider, name.lower()))
    return known or re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")[:60] or "SECRET"
