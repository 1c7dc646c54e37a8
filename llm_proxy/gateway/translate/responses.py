"""OpenAI's Responses, requests both ways.

Leaves out what OpenAI keeps for the caller (earlier responses, conversations, prompts, background runs) and tools
that it runs itself: they are refused by name, because no other API has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from llm_proxy.gateway.translate.chat import (
    failing,
    filed,
    kind_chosen,
    level_of,
    loosen_cache,
    placed,
    read_function,
    read_mode,
    read_schema,
    titled,
    url_of,
    why_lost,
    write_function,
    write_mode,
    write_schema,
)
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
from llm_proxy.gateway.translate.options import pass_over
from llm_proxy.gateway.translate.signatures import OPENAI, delivered, inward

NAME: Final = "OpenAI Responses"

# Their name here -> ours. Later ones win.
_OPTIONS = {
    "max_output_tokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "top_p": Option.TOP_P,
    "top_logprobs": Option.TOP_LOGPROBS,
    "parallel_tool_calls": Option.PARALLEL_TOOLS,
    "user": Option.USER,
    "safety_identifier": Option.USER,
    "service_tier": Option.TIER,
    "metadata": Option.METADATA,
    "prompt_cache_key": Option.CACHE_KEY,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()}
_HINTS = ("client_metadata", "prompt_cache_options", "prompt_cache_retention")
_LOGPROBS = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast"})
_THINKS = re.compile(r"^(?:gpt-[5-9]|o\d)")  # models that give their reasoning, and can be asked for it


# -- read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a request for a response asks. Raises BadRequest, and CannotSay for what only OpenAI has."""
    fields = Fields(body)
    text = fields.object("text") or Fields({}, "text")
    tools = [tool for one in fields.objects("tools") if (tool := _tool(one, losses)) is not None]
    opening = [Turn(Role.SYSTEM, (Text(said, at="instructions"),))] if (said := fields.text("instructions", "")) else []
    turns = _turns(fields, tools, losses)
    choice, allowed = _choice(fields, losses)
    ask = Ask(
        model=fields.text("model"),
        turns=joined([*opening, *turns]),
        tools=tuple(tool for tool in tools if allowed is None or tool.name in allowed),
        choice=choice,
        shape=_shape(text.object("format"), losses),
        effort=_effort(fields.object("reasoning"), losses),
        options=_options(fields, text, losses),
        stream=bool(fields.flag("stream")),
        usage=True,
    )
    text.finish(losses)
    _refuse(fields, losses)
    fields.finish(losses)
    return ask


def _refuse(fields: Fields, losses: Losses) -> None:
    """What is asked for only by some values of a field."""
    for name, usual in (("store", False), ("background", False), ("truncation", "disabled")):
        if fields.any(name, usual) != usual:
            losses.lose(name)
    fields.leave("stream_options", "generate")
    fields.loosen(losses, *_HINTS)


def _options(fields: Fields, text: Fields, losses: Losses) -> dict[str, Given]:
    options = {ours: Given(fields.any(theirs), theirs) for theirs, ours in _OPTIONS.items() if fields.has(theirs)}
    if verbosity := text.text("verbosity", ""):
        options[Option.VERBOSITY] = Given(verbosity, "text.verbosity")
    for number, one in enumerate(fields.take("include", list, [])):
        if one == _LOGPROBS:
            options[Option.LOGPROBS] = Given(True, f"include[{number}]")
        elif one != _SEALED:
            losses.lose(f"include[{number}]")
    return options


def _turns(fields: Fields, tools: list[Tool], losses: Losses) -> list[Turn]:
    """Items in a row by one speaker are one turn. Tools may stand among them."""
    given = fields.any("input", [])
    if isinstance(given, str):
        return [Turn(Role.USER, (Text(given, at="input"),), at="input")]
    turns: list[Turn] = []
    for one in Fields({"input": given}).objects("input"):
        kind = one.text("type", "message" if one.has("role") else "item_reference")
        if kind == "additional_tools":
            tools += [tool for each in one.objects("tools") if (tool := _tool(each, losses)) is not None]
            continue
        read = _ITEMS.get(kind)
        if read is None:
            losses.lose(one.at, f"an item of type {kind}")
            continue
        turn = read(one, losses)
        one.leave("id", "status")
        one.finish(losses)
        _append(turns, turn)
    return [replace(turn, parts=tuple(delivered(turn.parts))) for turn in turns]


def _append(turns: list[Turn], turn: Turn) -> None:
    before = turns[-1] if turns else None
    if before and before.role is turn.role and (turn.role is Role.ASSISTANT or (_results(before) and _results(turn))):
        turns[-1] = replace(before, parts=before.parts + turn.parts)
    else:
        turns.append(turn)


def _results(turn: Turn) -> bool:
    return all(isinstance(part, ToolResult) for part in turn.parts)


_ROLES = {"user": Role.USER, "assistant": Role.ASSISTANT, "system": Role.SYSTEM, "developer": Role.SYSTEM}


def _message(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in _ROLES:
        raise BadRequest(fields.path("role"), f"must be one of {', '.join(_ROLES)}")
    fields.loosen(losses, "phase")
    return Turn(_ROLES[role], tuple(_said(fields, "content", losses)), at=fields.at)


def _said(fields: Fields, name: str, losses: Losses) -> list[Text | Media | Refusal]:
    parts = parts_of(fields, name, lambda one: _part(one, losses), lambda text, at: Text(text, at=at))
    return [part for part in parts if part is not None]


def _function_call(fields: Fields, losses: Losses) -> Turn:
    fields.leave("caller")
    call = ToolCall(fields.text("call_id"), fields.text("name"), fields.text("arguments"), at=fields.at)
    return Turn(Role.ASSISTANT, (call,), at=fields.at)


def _custom_call(fields: Fields, losses: Losses) -> Turn:
    fields.leave("caller")
    call = ToolCall(fields.text("call_id"), fields.text("name"), fields.text("input"), free=True, at=fields.at)
    return Turn(Role.ASSISTANT, (call,), at=fields.at)


def _output(fields: Fields, losses: Losses) -> Turn:
    fields.leave("caller", "name")
    said = tuple(part for part in _said(fields, "output", losses) if not isinstance(part, Refusal))
    return Turn(Role.USER, (ToolResult(fields.text("call_id"), said, at=fields.at),), at=fields.at)


def _reasoning(fields: Fields, losses: Losses) -> Turn:
    summary = [one.text("text") for one in fields.objects("summary")]
    content = [one.text("text") for one in fields.objects("content")]
    sealed = fields.text("encrypted_content", "")
    thought = inward("\n\n".join(summary or content), sealed, OPENAI, fields.text("id", ""), fields.at)
    return Turn(Role.ASSISTANT, (thought,), at=fields.at)


_ITEMS: dict[str, Callable[[Fields, Losses], Turn]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
}


def _part(fields: Fields, losses: Losses) -> Text | Media | Refusal | None:
    part: Text | Media | Refusal
    kind = fields.text("type")
    match kind:
        case "input_text" | "output_text":
            part = Text(fields.text("text"), at=fields.at)
            fields.leave("annotations", "logprobs")
        case "refusal":
            part = Refusal(fields.text("refusal"), fields.at)
        case "input_image":
            where, detail = placed(fields.text("image_url", "")), fields.text("detail", "auto")
            id = fields.text("file_id", "")
            part = Media("image", **where, file_id=id, detail="" if detail == "auto" else detail)
        case "input_file":
            where = filed(fields.text("file_data", "")) or placed(fields.text("file_url", ""))
            fields.loosen(losses, "detail")
            id, name = fields.text("file_id", ""), fields.text("filename", "")
            part = Media("document", **where, file_id=id, name=name)
        case _:
            losses.lose(fields.at, f"a part of type {kind}")
            return None
    if fields.object("prompt_cache_breakpoint") and not isinstance(part, Refusal):
        part = replace(part, cache="5m")
    fields.finish(losses)
    return replace(part, at=fields.at)


def _tool(fields: Fields, losses: Losses) -> Tool | None:
    kind = fields.text("type")
    if kind not in ("function", "custom"):
        losses.lose(fields.at, f"a tool of type {kind}")
        return None
    # Not to be strict is what a tool is elsewhere where nothing is said.
    tool = replace(one := read_function(fields), strict=one.strict or None) if kind == "function" else _custom(fields)
    fields.loosen(losses, "allowed_callers", "defer_loading", "output_schema")
    fields.finish(losses)
    return tool


def _custom(fields: Fields) -> Tool:
    form = fields.object("format") or Fields({"type": "text"}, fields.path("format"))
    grammar = None
    if form.text("type") == "grammar":
        grammar = {"syntax": form.text("syntax"), "definition": form.text("definition")}
    return Tool(fields.text("name"), fields.text("description", ""), free=True, grammar=grammar, at=fields.at)


def _choice(fields: Fields, losses: Losses) -> tuple[Choice | None, frozenset[str] | None]:
    """The choice, and the names of the tools among which, where they are told."""
    at = fields.path("tool_choice")
    match fields.any("tool_choice"):
        case None:
            return None, None
        case "auto" | "none" | "required" as mode:
            return Choice(read_mode(mode), at=at), None
        case {"type": "function" | "custom", "name": str(chosen)}:
            return Choice("one", chosen, at), None
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [*tools]}:
            names = (one.get("name") for one in tools if isinstance(one, dict))
            return Choice(read_mode(mode), at=at), frozenset(name for name in names if isinstance(name, str))
        case {"type": str(kind)}:
            losses.lose(at, f"a tool of type {kind}")
            return None, None
    raise BadRequest(at, "must be none, auto, required, a named tool or allowed tools")


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
            shape = read_schema(fields, fields.at)
        case _:
            raise BadRequest(fields.path("type"), "must be text, json_object or json_schema")
    fields.finish(losses)
    return shape


def _effort(fields: Fields | None, losses: Losses) -> Effort | None:
    if fields is None:
        return None
    level = fields.one_of("effort", LEVELS)
    summary = fields.text("summary", "") or fields.text("generate_summary", "")
    if fields.any("mode", "standard") != "standard":
        losses.lose(fields.path("mode"))
    fields.loosen(losses, "context", "generate_summary")
    fields.finish(losses)
    told = True if summary else None
    return Effort(level, off=level == "none", told=told, brief=summary, at=fields.at) if level or summary else None


# -- write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of a request for a response, of which OpenAI keeps nothing. Raises CannotSay."""
    body: dict[str, Json] = {"model": ask.model, "store": False}
    turns = ask.turns
    match turns[:1]:
        case (Turn(role=Role.SYSTEM, parts=(Text() as said,)),):
            loosen_cache(said, losses)
            body["instructions"], turns = said.text, turns[1:]
    body["input"] = [item for turn in turns for item in _items(turn, losses)]
    include = [_SEALED] if _THINKS.match(ask.model) else []
    for name, given in ask.options.items():
        match name:
            case Option.LOGPROBS:
                include += [_LOGPROBS] if given.value else []
            case Option.VERBOSITY:
                body.setdefault("text", {})["verbosity"] = given.value
            case Option.STORE if not given.value:
                pass
            case Option.TIER if given.value not in _TIERS:
                losses.loosen(given.at)
            case _ if name in _NAMES:
                body[_NAMES[name]] = given.value
            case _:
                pass_over(name, given, ask, losses)
    if include:
        body["include"] = include
    if ask.tools:
        body["tools"] = [write_tool(tool, losses) for tool in ask.tools]
        if ask.choice is not None:
            body["tool_choice"] = write_choice(ask.choice, ask.tools)
    if ask.shape is not None:
        body.setdefault("text", {})["format"] = write_shape(ask.shape)
    if ask.effort is not None and (reasoning := write_effort(ask.effort)):
        body["reasoning"] = reasoning
    return body | ({"stream": True} if ask.stream else {})


def _items(turn: Turn, losses: Losses) -> Iterator[Json]:
    if turn.name:
        losses.loosen(f"{turn.at}.name")
    if turn.role is Role.ASSISTANT:
        for part in turn.parts:
            yield from _item(part, losses)
        return
    for part in turn.parts:
        if isinstance(part, ToolResult):
            yield _written_output(part, losses)
    said = [part for part in turn.parts if not isinstance(part, ToolResult)]
    if said:
        yield {"type": "message", "role": str(turn.role), "content": _content(said, losses)}


def _item(part: Part, losses: Losses) -> Iterator[Json]:
    """What the model said. Its texts go as they are: it was not asked to keep them apart."""
    match part:
        case Text() | Refusal():
            loosen_cache(part, losses)
            yield {"type": "message", "role": "assistant", "content": part.text}
        case ToolCall(free=True):
            loosen_cache(part, losses)
            yield {"type": "custom_tool_call", "call_id": part.id, "name": part.name, "input": part.arguments}
        case ToolCall():
            loosen_cache(part, losses)
            yield {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": part.arguments}
        case Thinking(origin="openai") if part.signature:
            summary = [{"type": "summary_text", "text": part.text}] if part.text else []
            yield {"type": "reasoning", "id": part.id, "summary": summary, "encrypted_content": part.signature}
        case Thinking():
            losses.loosen(part.at)
        case _:
            losses.lose(part.at, why_lost(part))


def _written_output(result: ToolResult, losses: Losses) -> Json:
    kind = "custom_tool_call_output" if result.free else "function_call_output"
    loosen_cache(result, losses)
    said = failing(result, list(result.parts), losses)
    return {"type": kind, "call_id": result.id, "output": _content(said, losses)}


def _content(parts: Sequence[Part], losses: Losses) -> Json:
    """A single text plainly."""
    written = [one for part in parts if (one := _written_part(part, losses)) is not None]
    if len(written) == 1 and written[0]["type"] == "input_text":
        return written[0]["text"]
    return written or ""


def _written_part(part: Part, losses: Losses) -> dict[str, Json] | None:
    loosen_cache(part, losses)
    match part:
        case Text() | Refusal():
            return {"type": "input_text", "text": part.text}
        case Media(kind="image") if part.data or part.url:
            return {"type": "input_image", "image_url": url_of(part), "detail": part.detail or "auto"}
        case Media(kind="document") if part.text:
            return {"type": "input_text", "text": titled(part)}
        case Media(kind="document") if part.data:
            return {"type": "input_file", "filename": part.name or "document.pdf", "file_data": url_of(part)}
        case Media(kind="document") if part.url:
            return {"type": "input_file", "file_url": part.url} | ({"filename": part.name} if part.name else {})
    losses.lose(part.at, why_lost(part))
    return None


def write_tool(tool: Tool, losses: Losses) -> Json:
    """A tool; there a function is strict where nothing is said."""
    loosen_cache(tool, losses)
    if not tool.free:
        return {"type": "function"} | write_function(tool) | {"strict": bool(tool.strict)}
    written: dict[str, Json] = {"type": "custom", "name": tool.name}
    if tool.description:
        written["description"] = tool.description
    return written | ({"format": {"type": "grammar", **tool.grammar}} if tool.grammar is not None else {})


def write_choice(choice: Choice, tools: Iterable[Tool]) -> Json:
    if choice.mode != "one":
        return write_mode(choice.mode)
    return {"type": kind_chosen(choice, tools), "name": choice.name}


def write_shape(shape: Shape) -> Json:
    if shape.schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema"} | write_schema(shape)


def write_effort(effort: Effort) -> dict[str, Json]:
    """A summary is asked for where thoughts are to be told, and where a budget was given for them."""
    reasoning: dict[str, Json] = {"effort": level} if (level := level_of(effort)) else {}
    told = effort.told if effort.told is not None else effort.budget is not None
    return reasoning | ({"summary": effort.brief or "auto"} if told and not effort.off else {})
