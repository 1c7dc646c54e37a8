"""`llm-proxy view [ID|prefix|last]`: one call or a whole conversation, as Markdown, raw, or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from llm_proxy.cli import filters, show, usage
from llm_proxy.errors import NotFound
from llm_proxy.formats import markdown
from llm_proxy.index.queries import CallRow, SessionRow
from llm_proxy.index.record import Record
from llm_proxy.records import understood
from llm_proxy.service.ask import record

_SHOWN = 20  # candidates listed for an ambiguous prefix


def view(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, IndexTrouble, NotFound."""
    if usage.has(arguments, "--recordings"):
        from llm_proxy.cli import recordings

        return recordings.view(arguments)
    given = usage.parse("view", arguments)
    with record(filters.places_from(given)) as opened:
        row = _find(opened, given.id, utc=given.utc)
        calls = [row] if isinstance(row, CallRow) else opened.index.calls_of(row.id)
        if given.raw:
            _write_raw(opened, calls)
        elif given.json:
            show.print_json({"id": row.id, "calls": [_object(opened, call) for call in calls]})
        else:
            _write_markdown(opened, row, calls, utc=given.utc)
    return 0


def _find(opened: Record, wanted: str, *, utc: bool) -> CallRow | SessionRow:
    if wanted == "last":
        last = opened.index.last()
        if last is None:
            raise NotFound("nothing is recorded yet")
        return last
    found = opened.index.find(wanted, _SHOWN + 1)
    exact = [row for row in found if row.id == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise NotFound(f"no call and no session has an id that begins with {show.line(wanted)!r}")
    for row in found[:_SHOWN]:
        print(f"{row.id}  {show.when(row.started_ns, utc=utc)}  {_kind(row)}", file=sys.stderr)
    number = f"more than {_SHOWN}" if len(found) > _SHOWN else len(found)
    raise NotFound(f"{number} ids begin with {show.line(wanted)!r}; give more of it")


def _kind(row: CallRow | SessionRow) -> str:
    if isinstance(row, SessionRow):
        return show.line(f"session, {markdown.counted(row.calls, 'call')}  {row.title}", 80)
    return show.line(f"call  {row.method} {row.path}  {row.model}", 80)


def _write_markdown(opened: Record, row: CallRow | SessionRow, calls: Sequence[CallRow], *, utc: bool) -> None:
    blocks: Iterable[str]
    if isinstance(row, CallRow):
        blocks = markdown.single(row, opened.digest(row), utc=utc)
    else:
        blocks = markdown.conversation(row, calls, opened.digest, utc=utc)
    if not sys.stdout.isatty():
        for block in blocks:
            print(f"{show.visible(block)}\n")
        return
    console = show.console()
    for block in blocks:
        console.print(_rendered(show.visible(block)))
        console.print()


# Rules of Markdown by which something that was said would not be seen: tags, the addresses of pictures, backslashes.
_HIDING = ("html_block", "html_inline", "image", "reference", "escape", "entity")


def _rendered(block: str) -> Any:
    """Markdown for a terminal, in which all that was said is seen, and its lines stay lines."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    # links written by a model stay text: a terminal would make them clickable, wherever they lead
    shown = Markdown("", hyperlinks=False)
    shown.parsed = MarkdownIt().enable("strikethrough").enable("table").disable(_HIDING).parse(block)
    for token in shown.parsed:
        for inline in token.children or ():
            if inline.type == "softbreak":
                inline.type = "hardbreak"
    return shown


def _write_raw(opened: Record, calls: Sequence[CallRow]) -> None:
    """The bodies as they were recorded, each request followed by its response."""
    sys.stdout.flush()
    for call in calls:
        for entry in opened.entries(call):
            data = bodies(entry) if entry is not None else b""
            sys.stdout.buffer.write(data if data.endswith(b"\n") or not data else data + b"\n")
    sys.stdout.buffer.flush()


def bodies(entry: dict[str, Any]) -> bytes:
    """A body's bytes, a stream's lines joined, or the messages of a WebSocket one per line."""
    if "websocket" in entry:
        return b"\n".join(message for _, message in understood.messages_of(entry))
    stream = understood.stream_of(entry)
    return understood.body_of(entry) if stream is None else stream


def _object(opened: Record, call: CallRow) -> dict[str, Any]:
    request, response = opened.entries(call)
    return {"id": call.id, "session": call.session, "seq": call.seq, "request": request, "response": response}
