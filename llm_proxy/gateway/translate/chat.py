"""OpenAI's chat completions, requests both ways; also what is compatible with them.

Leaves out audio answers and tools that OpenAI runs itself: they are lost by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from llm_proxy.gateway.translate.conversation import (
    LEVELS,
    Ask,
    Choice,
    Effort,
    Given,
    Json,
    Media,
    Option,
    Part,
    Refusal,
    Role,
    Shape,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    joined,
)
from llm_proxy.gateway.translate.fields import Fields, parts_of
from llm_proxy.gateway.translate.losses import BadRequest, Losses
from llm_proxy.gateway.translate.signatures import ANTHROPIC, GEMINI, inward, outward

NAME: Final = "OpenAI chat completions"

# Their name here -> ours. Later ones win.
_OPTIONS = {
    "max_tokens": Option.MAX_TOKENS,
    "max_completion_tokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "top_p": Option.TOP_P,
    "top_k": Option.TOP_K,  # not OpenAI's own; many that are compatible have it
    "seed": Option.SEED,
    "n": Option.COUNT,
    "frequency_penalty": Option.FREQUENCY_PENALTY,
    "presence_penalty": Option.PRESENCE_PENALTY,
    "logprobs": Option.LOGPROBS,
    "top_logprobs": Option.TOP_LOGPROBS,
    "parallel_tool_calls": Option.PARALLEL_TOOLS,
    "safety_identifier": Option.USER,
    "user": Option.USER,
    "service_tier": Option.TIER,
    "verbosity": Option.VERBOSITY,
    "metadata": Option.METADATA,
    "prompt_cache_key": Option.CACHE_KEY,
    "store": Option.STORE,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()} | {Option.STOP: "stop"}
_HINTS = ("prediction", "prompt_cache_options", "prompt_cache_retention")
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
_SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_SOUND_NAMES = {kind: name for name, kind in _SOUNDS.items()}
_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^,]*)?;base64,(.*)", re.DOTALL)
# OpenAI's own models: those that think take the limit under its newer name only. Others often know the old one only.
_OWN = re.compile(r"^(?:gpt-|chatgpt-|o\d)")
_NEWER = re.compile(r"^(?:gpt-[5-9]|o\d)")
_LEVELS = ((2048, "low"), (12_000, "medium"))  # tokens of a budget, up to which


# -- read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a chat completion asks. Raises BadRequest, and CannotSay for what only OpenAI has."""
    fields = Fields(body)
    streaming = fields.object("stream_options") or Fields({}, "stream_options")
    tools = tuple(_tools(fields, losses))
    choice, allowed = _choice(fields)
    ask = Ask(
        model=fields.text("model"),
        turns=joined(_turn(one, losses) for one in fields.objects("messages")),
        tools=tuple(tool for tool in tools if allowed is None or tool.name in allowed),
        choice=choice,
        shape=_shape(fields.object("response_format"), losses),
        effort=_effort(fields.one_of("reasoning_effort", LEVELS)),
        options=_options(fields),
        stream=bool(fields.flag("stream")),
        usage=bool(streaming.flag("include_usage")),
    )
    streaming.leave("include_obfuscation")
    streaming.finish(losses)
    if fields.any("modalities", ["text"]) != ["text"]:
        losses.lose("modalities", "answers that are not text")
    if fields.any("web_search_options") is not None:  # an empty one asks for it too
        losses.lose("web_search_options")
    fields.loosen(losses, *_HINTS)
    fields.finish(losses)
    return ask


def _options(fields: Fields) -> dict[str, Given]:
    options = {ours: Given(fields.any(theirs), theirs) for theirs, ours in _OPTIONS.items() if fields.has(theirs)}
    if fields.has("stop"):
        stop = fields.any("stop")
        options[Option.STOP] = Given([stop] if isinstance(stop, str) else stop, "stop")
    return options


def _turn(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in _ROLES:
        raise BadRequest(fields.path("role"), f"must be one of {', '.join(_ROLES)}")
    speaker, read = _ROLES[role]
    turn = Turn(speaker, tuple(read(fields, losses)), fields.text("name", ""), fields.at)
    fields.finish(losses)
    return turn


def _said(fields: Fields, losses: Losses) -> list[Part]:
    parts = parts_of(fields, "content", lambda one: _part(one, losses), lambda text, at: Text(text, at=at))
    return [part for part in parts if part is not None]


def _assistant(fields: Fields, losses: Losses) -> list[Part]:
    parts = [*_thoughts(fields, losses), *_said(fields, losses)]
    if refusal := fields.text("refusal", ""):
        parts.append(Refusal(refusal, fields.path("refusal")))
    parts += [_call(one, losses) for one in fields.objects("tool_calls")]
    if old := fields.object("function_call"):
        parts.append(ToolCall("", old.text("name"), old.text("arguments"), at=old.at))
        old.finish(losses)
    fields.leave("annotations")
    return parts


def _thoughts(fields: Fields, losses: Losses) -> Iterator[Part]:
    """Where those who are compatible with OpenAI put them: signed ones in a list, else plain text."""
    plain = [(at, fields.text(at)) for at in ("reasoning_content", "reasoning") if fields.has(at)]
    signed = list(fields.objects("thinking_blocks"))
    for one in signed:
        if one.text("type") == "redacted_thinking":
            yield Thinking("", sealed=one.text("data"), origin=ANTHROPIC, at=one.at)
        else:
            yield inward(one.text("thinking"), one.text("signature", ""), ANTHROPIC, at=one.at)
        one.finish(losses)
    if plain and not signed:
        at, text = plain[0]
        yield Thinking(text, at=fields.path(at))


def _call(fields: Fields, losses: Losses) -> ToolCall:
    id = fields.text("id")
    fields.leave("index")
    kind = fields.text("type", "function")
    if kind not in ("function", "custom"):
        raise BadRequest(fields.path("type"), "must be function or custom")
    told = fields.needed(kind)
    call = ToolCall(id, told.text("name"), told.text("input" if kind == "custom" else "arguments"), at=fields.at)
    told.finish(losses)
    match fields.any("extra_content"):
        case {"google": {"thought_signature": str(signature)}}:
            call = replace(call, signature=signature, origin=GEMINI)
    fields.finish(losses)
    return replace(call, free=kind == "custom")


def _result(fields: Fields, losses: Losses) -> list[Part]:
    """A tool's message, or of old a function's, which has the function's name only."""
    id = fields.text("tool_call_id", "")
    name = "" if id else fields.text("name")
    fields.leave("name")
    parts = _said(fields, losses)
    for part in parts:
        if not isinstance(part, Text | Media):
            raise BadRequest(part.at, "has no place in a tool's result")
    return [ToolResult(id, tuple(part for part in parts if isinstance(part, Text | Media)), name, at=fields.at)]


_ROLES: dict[str, tuple[Role, Callable[[Fields, Losses], list[Part]]]] = {
    "system": (Role.SYSTEM, _said),
    "developer": (Role.SYSTEM, _said),
    "user": (Role.USER, _said),
    "assistant": (Role.ASSISTANT, _assistant),
    "tool": (Role.USER, _result),
    "function": (Role.USER, _result),
}


def _part(fields: Fields, losses: Losses) -> Part | None:
    kind = fields.text("type")
    read = _PARTS.get(kind)
    if read is None:
        losses.lose(fields.at, f"a part of type {kind}")
        return None
    part = read(fields, losses)
    if fields.object("prompt_cache_breakpoint") and not isinstance(part, Refusal):
        part = replace(part, cache="5m")
    fields.finish(losses)
    return part


def _text_part(fields: Fields, losses: Losses) -> Text:
    return Text(fields.text("text"), at=fields.at)


def _refusal_part(fields: Fields, losses: Losses) -> Refusal:
    return Refusal(fields.text("refusal"), fields.at)


def _image_part(fields: Fields, losses: Losses) -> Media:
    image = fields.needed("image_url")
    part = Media("image", **placed(image.text("url")), detail=image.text("detail", ""), at=fields.at)
    image.finish(losses)
    return part


def _sound_part(fields: Fields, losses: Losses) -> Media:
    sound = fields.needed("input_audio")
    form = sound.text("format")
    part = Media("audio", _SOUNDS.get(form, f"audio/{form}"), sound.text("data"), at=fields.at)
    sound.finish(losses)
    return part


def _file_part(fields: Fields, losses: Losses) -> Media:
    file = fields.needed("file")
    part = Media(
        "document",
        **filed(file.text("file_data", "")),
        file_id=file.text("file_id", ""),
        name=file.text("filename", ""),
        at=fields.at,
    )
    file.finish(losses)
    return part


_PARTS: dict[str, Callable[[Fields, Losses], Text | Media | Refusal]] = {
    "text": _text_part,
    "refusal": _refusal_part,
    "image_url": _image_part,
    "input_audio": _sound_part,
    "file": _file_part,
}


def placed(url: str) -> dict[str, str]:
    """What `url` says of a medium: its bytes, or where it lies."""
    if found := _DATA_URL.fullmatch(url):
        return {"media_type": found[1], "data": found[2]}
    return {"url": url} if url else {}


def filed(data: str) -> dict[str, str]:
    """A file's bytes; without a media type they are those of a PDF."""
    if not data or data.startswith("data:"):
        return placed(data)
    return {"media_type": "application/pdf", "data": data}


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    for one in fields.objects("tools"):
        kind = one.text("type", "function")
        if kind not in ("function", "custom"):
            losses.lose(one.at, f"a tool of type {kind}")
            continue
        told = one.needed(kind)
        yield read_function(told) if kind == "function" else _custom(told, losses)
        told.finish(losses)
        one.finish(losses)


def read_function(fields: Fields) -> Tool:
    """A function as both of OpenAI's APIs describe it."""
    schema = fields.take("parameters", dict, {"type": "object", "properties": {}})
    return Tool(fields.text("name"), fields.text("description", ""), schema, fields.flag("strict"), at=fields.at)


def _custom(fields: Fields, losses: Losses) -> Tool:
    form = fields.object("format") or Fields({"type": "text"}, fields.path("format"))
    grammar = form.take("grammar", dict) if form.text("type") == "grammar" else None
    form.finish(losses)
    return Tool(fields.text("name"), fields.text("description", ""), free=True, grammar=grammar, at=fields.at)


def _choice(fields: Fields) -> tuple[Choice | None, frozenset[str] | None]:
    """The choice, and the names of the tools among which, where they are told."""
    at = fields.path("tool_choice")
    match fields.any("tool_choice"):
        case None:
            return None, None
        case "auto" | "none" | "required" as mode:
            return Choice(read_mode(mode), at=at), None
        case {"function": {"name": str(chosen)}} | {"custom": {"name": str(chosen)}}:
            return Choice("one", chosen, at), None
        case {"allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]}}:
            return Choice(read_mode(mode), at=at), frozenset(name for one in tools if (name := _name_in(one)))
    raise BadRequest(at, "must be none, auto, required, a named function or allowed tools")


def read_mode(mode: str) -> str:
    return {"required": "any"}.get(mode, mode)


def _name_in(tool: Json) -> str:
    match tool:
        case {"function": {"name": str(name)}} | {"custom": {"name": str(name)}} | {"name": str(name)}:
            return name
    return ""


def _shape(fields: Fields | None, losses: Losses) -> Shape | None:
    if fields is None:
        return None
    shape: Shape | None = None
    match fields.text("type"):
        case "text":
            pass
        case "json_object":
            shape = Shape(at=fields.at)
        case "json_schema":
            told = fields.needed("json_schema")
            shape = read_schema(told, fields.at)
            told.finish(losses)
        case _:
            raise BadRequest(fields.path("type"), "must be text, json_object or json_schema")
    fields.finish(losses)
    return shape


def read_schema(fields: Fields, at: str) -> Shape:
    """A schema as both of OpenAI's APIs describe it."""
    schema = fields.take("schema", dict, {})
    return Shape(schema, fields.text("name"), fields.text("description", ""), fields.flag("strict"), at)


def _effort(level: str) -> Effort | None:
    return Effort(level, off=level == "none", at="reasoning_effort") if level else None


# -- write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of a chat completion. Raises CannotSay."""
    body: dict[str, Json] = {"model": ask.model}
    body["messages"] = [message for turn in ask.turns for message in _messages(turn, losses)]
    for name, given in ask.options.items():
        match name:
            case Option.MAX_TOKENS:
                body["max_completion_tokens" if _NEWER.match(ask.model) else "max_tokens"] = given.value
            case Option.TOP_K if _OWN.match(ask.model):
                losses.lose(given.at)
            case Option.PARALLEL_TOOLS if not ask.tools:
                pass  # refused without tools
            case Option.TIER if given.value not in _TIERS:
                losses.loosen(given.at)
            case _:
                body[_NAMES[name]] = given.value
    if ask.tools:
        body["tools"] = [_tool(tool, losses) for tool in ask.tools]
        if ask.choice is not None:
            body["tool_choice"] = _written_choice(ask.choice, ask.tools)
    if ask.shape is not None:
        body["response_format"] = _written_shape(ask.shape)
    if ask.effort is not None and (level := level_of(ask.effort)):
        body["reasoning_effort"] = level
    if ask.stream:
        body |= {"stream": True} | ({"stream_options": {"include_usage": True}} if ask.usage else {})
    return body


def _messages(turn: Turn, losses: Losses) -> Iterator[Json]:
    if turn.role is Role.ASSISTANT:
        yield _assistant_message(turn, losses)
        return
    shown: list[Part] = []
    for part in turn.parts:
        if isinstance(part, ToolResult):
            yield _tool_message(part, shown, losses)
    rest = shown + [part for part in turn.parts if not isinstance(part, ToolResult)]
    if rest:
        message: dict[str, Json] = {"role": str(turn.role), "content": _content(rest, losses)}
        yield message | ({"name": turn.name} if turn.name else {})


def _tool_message(result: ToolResult, shown: list[Part], losses: Losses) -> Json:
    """Pictures have no place in a tool's message: the user shows them, right behind."""
    loosen_cache(result, losses)
    texts: list[Part] = [part for part in result.parts if isinstance(part, Text)]
    pictures = [part for part in result.parts if isinstance(part, Media)]
    if pictures:
        texts.append(Text(f"[{len(pictures)} attachment(s): see the next message of the user]"))
        shown += [Text(f"[attached to the result of {result.id}]"), *pictures]
    return {"role": "tool", "tool_call_id": result.id, "content": _content(failing(result, texts, losses), losses)}


def failing(result: ToolResult, said: list[Part], losses: Losses) -> list[Part]:
    """OpenAI's results cannot fail: what they say has to tell it."""
    if result.failed:
        losses.loosen(f"{result.at}.is_error")
    return said or ([Text("[the tool failed]")] if result.failed else [])


def _assistant_message(turn: Turn, losses: Losses) -> Json:
    """Thoughts are left out: OpenAI's own models take none here, others want to think anew."""
    for part in turn.parts:
        if isinstance(part, Thinking):
            losses.loosen(part.at)
        elif isinstance(part, ToolCall):
            loosen_cache(part, losses)
    said = [part for part in turn.parts if isinstance(part, Text | Media)]
    message: dict[str, Json] = {"role": "assistant", "content": _content(said, losses) if said else None}
    if turn.name:
        message["name"] = turn.name
    if refusal := "".join(part.text for part in turn.parts if isinstance(part, Refusal)):
        message["refusal"] = refusal
    if calls := [write_call(part) for part in turn.parts if isinstance(part, ToolCall)]:
        message["tool_calls"] = calls
    return message


def write_call(call: ToolCall) -> dict[str, Json]:
    """A call as messages and the beginnings of streams have it."""
    kind, field = ("custom", "input") if call.free else ("function", "arguments")
    written: dict[str, Json] = {"id": call.id, "type": kind, kind: {"name": call.name, field: call.arguments}}
    if call.signature and call.origin == GEMINI:  # as Google's own API that is compatible has it
        written["extra_content"] = {"google": {"thought_signature": call.signature}}
    return written


def write_thought(part: Thinking) -> Json:
    """A signed thought, where those who know it look for it."""
    if part.sealed and part.origin == ANTHROPIC:
        return {"type": "redacted_thinking", "data": part.sealed}
    return {"type": "thinking", "thinking": part.text, "signature": outward(part, ANTHROPIC)}


def _content(parts: Iterable[Part], losses: Losses) -> Json:
    """A single text plainly, as every server that is compatible takes it."""
    written = [one for part in parts if (one := _written_part(part, losses)) is not None]
    if len(written) == 1 and written[0]["type"] == "text":
        return written[0]["text"]
    return written or ""


def _written_part(part: Part, losses: Losses) -> dict[str, Json] | None:
    loosen_cache(part, losses)
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Media(kind="image") if part.data or part.url:
            image = {"url": url_of(part)} | ({"detail": part.detail} if part.detail else {})
            return {"type": "image_url", "image_url": image}
        case Media(kind="audio") if part.data:
            form = _SOUND_NAMES.get(part.media_type, part.media_type.removeprefix("audio/"))
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": form}}
        case Media(kind="document") if part.text:
            return {"type": "text", "text": titled(part)}
        case Media(kind="document") if part.data:
            return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": url_of(part)}}
    losses.lose(part.at, why_lost(part))
    return None


def url_of(part: Media) -> str:
    return part.url or f"data:{part.media_type};base64,{part.data}"


def titled(part: Media) -> str:
    """A document that is text, among texts."""
    return f"{part.name}\n\n{part.text}" if part.name else part.text


def why_lost(part: Part) -> str:
    if not isinstance(part, Media):
        return ""
    return "a file in another provider's store" if part.file_id else f"this kind of {part.kind}"


def loosen_cache(part: Part | Tool, losses: Losses) -> None:
    if getattr(part, "cache", ""):
        losses.loosen(f"{part.at}.cache_control")


def _tool(tool: Tool, losses: Losses) -> Json:
    loosen_cache(tool, losses)
    if not tool.free:
        return {"type": "function", "function": write_function(tool)}
    form = {"format": {"type": "grammar", "grammar": tool.grammar}} if tool.grammar is not None else {}
    return {"type": "custom", "custom": _described(tool) | form}


def write_function(tool: Tool) -> dict[str, Json]:
    """A function as both of OpenAI's APIs describe it."""
    strict = {"strict": tool.strict} if tool.strict is not None else {}
    return _described(tool) | {"parameters": tool.schema} | strict


def _described(tool: Tool) -> dict[str, Json]:
    return {"name": tool.name} | ({"description": tool.description} if tool.description else {})


def _written_choice(choice: Choice, tools: Iterable[Tool]) -> Json:
    if choice.mode != "one":
        return write_mode(choice.mode)
    kind = kind_chosen(choice, tools)
    return {"type": kind, kind: {"name": choice.name}}


def write_mode(mode: str) -> str:
    return {"any": "required"}.get(mode, mode)


def kind_chosen(choice: Choice, tools: Iterable[Tool]) -> str:
    return "custom" if any(tool.free and tool.name == choice.name for tool in tools) else "function"


def _written_shape(shape: Shape) -> Json:
    if shape.schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": write_schema(shape)}


def write_schema(shape: Shape) -> dict[str, Json]:
    """A schema as both of OpenAI's APIs describe it."""
    told: dict[str, Json] = {"name": shape.name or "answer", "schema": shape.schema}
    if shape.description:
        told["description"] = shape.description
    return told | ({"strict": shape.strict} if shape.strict is not None else {})


def level_of(effort: Effort) -> str:
    """How much to think as OpenAI says it; "" where the model may decide."""
    if effort.off:
        return "none" if effort.level else ""
    if not effort.level and effort.budget is not None:
        return next((name for most, name in _LEVELS if effort.budget <= most), "high")
    return effort.level
