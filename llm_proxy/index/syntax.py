"""What a person types to search: words, and filters among them. Pure; the same in the explorer and on the command line.

    "hash seed" retr* -flaky project:ledger,api model:opus role:tool since:7d

`name:value` is a filter where the name is one of FILTERS, else a word; `name:a,b` is either, `-name:value` is not. A
value is a part of the name, whatever the case; in quotes it is all of it. Leaves out SQL (`search`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import tzinfo

from llm_proxy.records import moments

ROLES = ("user", "assistant", "thinking", "tool", "system")
_ROLE_NAMES = {"you": "user", "answer": "assistant", "result": "tool"} | {role: role for role in ROLES}
_STATUS = re.compile(r"[1-5][0-9]{2}|[1-5]xx|none|error", re.ASCII)
_TIMES = {"since": "since", "from": "since", "after": "since", "until": "until", "to": "until", "before": "until"}

# Each filter, what it means, and an example.
FILTERS: dict[str, tuple[str, str]] = {
    "project": ("part of the project’s name", "project:ledger"),
    "model": ("part of the model’s name", "model:opus"),
    "provider": ("part of the provider’s name", "provider:anthropic"),
    "branch": ("part of the git branch’s name", "branch:fix/"),
    "client": ("part of the client’s program", "client:codex"),
    "session": ("the beginning of a session’s id", "session:20261120"),
    "role": ("who said it: you, assistant, thinking, tool, system", "role:tool"),
    "tool": ("answers that call this tool", "tool:Bash"),
    "status": ("of the call: a status, a class, none, or error", "status:error"),
    "since": ("said since: a day, a time, or back from now", "since:7d"),
    "until": ("said until then", "until:2026-11-01"),
}


class BadQuery(ValueError):
    """A filter breaks its rule; the message names filter, rule and value."""


@dataclass(frozen=True, slots=True)
class Term:
    """One filter. Values are alternatives, each with whether it is the whole name."""

    name: str
    values: tuple[tuple[str, bool], ...]
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """`words` are what `text.query` takes; times are nanoseconds since 1970."""

    words: str = ""
    terms: tuple[Term, ...] = ()
    since_ns: int | None = None
    until_ns: int | None = None


_PIECE = re.compile(
    r"""
    (?P<minus>-?)
    (?: (?P<name>[A-Za-z]{2,10}):(?P<values>(?:"[^"]*"?|[^\s",]+)(?:,(?:"[^"]*"?|[^\s",]+))*)
      | (?P<word>"[^"]*"?|\S+) )
    """,
    re.VERBOSE,
)
_VALUE = re.compile(r'"([^"]*)"?|([^",]+)')


def parse(typed: str, now: float, zone: tzinfo | None = None) -> Query:
    """Raises BadQuery. `now` is in seconds since 1970, days are those of `zone`."""
    words: list[str] = []
    terms: list[Term] = []
    times: dict[str, int] = {}
    for match in _PIECE.finditer(typed):
        name = (match["name"] or "").lower()
        if name in _TIMES and not match["minus"]:
            times[_TIMES[name]] = _moment(name, match["values"].strip('"'), now, zone)
        elif name in FILTERS and name not in _TIMES:
            terms.append(_term(name, match["values"], bool(match["minus"])))
        else:
            words.append(match[0])
    return Query(" ".join(words), tuple(terms), times.get("since"), times.get("until"))


def _moment(name: str, said: str, now: float, zone: tzinfo | None) -> int:
    try:
        # `until` includes the day that it names, `before` does not.
        return moments.moment(said, now, end=name in ("until", "to"), zone=zone)
    except ValueError:
        raise BadQuery(f"{name}: must be {moments.MOMENTS}, got {said!r}") from None


def _term(name: str, said: str, negative: bool) -> Term:
    values = tuple((whole or part, bool(whole)) for whole, part in _VALUE.findall(said) if whole or part)
    if name == "role":
        wrong = [value for value, _ in values if value.lower() not in _ROLE_NAMES]
        if wrong:
            raise BadQuery(f"role: must be one of you, {', '.join(ROLES)}, got {wrong[0]!r}")
        values = tuple((_ROLE_NAMES[value.lower()], True) for value, _ in values)
    if name == "status":
        wrong = [value for value, _ in values if not _STATUS.fullmatch(value)]
        if wrong:
            raise BadQuery(
                f"status: must be a status such as 404, a class such as 5xx, none or error, got {wrong[0]!r}"
            )
    if name == "provider":
        values = tuple(("anthropic" if value == "claude" else value, whole) for value, whole in values)
    return Term(name, values, negative)


def with_filter(typed: str, name: str, value: str) -> str:
    """The query with a filter put behind it, or taken away where it stands there already."""
    added = written(name, value)
    pieces = [match[0] for match in _PIECE.finditer(typed)]
    if added in pieces:
        return " ".join(piece for piece in pieces if piece != added)
    return " ".join([*pieces, added])


def has_filter(typed: str, name: str, value: str) -> bool:
    return written(name, value) in [match[0] for match in _PIECE.finditer(typed)]


def written(name: str, value: str) -> str:
    """`project:"ledger"`: all of the name. What stands for itself needs no quotes."""
    if name in ("role", *_TIMES):
        return f"{name}:{value}"
    return f'{name}:"{_unquoted(value)}"'


def _unquoted(value: str) -> str:
    return value.replace('"', "")
