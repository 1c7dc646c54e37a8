"""Holds the record against what Claude Code and Codex wrote down themselves about the same answers.

Their files are only read. An answer is the same where its id is: a message's or a response's, else the request's; older
Codex told no ids, so there it is the same session and the same tokens. Leaves out how it is printed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from llm_proxy import paths
from llm_proxy.dialects import anthropic, reading
from llm_proxy.dialects.digest import Usage
from llm_proxy.index.queries import CallRow, Filter
from llm_proxy.index.record import Record
from llm_proxy.service import ask
from llm_proxy.sinks.log_reader import entries

Entry = dict[str, Any]

_HOUR = 3600 * 10**9
_NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Noted:
    """An answer as a client noted it: its last word on the usage, in how many lines, and all of these added up."""

    id: str
    request_id: str
    session: str
    model: str
    when_ns: int
    usage: Usage
    lines: int = 1
    added_up: Usage = _NOTHING


@dataclass(frozen=True, slots=True)
class Recorded:
    """An answer as the record has it."""

    call: str  # the record's id of the call
    id: str
    request_id: str
    session: str  # the client's id
    model: str
    when_ns: int
    usage: Usage
    partial: bool


class Pair(NamedTuple):
    noted: Noted
    recorded: Recorded

    @property
    def agrees(self) -> bool:
        return _charged(self.noted.usage) == _charged(self.recorded.usage)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One client. `missed` it did not note, `unrecorded` did not come through here."""

    client: str
    folder: str
    files: int
    unreadable: int
    pairs: tuple[Pair, ...]
    missed: tuple[Recorded, ...]
    unrecorded: tuple[Noted, ...]

    @property
    def unequal(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if not pair.agrees)

    @property
    def noted(self) -> tuple[Noted, ...]:
        return (*(pair.noted for pair in self.pairs), *self.unrecorded)


@dataclass(slots=True)
class Found:
    """What stands in a client's files."""

    files: int = 0
    unreadable: int = 0
    answers: dict[tuple[str, ...], Noted] = field(default_factory=dict)

    def add(self, one: Noted) -> None:
        """Clients write an answer several times, and copy the lines of a session that is taken up again."""
        known = self.answers.get((one.id, one.request_id))
        if known is not None:
            later = one if one.usage.output >= known.usage.output else known
            one = replace(later, session=known.session, lines=known.lines + 1, added_up=known.added_up + one.usage)
        self.answers[one.id, one.request_id] = one if known is not None else replace(one, added_up=one.usage)


# --- what the clients wrote


def claude_code(folder: Path) -> Found:
    """`<folder>/projects/**.jsonl`: a line per block of an answer, each with the usage as it was known by then."""
    found = Found()
    for _, entry in _lines(found, folder, "projects/**/*.jsonl"):
        message = reading.mapping(entry.get("message"))
        told = reading.mapping(message.get("usage"))
        if entry.get("type") != "assistant" or message.get("model") == "<synthetic>":
            continue
        usage = anthropic.usage_of(anthropic.counts_of(told))
        if usage is None:
            continue
        found.add(
            Noted(
                id=reading.text(message.get("id")),
                request_id=reading.text(entry.get("requestId")),
                session=reading.text(entry.get("sessionId")),
                model=reading.text(message.get("model")),
                when_ns=_nanoseconds(entry.get("timestamp")),
                usage=usage,
            )
        )
    return found


def codex(folder: Path) -> Found:
    """`<folder>/sessions/**.jsonl`: newer ones name the response; in older ones a count is new where the total grew."""
    found = Found()
    named: set[Path] = set()
    counts: dict[Path, list[Noted]] = {}
    total: Any = None
    session, model, where = "", "", Path()
    for path, entry in _lines(found, folder, "sessions/**/*.jsonl", "archived_sessions/**/*.jsonl"):
        if path != where:
            session, model, where, total = "", "", path, None
        payload = reading.mapping(entry.get("payload"))
        kind, when = entry.get("type"), _nanoseconds(entry.get("timestamp"))
        if kind == "session_meta":
            session = session or reading.text(payload.get("session_id")) or reading.text(payload.get("id"))
        elif kind == "turn_context":
            model = reading.text(payload.get("model")) or model
        elif kind == "token_usage_record":
            named.add(path)
            usage = _codex_usage(payload.get("usage"))
            found.add(Noted(reading.text(payload.get("response_id")), "", session, model, when, usage))
        elif kind == "event_msg" and payload.get("type") == "token_count" and payload.get("info"):
            info = reading.mapping(payload["info"])
            usage = _codex_usage(info.get("last_token_usage"))
            if info.get("total_token_usage") != total:
                number = str(len(counts.setdefault(path, [])))
                counts[path].append(Noted("", f"{path.name} {number}", session, model, when, usage, 1, usage))
            elif counts.get(path):
                last = counts[path][-1]
                counts[path][-1] = replace(last, lines=last.lines + 1, added_up=last.added_up + usage)
            total = info.get("total_token_usage")
    for path, unnamed in counts.items():
        if path not in named:
            found.answers |= {("", one.request_id): one for one in unnamed}
    return found


def _codex_usage(told: object) -> Usage:
    counts = {name: reading.count(value) for name, value in reading.mapping(told).items()}
    read, written = counts.get("cached_input_tokens", 0), counts.get("cache_write_input_tokens", 0)
    return Usage(
        input=max(0, counts.get("input_tokens", 0) - read - written),
        cache_read=read,
        cache_write_5m=written,
        output=counts.get("output_tokens", 0),
        reasoning=counts.get("reasoning_output_tokens", 0),
    )


def _lines(found: Found, folder: Path, *patterns: str) -> Iterator[tuple[Path, Entry]]:
    # A session before its sub-agents, whose files lie in a folder of its name.
    for path in sorted((path for pattern in patterns for path in folder.glob(pattern)), key=str):
        found.files += 1
        try:
            yield from ((path, entry) for _, _, entry in entries(path))
        except OSError:
            found.unreadable += 1


def _nanoseconds(text: object) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1e9)
    except (ValueError, OverflowError):
        return 0


# --- both


class _Client(NamedTuple):
    name: str
    program: str  # a part of the name of its process
    apis: tuple[str, ...]
    variable: str
    folder: str  # in the home
    read: Any


_CLIENTS = (
    _Client(
        "Claude Code", "claude", ("anthropic.messages", "bedrock.invoke"), "CLAUDE_CONFIG_DIR", ".claude", claude_code
    ),
    _Client("Codex", "codex", ("openai.responses",), "CODEX_HOME", ".codex", codex),
)


def compare(
    where: ask.Places, since_ns: int | None, until_ns: int | None, environ: Mapping[str, str]
) -> list[Comparison]:
    """Each client of which there are files, from the record's first call on. Raises IndexTrouble."""
    with ask.record(where) as record:
        first = next(record.index.calls(Filter(), limit=1), None)
        since = max(since_ns or 0, first.started_ns) if first is not None else since_ns or 0
        until = until_ns or 1 << 63
        sessions = {row.id: row.client_session for row in record.index.sessions(Filter(), None)}
        # A client notes the end of an answer, the record knows when it was asked for.
        calls = list(record.index.calls(Filter(since_ns=max(0, since - _HOUR), until_ns=until_ns)))
        compared = []
        for client in _CLIENTS:
            folder = Path(environ.get(client.variable) or f"{paths.home()}/{client.folder}")
            found: Found = client.read(folder)
            noted = [one for one in found.answers.values() if since <= one.when_ns < until]
            own = {one.session for one in found.answers.values() if one.session}
            candidates = [
                answer
                for call in calls
                if call.api in client.apis
                for answer in _recorded(record, call, sessions.get(call.session, ""))
            ]
            if found.files:
                pairs, missed, unrecorded = _joined(noted, candidates)
                programs = {call.id for call in calls if client.program in call.program.lower()}
                mine = (one for one in missed if one.call in programs or one.session in own)
                missed = [one for one in mine if since <= one.when_ns < until]
                facts = (client.name, str(folder), found.files, found.unreadable)
                compared.append(Comparison(*facts, tuple(pairs), tuple(missed), tuple(unrecorded)))
        return compared


def _recorded(record: Record, call: CallRow, session: str) -> Iterator[Recorded]:
    """The answers of a call that used tokens: several where it is a WebSocket."""
    told = [(call.response_id, call.model, call.usage, call.partial)]
    if call.method == "GET":
        digest = record.digest(call)
        answers = digest.answers if digest is not None else ()
        told = [(one.response_id, one.model or call.model, one.usage, one.partial) for one in answers]
    for id, model, usage, partial in told:
        if usage is not None and usage.total:  # what Codex sends to warm a connection up uses nothing
            request_id = "" if id else _request_id(record.entries(call)[1])
            yield Recorded(call.id, id, request_id, session, model, call.started_ns, usage, partial)


def _request_id(response: Entry | None) -> str:
    """Only looked for where the answer itself was cut off before its id, or is not in the log any more."""
    headers = reading.mapping((response or {}).get("headers"))
    named = (values for name, values in headers.items() if name.lower() in ("request-id", "x-request-id"))
    return next((reading.text(value) for values in named for value in values), "")


def _joined(noted: Iterable[Noted], recorded: Iterable[Recorded]) -> tuple[list[Pair], list[Recorded], list[Noted]]:
    """(the same answers, only recorded, only noted)."""
    left: dict[str, Recorded] = {}
    for one in recorded:
        left.setdefault(one.call + one.id, one)
    by_id: dict[str, list[str]] = {}
    by_use: dict[tuple[object, ...], list[str]] = {}
    for key, one in left.items():
        for name in (one.id, one.request_id):
            if name:
                by_id.setdefault(name, []).append(key)
        by_use.setdefault((one.session, _charged(one.usage)), []).append(key)
    pairs: list[Pair] = []
    unrecorded: list[Noted] = []
    for answer in sorted(noted, key=lambda one: one.when_ns):
        keys = by_id.get(answer.id) or by_id.get(answer.request_id) if answer.id else None
        if not answer.id:
            keys = by_use.get((answer.session, _charged(answer.usage)))
        same = next((key for key in keys or () if key in left), "")
        if same:
            pairs.append(Pair(answer, left.pop(same)))
        else:
            unrecorded.append(answer)
    return pairs, list(left.values()), unrecorded


def _charged(usage: Usage) -> tuple[int, int, int, int]:
    """What both sides tell: Codex and older Claude Code do not tell how long something is cached."""
    return usage.input, usage.cache_read, usage.cache_write_5m + usage.cache_write_1h, usage.output
