"""One conversation: what it cost, how its context grew, and every turn once, with the calls as proof.

Beside the page fragments of it, for who scrolls or opens, and the whole as a file. Leaves out how it is put together
(`story`, `conversation`, `turns`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from llm_proxy.dialects.digest import Asked as AskedOf
from llm_proxy.dialects.digest import Digest, PartKind
from llm_proxy.explorer import story as made
from llm_proxy.explorer.asking import Absent, Asked, BadValue, NotFound, Param, Withheld, choice, text, whole
from llm_proxy.explorer.markdown import words_of
from llm_proxy.explorer.page import Extra, Page
from llm_proxy.explorer.reading import Calls
from llm_proxy.explorer.render import ROOT
from llm_proxy.explorer.render import path as path_to
from llm_proxy.explorer.story import AT_ONCE, Conversation, More, Rules, Story, Window
from llm_proxy.explorer.turns import Earlier, Excerpt, earlier_in, excerpt_of, new_messages_of, part_of
from llm_proxy.formats import jsonl
from llm_proxy.formats import markdown as as_markdown
from llm_proxy.formats.call import Call
from llm_proxy.index import threads
from llm_proxy.index.queries import CallRow, SessionRow
from llm_proxy.index.record import Record

TABLED = 400  # calls in the table
_BEFORE = 10  # turns shown before the one that was asked for


# --- the page

PARAMS: tuple[Param, ...] = (
    whole("from", "First turn shown, or first call of the table.", 1, 10**6, 0),
    choice(
        "view",
        "The conversation, or a table of its calls. Without conversation: its calls.",
        "turns",
        "calls",
        default="",
    ),
    whole("branch", "Number of a call: the way of the conversation that leads through it.", 1, 10**9, 0),
    choice("fmt", "`md` gives the conversation as Markdown.", "html", "md"),
    text("call", "Id of a call: the turns around it."),
    text("q", "Words to mark."),
)


def view(record: Record, asked: Asked) -> Conversation:
    if asked["fmt"] == "md":
        raise web.HTTPTemporaryRedirect(path_to("sessions", asked.ids["id"], "export") + "?fmt=md")
    story = Story(record, asked.ids["id"], asked["branch"], asked["call"])
    window = _window(story, asked)
    shown = asked["view"] or ("turns" if story.steps else "calls")
    turns = made.turns(story, window, asked["call"], words_of(asked["q"])) if shown == "turns" else ()
    chart = made.chart(story)
    start = min(max(1, asked["from"]), max(1, len(story.rows)))
    parent = threads.session(record.index, story.session.parent) if story.session.parent else None
    first = story.steps[0].gist.prompt if story.session.forked and story.steps else ""
    title = made.title_of(first or story.session.title) or story.session.id
    return Conversation(
        session=story.session,
        title=title,
        models=tuple(
            dict.fromkeys((*story.session.models, *(one for _, thread in story.threads for one in thread.models)))
        ),
        parent_title=(made.title_of(parent.title) or parent.id) if parent else "",
        shown=shown,
        figures=made.figures(story),
        chart=chart,
        axis_tokens=made.axis(max((bar.read + bar.write + bar.fresh for bar in chart), default=0)),
        money=made.money(story),
        outline=made.outline(story, window),
        turns=turns,
        window=window,
        rules=_rules(story, window) if turns else None,
        calls=tuple(story.rows[start - 1 : start - 1 + TABLED]) if shown == "calls" else (),
        calls_from=start,
        calls_next=start + TABLED if shown == "calls" and start + TABLED <= len(story.rows) else 0,
        marks=words_of(asked["q"]),
        branch=story.shape.branch,
        open=sum(call.open for call in story.rows),
        machines=record.machines(story.session.files),
    )


def _window(story: Story, asked: Asked, size: int = AT_ONCE) -> Window:
    total = len(story.steps)
    first = asked["from"]
    if not first and asked["call"]:
        step = story.shape.step_of(asked["call"])
        if step is None and not any(call.id == asked["call"] for call in story.rows):
            raise NotFound(f"This conversation has no call {asked['call'][:100]!r}.")
        first = max(1, step.number - _BEFORE) if step is not None else 1
    first = min(max(1, first), max(1, total))
    return Window(first, min(total, first + size - 1), total, size)


def _rules(story: Story, window: Window) -> Rules | None:
    """Read with the request of the first step shown: its own, or the next one that has one."""
    calls = Calls(story.record)
    for step in story.steps[window.first - 1 : window.first + 2]:
        asked = calls.asked(step.call)
        if asked is not None:
            system = _system(asked)
            return Rules(step.call.id, system[:300], len(system), asked.tools)
    return None


def _system(asked: AskedOf) -> str:
    said = [asked.system]
    for message in asked.messages:
        if message.role != "system":
            break
        said.append(message.text)
    return "\n\n".join(filter(None, said))


# --- fragments and downloads

MORE_PARAMS: tuple[Param, ...] = (
    whole("from", "First turn.", 1, 10**6, 1),
    whole("n", "Turns.", 1, 100, AT_ONCE),
    whole("branch", "Number of a call: the way of the conversation that leads through it.", 1, 10**9, 0),
    text("call", "Id of a call: the turns around it."),
    text("q", "Words to mark."),
)


def more(record: Record, asked: Asked) -> More:
    story = Story(record, asked.ids["id"], asked["branch"], asked["call"])
    if asked["from"] == len(story.steps) + 1:  # what may come next has not come yet
        total = len(story.steps)
        return More(story.session, (), Window(total + 1, total, total), (), story.shape.branch)
    if asked["from"] > len(story.steps):
        raise BadValue("from", f"a turn from 1 to {len(story.steps) + 1}", str(asked["from"]))
    window = _window(story, asked, asked["n"])
    return More(
        story.session,
        made.turns(story, window, asked["call"], words_of(asked["q"])),
        window,
        words_of(asked["q"]),
        story.shape.branch,
    )


@dataclass(frozen=True, slots=True)
class Opened:
    """A part that a page did not send at first. `kind` as in `turns.Block`, or system, tools, earlier."""

    session: SessionRow
    call: str
    kind: str
    said: Excerpt
    name: str = ""
    language: str = ""
    path: str = ""
    names: tuple[str, ...] = ()
    earlier: tuple[Earlier, ...] = ()
    marks: tuple[str, ...] = ()


PART_PARAMS: tuple[Param, ...] = (
    text("call", "Id of the call."),
    text("part", "The part's reference, or `system`, `tools`, `earlier`."),
    text("q", "Words to mark."),
)


def part(record: Record, asked: Asked) -> Opened:
    call = call_of(record, asked.ids["id"], asked["call"])
    session = threads.session(record.index, call.session)
    assert session is not None
    calls = Calls(record)
    wanted, marks = asked["part"], words_of(asked["q"])
    if wanted in ("system", "tools"):
        given = calls.asked(call)
        if given is None:
            raise Absent(record.missing(call))
        said = _system(given) if wanted == "system" else ""
        return Opened(session, call.id, wanted, Excerpt(said, chars=len(said)), names=given.tools, marks=marks)
    if wanted == "earlier":
        story = Story(record, call.session, 0, call.id)
        step = story.shape.step_of(call.id)
        told = earlier_in(step, calls.reader) if step is not None else ()
        return Opened(session, call.id, wanted, Excerpt(""), earlier=told, marks=marks)
    digest = calls.digest(call)
    if digest is None:
        raise Absent(record.missing(call))
    found = part_of(digest, wanted)
    if found is None:
        raise NotFound(f"This call has no part {wanted[:40]!r}.")
    said_ = excerpt_of(found)
    kind = {PartKind.TOOL_CALL: "arguments", PartKind.TOOL_RESULT: "result"}.get(found.kind, found.kind)
    return Opened(session, call.id, kind, said_, found.name, marks=marks)


def call_of(record: Record, session: str, call: str) -> CallRow:
    """Exactly this call of exactly this session. Raises NotFound."""
    found = next((row for row in record.index.calls_of(session) if row.id == call), None) if call else None
    if found is None:
        raise NotFound(f"No call {call[:100]!r} is recorded in session {session[:100]!r}.")
    if record.withholds(found):
        raise Withheld
    return found


async def _more(request: web.Request) -> web.StreamResponse:
    return await _fragment(request, MORE_PARAMS, more, "session_more.html")


async def _part(request: web.Request) -> web.StreamResponse:
    """For a script a fragment; opened as a page of its own, one."""
    alone = request.headers.get("Sec-Fetch-Dest", "document") == "document"
    return await _fragment(request, PART_PARAMS, part, "session_part.html" if alone else "session_opened.html")


async def _fragment(
    request: web.Request, params: tuple[Param, ...], make: Callable[[Record, Asked], Any], template: str
) -> web.StreamResponse:
    from llm_proxy.explorer.site import SITE, asked_of

    site = request.app[SITE]
    asked = asked_of(request, request.path.removeprefix(ROOT), params)

    def shown(record: Record) -> str:
        view = make(record, asked)
        if template == "session_part.html":
            return site.html("session_part", asked, view=view)
        return str(site.fragment(template, asked, view=view))

    return web.Response(text=await site.ask(asked.viewer, shown), content_type="text/html")


EXPORT_PARAMS = (choice("fmt", "Markdown, or one JSON object per call.", "md", "jsonl"),)


async def _export(request: web.Request) -> web.StreamResponse:
    """Goes out as it is made: a session may have hundreds of megabytes."""
    from llm_proxy.explorer.site import SITE, asked_of

    site = request.app[SITE]
    asked = asked_of(request, request.path.removeprefix(ROOT), EXPORT_PARAMS)
    story = await site.ask(asked.viewer, lambda record: _whole(record, asked.ids["id"]))
    form, kinds = asked["fmt"], {"md": "text/markdown", "jsonl": "application/x-ndjson"}
    name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in story.session.id)
    response = web.StreamResponse(headers={"Content-Disposition": f'attachment; filename="{name}.{form}"'})
    response.content_type = kinds[form]
    response.charset = "utf-8"
    await response.prepare(request)
    pieces = _as_markdown(story) if form == "md" else _as_jsonl(story)
    while (piece := await site.run(lambda: next(pieces, None))) is not None:
        await response.write(piece)
    await response.write_eof()
    return response


def _whole(record: Record, session: str) -> Story:
    story = Story(record, session, 0)
    if any(record.withholds(row) for row in story.rows):
        raise Withheld
    return story


def _as_jsonl(story: Story) -> Iterator[bytes]:
    for row in story.rows:
        out = io.BytesIO()
        jsonl.write([Call(row, *story.record.entries(row))], out)
        yield out.getvalue()


def _as_markdown(story: Story) -> Iterator[bytes]:
    """The turns in order, each message once."""
    told: dict[str, Digest] = {}
    reader = Calls(story.record)
    rows = [call for step in story.steps for call in step.calls]

    def understand(call: CallRow) -> Digest | None:
        if call.id not in told:
            told.clear()
            told.update(_digests(story, call, reader))
        return told.get(call.id) or reader.digest(call)

    for block in as_markdown.conversation(story.session, rows, understand):
        yield block.encode("utf-8", "replace") + b"\n\n"


def _digests(story: Story, call: CallRow, reader: Calls) -> Iterator[tuple[str, Digest]]:
    """What is new in each of the next steps, as if nothing else had been sent."""
    at = next((step.number for step in story.steps if call in step.calls), 1)
    steps = story.steps[at - 1 : at - 1 + AT_ONCE]
    new = new_messages_of(steps, reader.reader)
    for step in steps:
        first = step.number == 1 or step.rules_changed or step.begins
        system = _system(asked) if first and (asked := reader.asked(step.call)) is not None else ""
        for one in step.attempts:
            yield one.id, Digest(AskedOf(one.api, one.model), tuple(a for r in reader.rounds(one) for a in r.answers))
        answers = tuple(answer for round in reader.rounds(step.call) for answer in round.answers)
        yield step.call.id, Digest(AskedOf(step.call.api, messages=new.get(step.number, ()), system=system), answers)


async def _older(request: web.Request) -> web.StreamResponse:
    raise web.HTTPPermanentRedirect(path_to("sessions", request.match_info["id"]))


PAGES = (Page("/sessions/{id}", "session", "One conversation, turn by turn.", PARAMS, view),)
EXTRAS = (
    Extra("/sessions/{id}/turns", _more, "Turns as a fragment of HTML.", MORE_PARAMS),
    Extra("/sessions/{id}/part", _part, "A part of a turn as a fragment of HTML.", PART_PARAMS),
    Extra("/sessions/{id}/export", _export, "The conversation as Markdown or JSON lines.", EXPORT_PARAMS),
    Extra("/session/{id}", _older),
)
