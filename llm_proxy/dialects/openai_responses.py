"""OpenAI's Responses API: plain, as server-sent events, over WebSocket, in the background, compacted.

A turn's items are told as messages: all that the model does between two inputs is one message, as its answer is.
Leaves out what the ids mean for sessions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from llm_proxy.dialects.errors import provider_error
from llm_proxy.dialects.openai import arguments_of, joined, parts_of, result_of, role_of, usage_of
from llm_proxy.dialects.reading import (
    count,
    decoder,
    events,
    failure,
    mapping,
    read,
    read_value,
    sequence,
    streamed,
    text,
    written,
)

API = "openai.responses"

# --- requests


class _Request(msgspec.Struct):
    model: Any = None
    instructions: Any = None
    input: Any = None
    tools: Any = None
    stream: Any = None
    max_output_tokens: Any = None
    service_tier: Any = None
    previous_response_id: Any = None


_REQUEST = decoder(_Request)


def asked(path: str, body: bytes) -> Asked:
    """What the request asks, or a client's `response.create` of a WebSocket. Never raises."""
    if not body:
        return Asked(API)  # to look after an answer, to cancel it, to upgrade
    request = read(_REQUEST, body)
    if request is None:
        return Asked(API, trouble="the request is no JSON object")
    given = request.input
    items = [mapping(item) for item in sequence(given)] if type(given) is not str else [{"content": given}]
    offered = [tool for item in items if item.get("type") == "additional_tools" for tool in sequence(item.get("tools"))]
    return Asked(
        api=API,
        model=text(request.model),
        system=text(request.instructions) or joined(parts_of(request.instructions)),
        messages=tuple(_messages(items)),
        tools=tuple(_tool(mapping(tool)) for tool in (*sequence(request.tools), *offered)),
        stream=request.stream is True,
        max_tokens=count(request.max_output_tokens),
        service_tier=text(request.service_tier),
        previous_response=text(request.previous_response_id),
    )


def asked_in(messages: Iterable[tuple[str, bytes]]) -> Asked:
    """What the client's messages of a WebSocket ask together. Never raises.

    A request that names no previous answer brings the whole conversation and starts anew; one that does adds to it.
    """
    whole = Asked(API, stream=True)
    for side, data in messages:
        if side != "client":
            continue
        turn = asked("", data)
        goes_on = bool(turn.previous_response) and bool(whole.model)
        whole = Asked(
            api=API,
            model=turn.model or whole.model,
            system=turn.system or whole.system,
            messages=(whole.messages if goes_on else ()) + turn.messages,
            tools=turn.tools or whole.tools,
            stream=True,
            max_tokens=turn.max_tokens,
            service_tier=turn.service_tier or whole.service_tier,
            previous_response=(whole if goes_on else turn).previous_response,
            trouble=turn.trouble or whole.trouble,
        )
    return whole


def _tool(tool: dict[str, Any]) -> str:
    return text(tool.get("name")) or text(tool.get("server_label")) or text(tool.get("type"))


# --- items


def _messages(items: Iterable[dict[str, Any]]) -> Iterator[Message]:
    """Items as messages; what the model does in a row is one."""
    doing: list[Part] = []
    for item in items:
        role, parts = _read_item(item)
        if role == "assistant":
            doing += parts
            continue
        if doing:
            yield Message("assistant", tuple(doing))
            doing = []
        if parts:
            yield Message(role, tuple(parts))
    if doing:
        yield Message("assistant", tuple(doing))


# Items that say nothing in a conversation.
_SETTINGS = frozenset({"additional_tools", "configuration_update", "compaction_trigger"})
_ARGUMENTS = ("arguments", "input", "action", "actions", "operation", "queries", "code", "revised_prompt")
_RESULTS = ("output", "result", "tools")


def _read_item(item: dict[str, Any]) -> tuple[str, Sequence[Part]]:
    """The role of an item and its pieces."""
    kind = text(item.get("type"))
    if kind in ("", "message"):
        return role_of(item.get("role")), parts_of(item.get("content"))
    if kind == "reasoning":
        return "assistant", tuple(_thoughts(item))
    if kind.endswith("_call") or kind == "program":
        return "assistant", (_call(kind, item), *_results_within(kind, item))
    if kind.endswith("_output"):
        return "tool", _result(item)
    if kind in _SETTINGS:
        return "system", ()
    role = "user" if kind == "mcp_approval_response" else "assistant"
    id = text(item.get("id")) if kind == "item_reference" else ""
    return role, (Part(PartKind.OTHER, text(item.get("text")), kind, id),)


def _thoughts(item: dict[str, Any]) -> Iterator[Part]:
    """Encrypted thoughts say nothing."""
    for piece in (*sequence(item.get("summary")), *sequence(item.get("content"))):
        said = text(mapping(piece).get("text"))
        if said:
            yield Part(PartKind.THINKING, said)


def _call(kind: str, item: dict[str, Any]) -> Part:
    """Any tool's call, whoever runs it. An item's own id is left out: clients drop it."""
    given = next((item[name] for name in _ARGUMENTS if item.get(name) is not None), None)
    functions = ("function_call", "mcp_call")
    said = arguments_of(given) if kind in functions or type(given) is not str else given
    name = text(item.get("name")) or kind.removesuffix("_call")
    return Part(PartKind.TOOL_CALL, said, name, text(item.get("call_id")))


def _results_within(kind: str, item: dict[str, Any]) -> Iterator[Part]:
    """What the provider's own tools found stands in the item that calls them."""
    if kind == "image_generation_call":
        if item.get("result"):
            yield Part(PartKind.MEDIA, f"image/{text(item.get('output_format')) or 'png'}", "image")
        return
    error = item.get("error")
    found = error or item.get("output") or item.get("results") or item.get("outputs")
    if found:
        name = text(item.get("name")) or kind.removesuffix("_call")
        said = [text(mapping(piece).get("text")) or text(mapping(piece).get("logs")) for piece in sequence(found)]
        yield from result_of("\n".join(said) or text(found) or written(found), name=name, failed=bool(error))


def _result(item: dict[str, Any]) -> tuple[Part, ...]:
    given = next((item[name] for name in _RESULTS if item.get(name) is not None), None)
    if mapping(given).get("type") == "computer_screenshot":
        given = [given]
    if type(given) is list and not all(text(mapping(piece).get("type")) for piece in given):
        given = written(given)  # a shell's: objects of stdout and stderr
    failed = item.get("status") == "failed"
    return result_of(given, text(item.get("call_id")) or text(item.get("id")), text(item.get("name")), failed)


# --- answers


class _Response(msgspec.Struct):
    """The object that a plain answer is and that a stream begins and ends with; the echoed request is passed over."""

    id: Any = None
    model: Any = None
    status: Any = None
    output: Any = None
    usage: Any = None
    tool_usage: Any = None
    service_tier: Any = None
    error: Any = None
    incomplete_details: Any = None


_RESPONSE = decoder(_Response)


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back: one answer for each response that was begun, none where nothing came. Never raises."""
    if content.kind == "messages":
        return _from_events(data for side, data in content.messages if side == "server")
    if content.status is None and not content.data:
        return ()
    if streamed(content):
        return _from_events(events(content.data)) or (Answer(partial=True),)
    failed = content.status is not None and content.status >= 400
    kind, words = provider_error(read_value(content.data), content.status) if failed else ("", "")
    response = read(_RESPONSE, content.data)
    if words:
        return (Answer(error=words, error_type=kind),)
    return (_answer(response) if response is not None else failure(content),)


def _answer(response: _Response, seen: Sequence[dict[str, Any]] = ()) -> Answer:
    """`seen` are the items of its stream; ChatGPT's own backend leaves them out at the end."""
    output = [mapping(item) for item in sequence(response.output)] or seen
    kind, words = provider_error({"error": response.error})
    return Answer(
        model=text(response.model),
        message=_said(output),
        usage=_usage(response, output),
        stop_reason=text(mapping(response.incomplete_details).get("reason")) or text(response.status),
        response_id=text(response.id),
        service_tier=text(response.service_tier),
        error=words,
        error_type=kind,
    )


def _said(output: Iterable[dict[str, Any]]) -> Message | None:
    """All that came out as one message. A compacted conversation repeats what users said; that isn't the model's."""
    parts: list[Part] = []
    for item in output:
        role, pieces = _read_item(item)
        if role in ("assistant", "tool"):
            parts += pieces
    return Message("assistant", tuple(parts)) if parts else None


def _usage(response: _Response, output: Sequence[dict[str, Any]]) -> Usage | None:
    usage = usage_of(response.usage)
    if usage is None:
        return None
    told = mapping(mapping(response.tool_usage).get("web_search")).get("num_requests")
    used = {
        "file_search": sum(item.get("type") == "file_search_call" for item in output),
        "web_search": sum(map(_searches, output)) if told is None else count(told),
    }
    return replace(usage, server_tools=tuple((name, uses) for name, uses in used.items() if uses))


def _searches(item: dict[str, Any]) -> bool:
    """To open a page or to look for words in it is not charged."""
    action = text(mapping(item.get("action")).get("type")) or "search"
    return item.get("type") == "web_search_call" and action == "search"


# --- streams


class _Event(msgspec.Struct):
    type: Any = None
    response: _Response | None = None
    item: Any = None
    output_index: Any = None
    content_index: Any = None
    summary_index: Any = None
    delta: Any = None
    stream_id: Any = None  # of the lane, where a WebSocket has several
    error: Any = None
    code: Any = None
    message: Any = None


_EVENT = decoder(_Event)

_ENDS = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})


class _Place(NamedTuple):
    """Where a delta belongs: the item's type, its field, and the piece's type and field where it is one of a list."""

    item: str
    field: str
    piece: str = ""
    said: str = ""


_DELTAS = {
    "response.output_text.delta": _Place("message", "content", "output_text", "text"),
    "response.refusal.delta": _Place("message", "content", "refusal", "refusal"),
    "response.reasoning_text.delta": _Place("reasoning", "content", "reasoning_text", "text"),
    "response.reasoning_summary_text.delta": _Place("reasoning", "summary", "summary_text", "text"),
    "response.function_call_arguments.delta": _Place("function_call", "arguments"),
    "response.mcp_call_arguments.delta": _Place("mcp_call", "arguments"),
    "response.custom_tool_call_input.delta": _Place("custom_tool_call", "input"),
    "response.code_interpreter_call_code.delta": _Place("code_interpreter_call", "code"),
}


def _from_events(datas: Iterable[bytes]) -> tuple[Answer, ...]:
    turns: list[_Turn] = []
    running: dict[str, _Turn] = {}
    for data in datas:
        event = read(_EVENT, data)
        if event is None:
            continue
        kind, lane = text(event.type), text(event.stream_id)
        if not kind.startswith("response.") and kind != "error":
            continue
        turn = running.get(lane)
        if turn is None or turn.is_another(event.response):
            turn = running[lane] = _Turn()
            turns.append(turn)
        turn.take(kind, event)
        if turn.over:
            del running[lane]
    return tuple(turn.answer() for turn in turns)


class _Turn:
    """One response as its events build it up."""

    def __init__(self) -> None:
        self.over = False
        self._response = _Response()
        self._error = ("", "")
        self._items: dict[int, dict[str, Any]] = {}  # by output index
        self._deltas: dict[int, dict[tuple[_Place, int], list[str]]] = {}  # of items that are not done

    def is_another(self, response: _Response | None) -> bool:
        return response is not None and bool(self._response.id) and response.id != self._response.id

    def take(self, kind: str, event: _Event) -> None:
        index = count(event.output_index)
        if kind == "error":
            told = event.error or {"type": event.code, "message": event.message}
            self._error, self.over = provider_error({"error": told}), True
        elif event.response is not None:
            self._response = event.response
            self.over = kind in _ENDS
        elif kind in _DELTAS:
            place = _DELTAS[kind]
            piece = count(event.summary_index if place.field == "summary" else event.content_index)
            said = self._deltas.setdefault(index, {}).setdefault((place, piece), [])
            said.append(text(event.delta))
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._items[index] = mapping(event.item)
            self._deltas.pop(index, None)

    def answer(self) -> Answer:
        answer = _answer(self._response, self._output)
        if self._error[1]:
            kind, words = self._error
            answer = replace(answer, error=words, error_type=kind)
        ended = self.over and not self._error[1]
        return answer if ended else replace(answer, stop_reason="", partial=True)

    @property
    def _output(self) -> list[dict[str, Any]]:
        """The items as far as they came."""
        indices = sorted(self._items.keys() | self._deltas.keys())
        return [_so_far(self._items.get(index, {}), self._deltas.get(index, {})) for index in indices]


def _so_far(item: dict[str, Any], deltas: dict[tuple[_Place, int], list[str]]) -> dict[str, Any]:
    """An item with what its deltas have said; where its beginning was missed, they tell what it is."""
    grown: dict[str, Any] = {}
    kind = ""
    for (place, _), said in sorted(deltas.items(), key=lambda entry: entry[0][1]):
        kind = place.item
        if place.piece:
            grown.setdefault(place.field, []).append({"type": place.piece, place.said: "".join(said)})
        else:
            grown[place.field] = "".join(said)
    return {"type": kind, "role": "assistant", **item, **grown}
