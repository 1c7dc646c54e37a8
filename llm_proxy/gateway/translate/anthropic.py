"""Anthropic's Messages, both ways: requests, answers, streams; also the body that Bedrock's InvokeModel takes.

Leaves out tools that Anthropic runs itself (web search, code execution): they are lost by name, because nobody else has
them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from llm_proxy.dialects.digest import Usage
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Begin,
    Choice,
    Effort,
    End,
    Event,
    Failure,
    Given,
    Json,
    Media,
    Option,
    Part,
    PartBegin,
    PartEnd,
    Piece,
    Refusal,
    Reply,
    Role,
    Shape,
    Signed,
    Stop,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from llm_proxy.gateway.translate.fields import Fields, arguments_of, compact, parts_of
from llm_proxy.gateway.translate.losses import BadRequest, Losses

ORIGIN: Final = "anthropic"
NAME: Final = "Anthropic Messages"

# Their name here -> ours. `stop_sequences` is a list there and here.
_OPTIONS = {
    "max_tokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "top_p": Option.TOP_P,
    "top_k": Option.TOP_K,
    "stop_sequences": Option.STOP,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()}
_TIERS = {"auto": "auto", "standard_only": "default"}
_TIER_NAMES = {"auto": "auto", "default": "standard_only", "priority": "auto"}
_STOPS = {
    "end_turn": Stop.END,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.LENGTH,
    "stop_sequence": Stop.SEQUENCE,
    "tool_use": Stop.TOOL,
    "refusal": Stop.REFUSED,
    "pause_turn": Stop.PAUSED,
}
_STOP_NAMES = {stop: name for name, stop in reversed(_STOPS.items())} | {Stop.FILTERED: "refusal"}
_CHOICES = {"auto": "auto", "any": "any", "none": "none", "tool": "one"}
_CHOICE_NAMES = {ours: theirs for theirs, ours in _CHOICES.items()}
_PARTED = {"document": "document", "image": "image"}

# max_tokens is required there and nowhere else: the most that models of these names are sure to take.
_MOST = ((re.compile(r"claude-(?:3-(?:opus|sonnet|haiku)|2|instant)"), 4096), (re.compile(r"claude-3-5"), 8192))
_MOST_OF_OTHERS = 32_000
# Models that think by a budget of tokens; later ones by themselves, as much as `effort` says.
_BY_BUDGET = re.compile(r"claude-(?:3-7|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?![0-9-]*[6-9])(?:[-@]|$))")
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 30_000}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}


# -- requests: read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a Messages request asks. Raises BadRequest."""
    fields = Fields(body)
    turns: list[Turn] = []
    system = parts_of(fields, "system", lambda one: _system_part(one, losses), lambda text, at: Text(text, at=at))
    if system:
        turns.append(Turn(Role.SYSTEM, tuple(system), at="system"))
    turns += [_turn(one, losses) for one in fields.objects("messages")]
    output = fields.object("output_config")
    ask = Ask(
        model=fields.text("model"),
        turns=tuple(turns),
        tools=tuple(_tools(fields, losses)),
        choice=_choice(fields.object("tool_choice"), options := {}, losses),
        shape=_shape(output),
        effort=_effort(fields.object("thinking"), output, losses),
        options=options,
        stream=bool(fields.flag("stream")),
        usage=True,
    )
    for theirs, ours in _OPTIONS.items():
        if fields.has(theirs):
            options[ours] = Given(fields.any(theirs), theirs)
    if Option.MAX_TOKENS not in options:
        raise BadRequest("max_tokens", "is required")
    if metadata := fields.object("metadata"):
        if metadata.has("user_id"):
            options[Option.USER] = Given(metadata.text("user_id"), "metadata.user_id")
        metadata.finish(losses)
    if fields.has("service_tier"):
        tier = fields.text("service_tier")
        options[Option.TIER] = Given(_TIERS.get(tier, tier), "service_tier")
    if output:
        output.finish(losses)
    _loosen(fields, losses, "cache_control", "anthropic_beta", "diagnostics", "workspace_id", "user_profile_id")
    fields.leave("anthropic_version")
    fields.finish(losses)
    return ask


def _loosen(fields: Fields, losses: Losses, *names: str) -> None:
    for name in names:
        if fields.any(name) is not None:
            losses.loosen(fields.path(name))


def _system_part(fields: Fields, losses: Losses) -> Text:
    if fields.any("type", "text") != "text":
        raise BadRequest(fields.path("type"), "must be text")
    part = Text(fields.text("text"), _cache(fields), fields.at)
    fields.finish(losses)
    return part


def _cache(fields: Fields) -> str:
    told = fields.object("cache_control")
    return str(told.any("ttl", "5m")) if told else ""


def _turn(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(fields.path("role"), "must be user, assistant or system")
    parts = parts_of(fields, "content", lambda one: _part(one, losses), lambda text, at: Text(text, at=at))
    _loosen(fields, losses, "output_config")
    fields.finish(losses)
    return Turn(Role(role), tuple(part for part in parts if part is not None), at=fields.at)


def _part(fields: Fields, losses: Losses) -> Part | None:
    kind = fields.text("type")
    read = _PARTS.get(kind)
    if read is None:
        losses.lose(fields.at, f"a part of type {kind}")
        return None
    part = read(fields, losses)
    fields.finish(losses)
    return part


def _text_part(fields: Fields, losses: Losses) -> Text:
    _loosen(fields, losses, "citations")
    return Text(fields.text("text"), _cache(fields), fields.at)


def _media_part(kind: str) -> Any:
    def read(fields: Fields, losses: Losses) -> Media:
        source = fields.object("source")
        if source is None:
            raise BadRequest(fields.path("source"), "is required")
        facts: dict[str, str] = {"cache": _cache(fields), "name": fields.text("title", ""), "at": fields.at}
        match source.text("type"):
            case "base64":
                facts |= {"data": source.text("data"), "media_type": source.text("media_type")}
            case "url":
                facts["url"] = source.text("url")
            case "file":
                facts["file_id"] = source.text("file_id")
            case "text":
                facts |= {"text": source.text("data"), "media_type": source.text("media_type", "text/plain")}
            case other:
                losses.lose(source.path("type"), f"a source of type {other}")
                source.leave("content", "data")
        source.finish(losses)
        _loosen(fields, losses, "citations", "transformations")
        return Media(kind, **facts)

    return read


def _thinking_part(fields: Fields, losses: Losses) -> Thinking:
    return Thinking(fields.text("thinking"), fields.text("signature", ""), origin=ORIGIN, at=fields.at)


def _sealed_part(fields: Fields, losses: Losses) -> Thinking:
    return Thinking("", sealed=fields.text("data"), origin=ORIGIN, at=fields.at)


def _call_part(fields: Fields, losses: Losses) -> ToolCall:
    fields.leave("caller")
    call = fields.any("input", {})
    return ToolCall(fields.text("id"), fields.text("name"), compact(call), cache=_cache(fields), at=fields.at)


def _result_part(fields: Fields, losses: Losses) -> ToolResult:
    parts = parts_of(fields, "content", lambda one: _part(one, losses), lambda text, at: Text(text, at=at))
    kept = tuple(part for part in parts if isinstance(part, Text | Media))
    failed = bool(fields.flag("is_error"))
    return ToolResult(fields.text("tool_use_id"), kept, failed=failed, cache=_cache(fields), at=fields.at)


_PARTS: dict[str, Any] = {
    "text": _text_part,
    "image": _media_part("image"),
    "document": _media_part("document"),
    "thinking": _thinking_part,
    "redacted_thinking": _sealed_part,
    "tool_use": _call_part,
    "tool_result": _result_part,
}


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    for one in fields.objects("tools"):
        kind = one.any("type", "custom")
        if kind != "custom":
            losses.lose(one.at, f"a tool of type {kind}")
            continue
        yield Tool(
            one.text("name"),
            one.text("description", ""),
            one.take("input_schema", dict),
            one.flag("strict"),
            cache=_cache(one),
            at=one.at,
        )
        _loosen(one, losses, "eager_input_streaming", "input_examples", "defer_loading", "allowed_callers")
        one.finish(losses)


def _choice(fields: Fields | None, options: dict[str, Given], losses: Losses) -> Choice | None:
    if fields is None:
        return None
    kind = fields.text("type")
    if kind not in _CHOICES:
        raise BadRequest(fields.path("type"), f"must be one of {', '.join(_CHOICES)}")
    if (alone := fields.flag("disable_parallel_tool_use")) is not None:
        options[Option.PARALLEL_TOOLS] = Given(not alone, fields.path("disable_parallel_tool_use"))
    choice = Choice(_CHOICES[kind], fields.text("name") if kind == "tool" else "", fields.at)
    fields.finish(losses)
    return choice


def _shape(output: Fields | None) -> Shape | None:
    told = output.object("format") if output else None
    if told is None:
        return None
    if told.any("type") != "json_schema":
        raise BadRequest(told.path("type"), "must be json_schema")
    return Shape(told.take("schema", dict), strict=True, at=told.at)


def _effort(thinking: Fields | None, output: Fields | None, losses: Losses) -> Effort | None:
    level = output.text("effort", "") if output else ""
    at = output.path("effort") if level and output else ""
    if thinking is None:
        return Effort(level, at=at) if level else None
    kind = thinking.text("type")
    budget = thinking.take("budget_tokens", int) if thinking.has("budget_tokens") else None
    shown = thinking.any("display")
    told = None if shown is None else shown != "omitted"
    thinking.finish(losses)
    return Effort(level, budget, off=kind == "disabled", told=told, at=thinking.at)


# -- requests: write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of a Messages request. Raises CannotSay and BadRequest."""
    system, turns = _opening(ask.turns)
    body: dict[str, Json] = {"model": ask.model, "max_tokens": _most(ask)}
    if system:
        body["system"] = [_block(part, losses) for part in system]
    body["messages"] = [_message(role, parts, losses) for role, parts in _merged(turns)]
    for name, given in ask.options.items():
        if name == Option.MAX_TOKENS:
            continue
        _write_option(body, name, given, losses)
    if ask.tools:
        body["tools"] = [tool for one in ask.tools if (tool := _tool(one, losses)) is not None]
    _write_choice(body, ask)
    _write_effort(body, ask, losses)
    if ask.shape is not None:
        if ask.shape.schema is None:
            losses.lose(ask.shape.at, "JSON without a schema")
        else:
            body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": ask.shape.schema}
    if ask.stream:
        body["stream"] = True
    return body


def _opening(turns: Iterable[Turn]) -> tuple[list[Part], list[Turn]]:
    """What the system says before anybody else does, and the rest."""
    system: list[Part] = []
    rest: list[Turn] = []
    for turn in turns:
        if turn.role is Role.SYSTEM and not rest:
            system += turn.parts
        else:
            rest.append(turn)
    return system, rest


def _merged(turns: Iterable[Turn]) -> Iterator[tuple[Role, list[Part]]]:
    """Speakers take turns there; within a turn the results of tools come first."""
    role: Role | None = None
    parts: list[Part] = []
    for turn in turns:
        if turn.role is not role and role is not None:
            yield role, parts
            parts = []
        role = turn.role
        parts = parts + list(turn.parts)
    if role is not None:
        yield role, parts


def _message(role: Role, parts: list[Part], losses: Losses) -> Json:
    if role is Role.USER:
        parts = sorted(parts, key=lambda part: not isinstance(part, ToolResult))
    blocks = [block for part in parts if (block := _block(part, losses)) is not None]
    return {"role": str(role), "content": blocks}


def _block(part: Part, losses: Losses) -> Json | None:
    block = _written(part, losses)
    cache = getattr(part, "cache", "")
    if block is not None and cache:
        block["cache_control"] = {"type": "ephemeral"} | ({"ttl": cache} if cache != "5m" else {})
    return block


def _written(part: Part, losses: Losses) -> dict[str, Json] | None:
    match part:
        case Text():
            return {"type": "text", "text": part.text} if part.text else None
        case Refusal():
            return {"type": "text", "text": part.text}
        case Media():
            return _media(part, losses)
        case Thinking() if part.origin != ORIGIN:
            losses.loosen(part.at)
            return None
        case Thinking(sealed=sealed) if sealed:
            return {"type": "redacted_thinking", "data": sealed}
        case Thinking():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature}
        case ToolCall():
            given = {"input": part.arguments} if part.free else arguments_of(part.arguments, part.at)
            return {"type": "tool_use", "id": part.id, "name": part.name, "input": given}
        case ToolResult():
            result: dict[str, Json] = {"type": "tool_result", "tool_use_id": part.id}
            if part.parts:
                result["content"] = [block for one in part.parts if (block := _block(one, losses)) is not None]
            return result | ({"is_error": True} if part.failed else {})


def _media(part: Media, losses: Losses) -> dict[str, Json] | None:
    if part.kind not in _PARTED:
        losses.lose(part.at, f"{part.kind}")
        return None
    if part.data:
        source: Json = {"type": "base64", "media_type": part.media_type, "data": part.data}
    elif part.url:
        source = {"type": "url", "url": part.url}
    elif part.text:
        source = {"type": "text", "media_type": "text/plain", "data": part.text}
    else:
        losses.lose(part.at, "a file in another provider's store")
        return None
    if part.detail not in ("", "auto"):
        losses.loosen(f"{part.at}.detail")
    return {"type": part.kind, "source": source} | (
        {"title": part.name} if part.name and part.kind == "document" else {}
    )


def _most(ask: Ask) -> Json:
    given = ask.options.get(Option.MAX_TOKENS)
    if given is not None:
        return given.value
    return next((most for pattern, most in _MOST if pattern.search(ask.model)), _MOST_OF_OTHERS)


def _write_option(body: dict[str, Json], name: str, given: Given, losses: Losses) -> None:
    match name:
        case Option.PARALLEL_TOOLS:
            pass  # with the choice
        case Option.USER:
            body["metadata"] = {"user_id": given.value}
        case Option.TIER if given.value in _TIER_NAMES:
            body["service_tier"] = _TIER_NAMES[given.value]
        case Option.COUNT if given.value == 1:
            pass
        case Option.LOGPROBS if not given.value:
            pass
        case Option.FREQUENCY_PENALTY | Option.PRESENCE_PENALTY if given.value == 0:
            pass
        case Option.METADATA | Option.CACHE_KEY | Option.STORE | Option.TIER:
            losses.loosen(given.at)
        case _ if name in _NAMES:
            body[_NAMES[name]] = given.value
        case _:
            losses.lose(given.at)


def _tool(tool: Tool, losses: Losses) -> Json | None:
    if tool.free and tool.grammar is not None:
        losses.lose(tool.at, "a tool that takes text by a grammar")
        return None
    schema = tool.schema or {"type": "object", "properties": {}}
    if tool.free:
        schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    written: dict[str, Json] = {"name": tool.name, "input_schema": schema}
    if tool.description:
        written["description"] = tool.description
    if tool.strict is not None:
        written["strict"] = tool.strict
    if tool.cache:
        written["cache_control"] = {"type": "ephemeral"} | ({"ttl": tool.cache} if tool.cache != "5m" else {})
    return written


def _write_choice(body: dict[str, Json], ask: Ask) -> None:
    parallel = ask.options.get(Option.PARALLEL_TOOLS)
    if ask.choice is None and (parallel is None or not ask.tools):
        return
    choice = ask.choice or Choice("auto")
    written: dict[str, Json] = {"type": _CHOICE_NAMES[choice.mode]}
    if choice.name:
        written["name"] = choice.name
    if parallel is not None and choice.mode != "none":
        written["disable_parallel_tool_use"] = not parallel.value
    body["tool_choice"] = written


def _write_effort(body: dict[str, Json], ask: Ask, losses: Losses) -> None:
    effort = ask.effort
    if effort is None:
        return
    if effort.off or effort.level == "none":
        body["thinking"] = {"type": "disabled"}
        return
    if effort.budget is not None or (effort.level and _BY_BUDGET.search(ask.model)):
        budget = effort.budget if effort.budget is not None else _BUDGETS[effort.level]
        if Option.MAX_TOKENS not in ask.options:
            body["max_tokens"] = max(body["max_tokens"], budget + 4096)
        elif isinstance(body["max_tokens"], int):
            budget = min(budget, body["max_tokens"] - 1)
        if budget >= 1024:  # the least that there may be
            body["thinking"] = {"type": "enabled", "budget_tokens": budget}
        else:
            losses.loosen(effort.at)
        return
    if not ask.model.startswith("claude-") or not _BY_BUDGET.search(ask.model):
        body["thinking"] = {"type": "adaptive"}
    if effort.level:
        body.setdefault("output_config", {})["effort"] = _EFFORTS[effort.level]


# -- answers


def read_usage(told: Json) -> Usage:
    """Token counts of an answer."""
    fields = told if isinstance(told, dict) else {}

    def count(name: str, of: Json = fields) -> int:
        value = of.get(name) if isinstance(of, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    written = count("cache_creation_input_tokens")
    hour = count("ephemeral_1h_input_tokens", fields.get("cache_creation"))
    return Usage(
        input=count("input_tokens"),
        cache_read=count("cache_read_input_tokens"),
        cache_write_5m=max(0, written - hour),
        cache_write_1h=hour,
        output=count("output_tokens"),
        reasoning=count("thinking_tokens", fields.get("output_tokens_details")),
    )


def write_usage(usage: Usage) -> Json:
    """As a whole answer tells it."""
    written: dict[str, Json] = {
        "input_tokens": usage.input,
        "output_tokens": usage.output,
        "cache_creation_input_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_read_input_tokens": usage.cache_read,
    }
    if usage.cache_write_1h:
        written["cache_creation"] = {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        }
    return written


def read_reply(body: Json) -> Reply:
    """What a whole answer says. Parts of kinds that nobody else has are passed over. Raises BadRequest."""
    fields = Fields(body)
    losses = Losses("", refuse=False)
    parts = [part for one in fields.objects("content") if (part := _part(one, losses)) is not None]
    return Reply(
        id=fields.text("id", ""),
        model=fields.text("model", ""),
        parts=tuple(parts),
        stop=_STOPS.get(fields.text("stop_reason", ""), Stop.END),
        sequence=fields.text("stop_sequence", ""),
        usage=read_usage(fields.any("usage")),
    )


def write_reply(reply: Reply) -> Json:
    """The body of a Message."""
    losses = Losses("", refuse=False)
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [block for part in reply.parts if (block := _written(_shown(part), losses)) is not None],
        "stop_reason": _STOP_NAMES[reply.stop],
        "stop_sequence": reply.sequence or None,
        "usage": write_usage(reply.usage),
    }


def _shown(part: Part) -> Part:
    """Thinking of another provider is told too; its signature means nothing, so it is not sent back to Anthropic."""
    if isinstance(part, Thinking) and part.origin != ORIGIN:
        return Thinking(part.text, origin=ORIGIN)
    return part


# -- streams


class StreamReader:
    """Events of a Messages stream, as they come."""

    def __init__(self) -> None:
        self._begun = Usage()
        self._kept: set[int] = set()

    def read(self, event: Json) -> Iterator[Event]:
        """What one event's data says."""
        fields = event if isinstance(event, dict) else {}
        index = fields.get("index", 0)
        match fields.get("type"):
            case "message_start":
                message = fields.get("message") or {}
                self._begun = read_usage(message.get("usage"))
                yield Begin(str(message.get("id", "")), str(message.get("model", "")), self._begun)
            case "content_block_start":
                part = _part(Fields(dict(fields.get("content_block") or {})), Losses("", refuse=False))
                if part is not None:
                    self._kept.add(index)
                    yield from self._opened(index, part)
            case "content_block_delta" if index in self._kept:
                yield from self._piece(index, fields.get("delta") or {})
            case "content_block_stop" if index in self._kept:
                yield PartEnd(index)
            case "message_delta":
                yield self._end(fields)
            case "error":
                error = fields.get("error") or {}
                yield Failure(str(error.get("type", "api_error")), str(error.get("message", "")))

    def _opened(self, index: int, part: Part) -> Iterator[Event]:
        if isinstance(part, ToolCall):
            yield PartBegin(index, ToolCall(part.id, part.name, ""))
            if part.arguments != "{}":
                yield Piece(index, part.arguments)
        elif isinstance(part, Text | Thinking) and part.text:
            yield PartBegin(index, Text("") if isinstance(part, Text) else Thinking("", origin=ORIGIN))
            yield Piece(index, part.text)
        else:
            yield PartBegin(index, part)

    def _piece(self, index: int, delta: dict[str, Json]) -> Iterator[Event]:
        match delta.get("type"):
            case "text_delta":
                yield Piece(index, str(delta.get("text", "")))
            case "thinking_delta":
                yield Piece(index, str(delta.get("thinking", "")))
            case "input_json_delta":
                yield Piece(index, str(delta.get("partial_json", "")))
            case "signature_delta":
                yield Signed(index, str(delta.get("signature", "")), ORIGIN)

    def _end(self, fields: dict[str, Json]) -> End:
        """Counts there replace those of the beginning; what they leave out stays."""
        delta = fields.get("delta") or {}
        told = {name: value for name, value in (fields.get("usage") or {}).items() if value is not None}
        usage = read_usage(write_usage(self._begun) | told)
        return End(_STOPS.get(delta.get("stop_reason"), Stop.END), str(delta.get("stop_sequence") or ""), usage)


class StreamWriter:
    """Writes a Messages stream: blocks one after the other, as Anthropic's own clients want them.

    Parts that come interleaved are held back until those before them have ended.
    """

    def __init__(self) -> None:
        self._open: int | None = None
        self._number = 0
        self._waiting: dict[int, list[Event]] = {}

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """(event name, data)."""
        match event:
            case Begin():
                yield from _message_start(event)
            case PartBegin() | Piece() | Signed() | PartEnd():
                yield from self._of_part(event)
            case End():
                for index in list(self._waiting):
                    yield from self._all(index)
                yield (
                    "message_delta",
                    {
                        "type": "message_delta",
                        "delta": {"stop_reason": _STOP_NAMES[event.stop], "stop_sequence": event.sequence or None},
                        "usage": write_usage(event.usage),
                    },
                )
                yield "message_stop", {"type": "message_stop"}
            case Failure():
                yield "error", {"type": "error", "error": {"type": event.kind, "message": event.message}}

    def _of_part(self, event: PartBegin | Piece | Signed | PartEnd) -> Iterator[tuple[str, Json]]:
        if self._open is None and isinstance(event, PartBegin):
            self._open = event.index
        if event.index != self._open:
            self._waiting.setdefault(event.index, []).append(event)
            return
        yield from self._now(event)
        if isinstance(event, PartEnd):
            self._open = None
            self._number += 1
            for index in list(self._waiting):
                if self._open is None:
                    yield from self._all(index)

    def _all(self, index: int) -> Iterator[tuple[str, Json]]:
        """What has waited of the part `index`, which is now the open one."""
        self._open = index
        for event in self._waiting.pop(index):
            if isinstance(event, PartEnd):
                self._open = None
            yield from self._now(event)
            if isinstance(event, PartEnd):
                self._number += 1

    def _now(self, event: Event) -> Iterator[tuple[str, Json]]:
        at = {"index": self._number}
        match event:
            case PartBegin():
                self._kind = _kind_of(event.part)
                block = _written(_shown(event.part), Losses("", refuse=False)) or {"type": "text", "text": ""}
                yield "content_block_start", {"type": "content_block_start"} | at | {"content_block": block}
            case Piece() if event.text:
                delta = {"type": f"{_DELTAS[self._kind][0]}", _DELTAS[self._kind][1]: event.text}
                yield "content_block_delta", {"type": "content_block_delta"} | at | {"delta": delta}
            case Signed() if event.origin == ORIGIN and self._kind == "thinking":
                delta = {"type": "signature_delta", "signature": event.signature}
                yield "content_block_delta", {"type": "content_block_delta"} | at | {"delta": delta}
            case PartEnd():
                yield "content_block_stop", {"type": "content_block_stop"} | at


_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def _kind_of(part: Part) -> str:
    if isinstance(part, Thinking):
        return "thinking"
    return "call" if isinstance(part, ToolCall) else "text"


def _message_start(event: Begin) -> Iterator[tuple[str, Json]]:
    message = {
        "id": event.id,
        "type": "message",
        "role": "assistant",
        "model": event.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": write_usage(event.usage),
    }
    yield "message_start", {"type": "message_start", "message": message}
