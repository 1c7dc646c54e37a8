"""OpenAI's chat completions, both ways: requests, answers, streams; also what is compatible with them.

Leaves out audio answers and tools that OpenAI runs itself: they are lost by name.
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
from llm_proxy.gateway.translate.fields import Fields, parts_of
from llm_proxy.gateway.translate.losses import BadRequest, Losses

ORIGIN: Final = "openai"
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
    "user": Option.USER,
    "safety_identifier": Option.USER,
    "service_tier": Option.TIER,
    "verbosity": Option.VERBOSITY,
    "metadata": Option.METADATA,
    "prompt_cache_key": Option.CACHE_KEY,
    "store": Option.STORE,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()} | {Option.STOP: "stop"}
_STOPS = {
    "stop": Stop.END,
    "length": Stop.LENGTH,
    "tool_calls": Stop.TOOL,
    "function_call": Stop.TOOL,
    "content_filter": Stop.FILTERED,
}
_STOP_NAMES = {
    Stop.END: "stop",
    Stop.SEQUENCE: "stop",
    Stop.LENGTH: "length",
    Stop.TOOL: "tool_calls",
    Stop.REFUSED: "content_filter",
    Stop.FILTERED: "content_filter",
    Stop.PAUSED: "stop",
}
_SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^,]*)?;base64,(.*)", re.DOTALL)
# Models that think take the limit under its newer name only, and those that are compatible often under the old one only.
_NEWER = re.compile(r"^(?:gpt-[5-9]|o\d)")
_LEVELS = ((2048, "low"), (12_000, "medium"))  # tokens of a budget, up to which
_EFFORTS = {"max": "xhigh"}


# -- requests: read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a chat completion asks. Raises BadRequest."""
    fields = Fields(body)
    stream_options = fields.object("stream_options")
    options: dict[str, Given] = {}
    for theirs, ours in _OPTIONS.items():
        if fields.has(theirs):
            options[ours] = Given(fields.any(theirs), theirs)
    if fields.has("stop"):
        stop = fields.any("stop")
        options[Option.STOP] = Given([stop] if isinstance(stop, str) else stop, "stop")
    ask = Ask(
        model=fields.text("model"),
        turns=_turns(fields, losses),
        tools=tuple(_tools(fields, losses)),
        choice=_choice(fields),
        shape=_shape(fields.object("response_format"), losses),
        effort=_effort(fields),
        options=options,
        stream=bool(fields.flag("stream")),
        usage=bool(stream_options and stream_options.flag("include_usage")),
    )
    if stream_options:
        stream_options.leave("include_obfuscation")
        stream_options.finish(losses)
    if fields.any("modalities", ["text"]) != ["text"]:
        losses.lose("modalities", "answers that are not text")
    for hint in ("prediction", "prompt_cache_retention", "prompt_cache_options", "moderation"):
        if fields.any(hint) is not None:
            losses.loosen(hint)
    fields.finish(losses)
    return ask


def _turns(fields: Fields, losses: Losses) -> tuple[Turn, ...]:
    names: dict[str, str] = {}  # of tools, by their calls' ids
    return tuple(_turn(one, names, losses) for one in fields.objects("messages"))


def _turn(fields: Fields, names: dict[str, str], losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in _READERS:
        raise BadRequest(fields.path("role"), f"must be one of {', '.join(_READERS)}")
    turn = _READERS[role](fields, names, losses)
    fields.finish(losses)
    return turn


def _said(fields: Fields, losses: Losses) -> list[Part]:
    parts = parts_of(fields, "content", lambda one: _part(one, losses), lambda text, at: Text(text, at=at))
    return [part for part in parts if part is not None]


def _of(role: Role) -> Any:
    def read(fields: Fields, names: dict[str, str], losses: Losses) -> Turn:
        return Turn(role, tuple(_said(fields, losses)), fields.text("name", ""), fields.at)

    return read


def _assistant(fields: Fields, names: dict[str, str], losses: Losses) -> Turn:
    parts = _said(fields, losses)
    for thought in ("reasoning_content", "reasoning"):  # of those that are compatible
        if (text := fields.any(thought)) and isinstance(text, str):
            parts.insert(0, Thinking(text, at=fields.path(thought)))
    if refusal := fields.text("refusal", ""):
        parts.append(Refusal(refusal, fields.path("refusal")))
    for one in fields.objects("tool_calls"):
        call = _call(one)
        names[call.id] = call.name
        one.leave("index", "extra_content")
        one.finish(losses)
        parts.append(call)
    if old := fields.object("function_call"):
        name = old.text("name")
        parts.append(ToolCall(name, name, old.text("arguments"), at=old.at))
        names[name] = name
    fields.leave("annotations")
    return Turn(Role.ASSISTANT, tuple(parts), fields.text("name", ""), fields.at)


def _call(fields: Fields) -> ToolCall:
    id = fields.text("id")
    if fields.any("type", "function") == "custom":
        custom = fields.object("custom") or Fields({})
        return ToolCall(id, custom.text("name"), custom.text("input"), free=True, at=fields.at)
    function = fields.object("function")
    if function is None:
        raise BadRequest(fields.path("function"), "is required")
    return ToolCall(id, function.text("name"), function.text("arguments"), at=fields.at)


def _tool_turn(fields: Fields, names: dict[str, str], losses: Losses) -> Turn:
    id = fields.text("tool_call_id") if fields.has("tool_call_id") else fields.text("name")
    said = tuple(part for part in _said(fields, losses) if isinstance(part, Text | Media))
    fields.leave("name")
    return Turn(Role.USER, (ToolResult(id, said, names.get(id, ""), at=fields.at),), at=fields.at)


_READERS = {
    "system": _of(Role.SYSTEM),
    "developer": _of(Role.SYSTEM),
    "user": _of(Role.USER),
    "assistant": _assistant,
    "tool": _tool_turn,
    "function": _tool_turn,
}


def _part(fields: Fields, losses: Losses) -> Part | None:
    part: Part | None = None
    kind = fields.text("type")
    match kind:
        case "text":
            part = Text(fields.text("text"), at=fields.at)
        case "refusal":
            part = Refusal(fields.text("refusal"), fields.at)
        case "image_url":
            image = fields.object("image_url") or Fields({}, fields.path("image_url"))
            part = Media("image", **_placed(image.text("url")), detail=image.text("detail", ""), at=fields.at)
        case "input_audio":
            sound = fields.object("input_audio") or Fields({}, fields.path("input_audio"))
            form = sound.text("format")
            part = Media("audio", _SOUNDS.get(form, f"audio/{form}"), sound.text("data"), at=fields.at)
        case "file":
            file = fields.object("file") or Fields({}, fields.path("file"))
            placed = _placed(file.text("file_data", ""))
            part = Media(
                "document", **placed, file_id=file.text("file_id", ""), name=file.text("filename", ""), at=fields.at
            )
        case _:
            losses.lose(fields.at, f"a part of type {kind}")
            return None
    if fields.any("prompt_cache_breakpoint") is not None:
        losses.loosen(fields.path("prompt_cache_breakpoint"))
    fields.finish(losses)
    return part


def _placed(url: str) -> dict[str, str]:
    if found := _DATA_URL.fullmatch(url):
        return {"media_type": found[1], "data": found[2]}
    return {"url": url} if url else {}


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    for one in fields.objects("tools"):
        match one.any("type", "function"):
            case "function":
                yield _function(one.object("function") or Fields({}, one.path("function")), losses)
            case "custom":
                yield _custom(one.object("custom") or Fields({}, one.path("custom")), losses)
            case other:
                losses.lose(one.at, f"a tool of type {other}")
                continue
        one.finish(losses)
    for one in fields.objects("functions"):
        yield _function(one, losses)


def _function(fields: Fields, losses: Losses) -> Tool:
    schema = fields.any("parameters", {"type": "object", "properties": {}})
    tool = Tool(fields.text("name"), fields.text("description", ""), schema, fields.flag("strict"), at=fields.at)
    fields.finish(losses)
    return tool


def _custom(fields: Fields, losses: Losses) -> Tool:
    form = fields.object("format")
    grammar = form.any("grammar") if form and form.any("type") == "grammar" else None
    tool = Tool(fields.text("name"), fields.text("description", ""), free=True, grammar=grammar, at=fields.at)
    fields.finish(losses)
    return tool


def _choice(fields: Fields) -> Choice | None:
    name = "tool_choice" if fields.has("tool_choice") else "function_call"
    told = fields.any(name)
    at = fields.path(name)
    match told:
        case None:
            return None
        case "auto" | "none":
            return Choice(told, at=at)
        case "required":
            return Choice("any", at=at)
        case {"function": {"name": str(chosen)}} | {"custom": {"name": str(chosen)}} | {"name": str(chosen)}:
            return Choice("one", chosen, at)
    raise BadRequest(at, "must be none, auto, required or a named function")


def _shape(fields: Fields | None, losses: Losses) -> Shape | None:
    if fields is None:
        return None
    match fields.text("type"):
        case "text":
            return None
        case "json_object":
            return Shape(at=fields.at)
        case "json_schema":
            told = fields.object("json_schema") or Fields({}, fields.path("json_schema"))
            schema = told.take("schema", dict, {})
            shape = Shape(schema, told.text("name"), told.text("description", ""), told.flag("strict"), fields.at)
            told.finish(losses)
            return shape
    raise BadRequest(fields.path("type"), "must be text, json_object or json_schema")


def _effort(fields: Fields) -> Effort | None:
    if not fields.has("reasoning_effort"):
        return None
    level = fields.text("reasoning_effort")
    return Effort(level, off=level == "none", at="reasoning_effort")


# -- requests: write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of a chat completion. Raises CannotSay."""
    body: dict[str, Json] = {"model": ask.model}
    body["messages"] = [message for turn in ask.turns for message in _messages(turn, losses)]
    for name, given in ask.options.items():
        match name:
            case Option.MAX_TOKENS:
                body["max_completion_tokens" if _NEWER.match(ask.model) else "max_tokens"] = given.value
            case Option.USER:
                body["user"] = given.value
            case Option.TOP_K if _NEWER.match(ask.model) or ask.model.startswith("gpt-"):
                losses.lose(given.at)
            case _ if name in _NAMES:
                body[_NAMES[name]] = given.value
            case _:
                losses.lose(given.at)
    if ask.tools:
        body["tools"] = [_tool(tool, losses) for tool in ask.tools]
    if ask.choice is not None:
        body["tool_choice"] = _written_choice(ask.choice, ask.tools)
    if ask.shape is not None:
        body["response_format"] = _written_shape(ask.shape)
    if ask.effort is not None:
        _write_effort(body, ask.effort, losses)
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
    texts: list[Part] = [part for part in result.parts if isinstance(part, Text)]
    pictures = [part for part in result.parts if isinstance(part, Media)]
    if pictures:
        texts.append(Text(f"[{len(pictures)} attachment(s): see the next message of the user]"))
        shown += [Text(f"[attached to the result of {result.id}]"), *pictures]
    if result.failed:
        losses.loosen(f"{result.at}.is_error")
    _loosen_cache(result, losses)
    return {"role": "tool", "tool_call_id": result.id, "content": _content(texts, losses)}


def _assistant_message(turn: Turn, losses: Losses) -> Json:
    calls: list[Json] = []
    said: list[Part] = []
    refusal = ""
    for part in turn.parts:
        match part:
            case ToolCall():
                calls.append(_written_call(part))
                _loosen_cache(part, losses)
            case Thinking():
                losses.loosen(part.at)
            case Refusal():
                refusal += part.text
            case _:
                said.append(part)
    message: dict[str, Json] = {"role": "assistant", "content": _content(said, losses) if said else None}
    if turn.name:
        message["name"] = turn.name
    if refusal:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = calls
    return message


def _written_call(call: ToolCall) -> dict[str, Json]:
    if call.free:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": call.arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _content(parts: Iterable[Part], losses: Losses) -> Json:
    """A single text plainly, as every server that is compatible takes it."""
    written = [one for part in parts if (one := _written_part(part, losses)) is not None]
    if len(written) == 1 and written[0]["type"] == "text":
        return written[0]["text"]
    return written or ""


def _written_part(part: Part, losses: Losses) -> dict[str, Json] | None:
    _loosen_cache(part, losses)
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Refusal():
            return {"type": "refusal", "refusal": part.text}
        case Media(kind="image") if part.data or part.url:
            url = part.url or f"data:{part.media_type};base64,{part.data}"
            return {"type": "image_url", "image_url": {"url": url} | ({"detail": part.detail} if part.detail else {})}
        case Media(kind="audio") if part.data:
            form = next((form for form, kind in _SOUNDS.items() if kind == part.media_type), part.media_type[6:])
            return {"type": "input_audio", "input_audio": {"data": part.data, "format": form}}
        case Media(kind="document") if part.text:
            return {"type": "text", "text": f"{part.name}\n\n{part.text}" if part.name else part.text}
        case Media(kind="document") if part.data:
            file = {"filename": part.name or "document.pdf", "file_data": f"data:{part.media_type};base64,{part.data}"}
            return {"type": "file", "file": file}
    losses.lose(part.at)
    return None


def _loosen_cache(part: Part, losses: Losses) -> None:
    if getattr(part, "cache", ""):
        losses.loosen(f"{part.at}.cache_control")


def _tool(tool: Tool, losses: Losses) -> Json:
    if tool.cache:
        losses.loosen(f"{tool.at}.cache_control")
    told = {"name": tool.name} | ({"description": tool.description} if tool.description else {})
    if tool.free:
        form = {"format": {"type": "grammar", "grammar": tool.grammar}} if tool.grammar is not None else {}
        return {"type": "custom", "custom": told | form}
    strict = {"strict": tool.strict} if tool.strict is not None else {}
    return {"type": "function", "function": told | {"parameters": tool.schema} | strict}


def _written_choice(choice: Choice, tools: Iterable[Tool]) -> Json:
    if choice.mode == "one":
        kind = "custom" if any(tool.free and tool.name == choice.name for tool in tools) else "function"
        return {"type": kind, kind: {"name": choice.name}}
    return {"any": "required"}.get(choice.mode, choice.mode)


def _written_shape(shape: Shape) -> Json:
    if shape.schema is None:
        return {"type": "json_object"}
    told: dict[str, Json] = {"name": shape.name or "answer", "schema": shape.schema}
    if shape.description:
        told["description"] = shape.description
    if shape.strict is not None:
        told["strict"] = shape.strict
    return {"type": "json_schema", "json_schema": told}


def _write_effort(body: dict[str, Json], effort: Effort, losses: Losses) -> None:
    if effort.off:
        if effort.level:
            body["reasoning_effort"] = "none"
        return
    level = effort.level
    if not level and effort.budget is not None:
        level = next((name for most, name in _LEVELS if effort.budget <= most), "high")
    if level:
        body["reasoning_effort"] = _EFFORTS.get(level, level)


# -- answers


def read_usage(told: Json) -> Usage:
    """Token counts: what was cached lies within the prompt there."""
    fields = told if isinstance(told, dict) else {}

    def count(name: str, of: Json = fields) -> int:
        value = of.get(name) if isinstance(of, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    within, out = fields.get("prompt_tokens_details"), fields.get("completion_tokens_details")
    cached, written = count("cached_tokens", within), count("cache_write_tokens", within)
    return Usage(
        input=max(0, count("prompt_tokens") - cached - written),
        cache_read=cached,
        cache_write_5m=written,
        output=count("completion_tokens"),
        reasoning=count("reasoning_tokens", out),
        input_audio=count("audio_tokens", within),
        output_audio=count("audio_tokens", out),
    )


def write_usage(usage: Usage) -> Json:
    """As an answer tells it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "audio_tokens": usage.input_audio},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning, "audio_tokens": usage.output_audio},
    }


def read_reply(body: Json) -> Reply:
    """What the first choice of a whole answer says. Raises BadRequest."""
    fields = Fields(body)
    losses = Losses("", refuse=False)
    choice = next(fields.objects("choices"), None)
    if choice is None:
        raise BadRequest("choices", "is required")
    message = choice.object("message") or Fields({}, choice.path("message"))
    turn = _assistant(message, {}, losses)
    return Reply(
        id=fields.text("id", ""),
        model=fields.text("model", ""),
        parts=turn.parts,
        stop=_stop(choice.any("finish_reason"), turn.parts),
        usage=read_usage(fields.any("usage")),
        created=fields.take("created", int, 0),
        logprobs=choice.any("logprobs"),
        tier=fields.text("service_tier", ""),
        fingerprint=fields.text("system_fingerprint", ""),
    )


def _stop(told: Json, parts: Iterable[Part]) -> Stop:
    stop = _STOPS.get(told, Stop.END) if isinstance(told, str) else Stop.END
    if stop is Stop.END and any(isinstance(part, Refusal) for part in parts):
        return Stop.REFUSED
    return stop


def write_reply(reply: Reply) -> Json:
    """The body of a chat completion."""
    losses = Losses("", refuse=False)
    message = _assistant_message(Turn(Role.ASSISTANT, _joined(reply.parts)), losses)
    message.setdefault("refusal", None)
    if thought := "".join(part.text for part in reply.parts if isinstance(part, Thinking)):
        message["reasoning_content"] = thought
    finish = "stop" if message["refusal"] else _STOP_NAMES[reply.stop]
    choice = {"index": 0, "message": message, "logprobs": reply.logprobs, "finish_reason": finish}
    body: dict[str, Json] = {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [choice],
        "usage": write_usage(reply.usage),
    }
    if reply.tier:
        body["service_tier"] = reply.tier
    return body | ({"system_fingerprint": reply.fingerprint} if reply.fingerprint else {})


def _joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """An answer's content is one text there."""
    text = "".join(part.text for part in parts if isinstance(part, Text))
    rest = tuple(part for part in parts if not isinstance(part, Text))
    return ((Text(text),) if text else ()) + rest


# -- streams


class StreamReader:
    """Chunks of a chat completion, as they come. Its parts have no ends of their own: the next one's begin is it."""

    def __init__(self) -> None:
        self._begun = False
        self._open: dict[str, int] = {}  # what is open: "text", "thinking", "refusal", "call N" -> its index
        self._count = 0
        self._stop: Stop | None = None
        self._usage = Usage()
        self._refused = False

    def read(self, chunk: Json) -> Iterator[Event]:
        """What one chunk says."""
        fields = chunk if isinstance(chunk, dict) else {}
        if error := fields.get("error"):
            told = error if isinstance(error, dict) else {"message": str(error)}
            yield Failure(str(told.get("type") or "api_error"), str(told.get("message", "")))
            return
        if not self._begun and fields.get("choices"):
            self._begun = True
            yield Begin(
                str(fields.get("id", "")),
                str(fields.get("model", "")),
                created=fields.get("created") or 0,
                tier=str(fields.get("service_tier") or ""),
                fingerprint=str(fields.get("system_fingerprint") or ""),
            )
        if fields.get("usage"):
            self._usage = read_usage(fields["usage"])
        for choice in fields.get("choices") or ():
            if choice.get("index", 0) == 0:
                yield from self._choice(choice)

    def finish(self) -> Iterator[Event]:
        """The stream is over (`[DONE]`, or its end)."""
        for index in self._open.values():
            yield PartEnd(index)
        self._open = {}
        if self._stop is not None:
            yield End(self._stop, usage=self._usage)

    def _choice(self, choice: dict[str, Json]) -> Iterator[Event]:
        delta = choice.get("delta") or {}
        logprobs = choice.get("logprobs")
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield from self._piece("thinking", Thinking(""), str(thought))
        if (text := delta.get("content")) or logprobs:
            yield from self._piece("text", Text(""), text or "", logprobs)
        if refusal := delta.get("refusal"):
            self._refused = True
            yield from self._piece("refusal", Refusal(""), refusal)
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or call.get("custom") or {}
            begun = ToolCall(str(call.get("id") or ""), str(function.get("name") or ""), "", free="custom" in call)
            text = function.get("arguments") or function.get("input") or ""
            yield from self._piece(f"call {call.get('index', 0)}", begun, text)
        if (told := choice.get("finish_reason")) is not None:
            stop = _STOPS.get(told, Stop.END)
            self._stop = Stop.REFUSED if self._refused and stop is Stop.END else stop

    def _piece(self, key: str, part: Part, text: str, logprobs: Json = None) -> Iterator[Event]:
        if key not in self._open:
            if not key.startswith("call"):  # calls may come interleaved, nothing else does
                yield from self._close()
            self._open[key] = self._count
            yield PartBegin(self._count, part)
            self._count += 1
        if text or logprobs:
            yield Piece(self._open[key], text, logprobs)

    def _close(self) -> Iterator[Event]:
        for key, index in list(self._open.items()):
            yield PartEnd(index)
            del self._open[key]


class StreamWriter:
    """Writes a chat completion's chunks. `usage`: whether the caller asked for counts at the end."""

    def __init__(self, *, usage: bool, created: int = 0) -> None:
        self._usage = usage
        self._created = created
        self._begin = Begin("", "")
        self._calls: dict[int, int] = {}
        self._parts: dict[int, Part] = {}

    def write(self, event: Event) -> Iterator[Json]:
        """Chunks; `[DONE]` follows the last one."""
        match event:
            case Begin():
                self._begin = event
                yield self._chunk({"role": "assistant", "content": "", "refusal": None})
            case PartBegin():
                yield from self._opened(event)
            case Piece():
                yield from self._piece(event)
            case End():
                yield self._chunk({}, finish=_STOP_NAMES[event.stop])
                if self._usage:
                    yield self._chunk(None) | {"choices": [], "usage": write_usage(event.usage)}
            case Failure():
                yield {"error": {"message": event.message, "type": event.kind, "param": None, "code": None}}
            case Signed() | PartEnd():
                pass

    def _opened(self, event: PartBegin) -> Iterator[Json]:
        self._parts[event.index] = event.part
        if isinstance(event.part, ToolCall):
            number = self._calls[event.index] = len(self._calls)
            yield self._chunk({"tool_calls": [{"index": number} | _written_call(event.part)]})

    def _piece(self, event: Piece) -> Iterator[Json]:
        match self._parts.get(event.index):
            case ToolCall(free=free):
                field = {"custom": {"input": event.text}} if free else {"function": {"arguments": event.text}}
                yield self._chunk({"tool_calls": [{"index": self._calls[event.index]} | field]})
            case Thinking():
                yield self._chunk({"reasoning_content": event.text})
            case Refusal():
                yield self._chunk({"refusal": event.text})
            case _:
                yield self._chunk({"content": event.text}, logprobs=event.logprobs)

    def _chunk(self, delta: Json, finish: str | None = None, logprobs: Json = None) -> dict[str, Json]:
        begin = self._begin
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk: dict[str, Json] = {
            "id": begin.id,
            "object": "chat.completion.chunk",
            "created": begin.created or self._created,
            "model": begin.model,
            "choices": [choice],
        }
        if begin.tier:
            chunk["service_tier"] = begin.tier
        return chunk | ({"usage": None} if self._usage else {})
